/* SPDX-License-Identifier: Apache-2.0 */
/* The rules of the gate in sched.h: a cap, the queue before it, an owner's share of it, and a
 * seat that is kept for one that needs more than one. */
#include "unit.h"

#include "sched/sched.h"

#define SEATS 6
#define OWNERS 2

struct gate {
    struct sched_gate gate;
    struct sched_seat seats[SEATS];
    struct sched_gate_owner owners[OWNERS];
};

static void make(struct gate *g, uint32_t cap)
{
    *g = (struct gate){0};
    sched_gate_init(&g->gate);
    g->gate.cap = cap;
}

/* Seats 0 to 2 are one owner's, 3 to 5 are the other's. */
static void make_with_owners(struct gate *g, uint32_t cap, uint32_t owner_cap)
{
    make(g, cap);
    g->gate.owner_cap = owner_cap;
    for (unsigned i = 0; i < OWNERS; i++)
        sched_gate_owner_init(&g->owners[i]);
    for (unsigned i = 0; i < SEATS; i++)
        g->seats[i].owner = &g->owners[i / (SEATS / OWNERS)];
}

static bool enter(struct gate *g, unsigned seat, unsigned priority)
{
    return sched_gate_enter(&g->gate, &g->seats[seat], priority);
}

static bool take(struct gate *g, unsigned seat)
{
    return sched_gate_take(&g->gate, &g->seats[seat]);
}

static void release(struct gate *g, unsigned seat)
{
    sched_gate_release(&g->gate, &g->seats[seat]);
}

/* Its number, -1: none. */
static int admit(struct gate *g)
{
    const struct sched_seat *seat = sched_gate_admit(&g->gate);

    return seat ? (int)(seat - g->seats) : -1;
}

static void expect_counts(const struct gate *g, uint32_t held, uint32_t admitted, uint32_t waiting)
{
    assert_int_equal(g->gate.held, held);
    assert_int_equal(g->gate.admitted, admitted);
    assert_int_equal(g->gate.waiting_count, waiting);
}

static void without_a_cap_all_pass_and_are_counted(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 0);
    for (unsigned i = 0; i < SEATS; i++)
        assert_true(enter(&g, i, i % 3) && take(&g, i));
    expect_counts(&g, SEATS, 0, 0);
}

static void as_many_as_the_cap_hold_a_seat_and_the_rest_wait(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 2);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_true(enter(&g, 1, 1) && take(&g, 1));
    assert_false(enter(&g, 2, 1));
    assert_int_equal(admit(&g), -1);
    expect_counts(&g, 2, 0, 1);
}

static void a_holder_passes_again_however_many_wait(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 0) && take(&g, 0));
    assert_false(enter(&g, 1, 2));
    assert_true(enter(&g, 0, 0) && take(&g, 0));
    expect_counts(&g, 1, 0, 1);
}

static void a_free_seat_admits_the_highest_priority_and_of_these_the_first(void **state)
{
    static const unsigned priorities[] = {2, 0, 1, 2, 1, 2};
    static const int expected[] = {3, 5, 2, 4, 1};
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, priorities[0]) && take(&g, 0));
    for (unsigned i = 1; i < SEATS; i++)
        assert_false(enter(&g, i, priorities[i]));
    for (unsigned i = 0, last = 0; i < VGPU_ARRAY_LENGTH(expected); i++) {
        release(&g, last);
        last = (unsigned)expected[i];
        assert_int_equal(admit(&g), last);
        assert_true(take(&g, last));
    }
}

static void no_more_are_admitted_than_seats_are_free(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 2);
    for (unsigned i = 0; i < 2; i++)
        assert_true(enter(&g, i, 1) && take(&g, i));
    for (unsigned i = 2; i < SEATS; i++)
        assert_false(enter(&g, i, 1));
    release(&g, 1);
    assert_int_equal(admit(&g), 2);
    assert_int_equal(admit(&g), -1);
    expect_counts(&g, 1, 1, 3);
}

static void who_comes_later_does_not_overtake_who_waits(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 1));
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    assert_false(enter(&g, 3, 1)); /* the seat is free and not its */
    assert_true(enter(&g, 4, 2));  /* the device's queue knows priorities too */
}

