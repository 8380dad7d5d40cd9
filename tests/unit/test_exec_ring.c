/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's end of the rings, with this process as guest and worker at once: what
 * is taken, what is told, and what a successor finds after a death at any instant.
 * test_exec_ring_arm has its going to sleep, test_exec_session_lost real deaths.
 */
#include "unit.h"

#include "exec/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>

#define SLOT_BYTES VGPU_SLOT_MIN_BYTES
#define ENTRIES VGPU_RING_ENTRIES
#define MASK (ENTRIES - 1)

struct slot {
    uint8_t *memory;
    struct session_memory *session;
    struct vgpu_slot_guest *guest;
    struct vgpu_slot_host *host;
    struct vgpu_descriptor *sq;
    struct vgpu_completion *cq;
    struct ring ring;
    struct vgpu_descriptor taken[ENTRIES];
    int interrupt_fd;
};

/* As if so many descriptors and completions had gone through before. */
static void begin_at(struct slot *slot, uint32_t sequence, uint32_t number)
{
    memset(slot->memory, 0, SLOT_BYTES);
    memset(slot->session, 0, sizeof(*slot->session));
    slot->session->generation = 7;
    slot->session->sq_head = slot->guest->sq_tail = slot->host->sq_head = sequence;
    slot->session->cq_tail = slot->host->cq_tail = number;
    slot->guest->cq_head = slot->guest->cq_event = number;
    ring_init(&slot->ring, slot->memory, SLOT_BYTES, slot->session, slot->interrupt_fd);
}

static int slot_make(void **state)
{
    struct slot *slot = calloc(1, sizeof(*slot));

    slot->memory = aligned_alloc(VGPU_PAGE_BYTES, SLOT_BYTES);
    slot->session = calloc(1, sizeof(*slot->session));
    slot->guest = (struct vgpu_slot_guest *)(void *)(slot->memory + VGPU_SLOT_GUEST);
    slot->host = (struct vgpu_slot_host *)(void *)(slot->memory + VGPU_SLOT_HOST);
    slot->sq = (struct vgpu_descriptor *)(void *)(slot->memory + VGPU_SLOT_SQ);
    slot->cq = (struct vgpu_completion *)(void *)(slot->memory + VGPU_SLOT_CQ);
    slot->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    begin_at(slot, 0, 0);
    *state = slot;
    return 0;
}

static int slot_remove(void **state)
{
    struct slot *slot = *state;

    close(slot->interrupt_fd);
    free(slot->session);
    free(slot->memory);
    free(slot);
    return 0;
}

/* --- guest and worker ------------------------------------------------------------------ */

/* A cookie that tells its sequence. */
static uint64_t cookie_of(uint32_t sequence)
{
    return 0xc00c1e0000000000ull | sequence;
}

static void submit(struct slot *slot, uint8_t flags)
{
    uint32_t sequence = slot->guest->sq_tail;

    slot->sq[sequence & MASK] = (struct vgpu_descriptor){
        .opcode = VGPU_OP_PING, .flags = flags, .cookie = cookie_of(sequence)};
    slot->guest->sq_tail = sequence + 1;
}

static void complete(struct slot *slot, uint32_t sequence)
{
    const struct vgpu_completion completion = {.cookie = slot->taken[sequence & MASK].cookie,
                                               .sequence = sequence,
                                               .generation = slot->session->generation};

    ring_complete(&slot->ring, sequence, &completion);
}

static uint64_t interrupts(const struct slot *slot)
{
    eventfd_t count = 0;

    return eventfd_read(slot->interrupt_fd, &count) == 0 ? count : 0;
}

static uint64_t commit_of(const struct slot *slot, uint32_t sequence)
{
    return slot->session->entries[sequence & MASK].commit;
}

static void expect_fault(struct slot *slot, const char *word)
{
    assert_int_equal(ring_depth(&slot->ring), 0);
    assert_true(slot->ring.faulted);
    assert_memory_equal(slot->ring.reason, word, strlen(word));
}

/* --- what can be taken --------------------------------------------------------------------- */

static void as_many_can_be_taken_as_were_published(void **state)
{
    struct slot *slot = *state;

    assert_int_equal(ring_depth(&slot->ring), 0);
    slot->guest->sq_tail = 1;
    assert_int_equal(ring_depth(&slot->ring), 1);
    slot->guest->sq_tail = ENTRIES;
    assert_int_equal(ring_depth(&slot->ring), ENTRIES);
    assert_false(slot->ring.faulted);
}

