/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that uses libvgpu as users do, for tests/func/test_lib.py: its one
 * argument names a behaviour.  The session comes from VGPU_SOCKET.  Ends with 0
 * when everything was as it must be, else it says what was not.
 */
#include "probe.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint32_t one[3] = {1, 1, 1};

static struct vgpu_session *open_with(int spin_us)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session;

    options.spin_us = spin_us;
    GOOD(vgpu_open(&options, &session, &problem));
    return session;
}

static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

/* --- operations ------------------------------------------------------------------- */

static void info(struct vgpu_session *s)
{
    struct vgpu_session_info told;

    vgpu_session_info(s, &told);
    MUST(told.vm_id == 1 && told.pool == 'A' && told.priority == 1);
    MUST(told.state == VGPU_SESSION_READY && told.generation == 1);
    MUST(told.cached && told.transport == VGPU_TRANSPORT_SOCKET);
    MUST(told.heap_bytes > (15u << 20) && (told.features & VGPU_FEATURE_MODULES) == 0);
}

static void ping(struct vgpu_session *s)
{
    for (int i = 0; i < 5000; i++)
        GOOD(vgpu_ping(s, &problem));
}

static void text(struct vgpu_session *s)
{
    char answer[1024], small[8];

    GOOD(vgpu_text(s, "3:4", answer, sizeof(answer), &problem));
    GOOD(strcmp(answer, "3 + 4 = 7"));
    GOOD(vgpu_text(s, "PING hello", small, sizeof(small), &problem));
    GOOD(strcmp(small, "PONG he"));
    MUST(vgpu_text(s, "NO_SUCH", answer, sizeof(answer), &problem) == 1);
    MUST(strstr(answer, "VECTOR_ADD"));
    GOOD(vgpu_text(s, "VECTOR_ADD", answer, sizeof(answer), &problem));
    MUST(strstr(answer, "PASSED"));
}

static void query(struct vgpu_session *s)
{
    uint64_t all, now, backend, later, address;

    GOOD(vgpu_query(s, VGPU_QUERY_BACKEND, &backend, &problem));
    MUST(backend == VGPU_BACKEND_CPU);
    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_BYTES, &all, &problem));
    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_FREE_BYTES, &now, &problem));
    MUST(all >= now && now > 1 << 20);
    GOOD(vgpu_memory_alloc(s, 1 << 20, &address, &problem));
    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_FREE_BYTES, &later, &problem));
    MUST(later <= now - (1 << 20));
    FAILS(vgpu_query(s, 999, &later, &problem), VGPU_INVALID);
}

static void memory(struct vgpu_session *s)
{
    uint64_t a, b, all;

    GOOD(vgpu_memory_alloc(s, 1000, &a, &problem));
    GOOD(vgpu_memory_alloc(s, 1 << 20, &b, &problem));
    MUST(a % 256 == 0 && b % 256 == 0 && a != b);
    GOOD(vgpu_memory_free(s, a, &problem));
    FAILS(vgpu_memory_free(s, a, &problem), VGPU_BAD_ADDRESS);
    FAILS(vgpu_memory_set(s, a, 0, 1, 10, &problem), VGPU_BAD_ADDRESS);
    GOOD(vgpu_query(s, VGPU_QUERY_MEMORY_BYTES, &all, &problem));
    FAILS(vgpu_memory_alloc(s, all + 1, &a, &problem), VGPU_OUT_OF_MEMORY);
    GOOD(vgpu_memory_free(s, b, &problem));
    GOOD(vgpu_memory_alloc(s, all / 2, &b, &problem));
}