static void who_was_overtaken_waits_where_it_stood(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 0));
    assert_true(enter(&g, 1, 2));
    assert_true(take(&g, 1));
    assert_false(enter(&g, 2, 0));
    assert_false(take(&g, 0));
    expect_counts(&g, 1, 0, 2);
    release(&g, 1);
    assert_int_equal(admit(&g), 0);
    assert_true(take(&g, 0));
    expect_counts(&g, 1, 0, 1);
}

static void an_admitted_one_that_leaves_makes_room_for_the_next(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 1));
    assert_false(enter(&g, 3, 1));
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    sched_gate_leave(&g.gate, &g.seats[1]);
    sched_gate_leave(&g.gate, &g.seats[2]);
    assert_int_equal(admit(&g), 3);
    expect_counts(&g, 0, 1, 0);
}

static void leaving_and_releasing_what_one_has_not_changes_nothing(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    release(&g, 0);
    sched_gate_leave(&g.gate, &g.seats[0]);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    sched_gate_leave(&g.gate, &g.seats[0]);
    expect_counts(&g, 1, 0, 0);
    release(&g, 0);
    release(&g, 0);
    expect_counts(&g, 0, 0, 0);
}

static void a_cap_that_rises_admits_and_one_that_falls_takes_nothing_away(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 1));
    g.gate.cap = 2;
    assert_int_equal(admit(&g), 1);
    assert_true(take(&g, 1));
    g.gate.cap = 1;
    release(&g, 0);
    assert_int_equal(admit(&g), -1);
    expect_counts(&g, 1, 0, 1);
    g.gate.cap = 0;
    assert_int_equal(admit(&g), 2);
}

static void what_is_held_already_counts_over_the_cap(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    for (unsigned i = 0; i < 3; i++)
        sched_gate_hold(&g.gate, &g.seats[i]);
    sched_gate_hold(&g.gate, &g.seats[0]);
    assert_false(enter(&g, 3, 2));
    expect_counts(&g, 3, 0, 1);
    sched_gate_hold(&g.gate, &g.seats[3]);
    expect_counts(&g, 4, 0, 0);
}

static void a_new_priority_counts_at_once(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 0));
    assert_false(enter(&g, 3, 1));
    sched_gate_set_priority(&g.gate, &g.seats[2], 2);
    sched_gate_set_priority(&g.gate, &g.seats[1], 0);
    release(&g, 0);
    assert_int_equal(admit(&g), 2);
    sched_gate_leave(&g.gate, &g.seats[2]);
    assert_int_equal(admit(&g), 3);
}

/* --- an owner's share ------------------------------------------------------------------ */

static void an_owner_holds_as_many_as_it_may_and_its_next_is_kept_back(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 0, 2);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_true(enter(&g, 1, 1) && take(&g, 1));
    assert_false(enter(&g, 2, 1));
    assert_true(g.seats[2].kept_back);
    assert_int_equal(admit(&g), -1);
    expect_counts(&g, 2, 0, 0);
    assert_int_equal(g.gate.kept_back_count, 1);
    assert_true(enter(&g, 3, 0) && take(&g, 3)); /* of another one, which is behind nobody */
}

static void one_that_is_kept_back_joins_the_queue_when_its_owner_has_room(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 2, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 1));
    assert_true(enter(&g, 3, 1) && take(&g, 3));
    release(&g, 3);
    assert_int_equal(admit(&g), -1);
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    assert_int_equal(admit(&g), -1); /* one that is admitted counts as well */
    assert_true(take(&g, 1));
    release(&g, 1);
    assert_int_equal(admit(&g), 2);
}

static void one_that_joins_late_stands_behind_those_that_waited_all_the_time(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 2, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_true(enter(&g, 3, 1) && take(&g, 3));
    assert_false(enter(&g, 1, 1));
    g.seats[5].owner = NULL;
    assert_false(enter(&g, 5, 1));
    release(&g, 0);
    assert_int_equal(admit(&g), 5);
    release(&g, 3);
    assert_int_equal(admit(&g), 1);
}

static void one_whose_owner_has_enough_by_its_turn_is_stepped_over(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 2, 1);
    assert_true(enter(&g, 3, 1) && take(&g, 3));
    g.seats[5].owner = NULL;
    assert_true(enter(&g, 5, 1) && take(&g, 5));
    for (unsigned i = 0; i < 3; i++)
        assert_false(enter(&g, i, 1));
    assert_false(enter(&g, 4, 1));
    expect_counts(&g, 2, 0, 3);
    release(&g, 3);
    assert_int_equal(admit(&g), 0);
    release(&g, 5);
    assert_int_equal(admit(&g), 4);
    expect_counts(&g, 0, 2, 0);
    assert_int_equal(g.owners[0].kept_back_count, 2);
}

