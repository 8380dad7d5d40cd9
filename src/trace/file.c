/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of the decision log, from its writer's side.
 */
#include "trace/private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define KIB 1024u

bool trace_header_makes_sense(const struct trace_header *header, uint64_t file_bytes)
{
    uint64_t capacity = header->capacity;

    return header->magic == TRACE_MAGIC && header->version == TRACE_VERSION && capacity > 0 &&
           (capacity & (capacity - 1)) == 0 &&
           capacity <= (uint64_t)TRACE_KIB_MAX * KIB / sizeof(struct trace_record) &&
           file_bytes == trace_file_bytes(capacity);
}

static uint64_t capacity_of(uint32_t kib)
{
    uint64_t most = (uint64_t)kib * KIB / sizeof(struct trace_record), capacity = 1;

    while (capacity * 2 <= most)
        capacity *= 2;
    return capacity;
}

static bool is_as_wanted(int fd, uint64_t capacity, uint32_t vm_id)
{
    struct trace_header header;
    struct stat info;

    return fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
           fd_pread_all(fd, &header, sizeof(header), 0) == 0 &&
           trace_header_makes_sense(&header, (uint64_t)info.st_size) &&
           header.capacity == capacity && header.vm_id == vm_id;
}

/* Room for all of it now: a full disk is an error here, and no SIGBUS later. */
static int make_anew(int fd, uint64_t capacity, const struct trace_owner *owner)
{
    const struct trace_header header = {.magic = TRACE_MAGIC,
                                        .version = TRACE_VERSION,
                                        .capacity = capacity,
                                        .vm_id = owner->vm_id,
                                        .weight = owner->weight,
                                        .pool = (uint8_t)owner->pool,
                                        .priority = owner->priority};

    if (ftruncate(fd, 0) < 0)
        return -1;
    errno = posix_fallocate(fd, 0, (off_t)trace_file_bytes(capacity));
    return errno != 0 ? -1 : fd_pwrite_all(fd, &header, sizeof(header), 0);
}

int trace_open(const char *path, uint32_t kib, const struct trace_owner *owner,
               struct vgpu_error *error)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    uint64_t capacity = capacity_of(kib);

    if (fd < 0)
        return error_set_errno(error, "cannot open trace '%s'", path);
    if (!is_as_wanted(fd, capacity, owner->vm_id) && make_anew(fd, capacity, owner) < 0) {
        error_set_errno(error, "cannot make trace '%s' of %llu bytes", path,
                        (unsigned long long)trace_file_bytes(capacity));
        fd_close(&fd);
    }
    return fd;
}

int trace_attach(struct trace *trace, int fd, struct vgpu_error *error)
{
    struct trace_header *header;
    struct stat info;

    if (fstat(fd, &info) < 0)
        return error_set_errno(error, "cannot examine the trace");
    if ((size_t)info.st_size < sizeof(*header))
        return error_set(error, EINVAL, "the trace is too short: %lld bytes",
                         (long long)info.st_size);
    header = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (header == MAP_FAILED)
        return error_set_errno(error, "cannot map the trace");
    if (!trace_header_makes_sense(header, (uint64_t)info.st_size)) {
        munmap(header, (size_t)info.st_size);
        return error_set(error, EINVAL, "the trace is not of this release");
    }
    *trace = (struct trace){.header = header,
                            .records = (struct trace_record *)(header + 1),
                            .mask = header->capacity - 1};
    return 0;
}

void trace_detach(struct trace *trace)
{
    if (trace->header)
        munmap(trace->header, trace_file_bytes(trace->mask + 1));
    *trace = (struct trace){0};
}
