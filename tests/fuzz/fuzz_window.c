/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that does anything with its slot, at any moment between two looks of the
 * worker; the worker's runner in this process.  The input is what the guest does:
 *
 *   W offset:4 count:1 bytes   writes anywhere in the slot
 *   I which:1 value:4          writes one of its indices
 *   D descriptor:64            publishes these bytes
 *   O opcode:2 flags:1 stream:1 words:6x2    publishes something more likely
 *   P offset:4 word:2          writes a likely word, as a kernel's parameters are
 *   R most:1                   the worker gets a grant of so many operations
 *   T                          takes all completions
 *   X                          the worker dies, a successor comes
 *   Q                          the worker ends what is in flight
 *
 * With `A seed:1` before all of it the device has streams (fuzz_window_device.h), and what
 * was begun ends in any order; an odd seed's device is lost some time.
 *
 * A word of `O` is a kind and a small number: near an edge of the slot, near what was
 * allocated, near a power of two.  Sleeps and big products are left out.
 *
 * Required: nothing outside of slot and device memory is touched (sanitizers see it),
 * every operation taken is answered once, in order where there are no streams, all
 * bounds hold.
 */
#include "fuzz.h"

#include "exec/runner.h"
#include "fuzz_window_device.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SLOT_BYTES VGPU_SLOT_MIN_BYTES
#define DEVICE_BYTES (256u << 10)
#define DEVICES 3u
#define STEPS_MAX 400
#define MASK (VGPU_RING_ENTRIES - 1)

struct input {
    const uint8_t *data;
    size_t bytes;
};

struct world {
    uint8_t *slot;
    struct vgpu_slot_guest *guest;
    const struct vgpu_slot_host *host;
    struct session_memory *memory;
    struct account_memory *account;
    struct account_share share;
    struct runner *runner;
    uint64_t addresses[4]; /* that allocations gave */
    uint32_t allocations;
    uint32_t answered;    /* sequences below it were seen to be answered */
    uint32_t completions; /* that this gave */
    bool has_streams;
    uint8_t owed[VGPU_RING_ENTRIES]; /* with streams, by sequence: OWED, EARLY or 0 */
};

/* Begun and not answered; answered, and not yet seen to have begun. */
enum { OWED = 1, EARLY = 2 };

/* --- a backend that does not waste time -------------------------------------------------- */

static int no_spin(uint32_t spin_ms, struct vgpu_error *error)
{
    (void)spin_ms;
    (void)error;
    return 0;
}

static int small_matrix_mul(const float *a, const float *b, float *product, size_t n,
                            struct vgpu_error *error)
{
    return n <= 64 ? exec_backend_cpu.matrix_mul(a, b, product, n, error)
                   : error_set(error, E2BIG, "too much for a fuzzer");
}

static int small_reduce(const float *x, size_t count, double *ret_sum, struct vgpu_error *error)
{
    return count <= 64 ? exec_backend_cpu.reduce(x, count, ret_sum, error) : 0;
}

static enum vgpu_status quick_launch(void *state, void *stream, const struct device_launch *launch)
{
    if (strcmp(launch->name, "spin_us") == 0 && launch->count == 1 && launch->parameters[0] > 5)
        return VGPU_OK;
    return cpu_device_ops.launch(state, stream, launch);
}

static struct device_ops quick_ops;

static struct exec_backend quick_backend(void)
{
    struct exec_backend backend = exec_backend_cpu;

    quick_ops = cpu_device_ops;
    quick_ops.launch = quick_launch;
    backend.spin = no_spin;
    backend.matrix_mul = small_matrix_mul;
    backend.reduce = small_reduce;
    backend.device = &quick_ops;
    return backend;
}

static struct exec_backend backend;
static int interrupt_fd = -1;

/* --- input --------------------------------------------------------------------------------- */

static uint64_t next(struct input *input, size_t bytes)
{
    uint64_t value = 0;

    for (size_t i = 0; i < bytes && input->bytes > 0; i++) {
        value |= (uint64_t)*input->data++ << 8 * i;
        input->bytes--;
    }
    return value;
}