static void one_that_passed_and_finds_its_owner_full_is_kept_back(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 0, 1);
    assert_true(enter(&g, 0, 1));
    assert_true(enter(&g, 1, 1));
    assert_true(take(&g, 0));
    assert_false(take(&g, 1));
    assert_true(g.seats[1].kept_back);
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    assert_true(take(&g, 1));
}

static void one_that_is_admitted_and_leaves_makes_room_for_its_owners_next(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 0, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 1));
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    sched_gate_leave(&g.gate, &g.seats[1]);
    assert_int_equal(admit(&g), 2);
    sched_gate_leave(&g.gate, &g.seats[2]);
    expect_counts(&g, 0, 0, 0);
    assert_int_equal(g.gate.kept_back_count, 0);
    assert_int_equal(g.owners[0].admitted + g.owners[0].standing, 0);
}

static void an_owners_cap_that_changes_counts_for_those_that_wait(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 0, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 0));
    assert_false(enter(&g, 2, 0));
    sched_gate_set_priority(&g.gate, &g.seats[2], 2);
    g.gate.owner_cap = 2;
    sched_gate_let_in(&g.gate, &g.owners[0]);
    assert_int_equal(admit(&g), 2);
    assert_int_equal(admit(&g), -1);
    g.gate.owner_cap = 0;
    sched_gate_let_in(&g.gate, &g.owners[0]);
    assert_int_equal(admit(&g), 1);
    g.gate.owner_cap = 1;
    assert_true(enter(&g, 0, 1)); /* what it holds it keeps */
}

static void an_owner_with_many_that_come_and_go_leaves_the_others_their_share(void **state)
{
    unsigned turns[SEATS] = {0};
    struct gate g;

    (void)state;
    make_with_owners(&g, 2, 1);
    for (unsigned i = 0; i < SEATS; i++) {
        if (enter(&g, i, 1))
            (void)take(&g, i);
    }
    for (unsigned turn = 0; turn < 600; turn++) {
        const struct sched_seat *first = TAILQ_FIRST(&g.gate.holders);
        unsigned back = (unsigned)(first - g.seats);
        int next;

        turns[back]++;
        release(&g, back);
        assert_false(enter(&g, back, 1));
        while ((next = admit(&g)) >= 0)
            assert_true(take(&g, (unsigned)next));
        expect_counts(&g, 2, 0, g.gate.waiting_count);
        assert_true(g.owners[0].held == 1 && g.owners[1].held == 1);
    }
    for (unsigned i = 0; i < SEATS; i++)
        assert_in_range(turns[i], 99, 101);
}

/* --- a seat that is kept -------------------------------------------------------------- */

static void reserve(struct gate *g, unsigned seat, unsigned priority)
{
    sched_gate_reserve(&g->gate, &g->seats[seat], priority);
}

static void one_that_reserves_goes_before_all_of_its_priority(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 2));
    assert_false(enter(&g, 2, 1));
    reserve(&g, 3, 1);
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    assert_true(take(&g, 1));
    release(&g, 1);
    assert_int_equal(admit(&g), 3);
}

static void what_is_kept_nobody_of_its_priority_takes(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 2);
    assert_true(enter(&g, 0, 1));
    assert_true(enter(&g, 1, 1));
    reserve(&g, 2, 1);
    assert_int_equal(admit(&g), 2);
    assert_true(take(&g, 0)); /* the other one is free for all */
    assert_false(take(&g, 1));
    assert_false(enter(&g, 3, 0));
    assert_int_equal(admit(&g), -1);
    assert_true(sched_gate_may_take(&g.gate, &g.seats[2]) && take(&g, 2));
    assert_null(g.gate.reserved);
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
}

static void a_higher_priority_takes_what_is_kept_and_it_is_kept_again(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    reserve(&g, 0, 1);
    assert_int_equal(admit(&g), 0);
    assert_true(enter(&g, 1, 2) && take(&g, 1));
    assert_false(enter(&g, 2, 2));
    assert_false(take(&g, 0));
    release(&g, 1);
    assert_int_equal(admit(&g), 2);
    assert_true(take(&g, 2));
    assert_false(enter(&g, 3, 1));
    release(&g, 2);
    assert_int_equal(admit(&g), 0);
    assert_int_equal(admit(&g), -1);
    assert_true(take(&g, 0));
}