static void a_tail_more_than_a_ring_ahead_is_a_fault(void **state)
{
    struct slot *slot = *state;

    slot->guest->sq_tail = ENTRIES + 1;
    expect_fault(slot, "sq_tail is 1025, ");
}

static void a_tail_that_goes_back_is_a_fault(void **state)
{
    struct slot *slot = *state;

    begin_at(slot, 10, 0);
    slot->guest->sq_tail = 9;
    expect_fault(slot, "sq_tail is 9, ");
}

static void a_head_beyond_what_was_completed_is_a_fault(void **state)
{
    struct slot *slot = *state;

    begin_at(slot, 0, 10);
    slot->guest->cq_head = 11;
    expect_fault(slot, "cq_head is 11, ");
}

static void a_head_more_than_a_ring_behind_is_a_fault(void **state)
{
    struct slot *slot = *state;

    begin_at(slot, 0, 5000);
    slot->guest->cq_head = 5000 - ENTRIES;
    assert_int_equal(ring_depth(&slot->ring), 0); /* full, which is no fault */
    assert_false(slot->ring.faulted);
    slot->guest->cq_head = 5000 - ENTRIES - 1;
    expect_fault(slot, "cq_head is ");
}

static void a_fault_is_not_taken_back(void **state)
{
    struct slot *slot = *state;

    slot->guest->sq_tail = UINT32_MAX;
    expect_fault(slot, "sq_tail is 4294967295, ");
    slot->guest->sq_tail = 1;
    expect_fault(slot, "sq_tail is 4294967295, ");
}

static void what_is_in_flight_keeps_a_place_for_its_completion(void **state)
{
    struct slot *slot = *state;

    for (uint32_t i = 0; i < 10; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, ring_depth(&slot->ring));
    slot->guest->sq_tail = 10 + ENTRIES;
    assert_int_equal(ring_depth(&slot->ring), ENTRIES - 10);
    for (uint32_t i = 0; i < 10; i++)
        complete(slot, i);
    assert_int_equal(ring_depth(&slot->ring), ENTRIES - 10); /* completed, not yet taken */
    slot->guest->cq_head = 4;
    assert_int_equal(ring_depth(&slot->ring), ENTRIES - 6);
}

static void a_quiet_one_gives_its_place_back(void **state)
{
    struct slot *slot = *state;

    submit(slot, VGPU_FLAG_QUIET);
    ring_fetch(&slot->ring, slot->taken, 1);
    slot->guest->sq_tail = 1 + ENTRIES;
    assert_int_equal(ring_depth(&slot->ring), ENTRIES - 1);
    ring_complete_quietly(&slot->ring, 0);
    assert_int_equal(ring_depth(&slot->ring), ENTRIES);
    ring_publish(&slot->ring);
    assert_int_equal(slot->host->cq_tail, 0);
}

/* The guest may lower its head while completions for what it gave still come. */
static void a_head_that_goes_back_takes_no_more_than_there_is_room(void **state)
{
    struct slot *slot = *state;

    begin_at(slot, 0, ENTRIES);
    slot->guest->sq_tail = 100;
    ring_fetch(&slot->ring, slot->taken, ring_depth(&slot->ring));
    slot->guest->sq_tail = 200;
    slot->guest->cq_head = 50; /* untaken and in flight are more than a ring */
    assert_int_equal(ring_depth(&slot->ring), 0);
    assert_false(slot->ring.faulted);
    for (uint32_t i = 0; i < 100; i++)
        complete(slot, i);
    expect_fault(slot, "cq_head is 50, ");
}

/* --- taking and answering -------------------------------------------------------------------- */

static void what_is_taken_is_a_copy_and_noted(void **state)
{
    struct slot *slot = *state;

    begin_at(slot, 1023, 0);
    submit(slot, VGPU_FLAG_QUIET);
    submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, 2);
    memset(slot->sq, 0xff, ENTRIES * sizeof(*slot->sq));
    assert_int_equal(slot->taken[1023].cookie, cookie_of(1023));
    assert_int_equal(slot->taken[0].cookie, cookie_of(1024));
    assert_int_equal(slot->session->sq_head, 1025);
    assert_int_equal(slot->host->sq_head, 1025);
    for (uint32_t sequence = 1023; sequence < 1025; sequence++) {
        const struct session_entry *entry = &slot->session->entries[sequence & MASK];

        assert_int_equal(entry->cookie, cookie_of(sequence));
        assert_int_equal(entry->sequence, sequence);
        assert_int_equal(entry->flags, sequence == 1023 ? VGPU_FLAG_QUIET : 0);
        assert_int_equal(entry->commit, session_commit(SESSION_ENTRY_ACCEPTED, 0));
    }
}