static uint64_t likely_word(struct input *input, const struct world *world)
{
    uint8_t kind = (uint8_t)next(input, 1);
    uint64_t number = next(input, 1);

    switch (kind % 10) {
    case 0:
        return number;
    case 1:
        return VGPU_SLOT_ARENA - 4 + number;
    case 2:
        return VGPU_SLOT_HEAP - 4 + number * 16;
    case 3:
        return SLOT_BYTES - number;
    case 4:
        return world->addresses[number / 64] + number % 64 - 4;
    case 5:
        return (1ull << number % 64) - number / 64;
    case 6:
        return number << 32 | number;
    case 7:
        return UINT64_MAX - number;
    case 8:
        return world->addresses[number / 64] + number % 64 * 1024;
    default:
        return number * 1000;
    }
}

/* --- the guest ------------------------------------------------------------------------------- */

static void scribble(struct world *world, struct input *input)
{
    uint64_t offset = next(input, 4) % SLOT_BYTES, count = next(input, 1);

    for (uint64_t i = 0; i < count && offset + i < SLOT_BYTES; i++)
        world->slot[offset + i] = (uint8_t)next(input, 1);
}

static void put_word(struct world *world, struct input *input)
{
    uint64_t offset = next(input, 4) % (SLOT_BYTES - sizeof(uint64_t));
    uint64_t word = likely_word(input, world);

    memcpy(world->slot + offset, &word, sizeof(word));
}

static void write_index(struct world *world, struct input *input)
{
    uint32_t *const words[] = {&world->guest->sq_tail, &world->guest->cq_head,
                               &world->guest->cq_event};
    uint32_t *word = words[next(input, 1) % 3];

    *word = (uint32_t)next(input, 4);
}

static void publish(struct world *world, const struct vgpu_descriptor *descriptor)
{
    struct vgpu_descriptor *ring = (struct vgpu_descriptor *)(void *)(world->slot + VGPU_SLOT_SQ);

    ring[world->guest->sq_tail & MASK] = *descriptor;
    world->guest->sq_tail++;
}

static void publish_bytes(struct world *world, struct input *input)
{
    struct vgpu_descriptor descriptor = {0};

    for (size_t i = 0; i < sizeof(descriptor); i++)
        ((uint8_t *)&descriptor)[i] = (uint8_t)next(input, 1);
    publish(world, &descriptor);
}

static void publish_likely(struct world *world, struct input *input)
{
    struct vgpu_descriptor descriptor = {.opcode = (uint16_t)next(input, 2)};

    descriptor.flags = (uint8_t)next(input, 1);
    descriptor.stream = (uint32_t)next(input, 1);
    descriptor.cookie = descriptor.opcode;
    for (int i = 0; i < 6; i++)
        descriptor.words[i] = likely_word(input, world);
    publish(world, &descriptor);
}

/* --- the worker ------------------------------------------------------------------------------ */

/* What it did since the last time: one answer for each that is not quiet. */
static void require_answers(struct world *world)
{
    const struct runner *runner = world->runner;
    const struct vgpu_completion *ring =
        (const struct vgpu_completion *)(const void *)(world->slot + VGPU_SLOT_CQ);

    for (; world->answered != runner->next; world->answered++) {
        const struct session_entry *entry = &world->memory->entries[world->answered & MASK];

        if (runner->taken[world->answered & MASK].flags & VGPU_FLAG_QUIET) {
            FUZZ_REQUIRE((uint32_t)entry->commit == SESSION_ENTRY_QUIET);
            continue;
        }
        FUZZ_REQUIRE(entry->commit == session_commit(SESSION_ENTRY_ANSWERED, world->completions));
        FUZZ_REQUIRE(ring[world->completions & MASK].sequence == world->answered);
        FUZZ_REQUIRE(ring[world->completions & MASK].status < VGPU_STATUS_COUNT);
        if (ring[world->completions & MASK].status == VGPU_OK &&
            runner->taken[world->answered & MASK].opcode == VGPU_OP_ALLOC)
            world->addresses[world->allocations++ % VGPU_ARRAY_LENGTH(world->addresses)] =
                ring[world->completions & MASK].result;
        world->completions++;
    }
    FUZZ_REQUIRE(world->completions == runner->ring.cq_tail);
}

