/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-xen-load - a session that works, and checks every answer; in a Xen guest.
 *
 *   vgpu-xen-load [KEY=NUMBER]...
 *
 *   rounds=0     ends by itself after so many; 0: on SIGTERM
 *   bytes=65536  that each round copies to the device and back
 *   slot=0       bytes of the slot that it grants; 0: the library's default
 *   pause_ms=0   in each round, before what has come into the heap is looked at
 *   seed=1       of what is copied
 *   reopen=0     1: when the session ends, opens another and goes on
 *   reset=1      0: ends when the device is lost
 *
 * A round: a copy in from its own memory, one from the heap, the device's copy of both, a
 * counter in device memory that rises by one, a text, and all of it read back.  It prints
 *
 *   session VM POOL PRIORITY TRANSPORT   it has one
 *   progress N                           rounds that were right so far, by all its sessions
 *   lost TEXT                            the device was lost; exit status 4 with reset=0
 *   reset GENERATION                     it has reset and goes on; what lay in the heap is there
 *   closed TEXT                          the session has ended; exit status 3 without reopen
 *   done N
 *
 * and, when an answer is wrong, `wrong TEXT` with exit status 1; 2: it cannot open.
 */
#include "vgpu/vgpu.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KEYS 7
#define EXIT_CANNOT_OPEN 2
#define EXIT_CLOSED 3
#define EXIT_LOST 4
#define KEPT_BYTES 4096u
#define OPEN_AGAIN_MS 200
#define NS_PER_MS 1000000

struct load {
    unsigned long rounds, bytes, slot, pause_ms, seed, reopen, reset;
    unsigned long done;
    struct vgpu_session *session;
    struct vgpu_problem problem;
    uint64_t first, second, counter; /* in device memory */
    uint64_t counted;
    uint8_t *own, *back, *heap;
    uint8_t *kept; /* in the heap too: the same bytes as long as the session lives */
};

static volatile sig_atomic_t asked_to_end;

static void ask_to_end(int number)
{
    (void)number;
    asked_to_end = 1;
}

static void say(const char *word, const char *text)
{
    printf("%s %s\n", word, text);
    fflush(stdout);
}

static _Noreturn void wrong(const struct load *load, const char *text)
{
    printf("wrong %s after %lu rounds (last problem: %s)\n", text, load->done, load->problem.text);
    fflush(stdout);
    exit(EXIT_FAILURE);
}

static void pause_ms(unsigned long ms)
{
    const struct timespec time = {.tv_sec = (time_t)(ms / 1000),
                                  .tv_nsec = (long)(ms % 1000) * NS_PER_MS};

    nanosleep(&time, NULL);
}

/* Different in each round, place and program. */
static uint8_t expected(const struct load *load, unsigned long at)
{
    return (uint8_t)(at * 7 + at / 251 + load->done * 31 + load->seed);
}

/* --- sessions -------------------------------------------------------------------------- */

static void tell_session(const struct load *load)
{
    struct vgpu_session_info info;

    vgpu_session_info(load->session, &info);
    printf("session %u %c %u %s\n", info.vm_id, info.pool, info.priority,
           vgpu_transport_name(info.transport));
    fflush(stdout);
}

/* What a session has to have; -1: it was lost meanwhile. */
static int prepare(struct load *load)
{
    struct vgpu_session *s = load->session;

    load->counted = 0;
    if (vgpu_memory_alloc(s, load->bytes, &load->first, &load->problem) < 0 ||
        vgpu_memory_alloc(s, load->bytes, &load->second, &load->problem) < 0 ||
        vgpu_memory_alloc(s, sizeof(uint64_t), &load->counter, &load->problem) < 0)
        return -1;
    return vgpu_memory_set(s, load->counter, 0, 4, 2, &load->problem);
}

static uint8_t kept_byte(const struct load *load, unsigned long at)
{
    return (uint8_t)(at * 11 + load->seed);
}

static int open_session(struct load *load)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;

    options.window_bytes = load->slot;
    options.open_timeout_ms = 60000;
    if (vgpu_open(&options, &load->session, &load->problem) < 0)
        return -1;
    tell_session(load);
    load->heap = vgpu_heap_alloc(load->session, load->bytes);
    load->kept = vgpu_heap_alloc(load->session, KEPT_BYTES);
    if (!load->heap || !load->kept)
        wrong(load, "the heap has no room");
    for (unsigned long at = 0; at < KEPT_BYTES; at++)
        load->kept[at] = kept_byte(load, at);
    return prepare(load);
}

static void close_session(struct load *load)
{
    vgpu_close(load->session);
    load->session = NULL;
}

/* --- a round ------------------------------------------------------------------------------ */

static void fill(const struct load *load)
{
    for (unsigned long at = 0; at < load->bytes; at++) {
        load->own[at] = expected(load, at);
        load->heap[at] = (uint8_t)~load->own[at];
    }
}

static void check(const struct load *load, const char *where, const uint8_t *data, uint8_t turned)
{
    unsigned long wrong_count = 0, first = 0;
    char text[200];

    for (unsigned long at = load->bytes; at-- > 0;) {
        if ((data[at] ^ turned) != expected(load, at)) {
            wrong_count++;
            first = at;
        }
    }
    if (wrong_count == 0)
        return;
    snprintf(text, sizeof(text), "%lu bytes came back into %s otherwise, from %lu on: %u, not %u",
             wrong_count, where, first, data[first] ^ turned, expected(load, first));
    wrong(load, text);
}