static void set(struct vgpu_session *s)
{
    uint32_t words[1024];
    uint64_t address;

    GOOD(vgpu_memory_alloc(s, sizeof(words), &address, &problem));
    GOOD(vgpu_memory_set(s, address, 0x12345678, 4, 1024, &problem));
    GOOD(vgpu_memory_set(s, address + 4, 0xab, 1, 2, &problem));
    GOOD(vgpu_memory_set(s, address + 8, 0xcdef, 2, 2, &problem));
    GOOD(vgpu_copy_out(s, words, address, sizeof(words), &problem));
    MUST(words[0] == 0x12345678 && words[1] == 0x1234abab && words[2] == 0xcdefcdef);
    MUST(words[3] == 0x12345678 && words[1023] == 0x12345678);
    FAILS(vgpu_memory_set(s, address, 0, 3, 1, &problem), VGPU_INVALID);
    FAILS(vgpu_memory_set(s, address, 0, 4, 1025, &problem), VGPU_BAD_ADDRESS);
    FAILS(vgpu_memory_set(s, address, 0, 4, UINT64_MAX / 2, &problem), VGPU_BAD_ADDRESS);
}

static void copies(struct vgpu_session *s)
{
    static const uint64_t sizes[] = {1, 4096, 100001, 512 << 10, (2 << 20) + 3};
    uint64_t a, b, most = 4 << 20;
    uint8_t *heap = vgpu_heap_alloc(s, most), *other = malloc(most), *back = malloc(most);

    MUST(heap && other && back);
    GOOD(vgpu_memory_alloc(s, most, &a, &problem));
    GOOD(vgpu_memory_alloc(s, most, &b, &problem));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (uint64_t k = 0; k < sizes[i]; k++)
            other[k] = heap[k] = (uint8_t)(k * 7 + k / 251 + i);
        GOOD(vgpu_copy_in(s, a, i % 2 ? heap : other, sizes[i], &problem));
        GOOD(vgpu_copy(s, b, a, sizes[i], &problem));
        GOOD(vgpu_copy_out(s, back, b, sizes[i], &problem));
        GOOD(memcmp(back, other, sizes[i]));
        memset(heap, 0, sizes[i]);
        GOOD(vgpu_copy_out(s, heap, b, sizes[i], &problem));
        GOOD(memcmp(heap, other, sizes[i]));
    }
    FAILS(vgpu_copy_in(s, a + most - 10, other, 11, &problem), VGPU_BAD_ADDRESS);
    FAILS(vgpu_copy_out(s, other, 64, 10, &problem), VGPU_BAD_ADDRESS);
    vgpu_heap_free(s, heap);
    free(other);
    free(back);
}

static void copy_overlap(struct vgpu_session *s)
{
    uint8_t bytes[256], back[256];
    uint64_t a;

    for (int i = 0; i < 256; i++)
        bytes[i] = (uint8_t)i;
    GOOD(vgpu_memory_alloc(s, 512, &a, &problem));
    GOOD(vgpu_copy_in(s, a, bytes, 256, &problem));
    GOOD(vgpu_copy(s, a + 100, a, 256, &problem));
    GOOD(vgpu_copy_out(s, back, a + 100, 256, &problem));
    GOOD(memcmp(bytes, back, 256));
}

static void streams(struct vgpu_session *s)
{
    GOOD(vgpu_stream_create(s, 7, &problem));
    FAILS(vgpu_stream_create(s, 7, &problem), VGPU_HANDLE_EXISTS);
    GOOD(vgpu_stream_sync(s, 7, &problem));
    GOOD(vgpu_stream_sync(s, 0, &problem));
    GOOD(vgpu_stream_destroy(s, 7, &problem));
    FAILS(vgpu_stream_sync(s, 7, &problem), VGPU_BAD_HANDLE);
    GOOD(vgpu_device_sync(s, &problem));
}

