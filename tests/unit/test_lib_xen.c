/* SPDX-License-Identifier: Apache-2.0 */
/* A session of a Xen guest that is saved and restored: what was in flight, what is refused
 * then, and vgpu_reset(), which connects again; without Xen. */
#include "lib_xen.h"

#include "private.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define SLOT_PAGES 200u
#define SLOT_BYTES ((uint64_t)SLOT_PAGES * VGPU_PAGE_BYTES)
#define OWN_BYTES 300000u /* two pieces of a copy */

static const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
static struct vgpu_problem problem;
static struct vgpu_session *session;
static unsigned pages_left; /* that a test may leave */

static unsigned open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void open_session(void)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;

    options.transport = VGPU_TRANSPORT_XEN;
    options.window_bytes = SLOT_BYTES;
    options.spin_us = 0;
    if (vgpu_open(&options, &session, &problem) < 0)
        fail_msg("vgpu_open: %s", problem.text);
}

static int open_rig(void **state)
{
    (void)state;
    pages_left = 0;
    lib_xen_open();
    open_session();
    return 0;
}

/* Whatever was done, nothing is left of the session. */
static int close_rig(void **state)
{
    (void)state;
    vgpu_close(session);
    assert_int_equal(lib_xen_pages(), pages_left);
    assert_int_equal(lib_xen_harm(), 0);
    lib_xen_close();
    return 0;
}

static vgpu_ticket submitted(vgpu_callback callback, void *context)
{
    vgpu_ticket ticket;

    assert_int_equal(vgpu_submit(session, &ping, callback, context, &ticket, &problem), 0);
    return ticket;
}

static void is_refused_as_lost(int result)
{
    assert_int_equal(result, -1);
    assert_int_equal(problem.status, VGPU_DEVICE_LOST);
    assert_non_null(strstr(problem.text, "saved and restored"));
    assert_non_null(strstr(problem.text, "vgpu_reset()"));
}

static void reset(void)
{
    if (vgpu_reset(session, &problem) < 0)
        fail_msg("vgpu_reset: %s", problem.text);
}

static void reset_fails_as(int status, const char *word)
{
    assert_int_equal(vgpu_reset(session, &problem), -1);
    if (problem.status != status || !strstr(problem.text, word))
        fail_msg("%d '%s', expected %d '%s'", problem.status, problem.text, status, word);
}

static struct vgpu_session_info info(void)
{
    struct vgpu_session_info now;

    vgpu_session_info(session, &now);
    return now;
}

static void count_lost(struct vgpu_session *of, const struct vgpu_result *result, void *context)
{
    (void)of;
    assert_int_equal(result->status, VGPU_DEVICE_LOST);
    ++*(unsigned *)context;
}

/* --- what was in flight ---------------------------------------------------------------- */

static void a_session_of_this_transport_works(void **state)
{
    (void)state;
    assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(info().vm_id, 7);
    assert_int_equal(info().pool, 'B');
    assert_int_equal(info().slot_bytes, SLOT_BYTES);
    assert_int_equal(lib_xen_pages(), SLOT_PAGES + 1);
}

static void take_what_has_come(void)
{
    assert_int_equal(vgpu_poll(session, NULL, 0, &problem), 0);
}