/* Those of before were owed; one of now is seen to have begun after this. */
static void take_answer(struct world *world, const struct vgpu_completion *completion)
{
    const struct runner *runner = world->runner;
    const struct vgpu_descriptor *operation = &runner->taken[completion->sequence & MASK];
    uint8_t *owed = &world->owed[completion->sequence & MASK];
    bool is_new = runner->next - completion->sequence <= runner->next - world->answered;

    FUZZ_REQUIRE(completion->status < VGPU_STATUS_COUNT);
    FUZZ_REQUIRE(runner->next - completion->sequence - 1 < 2 * VGPU_RING_ENTRIES);
    FUZZ_REQUIRE(*owed == (is_new ? 0 : OWED));
    *owed = is_new ? EARLY : 0;
    if (completion->status == VGPU_OK && operation->opcode == VGPU_OP_ALLOC)
        world->addresses[world->allocations++ % VGPU_ARRAY_LENGTH(world->addresses)] =
            completion->result;
}

/* The same in any order. */
static void require_each_once(struct world *world)
{
    const struct runner *runner = world->runner;
    const struct vgpu_completion *ring =
        (const struct vgpu_completion *)(const void *)(world->slot + VGPU_SLOT_CQ);

    for (; world->completions != runner->ring.cq_tail; world->completions++)
        take_answer(world, &ring[world->completions & MASK]);
    for (; world->answered != runner->next; world->answered++) {
        uint8_t *owed = &world->owed[world->answered & MASK];

        if (runner->taken[world->answered & MASK].flags & VGPU_FLAG_QUIET) {
            FUZZ_REQUIRE(*owed == 0);
        } else {
            FUZZ_REQUIRE(*owed != OWED);
            *owed = *owed == EARLY ? 0 : OWED;
        }
    }
}

static const struct device_memory *memory_of(const struct world *world, unsigned device)
{
    const void *state = world->runner->device.parts[device].state;

    return world->has_streams ? fuzz_device_memory(state) : state;
}

static void require_bounds(const struct world *world)
{
    const struct runner *runner = world->runner;

    FUZZ_REQUIRE(runner->answered_count <= runner->flight_count);
    FUZZ_REQUIRE(runner->ring.inflight == runner->ring.sq_head - runner->next +
                                              runner->flight_count - runner->answered_count);
    FUZZ_REQUIRE(runner->flight_count <= RUNNER_FLIGHTS_MAX);
    FUZZ_REQUIRE(runner->ring.inflight <= VGPU_RING_ENTRIES);
    FUZZ_REQUIRE(world->memory->sq_head == runner->ring.sq_head);
    FUZZ_REQUIRE(world->memory->cq_tail == runner->ring.cq_tail);
    FUZZ_REQUIRE(runner->ring.cq_published == runner->ring.cq_tail);
    FUZZ_REQUIRE(world->account->shares[0] <= DEVICE_BYTES);
    for (unsigned i = 0; i < DEVICES; i++)
        FUZZ_REQUIRE(memory_of(world, i)->count <= DEVICE_ALLOCATIONS_MAX);
    FUZZ_REQUIRE(runner->device.handle_count <= DEVICE_HANDLES_MAX);
}

static void die(struct world *world);

/* What must hold whenever the worker has done something. */
static void require_all(struct world *world)
{
    if (world->has_streams)
        require_each_once(world);
    else
        require_answers(world);
    require_bounds(world);
    if (!runner_is_lost(world->runner))
        return;
    FUZZ_REQUIRE(world->runner->flight_count == 0);
    die(world);
}

static void run(struct world *world, struct input *input)
{
    const struct exec_session_grant grant = {(uint32_t)next(input, 1),
                                             world->has_streams ? 1 + fuzz_device_random(40) : 1,
                                             EXEC_GRANT_LONG};
    bool was_faulted = world->runner->ring.faulted;

    runner_grant(world->runner, &grant);
    for (int i = 0; i < 4 && !runner_is_done(world->runner); i++) {
        if (!runner_run(world->runner))
            break;
    }
    FUZZ_REQUIRE(world->runner->operations <= grant.max_ops);
    FUZZ_REQUIRE(!was_faulted || world->runner->ring.faulted);
    require_all(world);
    (void)ring_arm(&world->runner->ring);
    FUZZ_REQUIRE(!world->runner->ring.faulted || world->runner->ring.reason[0] != '\0');
}

