/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session - walks through calls on /dev/vgpu0 as its arguments say.
 *
 *   session open info map get:0x10c0 poll:1000 read close
 *
 * Each step prints one line, `STEP RESULT`: a number, the name of an errno, or
 * SIGBUS.  A failed step does not end the walk.  Numbers as in C.
 *
 *   open nonblock  (nonblock: sets O_NONBLOCK)          close
 *   info           prints the fields of struct vgpu_guest_info
 *   map[:BYTES[,OFFSET]]  mmap, shared, read and write; default: the whole slot
 *   private, exec  the same, MAP_PRIVATE or with PROT_EXEC
 *   protect        mprotect of the mapping to PROT_EXEC
 *   unmap          put:OFFSET,VALUE   get:OFFSET   fill:OFFSET,BYTES,BYTE
 *   sum:OFFSET,BYTES                  ring  write[:BYTES]  read[:BYTES]
 *   poll:MS        prints the events as a hexadecimal number
 *   pin  unpin     a pipe takes a page of the mapping, and is emptied
 *   fork:FILE      a child holds the descriptor until FILE exists
 *   remap          mremap of the mapping to double its size
 *   wait:FILE      until FILE exists
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vgpu/guest.h"

static int node = -1;
static uint8_t *mapping;
static size_t mapping_bytes;
static int pin_pipe[2] = {-1, -1};
static sigjmp_buf on_fault;

static void fault(int number)
{
    siglongjmp(on_fault, number);
}

static void say(const char *step, long result)
{
    if (result < 0)
        printf("%s %s\n", step, strerrorname_np(errno));
    else
        printf("%s %ld\n", step, result);
}

static void do_info(const char *step)
{
    struct vgpu_guest_info info;

    if (ioctl(node, VGPU_IOCTL_INFO, &info) < 0) {
        say(step, -1);
        return;
    }
    printf("%s version=0x%x vm_id=%u pool=%c priority=%u slot_bytes=%" PRIu64
           " slot=%u slot_count=%u state=%u code=%u cached=%u reserved=%u\n",
           step, info.version, info.vm_id, (int)info.pool, info.priority, info.slot_bytes,
           info.slot, info.slot_count, info.state, info.code, info.cached, info.reserved);
}

static void do_map(const char *step, size_t bytes, size_t offset)
{
    struct vgpu_guest_info info;
    int protection = PROT_READ | PROT_WRITE | (strcmp(step, "exec") == 0 ? PROT_EXEC : 0);
    int flags = strcmp(step, "private") == 0 ? MAP_PRIVATE : MAP_SHARED;
    void *address;

    if (bytes == 0 && ioctl(node, VGPU_IOCTL_INFO, &info) == 0)
        bytes = info.slot_bytes;
    address = mmap(NULL, bytes, protection, flags, node, (off_t)offset);
    say(step, address == MAP_FAILED ? -1 : 0);
    if (address == MAP_FAILED)
        return;
    mapping = address;
    mapping_bytes = bytes;
}

static void do_remap(const char *step)
{
    void *moved = mremap(mapping, mapping_bytes, 2 * mapping_bytes, MREMAP_MAYMOVE);

    say(step, moved == MAP_FAILED ? -1 : 0);
}

/* The kernel takes a reference to the page, as for a transfer of its own. */
static void do_pin(const char *step)
{
    struct iovec page = {.iov_base = mapping, .iov_len = 4096};

    say(step, pipe(pin_pipe) < 0 ? -1 : vmsplice(pin_pipe[1], &page, 1, 0));
}

static void do_unpin(const char *step)
{
    char page[4096];

    say(step, read(pin_pipe[0], page, sizeof(page)));
}

static void wait_for(const char *file)
{
    while (access(file, F_OK) < 0)
        usleep(5000);
}

static void do_fork(const char *step, const char *file)
{
    pid_t child = fork();

    if (child == 0) {
        wait_for(file);
        _exit(0);
    }
    say(step, child < 0 ? -1 : 0);
}

static void do_poll(const char *step, int timeout_ms)
{
    struct pollfd wanted = {.fd = node, .events = POLLIN};
    int ready = poll(&wanted, 1, timeout_ms);

    if (ready < 0)
        say(step, -1);
    else
        printf("%s 0x%x\n", step, (unsigned)wanted.revents);
}