static void what_was_in_flight_ends_once_as_lost_and_what_had_come_stays(void **state)
{
    struct vgpu_result result;
    vgpu_ticket first, last;
    unsigned called = 0;

    (void)state;
    lib_xen_by_hand(true);
    first = submitted(NULL, NULL);
    submitted(count_lost, &called);
    last = submitted(NULL, NULL);
    assert_int_equal(lib_host_run(lib_xen_worker(), 1), 1);
    take_what_has_come();
    lib_xen_restore();
    assert_int_equal(vgpu_wait(session, last, VGPU_FOREVER, &result, &problem), 0);
    assert_int_equal(result.status, VGPU_DEVICE_LOST);
    assert_int_equal(called, 1);
    assert_int_equal(vgpu_wait(session, first, VGPU_FOREVER, &result, &problem), 0);
    assert_int_equal(result.status, VGPU_OK);
    assert_int_equal(vgpu_wait(session, last, VGPU_FOREVER, &result, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    reset();
    assert_int_equal(called, 1);
}

static void results_that_nobody_has_fetched_outlive_the_reset(void **state)
{
    struct vgpu_result results[4];
    vgpu_ticket answered, lost[2];

    (void)state;
    lib_xen_by_hand(true);
    answered = submitted(NULL, NULL);
    lib_host_run(lib_xen_worker(), 1);
    take_what_has_come();
    lost[0] = submitted(NULL, NULL);
    lost[1] = submitted(NULL, NULL);
    lib_xen_restore();
    reset();
    assert_int_equal(vgpu_poll(session, results, 4, &problem), 3);
    assert_int_equal(results[0].ticket, answered);
    assert_int_equal(results[0].status, VGPU_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(results[i + 1].ticket, lost[i]);
        assert_int_equal(results[i + 1].status, VGPU_DEVICE_LOST);
    }
}

static void a_wait_for_all_returns_when_all_is_lost(void **state)
{
    unsigned called = 0;

    (void)state;
    lib_xen_by_hand(true);
    for (int i = 0; i < 5; i++)
        submitted(count_lost, &called);
    lib_xen_restore();
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(called, 5);
    is_refused_as_lost(vgpu_wait_all(session, VGPU_FOREVER, &problem));
}

static void an_event_loop_is_told(void **state)
{
    struct pollfd wait = {.fd = vgpu_fd(session), .events = POLLIN};
    struct vgpu_result result;
    unsigned called = 0;

    (void)state;
    lib_xen_by_hand(true);
    submitted(NULL, NULL);
    submitted(count_lost, &called);
    take_what_has_come();
    assert_int_equal(vgpu_arm(session), 0);
    lib_host_run(lib_xen_worker(), 1);
    lib_xen_restore();
    assert_int_equal(poll(&wait, 1, 90000), 1);
    assert_int_equal(vgpu_poll(session, &result, 1, &problem), 1);
    assert_int_equal(result.status, VGPU_DEVICE_LOST);
    is_refused_as_lost(vgpu_poll(session, NULL, 0, &problem));
    assert_int_equal(called, 1);
    assert_int_equal(vgpu_arm(session), 1);
}

/* Both pieces of a copy are in flight, and no one else would free their entries. */
/* --- a guest that was moved while it ran ------------------------------------------------ */

/* Whether what they tell of has come along, nobody knows. */
static void answers_that_were_not_taken_before_the_move_are_lost(void **state)
{
    struct vgpu_result result;
    vgpu_ticket ticket;

    (void)state;
    lib_xen_by_hand(true);
    ticket = submitted(NULL, NULL);
    assert_int_equal(lib_host_run(lib_xen_worker(), 1), 1);
    lib_xen_restore();
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, &result, &problem), 0);
    assert_int_equal(result.status, VGPU_DEVICE_LOST);
    reset();
}

static void a_ring_as_it_was_before_the_last_answers_is_a_lost_session(void **state)
{
    (void)state;
    lib_xen_by_hand(true);
    submitted(NULL, NULL);
    submitted(NULL, NULL);
    lib_host_run(lib_xen_worker(), 2);
    take_what_has_come();
    lib_xen_worker()->host->cq_tail -= 1;
    lib_xen_restore();
    is_refused_as_lost(vgpu_ping(session, &problem));
    reset();
    lib_xen_by_hand(false);
    assert_int_equal(vgpu_ping(session, &problem), 0);
}

static uint8_t *watched_page;
static unsigned writes;

static void count_write(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    if ((uint8_t *)info->si_addr < watched_page ||
        (uint8_t *)info->si_addr >= watched_page + VGPU_PAGE_BYTES)
        abort();
    writes++;
    mprotect(watched_page, VGPU_PAGE_BYTES, PROT_READ | PROT_WRITE);
}

/* How often this side writes into the page at `memory` while it takes what has come. */
static unsigned writes_while_taking(uint8_t *memory)
{
    const struct sigaction watch = {.sa_sigaction = count_write, .sa_flags = SA_SIGINFO};
    struct sigaction before;

    watched_page = memory - (uintptr_t)memory % VGPU_PAGE_BYTES;
    writes = 0;
    sigaction(SIGSEGV, &watch, &before);
    mprotect(watched_page, VGPU_PAGE_BYTES, PROT_READ);
    take_what_has_come();
    mprotect(watched_page, VGPU_PAGE_BYTES, PROT_READ | PROT_WRITE);
    sigaction(SIGSEGV, &before, NULL);
    return writes;
}

