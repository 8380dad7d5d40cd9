/* SPDX-License-Identifier: Apache-2.0 */
/* What a VM may do at a time: its workers hold themselves to it, on a long grant and over many
 * short ones. */
#include "session_bench.h"

#include "exec/account.h"
#include "exec/private.h"

#define BUDGET_TEST(function)                                                                      \
    cmocka_unit_test_setup_teardown(function, bench_make_started, bench_remove)

#define GPU_TEST(function)                                                                         \
    cmocka_unit_test_setup_teardown(function, make_on_a_gpu, remove_from_a_gpu)

static void bound(struct bench *bench, struct exec_budget budget)
{
    exec_account_set_budget(bench->account, &budget, clock_monotonic_ns());
    exec_session_wake(bench->session);
}

static void submit_pings(struct bench *bench, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        guest_submit(bench, ping());
}

static void take_all(struct bench *bench, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(guest_wait(bench).status, VGPU_OK);
}

/* At this rate `count` last so long at least, the burst being free. */
static uint64_t least_ns(const struct exec_budget *budget, uint64_t count)
{
    return (count - budget->request_burst) * NS_PER_S / budget->request_rate;
}

static void a_long_grant_has_no_more_than_the_rate(void **state)
{
    const struct exec_budget budget = {.request_rate = 400, .request_burst = 5};
    struct bench *bench = *state;
    uint64_t begin_ns;

    bound(bench, budget);
    begin_ns = clock_monotonic_ns();
    submit_pings(bench, 65);
    take_all(bench, 65);
    assert_true(clock_monotonic_ns() - begin_ns >= least_ns(&budget, 65));
    assert_int_equal(bench->returned, 0); /* nobody else wanted it */
}

/* It reads nothing meanwhile, and must have room for what is told to it then. */
static void any_number_of_changes_while_an_operation_runs_end_no_worker(void **state)
{
    struct bench *bench = *state;

    guest_submit(bench, text(bench, "SPIN 100"));
    while (exec_session_running(bench->session) == 0)
        uv_run(&bench->loop, UV_RUN_NOWAIT);
    for (uint32_t i = 1; i <= 5000; i++)
        bound(bench, (struct exec_budget){.request_rate = i});
    exec_session_revoke(bench->session);
    take_all(bench, 1);
    WAIT_FOR(bench, bench->returned == 1);
    assert_int_equal(bench->ended, 0);
}

static void many_short_grants_have_no_more_than_a_long_one(void **state)
{
    const struct exec_budget budget = {.request_rate = 400, .request_burst = 5};
    struct bench *bench = *state;
    uint64_t begin_ns;

    bench->grant = (struct exec_session_grant){1, 1, 1000000};
    bound(bench, budget);
    begin_ns = clock_monotonic_ns();
    submit_pings(bench, 65);
    take_all(bench, 65);
    assert_true(clock_monotonic_ns() - begin_ns >= least_ns(&budget, 65));
    WAIT_FOR(bench, bench->operations == 65);
    assert_true(bench->returned >= 65);
}

static void what_its_rate_keeps_waiting_is_told(void **state)
{
    struct bench *bench = *state;
    uint64_t begin_ns = clock_monotonic_ns(), throttled_us;

    submit_pings(bench, 5);
    take_all(bench, 5);
    assert_int_equal(exec_session_throttled_us(bench->session), 0);
    bound(bench, (struct exec_budget){.request_rate = 100, .request_burst = 1});
    submit_pings(bench, 5);
    take_all(bench, 5);
    throttled_us = exec_session_throttled_us(bench->session);
    assert_true(throttled_us > 0);
    assert_true(throttled_us <= (clock_monotonic_ns() - begin_ns) / NS_PER_US);
}

static void what_may_not_run_yet_wants_no_grant(void **state)
{
    struct bench *bench = *state;
    unsigned work;

    bench->grant = short_grant;
    bound(bench, (struct exec_budget){.request_rate = 1, .request_burst = 3});
    submit_pings(bench, 5);
    take_all(bench, 3);
    WAIT_FOR(bench, bench->returned > 0 && bench->operations == 3);
    assert_int_equal(bench->depth_left, 0);
    work = bench->work;
    guest_ring(bench); /* a guest that goes on ringing wakes nobody */
    settle(bench);
    assert_int_equal(bench->work, work);
    bound(bench, (struct exec_budget){0});
    take_all(bench, 2);
    assert_int_equal(bench->work, work + 1);
}

