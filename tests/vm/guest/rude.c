/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rude - a guest's program that asks for too much, or does not listen.
 *
 *   rude flood /dev/vgpu0   its ring is full at all times, and its doorbell rings for
 *                           nothing; answers are thrown away unread
 *   rude mute /dev/vgpu0    submits whatever the ring has room for and never takes an
 *                           answer, so that there is no room for further ones
 *
 * Every eighth operation keeps the device busy for a millisecond; the others are pings.
 * Prints `progress SUBMITTED TAKEN ANSWERED` now and then: how many operations it put into
 * its ring, the host took from there, and the host answered.  Ends with `done` and the same
 * numbers on SIGTERM.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vgpu/guest.h"
#include "vgpu/window.h"

#define MASK (VGPU_RING_ENTRIES - 1)
#define SPIN_EVERY 8u
#define ANSWER_AT (VGPU_SLOT_ARENA + 4096u)
#define PAUSE_US 2000
#define PROGRESS_MS 50

static const char spin[] = "SPIN 1";

static struct {
    int node;
    uint8_t *slot;
    struct vgpu_slot_guest *guest;
    struct vgpu_slot_host *host;
    uint32_t tail;
} ring;

static volatile sig_atomic_t asked_to_end;

static void on_terminate(int number)
{
    (void)number;
    asked_to_end = 1;
}

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "rude: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

static void open_ring(const char *path)
{
    struct vgpu_guest_info info;

    ring.node = open(path, O_RDWR | O_CLOEXEC);
    if (ring.node < 0 || ioctl(ring.node, VGPU_IOCTL_INFO, &info) < 0)
        die(path);
    ring.slot = mmap(NULL, info.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring.node, 0);
    if (ring.slot == MAP_FAILED)
        die("no mapping");
    ring.guest = (struct vgpu_slot_guest *)(void *)(ring.slot + VGPU_SLOT_GUEST);
    ring.host = (struct vgpu_slot_host *)(void *)(ring.slot + VGPU_SLOT_HOST);
    memcpy(ring.slot + VGPU_SLOT_ARENA, spin, sizeof(spin) - 1);
}

static void submit(void)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_PING, .cookie = ring.tail};

    if (ring.tail % SPIN_EVERY == 0) {
        descriptor.opcode = VGPU_OP_TEXT;
        descriptor.text.command_offset = VGPU_SLOT_ARENA;
        descriptor.text.command_bytes = sizeof(spin) - 1;
        descriptor.text.answer_offset = ANSWER_AT;
        descriptor.text.answer_bytes = VGPU_TEXT_MAX_BYTES;
    }
    memcpy(ring.slot + VGPU_SLOT_SQ + (ring.tail & MASK) * sizeof(descriptor), &descriptor,
           sizeof(descriptor));
    ring.tail++;
}

static void fill(void)
{
    while (ring.tail - vgpu_load_acquire(&ring.host->sq_head) < VGPU_RING_ENTRIES)
        submit();
    vgpu_store_release(&ring.guest->sq_tail, ring.tail);
    ioctl(ring.node, VGPU_IOCTL_RING);
}

static void throw_answers_away(void)
{
    vgpu_store_release(&ring.guest->cq_head, vgpu_load_acquire(&ring.host->cq_tail));
}

static void say(const char *word)
{
    printf("%s %u %u %u\n", word, ring.tail, vgpu_load_acquire(&ring.host->sq_head),
           vgpu_load_acquire(&ring.host->cq_tail));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    bool flood = argc == 3 && strcmp(argv[1], "flood") == 0;
    uint64_t said_ms = 0;

    if (argc != 3 || (!flood && strcmp(argv[1], "mute") != 0)) {
        fprintf(stderr, "rude flood|mute DEVICE\n");
        return 2;
    }
    signal(SIGTERM, on_terminate);
    open_ring(argv[2]);
    while (!asked_to_end) {
        fill();
        if (flood)
            throw_answers_away();
        if (now_ms() - said_ms >= PROGRESS_MS) {
            said_ms = now_ms();
            say("progress");
        }
        usleep(PAUSE_US);
    }
    say("done");
    return 0;
}