static void do_read(const char *step, size_t bytes)
{
    uint64_t answer[2] = {0, 0};
    ssize_t got = read(node, answer, bytes ? bytes : sizeof(answer[0]));

    say(step, got < 0 ? -1 : (long)answer[0]);
}

static void do_write(const char *step, size_t bytes)
{
    uint64_t anything[2] = {0, 0};

    say(step, write(node, anything, bytes ? bytes : sizeof(anything[0])));
}

static void do_sum(const char *step, size_t offset, size_t bytes)
{
    unsigned long sum = 0;

    for (size_t i = 0; i < bytes; i++)
        sum += mapping[offset + i];
    say(step, (long)sum);
}

/* Steps on the mapping; false when it is none of these. */
static int walk_memory(const char *step, const uint64_t *numbers)
{
    if (strcmp(step, "put") == 0) {
        *(volatile uint32_t *)(mapping + numbers[0]) = (uint32_t)numbers[1];
        say(step, 0);
    } else if (strcmp(step, "get") == 0) {
        say(step, *(volatile uint32_t *)(mapping + numbers[0]));
    } else if (strcmp(step, "fill") == 0) {
        memset(mapping + numbers[0], (int)numbers[2], numbers[1]);
        say(step, 0);
    } else if (strcmp(step, "sum") == 0) {
        do_sum(step, numbers[0], numbers[1]);
    } else if (strcmp(step, "unmap") == 0) {
        say(step, munmap(mapping, mapping_bytes));
    } else if (strcmp(step, "protect") == 0) {
        say(step, mprotect(mapping, mapping_bytes, PROT_READ | PROT_EXEC));
    } else if (strcmp(step, "remap") == 0) {
        do_remap(step);
    } else if (strcmp(step, "pin") == 0) {
        do_pin(step);
    } else if (strcmp(step, "unpin") == 0) {
        do_unpin(step);
    } else {
        return 0;
    }
    return 1;
}

static int walk_node(const char *step, const char *argument, const uint64_t *numbers)
{
    if (strcmp(step, "open") == 0) {
        node = open("/dev/vgpu0", O_RDWR | O_CLOEXEC);
        say(step, node < 0 ? -1 : 0);
    } else if (strcmp(step, "nonblock") == 0) {
        say(step, fcntl(node, F_SETFL, O_NONBLOCK));
    } else if (strcmp(step, "close") == 0) {
        say(step, close(node));
    } else if (strcmp(step, "info") == 0) {
        do_info(step);
    } else if (strcmp(step, "map") == 0 || strcmp(step, "private") == 0 ||
               strcmp(step, "exec") == 0) {
        do_map(step, numbers[0], numbers[1]);
    } else if (strcmp(step, "ring") == 0) {
        say(step, ioctl(node, VGPU_IOCTL_RING));
    } else if (strcmp(step, "write") == 0) {
        do_write(step, numbers[0]);
    } else if (strcmp(step, "read") == 0) {
        do_read(step, numbers[0]);
    } else if (strcmp(step, "poll") == 0) {
        do_poll(step, (int)numbers[0]);
    } else if (strcmp(step, "fork") == 0) {
        do_fork(step, argument);
    } else if (strcmp(step, "wait") == 0) {
        wait_for(argument);
        say(step, 0);
    } else {
        return 0;
    }
    return 1;
}

static void walk(char *step)
{
    uint64_t numbers[3] = {0, 0, 0};
    char *argument = strchr(step, ':');
    char *next = argument;

    if (argument)
        *argument++ = '\0';
    for (int i = 0; next && i < 3; i++) {
        numbers[i] = strtoull(next + 1, &next, 0);
        if (*next != ',')
            break;
    }
    if (sigsetjmp(on_fault, 1) != 0)
        printf("%s SIGBUS\n", step);
    else if (!walk_node(step, argument, numbers) && !walk_memory(step, numbers))
        printf("%s what is that?\n", step);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGBUS, fault);
    for (int i = 1; i < argc; i++)
        walk(argv[i]);
    return 0;
}