static void events(struct vgpu_session *s)
{
    char answer[100];
    uint64_t ns = 0;

    GOOD(vgpu_stream_create(s, 1, &problem));
    GOOD(vgpu_event_create(s, 10, &problem));
    GOOD(vgpu_event_create(s, 11, &problem));
    GOOD(vgpu_event_record(s, 1, 10, &problem));
    GOOD(vgpu_text(s, "SPIN 20", answer, sizeof(answer), &problem));
    GOOD(vgpu_event_record(s, 1, 11, &problem));
    GOOD(vgpu_stream_wait(s, 0, 11, &problem));
    GOOD(vgpu_event_sync(s, 11, &problem));
    GOOD(vgpu_event_elapsed_ns(s, 10, 11, &ns, &problem));
    MUST(ns >= 20000000);
    GOOD(vgpu_event_destroy(s, 10, &problem));
    FAILS(vgpu_event_sync(s, 10, &problem), VGPU_BAD_HANDLE);
}

static void launch(struct vgpu_session *s)
{
    float a[1000], b[1000], sum[1000];
    uint64_t da, db, dsum;

    for (int i = 0; i < 1000; i++) {
        a[i] = (float)i;
        b[i] = 0.5f * (float)i;
    }
    GOOD(vgpu_memory_alloc(s, sizeof(a), &da, &problem));
    GOOD(vgpu_memory_alloc(s, sizeof(a), &db, &problem));
    GOOD(vgpu_memory_alloc(s, sizeof(a), &dsum, &problem));
    GOOD(vgpu_copy_in(s, da, a, sizeof(a), &problem));
    GOOD(vgpu_copy_in(s, db, b, sizeof(b), &problem));
    for (int i = 0; i < 5000; i++) /* more than the arena holds at once */
        GOOD(vgpu_launch(s, 0, "vector_add", (uint32_t[]){4, 1, 1}, (uint32_t[]){256, 1, 1},
                         (uint64_t[]){dsum, da, db, 1000}, 4, &problem));
    GOOD(vgpu_stream_sync(s, 0, &problem));
    GOOD(vgpu_copy_out(s, sum, dsum, sizeof(sum), &problem));
    for (int i = 0; i < 1000; i++)
        MUST(sum[i] == a[i] + b[i]);
}

static void launch_errors(struct vgpu_session *s)
{
    GOOD(vgpu_launch(s, 0, "no_such_kernel", one, one, NULL, 0, &problem));
    FAILS(vgpu_stream_sync(s, 0, &problem), VGPU_NOT_FOUND);
    GOOD(vgpu_stream_sync(s, 0, &problem));
    GOOD(vgpu_launch(s, 0, "vector_add", one, one, (uint64_t[]){64, 64, 64, 10}, 4, &problem));
    FAILS(vgpu_device_sync(s, &problem), VGPU_BAD_ADDRESS);
    GOOD(vgpu_launch(s, 99, "vector_add", one, one, (uint64_t[]){64, 64, 64, 10}, 4, &problem));
    FAILS(vgpu_device_sync(s, &problem), VGPU_BAD_HANDLE);
}

static void quiet_flood(struct vgpu_session *s)
{
    const struct vgpu_descriptor quiet = {.opcode = VGPU_OP_PING, .flags = VGPU_FLAG_QUIET};

    for (int i = 0; i < 50000; i++)
        GOOD(vgpu_submit(s, &quiet, NULL, NULL, NULL, &problem));
    GOOD(vgpu_device_sync(s, &problem));
}

static void batch(struct vgpu_session *s)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_PING};
    struct vgpu_result results[200];

    for (int round = 0; round < 200; round++) {
        vgpu_batch_begin(s);
        for (int i = 0; i < 200; i++)
            GOOD(vgpu_submit(s, &descriptor, NULL, NULL, NULL, &problem));
        vgpu_batch_end(s);
        GOOD(vgpu_wait_all(s, VGPU_FOREVER, &problem));
        MUST(vgpu_poll(s, results, 200, &problem) == 200);
        MUST(results[0].ticket < results[199].ticket && results[7].status == VGPU_OK);
    }
}

static void count(struct vgpu_session *s, const struct vgpu_result *result, void *context)
{
    (void)s;
    MUST(result->status == VGPU_OK);
    ++*(unsigned *)context;
}

