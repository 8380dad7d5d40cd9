/* SPDX-License-Identifier: Apache-2.0 */
/* The account of a VM's device memory: what its workers hold together, and may. */
#include "unit.h"

#include "exec/account.h"
#include "exec/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LIMIT 1000u
#define THREADS 4u
#define ROUNDS 20000u
#define VAIN_ROUNDS 300000u

struct place {
    char *directory;
    char path[512];
    struct exec_account *account;
    struct account_memory *memory; /* as workers map it */
    struct account_share shares[THREADS];
};

static void map_shares(struct place *place)
{
    struct vgpu_error error;
    int fd = exec_account_descriptor(place->account, &error);

    assert_true(fd >= 0);
    place->memory = mmap(NULL, sizeof(*place->memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(place->memory != MAP_FAILED);
    close(fd);
    for (uint32_t i = 0; i < THREADS; i++) {
        place->shares[i].memory = place->memory;
        assert_int_equal(exec_account_take(place->account, &place->shares[i].index, &error), 0);
    }
}

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));
    struct vgpu_error error;

    place->directory = unit_temporary_directory();
    snprintf(place->path, sizeof(place->path), "%s/account", place->directory);
    *state = place;
    if (exec_account_open(place->path, LIMIT, false, &place->account, &error) < 0)
        return -1;
    map_shares(place);
    return 0;
}

static int place_remove(void **state)
{
    struct place *place = *state;

    munmap(place->memory, sizeof(*place->memory));
    exec_account_end(place->account);
    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

static uint64_t used(const struct place *place)
{
    return exec_account_used_bytes(place->account);
}

/* --- the limit ------------------------------------------------------------------------------ */

static void two_sessions_share_the_limit_to_the_byte(void **state)
{
    struct place *place = *state;

    assert_true(share_reserve(&place->shares[0], 600));
    assert_false(share_reserve(&place->shares[1], 401));
    assert_true(share_reserve(&place->shares[1], 400));
    assert_int_equal(share_free_bytes(&place->shares[0]), 0);
    assert_false(share_reserve(&place->shares[0], 1));
    assert_true(share_reserve(&place->shares[0], 0));
    share_release(&place->shares[0], 100);
    assert_int_equal(share_free_bytes(&place->shares[1]), 100);
    assert_true(share_reserve(&place->shares[1], 100));
    assert_int_equal(used(place), LIMIT);
}

static void a_refusal_leaves_nothing_behind(void **state)
{
    struct place *place = *state;

    assert_false(share_reserve(&place->shares[0], LIMIT + 1));
    assert_false(share_reserve(&place->shares[0], UINT64_MAX));
    assert_false(share_reserve(&place->shares[0], UINT64_MAX - LIMIT + 1));
    assert_int_equal(used(place), 0);
    assert_true(share_reserve(&place->shares[1], LIMIT));
}

static void a_share_that_says_nonsense_leaves_no_room(void **state)
{
    struct place *place = *state;

    assert_true(share_reserve(&place->shares[0], 10));
    place->memory->shares[place->shares[1].index] = UINT64_MAX;
    assert_int_equal(used(place), UINT64_MAX);
    assert_int_equal(share_free_bytes(&place->shares[0]), 0);
    assert_false(share_reserve(&place->shares[0], 1));
    exec_account_clear(place->account, place->shares[1].index);
    assert_int_equal(used(place), 10);
}

static void a_death_gives_its_share_back(void **state)
{
    struct place *place = *state;

    assert_true(share_reserve(&place->shares[0], 900));
    assert_true(share_reserve(&place->shares[1], 100));
    exec_account_clear(place->account, place->shares[0].index);
    assert_int_equal(used(place), 100);
    assert_true(share_reserve(&place->shares[1], 900));
}

static void a_limit_changes_while_shares_are_held(void **state)
{
    struct place *place = *state;

    assert_true(share_reserve(&place->shares[0], 800));
    exec_account_set_limit(place->account, 500);
    assert_int_equal(share_limit_bytes(&place->shares[0]), 500);
    assert_int_equal(share_free_bytes(&place->shares[0]), 0);
    assert_false(share_reserve(&place->shares[0], 1));
    assert_int_equal(used(place), 800);
    share_release(&place->shares[0], 400);
    assert_true(share_reserve(&place->shares[1], 100));
    exec_account_set_limit(place->account, 2000);
    assert_true(share_reserve(&place->shares[1], 1500));
}

static void what_is_there_already_counts_beyond_the_limit(void **state)
{
    struct place *place = *state;

    share_add(&place->shares[0], LIMIT + 10);
    assert_int_equal(used(place), LIMIT + 10);
    assert_int_equal(share_free_bytes(&place->shares[1]), 0);
    assert_false(share_reserve(&place->shares[1], 0));
    share_release(&place->shares[0], 10);
    assert_true(share_reserve(&place->shares[1], 0));
    assert_false(share_reserve(&place->shares[1], 1));
}

static void *reserve_and_release(void *argument)
{
    const struct account_share *share = argument;
    uint64_t beyond = 0;

    for (uint32_t i = 0; i < ROUNDS; i++) {
        if (!share_reserve(share, LIMIT / 2))
            continue;
        /* Others' tries may stand in the sum; what three hold together may not. */
        beyond += share->memory->shares[share->index] > LIMIT / 2;
        share_release(share, LIMIT / 2);
    }
    return (void *)(uintptr_t)beyond;
}

static void sessions_that_ask_at_once_leave_the_account_as_it_was(void **state)
{
    struct place *place = *state;
    pthread_t threads[THREADS];
    void *beyond;

    for (uint32_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, reserve_and_release, &place->shares[i]),
                         0);
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], &beyond), 0);
        assert_null(beyond);
    }
    assert_int_equal(used(place), 0);
}

