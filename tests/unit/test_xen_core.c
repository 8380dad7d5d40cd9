/* SPDX-License-Identifier: Apache-2.0 */
/* A broker's core between two slots in memory: the test plays the guest and the worker. */
#include "unit.h"

#include "xen/core.h"

#define GUEST_BYTES (VGPU_SLOT_MIN_BYTES + 0x10000u)
#define OWN_BYTES (2u << 20)
#define HEAP VGPU_SLOT_HEAP
#define MASK (VGPU_RING_ENTRIES - 1)

struct slot {
    uint8_t *bytes;
    struct vgpu_slot_guest *guest;
    struct vgpu_slot_host *host;
    struct vgpu_descriptor *descriptors;
    struct vgpu_completion *completions;
};

static struct {
    struct core core;
    struct slot guest, own;
    struct core_work work;
} rig;

static void slot_open(struct slot *slot, size_t bytes)
{
    slot->bytes = aligned_alloc(VGPU_PAGE_BYTES, bytes);
    assert_non_null(slot->bytes);
    memset(slot->bytes, 0, bytes);
    slot->guest = (struct vgpu_slot_guest *)(void *)(slot->bytes + VGPU_SLOT_GUEST);
    slot->host = (struct vgpu_slot_host *)(void *)(slot->bytes + VGPU_SLOT_HOST);
    slot->descriptors = (struct vgpu_descriptor *)(void *)(slot->bytes + VGPU_SLOT_SQ);
    slot->completions = (struct vgpu_completion *)(void *)(slot->bytes + VGPU_SLOT_CQ);
}

static int open_at(uint32_t first_index)
{
    slot_open(&rig.guest, GUEST_BYTES);
    slot_open(&rig.own, OWN_BYTES);
    rig.own.host->sq_head = rig.own.host->sq_event = rig.own.host->cq_tail = first_index;
    rig.own.host->state = VGPU_SESSION_READY;
    rig.own.host->generation = 1;
    core_open(&rig.core, rig.guest.bytes, GUEST_BYTES, rig.own.bytes, OWN_BYTES);
    return 0;
}

static int open_rig(void **state)
{
    (void)state;
    return open_at(0);
}

static int open_near_the_counters_end(void **state)
{
    (void)state;
    return open_at(UINT32_MAX - 700);
}

static int close_rig(void **state)
{
    (void)state;
    free(rig.guest.bytes);
    free(rig.own.bytes);
    memset(&rig, 0, sizeof(rig));
    return 0;
}

static void submit(const struct vgpu_descriptor *descriptor)
{
    rig.guest.descriptors[rig.guest.guest->sq_tail & MASK] = *descriptor;
    rig.guest.guest->sq_tail++;
}

static void round_once(void)
{
    if (core_round(&rig.core, &rig.work) < 0)
        fail_msg("core_round: %s", rig.core.reason);
}

/* The worker takes one, and answers it. */
static struct vgpu_descriptor worker_takes(void)
{
    assert_int_not_equal(rig.own.guest->sq_tail, rig.own.host->sq_head);
    return rig.own.descriptors[rig.own.host->sq_head++ & MASK];
}

static void worker_answers(uint32_t sequence, uint64_t cookie, uint32_t status, uint64_t result)
{
    rig.own.completions[rig.own.host->cq_tail & MASK] = (struct vgpu_completion){
        .cookie = cookie, .sequence = sequence, .status = status, .result = result};
    rig.own.host->cq_tail++;
}

static struct vgpu_descriptor copy_of(uint16_t opcode, uint64_t offset, uint64_t bytes)
{
    struct vgpu_descriptor descriptor = {.opcode = opcode, .copy.bytes = bytes};

    if (opcode == VGPU_OP_COPY_IN)
        descriptor.copy.source = offset;
    else
        descriptor.copy.target = offset;
    return descriptor;
}

/* --- the way there and back ------------------------------------------------------------- */

static void pings_pass_the_rings_end_and_the_counters_end(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 3000; i++) {
        const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING, .cookie = i};
        uint32_t sequence = rig.own.host->sq_head;

        submit(&ping);
        round_once();
        assert_int_equal(worker_takes().cookie, i);
        worker_answers(sequence, i, VGPU_OK, 0);
        round_once();
        assert_int_equal(rig.guest.completions[rig.guest.guest->cq_head & MASK].cookie, i);
        assert_int_equal(rig.guest.host->sq_head, rig.guest.guest->sq_tail);
        rig.guest.guest->cq_head++;
        assert_int_equal(rig.guest.guest->cq_head, rig.guest.host->cq_tail);
    }
}