static void a_higher_priority_is_admitted_past_one_that_is_kept(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    reserve(&g, 0, 1);
    assert_int_equal(admit(&g), 0);
    assert_true(enter(&g, 1, 2) && take(&g, 1));
    assert_false(enter(&g, 2, 2));
    release(&g, 1);
    assert_int_equal(admit(&g), 2); /* it does not wait until who reserves is there */
    assert_int_equal(admit(&g), -1);
}

static void one_that_reserves_no_more_stands_by_its_arrival(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    assert_false(enter(&g, 2, 1));
    assert_false(enter(&g, 3, 1));
    reserve(&g, 2, 1);
    sched_gate_unreserve(&g.gate, &g.seats[2]);
    release(&g, 0);
    assert_int_equal(admit(&g), 1);
    sched_gate_leave(&g.gate, &g.seats[1]);
    assert_int_equal(admit(&g), 2);
}

static void one_that_reserves_and_leaves_keeps_nothing(void **state)
{
    struct gate g;

    (void)state;
    make(&g, 1);
    reserve(&g, 0, 1);
    assert_int_equal(admit(&g), 0);
    sched_gate_leave(&g.gate, &g.seats[0]);
    assert_null(g.gate.reserved);
    assert_true(enter(&g, 1, 0) && take(&g, 1));
    reserve(&g, 0, 1);
    sched_gate_leave(&g.gate, &g.seats[0]);
    expect_counts(&g, 1, 0, 0);
}

static void one_that_reserves_is_bound_by_its_owners_share(void **state)
{
    struct gate g;

    (void)state;
    make_with_owners(&g, 0, 1);
    assert_true(enter(&g, 0, 1) && take(&g, 0));
    assert_false(enter(&g, 1, 1));
    reserve(&g, 2, 1);
    assert_int_equal(admit(&g), -1);
    release(&g, 0);
    assert_int_equal(admit(&g), 2);
    assert_int_equal(admit(&g), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_cap_all_pass_and_are_counted),
        cmocka_unit_test(as_many_as_the_cap_hold_a_seat_and_the_rest_wait),
        cmocka_unit_test(a_holder_passes_again_however_many_wait),
        cmocka_unit_test(a_free_seat_admits_the_highest_priority_and_of_these_the_first),
        cmocka_unit_test(no_more_are_admitted_than_seats_are_free),
        cmocka_unit_test(who_comes_later_does_not_overtake_who_waits),
        cmocka_unit_test(who_was_overtaken_waits_where_it_stood),
        cmocka_unit_test(an_admitted_one_that_leaves_makes_room_for_the_next),
        cmocka_unit_test(leaving_and_releasing_what_one_has_not_changes_nothing),
        cmocka_unit_test(a_cap_that_rises_admits_and_one_that_falls_takes_nothing_away),
        cmocka_unit_test(what_is_held_already_counts_over_the_cap),
        cmocka_unit_test(a_new_priority_counts_at_once),
        cmocka_unit_test(an_owner_holds_as_many_as_it_may_and_its_next_is_kept_back),
        cmocka_unit_test(one_that_is_kept_back_joins_the_queue_when_its_owner_has_room),
        cmocka_unit_test(one_that_joins_late_stands_behind_those_that_waited_all_the_time),
        cmocka_unit_test(one_whose_owner_has_enough_by_its_turn_is_stepped_over),
        cmocka_unit_test(one_that_passed_and_finds_its_owner_full_is_kept_back),
        cmocka_unit_test(one_that_is_admitted_and_leaves_makes_room_for_its_owners_next),
        cmocka_unit_test(an_owners_cap_that_changes_counts_for_those_that_wait),
        cmocka_unit_test(an_owner_with_many_that_come_and_go_leaves_the_others_their_share),
        cmocka_unit_test(one_that_reserves_goes_before_all_of_its_priority),
        cmocka_unit_test(what_is_kept_nobody_of_its_priority_takes),
        cmocka_unit_test(a_higher_priority_takes_what_is_kept_and_it_is_kept_again),
        cmocka_unit_test(a_higher_priority_is_admitted_past_one_that_is_kept),
        cmocka_unit_test(one_that_reserves_no_more_stands_by_its_arrival),
        cmocka_unit_test(one_that_reserves_and_leaves_keeps_nothing),
        cmocka_unit_test(one_that_reserves_is_bound_by_its_owners_share),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