/* Else the move takes them along as they were before. */
static void pages_that_the_host_wrote_are_written_here_too_when_it_says_so(void **state)
{
    uint8_t *heap = vgpu_heap_alloc(session, 4ull * VGPU_PAGE_BYTES);
    uint64_t device;
    struct vgpu_descriptor out = {.opcode = VGPU_OP_COPY_OUT, .flags = VGPU_FLAG_QUIET};

    (void)state;
    assert_int_equal(vgpu_memory_alloc(session, VGPU_PAGE_BYTES, &device, &problem), 0);
    memset(heap, 0x5a, VGPU_PAGE_BYTES);
    assert_int_equal(vgpu_copy_in(session, device, heap, VGPU_PAGE_BYTES, &problem), 0);
    memset(heap, 0, VGPU_PAGE_BYTES);
    lib_xen_by_hand(true);
    out.copy.target = vgpu_heap_offset(session, heap);
    out.copy.source = device;
    out.copy.bytes = VGPU_PAGE_BYTES;
    assert_int_equal(vgpu_submit(session, &out, NULL, NULL, NULL, &problem), 0);
    submitted(NULL, NULL);
    assert_int_equal(lib_host_run(lib_xen_worker(), 2), 2);
    assert_int_equal(writes_while_taking(heap), 1);
    assert_int_equal(writes_while_taking(heap), 0); /* nothing has come since */
    for (unsigned i = 0; i < VGPU_PAGE_BYTES; i++)
        assert_int_equal(heap[i], 0x5a);
    /* Whether a quiet one has ended is not told by the next one's answer. */
    submitted(NULL, NULL);
    assert_int_equal(lib_host_run(lib_xen_worker(), 1), 1);
    assert_int_equal(writes_while_taking(heap), 1);
}

static void what_an_operation_that_has_ended_wrote_is_left_alone(void **state)
{
    uint8_t *heap = vgpu_heap_alloc(session, 4ull * VGPU_PAGE_BYTES);
    struct vgpu_descriptor out = {.opcode = VGPU_OP_COPY_OUT};

    (void)state;
    lib_xen_by_hand(true);
    out.copy.target = vgpu_heap_offset(session, heap);
    out.copy.source = LIB_HOST_DEVICE_BASE;
    out.copy.bytes = VGPU_PAGE_BYTES;
    assert_int_equal(vgpu_submit(session, &out, NULL, NULL, NULL, &problem), 0);
    assert_int_equal(lib_host_run(lib_xen_worker(), 1), 1);
    assert_int_equal(writes_while_taking(heap), 1);
    submitted(NULL, NULL);
    assert_int_equal(lib_host_run(lib_xen_worker(), 1), 1);
    assert_int_equal(writes_while_taking(heap), 0);
}

/* Its page may have come as it was before. */
static void a_generation_never_falls(void **state)
{
    uint32_t before;

    (void)state;
    lib_xen_worker()->host->generation = 5;
    before = info().generation;
    lib_xen_worker()->host->generation = 2;
    lib_xen_restore();
    reset();
    assert_true(info().generation > before);
}

static void a_page_that_the_host_does_not_write_is_left_alone(void **state)
{
    uint8_t *heap = vgpu_heap_alloc(session, 4ull * VGPU_PAGE_BYTES);

    (void)state;
    lib_xen_by_hand(true);
    submitted(NULL, NULL);
    assert_int_equal(lib_host_run(lib_xen_worker(), 1), 1);
    assert_int_equal(writes_while_taking(heap + VGPU_PAGE_BYTES), 0);
}

