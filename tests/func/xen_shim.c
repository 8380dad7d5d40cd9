/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Xen's devices for vgpu-xen, put under it by LD_PRELOAD where there is no Xen.
 *
 *   /dev/xen/gntdev   the file XEN_SHIM_PAGES: a grant reference is a page's number in it
 *   /dev/xen/evtchn   the socket XEN_SHIM_EVENTS: each event is the 4 bytes of a port
 *
 * References that are mapped at once must follow each other.  What a kernel does when a
 * process dies is not done.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#define PAGE_BYTES 4096u
#define BOUND_PORT 77

static int open_events(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(address.sun_path, getenv("XEN_SHIM_EVENTS"), sizeof(address.sun_path) - 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

int open(const char *path, int flags, ...)
{
    int (*next)(const char *, int, ...) =
        (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    va_list args;
    mode_t mode = 0;

    if (flags & O_CREAT) {
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    if (strcmp(path, "/dev/xen/evtchn") == 0)
        return open_events();
    if (strcmp(path, "/dev/xen/gntdev") == 0)
        path = getenv("XEN_SHIM_PAGES");
    return next(path, flags, mode);
}

static int map_references(struct ioctl_gntdev_map_grant_ref *map)
{
    for (uint32_t i = 0; i < map->count; i++) {
        if (map->refs[i].ref != map->refs[0].ref + i) {
            errno = EINVAL;
            return -1;
        }
    }
    map->index = (uint64_t)map->refs[0].ref * PAGE_BYTES;
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*next)(int, unsigned long, ...);
    va_list args;
    void *argument;

    if (!next)
        next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    va_start(args, request);
    argument = va_arg(args, void *);
    va_end(args);
    switch (request) {
    case IOCTL_GNTDEV_MAP_GRANT_REF:
        return map_references(argument);
    case IOCTL_GNTDEV_UNMAP_GRANT_REF:
    case IOCTL_GNTDEV_SET_UNMAP_NOTIFY:
        return 0;
    case IOCTL_EVTCHN_BIND_INTERDOMAIN:
        return BOUND_PORT;
    case IOCTL_EVTCHN_NOTIFY:
        return write(fd, argument, sizeof(uint32_t)) < 0 ? -1 : 0;
    default:
        return next(fd, request, argument);
    }
}