static void data_goes_in_with_its_descriptor_and_nothing_else_does(void **state)
{
    struct vgpu_descriptor copy = copy_of(VGPU_OP_COPY_IN, HEAP + 100, 50);

    (void)state;
    memset(rig.guest.bytes + HEAP, 'x', 1000);
    submit(&copy);
    round_once();
    assert_memory_equal(rig.own.bytes + HEAP + 100, rig.guest.bytes + HEAP, 50);
    assert_int_equal(rig.own.bytes[HEAP + 99], 0);
    assert_int_equal(rig.own.bytes[HEAP + 150], 0);
}

static void what_the_guest_changes_after_the_round_changes_nothing(void **state)
{
    struct vgpu_descriptor copy = copy_of(VGPU_OP_COPY_IN, HEAP, 8);

    (void)state;
    memset(rig.guest.bytes + HEAP, 'x', 8);
    submit(&copy);
    round_once();
    memset(rig.guest.bytes + HEAP, 'y', 8);
    rig.guest.descriptors[0].copy.bytes = 4096;
    round_once();
    assert_memory_equal(rig.own.bytes + HEAP, "xxxxxxxx", 8);
    assert_int_equal(worker_takes().copy.bytes, 8);
}

static void data_comes_back_with_its_completion_and_not_before(void **state)
{
    struct vgpu_descriptor copy = copy_of(VGPU_OP_COPY_OUT, HEAP + 64, 32);

    (void)state;
    submit(&copy);
    round_once();
    worker_takes();
    memset(rig.own.bytes + HEAP, 'd', 200);
    round_once();
    assert_int_equal(rig.guest.bytes[HEAP + 64], 0);
    worker_answers(0, 0, VGPU_OK, 0);
    round_once();
    assert_memory_equal(rig.guest.bytes + HEAP + 64, rig.own.bytes + HEAP, 32);
    assert_int_equal(rig.guest.bytes[HEAP + 63], 0);
    assert_int_equal(rig.guest.bytes[HEAP + 96], 0);
}

static void a_failed_copy_brings_no_data(void **state)
{
    struct vgpu_descriptor copy = copy_of(VGPU_OP_COPY_OUT, HEAP, 32);

    (void)state;
    submit(&copy);
    round_once();
    worker_takes();
    memset(rig.own.bytes + HEAP, 'd', 32);
    worker_answers(0, 0, VGPU_BAD_ADDRESS, 0);
    round_once();
    assert_int_equal(rig.guest.bytes[HEAP], 0);
    assert_int_equal(rig.guest.completions[0].status, VGPU_BAD_ADDRESS);
}

static void a_texts_answer_has_the_bytes_that_the_worker_says(void **state)
{
    struct vgpu_descriptor text = {.opcode = VGPU_OP_TEXT};

    (void)state;
    text.text.command_offset = VGPU_SLOT_ARENA;
    text.text.command_bytes = 4;
    text.text.answer_offset = VGPU_SLOT_ARENA + 1024;
    text.text.answer_bytes = 100;
    memcpy(rig.guest.bytes + VGPU_SLOT_ARENA, "PING", 4);
    submit(&text);
    round_once();
    worker_takes();
    assert_memory_equal(rig.own.bytes + VGPU_SLOT_ARENA, "PING", 4);
    memset(rig.own.bytes + VGPU_SLOT_ARENA + 1024, 'a', 200);
    worker_answers(0, 0, VGPU_COMMAND_FAILED, 7);
    round_once();
    assert_memory_equal(rig.guest.bytes + VGPU_SLOT_ARENA + 1024, "aaaaaaa\0", 8);
}

static void an_answer_longer_than_its_room_is_cut(void **state)
{
    struct vgpu_descriptor text = {.opcode = VGPU_OP_TEXT};

    (void)state;
    text.text.command_offset = text.text.answer_offset = VGPU_SLOT_ARENA;
    text.text.command_bytes = 1;
    text.text.answer_bytes = 10;
    submit(&text);
    round_once();
    worker_takes();
    memset(rig.own.bytes + VGPU_SLOT_ARENA, 'a', 200);
    worker_answers(0, 0, VGPU_OK, UINT64_MAX);
    round_once();
    assert_memory_equal(rig.guest.bytes + VGPU_SLOT_ARENA, "aaaaaaaaaa\0", 11);
}