static void a_throttled_one_gives_a_revoked_grant_back_at_once(void **state)
{
    struct bench *bench = *state;

    bench->grants = false;
    bound(bench, (struct exec_budget){.request_rate = 1, .request_burst = 1});
    submit_pings(bench, 20);
    WAIT_FOR(bench, bench->work == 1);
    exec_session_grant(bench->session, &long_grant);
    take_all(bench, 1);
    exec_session_revoke(bench->session);
    WAIT_FOR(bench, bench->returned == 1);
    assert_true(bench->operations < 20);
    assert_int_equal(bench->depth_left, 0);
}

static void a_new_rate_counts_for_who_sleeps_for_the_old_one(void **state)
{
    struct bench *bench = *state;

    /* At the old one it would take hours. */
    bound(bench, (struct exec_budget){.request_rate = 1, .request_burst = 1});
    submit_pings(bench, 200);
    submit_pings(bench, 50);
    take_all(bench, 1);
    bound(bench, (struct exec_budget){.request_rate = 1000000, .request_burst = 1000});
    take_all(bench, 249);
}

static void a_share_of_the_device_is_held_on_a_long_grant(void **state)
{
    struct bench *bench = *state;
    uint64_t begin_ns, used_us, lasted_us;
    uint32_t taken;

    bound(bench, (struct exec_budget){.device_share_percent = 25});
    begin_ns = clock_monotonic_ns();
    for (int i = 0; i < 10; i++)
        assert_int_equal(guest_run(bench, text(bench, "SPIN 10")).status, VGPU_OK);
    lasted_us = (clock_monotonic_ns() - begin_ns) / NS_PER_US;
    exec_session_progress(bench->session, &taken, &used_us);
    assert_int_equal(taken, 10);
    assert_true(used_us >= 100000);
    /* The burst is free, and so is the last one's end. */
    assert_true(lasted_us >= (used_us - 10000 - 2500 - 10000) * 4);
    assert_int_equal(bench->returned, 0);
}

static void a_share_of_the_device_is_held_over_short_grants(void **state)
{
    struct bench *bench = *state;
    uint64_t begin_ns = clock_monotonic_ns();

    bench->grant = (struct exec_session_grant){1, 1, 2000};
    bound(bench, (struct exec_budget){.device_share_percent = 50});
    for (int i = 0; i < 10; i++)
        assert_int_equal(guest_run(bench, text(bench, "SPIN 10")).status, VGPU_OK);
    WAIT_FOR(bench, bench->operations == 10);
    assert_true((clock_monotonic_ns() - begin_ns) / NS_PER_US >=
                (bench->used_us - 10000 - 5000 - 10000) * 2);
}

/* That the worker has used. */
static uint64_t processor_ns(const struct bench *bench)
{
    struct timespec used;
    clockid_t clock;

    assert_int_equal(clock_getcpuclockid(bench->pid, &clock), 0);
    assert_int_equal(clock_gettime(clock, &used), 0);
    return (uint64_t)used.tv_sec * NS_PER_S + (uint64_t)used.tv_nsec;
}

static void a_throttled_one_uses_no_processor(void **state)
{
    struct bench *bench = *state;
    uint64_t before_ns;

    bound(bench, (struct exec_budget){.request_rate = 10, .request_burst = 1});
    submit_pings(bench, 6);
    take_all(bench, 1);
    before_ns = processor_ns(bench);
    take_all(bench, 5); /* half a second */
    assert_true(processor_ns(bench) - before_ns < NS_PER_S / 4);
}

static void refusals_cost_no_budget(void **state)
{
    struct bench *bench = *state;

    bench->grant = (struct exec_session_grant){UINT32_MAX, 1, EXEC_GRANT_LONG, .refuse = true};
    submit_pings(bench, 1);
    assert_int_equal(guest_wait(bench).status, VGPU_REFUSED);
    bound(bench, (struct exec_budget){.request_rate = 1, .request_burst = 1});
    submit_pings(bench, 50);
    for (int i = 0; i < 50; i++)
        assert_int_equal(guest_wait(bench).status, VGPU_REFUSED);
}