static void an_answer_is_noted_before_it_is_seen(void **state)
{
    struct slot *slot = *state;

    begin_at(slot, 0, 5);
    submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, 1);
    complete(slot, 0);
    assert_int_equal(slot->cq[5].cookie, cookie_of(0));
    assert_int_equal(commit_of(slot, 0), session_commit(SESSION_ENTRY_ANSWERED, 5));
    assert_int_equal(slot->session->cq_tail, 6);
    assert_int_equal(slot->host->cq_tail, 5);
    assert_int_equal(interrupts(slot), 0);
    ring_publish(&slot->ring);
    assert_int_equal(slot->host->cq_tail, 6);
    assert_int_equal(interrupts(slot), 1);
}

static void answers_may_come_in_another_order(void **state)
{
    struct slot *slot = *state;

    for (int i = 0; i < 3; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, 3);
    complete(slot, 2);
    complete(slot, 0);
    complete(slot, 1);
    assert_int_equal(slot->cq[0].sequence, 2);
    assert_int_equal(slot->cq[1].sequence, 0);
    assert_int_equal(slot->cq[2].sequence, 1);
    assert_int_equal(commit_of(slot, 1), session_commit(SESSION_ENTRY_ANSWERED, 2));
    assert_int_equal(slot->ring.inflight, 0);
}

static void both_rings_go_on_where_32_bits_end(void **state)
{
    struct slot *slot = *state;
    const uint32_t first = UINT32_MAX - 700, number = UINT32_MAX - 300;
    uint32_t next = first;

    begin_at(slot, first, number);
    for (uint32_t burst = 1; burst < 60; burst++) {
        for (uint32_t i = 0; i < burst; i++)
            submit(slot, 0);
        assert_int_equal(ring_depth(&slot->ring), burst);
        ring_fetch(&slot->ring, slot->taken, burst);
        for (uint32_t i = 0; i < burst; i++)
            complete(slot, next + i);
        ring_publish(&slot->ring);
        assert_int_equal(interrupts(slot), 1);
        for (uint32_t i = 0; i < burst; i++, next++) {
            const struct vgpu_completion *completion = &slot->cq[slot->guest->cq_head++ & MASK];

            assert_int_equal(completion->sequence, next);
            assert_int_equal(completion->cookie, cookie_of(next));
        }
        slot->guest->cq_event = slot->guest->cq_head;
    }
    assert_false(slot->ring.faulted);
    assert_true(next < first);
    assert_int_equal(slot->host->cq_tail, number + (next - first));
}

/* --- telling ------------------------------------------------------------------------------------
 */

static void publish_count(struct slot *slot, uint32_t number, uint32_t count, uint32_t event)
{
    begin_at(slot, 0, number);
    slot->guest->cq_event = event;
    for (uint32_t i = 0; i < count; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, count);
    for (uint32_t i = 0; i < count; i++)
        complete(slot, i);
    ring_publish(&slot->ring);
}

static void the_guest_is_interrupted_when_its_event_is_passed_and_only_then(void **state)
{
    static const uint32_t numbers[] = {0, 100, UINT32_MAX - 2, UINT32_MAX, INT32_MAX};
    struct slot *slot = *state;

    for (size_t n = 0; n < VGPU_ARRAY_LENGTH(numbers); n++) {
        for (uint32_t count = 0; count <= 4; count++) {
            for (int32_t ahead = -3; ahead <= 6; ahead++) {
                publish_count(slot, numbers[n], count, numbers[n] + (uint32_t)ahead);
                /* The completions that came are number .. number + count - 1. */
                assert_int_equal(interrupts(slot), ahead >= 0 && ahead < (int32_t)count);
            }
        }
    }
}

static void what_was_told_is_not_told_again(void **state)
{
    struct slot *slot = *state;

    publish_count(slot, 0, 3, 1);
    assert_int_equal(interrupts(slot), 1);
    ring_publish(&slot->ring);
    assert_int_equal(interrupts(slot), 0);
}

