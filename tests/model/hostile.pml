/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's end of the rings (src/exec/ring.c) against a guest that writes
 * anything to any word of its window at any time: each load of the guest's is any
 * value at all.
 *
 * To be shown: no index outside of a ring, in the slot or in the worker's own tables;
 * never more than a ring's entries taken at a look; what was checked of a descriptor
 * is what is used; completions that are untaken, as the worker counts them, are never
 * more than fit; and each look ends, in another one, in sleep or in FAULTED (every
 * cycle passes the progress label: `pan -l` finds none that does not).
 *
 * READ_TWICE, TRUST_CQ_HEAD and LOOK_FOR_EVER are mistakes that have to be found out.
 */

#ifndef ENTRIES
#define ENTRIES 4 /* a power of two */
#endif
#define WRAP (4 * ENTRIES)
#define MINUS(a, b) (((a) + 2 * WRAP - (b)) % WRAP)
#define PLUS(a, b) (((a) + (b)) % WRAP)

/* A descriptor is an offset: good ones are below SLOT. */
#define SLOT 3

inline load(word, most)
{
    word = 0;
    do
    :: word < (most) -> word++
    :: break
    od
}

active proctype host()
{
    byte head, tail; /* sq_head, cq_tail: its own, never read from the slot */
    byte seen_tail, seen_head, untaken, waiting, depth, i;
    byte room; /* as C's unsigned: it wraps */

progress_look:
    atomic {
        load(seen_tail, WRAP - 1);
        load(seen_head, WRAP - 1);
        waiting = MINUS(seen_tail, head);
        untaken = MINUS(tail, seen_head);
        seen_tail = 0;
        seen_head = 0;
        if
        :: waiting > ENTRIES -> goto fault
#ifndef TRUST_CQ_HEAD
        :: waiting <= ENTRIES && untaken > ENTRIES -> goto fault
        :: waiting <= ENTRIES && untaken <= ENTRIES
#else
        :: waiting <= ENTRIES
#endif
        fi;
        room = MINUS(ENTRIES, untaken);
        depth = (waiting < room -> waiting : room);
        assert(depth <= ENTRIES);
        assert(untaken + depth <= ENTRIES || depth == 0);
        untaken = 0;
        waiting = 0;
        room = 0
    };
    if
    :: depth == 0 -> goto arm
    :: else
    fi;

    do
    :: i == depth -> break
    :: i < depth ->
        atomic {
            assert(PLUS(head, i) % ENTRIES < ENTRIES); /* its place, here and in the table */
            load(seen_head, SLOT + 1);
            if
            :: seen_head < SLOT ->
#ifdef READ_TWICE
                load(seen_head, SLOT + 1);
#endif
                assert(seen_head < SLOT) /* it is used */
            :: else -> skip /* answered with an error */
            fi;
            seen_head = 0;
            tail = PLUS(tail, 1);
            i++;
            assert(i <= ENTRIES)
        }
    od;
    atomic { head = PLUS(head, depth); i = 0; depth = 0; goto progress_look };

    /* sq_tail goes to sq_event, where it only informs; then the look once more. */
arm:
    atomic {
        load(seen_tail, WRAP - 1);
        load(seen_head, WRAP - 1);
        if
        :: seen_tail != seen_head -> seen_tail = 0; seen_head = 0;
#ifdef LOOK_FOR_EVER
            goto arm /* without a look at the mediator's messages in between */
#else
            goto progress_look
#endif
        :: else -> seen_tail = 0; seen_head = 0
        fi
    };
end_sleep:
    if
    :: goto progress_look /* it rang */
    :: false              /* it never does */
    fi;

fault:
    waiting = 0;
    untaken = 0;
end_fault:
    false
}
