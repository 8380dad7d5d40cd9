/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors of the window channel: what a descriptor says by itself.
 *
 *   bytes ─▶ one private copy ─▶ protocol_check_descriptor() ─▶ the device:
 *                                opcode, flags, unused words,     addresses, handles,
 *                                sizes, places in the slot        names, memory
 *
 * One table says which operations there are, how much of the 48 bytes each uses,
 * and what else must hold.  What is not used must be zero, so that later versions
 * can give it a meaning.
 */
#include "protocol/protocol.h"

struct kind {
    bool known;
    uint8_t used_bytes; /* of the union; the rest is zero */
    enum vgpu_status (*check)(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes);
};

static bool lies_within(uint64_t offset, uint64_t bytes, uint64_t begin, uint64_t end)
{
    return offset >= begin && offset <= end && bytes <= end - offset;
}

static bool lies_in_slot(uint64_t offset, uint64_t bytes, uint64_t slot_bytes)
{
    return lies_within(offset, bytes, VGPU_SLOT_ARENA, slot_bytes);
}

/* Of no more `bytes` than the arena has.  One comparison: what begins before it wraps. */
static bool lies_in_arena(uint64_t offset, uint32_t bytes)
{
    return offset - VGPU_SLOT_ARENA <= VGPU_ARENA_BYTES - bytes;
}

_Static_assert(VGPU_NAME_MAX_BYTES <= VGPU_ARENA_BYTES &&
                   VGPU_PARAMETERS_MAX_BYTES <= VGPU_ARENA_BYTES,
               "what a launch names is never larger than the arena");

static enum vgpu_status check_text(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    uint32_t bytes = descriptor->text.command_bytes;

    if (bytes == 0 || bytes > VGPU_TEXT_MAX_BYTES)
        return VGPU_INVALID;
    if (!lies_in_slot(descriptor->text.command_offset, bytes, slot_bytes) ||
        !lies_in_slot(descriptor->text.answer_offset, descriptor->text.answer_bytes, slot_bytes))
        return VGPU_BAD_ADDRESS;
    return VGPU_OK;
}

static enum vgpu_status check_alloc(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    (void)slot_bytes;
    return descriptor->alloc.bytes > 0 ? VGPU_OK : VGPU_INVALID;
}

static enum vgpu_status check_set(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    uint32_t width = descriptor->set.width;
    uint64_t bytes;

    (void)slot_bytes;
    if ((width != 1 && width != 2 && width != 4) || descriptor->set.address % width != 0)
        return VGPU_INVALID;
    if (__builtin_mul_overflow(descriptor->set.count, (uint64_t)width, &bytes))
        return VGPU_BAD_ADDRESS;
    return VGPU_OK;
}

static enum vgpu_status check_copy(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    uint64_t bytes = descriptor->copy.bytes;

    if (bytes == 0)
        return VGPU_OK;
    if (descriptor->opcode == VGPU_OP_COPY_IN &&
        !lies_in_slot(descriptor->copy.source, bytes, slot_bytes))
        return VGPU_BAD_ADDRESS;
    if (descriptor->opcode == VGPU_OP_COPY_OUT &&
        !lies_in_slot(descriptor->copy.target, bytes, slot_bytes))
        return VGPU_BAD_ADDRESS;
    return VGPU_OK;
}

static enum vgpu_status check_create(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    (void)slot_bytes;
    return descriptor->object.handle != 0 ? VGPU_OK : VGPU_INVALID;
}

static enum vgpu_status check_module(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    uint64_t bytes = descriptor->module.image_bytes;

    if (descriptor->module.handle == 0 || descriptor->module.reserved != 0 || bytes == 0)
        return VGPU_INVALID;
    if (descriptor->opcode == VGPU_OP_MODULE_LOAD && descriptor->module.image_offset == 0)
        return bytes <= VGPU_IMAGE_MAX_BYTES ? VGPU_OK : VGPU_INVALID;
    if (descriptor->opcode == VGPU_OP_MODULE_PART &&
        (descriptor->module.whole_bytes > VGPU_IMAGE_MAX_BYTES ||
         !lies_within(descriptor->module.part_at, bytes, 0, descriptor->module.whole_bytes)))
        return VGPU_INVALID;
    if (!lies_in_slot(descriptor->module.image_offset, bytes, slot_bytes))
        return VGPU_BAD_ADDRESS;
    return bytes <= VGPU_IMAGE_MAX_BYTES ? VGPU_OK : VGPU_INVALID;
}