static void an_interrupt_that_is_full_holds_nothing_up(void **state)
{
    struct slot *slot = *state;

    assert_int_equal(eventfd_write(slot->interrupt_fd, UINT64_MAX - 1), 0);
    publish_count(slot, 0, 1, 0);
    assert_int_equal(slot->host->cq_tail, 1);
    assert_int_equal(interrupts(slot), UINT64_MAX - 1);
}

/* --- death and recovery --------------------------------------------------------------------------
 */

/* The stores of one operation's life in their order (session_private.h); a worker dies
 * before the one that it does not come to. */
enum instant {
    AT_COOKIE,
    AT_ACCEPTED,
    AT_SQ_HEAD,
    AT_SHOWN_SQ_HEAD,
    AT_COMPLETION,
    AT_COMMIT,
    AT_CQ_TAIL,
    AT_SHOWN_CQ_TAIL,
    AT_END,
};

/* One operation by hand, up to an instant. */
static void live_until(struct slot *slot, uint32_t sequence, enum instant death)
{
    struct session_memory *session = slot->session;
    struct session_entry *entry = &session->entries[sequence & MASK];
    const uint8_t flags = slot->sq[sequence & MASK].flags;
    const bool quiet = flags & VGPU_FLAG_QUIET;

    if (death > AT_COOKIE) {
        entry->cookie = cookie_of(sequence);
        entry->sequence = sequence;
        entry->flags = flags;
    }
    if (death > AT_ACCEPTED)
        entry->commit = session_commit(SESSION_ENTRY_ACCEPTED, 0);
    if (death > AT_SQ_HEAD)
        session->sq_head = sequence + 1;
    if (death > AT_SHOWN_SQ_HEAD)
        slot->host->sq_head = sequence + 1;
    if (death > AT_COMPLETION && !quiet)
        slot->cq[session->cq_tail & MASK] = (struct vgpu_completion){
            .cookie = cookie_of(sequence), .status = VGPU_OK, .sequence = sequence};
    if (death > AT_COMMIT)
        entry->commit = quiet ? session_commit(SESSION_ENTRY_QUIET, 0)
                              : session_commit(SESSION_ENTRY_ANSWERED, session->cq_tail);
    if (death > AT_CQ_TAIL && !quiet)
        session->cq_tail++;
    if (death > AT_SHOWN_CQ_TAIL)
        slot->host->cq_tail = session->cq_tail;
}

static void recover(struct slot *slot)
{
    slot->session->generation++;
    ring_init(&slot->ring, slot->memory, SLOT_BYTES, slot->session, slot->interrupt_fd);
    ring_recover(&slot->ring, slot->taken);
}

/* The guest takes all that it sees: each of first .. first + count - 1 once, but for the
 * quiet; those below `answered` as they ended. */
static void expect_each_once(struct slot *slot, uint32_t first, uint32_t count, uint32_t answered,
                             uint32_t quiet)
{
    bool seen[8] = {false};
    uint32_t taken = 0;

    for (; slot->guest->cq_head != slot->host->cq_tail; slot->guest->cq_head++, taken++) {
        const struct vgpu_completion *completion = &slot->cq[slot->guest->cq_head & MASK];
        uint32_t at = completion->sequence - first;

        assert_true(at < count && at != quiet && !seen[at]);
        seen[at] = true;
        assert_int_equal(completion->cookie, cookie_of(completion->sequence));
        assert_int_equal(completion->status, at < answered ? VGPU_OK : VGPU_DEVICE_LOST);
        if (at >= answered)
            assert_int_equal(completion->generation, slot->session->generation);
    }
    assert_int_equal(taken, quiet < count ? count - 1 : count);
}

/* Of five that were submitted, two have ended and the third dies at `death`. */
static void die_and_recover(struct slot *slot, uint32_t first, uint32_t number, enum instant death,
                            uint32_t quiet)
{
    begin_at(slot, first, number);
    for (uint32_t i = 0; i < 5; i++)
        submit(slot, i == quiet ? VGPU_FLAG_QUIET : 0);
    for (uint32_t i = 0; i < 2; i++)
        live_until(slot, first + i, AT_END);
    live_until(slot, first + 2, death);
    recover(slot);
    assert_int_equal(slot->ring.inflight, 0);
    assert_int_equal(slot->session->sq_head, first + 5);
    assert_int_equal(slot->host->sq_head, first + 5);
    assert_int_equal(slot->session->cq_tail, slot->host->cq_tail);
    assert_true(interrupts(slot) > 0); /* whether it was told is not known */
    expect_each_once(slot, first, 5, death > AT_COMMIT ? 3 : 2, quiet);
    assert_int_equal(ring_depth(&slot->ring), 0);
    assert_false(slot->ring.faulted);
    /* Another death, before anything came: nothing is said twice. */
    recover(slot);
    expect_each_once(slot, first, 0, 0, 0);
}

