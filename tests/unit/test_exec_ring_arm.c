/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker that goes to sleep: which publication will ring for it?  This process is
 * the guest and the worker at once; tests/model/ring.pml has all interleavings.
 */
#include "unit.h"

#include "exec/ring.h"

#include <sys/eventfd.h>

#define SLOT_BYTES VGPU_SLOT_MIN_BYTES

struct slot {
    uint8_t *memory;
    struct session_memory *session;
    struct vgpu_slot_guest *guest;
    const struct vgpu_slot_host *host;
    struct ring ring;
    struct vgpu_descriptor taken[VGPU_RING_ENTRIES];
    int interrupt_fd;
};

static int slot_make(void **state)
{
    struct slot *slot = calloc(1, sizeof(*slot));

    slot->memory = aligned_alloc(VGPU_PAGE_BYTES, SLOT_BYTES);
    memset(slot->memory, 0, SLOT_BYTES);
    slot->session = calloc(1, sizeof(*slot->session));
    slot->guest = (struct vgpu_slot_guest *)(void *)(slot->memory + VGPU_SLOT_GUEST);
    slot->host = (const struct vgpu_slot_host *)(const void *)(slot->memory + VGPU_SLOT_HOST);
    slot->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring_init(&slot->ring, slot->memory, SLOT_BYTES, slot->session, slot->interrupt_fd);
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

/* What a guest does; true: it rings. */
static bool publish(struct slot *slot, uint32_t count)
{
    uint32_t old = slot->guest->sq_tail;

    slot->guest->sq_tail = old + count;
    return vgpu_event_passed(slot->host->sq_event, old + count, old);
}

static void run(struct slot *slot)
{
    uint32_t depth = ring_depth(&slot->ring);

    for (uint32_t i = 0; i < depth; i++) {
        const struct vgpu_completion completion = {.status = VGPU_OK};

        ring_fetch(&slot->ring, slot->taken, 1);
        ring_complete(&slot->ring, slot->ring.sq_head - 1, &completion);
    }
    ring_publish(&slot->ring);
}

static void an_idle_worker_is_rung_for_by_the_next_descriptor(void **state)
{
    struct slot *slot = *state;

    publish(slot, 3);
    run(slot);
    assert_false(ring_arm(&slot->ring));
    assert_true(publish(slot, 1));
    assert_false(publish(slot, 1)); /* once */
}

static void a_worker_with_work_does_not_sleep(void **state)
{
    struct slot *slot = *state;

    publish(slot, 1);
    assert_true(ring_arm(&slot->ring));
}

static void behind_a_full_completion_ring_the_next_publication_rings(void **state)
{
    struct slot *slot = *state;

    publish(slot, VGPU_RING_ENTRIES);
    run(slot);
    publish(slot, 2); /* stand behind completions that nobody took */
    assert_int_equal(ring_depth(&slot->ring), 0);
    assert_false(ring_arm(&slot->ring));
    slot->guest->cq_head = VGPU_RING_ENTRIES;
    assert_true(publish(slot, 1));
    assert_int_equal(ring_depth(&slot->ring), 3);
}

static void a_tail_that_cannot_be_keeps_nobody_asleep(void **state)
{
    struct slot *slot = *state;

    slot->guest->sq_tail = VGPU_RING_ENTRIES + 1;
    assert_true(ring_arm(&slot->ring));
    assert_true(slot->ring.faulted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_idle_worker_is_rung_for_by_the_next_descriptor,
                                        slot_make, slot_remove),
        cmocka_unit_test_setup_teardown(a_worker_with_work_does_not_sleep, slot_make, slot_remove),
        cmocka_unit_test_setup_teardown(behind_a_full_completion_ring_the_next_publication_rings,
                                        slot_make, slot_remove),
        cmocka_unit_test_setup_teardown(a_tail_that_cannot_be_keeps_nobody_asleep, slot_make,
                                        slot_remove),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
