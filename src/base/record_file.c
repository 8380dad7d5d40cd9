/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One record a file, never torn:
 *
 *   offset 0              slot bytes
 *   +---------------------+---------------------+
 *   | header │ payload    | header │ payload    |     generation odd: slot 1
 *   +---------------------+---------------------+     generation even: slot 0
 *
 * A write goes to the slot that does not hold the newest record, so a writer
 * that dies in the middle leaves the newest one alone.
 */
#include "base/base.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define RECORD_FILE_MAGIC 0x52475056u /* "VPGR" */

struct slot_header {
    uint32_t crc; /* of all that follows, payload included */
    uint32_t magic;
    uint32_t kind;
    uint32_t payload_bytes;
    uint64_t generation;
};

union slot {
    struct slot_header header;
    char bytes[sizeof(struct slot_header) + RECORD_FILE_PAYLOAD_MAX_BYTES];
};

static size_t slot_bytes(size_t payload_bytes)
{
    return sizeof(struct slot_header) + payload_bytes;
}

static uint32_t slot_crc(const union slot *slot, size_t payload_bytes)
{
    return text_crc32(slot->bytes + sizeof(uint32_t), slot_bytes(payload_bytes) - sizeof(uint32_t));
}

/* Returns true when the slot holds a whole record; false when it does not or
 * is not there. */
static bool read_slot(int fd, unsigned index, uint32_t kind, size_t payload_bytes, union slot *slot)
{
    size_t bytes = slot_bytes(payload_bytes);

    if (fd_pread_all(fd, slot->bytes, bytes, (off_t)(index * bytes)) < 0)
        return false;
    return slot->header.magic == RECORD_FILE_MAGIC && slot->header.kind == kind &&
           slot->header.payload_bytes == payload_bytes && slot->header.generation % 2 == index &&
           slot->header.generation > 0 && slot->header.crc == slot_crc(slot, payload_bytes);
}

int record_file_load(struct record_file *file, int fd, uint32_t kind, void *payload,
                     size_t payload_bytes, struct vgpu_error *error)
{
    union slot slot;
    uint64_t newest = 0;
    char probe;

    assert(payload_bytes <= RECORD_FILE_PAYLOAD_MAX_BYTES);
    if (pread(fd, &probe, 1, 0) < 0)
        return error_set_errno(error, "cannot read record file");
    for (unsigned index = 0; index < 2; index++) {
        if (!read_slot(fd, index, kind, payload_bytes, &slot) || slot.header.generation <= newest)
            continue;
        newest = slot.header.generation;
        memcpy(payload, slot.bytes + sizeof(struct slot_header), payload_bytes);
    }
    *file = (struct record_file){.fd = fd, .payload_bytes = payload_bytes, .generation = newest};
    return newest > 0;
}

int record_file_store(struct record_file *file, uint32_t kind, const void *payload, bool sync,
                      struct vgpu_error *error)
{
    size_t bytes = slot_bytes(file->payload_bytes);
    uint64_t generation = file->generation + 1;
    union slot slot;

    slot.header = (struct slot_header){.magic = RECORD_FILE_MAGIC,
                                       .kind = kind,
                                       .payload_bytes = (uint32_t)file->payload_bytes,
                                       .generation = generation};
    memcpy(slot.bytes + sizeof(struct slot_header), payload, file->payload_bytes);
    slot.header.crc = slot_crc(&slot, file->payload_bytes);
    if (fd_pwrite_all(file->fd, slot.bytes, bytes, (off_t)(generation % 2 * bytes)) < 0)
        return error_set_errno(error, "cannot write record file");
    if (sync && fdatasync(file->fd) < 0)
        return error_set_errno(error, "cannot sync record file");
    file->generation = generation;
    return 0;
}