static void each_is_answered_once_after_a_death_at_any_instant(void **state)
{
    static const uint32_t firsts[] = {0, 1021, UINT32_MAX - 2, UINT32_MAX};
    struct slot *slot = *state;

    for (size_t f = 0; f < VGPU_ARRAY_LENGTH(firsts); f++) {
        for (enum instant death = AT_COOKIE; death <= AT_END; death++) {
            die_and_recover(slot, firsts[f], firsts[f], death, UINT32_MAX);
            die_and_recover(slot, firsts[f], firsts[f] + 333, death, UINT32_MAX);
        }
    }
}

static void a_quiet_one_is_not_answered_after_a_death_at_any_instant(void **state)
{
    struct slot *slot = *state;

    for (enum instant death = AT_COOKIE; death <= AT_END; death++) {
        for (uint32_t quiet = 0; quiet < 5; quiet++)
            die_and_recover(slot, UINT32_MAX - 3, UINT32_MAX - 1, death, quiet);
    }
}

/* A lap later every entry holds a note of the lap before. */
static void notes_of_an_earlier_lap_are_no_news(void **state)
{
    struct slot *slot = *state;
    uint32_t first = UINT32_MAX - ENTRIES;

    for (enum instant death = AT_COOKIE; death <= AT_END; death++) {
        begin_at(slot, first, 17);
        for (uint32_t i = 0; i < 2 * ENTRIES + 100; i++) {
            submit(slot, i % 3 == 1 ? VGPU_FLAG_QUIET : 0);
            live_until(slot, first + i, AT_END);
            slot->guest->cq_head = slot->host->cq_tail;
        }
        first = slot->guest->sq_tail;
        submit(slot, 0);
        live_until(slot, first, death);
        recover(slot);
        expect_each_once(slot, first, 1, death > AT_COMMIT, UINT32_MAX);
    }
}

static void all_that_was_in_flight_is_answered_also_when_nothing_was_taken(void **state)
{
    struct slot *slot = *state;

    for (uint32_t i = 0; i < ENTRIES; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, ENTRIES);
    for (uint32_t i = 0; i < 100; i++)
        complete(slot, i);
    recover(slot);
    assert_int_equal(slot->host->cq_tail, ENTRIES);
    for (uint32_t i = 0; i < ENTRIES; i++) {
        assert_int_equal(slot->cq[i].sequence, i);
        assert_int_equal(slot->cq[i].status, i < 100 ? VGPU_OK : VGPU_DEVICE_LOST);
    }
}

/* What has no place yet is neither lost nor written over what the guest did not take. */
static void what_has_no_room_waits_in_the_ring(void **state)
{
    struct slot *slot = *state;

    for (uint32_t i = 0; i < ENTRIES; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, ENTRIES);
    for (uint32_t i = 0; i < ENTRIES; i++)
        complete(slot, i);
    ring_publish(&slot->ring);
    for (uint32_t i = 0; i < 5; i++)
        submit(slot, 0);
    recover(slot);
    assert_int_equal(slot->session->sq_head, ENTRIES);
    assert_int_equal(slot->host->cq_tail, ENTRIES);
    assert_int_equal(slot->cq[0].status, VGPU_OK);
    slot->guest->cq_head = ENTRIES;
    assert_int_equal(ring_depth(&slot->ring), 5);
}

static void a_scribbled_ring_still_answers_what_was_in_flight(void **state)
{
    struct slot *slot = *state;

    for (uint32_t i = 0; i < 3; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, 3);
    slot->guest->sq_tail = 3 + ENTRIES + 1;
    recover(slot);
    assert_true(slot->ring.faulted);
    assert_int_equal(slot->session->sq_head, 3);
    expect_each_once(slot, 0, 3, 0, UINT32_MAX);
}

