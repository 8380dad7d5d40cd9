/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * badcalls - calls on /dev/vgpu0 that no sane program makes, in random order.
 *
 *   badcalls SEED COUNT
 *
 * Opens a session, makes COUNT calls with random numbers, pointers, lengths and
 * offsets, scribbles over what it could map, and ends.  Nothing is expected of
 * the answers: the kernel's log and what other sessions see are the test.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vgpu/guest.h"

#define MAP_MAX_BYTES (256ul << 20)

static uint64_t state;
static char buffer[4096];

static uint64_t random_word(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Small, huge, or near a boundary. */
static uint64_t random_number(void)
{
    uint64_t word = random_word();

    switch (word % 4) {
    case 0:
        return random_word() % 17;
    case 1:
        return random_word();
    case 2:
        return (1ull << (random_word() % 64)) - 1 + random_word() % 3;
    default:
        return 4096 * (random_word() % 20000);
    }
}

static void *random_pointer(void)
{
    switch (random_word() % 4) {
    case 0:
        return NULL;
    case 1:
        return (void *)random_number();
    case 2:
        return buffer + sizeof(buffer) - 1 - random_word() % 64;
    default:
        return buffer;
    }
}

static void random_ioctl(int node)
{
    static const unsigned long known[] = {VGPU_IOCTL_INFO, VGPU_IOCTL_RING};
    uint64_t word = random_word();
    unsigned long command = word % 2 ? known[word / 2 % 2] : random_number();

    if (word % 8 == 0)
        command = _IOC(word >> 8 & 3, 'V', word >> 16 & 0xff, word >> 24 & 0x3fff);
    ioctl(node, command, random_pointer());
}

static void random_map(int node)
{
    uint64_t bytes = random_number() % MAP_MAX_BYTES;
    int protection = (int)(random_word() % 8);
    int flags = random_word() % 4 ? MAP_SHARED : MAP_PRIVATE;
    uint8_t *mapped =
        mmap(NULL, bytes, protection, flags, node, (off_t)(random_number() & ~4095ull));

    if (mapped == MAP_FAILED)
        return;
    for (int i = 0; i < 64 && protection & PROT_WRITE; i++)
        mapped[random_word() % bytes] = (uint8_t)random_word();
    mprotect(mapped, bytes, (int)(random_word() % 8));
    madvise(mapped, bytes, (int)(random_word() % 26));
    if (random_word() % 2)
        mremap(mapped, bytes, random_number() % MAP_MAX_BYTES, MREMAP_MAYMOVE);
    munmap(mapped, bytes);
}

static void random_call(int node)
{
    struct pollfd wanted = {.fd = node, .events = (short)random_word()};

    switch (random_word() % 8) {
    case 0:
        if (read(node, random_pointer(), random_number()) < 0)
            errno = 0;
        break;
    case 1:
        if (write(node, random_pointer(), random_number()) < 0)
            errno = 0;
        break;
    case 2:
        random_map(node);
        break;
    case 3:
        poll(&wanted, 1, 0);
        break;
    case 4:
        lseek(node, (off_t)random_number(), (int)(random_word() % 5));
        break;
    case 5:
        close(dup(node));
        break;
    default:
        random_ioctl(node);
    }
}

int main(int argc, char **argv)
{
    int node = open("/dev/vgpu0", O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (argc != 3 || node < 0) {
        fprintf(stderr, "badcalls: open: %s; usage: badcalls SEED COUNT\n", strerror(errno));
        return 1;
    }
    state = strtoull(argv[1], NULL, 0) * 2654435761u + 1;
    for (long i = strtol(argv[2], NULL, 0); i > 0; i--)
        random_call(node);
    printf("done\n");
    return 0;
}