static void begin(struct world *world, bool successor)
{
    struct vgpu_error error;

    memset(world->runner, 0, sizeof(*world->runner));
    if (runner_open(world->runner, &backend, world->slot, SLOT_BYTES, DEVICES, &world->share, 1000,
                    world->memory, interrupt_fd, -1, &error) < 0)
        abort();
    runner_begin(world->runner, successor);
}

/* Everything taken is answered by then, whatever the guest wrote. */
static void die(struct world *world)
{
    runner_close(world->runner);
    begin(world, true);
    for (uint32_t i = 0; i < VGPU_RING_ENTRIES; i++)
        FUZZ_REQUIRE((uint32_t)world->memory->entries[i].commit != SESSION_ENTRY_ACCEPTED);
    FUZZ_REQUIRE(world->memory->lost);
    world->answered = world->runner->next;
    world->completions = world->runner->ring.cq_tail;
    memset(world->owed, 0, sizeof(world->owed));
    require_bounds(world);
}

/* The device comes to an end, if it does not get lost. */
static void drain(struct world *world)
{
    for (unsigned i = 0; i < 100000 && !runner_is_lost(world->runner); i++) {
        if (runner_is_drained(world->runner))
            break;
        runner_poll(world->runner);
    }
    FUZZ_REQUIRE(world->runner->flight_count == 0);
    require_all(world);
}

/* --- all ----------------------------------------------------------------------------------- */

static bool step(struct world *world, struct input *input)
{
    switch (next(input, 1)) {
    case 'W':
        scribble(world, input);
        return true;
    case 'I':
        write_index(world, input);
        return true;
    case 'D':
        publish_bytes(world, input);
        return true;
    case 'O':
        publish_likely(world, input);
        return true;
    case 'P':
        put_word(world, input);
        return true;
    case 'R':
        run(world, input);
        return true;
    case 'T':
        world->guest->cq_head = world->host->cq_tail;
        return true;
    case 'X':
        die(world);
        return true;
    case 'Q':
        drain(world);
        return true;
    default:
        return false;
    }
}

static void choose_device(struct world *world, struct input *input)
{
    uint32_t seed;

    world->has_streams = input->bytes > 0 && *input->data == 'A';
    backend.device = world->has_streams ? &fuzz_device_ops : &quick_ops;
    if (!world->has_streams)
        return;
    next(input, 1);
    seed = (uint32_t)next(input, 1);
    fuzz_device_seed(seed, seed & 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input input = {data, bytes};
    struct world world = {.slot = aligned_alloc(64, SLOT_BYTES),
                          .account = aligned_alloc(64, sizeof(struct account_memory)),
                          .memory = calloc(1, sizeof(struct session_memory)),
                          .runner = calloc(1, sizeof(struct runner))};
    uint64_t count;

    if (!world.slot || !world.account || !world.memory || !world.runner)
        abort();
    if (interrupt_fd < 0) {
        interrupt_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        backend = quick_backend();
    }
    memset(world.slot, 0, SLOT_BYTES);
    world.guest = (struct vgpu_slot_guest *)(void *)(world.slot + VGPU_SLOT_GUEST);
    world.host = (const struct vgpu_slot_host *)(const void *)(world.slot + VGPU_SLOT_HOST);
    *world.account = (struct account_memory){.limit_bytes = DEVICE_BYTES};
    world.share.memory = world.account;
    choose_device(&world, &input);
    begin(&world, false);
    for (int i = 0; i < STEPS_MAX && input.bytes > 0 && step(&world, &input); i++)
        ;
    runner_close(world.runner);
    free(world.runner);
    free(world.memory);
    free(world.account);
    free(world.slot);
    (void)!read(interrupt_fd, &count, sizeof(count));
    return 0;
}