static void names_parameters_and_images_go_in(void **state)
{
    struct vgpu_descriptor launch = {.opcode = VGPU_OP_LAUNCH}, load = {.opcode = 48};

    (void)state;
    launch.launch.name_offset = VGPU_SLOT_ARENA;
    launch.launch.name_bytes = 4;
    launch.launch.parameters_offset = VGPU_SLOT_ARENA + 64;
    launch.launch.parameters_bytes = 8;
    for (int i = 0; i < 3; i++)
        launch.launch.grid[i] = launch.launch.block[i] = 1;
    load.module.handle = 1;
    load.module.image_offset = HEAP;
    load.module.image_bytes = 16;
    memcpy(rig.guest.bytes + VGPU_SLOT_ARENA, "fill", 4);
    memcpy(rig.guest.bytes + VGPU_SLOT_ARENA + 64, "12345678", 8);
    memcpy(rig.guest.bytes + HEAP, "0123456789abcdef", 16);
    submit(&launch);
    submit(&load);
    round_once();
    assert_memory_equal(rig.own.bytes + VGPU_SLOT_ARENA, "fill", 4);
    assert_memory_equal(rig.own.bytes + VGPU_SLOT_ARENA + 64, "12345678", 8);
    assert_memory_equal(rig.own.bytes + HEAP, "0123456789abcdef", 16);
}

static void the_sessions_state_and_generation_are_shown(void **state)
{
    (void)state;
    rig.own.host->state = VGPU_SESSION_LOST;
    rig.own.host->generation = 7;
    rig.own.host->features = 3;
    rig.own.host->device_base = 1ull << 40;
    round_once();
    assert_int_equal(rig.guest.host->state, VGPU_SESSION_LOST);
    assert_int_equal(rig.guest.host->generation, 7);
    assert_int_equal(rig.guest.host->features, 3);
    assert_int_equal(rig.guest.host->device_base, 1ull << 40);
}

/* --- operations that use what others have not written yet ----------------------------------- */

static void what_an_operation_in_flight_writes_is_not_taken_from_the_guest(void **state)
{
    struct vgpu_descriptor out = copy_of(VGPU_OP_COPY_OUT, HEAP + 8, 8);
    struct vgpu_descriptor in = copy_of(VGPU_OP_COPY_IN, HEAP, 24);

    (void)state;
    memset(rig.guest.bytes + HEAP, 'g', 24);
    submit(&out);
    round_once();
    worker_takes();
    memset(rig.own.bytes + HEAP + 8, 'w', 8);
    submit(&in);
    round_once();
    assert_memory_equal(rig.own.bytes + HEAP, "ggggggggwwwwwwwwgggggggg", 24);
}

static void after_its_completion_the_place_is_the_guests_again(void **state)
{
    struct vgpu_descriptor out = copy_of(VGPU_OP_COPY_OUT, HEAP, 8);
    struct vgpu_descriptor in = copy_of(VGPU_OP_COPY_IN, HEAP, 8);

    (void)state;
    submit(&out);
    round_once();
    worker_takes();
    worker_answers(0, 0, VGPU_OK, 0);
    round_once();
    memset(rig.guest.bytes + HEAP, 'g', 8);
    submit(&in);
    round_once();
    assert_memory_equal(rig.own.bytes + HEAP, "gggggggg", 8);
}

/* --- quiet copies ---------------------------------------------------------------------------- */

static struct vgpu_descriptor quiet_copy(uint32_t stream)
{
    struct vgpu_descriptor copy = copy_of(VGPU_OP_COPY_OUT, HEAP, 8);

    copy.flags = VGPU_FLAG_QUIET;
    copy.stream = stream;
    return copy;
}

static void a_quiet_copy_brings_its_data_and_no_completion(void **state)
{
    struct vgpu_descriptor copy = quiet_copy(0);

    (void)state;
    submit(&copy);
    round_once();
    assert_int_equal(worker_takes().flags, 0);
    memset(rig.own.bytes + HEAP, 'd', 8);
    worker_answers(0, 0, VGPU_OK, 0);
    round_once();
    assert_memory_equal(rig.guest.bytes + HEAP, "dddddddd", 8);
    assert_int_equal(rig.guest.host->cq_tail, 0);
    assert_int_equal(rig.own.guest->cq_head, 1);
}

