/* SPDX-License-Identifier: Apache-2.0 */
/*
 * grants COUNT - grants that many pages to Dom0, one by one, as far as the kernel lets.
 *
 * Prints how many there were and why it was no more; they end with the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <xen/gntalloc.h>

#define DOM0 0

static int grant_page(int device)
{
    struct ioctl_gntalloc_alloc_gref page = {
        .domid = DOM0,
        .flags = GNTALLOC_FLAG_WRITABLE,
        .count = 1,
    };

    return ioctl(device, IOCTL_GNTALLOC_ALLOC_GREF, &page);
}

int main(int argc, char **argv)
{
    long wanted = argc == 2 ? atol(argv[1]) : 0;
    long granted = 0;
    int device = open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC);

    if (device < 0 || wanted < 1) {
        fprintf(stderr, "usage: grants COUNT, where there is a /dev/xen/gntalloc\n");
        return 2;
    }
    while (granted < wanted && grant_page(device) == 0)
        granted++;
    printf("%ld pages%s%s\n", granted, granted < wanted ? ": " : "",
           granted < wanted ? strerror(errno) : "");
    close(device);
    return granted < wanted;
}