/* Who holds what was granted, by its own word: a byte each, and all of it at the end. */
static void *take_all(void *argument)
{
    const struct account_share *share = argument;
    uint64_t got = 0;

    while (share_reserve(share, 1))
        got++;
    return (void *)(uintptr_t)got;
}

static void sessions_that_ask_at_once_never_have_more_than_the_limit(void **state)
{
    struct place *place = *state;
    pthread_t threads[THREADS];
    uint64_t all = 0;
    void *got;

    for (uint32_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_all, &place->shares[i]), 0);
    for (uint32_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], &got), 0);
        all += (uintptr_t)got;
    }
    assert_int_equal(all, used(place));
    assert_true(all <= LIMIT);
    all += (uintptr_t)take_all(&place->shares[0]);
    assert_int_equal(all, LIMIT);
}

/* Something is held all the time, so that it asks in vain. */
static void *ask_for_everything(void *argument)
{
    const struct account_share *share = argument;
    uint64_t got = 0;

    for (uint32_t i = 0; i < VAIN_ROUNDS; i++)
        got += share_reserve(share, LIMIT);
    return (void *)(uintptr_t)got;
}

static void who_asks_for_too_much_refuses_no_other(void **state)
{
    struct place *place = *state;
    pthread_t thread;
    uint32_t refused = 0;
    void *got;

    assert_true(share_reserve(&place->shares[1], 1));
    assert_int_equal(pthread_create(&thread, NULL, ask_for_everything, &place->shares[0]), 0);
    for (uint32_t i = 0; i < VAIN_ROUNDS; i++) {
        if (share_reserve(&place->shares[1], 1))
            share_release(&place->shares[1], 1);
        else
            refused++;
    }
    assert_int_equal(pthread_join(thread, &got), 0);
    assert_null(got);
    assert_int_equal(refused, 0);
    assert_int_equal(used(place), 1);
}

/* --- shares ------------------------------------------------------------------------------------
 */