static void a_quiet_copys_error_is_its_streams_next_synchronisations(void **state)
{
    struct vgpu_descriptor copy = quiet_copy(5);
    struct vgpu_descriptor sync = {.opcode = VGPU_OP_STREAM_SYNC};

    (void)state;
    submit(&copy);
    sync.object.handle = 6;
    submit(&sync);
    sync.object.handle = 5;
    submit(&sync);
    submit(&sync);
    round_once();
    for (uint32_t i = 0; i < 4; i++) {
        worker_takes();
        worker_answers(i, i, i == 0 ? VGPU_BAD_ADDRESS : VGPU_OK, 0);
    }
    round_once();
    assert_int_equal(rig.guest.host->cq_tail, 3);
    assert_int_equal(rig.guest.completions[0].status, VGPU_OK); /* another stream's */
    assert_int_equal(rig.guest.completions[1].status, VGPU_BAD_ADDRESS);
    assert_int_equal(rig.guest.completions[2].status, VGPU_OK); /* it has been told */
}

static void a_reset_forgets_the_errors_of_quiet_copies(void **state)
{
    struct vgpu_descriptor copy = quiet_copy(0);
    const struct vgpu_descriptor reset = {.opcode = VGPU_OP_RESET};
    const struct vgpu_descriptor sync = {.opcode = VGPU_OP_DEVICE_SYNC};

    (void)state;
    submit(&copy);
    submit(&reset);
    submit(&sync);
    round_once();
    for (uint32_t i = 0; i < 3; i++) {
        worker_takes();
        worker_answers(i, i, i == 0 ? VGPU_DEVICE_LOST : VGPU_OK, 0);
    }
    round_once();
    assert_int_equal(rig.guest.completions[0].status, VGPU_OK);
    assert_int_equal(rig.guest.completions[1].status, VGPU_OK);
}

/* --- places outside ------------------------------------------------------------------------------
 */

static void a_place_beyond_the_guests_slot_is_outside_of_the_private_one_too(void **state)
{
    struct vgpu_descriptor in = copy_of(VGPU_OP_COPY_IN, GUEST_BYTES - 4, 8);
    struct vgpu_descriptor out = copy_of(VGPU_OP_COPY_OUT, GUEST_BYTES - 4, 8);

    (void)state;
    submit(&in);
    submit(&out);
    round_once();
    assert_true(worker_takes().copy.source > OWN_BYTES);
    assert_true(worker_takes().copy.target > OWN_BYTES);
    worker_answers(1, 0, VGPU_OK, 0); /* even if it were not refused */
    round_once();
    assert_int_equal(rig.core.output_count, 0);
}

static void an_offset_that_overflows_is_outside(void **state)
{
    struct vgpu_descriptor in = copy_of(VGPU_OP_COPY_IN, UINT64_MAX - 3, 8);
    struct vgpu_descriptor rings = copy_of(VGPU_OP_COPY_IN, 0, 4096);

    (void)state;
    submit(&in);
    submit(&rings);
    round_once();
    assert_true(worker_takes().copy.source > OWN_BYTES);
    assert_true(worker_takes().copy.source > OWN_BYTES);
    assert_int_equal(rig.own.guest->sq_tail, 2);
}

/* --- indices that cannot be
 * ------------------------------------------------------------------------ */

static void a_tail_more_than_a_ring_ahead_ends_the_session(void **state)
{
    (void)state;
    rig.guest.guest->sq_tail = VGPU_RING_ENTRIES + 1;
    assert_int_equal(core_round(&rig.core, &rig.work), -1);
    assert_non_null(strstr(rig.core.reason, "sq_tail is 1025"));
    assert_int_equal(rig.guest.host->state, VGPU_SESSION_FAULTED);
}

static void a_head_beyond_what_was_published_ends_the_session(void **state)
{
    (void)state;
    rig.guest.guest->cq_head = 1;
    assert_int_equal(core_round(&rig.core, &rig.work), -1);
    assert_non_null(strstr(rig.core.reason, "cq_head is 1"));
}

static void what_the_guest_writes_into_the_hosts_page_decides_nothing(void **state)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    (void)state;
    rig.guest.host->sq_head = rig.guest.host->cq_tail = 77;
    submit(&ping);
    round_once();
    worker_takes();
    worker_answers(0, 9, VGPU_OK, 0);
    round_once();
    assert_int_equal(rig.guest.host->sq_head, 1);
    assert_int_equal(rig.guest.host->cq_tail, 1);
    assert_int_equal(rig.guest.completions[0].cookie, 9);
}

/* --- full rings and bounds
 * ---------------------------------------------------------------------------- */

