/* SPDX-License-Identifier: Apache-2.0 */
/* libvgpu's rings against a host of the test's own: see lib_host.h. */
#include "lib_host.h"

#include "private.h"

#include <poll.h>

static struct vgpu_problem problem;

static struct vgpu_session *open_session(struct lib_host *host, int spin_us)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session = NULL;

    lib_host_open(host);
    options.path = host->path;
    options.spin_us = spin_us;
    if (vgpu_open(&options, &session, &problem) < 0)
        fail_msg("vgpu_open: %s", problem.text);
    return session;
}

static void close_both(struct lib_host *host, struct vgpu_session *session)
{
    vgpu_close(session);
    lib_host_close(host);
}

static vgpu_ticket submit_ping(struct vgpu_session *session)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    vgpu_ticket ticket = 0;

    if (vgpu_submit(session, &ping, NULL, NULL, &ticket, &problem) < 0)
        fail_msg("vgpu_submit: %s", problem.text);
    return ticket;
}

static uint64_t rings(struct vgpu_session *session, struct lib_host *host)
{
    uint64_t count = 0;

    (void)session;
    return read(LIB_HOST_GET(host, doorbell_fd), &count, sizeof(count)) < 0 ? 0 : count;
}

/* --- a host that works while the library sleeps --------------------------------- */

/* So what the library finds when it looks again is exactly known. */
static struct {
    struct lib_host *host;
    struct transport transport; /* the socket's, but for its sleep */
    unsigned naps;              /* so many are over */
    unsigned answers_in;        /* nap in which the host answers what is there */
    int64_t longest_ns;
    bool falls_asleep; /* the host: having missed what was published */
    bool takes_only;   /* and answers later */
    bool sleeps;       /* for that long, then */
} play;

static void play_host(struct vgpu_session *session, int64_t timeout_ns)
{
    if (timeout_ns == 0) { /* the library looks around */
        socket_transport.sleep(session, 0);
        return;
    }
    /* Where it would sleep for ever the test would too. */
    assert_true(timeout_ns > 0 && timeout_ns <= NS_PER_S);
    if (timeout_ns > play.longest_ns)
        play.longest_ns = timeout_ns;
    if (play.falls_asleep)
        play.host->host->sq_event = play.host->sq_head;
    if (play.takes_only)
        play.host->host->sq_head = play.host->guest->sq_tail;
    if (play.naps++ >= play.answers_in)
        lib_host_run(play.host, VGPU_RING_ENTRIES);
    if (play.sleeps)
        socket_transport.sleep(session, timeout_ns);
}

static struct vgpu_session *open_played(struct lib_host *host)
{
    struct vgpu_session *session = open_session(host, 0);

    memset(&play, 0, sizeof(play));
    play.host = host;
    play.transport = socket_transport;
    play.transport.sleep = play_host;
    session->transport = &play.transport;
    return session;
}

/* --- order and wrapping ---------------------------------------------------------- */

static void pings_pass_the_rings_end_and_the_counters_end(void **state)
{
    struct lib_host host = {.first_index = UINT32_MAX - 1500};
    struct vgpu_session *session = open_session(&host, 50);

    (void)state;
    for (int i = 0; i < 4000; i++)
        assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(LIB_HOST_GET(&host, operations), 4000);
    close_both(&host, session);
}

static void batches_pass_the_rings_end_and_the_counters_end(void **state)
{
    struct lib_host host = {.first_index = UINT32_MAX - 5000};
    struct vgpu_session *session = open_session(&host, 0);
    struct vgpu_result results[100];

    (void)state;
    for (int round = 0; round < 100; round++) {
        vgpu_ticket first;

        vgpu_batch_begin(session);
        first = submit_ping(session);
        for (int i = 1; i < 100; i++)
            submit_ping(session);
        vgpu_batch_end(session);
        assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
        assert_int_equal(vgpu_poll(session, results, 100, &problem), 100);
        assert_int_equal(results[0].ticket, first);
        assert_int_equal(results[99].status, VGPU_OK);
    }
    close_both(&host, session);
}

