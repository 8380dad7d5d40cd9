/* SPDX-License-Identifier: Apache-2.0 */
/* The pages of a slot, by the kernel's /dev/xen/gntalloc, and what stands at its address. */
#include "xen_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/gntalloc.h>

/* Whole slots of windows of 2, 1 and 1/2 MiB. */
static const uint64_t usual_bytes[] = {(2u << 20) - VGPU_PAGE_BYTES, (1u << 20) - VGPU_PAGE_BYTES,
                                       (1u << 19) - VGPU_PAGE_BYTES};

/* --- granting ---------------------------------------------------------------------------- */

/* Grants `pages`: returns their references, which the caller frees; NULL with errno. */
static uint32_t *grant_pages(const struct xen_slot *slot, unsigned domain, uint32_t pages,
                             uint64_t *ret_index)
{
    struct ioctl_gntalloc_alloc_gref *request =
        calloc(1, sizeof(*request) + pages * sizeof(request->gref_ids[0]));
    uint32_t *references = malloc(pages * sizeof(*references));

    if (request && references) {
        request->domid = (uint16_t)domain;
        request->flags = GNTALLOC_FLAG_WRITABLE;
        request->count = pages;
        if (ioctl(slot->fd, IOCTL_GNTALLOC_ALLOC_GREF, request) == 0) {
            memcpy(references, request->gref_ids, pages * sizeof(*references));
            *ret_index = request->index;
            free(request);
            return references;
        }
    }
    free(references);
    free(request);
    return NULL;
}

/* Pages that list `references`. */
static int make_directory(struct xen_slot *slot, unsigned domain, const uint32_t *references,
                          uint32_t pages)
{
    uint32_t count = (pages - 1) / VGPU_XEN_REFERENCES_A_PAGE + 1;
    size_t bytes = (size_t)count * VGPU_PAGE_BYTES;
    uint64_t index;
    uint32_t *own = grant_pages(slot, domain, count, &index), *list;

    if (!own)
        return -1;
    memcpy(slot->directory, own, count * sizeof(*own));
    slot->directory_count = count;
    free(own);
    list = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, slot->fd, (off_t)index);
    if (list == MAP_FAILED)
        return -1;
    memcpy(list, references, pages * sizeof(*references));
    munmap(list, bytes);
    return 0;
}

/* A slot of `bytes` with its directory, or nothing. */
static int grant_bytes(struct xen_slot *slot, unsigned domain, uint64_t bytes)
{
    uint32_t pages = (uint32_t)(bytes / VGPU_PAGE_BYTES);
    uint32_t *references;
    int result = -1, error;

    slot->fd = open(GNTALLOC, O_RDWR | O_CLOEXEC);
    if (slot->fd < 0)
        return -1;
    references = grant_pages(slot, domain, pages, &slot->index);
    if (references)
        result = make_directory(slot, domain, references, pages);
    error = errno;
    free(references);
    if (result < 0)
        xen_slot_close(slot); /* gives back what was granted */
    slot->bytes = bytes;
    errno = error;
    return result;
}

static int no_pages(uint64_t bytes, struct vgpu_problem *problem)
{
    if (errno == ENOENT || errno == ENODEV)
        return problem_set(problem, VGPU_PROBLEM_NO_DEVICE,
                           GNTALLOC ": %s; load the guest's module: modprobe xen-gntalloc",
                           strerror(errno));
    if (errno != ENOSPC)
        return xen_problem("open " GNTALLOC ", or grant its pages to the host", problem);
    return problem_set(problem, VGPU_PROBLEM_BUSY,
                       "this VM's kernel shares no further %llu pages with the host: let other "
                       "sessions end, or raise the limit (module parameter `limit` of "
                       "xen-gntalloc, in pages: now in "
                       "/sys/module/xen_gntalloc/parameters/limit)",
                       (unsigned long long)(bytes / VGPU_PAGE_BYTES));
}

int xen_slot_grant(struct xen_slot *slot, unsigned domain, uint64_t wanted_bytes,
                   struct vgpu_problem *problem)
{
    size_t count = sizeof(usual_bytes) / sizeof(usual_bytes[0]);
    const uint64_t *sizes = usual_bytes;

    if (wanted_bytes) {
        if (wanted_bytes % VGPU_PAGE_BYTES != 0 || wanted_bytes < VGPU_SLOT_MIN_BYTES ||
            wanted_bytes > VGPU_XEN_SLOT_MAX_BYTES)
            return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                               "a slot under Xen has %u to %u bytes in whole pages of %u, not "
                               "%" PRIu64,
                               VGPU_SLOT_MIN_BYTES, VGPU_XEN_SLOT_MAX_BYTES, VGPU_PAGE_BYTES,
                               wanted_bytes);
        sizes = &wanted_bytes;
        count = 1;
    }
    for (size_t i = 0; i < count; i++) {
        if (grant_bytes(slot, domain, sizes[i]) == 0)
            return 0;
        if (errno != ENOSPC)
            break;
    }
    return no_pages(slot->bytes ? slot->bytes : sizes[0], problem);
}

void xen_slot_close(struct xen_slot *slot)
{
    if (slot->fd >= 0)
        close(slot->fd);
    slot->fd = -1;
}

/* --- the end --------------------------------------------------------------------------------- */

int xen_slot_notify(const struct xen_slot *slot, unsigned port)
{
    struct ioctl_gntalloc_unmap_notify notify = {
        .index = slot->index + VGPU_SLOT_GUEST + VGPU_XEN_ALIVE,
        .action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
        .event_channel_port = port,
    };

    return ioctl(slot->fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &notify);
}

void xen_slot_notify_nobody(const struct xen_slot *slot)
{
    struct ioctl_gntalloc_unmap_notify notify = {.index = slot->index + VGPU_SLOT_GUEST +
                                                          VGPU_XEN_ALIVE};

    ioctl(slot->fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &notify);
}

/* --- the slot's address ------------------------------------------------------------------------
 */

int xen_slot_take_place(struct vgpu_session *session, uint8_t *memory)
{
    uint64_t bytes = session->slot_bytes;

    return mremap(memory, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, session->slot) == MAP_FAILED
               ? -1
               : 0;
}

int xen_slot_leave(struct vgpu_session *session)
{
    uint64_t bytes = session->slot_bytes;
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return -1;
    madvise(memory, bytes, MADV_DONTFORK);
    memcpy(memory, session->slot, bytes);
    if (xen_slot_take_place(session, memory) == 0)
        return 0;
    munmap(memory, bytes);
    return -1;
}