static void a_copy_in_the_middle_fails_and_leaves_no_entry_taken(void **state)
{
    uint8_t *own = calloc(1, OWN_BYTES);

    (void)state;
    lib_xen_by_hand(true);
    lib_xen_restore();
    is_refused_as_lost(vgpu_copy_in(session, LIB_HOST_DEVICE_BASE, own, OWN_BYTES, &problem));
    assert_int_equal(session->free_count, PENDING_COUNT);
    lib_xen_by_hand(false);
    reset();
    assert_int_equal(vgpu_copy_in(session, LIB_HOST_DEVICE_BASE, own, OWN_BYTES, &problem), 0);
    free(own);
}

static void who_waits_for_room_is_told(void **state)
{
    struct vgpu_result result;

    (void)state;
    lib_xen_by_hand(true);
    for (uint32_t i = 0; i < VGPU_RING_ENTRIES; i++)
        submitted(NULL, NULL);
    lib_xen_restore();
    is_refused_as_lost(vgpu_submit(session, &ping, NULL, NULL, NULL, &problem));
    for (uint32_t i = 0; i < VGPU_RING_ENTRIES; i++) {
        assert_int_equal(vgpu_poll(session, &result, 1, &problem), 1);
        assert_int_equal(result.status, VGPU_DEVICE_LOST);
    }
    is_refused_as_lost(vgpu_poll(session, &result, 1, &problem));
}

static void who_waits_for_an_entry_that_a_callback_frees_is_told(void **state)
{
    unsigned called = 0;

    (void)state;
    for (uint32_t i = 0; i + 1 < PENDING_COUNT; i++) {
        submitted(NULL, NULL);
        assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    }
    lib_xen_by_hand(true);
    submitted(count_lost, &called);
    lib_xen_restore();
    is_refused_as_lost(vgpu_submit(session, &ping, NULL, NULL, NULL, &problem));
    assert_int_equal(called, 1);
}

/* --- until the reset ---------------------------------------------------------------------- */

static void every_operation_is_refused_until_the_reset(void **state)
{
    const uint32_t one[3] = {1, 1, 1};
    uint64_t number = 0;
    char text[16];

    (void)state;
    lib_xen_restore();
    for (int i = 0; i < 2; i++)
        is_refused_as_lost(vgpu_ping(session, &problem));
    is_refused_as_lost(vgpu_submit(session, &ping, NULL, NULL, NULL, &problem));
    is_refused_as_lost(vgpu_text(session, "X", text, sizeof(text), &problem));
    is_refused_as_lost(vgpu_memory_alloc(session, 64, &number, &problem));
    is_refused_as_lost(vgpu_copy_out(session, &number, 0, sizeof(number), &problem));
    is_refused_as_lost(vgpu_launch(session, 0, "sum", one, one, NULL, 0, &problem));
    is_refused_as_lost(vgpu_module_load(session, 1, text, sizeof(text), &problem));
    vgpu_batch_begin(session);
    vgpu_batch_end(session);
    assert_int_equal(info().state, VGPU_SESSION_LOST);
    assert_int_equal(info().generation, 2);
}

/* --- the reset -------------------------------------------------------------------------------- */

static void a_reset_goes_on_at_the_same_place_with_the_heaps_bytes(void **state)
{
    uint8_t *heap = vgpu_heap_alloc(session, OWN_BYTES), back[64];
    uint64_t offset = vgpu_heap_offset(session, heap);
    int fd = vgpu_fd(session);

    (void)state;
    assert_non_null(heap);
    for (unsigned i = 0; i < OWN_BYTES; i++)
        heap[i] = (uint8_t)(i * 7);
    lib_xen_restore();
    is_refused_as_lost(vgpu_ping(session, &problem));
    reset();
    assert_int_equal(vgpu_heap_offset(session, heap), offset);
    for (unsigned i = 0; i < OWN_BYTES; i++)
        assert_int_equal(heap[i], (uint8_t)(i * 7));
    assert_int_equal(vgpu_fd(session), fd);
    assert_int_equal(info().generation, 2);
    assert_int_equal(info().state, VGPU_SESSION_READY);
    /* The host sees these bytes where the program has them. */
    assert_int_equal(vgpu_copy_in(session, LIB_HOST_DEVICE_BASE, heap, OWN_BYTES, &problem), 0);
    assert_int_equal(
        vgpu_copy_out(session, back, LIB_HOST_DEVICE_BASE + 1000, sizeof(back), &problem), 0);
    assert_memory_equal(back, heap + 1000, sizeof(back));
}