static void no_more_are_taken_than_may_wait(void **state)
{
    struct bench *bench = *state;
    struct vgpu_descriptor spin = text(bench, "SPIN 20");
    uint32_t taken;

    bound(bench, (struct exec_budget){.queue_depth_max = 4});
    for (int i = 0; i < 3; i++)
        guest_submit(bench, spin);
    submit_pings(bench, 40);
    take_all(bench, 1);
    /* What was taken is what is answered, what runs, and what waits. */
    taken = vgpu_load_acquire(&bench->host->sq_head);
    assert_true(taken <= vgpu_load_acquire(&bench->host->cq_tail) + 1 + 4);
    take_all(bench, 42);
}

static void a_successor_pays_what_its_predecessor_owed(void **state)
{
    struct bench *bench = *state;
    uint64_t wait_ns;

    bound(bench, (struct exec_budget){.request_rate = 1, .request_burst = 2});
    submit_pings(bench, 2);
    take_all(bench, 2);
    assert_false(exec_account_take_request(bench->account, clock_monotonic_ns(), &wait_ns));
    assert_true(wait_ns > 0 && wait_ns <= NS_PER_S);
    session_end(bench);
    assert_false(exec_account_take_request(bench->account, clock_monotonic_ns(), &wait_ns));
}

/* --- in flight, on a double of NVIDIA's library ----------------------------------------------- */

#define FLIGHTS 12u

static int make_with(void **state, const char *order)
{
    struct bench *bench;
    char path[600];
    FILE *file;

    bench_make(state);
    bench = *state;
    bench->backend = "cuda";
    bench->devices = "cuda:0";
    /* A copy, as its orders lie beside it. */
    snprintf(path, sizeof(path), "cp %s %s/cuda.so", getenv("VGPU_FAKE_CUDA"), bench->directory);
    assert_int_equal(system(path), 0);
    snprintf(path, sizeof(path), "%s/cuda.so.conf", bench->directory);
    file = fopen(path, "we");
    assert_int_equal(fwrite(order, 1, strlen(order), file), strlen(order));
    fclose(file);
    path[strlen(path) - strlen(".conf")] = '\0';
    bench->cuda_library = strdup(path);
    session_start(bench, false);
    return 0;
}

static int make_on_a_gpu(void **state)
{
    return make_with(state, "busy cuMemsetD8Async 20ms\n");
}

static int make_on_a_gpu_that_lies(void **state)
{
    return make_with(state, "forge 1\n");
}

static int remove_from_a_gpu(void **state)
{
    struct bench *bench = *state;
    char *library = (char *)(uintptr_t)bench->cuda_library;
    int result = bench_remove(state);

    free(library);
    return result;
}

static const struct account_memory *account_of(const struct bench *bench)
{
    struct vgpu_error error;
    int fd = exec_account_descriptor(bench->account, &error);
    void *memory = mmap(NULL, sizeof(struct account_memory), PROT_READ, MAP_SHARED, fd, 0);

    assert_true(fd >= 0 && memory != MAP_FAILED);
    close(fd);
    return memory;
}

/* Sets memory, `bytes` each; returns how many were in flight at once, and *ret_bytes of them. */
static uint32_t most_in_flight(struct bench *bench, uint64_t bytes, uint64_t *ret_bytes)
{
    const struct account_memory *account = account_of(bench);
    uint64_t address =
        guest_run(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_ALLOC, .alloc.bytes = bytes})
            .result;
    struct vgpu_completion completion;
    uint32_t most = 0, done = 0;

    *ret_bytes = 0;
    for (uint32_t i = 0; i < FLIGHTS; i++)
        guest_submit(
            bench, (struct vgpu_descriptor){.opcode = VGPU_OP_SET, .set = {address, bytes, 7, 1}});
    while (done < FLIGHTS) {
        uint32_t now = __atomic_load_n(&account->work[0].inflight_ops, __ATOMIC_RELAXED);
        uint64_t moved = __atomic_load_n(&account->work[0].inflight_bytes, __ATOMIC_RELAXED);

        most = now > most ? now : most;
        *ret_bytes = moved > *ret_bytes ? moved : *ret_bytes;
        uv_run(&bench->loop, UV_RUN_NOWAIT);
        while (guest_take(bench, &completion)) {
            assert_int_equal(completion.status, VGPU_OK);
            done++;
        }
    }
    munmap((void *)(uintptr_t)account, sizeof(*account));
    return most;
}