static bool has_zero(const uint32_t size[3])
{
    return size[0] == 0 || size[1] == 0 || size[2] == 0;
}

static enum vgpu_status check_launch(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    uint32_t name_bytes = descriptor->launch.name_bytes;
    uint32_t parameters_bytes = descriptor->launch.parameters_bytes;

    (void)slot_bytes;
    if (name_bytes == 0 || name_bytes > VGPU_NAME_MAX_BYTES ||
        parameters_bytes > VGPU_PARAMETERS_MAX_BYTES || parameters_bytes % sizeof(uint64_t) != 0)
        return VGPU_INVALID;
    if (has_zero(descriptor->launch.grid) || has_zero(descriptor->launch.block))
        return VGPU_INVALID;
    if (!lies_in_arena(descriptor->launch.name_offset, name_bytes) ||
        (parameters_bytes > 0 &&
         !lies_in_arena(descriptor->launch.parameters_offset, parameters_bytes)))
        return VGPU_BAD_ADDRESS;
    return VGPU_OK;
}

static const struct kind kinds[] = {
    [VGPU_OP_PING] = {true, 0, NULL},
    [VGPU_OP_TEXT] = {true, 24, check_text},
    [VGPU_OP_RESET] = {true, 0, NULL},
    [VGPU_OP_CANCEL] = {true, 8, NULL},
    [VGPU_OP_QUERY] = {true, 4, NULL},
    [VGPU_OP_ALLOC] = {true, 8, check_alloc},
    [VGPU_OP_FREE] = {true, 8, NULL},
    [VGPU_OP_SET] = {true, 24, check_set},
    [VGPU_OP_COPY_IN] = {true, 24, check_copy},
    [VGPU_OP_COPY_OUT] = {true, 24, check_copy},
    [VGPU_OP_COPY] = {true, 24, check_copy},
    [VGPU_OP_STREAM_CREATE] = {true, 4, check_create},
    [VGPU_OP_STREAM_DESTROY] = {true, 4, NULL},
    [VGPU_OP_STREAM_SYNC] = {true, 4, NULL},
    [VGPU_OP_STREAM_WAIT] = {true, 4, NULL},
    [VGPU_OP_EVENT_CREATE] = {true, 4, check_create},
    [VGPU_OP_EVENT_DESTROY] = {true, 4, NULL},
    [VGPU_OP_EVENT_RECORD] = {true, 4, NULL},
    [VGPU_OP_EVENT_SYNC] = {true, 4, NULL},
    [VGPU_OP_EVENT_QUERY] = {true, 4, NULL},
    [VGPU_OP_EVENT_ELAPSED] = {true, 8, NULL},
    [VGPU_OP_DEVICE_SYNC] = {true, 0, NULL},
    [VGPU_OP_MODULE_LOAD] = {true, 24, check_module},
    [VGPU_OP_MODULE_UNLOAD] = {true, 4, NULL},
    [VGPU_OP_LAUNCH] = {true, 48, check_launch},
    [VGPU_OP_MODULE_PART] = {true, 40, check_module},
};

static bool rest_is_zero(const struct vgpu_descriptor *descriptor, uint8_t used_bytes)
{
    uint64_t rest = 0;
    size_t first = used_bytes / sizeof(uint64_t);

    if (used_bytes % sizeof(uint64_t) != 0)
        rest = descriptor->words[first++] >> 32; /* the lower half is used */
    for (size_t i = first; i < VGPU_ARRAY_LENGTH(descriptor->words); i++)
        rest |= descriptor->words[i];
    return rest == 0;
}

enum vgpu_status protocol_check_descriptor(const struct vgpu_descriptor *descriptor,
                                           uint64_t slot_bytes, unsigned device_count)
{
    const struct kind *kind = descriptor->opcode < VGPU_ARRAY_LENGTH(kinds)
                                  ? &kinds[descriptor->opcode]
                                  : &kinds[VGPU_OP_NONE];

    if (!kind->known)
        return VGPU_BAD_OPCODE;
    if ((descriptor->flags & (uint8_t)~VGPU_FLAG_ALL) != 0 ||
        !rest_is_zero(descriptor, kind->used_bytes))
        return VGPU_INVALID;
    if (descriptor->device >= device_count)
        return VGPU_BAD_HANDLE;
    return kind->check ? kind->check(descriptor, slot_bytes) : VGPU_OK;
}