static void a_full_private_ring_waits_for_room_and_loses_nothing(void **state)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    (void)state;
    for (int i = 0; i < 1024; i++)
        submit(&ping);
    round_once();
    submit(&ping);
    round_once();
    assert_true(rig.core.waits_for_room);
    assert_int_equal(rig.own.guest->sq_tail, 1024);
    worker_takes();
    round_once();
    assert_false(rig.core.waits_for_room);
    assert_int_equal(rig.own.guest->sq_tail, 1025);
}

static void behind_a_full_completion_ring_completions_stay_with_the_worker(void **state)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    (void)state;
    for (uint32_t i = 0; i < 1025; i++) {
        submit(&ping);
        round_once();
        worker_takes();
        worker_answers(i, i, VGPU_OK, 0);
        round_once();
    }
    assert_int_equal(rig.guest.host->cq_tail, 1024);
    assert_int_equal(rig.own.guest->cq_head, 1024);
    rig.guest.guest->cq_head = 1024;
    round_once();
    assert_int_equal(rig.guest.host->cq_tail, 1025);
    assert_int_equal(rig.guest.completions[0].cookie, 1024);
}

static void so_many_outputs_in_flight_wait_and_go_on(void **state)
{
    struct vgpu_descriptor copy = copy_of(VGPU_OP_COPY_OUT, HEAP, 8);

    (void)state;
    for (uint32_t i = 0; i < CORE_OUTPUTS_MAX + 1; i++)
        submit(&copy);
    round_once();
    assert_int_equal(rig.own.guest->sq_tail, CORE_OUTPUTS_MAX);
    worker_takes();
    worker_answers(0, 0, VGPU_OK, 0);
    round_once();
    assert_int_equal(rig.own.guest->sq_tail, CORE_OUTPUTS_MAX + 1);
}

static void a_round_moves_a_bounded_number_of_bytes(void **state)
{
    struct vgpu_descriptor copy =
        copy_of(VGPU_OP_COPY_IN, VGPU_SLOT_ARENA, GUEST_BYTES - VGPU_SLOT_ARENA);
    uint32_t most = CORE_ROUND_BYTES / (GUEST_BYTES - VGPU_SLOT_ARENA) + 1;

    (void)state;
    for (int i = 0; i < 1024; i++)
        submit(&copy);
    round_once();
    assert_int_equal(rig.own.guest->sq_tail, most);
    assert_true(rig.work.moved);
    for (int i = 0; i < 1024 && rig.work.moved; i++)
        round_once();
    assert_int_equal(rig.own.guest->sq_tail, 1024);
}

/* --- who is told
 * -------------------------------------------------------------------------------------- */

static void each_side_is_told_when_it_asked_and_only_then(void **state)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    (void)state;
    submit(&ping);
    round_once();
    assert_true(rig.work.ring_worker); /* it sleeps from the beginning */
    submit(&ping);
    round_once();
    assert_false(rig.work.ring_worker);
    rig.guest.guest->cq_event = 1;
    worker_takes();
    worker_answers(0, 0, VGPU_OK, 0);
    round_once();
    assert_false(rig.work.notify_guest);
    worker_takes();
    worker_answers(1, 0, VGPU_OK, 0);
    round_once();
    assert_true(rig.work.notify_guest);
}

static void who_arms_is_told_of_what_came_meanwhile(void **state)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};

    (void)state;
    round_once();
    assert_false(core_arm(&rig.core));
    assert_int_equal(rig.guest.host->sq_event, 0);
    submit(&ping);
    assert_true(core_arm(&rig.core));
    round_once();
    assert_false(core_arm(&rig.core));
    assert_int_equal(rig.guest.host->sq_event, 1);
    worker_takes();
    worker_answers(0, 0, VGPU_OK, 0);
    assert_true(core_arm(&rig.core));
}

/* --- a guest that writes anything
 * ------------------------------------------------------------------------ */

static uint64_t random_state;

static uint32_t random32(void)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(random_state >> 33);
}

/* Now and then a place near the slot's ends, or a small number. */
static uint64_t random_offset(void)
{
    static const uint64_t ends[] = {0,           VGPU_SLOT_ARENA, VGPU_SLOT_HEAP,
                                    GUEST_BYTES, OWN_BYTES,       UINT64_MAX};

    return ends[random32() % 6] + random32() % 64 - 32;
}