static void a_reset_asks_for_pages_when_the_old_ones_are_given_back(void **state)
{
    (void)state;
    lib_xen_set_pages_max(SLOT_PAGES + 1);
    for (uint32_t generation = 2; generation < 5; generation++) {
        lib_xen_restore();
        is_refused_as_lost(vgpu_ping(session, &problem));
        reset();
        assert_int_equal(info().generation, generation);
        assert_int_equal(lib_xen_pages(), SLOT_PAGES + 1);
        assert_int_equal(vgpu_ping(session, &problem), 0);
        assert_int_equal(lib_xen_abandoned(), generation - 1);
    }
}

static void a_reset_may_be_what_notices_the_restore(void **state)
{
    (void)state;
    lib_xen_restore();
    reset();
    assert_int_equal(info().generation, 2);
    assert_int_equal(vgpu_ping(session, &problem), 0);
}

static void launches_begin_anew_after_a_reset(void **state)
{
    const uint32_t one[3] = {1, 1, 1};
    const uint64_t words[] = {3, 4, 7};

    (void)state;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 300; i++)
            assert_int_equal(vgpu_launch(session, 0, "sum", one, one, words, 3, &problem), 0);
        assert_int_equal(vgpu_device_sync(session, &problem), 0);
        lib_xen_restore();
        reset();
        assert_int_equal(session->chunk_tail, session->chunk_head);
    }
    assert_int_equal(LIB_HOST_GET(lib_xen_worker(), launches), 900);
    assert_int_equal(LIB_HOST_GET(lib_xen_worker(), launch_errors), 0);
}

static void the_event_loops_descriptor_works_on(void **state)
{
    struct pollfd wait = {.fd = vgpu_fd(session), .events = POLLIN};
    struct vgpu_result result;
    int count;

    (void)state;
    lib_xen_restore();
    reset();
    submitted(NULL, NULL);
    while ((count = vgpu_poll(session, &result, 1, &problem)) == 0) {
        if (vgpu_arm(session) == 0)
            assert_int_equal(poll(&wait, 1, 90000), 1);
    }
    assert_int_equal(count, 1);
    assert_int_equal(result.status, VGPU_OK);
}

static void reset_there(struct vgpu_session *of, const struct vgpu_result *result, void *context)
{
    unsigned *count = context;

    ++*count;
    if (result->status == VGPU_DEVICE_LOST && *count == 1)
        assert_int_equal(vgpu_reset(of, &problem), 0);
}

static void a_callback_may_reset(void **state)
{
    unsigned called = 0;

    (void)state;
    lib_xen_by_hand(true);
    submitted(reset_there, &called);
    submitted(reset_there, &called);
    lib_xen_restore();
    lib_xen_by_hand(false);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(called, 2);
    assert_int_equal(vgpu_ping(session, &problem), 0);
}

static void a_reset_in_a_session_that_was_not_lost_stays_the_hosts(void **state)
{
    uint64_t before = LIB_HOST_GET(lib_xen_worker(), operations);

    (void)state;
    reset();
    assert_int_equal(LIB_HOST_GET(lib_xen_worker(), operations), before + 1);
    assert_int_equal(LIB_HOST_GET(lib_xen_worker(), opens), 1);
}

/* --- a reset that fails --------------------------------------------------------------------- */

static void heap_is(const uint8_t *heap, uint8_t value)
{
    for (unsigned i = 0; i < OWN_BYTES; i++)
        assert_int_equal(heap[i], value);
}