static void each_session_has_a_share_of_its_own(void **state)
{
    struct place *place = *state;
    struct vgpu_error error;
    uint32_t share;

    for (uint32_t i = THREADS; i < EXEC_ACCOUNT_SHARES; i++) {
        assert_int_equal(exec_account_take(place->account, &share, &error), 0);
        assert_false(exec_account_claim(place->account, share));
    }
    assert_int_equal(exec_account_take(place->account, &share, &error), -1);
    assert_int_equal(error.code, EUSERS);
    assert_non_null(strstr(error.message, "end a session first"));
    place->memory->shares[7] = 5;
    exec_account_give(place->account, 7);
    assert_int_equal(used(place), 0);
    assert_int_equal(exec_account_take(place->account, &share, &error), 0);
    assert_int_equal(share, 7);
}

static void a_share_that_no_account_has_cannot_be_claimed(void **state)
{
    struct place *place = *state;

    assert_false(exec_account_claim(place->account, EXEC_ACCOUNT_SHARES));
    assert_false(exec_account_claim(place->account, UINT32_MAX));
}

/* --- what the VM may do ---------------------------------------------------------------------- */

static void set(struct place *place, struct exec_budget budget)
{
    exec_account_set_budget(place->account, &budget, clock_monotonic_ns());
}

static void without_a_budget_everything_is_allowed(void **state)
{
    struct place *place = *state;
    uint64_t wait_ns;

    assert_int_equal(budget_take(&place->shares[0], 1000000), 1000000);
    assert_int_equal(budget_wait_ns(&place->shares[0]), 0);
    budget_charge(&place->shares[0], UINT64_MAX);
    assert_int_equal(budget_device_wait_ns(&place->shares[0]), 0);
    assert_true(budget_allows(&place->shares[0], UINT64_MAX));
    assert_true(exec_account_take_request(place->account, clock_monotonic_ns(), &wait_ns));
}

static void all_sessions_and_the_mediator_take_from_one_bucket(void **state)
{
    struct place *place = *state;
    uint64_t wait_ns;

    set(place, (struct exec_budget){.request_rate = 1, .request_burst = 10});
    assert_int_equal(budget_take(&place->shares[0], 4), 4);
    assert_int_equal(budget_take(&place->shares[1], 5), 5);
    assert_true(exec_account_take_request(place->account, clock_monotonic_ns(), &wait_ns));
    assert_false(exec_account_take_request(place->account, clock_monotonic_ns(), &wait_ns));
    assert_int_equal(budget_take(&place->shares[2], 5), 0);
    assert_true(budget_wait_ns(&place->shares[2]) > 0);
}

static void a_burst_is_a_tenth_of_a_second_unless_it_is_said(void **state)
{
    struct place *place = *state;

    set(place, (struct exec_budget){.request_rate = 50});
    assert_int_equal(budget_take(&place->shares[0], 100), 5);
    set(place, (struct exec_budget){0});
    set(place, (struct exec_budget){.request_rate = 2});
    assert_int_equal(budget_take(&place->shares[0], 100), 1);
}

static void device_time_is_charged_by_all_and_owed_by_all(void **state)
{
    struct place *place = *state;
    uint64_t now_ns = clock_monotonic_ns();

    set(place, (struct exec_budget){.device_share_percent = 10});
    assert_int_equal(budget_device_wait_ns(&place->shares[0]), 0);
    budget_charge(&place->shares[0], 50000);
    exec_account_charge(place->account, 50000, now_ns);
    /* A tenth of a second of device time is a second of the clock. */
    assert_true(budget_device_wait_ns(&place->shares[1]) > 900 * NS_PER_MS);
    assert_true(exec_account_device_wait_ns(place->account, now_ns) > 900 * NS_PER_MS);
    assert_int_equal(exec_account_device_wait_ns(place->account, now_ns + NS_PER_S), 0);
}