static void more_operations_than_the_ring_holds_wait_for_room(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor quiet = {.opcode = VGPU_OP_PING, .flags = VGPU_FLAG_QUIET};

    (void)state;
    for (int i = 0; i < 10000; i++)
        assert_int_equal(vgpu_submit(session, &quiet, NULL, NULL, NULL, &problem), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    /* The library's own pings come on top. */
    assert_true(LIB_HOST_GET(&host, operations) >= 10001 &&
                LIB_HOST_GET(&host, operations) <= 10001 + 10000 / 256);
    close_both(&host, session);
}

static void answers_in_any_order_find_their_tickets(void **state)
{
    struct lib_host host = {.by_hand = true, .answers_backwards = true};
    struct vgpu_session *session = open_session(&host, 0);
    vgpu_ticket tickets[50];
    struct vgpu_result result;

    (void)state;
    for (int i = 0; i < 50; i++)
        tickets[i] = submit_ping(session);
    assert_int_equal(lib_host_run(&host, 50), 50);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(vgpu_wait(session, tickets[i], 0, &result, &problem), 0);
        assert_int_equal(result.ticket, tickets[i]);
        assert_int_equal(result.run_us, 3);
    }
    close_both(&host, session);
}

static void poll_gives_results_in_the_order_of_their_answers(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    struct vgpu_result results[4];
    vgpu_ticket tickets[3];

    (void)state;
    for (int i = 0; i < 3; i++)
        tickets[i] = submit_ping(session);
    assert_int_equal(vgpu_poll(session, results, 4, &problem), 0);
    lib_host_run(&host, 1);
    LIB_HOST_SET(&host, answers_backwards, true);
    lib_host_run(&host, 2);
    assert_int_equal(vgpu_poll(session, results, 2, &problem), 2);
    assert_int_equal(results[0].ticket, tickets[0]);
    assert_int_equal(results[1].ticket, tickets[2]);
    assert_int_equal(vgpu_poll(session, results, 4, &problem), 1);
    assert_int_equal(results[0].ticket, tickets[1]);
    close_both(&host, session);
}

/* --- doorbells and interrupts ------------------------------------------------------- */

static void the_doorbell_is_rung_only_when_the_event_index_asks(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);

    (void)state;
    submit_ping(session); /* number 0, and sq_event is 0 */
    assert_int_equal(rings(session, &host), 1);
    submit_ping(session);
    submit_ping(session);
    assert_int_equal(rings(session, &host), 0);
    lib_host_run(&host, 3);
    host.host->sq_event = 4;
    submit_ping(session); /* number 3 */
    assert_int_equal(rings(session, &host), 0);
    submit_ping(session); /* number 4 */
    assert_int_equal(rings(session, &host), 1);
    close_both(&host, session);
}

static void a_batch_is_published_and_rung_once(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);

    (void)state;
    vgpu_batch_begin(session);
    vgpu_batch_begin(session);
    for (int i = 0; i < 10; i++)
        submit_ping(session);
    vgpu_batch_end(session);
    assert_int_equal(LIB_HOST_GET(&host, guest->sq_tail), 0);
    assert_int_equal(rings(session, &host), 0);
    vgpu_batch_end(session);
    assert_int_equal(LIB_HOST_GET(&host, guest->sq_tail), 10);
    assert_int_equal(rings(session, &host), 1);
    close_both(&host, session);
}

static void a_wait_inside_a_batch_publishes_it(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);

    (void)state;
    vgpu_batch_begin(session);
    submit_ping(session);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    vgpu_batch_end(session);
    close_both(&host, session);
}

static void who_does_not_sleep_is_not_interrupted(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    struct vgpu_result result;

    (void)state;
    for (int i = 0; i < 2000; i++) {
        submit_ping(session);
        lib_host_run(&host, 1);
        assert_int_equal(vgpu_poll(session, &result, 1, &problem), 1);
    }
    assert_int_equal(LIB_HOST_GET(&host, interrupts), 0);
    close_both(&host, session);
}

static void an_armed_session_is_interrupted_by_the_next_answer_once(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    struct pollfd wait = {.fd = vgpu_fd(session), .events = POLLIN};
    struct vgpu_result results[3];

    (void)state;
    for (int i = 0; i < 3; i++)
        submit_ping(session);
    assert_int_equal(vgpu_arm(session), 0);
    assert_int_equal(poll(&wait, 1, 0), 0);
    lib_host_run(&host, 1);
    lib_host_run(&host, 2);
    assert_int_equal(LIB_HOST_GET(&host, interrupts), 1);
    assert_int_equal(poll(&wait, 1, 0), 1);
    assert_int_equal(vgpu_poll(session, results, 3, &problem), 3);
    assert_int_equal(poll(&wait, 1, 0), 0);
    close_both(&host, session);
}

static void arming_tells_when_there_is_something_already(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    struct vgpu_result result;

    (void)state;
    submit_ping(session);
    lib_host_run(&host, 1);
    assert_int_equal(vgpu_arm(session), 1);
    assert_int_equal(vgpu_poll(session, &result, 1, &problem), 1);
    assert_int_equal(vgpu_arm(session), 0);
    close_both(&host, session);
}