/* With the heap there, each time, and the one that succeeds in the end. */
static void a_reset_that_fails_says_why_and_can_be_tried_again(void **state)
{
    uint8_t *heap = vgpu_heap_alloc(session, OWN_BYTES);

    (void)state;
    memset(heap, 1, OWN_BYTES);
    session->open_timeout_ns = 50 * NS_PER_MS;
    lib_xen_restore();
    lib_xen_set_offer(false);
    reset_fails_as(VGPU_PROBLEM_NO_HOST, "offers no channel");
    heap_is(heap, 1);
    memset(heap, 2, OWN_BYTES);
    lib_xen_set_offer(true);
    lib_xen_set_silence(true);
    reset_fails_as(VGPU_PROBLEM_TIMEOUT, "said nothing in time");
    lib_xen_set_silence(false);
    lib_xen_set_refusal(VGPU_PROBLEM_DENIED);
    reset_fails_as(VGPU_PROBLEM_DENIED, "the test wants it so");
    lib_xen_set_refusal(0);
    lib_xen_set_pages_max(SLOT_PAGES);
    reset_fails_as(VGPU_PROBLEM_BUSY, "xen-gntalloc");
    assert_int_equal(lib_xen_pages(), 0);
    is_refused_as_lost(vgpu_ping(session, &problem));
    assert_int_equal(info().state, VGPU_SESSION_LOST);
    heap_is(heap, 2);
    lib_xen_set_pages_max(SLOT_PAGES + 1);
    session->open_timeout_ns = 90 * NS_PER_S;
    reset();
    heap_is(heap, 2);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(info().generation, 2);
}

static void *offer_later(void *argument)
{
    lib_xen_await(lib_xen_offer_is_awaited);
    lib_xen_set_offer(true);
    return argument;
}

static void a_reset_waits_for_a_host_that_comes_late(void **state)
{
    pthread_t later;

    (void)state;
    session->open_timeout_ns = 90 * NS_PER_S;
    lib_xen_restore();
    lib_xen_set_offer(false);
    pthread_create(&later, NULL, offer_later, NULL);
    reset();
    pthread_join(later, NULL);
    assert_int_equal(vgpu_ping(session, &problem), 0);
}

static void *restore_later(void *argument)
{
    lib_xen_await(lib_xen_session_is_asked_for);
    lib_xen_restore();
    return argument;
}

static void a_restore_in_the_middle_of_a_reset_is_one_more(void **state)
{
    uint8_t *heap = vgpu_heap_alloc(session, OWN_BYTES);
    pthread_t later;

    (void)state;
    memset(heap, 3, OWN_BYTES);
    session->open_timeout_ns = 500 * NS_PER_MS;
    lib_xen_restore();
    lib_xen_set_silence(true);
    pthread_create(&later, NULL, restore_later, NULL);
    reset_fails_as(VGPU_PROBLEM_TIMEOUT, "said nothing in time");
    pthread_join(later, NULL);
    lib_xen_set_silence(false);
    session->open_timeout_ns = 90 * NS_PER_S;
    reset();
    heap_is(heap, 3);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(info().generation, 2);
}

/* --- ports -------------------------------------------------------------------------------------
 */

static void a_session_gets_its_port_again_and_leaves_the_others_free(void **state)
{
    (void)state;
    vgpu_close(session);
    lib_xen_take_port(LIB_XEN_FIRST_PORT);
    open_session();
    assert_int_equal(lib_xen_port(), LIB_XEN_FIRST_PORT + 1);
    lib_xen_restore();
    for (int i = 0; i < 2; i++) {
        reset();
        assert_int_equal(lib_xen_port(), LIB_XEN_FIRST_PORT + 1);
        assert_int_equal(lib_xen_ports(), 1);
        lib_xen_restore();
    }
    reset();
}

/* It may not be closed any more, nor the pages that would close it. */
static void a_port_that_another_has_by_now_is_left_alone(void **state)
{
    unsigned port = lib_xen_port();

    (void)state;
    lib_xen_restore();
    lib_xen_take_port(port);
    is_refused_as_lost(vgpu_ping(session, &problem));
    reset();
    assert_int_not_equal(lib_xen_port(), port);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(lib_xen_abandoned(), 0);
    pages_left = SLOT_PAGES + 1; /* until the program ends */
}

/* --- the end
 * -------------------------------------------------------------------------------------- */

static void a_session_can_be_closed_in_every_state(void **state)
{
    unsigned before;

    (void)state;
    vgpu_close(session);
    before = open_fds();
    for (int step = 0; step < 4; step++) {
        open_session();
        session->open_timeout_ns = 10 * NS_PER_MS;
        lib_xen_restore();
        if (step > 0)
            is_refused_as_lost(vgpu_ping(session, &problem));
        lib_xen_set_offer(step != 2);
        if (step == 2)
            reset_fails_as(VGPU_PROBLEM_NO_HOST, "offers no channel");
        session->open_timeout_ns = 90 * NS_PER_S;
        if (step == 3)
            reset();
        vgpu_close(session);
        lib_xen_set_offer(true);
        assert_int_equal(lib_xen_pages(), 0);
    }
    assert_in_range(open_fds(), before - 4, before + 12); /* the host's of these sessions */
    open_session();
}

