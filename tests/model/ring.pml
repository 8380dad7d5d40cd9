/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two rings of a slot between an honest guest and the worker, as
 * include/vgpu/window.h has them: does each operation run exactly once, and does
 * nobody sleep for ever?
 *
 *   guest ── stores ─▶ [ store buffer ] ─▶ memory ◀─ [ store buffer ] ◀─ stores ── host
 *   guest ◀───────────── loads ─────────── memory ─────────── loads ─────────────▶ host
 *
 * Memory is x86-TSO: a processor's stores reach memory in order and late, by a
 * process of their own (drain); loads look at memory at once.  A full fence waits
 * until the processor's buffer is empty.  No processor loads a word that it stores
 * itself, so there is nothing to forward.
 *
 * A lost wake-up is a state in which nobody can go on and the guest has not ended: an
 * invalid end state, which spin looks for by itself.  The rest are assertions.
 *
 * Left out on purpose, each as a define that has to be found out:
 *   NO_FENCE_GUEST_PUBLISH, NO_FENCE_GUEST_SLEEP, NO_FENCE_HOST_PUBLISH,
 *   NO_FENCE_HOST_SLEEP   one of the four fences
 *   TAIL_BEFORE_ENTRY    the tail stored before its entries
 *   ASK_FOR_HEAD          with a full completion ring the host asks for a doorbell at
 *                         its head, which lies behind what was published already
 */

#ifndef ENTRIES
#define ENTRIES 2 /* a power of two */
#endif
#ifndef OPERATIONS
#define OPERATIONS 5 /* more than indices have values: they wrap */
#endif
#ifndef QUIET_RUN_MAX
#define QUIET_RUN_MAX (ENTRIES - 1)
#endif
#define WRAP (2 * ENTRIES) /* how many values an index has */
#define MINUS(a, b) (((a) + 2 * WRAP - (b)) % WRAP)
#define PLUS(a, b) (((a) + (b)) % WRAP)

/* vgpu_event_passed() */
#define PASSED(event, new_tail, old_tail)                                                          \
    (MINUS(MINUS(new_tail, event), 1) < MINUS(new_tail, old_tail))

/* Words of memory: the indices, then the entries of both rings. */
#define SQ_TAIL 0
#define CQ_HEAD 1
#define CQ_EVENT 2
#define CQ_TAIL 3
#define SQ_HEAD 4
#define SQ_EVENT 5
#define SQ(index) (6 + (index) % ENTRIES)
#define CQ(index) (6 + ENTRIES + (index) % ENTRIES)
byte memory[6 + 2 * ENTRIES];

/* An entry of either ring: the operation's number from 1, and whether it is quiet. */
#define QUIET 64
#define NUMBER(entry) ((entry) % QUIET)

bool bell, interrupt; /* the two eventfds: something was added since the last look */
byte runs[OPERATIONS + 1];

chan guest_stores = [ENTRIES + 3] of {byte, byte};
chan host_stores = [ENTRIES + 3] of {byte, byte};

#define FENCE(stores) (empty(stores))

active proctype guest_drain()
{
    byte word, value;
end:
    do
    :: atomic { guest_stores ? word, value -> memory[word] = value; word = 0; value = 0 }
    od
}

active proctype host_drain()
{
    byte word, value;
end:
    do
    :: atomic { host_stores ? word, value -> memory[word] = value; word = 0; value = 0 }
    od
}

/* --- the guest ---------------------------------------------------------------------- */

active proctype guest()
{
    byte written, published;    /* sq_tail: entries written, and told */
    byte head, seen;            /* cq_head, and the cq_tail that was read */
    byte submitted, sent;       /* operations; `sent` have no answer taken yet */
    byte free_from;             /* sq_head as it was read */
    byte event, entry, answered;
    byte quiet_run; /* quiet ones since the last that was not */
    bool quiet;

#define MAY_BE_QUIET (submitted + 1 < OPERATIONS && quiet_run < QUIET_RUN_MAX)
    do
    :: answered == OPERATIONS -> break

    /* Submit one: not more than the ring has room for, not more answers on their way
     * than the completion ring holds.  The last is a synchronisation, never quiet. */
    :: submitted < OPERATIONS && MINUS(written, free_from) < ENTRIES &&
       (sent < ENTRIES || MAY_BE_QUIET) ->
        if
        :: atomic { sent < ENTRIES -> quiet = false; quiet_run = 0; sent++ }
        :: atomic { MAY_BE_QUIET -> quiet = true; quiet_run++ }
        fi;
        atomic {
            submitted++;
#ifdef TAIL_BEFORE_ENTRY
            guest_stores ! SQ_TAIL, PLUS(written, 1);
#endif
            guest_stores ! SQ(written), submitted + (quiet -> QUIET : 0);
            written = PLUS(written, 1);
        }

    /* Wait for room by looking, not by sleeping. */
    :: atomic {
        MINUS(written, free_from) >= ENTRIES && memory[SQ_HEAD] != free_from ->
        free_from = memory[SQ_HEAD];
        assert(MINUS(written, free_from) <= ENTRIES)
    }

    /* Publish; several at once are a batch. */
    :: published != written ->
publish:
        guest_stores ! SQ_TAIL, written;
#ifndef NO_FENCE_GUEST_PUBLISH
        FENCE(guest_stores);
#endif
        atomic {
            if
            :: PASSED(memory[SQ_EVENT], written, published) -> bell = true
            :: else
            fi;
            published = written
        }

    /* Take what is there. */
    :: atomic {
        memory[CQ_TAIL] != head ->
        seen = memory[CQ_TAIL];
        assert(MINUS(seen, head) <= ENTRIES)
    };
        do
        :: head == seen -> break
        :: else ->
            atomic {
                entry = memory[CQ(head)];
                assert(NUMBER(entry) > answered); /* in order, each once */
                answered = NUMBER(entry);
                entry = 0;
                head = PLUS(head, 1);
                sent--
            }
        od;
        guest_stores ! CQ_HEAD, head

    /* Sleep until the next answer, or until the last of all. */
    :: sent > 0 && published == written ->
        if
        :: event = head
        :: event = PLUS(head, sent - 1)
        fi;
        guest_stores ! CQ_EVENT, event;
#ifndef NO_FENCE_GUEST_SLEEP
        FENCE(guest_stores);
#endif
        if
        :: memory[CQ_TAIL] != head -> skip
        :: else -> atomic { interrupt -> interrupt = false }
        fi
    od;
    /* The last one's answer says that all before it have run. */
    atomic {
        byte i = 1;
        do
        :: i > OPERATIONS -> break
        :: else -> assert(runs[i] == 1); i++
        od
    }
}