static void what_was_published_without_waking_is_found_all_the_same(void **state)
{
    struct lib_host host = {.by_hand = true, .is_mute = true};
    struct vgpu_session *session = open_played(&host);
    vgpu_ticket ticket = submit_ping(session);

    (void)state;
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    play.sleeps = true; /* with what came since its last look, and no interrupt */
    submit_ping(session);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(play.longest_ns, NS_PER_S);
    assert_int_equal(LIB_HOST_GET(&host, interrupts), 0);
    close_both(&host, session);
}

static vgpu_ticket submit_unheard(struct vgpu_session *session, struct lib_host *host)
{
    vgpu_ticket ticket;

    host->host->sq_event = host->sq_head - 1; /* awake */
    ticket = submit_ping(session);
    assert_int_equal(rings(session, host), 0);
    return ticket;
}

static void a_host_that_missed_its_doorbell_is_rung_again_once_a_second(void **state)
{
    struct lib_host host = {.by_hand = true, .first_index = UINT32_MAX};
    struct vgpu_session *session = open_played(&host);
    vgpu_ticket ticket = submit_unheard(session, &host);

    (void)state;
    play.falls_asleep = true;
    play.answers_in = 3;
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    assert_int_equal(rings(session, &host), 1);
    ticket = submit_unheard(session, &host);
    session->rung_again_ns -= NS_PER_S; /* later */
    play.naps = 0;
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    assert_int_equal(rings(session, &host), 1);
    close_both(&host, session);
}

static void who_polls_and_never_sleeps_rings_again_too(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    struct vgpu_result result;

    (void)state;
    submit_unheard(session, &host);
    host.host->sq_event = host.sq_head;
    for (int i = 0; i < 1100; i++)
        assert_int_equal(vgpu_poll(session, &result, 1, &problem), 0);
    assert_int_equal(rings(session, &host), 1);
    lib_host_run(&host, 1);
    session->rung_again_ns = 0;
    host.host->sq_event = host.sq_head;
    for (int i = 0; i < 2200; i++) /* nothing is left to be done */
        assert_in_range(vgpu_poll(session, &result, 1, &problem), 0, 1);
    assert_int_equal(rings(session, &host), 0);
    close_both(&host, session);
}

static void a_host_that_works_is_not_rung_again(void **state)
{
    struct lib_host host = {.by_hand = true, .first_index = UINT32_MAX - 1};
    struct vgpu_session *session = open_played(&host);
    vgpu_ticket ticket = submit_ping(session);

    (void)state;
    assert_int_equal(rings(session, &host), 1);
    play.takes_only = true;
    play.answers_in = 3;
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    assert_int_equal(play.naps, 4);
    assert_int_equal(rings(session, &host), 0);
    close_both(&host, session);
}

/* --- bounds of the table ---------------------------------------------------------------- */

static void a_full_table_says_so_and_works_again_when_results_are_fetched(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct vgpu_result results[PENDING_COUNT];

    (void)state;
    for (unsigned i = 0; i < PENDING_COUNT; i++) {
        submit_ping(session);
        lib_host_run(&host, 1);
    }
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_FULL);
    assert_int_equal(vgpu_poll(session, results, 1, &problem), 1);
    submit_ping(session);
    lib_host_run(&host, 1);
    assert_int_equal(vgpu_poll(session, results, PENDING_COUNT, &problem), PENDING_COUNT);
    close_both(&host, session);
}