static void callbacks(struct vgpu_session *s)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_PING};
    unsigned called = 0;

    for (int i = 0; i < 3000; i++)
        GOOD(vgpu_submit(s, &descriptor, count, &called, NULL, &problem));
    GOOD(vgpu_wait_all(s, VGPU_FOREVER, &problem));
    MUST(called == 3000);
}

static void poll_inside(struct vgpu_session *s, const struct vgpu_result *result, void *context)
{
    struct vgpu_result results[8];
    unsigned *polled = context;

    MUST(result->status == VGPU_OK);
    *polled += (unsigned)vgpu_poll(s, results, 8, &problem);
}

/* Its own submissions' results and no other operations' are what a callback may take. */
static void callbacks_that_poll(struct vgpu_session *s)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    unsigned polled = 0;

    for (unsigned i = 0; i < 1000; i++) {
        uint64_t address = 0;

        vgpu_batch_begin(s);
        GOOD(vgpu_submit(s, &ping, poll_inside, &polled, NULL, &problem));
        GOOD(vgpu_memory_alloc(s, 4096, &address, &problem));
        GOOD(vgpu_submit(s, &ping, poll_inside, &polled, NULL, &problem));
        GOOD(vgpu_memory_free(s, address, &problem));
        vgpu_batch_end(s);
    }
    MUST(polled == 0);
}

/* Puts a long operation into the ring; its answer is for nobody. */
static vgpu_ticket submit_text(struct vgpu_session *s, const char *command)
{
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_TEXT};
    char *memory = vgpu_heap_alloc(s, 2048);
    vgpu_ticket ticket;

    strcpy(memory, command);
    descriptor.text.command_offset = vgpu_heap_offset(s, memory);
    descriptor.text.command_bytes = (uint32_t)strlen(command);
    descriptor.text.answer_offset = descriptor.text.command_offset + 1024;
    descriptor.text.answer_bytes = 1024;
    GOOD(vgpu_submit(s, &descriptor, NULL, NULL, &ticket, &problem));
    return ticket;
}

static void cancel(struct vgpu_session *s)
{
    vgpu_ticket ticket = submit_text(s, "PING");
    bool cancelled = true;
    struct vgpu_result result;

    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    GOOD(vgpu_cancel(s, ticket, &cancelled, &problem));
    MUST(!cancelled);
    /* One that waits behind a long one may be cancelled or not; it ends once. */
    submit_text(s, "SPIN 50");
    ticket = submit_text(s, "PING");
    GOOD(vgpu_cancel(s, ticket, &cancelled, &problem));
    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    MUST(result.status == (cancelled ? VGPU_CANCELLED : VGPU_OK));
}

static void tickets(struct vgpu_session *s)
{
    vgpu_ticket first = submit_text(s, "SPIN 30"), second = submit_text(s, "PING");
    struct vgpu_result result;

    FAILS(vgpu_wait(s, first, 1000, &result, &problem), VGPU_PROBLEM_TIMEOUT);
    GOOD(vgpu_wait(s, second, VGPU_FOREVER, &result, &problem));
    GOOD(vgpu_wait(s, first, 0, &result, &problem));
    MUST(result.ticket == first && result.run_us >= 30000);
    second = submit_text(s, "SPIN 30");
    GOOD(vgpu_wait(s, second, INT64_MAX, &result, &problem));
    FAILS(vgpu_wait(s, first, 0, &result, &problem), VGPU_PROBLEM_ARGUMENT);
}

static void module(struct vgpu_session *s)
{
    struct vgpu_session_info told;
    char *image, *heap = vgpu_heap_alloc(s, 1 << 20);

    vgpu_session_info(s, &told);
    image = calloc(1, told.heap_bytes);
    MUST(image && heap);
    FAILS(vgpu_module_load(s, 1, "image", 5, &problem), VGPU_NOT_SUPPORTED);
    MUST(strstr(problem.text, "not supported"));
    FAILS(vgpu_module_load(s, 1, heap, 1 << 20, &problem), VGPU_NOT_SUPPORTED);
    FAILS(vgpu_module_load(s, 1, image, told.heap_bytes / 2, &problem), VGPU_NOT_SUPPORTED);
    FAILS(vgpu_module_load(s, 1, image, told.heap_bytes, &problem), VGPU_PROBLEM_FULL);
    FAILS(vgpu_module_unload(s, 1, &problem), VGPU_NOT_SUPPORTED);
    free(image);
}