static void scribble(void)
{
    uint32_t tail = rig.guest.guest->sq_tail;

    for (uint32_t i = 0; i < 8; i++) {
        struct vgpu_descriptor *place = &rig.guest.descriptors[(tail + i) & MASK];

        place->opcode = (uint16_t)(random32() % 56);
        place->flags = random32() % 4 == 0;
        place->device = random32() % 9;
        place->stream = random32() % 3;
        memset(place->words, 0, sizeof(place->words));
        for (uint32_t word = 0; word < 3; word++)
            place->words[word] = random_offset();
    }
    for (uint32_t i = 0; i < 16; i++)
        rig.guest.bytes[random32() % GUEST_BYTES] = (uint8_t)random32();
    rig.guest.guest->sq_tail = tail + random32() % 9;
    if (random32() % 4 != 0)
        rig.guest.guest->cq_head = rig.core.cq_tail - random32() % 8;
}

/* Takes and answers in any order, as a worker may; sometimes with nonsense of its own. */
static void play_worker(void)
{
    uint32_t waiting = rig.own.guest->sq_tail - rig.own.host->sq_head;
    uint32_t untaken = rig.own.host->cq_tail - rig.own.guest->cq_head;

    assert_true(waiting <= VGPU_RING_ENTRIES);
    for (uint32_t i = 0; i < waiting && untaken + i < VGPU_RING_ENTRIES; i++) {
        uint32_t sequence = rig.own.host->sq_head;
        struct vgpu_descriptor taken = worker_takes();

        if (!(taken.flags & VGPU_FLAG_QUIET))
            worker_answers(random32() % 50 ? sequence : random32(), 0, random32() % 17,
                           random_offset());
    }
}

/* Both slots lie alone in memory of their own, so a sanitizer sees each step outside. */
static void a_guest_that_writes_anything_reaches_nothing_outside(void **state)
{
    unsigned faults = 0;

    (void)state;
    random_state = 20261122;
    for (unsigned i = 0; i < 60000; i++) {
        scribble();
        if (core_round(&rig.core, &rig.work) < 0) {
            faults++;
            close_rig(NULL);
            open_at(random32());
            continue;
        }
        core_arm(&rig.core);
        play_worker();
        assert_true(rig.core.output_count <= CORE_OUTPUTS_MAX);
        assert_true(rig.core.quiet_count <= CORE_QUIET_MAX);
    }
    assert_true(faults > 0);
}

/* A broker whose guest has granted pages, and whose VM's socket nobody serves. */
static void a_core_that_was_never_opened_shows_nothing(void **state)
{
    struct core core = {0};

    (void)state;
    core_show_state(&core, VGPU_SESSION_CLOSED);
    assert_null(core.guest);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, open_rig, close_rig)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(pings_pass_the_rings_end_and_the_counters_end),
        cmocka_unit_test_setup_teardown(pings_pass_the_rings_end_and_the_counters_end,
                                        open_near_the_counters_end, close_rig),
        CASE(data_goes_in_with_its_descriptor_and_nothing_else_does),
        CASE(what_the_guest_changes_after_the_round_changes_nothing),
        CASE(data_comes_back_with_its_completion_and_not_before),
        CASE(a_failed_copy_brings_no_data),
        CASE(a_texts_answer_has_the_bytes_that_the_worker_says),
        CASE(an_answer_longer_than_its_room_is_cut),
        CASE(names_parameters_and_images_go_in),
        CASE(the_sessions_state_and_generation_are_shown),
        CASE(what_an_operation_in_flight_writes_is_not_taken_from_the_guest),
        CASE(after_its_completion_the_place_is_the_guests_again),
        CASE(a_quiet_copy_brings_its_data_and_no_completion),
        CASE(a_quiet_copys_error_is_its_streams_next_synchronisations),
        CASE(a_reset_forgets_the_errors_of_quiet_copies),
        CASE(a_place_beyond_the_guests_slot_is_outside_of_the_private_one_too),
        CASE(an_offset_that_overflows_is_outside),
        CASE(a_tail_more_than_a_ring_ahead_ends_the_session),
        CASE(a_head_beyond_what_was_published_ends_the_session),
        CASE(what_the_guest_writes_into_the_hosts_page_decides_nothing),
        CASE(a_full_private_ring_waits_for_room_and_loses_nothing),
        CASE(behind_a_full_completion_ring_completions_stay_with_the_worker),
        CASE(so_many_outputs_in_flight_wait_and_go_on),
        CASE(a_round_moves_a_bounded_number_of_bytes),
        CASE(each_side_is_told_when_it_asked_and_only_then),
        CASE(who_arms_is_told_of_what_came_meanwhile),
        CASE(a_guest_that_writes_anything_reaches_nothing_outside),
        cmocka_unit_test(a_core_that_was_never_opened_shows_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