static void a_ticket_is_fetched_once(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    vgpu_ticket ticket = submit_ping(session);

    (void)state;
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    assert_int_equal(vgpu_wait(session, 0, VGPU_FOREVER, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    close_both(&host, session);
}

static void a_wait_that_times_out_can_be_repeated(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    vgpu_ticket ticket = submit_ping(session);

    (void)state;
    assert_int_equal(vgpu_wait(session, ticket, 0, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_TIMEOUT);
    assert_int_equal(vgpu_wait(session, ticket, 3000, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_TIMEOUT);
    assert_int_equal(vgpu_wait_all(session, 1000, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_TIMEOUT);
    lib_host_run(&host, 1);
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    close_both(&host, session);
}

static void a_time_that_does_not_fit_is_for_ever(void **state)
{
    static const int64_t times[] = {INT64_MAX,   INT64_MAX / 1000, INT64_MAX / 1000 - 1,
                                    INT64_MIN,   INT64_MIN / 1000, -2,
                                    VGPU_FOREVER};
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_played(&host);

    (void)state;
    for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        vgpu_ticket ticket = submit_ping(session);

        play.naps = 0;
        play.answers_in = 2;
        assert_int_equal(vgpu_wait(session, ticket, times[i], NULL, &problem), 0);
        submit_ping(session);
        play.naps = 0;
        assert_int_equal(vgpu_wait_all(session, times[i], &problem), 0);
        assert_int_equal(play.naps, 3);
    }
    close_both(&host, session);
}

/* --- callbacks ---------------------------------------------------------------------------------
 */

struct calls {
    unsigned count, depth, deepest;
    vgpu_ticket last;
    int ping;
};

static void count_call(struct vgpu_session *session, const struct vgpu_result *result,
                       void *context)
{
    struct calls *calls = context;

    (void)session;
    calls->count++;
    calls->last = result->ticket;
}

static void ping_inside(struct vgpu_session *session, const struct vgpu_result *result,
                        void *context)
{
    struct calls *calls = context;

    count_call(session, result, context);
    if (++calls->depth > calls->deepest)
        calls->deepest = calls->depth;
    calls->ping |= vgpu_ping(session, &problem);
    calls->depth--;
}

static void callbacks_run_in_the_wait_and_leave_nothing_to_fetch(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct calls calls = {0};
    struct vgpu_result result;
    vgpu_ticket ticket;

    (void)state;
    for (int i = 0; i < 20; i++)
        assert_int_equal(vgpu_submit(session, &ping, count_call, &calls, &ticket, &problem), 0);
    assert_int_equal(vgpu_wait(session, ticket, 0, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(calls.count, 20);
    assert_int_equal(calls.last, ticket);
    assert_int_equal(vgpu_poll(session, &result, 1, &problem), 0);
    close_both(&host, session);
}

static void callbacks_may_wait_and_do_not_run_inside_one_another(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct calls calls = {0};

    (void)state;
    for (int i = 0; i < 100; i++)
        assert_int_equal(vgpu_submit(session, &ping, ping_inside, &calls, NULL, &problem), 0);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(calls.count, 100);
    assert_int_equal(calls.deepest, 1);
    assert_int_equal(calls.ping, 0);
    close_both(&host, session);
}

struct theft {
    unsigned calls;
    unsigned again;  /* so often it submits another that does the same */
    unsigned polled; /* results that vgpu_poll() gave */
    unsigned waited; /* results of the library's own that vgpu_wait() gave */
    unsigned own;    /* operations of the library's own that it saw */
    vgpu_ticket last;
};

static void steal(struct vgpu_session *session, const struct vgpu_result *result, void *context)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct theft *theft = context;
    struct vgpu_result results[8];
    int got;

    (void)result;
    theft->calls++;
    for (unsigned i = 0; i < PENDING_COUNT; i++) {
        struct pending *entry = &session->pending[i];

        if (!entry->is_own || entry->state == PENDING_FREE)
            continue;
        theft->own++;
        theft->waited += vgpu_wait(session, entry->ticket, 0, NULL, &problem) == 0;
        assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    }
    got = vgpu_poll(session, results, 8, &problem);
    theft->polled += (unsigned)got;
    if (got > 0)
        theft->last = results[got - 1].ticket;
    if (theft->again > 0 && theft->again--)
        assert_int_equal(vgpu_submit(session, &ping, steal, theft, NULL, &problem), 0);
}

static int call_alloc(struct vgpu_session *session)
{
    uint64_t address = 0;

    return vgpu_memory_alloc(session, 4096, &address, &problem) == 0 && address ? 0 : -1;
}

static int call_text(struct vgpu_session *session)
{
    char answer[64];

    return vgpu_text(session, "PING", answer, sizeof(answer), &problem);
}

static int call_copies(struct vgpu_session *session)
{
    uint8_t *there = calloc(1, 3 << 20), *back = calloc(1, 3 << 20);
    int result;

    memset(there, 0x5a, 3 << 20);
    result = vgpu_copy_in(session, LIB_HOST_DEVICE_BASE, there, 3 << 20, &problem);
    if (result == 0)
        result = vgpu_copy_out(session, back, LIB_HOST_DEVICE_BASE, 3 << 20, &problem);
    if (memcmp(there, back, 3 << 20) != 0)
        result = -1;
    free(there);
    free(back);
    return result;
}

static int call_cancel(struct vgpu_session *session)
{
    return vgpu_cancel(session, 0, NULL, &problem);
}

static int call_reset(struct vgpu_session *session)
{
    return vgpu_reset(session, &problem);
}

static void callbacks_cannot_take_what_the_librarys_own_calls_wait_for(void **state)
{
    static int (*const calls[])(struct vgpu_session *) = {call_alloc, call_text, call_copies,
                                                          call_cancel, call_reset};
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_played(&host);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    (void)state;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        struct theft theft = {.again = 5};
        vgpu_ticket mine = submit_ping(session);

        assert_int_equal(vgpu_submit(session, &ping, steal, &theft, NULL, &problem), 0);
        if (calls[i](session) != 0)
            fail_msg("call %zu: %s", i, problem.text);
        assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
        assert_int_equal(theft.calls, 6);
        assert_true(theft.own > 0);
        assert_int_equal(theft.waited, 0);
        assert_int_equal(theft.polled, 1); /* the test's own */
        assert_int_equal(theft.last, mine);
    }
    assert_int_equal(session->free_count, PENDING_COUNT);
    close_both(&host, session);
}

static void fetch_first(struct vgpu_session *session, const struct vgpu_result *result,
                        void *context)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    vgpu_ticket *tickets = context;

    (void)result;
    assert_int_equal(vgpu_wait(session, tickets[0], 0, NULL, &problem), 0);
    /* It takes the entry that has just become free, and is never answered. */
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, &tickets[1], &problem), 0);
    assert_int_equal(tickets[0] % PENDING_COUNT, tickets[1] % PENDING_COUNT);
}

static void a_result_that_a_callback_fetched_is_not_waited_for_any_more(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_played(&host);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    vgpu_ticket tickets[2];

    (void)state;
    assert_int_equal(vgpu_submit(session, &ping, fetch_first, tickets, NULL, &problem), 0);
    tickets[0] = submit_ping(session);
    assert_int_equal(vgpu_wait(session, tickets[0], VGPU_FOREVER, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    assert_int_equal(play.naps, 1); /* the other one was not waited for */
    assert_int_equal(vgpu_wait(session, tickets[1], VGPU_FOREVER, NULL, &problem), 0);
    close_both(&host, session);
}

/* --- a host that lies ---------------------------------------------------------------------------
 */

static void a_tail_beyond_the_ring_ends_the_session(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    vgpu_ticket ticket = submit_ping(session);

    (void)state;
    host.host->cq_tail = VGPU_RING_ENTRIES + 1;
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    assert_int_equal(vgpu_ping(session, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    close_both(&host, session);
}

static void answers_to_nothing_are_dropped(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    vgpu_ticket ticket = submit_ping(session);
    struct vgpu_result results[2];

    (void)state;
    for (unsigned i = 0; i < VGPU_RING_ENTRIES; i++)
        host.completions[i].cookie = i % 2 ? UINT64_MAX - i : i;
    host.host->cq_tail = VGPU_RING_ENTRIES - 1;
    assert_int_equal(vgpu_poll(session, results, 2, &problem), 0);
    host.completions[VGPU_RING_ENTRIES - 1].cookie = ticket;
    host.completions[0].cookie = ticket; /* a second answer */
    host.host->cq_tail = VGPU_RING_ENTRIES + 1;
    assert_int_equal(vgpu_poll(session, results, 2, &problem), 1);
    assert_int_equal(results[0].ticket, ticket);
    close_both(&host, session);
}

static void an_impossible_head_gives_no_room(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor quiet = {.opcode = VGPU_OP_PING, .flags = VGPU_FLAG_QUIET};

    (void)state;
    for (unsigned i = 0; i < VGPU_RING_ENTRIES / 2; i++)
        assert_int_equal(vgpu_submit(session, &quiet, NULL, NULL, NULL, &problem), 0);
    host.host->sq_head = 5000;
    while (session->sq_tail - session->sq_head < VGPU_RING_ENTRIES)
        assert_int_equal(vgpu_submit(session, &quiet, NULL, NULL, NULL, &problem), 0);
    host.host->state = VGPU_SESSION_FAULTED; /* else it waits as long as it takes */
    assert_int_equal(vgpu_submit(session, &quiet, NULL, NULL, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    assert_int_equal(session->sq_tail - session->sq_head, VGPU_RING_ENTRIES);
    close_both(&host, session);
}

static void an_unknown_status_is_a_failure_with_its_number(void **state)
{
    struct lib_host host = {.answers_with = 4000000000u};
    struct vgpu_session *session = open_session(&host, 0);

    (void)state;
    assert_int_equal(vgpu_ping(session, &problem), -1);
    assert_non_null(strstr(problem.text, "4000000000"));
    close_both(&host, session);
}

/* --- operations
 * ------------------------------------------------------------------------------------ */

static void text_commands_answer_and_long_answers_are_cut(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    char answer[64], small[6], command[1100];

    (void)state;
    for (int i = 0; i < 300; i++)
        assert_int_equal(vgpu_text(session, "PING", answer, sizeof(answer), &problem), 0);
    assert_string_equal(answer, "did PING");
    assert_int_equal(vgpu_text(session, "FAIL so", answer, sizeof(answer), &problem), 1);
    assert_string_equal(answer, "did FAIL so");
    assert_int_equal(vgpu_text(session, "PING", small, sizeof(small), &problem), 0);
    assert_string_equal(small, "did P");
    assert_int_equal(vgpu_text(session, "PING", small, 1, &problem), 0);
    assert_string_equal(small, "");
    memset(command, 'x', sizeof(command));
    command[1025] = '\0';
    assert_int_equal(vgpu_text(session, command, answer, sizeof(answer), &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    assert_int_equal(vgpu_text(session, "", answer, sizeof(answer), &problem), -1);
    assert_int_equal(vgpu_text(session, "PING", answer, 0, &problem), -1);
    close_both(&host, session);
}

static void fill(uint8_t *memory, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        memory[i] = (uint8_t)(i * 31 + i / 4096 + seed);
}

static void check_copy(struct vgpu_session *session, uint64_t address, size_t bytes, bool heap)
{
    uint8_t *there = heap ? vgpu_heap_alloc(session, bytes) : malloc(bytes + 1);
    uint8_t *back = heap ? vgpu_heap_alloc(session, bytes) : malloc(bytes + 1);

    assert_non_null(there);
    assert_non_null(back);
    fill(there, bytes, (unsigned)bytes);
    memset(back, 0, bytes);
    assert_int_equal(vgpu_copy_in(session, address, there, bytes, &problem), 0);
    assert_int_equal(vgpu_copy_out(session, back, address, bytes, &problem), 0);
    assert_memory_equal(there, back, bytes);
    if (heap) {
        vgpu_heap_free(session, there);
        vgpu_heap_free(session, back);
    } else {
        free(there);
        free(back);
    }
}

static void copies_of_any_size_arrive_from_the_heap_and_from_elsewhere(void **state)
{
    static const size_t sizes[] = {1,         63,        4096,      4097,         (512 << 10) - 1,
                                   512 << 10, 512 << 10, 513 << 10, (3 << 20) + 5};
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    uint64_t address;

    (void)state;
    assert_int_equal(vgpu_memory_alloc(session, 4 << 20, &address, &problem), 0);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        check_copy(session, address, sizes[i], false);
        check_copy(session, address, sizes[i], true);
    }
    assert_int_equal(vgpu_copy_in(session, address, "", 0, &problem), 0);
    assert_int_equal(heap_largest(&session->heap), session->info.heap_bytes);
    close_both(&host, session);
}

static void a_copy_uses_what_the_heap_has_left(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    uint64_t address;
    void *most = vgpu_heap_alloc(session, session->info.heap_bytes - 20000);
    void *rest;

    (void)state;
    assert_non_null(most);
    assert_int_equal(vgpu_memory_alloc(session, 1 << 20, &address, &problem), 0);
    check_copy(session, address, 100000, false);
    rest = vgpu_heap_alloc(session, 17000);
    assert_non_null(rest);
    assert_null(vgpu_heap_alloc(session, 4096));
    assert_int_equal(vgpu_copy_in(session, address, &problem, 64, NULL), -1);
    assert_int_equal(vgpu_copy_in(session, address, &host, 64, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_FULL);
    assert_int_equal(vgpu_copy_in(session, address, &host, 0, &problem), 0);
    vgpu_heap_free(session, most);
    check_copy(session, address, 100000, false);
    close_both(&host, session);
}

static void a_copy_that_fails_says_so_and_gives_its_pieces_back(void **state)
{
    struct lib_host host = {.answers_with = VGPU_BAD_ADDRESS};
    struct vgpu_session *session = open_session(&host, 0);
    uint8_t *memory = calloc(1, 3 << 20);

    (void)state;
    assert_int_equal(vgpu_copy_in(session, 64, memory, 3 << 20, &problem), -1);
    assert_int_equal(problem.status, VGPU_BAD_ADDRESS);
    assert_int_equal(vgpu_copy_out(session, memory, 64, 3 << 20, &problem), -1);
    assert_int_equal(problem.status, VGPU_BAD_ADDRESS);
    assert_int_equal(heap_largest(&session->heap), session->info.heap_bytes);
    assert_int_equal(session->free_count, PENDING_COUNT);
    free(memory);
    close_both(&host, session);
}

static void launches_keep_their_parameters_until_they_were_read(void **state)
{
    static const uint32_t one[3] = {1, 1, 1};
    struct lib_host host = {.first_index = UINT32_MAX - 2000};
    struct vgpu_session *session = open_session(&host, 0);
    uint64_t words[512];
    unsigned seed = 7;

    (void)state;
    for (unsigned i = 0; i < 5000; i++) {
        uint32_t count = 1 + (uint32_t)rand_r(&seed) % (i % 50 == 0 ? 512 : 20);

        words[count - 1] = 0;
        for (uint32_t k = 0; k + 1 < count; k++) {
            words[k] = i * 1000 + k;
            words[count - 1] += words[k];
        }
        if (vgpu_launch(session, 0, "sum", one, one, words, count, &problem) < 0)
            fail_msg("vgpu_launch: %s", problem.text);
    }
    assert_int_equal(vgpu_device_sync(session, &problem), 0);
    assert_int_equal(LIB_HOST_GET(&host, launches), 5000);
    assert_int_equal(LIB_HOST_GET(&host, launch_errors), 0);
    assert_int_equal(vgpu_launch(session, 0, "sum", one, one, words, 513, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    assert_int_equal(vgpu_launch(session, 0, "", one, one, words, 1, &problem), -1);
    close_both(&host, session);
}

static void a_launch_of_an_own_kernel_says_all_that_it_was_given(void **state)
{
    static const uint32_t grid[3] = {7, 8, 9}, block[3] = {32, 4, 2};
    const struct {
        _Alignas(8) uint64_t y;
        _Alignas(8) float by;
        _Alignas(8) int32_t count;
    } parameters = {.y = 0x123456789abcull, .by = 2.5f, .count = -3};
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor *sent = &host.last_launch;

    (void)state;
    assert_int_equal(vgpu_launch_kernel(session, 5, 77, "scale", grid, block, 4096, &parameters,
                                        sizeof(parameters), &problem),
                     0);
    assert_int_equal(vgpu_device_sync(session, &problem), 0);
    assert_int_equal(LIB_HOST_GET(&host, launches), 1);
    assert_int_equal(sent->stream, 5);
    assert_int_equal(sent->flags, VGPU_FLAG_QUIET);
    assert_int_equal(sent->launch.module, 77);
    assert_int_equal(sent->launch.name_bytes, 5);
    assert_int_equal(sent->launch.shared_bytes, 4096);
    assert_memory_equal(sent->launch.grid, grid, sizeof(grid));
    assert_memory_equal(sent->launch.block, block, sizeof(block));
    assert_int_equal(sent->launch.parameters_bytes, 24);
    assert_memory_equal(host.last_parameters, &parameters, 24);
    close_both(&host, session);
}

static void a_launch_without_parameters_needs_no_memory_for_them(void **state)
{
    static const uint32_t one[3] = {1, 1, 1};
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);

    (void)state;
    assert_int_equal(vgpu_launch_kernel(session, 0, 1, "go", one, one, 0, NULL, 0, &problem), 0);
    assert_int_equal(vgpu_device_sync(session, &problem), 0);
    assert_int_equal(LIB_HOST_GET(&host, last_launch).launch.parameters_bytes, 0);
    close_both(&host, session);
}

static void parameters_that_are_no_whole_words_are_refused(void **state)
{
    static const uint32_t one[3] = {1, 1, 1};
    static const uint64_t sizes[] = {4, 12, 4097, 4104, UINT64_MAX, 1ull << 32};
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        problem.status = 0;
        assert_int_equal(
            vgpu_launch_kernel(session, 0, 1, "go", one, one, 0, one, sizes[i], &problem), -1);
        assert_int_equal(problem.status, VGPU_PROBLEM_ARGUMENT);
    }
    assert_int_equal(LIB_HOST_GET(&host, launches), 0);
    close_both(&host, session);
}

static int launch_sum(struct vgpu_session *session, uint64_t first, uint32_t count)
{
    static const uint32_t one[3] = {1, 1, 1};
    uint64_t words[300] = {0};

    for (uint32_t k = 0; k + 1 < count; k++)
        words[count - 1] += words[k] = first + k;
    return vgpu_launch(session, 0, "sum", one, one, words, count, &problem);
}

static void launch_inside(struct vgpu_session *session, const struct vgpu_result *result,
                          void *context)
{
    unsigned *launched = context;

    for (int i = 0; i < 3; i++) {
        if (launch_sum(session, result->ticket, 50) == 0)
            ++*launched;
    }
}

static void callbacks_may_launch_while_a_launch_waits_for_room(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    unsigned launched = 0;

    (void)state;
    for (unsigned i = 0; i < 3000; i++) {
        assert_int_equal(vgpu_submit(session, &ping, launch_inside, &launched, NULL, &problem), 0);
        assert_int_equal(launch_sum(session, i, 1 + i % 300), 0);
    }
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(vgpu_device_sync(session, &problem), 0);
    assert_int_equal(launched, 9000);
    assert_int_equal(LIB_HOST_GET(&host, launches), 12000);
    assert_int_equal(LIB_HOST_GET(&host, launch_errors), 0);
    close_both(&host, session);
}

static void callbacks_make_room_in_a_full_table(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct calls calls = {0};

    (void)state;
    vgpu_batch_begin(session);
    for (int i = 0; i < 10000; i++)
        assert_int_equal(vgpu_submit(session, &ping, count_call, &calls, NULL, &problem), 0);
    vgpu_batch_end(session);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    assert_int_equal(calls.count, 10000);
    close_both(&host, session);
}

static void cancel_names_the_operation_and_tells_what_came_of_it(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host, 0);
    bool cancelled = false;

    (void)state;
    assert_int_equal(vgpu_cancel(session, submit_ping(session), &cancelled, &problem), 0);
    assert_true(cancelled);
    close_both(&host, session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pings_pass_the_rings_end_and_the_counters_end),
        cmocka_unit_test(batches_pass_the_rings_end_and_the_counters_end),
        cmocka_unit_test(more_operations_than_the_ring_holds_wait_for_room),
        cmocka_unit_test(answers_in_any_order_find_their_tickets),
        cmocka_unit_test(poll_gives_results_in_the_order_of_their_answers),
        cmocka_unit_test(the_doorbell_is_rung_only_when_the_event_index_asks),
        cmocka_unit_test(a_batch_is_published_and_rung_once),
        cmocka_unit_test(a_wait_inside_a_batch_publishes_it),
        cmocka_unit_test(who_does_not_sleep_is_not_interrupted),
        cmocka_unit_test(an_armed_session_is_interrupted_by_the_next_answer_once),
        cmocka_unit_test(arming_tells_when_there_is_something_already),
        cmocka_unit_test(what_was_published_without_waking_is_found_all_the_same),
        cmocka_unit_test(a_host_that_missed_its_doorbell_is_rung_again_once_a_second),
        cmocka_unit_test(who_polls_and_never_sleeps_rings_again_too),
        cmocka_unit_test(a_host_that_works_is_not_rung_again),
        cmocka_unit_test(a_full_table_says_so_and_works_again_when_results_are_fetched),
        cmocka_unit_test(a_ticket_is_fetched_once),
        cmocka_unit_test(a_wait_that_times_out_can_be_repeated),
        cmocka_unit_test(a_time_that_does_not_fit_is_for_ever),
        cmocka_unit_test(callbacks_run_in_the_wait_and_leave_nothing_to_fetch),
        cmocka_unit_test(callbacks_may_wait_and_do_not_run_inside_one_another),
        cmocka_unit_test(callbacks_cannot_take_what_the_librarys_own_calls_wait_for),
        cmocka_unit_test(a_result_that_a_callback_fetched_is_not_waited_for_any_more),
        cmocka_unit_test(a_tail_beyond_the_ring_ends_the_session),
        cmocka_unit_test(answers_to_nothing_are_dropped),
        cmocka_unit_test(an_impossible_head_gives_no_room),
        cmocka_unit_test(an_unknown_status_is_a_failure_with_its_number),
        cmocka_unit_test(text_commands_answer_and_long_answers_are_cut),
        cmocka_unit_test(copies_of_any_size_arrive_from_the_heap_and_from_elsewhere),
        cmocka_unit_test(a_copy_uses_what_the_heap_has_left),
        cmocka_unit_test(a_copy_that_fails_says_so_and_gives_its_pieces_back),
        cmocka_unit_test(launches_keep_their_parameters_until_they_were_read),
        cmocka_unit_test(a_launch_of_an_own_kernel_says_all_that_it_was_given),
        cmocka_unit_test(a_launch_without_parameters_needs_no_memory_for_them),
        cmocka_unit_test(parameters_that_are_no_whole_words_are_refused),
        cmocka_unit_test(callbacks_may_launch_while_a_launch_waits_for_room),
        cmocka_unit_test(callbacks_make_room_in_a_full_table),
        cmocka_unit_test(cancel_names_the_operation_and_tells_what_came_of_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