/* The session goes on after what its backend cannot do. */
static void own_kernels(struct vgpu_session *s)
{
    const struct {
        _Alignas(8) uint64_t y;
        _Alignas(8) uint32_t value;
        _Alignas(8) uint64_t count;
    } p = {.y = 0, .value = 9, .count = 3};
    uint32_t words[3] = {0, 0, 0};
    uint64_t fill[3] = {0, 9, 3};

    GOOD(vgpu_launch_kernel(s, 0, 1, "fill", one, one, 64, &p, sizeof(p), &problem));
    FAILS(vgpu_stream_sync(s, 0, &problem), VGPU_NOT_SUPPORTED);
    GOOD(vgpu_stream_sync(s, 0, &problem));
    FAILS(vgpu_launch_kernel(s, 0, 1, "fill", one, one, 0, &p, 9, &problem), VGPU_PROBLEM_ARGUMENT);
    MUST(strstr(problem.text, "multiple of 8"));
    GOOD(vgpu_memory_alloc(s, sizeof(words), &fill[0], &problem));
    GOOD(vgpu_launch_kernel(s, 0, 0, "fill", one, one, 0, fill, sizeof(fill), &problem));
    GOOD(vgpu_stream_sync(s, 0, &problem));
    GOOD(vgpu_copy_out(s, words, fill[0], sizeof(words), &problem));
    MUST(words[0] == 9 && words[1] == 9 && words[2] == 9);
}

static void bad_handles(struct vgpu_session *s)
{
    const struct vgpu_descriptor unknown = {.opcode = 999};
    struct vgpu_result result;
    vgpu_ticket ticket;

    FAILS(vgpu_stream_create(s, 0, &problem), VGPU_INVALID);
    FAILS(vgpu_stream_destroy(s, 5, &problem), VGPU_BAD_HANDLE);
    FAILS(vgpu_event_destroy(s, 5, &problem), VGPU_BAD_HANDLE);
    GOOD(vgpu_submit(s, &unknown, NULL, NULL, &ticket, &problem));
    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    MUST(result.status == VGPU_BAD_OPCODE);
}

static void do_fork(struct vgpu_session *s)
{
    int status = -1;
    pid_t child = fork();

    if (child == 0) {
        struct vgpu_session *own;

        FAILS(vgpu_ping(s, &problem), VGPU_PROBLEM_FORKED);
        vgpu_close(s);
        GOOD(vgpu_open(NULL, &own, &problem));
        GOOD(vgpu_ping(own, &problem));
        vgpu_close(own);
        _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child && status == 0);
    GOOD(vgpu_ping(s, &problem));
}

static void two_sessions(struct vgpu_session *s)
{
    struct vgpu_session *other = open_with(0);
    uint64_t address, wasted;

    GOOD(vgpu_stream_create(s, 1, &problem));
    FAILS(vgpu_stream_sync(other, 1, &problem), VGPU_BAD_HANDLE);
    GOOD(vgpu_memory_alloc(s, 4096, &address, &problem));
    GOOD(vgpu_memory_alloc(other, 4096, &wasted, &problem));
    for (int i = 0; i < 20; i++) {
        GOOD(vgpu_memory_set(s, address, 1, 1, 4096, &problem));
        GOOD(vgpu_ping(other, &problem));
    }
    vgpu_close(other);
    GOOD(vgpu_ping(s, &problem));
}

static void sleep_and_wake(struct vgpu_session *s)
{
    struct vgpu_session *sleeper = open_with(0);

    (void)s;
    for (int i = 0; i < 1000; i++)
        GOOD(vgpu_ping(sleeper, &problem));
    vgpu_close(sleeper);
}