static void what_is_in_flight_counts_for_all_sessions(void **state)
{
    struct place *place = *state;

    set(place, (struct exec_budget){.inflight_ops_max = 3, .inflight_bytes_max = 100});
    budget_tell_inflight(&place->shares[0], 1, 40);
    assert_true(budget_allows(&place->shares[1], 60));
    assert_false(budget_allows(&place->shares[1], 61));
    assert_false(budget_allows(&place->shares[1], UINT64_MAX));
    budget_tell_inflight(&place->shares[1], 2, 0);
    assert_false(budget_allows(&place->shares[1], 0));
    exec_account_clear(place->account, place->shares[0].index);
    assert_true(budget_allows(&place->shares[1], 100));
}

static void images_of_all_sessions_have_one_bound(void **state)
{
    struct place *place = *state;

    assert_true(share_reserve_image(&place->shares[0], 1ull << 40)); /* no bound yet */
    share_release_image(&place->shares[0], 1ull << 40);
    set(place, (struct exec_budget){.image_bytes_max = 100, .context_bytes = 7});
    assert_int_equal(share_context_bytes(&place->shares[0]), 7);
    assert_true(share_reserve_image(&place->shares[0], 60));
    assert_false(share_reserve_image(&place->shares[1], 41));
    assert_false(share_reserve_image(&place->shares[1], UINT64_MAX));
    assert_true(share_reserve_image(&place->shares[1], 40));
    assert_false(share_reserve_image(&place->shares[0], 1));
    exec_account_clear(place->account, place->shares[0].index); /* its worker died */
    assert_true(share_reserve_image(&place->shares[1], 60));
    assert_int_equal(exec_account_used_bytes(place->account), 0); /* it is no device memory */
    share_release_image(&place->shares[1], 100);
}

static void what_waits_counts_for_all_sessions_and_each_is_let_one(void **state)
{
    struct place *place = *state;

    set(place, (struct exec_budget){.queue_depth_max = 5});
    assert_int_equal(budget_take(&place->shares[0], 10), 5);
    budget_tell_queued(&place->shares[0], 4);
    assert_int_equal(budget_take(&place->shares[1], 10), 1);
    budget_tell_queued(&place->shares[1], 1);
    assert_int_equal(budget_take(&place->shares[0], 10), 0);
    assert_int_equal(budget_take(&place->shares[2], 10), 1);
    budget_tell_queued(&place->shares[0], 0);
    assert_int_equal(budget_take(&place->shares[0], 10), 4);
}

static void a_budget_outlives_the_mediator(void **state)
{
    struct place *place = *state;
    struct vgpu_error error;
    uint64_t wait_ns;

    set(place, (struct exec_budget){.request_rate = 1, .request_burst = 1});
    assert_int_equal(budget_take(&place->shares[0], 1), 1);
    exec_account_close(place->account);
    assert_int_equal(exec_account_open(place->path, LIMIT, true, &place->account, &error), 0);
    set(place, (struct exec_budget){.request_rate = 1, .request_burst = 1});
    assert_false(exec_account_take_request(place->account, clock_monotonic_ns(), &wait_ns));
}

/* --- over mediators ------------------------------------------------------------------------------
 */

static void a_successor_takes_over_what_living_workers_hold(void **state)
{
    struct place *place = *state;
    struct vgpu_error error;

    assert_true(share_reserve(&place->shares[0], 300));
    assert_true(share_reserve(&place->shares[1], 700)); /* this worker is dead by then */
    exec_account_close(place->account);
    assert_int_equal(exec_account_open(place->path, 2 * LIMIT, true, &place->account, &error), 0);
    assert_true(exec_account_claim(place->account, place->shares[0].index));
    assert_int_equal(used(place), LIMIT);
    exec_account_settle(place->account);
    assert_int_equal(used(place), 300);
    assert_int_equal(share_free_bytes(&place->shares[0]), 2 * LIMIT - 300);
}

static void a_new_account_knows_nothing_of_an_old_one(void **state)
{
    struct place *place = *state;
    struct vgpu_error error;

    assert_true(share_reserve(&place->shares[0], 300));
    exec_account_close(place->account);
    assert_int_equal(exec_account_open(place->path, LIMIT, false, &place->account, &error), 0);
    assert_int_equal(used(place), 0);
    assert_true(share_reserve(&place->shares[0], 700)); /* in the old one */
    assert_int_equal(used(place), 0);
}

