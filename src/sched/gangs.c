/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose turn it is to reserve, of those that need seats of several gates (see sched.h).
 *
 * A round is for those that stood in line when it began, so that those whose turn brought
 * nothing have another one after a time that does not depend on who comes meanwhile.  Who
 * comes meanwhile has its turn among the others of the round all the same.
 */
#include "sched/sched.h"

void sched_gangs_init(struct sched_gangs *gangs)
{
    *gangs = (struct sched_gangs){.round = 1};
    TAILQ_INIT(&gangs->line);
}

void sched_gangs_join(struct sched_gangs *gangs, struct sched_gang *gang, unsigned priority)
{
    gang->priority = priority;
    if (gang->number != 0)
        return;
    gang->number = ++gangs->last_number;
    gang->tried_round = 0;
    TAILQ_INSERT_TAIL(&gangs->line, gang, link);
}

void sched_gangs_leave(struct sched_gangs *gangs, struct sched_gang *gang)
{
    if (gang->number == 0)
        return;
    TAILQ_REMOVE(&gangs->line, gang, link);
    gang->number = 0;
    if (gangs->turn == gang)
        gangs->turn = NULL;
}

void sched_gangs_progress(struct sched_gangs *gangs, const struct sched_gang *gang, uint64_t now_ns)
{
    if (gangs->turn == gang)
        gangs->progress_ns = now_ns;
}

static bool is_to_have_a_turn(const struct sched_gangs *gangs, const struct sched_gang *gang)
{
    return gang->able && gang->tried_round != gangs->round;
}

/* The first of the highest priority; NULL: all have had theirs. */
static struct sched_gang *next_of_round(const struct sched_gangs *gangs)
{
    struct sched_gang *gang, *next = NULL;

    TAILQ_FOREACH (gang, &gangs->line, link) {
        if (is_to_have_a_turn(gangs, gang) && (!next || gang->priority > next->priority))
            next = gang;
    }
    return next;
}

static bool round_goes_on(const struct sched_gangs *gangs)
{
    const struct sched_gang *gang;

    TAILQ_FOREACH (gang, &gangs->line, link) {
        if (gang->number <= gangs->round_last_number && is_to_have_a_turn(gangs, gang))
            return true;
    }
    return false;
}

/* It brought nothing for too long. */
static void end_turn(struct sched_gangs *gangs, uint64_t now_ns)
{
    gangs->turn->tried_round = gangs->round;
    gangs->turn = NULL;
    gangs->pause_ends_ns = now_ns + SCHED_GANG_TURN_NS;
}

struct sched_gang *sched_gangs_turn(struct sched_gangs *gangs, uint64_t now_ns)
{
    struct sched_gang *next;

    if (gangs->turn && now_ns >= gangs->progress_ns + SCHED_GANG_TURN_NS)
        end_turn(gangs, now_ns);
    if (!round_goes_on(gangs) && now_ns >= gangs->pause_ends_ns) {
        gangs->round++;
        gangs->round_last_number = gangs->last_number;
    }
    next = next_of_round(gangs);
    if (!next || (gangs->turn && next->priority <= gangs->turn->priority))
        return gangs->turn;
    gangs->turn = next;
    gangs->progress_ns = now_ns;
    return next;
}

uint64_t sched_gangs_deadline_ns(const struct sched_gangs *gangs)
{
    if (TAILQ_EMPTY(&gangs->line))
        return SCHED_NEVER_NS;
    return gangs->turn ? gangs->progress_ns + SCHED_GANG_TURN_NS : gangs->pause_ends_ns;
}