static void a_session_that_the_host_ended_is_closed_and_not_lost(void **state)
{
    (void)state;
    lib_xen_end_session();
    assert_int_equal(vgpu_ping(session, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    reset_fails_as(VGPU_PROBLEM_CLOSED, "open a new one");
    assert_int_equal(lib_xen_abandoned(), 0);
}

/* In a child: the slot is not mapped, and the session not the child's. */
static int look_from_child(void)
{
    int wrong = 0;

    wrong |= msync(session->slot, VGPU_PAGE_BYTES, MS_ASYNC) != -1 || errno != ENOMEM;
    wrong |= (vgpu_reset(session, &problem) != -1 || problem.status != VGPU_PROBLEM_FORKED) << 1;
    wrong |= (vgpu_ping(session, &problem) != -1 || problem.status != VGPU_PROBLEM_FORKED) << 2;
    vgpu_close(session);
    return wrong;
}

static int child_finds(void)
{
    pid_t child = fork();
    int status = -1;

    if (child == 0)
        _exit(look_from_child());
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void a_child_has_neither_the_lost_slot_nor_the_new_one(void **state)
{
    (void)state;
    session->open_timeout_ns = 10 * NS_PER_MS;
    lib_xen_restore();
    is_refused_as_lost(vgpu_ping(session, &problem));
    assert_int_equal(child_finds(), 0);
    lib_xen_set_offer(false);
    reset_fails_as(VGPU_PROBLEM_NO_HOST, "offers no channel");
    assert_int_equal(child_finds(), 0);
    lib_xen_set_offer(true);
    session->open_timeout_ns = 90 * NS_PER_S;
    reset();
    assert_int_equal(child_finds(), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, open_rig, close_rig)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_session_of_this_transport_works),
        CASE(what_was_in_flight_ends_once_as_lost_and_what_had_come_stays),
        CASE(results_that_nobody_has_fetched_outlive_the_reset),
        CASE(a_wait_for_all_returns_when_all_is_lost),
        CASE(an_event_loop_is_told),
        CASE(answers_that_were_not_taken_before_the_move_are_lost),
        CASE(a_ring_as_it_was_before_the_last_answers_is_a_lost_session),
        CASE(pages_that_the_host_wrote_are_written_here_too_when_it_says_so),
        CASE(what_an_operation_that_has_ended_wrote_is_left_alone),
        CASE(a_page_that_the_host_does_not_write_is_left_alone),
        CASE(a_generation_never_falls),
        CASE(a_copy_in_the_middle_fails_and_leaves_no_entry_taken),
        CASE(who_waits_for_room_is_told),
        CASE(who_waits_for_an_entry_that_a_callback_frees_is_told),
        CASE(every_operation_is_refused_until_the_reset),
        CASE(a_reset_goes_on_at_the_same_place_with_the_heaps_bytes),
        CASE(a_reset_asks_for_pages_when_the_old_ones_are_given_back),
        CASE(a_reset_may_be_what_notices_the_restore),
        CASE(launches_begin_anew_after_a_reset),
        CASE(the_event_loops_descriptor_works_on),
        CASE(a_callback_may_reset),
        CASE(a_reset_in_a_session_that_was_not_lost_stays_the_hosts),
        CASE(a_reset_that_fails_says_why_and_can_be_tried_again),
        CASE(a_reset_waits_for_a_host_that_comes_late),
        CASE(a_restore_in_the_middle_of_a_reset_is_one_more),
        CASE(a_session_gets_its_port_again_and_leaves_the_others_free),
        CASE(a_port_that_another_has_by_now_is_left_alone),
        CASE(a_session_can_be_closed_in_every_state),
        CASE(a_session_that_the_host_ended_is_closed_and_not_lost),
        CASE(a_child_has_neither_the_lost_slot_nor_the_new_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