static int adopt_code(struct place *place)
{
    struct exec_account *account = NULL;
    struct vgpu_error error = {0};

    assert_int_equal(exec_account_open(place->path, LIMIT, true, &account, &error), -1);
    assert_null(account);
    return error.code;
}

static void what_is_no_account_is_not_adopted(void **state)
{
    struct place *place = *state;

    place->memory->magic++;
    assert_int_equal(adopt_code(place), EINVAL);
    assert_int_equal(truncate(place->path, 100), 0);
    assert_int_equal(adopt_code(place), EINVAL);
    unlink(place->path);
    assert_int_equal(adopt_code(place), ENOENT);
    assert_int_equal(symlink("/etc/passwd", place->path), 0);
    assert_int_equal(adopt_code(place), ELOOP);
    assert_int_equal(unlink(place->path), 0);
    assert_int_equal(mkdir(place->path, 0700), 0);
    assert_int_equal(adopt_code(place), EISDIR);
    assert_int_equal(rmdir(place->path), 0);
}

static unsigned descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void an_account_is_private_and_holds_no_descriptor(void **state)
{
    struct place *place = *state;
    unsigned before = descriptors();
    struct exec_account *other;
    struct vgpu_error error;
    char path[512];
    struct stat info;

    snprintf(path, sizeof(path), "%s/other", place->directory);
    assert_int_equal(exec_account_open(path, LIMIT, false, &other, &error), 0);
    assert_int_equal(descriptors(), before);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    exec_account_end(other);
    assert_int_equal(access(path, F_OK), -1);
    exec_account_end(NULL);
    exec_account_close(NULL);
}

#define ACCOUNT_TEST(function) cmocka_unit_test_setup_teardown(function, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ACCOUNT_TEST(two_sessions_share_the_limit_to_the_byte),
        ACCOUNT_TEST(a_refusal_leaves_nothing_behind),
        ACCOUNT_TEST(a_share_that_says_nonsense_leaves_no_room),
        ACCOUNT_TEST(a_death_gives_its_share_back),
        ACCOUNT_TEST(a_limit_changes_while_shares_are_held),
        ACCOUNT_TEST(what_is_there_already_counts_beyond_the_limit),
        ACCOUNT_TEST(sessions_that_ask_at_once_leave_the_account_as_it_was),
        ACCOUNT_TEST(sessions_that_ask_at_once_never_have_more_than_the_limit),
        ACCOUNT_TEST(who_asks_for_too_much_refuses_no_other),
        ACCOUNT_TEST(each_session_has_a_share_of_its_own),
        ACCOUNT_TEST(a_share_that_no_account_has_cannot_be_claimed),
        ACCOUNT_TEST(without_a_budget_everything_is_allowed),
        ACCOUNT_TEST(all_sessions_and_the_mediator_take_from_one_bucket),
        ACCOUNT_TEST(a_burst_is_a_tenth_of_a_second_unless_it_is_said),
        ACCOUNT_TEST(device_time_is_charged_by_all_and_owed_by_all),
        ACCOUNT_TEST(what_is_in_flight_counts_for_all_sessions),
        ACCOUNT_TEST(images_of_all_sessions_have_one_bound),
        ACCOUNT_TEST(what_waits_counts_for_all_sessions_and_each_is_let_one),
        ACCOUNT_TEST(a_budget_outlives_the_mediator),
        ACCOUNT_TEST(a_successor_takes_over_what_living_workers_hold),
        ACCOUNT_TEST(a_new_account_knows_nothing_of_an_old_one),
        ACCOUNT_TEST(what_is_no_account_is_not_adopted),
        ACCOUNT_TEST(an_account_is_private_and_holds_no_descriptor),
    };

    return cmocka_run_group_tests_name("exec_account", tests, NULL, NULL);
}