/* What a worker that was taken over may have written there harms its session only. */
static void any_session_memory_is_recovered_within_bounds(void **state)
{
    struct slot *slot = *state;
    uint32_t seed = 1;

    for (int round = 0; round < 50; round++) {
        uint8_t *bytes = (uint8_t *)slot->session->entries;

        begin_at(slot, 0, 0);
        for (size_t i = 0; i < sizeof(slot->session->entries); i++) {
            seed = seed * 1664525 + 1013904223;
            bytes[i] = (uint8_t)(seed >> 24);
        }
        for (uint32_t i = 0; i < ENTRIES; i++) {
            struct session_entry *entry = &slot->session->entries[i];

            entry->commit = entry->commit >> 32 << 32 | entry->commit % 5;
            if (round % 2)
                entry->sequence = i - ENTRIES; /* all of them just before sq_head */
        }
        recover(slot);
        assert_int_equal(slot->ring.inflight, 0);
        assert_true(slot->ring.cq_tail <= 2 * ENTRIES);
    }
}

static void what_the_worker_was_killed_for_is_told_apart(void **state)
{
    struct slot *slot = *state;

    for (int i = 0; i < 3; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, 3);
    slot->session->running_sequence = 1;
    slot->session->blocking_sequence = 2;
    slot->session->over_limit = SESSION_OVER_RUNNING;
    recover(slot);
    assert_int_equal(slot->host->cq_tail, 3);
    assert_int_equal(slot->cq[0].status, VGPU_DEVICE_LOST);
    assert_int_equal(slot->cq[1].status, VGPU_TIME_LIMIT);
    assert_int_equal(slot->cq[2].status, VGPU_DEVICE_LOST);
}

static void what_held_up_the_worker_is_told_apart_from_what_ran(void **state)
{
    struct slot *slot = *state;

    for (int i = 0; i < 3; i++)
        submit(slot, 0);
    ring_fetch(&slot->ring, slot->taken, 3);
    slot->session->running_sequence = 0;
    slot->session->blocking_sequence = 2;
    slot->session->over_limit = SESSION_OVER_BLOCKING;
    recover(slot);
    assert_int_equal(slot->cq[0].status, VGPU_DEVICE_LOST);
    assert_int_equal(slot->cq[1].status, VGPU_DEVICE_LOST);
    assert_int_equal(slot->cq[2].status, VGPU_TIME_LIMIT);
}

#define RING_TEST(function) cmocka_unit_test_setup_teardown(function, slot_make, slot_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RING_TEST(as_many_can_be_taken_as_were_published),
        RING_TEST(a_tail_more_than_a_ring_ahead_is_a_fault),
        RING_TEST(a_tail_that_goes_back_is_a_fault),
        RING_TEST(a_head_beyond_what_was_completed_is_a_fault),
        RING_TEST(a_head_more_than_a_ring_behind_is_a_fault),
        RING_TEST(a_fault_is_not_taken_back),
        RING_TEST(what_is_in_flight_keeps_a_place_for_its_completion),
        RING_TEST(a_quiet_one_gives_its_place_back),
        RING_TEST(a_head_that_goes_back_takes_no_more_than_there_is_room),
        RING_TEST(what_is_taken_is_a_copy_and_noted),
        RING_TEST(an_answer_is_noted_before_it_is_seen),
        RING_TEST(answers_may_come_in_another_order),
        RING_TEST(both_rings_go_on_where_32_bits_end),
        RING_TEST(the_guest_is_interrupted_when_its_event_is_passed_and_only_then),
        RING_TEST(what_was_told_is_not_told_again),
        RING_TEST(an_interrupt_that_is_full_holds_nothing_up),
        RING_TEST(each_is_answered_once_after_a_death_at_any_instant),
        RING_TEST(a_quiet_one_is_not_answered_after_a_death_at_any_instant),
        RING_TEST(notes_of_an_earlier_lap_are_no_news),
        RING_TEST(all_that_was_in_flight_is_answered_also_when_nothing_was_taken),
        RING_TEST(what_has_no_room_waits_in_the_ring),
        RING_TEST(a_scribbled_ring_still_answers_what_was_in_flight),
        RING_TEST(what_the_worker_was_killed_for_is_told_apart),
        RING_TEST(what_held_up_the_worker_is_told_apart_from_what_ran),
        RING_TEST(any_session_memory_is_recovered_within_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