/* --- the host: src/exec/ring.c ---------------------------------------------------------- */

active proctype host()
{
    byte head, tail, published; /* sq_head; cq_tail: written, and told */
    byte seen_tail, seen_head, depth, batch, asked, entry;
    byte fetched[ENTRIES];

look:
    seen_tail = memory[SQ_TAIL];
    atomic {
        seen_head = memory[CQ_HEAD];
        assert(MINUS(seen_tail, head) <= ENTRIES && MINUS(tail, seen_head) <= ENTRIES);
        depth = MINUS(seen_tail, head);
        depth = (depth < ENTRIES - MINUS(tail, seen_head) -> depth
                                                          : ENTRIES - MINUS(tail, seen_head))
    };
    if
    :: depth == 0 -> goto arm
    :: else
    fi;

    /* Fetch some. */
    batch = 0;
    do
    :: batch < depth -> atomic { fetched[batch] = memory[SQ(head + batch)]; batch++ }
    :: batch > 0 -> break
    od;
    atomic {
        head = PLUS(head, batch);
        host_stores ! SQ_HEAD, head;
        depth = 0
    };
    do
    :: depth == batch -> break
    :: depth < batch ->
        atomic {
            entry = fetched[depth];
            fetched[depth] = 0;
            runs[NUMBER(entry)]++;
            assert(runs[NUMBER(entry)] == 1);
            depth++;
            if
            :: entry >= QUIET
            :: else -> host_stores ! CQ(tail), entry; tail = PLUS(tail, 1)
            fi
        }
    :: depth > 0 && depth < batch && tail != published -> goto publish /* early, for latency */
    od;
publish:
    if
    :: tail == published -> goto next
    :: else
    fi;
    host_stores ! CQ_TAIL, tail;
#ifndef NO_FENCE_HOST_PUBLISH
    FENCE(host_stores);
#endif
    atomic {
        if
        :: PASSED(memory[CQ_EVENT], tail, published) -> interrupt = true
        :: else
        fi;
        published = tail
    };
next:
    if
    :: depth < batch -> /* the rest of the batch */
        do
        :: depth == batch -> break
        :: depth < batch ->
            atomic {
                entry = fetched[depth];
                fetched[depth] = 0;
                runs[NUMBER(entry)]++;
                assert(runs[NUMBER(entry)] == 1);
                depth++;
                if
                :: entry >= QUIET
                :: else -> host_stores ! CQ(tail), entry; tail = PLUS(tail, 1)
                fi
            }
        od;
        goto publish
    :: else -> goto look
    fi;

    /* Ask for a doorbell at the first descriptor that was not seen, and look once
     * more.  With a full completion ring that is not the first that was not taken. */
arm:
#ifdef ASK_FOR_HEAD
    asked = head;
#else
    asked = seen_tail;
#endif
    host_stores ! SQ_EVENT, asked;
#ifndef NO_FENCE_HOST_SLEEP
    FENCE(host_stores);
#endif
    seen_tail = memory[SQ_TAIL];
    atomic {
        seen_head = memory[CQ_HEAD];
        if
#ifndef ASK_FOR_HEAD
        :: seen_tail != asked -> goto look
#endif
        :: MINUS(seen_tail, head) > 0 && MINUS(tail, seen_head) < ENTRIES -> goto look
        :: else
        fi;
        batch = 0; depth = 0; asked = 0; entry = 0
    };
end:
    atomic { bell -> bell = false };
    goto look
}
