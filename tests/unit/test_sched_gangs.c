/* SPDX-License-Identifier: Apache-2.0 */
/* Whose turn it is to reserve: the rules of gangs.c in sched.h. */
#include "unit.h"

#include "sched/sched.h"

#define GANGS 4
#define TURN SCHED_GANG_TURN_NS

struct line {
    struct sched_gangs gangs;
    struct sched_gang gang[GANGS];
};

static void make(struct line *line)
{
    *line = (struct line){.gang = {{.able = false}}};
    sched_gangs_init(&line->gangs);
}

static void join(struct line *line, unsigned gang, unsigned priority)
{
    line->gang[gang].able = true;
    sched_gangs_join(&line->gangs, &line->gang[gang], priority);
}

static void leave(struct line *line, unsigned gang)
{
    sched_gangs_leave(&line->gangs, &line->gang[gang]);
}

/* Whose it is, -1: nobody's. */
static int turn(struct line *line, uint64_t now_ns)
{
    const struct sched_gang *gang = sched_gangs_turn(&line->gangs, now_ns);

    return gang ? (int)(gang - line->gang) : -1;
}

static void it_is_nobodys_turn_where_nobody_stands_in_line(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    assert_int_equal(turn(&line, 1), -1);
    assert_true(sched_gangs_deadline_ns(&line.gangs) == SCHED_NEVER_NS);
    leave(&line, 0);
}

static void the_first_of_the_highest_priority_has_its_turn(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 0);
    join(&line, 1, 1);
    join(&line, 2, 1);
    assert_int_equal(turn(&line, 1), 1);
    leave(&line, 1);
    assert_int_equal(turn(&line, 2), 2);
    leave(&line, 2);
    assert_int_equal(turn(&line, 3), 0);
}

static void one_that_joins_twice_keeps_its_place(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 1);
    join(&line, 1, 1);
    join(&line, 0, 1);
    assert_int_equal(turn(&line, 1), 0);
}

static void one_that_is_not_able_is_passed_over(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 2);
    join(&line, 1, 1);
    line.gang[0].able = false;
    assert_int_equal(turn(&line, 1), 1);
    line.gang[0].able = true;
    assert_int_equal(turn(&line, 2), 0);
}

static void a_higher_priority_that_comes_has_the_turn_and_an_equal_one_has_not(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 1);
    assert_int_equal(turn(&line, 1), 0);
    join(&line, 1, 1);
    assert_int_equal(turn(&line, 2), 0);
    join(&line, 2, 2);
    assert_int_equal(turn(&line, 3), 2);
    leave(&line, 2);
    assert_int_equal(turn(&line, 4), 0); /* it has not had its turn to the end */
}

static void a_turn_without_progress_ends_and_is_the_next_ones(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 2);
    join(&line, 1, 1);
    join(&line, 2, 1);
    assert_int_equal(turn(&line, 5), 0);
    assert_true(sched_gangs_deadline_ns(&line.gangs) == 5 + TURN);
    assert_int_equal(turn(&line, 4 + TURN), 0);
    assert_int_equal(turn(&line, 5 + TURN), 1);
    assert_int_equal(turn(&line, 5 + 2 * TURN), 2);
}

static void progress_makes_a_turn_last(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 1);
    join(&line, 1, 1);
    assert_int_equal(turn(&line, 0), 0);
    sched_gangs_progress(&line.gangs, &line.gang[1], TURN - 1);
    sched_gangs_progress(&line.gangs, &line.gang[0], 3);
    assert_int_equal(turn(&line, 2 + TURN), 0);
    assert_int_equal(turn(&line, 3 + TURN), 1);
}

static void when_all_had_their_turn_nobody_has_one_for_as_long(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 1);
    assert_int_equal(turn(&line, 0), 0);
    assert_int_equal(turn(&line, TURN), -1);
    assert_true(sched_gangs_deadline_ns(&line.gangs) == 2 * TURN);
    assert_int_equal(turn(&line, 2 * TURN - 1), -1);
    assert_int_equal(turn(&line, 2 * TURN), 0);
}

static void one_that_comes_in_the_pause_does_not_wait_for_its_end(void **state)
{
    struct line line;

    (void)state;
    make(&line);
    join(&line, 0, 1);
    assert_int_equal(turn(&line, 0), 0);
    assert_int_equal(turn(&line, TURN), -1);
    join(&line, 1, 0);
    assert_int_equal(turn(&line, TURN + 1), 1);
}

static void those_that_keep_coming_do_not_keep_one_from_its_next_turn(void **state)
{
    struct line line;
    uint64_t now_ns = 0;
    unsigned turns = 0;

    (void)state;
    make(&line);
    join(&line, 0, 1);
    join(&line, 1, 0);
    for (unsigned i = 0; i < 40; i++) {
        unsigned newcomer = 2 + i % 2;

        leave(&line, newcomer);
        join(&line, newcomer, 0);
        turns += turn(&line, now_ns) == 0;
        now_ns += TURN;
    }
    assert_in_range(turns, 9, 20);
}

static void a_lower_priority_has_its_turn_whatever_the_higher_ones_wait_for(void **state)
{
    struct line line;
    uint64_t now_ns = 0;
    unsigned turns[GANGS] = {0}, pauses = 0;

    (void)state;
    make(&line);
    for (unsigned i = 0; i < GANGS; i++)
        join(&line, i, i % 3);
    for (unsigned i = 0; i < 50; i++) {
        int gang = turn(&line, now_ns);

        if (gang < 0)
            pauses++;
        else
            turns[gang]++;
        now_ns += TURN;
    }
    for (unsigned i = 0; i < GANGS; i++)
        assert_int_equal(turns[i], 10);
    assert_int_equal(pauses, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_nobodys_turn_where_nobody_stands_in_line),
        cmocka_unit_test(the_first_of_the_highest_priority_has_its_turn),
        cmocka_unit_test(one_that_joins_twice_keeps_its_place),
        cmocka_unit_test(one_that_is_not_able_is_passed_over),
        cmocka_unit_test(a_higher_priority_that_comes_has_the_turn_and_an_equal_one_has_not),
        cmocka_unit_test(a_turn_without_progress_ends_and_is_the_next_ones),
        cmocka_unit_test(progress_makes_a_turn_last),
        cmocka_unit_test(when_all_had_their_turn_nobody_has_one_for_as_long),
        cmocka_unit_test(one_that_comes_in_the_pause_does_not_wait_for_its_end),
        cmocka_unit_test(those_that_keep_coming_do_not_keep_one_from_its_next_turn),
        cmocka_unit_test(a_lower_priority_has_its_turn_whatever_the_higher_ones_wait_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