static void event_loop(struct vgpu_session *s)
{
    struct pollfd wait = {.fd = vgpu_fd(s), .events = POLLIN};
    struct vgpu_result result;
    int answered = 0;

    submit_text(s, "SPIN 20");
    submit_text(s, "SPIN 20");
    while (answered < 2) {
        if (vgpu_arm(s) == 0)
            MUST(poll(&wait, 1, 30000) == 1);
        answered += vgpu_poll(s, &result, 1, &problem);
    }
    MUST(vgpu_arm(s) == 0);
}

/* --- step by step, for tests that act in between ------------------------------------- */

static void steps(struct vgpu_session *s)
{
    char line[8];

    do {
        for (int i = 0; i < 500; i++)
            GOOD(vgpu_ping(s, &problem));
        say("answered");
    } while (fgets(line, sizeof(line), stdin));
}

static void long_wait(struct vgpu_session *s)
{
    struct vgpu_result result;
    vgpu_ticket ticket = submit_text(s, "SPIN 1500");

    say("submitted");
    GOOD(vgpu_wait(s, ticket, VGPU_FOREVER, &result, &problem));
    MUST(result.status == VGPU_OK);
    GOOD(vgpu_ping(s, &problem));
    say("answered");
}

static void lost(struct vgpu_session *s)
{
    struct vgpu_session_info told;
    uint64_t address;
    char line[8];

    GOOD(vgpu_memory_alloc(s, 4096, &address, &problem));
    say("allocated");
    MUST(fgets(line, sizeof(line), stdin));
    FAILS(vgpu_ping(s, &problem), VGPU_DEVICE_LOST);
    FAILS(vgpu_ping(s, &problem), VGPU_DEVICE_LOST);
    vgpu_session_info(s, &told);
    MUST(told.state == VGPU_SESSION_LOST && told.generation == 2);
    GOOD(vgpu_reset(s, &problem));
    vgpu_session_info(s, &told);
    MUST(told.state == VGPU_SESSION_READY);
    FAILS(vgpu_memory_free(s, address, &problem), VGPU_BAD_ADDRESS);
    GOOD(vgpu_memory_alloc(s, 4096, &address, &problem));
    say("reset");
}

static const struct {
    const char *name;
    void (*run)(struct vgpu_session *session);
} behaviours[] = {
    {"info", info},
    {"ping", ping},
    {"text", text},
    {"query", query},
    {"memory", memory},
    {"set", set},
    {"copies", copies},
    {"copy_overlap", copy_overlap},
    {"streams", streams},
    {"events", events},
    {"launch", launch},
    {"launch_errors", launch_errors},
    {"quiet_flood", quiet_flood},
    {"batch", batch},
    {"callbacks", callbacks},
    {"callbacks_that_poll", callbacks_that_poll},
    {"cancel", cancel},
    {"tickets", tickets},
    {"module", module},
    {"own_kernels", own_kernels},
    {"bad_handles", bad_handles},
    {"fork", do_fork},
    {"two_sessions", two_sessions},
    {"sleep_and_wake", sleep_and_wake},
    {"event_loop", event_loop},
    {"steps", steps},
    {"long_wait", long_wait},
    {"lost", lost},
};

int main(int argc, char **argv)
{
    struct vgpu_session *session;

    if (argc == 2 && strcmp(argv[1], "busy") == 0) {
        FAILS(vgpu_open(NULL, &session, &problem), VGPU_PROBLEM_BUSY);
        puts(problem.text);
        return 0;
    }
    for (size_t i = 0; argc == 2 && i < sizeof(behaviours) / sizeof(behaviours[0]); i++) {
        if (strcmp(argv[1], behaviours[i].name) != 0)
            continue;
        session = open_with(-1);
        behaviours[i].run(session);
        vgpu_close(session);
        return 0;
    }
    fprintf(stderr, "lib_probe: no such behaviour\n");
    return 2;
}
