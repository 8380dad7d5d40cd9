/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's pages by the kernel's /dev/xen/gntdev.  The references are the guest's words:
 * Xen maps only what that very domain has granted to this one, so a wrong reference is a
 * failure here, or another page of the same guest.
 */
#include "xen/xen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint16_t domid_t; /* which the next header of some versions needs */
typedef uint32_t grant_ref_t;
#include <xen/gntdev.h>

/* Maps `count` references at once; NULL with errno. */
static void *map(int fd, unsigned domain, const uint32_t *references, uint32_t count,
                 uint64_t *ret_index)
{
    struct ioctl_gntdev_map_grant_ref *request =
        calloc(1, sizeof(*request) + count * sizeof(request->refs[0]));
    void *memory = MAP_FAILED;
    int error;

    if (!request)
        return NULL;
    request->count = count;
    for (uint32_t i = 0; i < count; i++)
        request->refs[i] = (struct ioctl_gntdev_grant_ref){.domid = domain, .ref = references[i]};
    if (ioctl(fd, IOCTL_GNTDEV_MAP_GRANT_REF, request) == 0) {
        *ret_index = request->index;
        memory = mmap(NULL, (size_t)count * VGPU_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                      (off_t)request->index);
    }
    error = errno;
    free(request);
    errno = error;
    return memory == MAP_FAILED ? NULL : memory;
}

static void unmap(int fd, void *memory, uint32_t count, uint64_t index)
{
    struct ioctl_gntdev_unmap_grant_ref request = {.index = index, .count = count};

    munmap(memory, (size_t)count * VGPU_PAGE_BYTES);
    ioctl(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &request);
}

/* The references of the slot's pages, read once into memory of ours; the caller frees. */
static uint32_t *read_directory(int fd, unsigned domain, const struct xen_request *request)
{
    size_t bytes = request->slot_bytes / VGPU_PAGE_BYTES * sizeof(uint32_t);
    uint64_t index = 0;
    void *pages = map(fd, domain, request->directory, request->directory_count, &index);
    uint32_t *references = pages ? malloc(bytes) : NULL;

    if (references)
        memcpy(references, pages, bytes);
    if (pages)
        unmap(fd, pages, request->directory_count, index);
    return references;
}

static int watch_end(const struct xen_grants *grants, unsigned port)
{
    struct ioctl_gntdev_unmap_notify notify = {
        .index = grants->index + VGPU_SLOT_HOST + VGPU_XEN_ALIVE,
        .action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
        .event_channel_port = port,
    };

    return ioctl(grants->fd, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, &notify);
}

int xen_grants_map(struct xen_grants *grants, unsigned domain, const struct xen_request *request,
                   unsigned port, struct vgpu_error *error)
{
    uint32_t *references;

    *grants = (struct xen_grants){.pages = request->slot_bytes / VGPU_PAGE_BYTES};
    grants->fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
    if (grants->fd < 0)
        return error_set_errno(error, "/dev/xen/gntdev (modprobe xen-gntdev)");
    references = read_directory(grants->fd, domain, request);
    if (references)
        grants->memory = map(grants->fd, domain, references, grants->pages, &grants->index);
    free(references);
    if (grants->memory && watch_end(grants, port) == 0)
        return 0;
    error_set_errno(error, "the slot's %u pages cannot be mapped as they were granted",
                    grants->pages);
    xen_grants_unmap(grants);
    return -1;
}

void xen_grants_unmap(struct xen_grants *grants)
{
    if (grants->memory)
        unmap(grants->fd, grants->memory, grants->pages, grants->index);
    grants->memory = NULL;
    fd_close(&grants->fd);
}