static void no_more_are_in_flight_than_may_be(void **state)
{
    struct bench *bench = *state;
    uint64_t bytes;

    assert_true(most_in_flight(bench, 4096, &bytes) >= 2);
    bound(bench, (struct exec_budget){.inflight_ops_max = 1});
    assert_int_equal(most_in_flight(bench, 4096, &bytes), 1);
    assert_int_equal(bytes, 4096);
}

static void no_more_bytes_are_in_flight_than_may_be(void **state)
{
    struct bench *bench = *state;
    uint64_t bytes;

    bound(bench, (struct exec_budget){.inflight_bytes_max = 8191});
    assert_int_equal(most_in_flight(bench, 4096, &bytes), 1);
    /* One that is larger than all that may be is let alone. */
    assert_int_equal(most_in_flight(bench, 65536, &bytes), 1);
    assert_int_equal(bytes, 65536);
}

/* What a kernel does after the guest was told that it has ended. */
static void what_outlasts_its_mark_is_charged(void **state)
{
    const uint64_t spin_us = 300000;
    const struct vgpu_descriptor spin = {.opcode = VGPU_OP_LAUNCH,
                                         .launch = {.name_offset = ARENA,
                                                    .name_bytes = 7,
                                                    .parameters_offset = ARENA + 64,
                                                    .parameters_bytes = sizeof(spin_us),
                                                    .grid = {1, 1, 1},
                                                    .block = {1, 1, 1}}};
    struct bench *bench = *state;
    uint64_t used_us;
    uint32_t taken;

    memcpy(bench->slot + ARENA, "spin_us", 7);
    memcpy(bench->slot + ARENA + 64, &spin_us, sizeof(spin_us));
    guest_submit(bench, spin);
    guest_submit(bench, (struct vgpu_descriptor){.opcode = VGPU_OP_DEVICE_SYNC});
    take_all(bench, 2);
    while (exec_session_running(bench->session) != 0)
        usleep(1000);
    exec_session_progress(bench->session, &taken, &used_us);
    assert_true(used_us >= 250000); /* what came before its launch was counted is not known */
    assert_int_equal(bench->returned, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BUDGET_TEST(a_long_grant_has_no_more_than_the_rate),
        BUDGET_TEST(any_number_of_changes_while_an_operation_runs_end_no_worker),
        BUDGET_TEST(many_short_grants_have_no_more_than_a_long_one),
        BUDGET_TEST(what_its_rate_keeps_waiting_is_told),
        BUDGET_TEST(what_may_not_run_yet_wants_no_grant),
        BUDGET_TEST(a_throttled_one_gives_a_revoked_grant_back_at_once),
        BUDGET_TEST(a_new_rate_counts_for_who_sleeps_for_the_old_one),
        BUDGET_TEST(a_share_of_the_device_is_held_on_a_long_grant),
        BUDGET_TEST(a_share_of_the_device_is_held_over_short_grants),
        BUDGET_TEST(a_throttled_one_uses_no_processor),
        BUDGET_TEST(refusals_cost_no_budget),
        BUDGET_TEST(no_more_are_taken_than_may_wait),
        BUDGET_TEST(a_successor_pays_what_its_predecessor_owed),
        GPU_TEST(no_more_are_in_flight_than_may_be),
        GPU_TEST(no_more_bytes_are_in_flight_than_may_be),
        cmocka_unit_test_setup_teardown(what_outlasts_its_mark_is_charged, make_on_a_gpu_that_lies,
                                        remove_from_a_gpu),
    };

    bench_prepare();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