static int copy_there_and_back(struct load *load)
{
    struct vgpu_session *s = load->session;

    fill(load);
    if (vgpu_copy_in(s, load->first, load->own, load->bytes, &load->problem) < 0 ||
        vgpu_copy_in(s, load->second, load->heap, load->bytes, &load->problem) < 0)
        return -1;
    memset(load->heap, 0, load->bytes);
    memset(load->back, 0, load->bytes);
    if (vgpu_copy_out(s, load->heap, load->first, load->bytes, &load->problem) < 0 ||
        vgpu_copy_out(s, load->back, load->second, load->bytes, &load->problem) < 0)
        return -1;
    if (load->pause_ms)
        pause_ms(load->pause_ms);
    check(load, "the heap", load->heap, 0);
    check(load, "its own memory", load->back, 0xff);
    return 0;
}

static int count(struct load *load)
{
    const uint64_t parameters[] = {load->counter, 1};
    const uint32_t one[3] = {1, 1, 1};
    uint64_t told = 0;

    if (vgpu_launch(load->session, 0, "increment", one, one, parameters, 2, &load->problem) < 0 ||
        vgpu_copy_out(load->session, &told, load->counter, sizeof(told), &load->problem) < 0)
        return -1;
    load->counted++;
    if (told != load->counted)
        wrong(load, "the counter skipped, or counted twice");
    return 0;
}

static int add(struct load *load)
{
    char command[64], answer[128], sum[64];
    unsigned long a = load->seed * 100000 + load->done;

    snprintf(command, sizeof(command), "%lu:%lu", a, load->done);
    snprintf(sum, sizeof(sum), "%lu + %lu = %lu", a, load->done, a + load->done);
    if (vgpu_text(load->session, command, answer, sizeof(answer), &load->problem) < 0)
        return -1;
    if (strcmp(answer, sum) != 0)
        wrong(load, answer);
    return 0;
}

static int work(struct load *load)
{
    if (copy_there_and_back(load) < 0 || count(load) < 0 || add(load) < 0)
        return -1;
    load->done++;
    printf("progress %lu\n", load->done);
    fflush(stdout);
    return 0;
}

/* --- when it fails --------------------------------------------------------------------------- */

static int open_anew(struct load *load)
{
    close_session(load);
    while (!asked_to_end && open_session(load) < 0) {
        close_session(load);
        pause_ms(OPEN_AGAIN_MS);
    }
    return 0;
}

static void check_kept(const struct load *load)
{
    for (unsigned long at = 0; at < KEPT_BYTES; at++) {
        if (load->kept[at] != kept_byte(load, at))
            wrong(load, "the heap was not kept over a reset");
    }
}

static void tell_reset(struct load *load)
{
    struct vgpu_session_info info;

    check_kept(load);
    vgpu_session_info(load->session, &info);
    printf("reset %u\n", info.generation);
    fflush(stdout);
}

/* 0: it goes on; else the exit status. */
static int recover(struct load *load)
{
    switch (load->problem.status) {
    case VGPU_DEVICE_LOST:
        say("lost", load->problem.text);
        if (!load->reset)
            return EXIT_LOST;
        while (vgpu_reset(load->session, &load->problem) < 0 || prepare(load) < 0) {
            if (load->problem.status != VGPU_DEVICE_LOST)
                return recover(load);
        }
        tell_reset(load);
        return 0;
    case VGPU_PROBLEM_CLOSED:
        say("closed", load->problem.text);
        return load->reopen ? open_anew(load) : EXIT_CLOSED;
    default:
        wrong(load, "an operation failed");
    }
}

static int run(struct load *load)
{
    int status = 0;

    while (status == 0 && !asked_to_end && (load->rounds == 0 || load->done < load->rounds)) {
        if (work(load) < 0)
            status = recover(load);
    }
    return status;
}

static int parse(struct load *load, const char *word)
{
    const struct {
        const char *name;
        unsigned long *number;
    } keys[KEYS] = {{"rounds=", &load->rounds}, {"bytes=", &load->bytes},
                    {"slot=", &load->slot},     {"pause_ms=", &load->pause_ms},
                    {"seed=", &load->seed},     {"reopen=", &load->reopen},
                    {"reset=", &load->reset}};

    for (int i = 0; i < KEYS; i++) {
        size_t length = strlen(keys[i].name);

        if (strncmp(word, keys[i].name, length) == 0) {
            *keys[i].number = strtoul(word + length, NULL, 10);
            return 0;
        }
    }
    return -1;
}

int main(int argc, char **argv)
{
    struct load load = {.bytes = 65536, .seed = 1, .reset = 1};
    int status;

    for (int i = 1; i < argc; i++) {
        if (parse(&load, argv[i]) < 0) {
            fprintf(stderr, "vgpu-xen-load: what is '%s'?\n", argv[i]);
            return EXIT_CANNOT_OPEN;
        }
    }
    signal(SIGTERM, ask_to_end);
    load.own = malloc(load.bytes);
    load.back = malloc(load.bytes);
    if (!load.own || !load.back || open_session(&load) < 0) {
        say("cannot open:", load.problem.text);
        return EXIT_CANNOT_OPEN;
    }
    status = run(&load);
    printf("done %lu\n", load.done);
    close_session(&load);
    free(load.own);
    free(load.back);
    return status;
}
