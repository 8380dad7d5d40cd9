/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's pools, devices and events. */
#include "store_unit.h"

static struct store_pool get(struct place *place, const char *text)
{
    struct store_pool pool;

    DONE(place, store_find_pool(place->store, text, &pool, &place->error));
    return pool;
}

static int change(struct place *place, char id, unsigned fields, struct store_pool values)
{
    struct store_pool_change pool_change = {fields, values};

    return store_change_pool(place->store, id, &pool_change, NULL, NULL, &place->error);
}

static int add_vm(struct place *place, const char *name, char pool, uint32_t memory_mib)
{
    struct store_vm vm;

    store_vm_init(&vm);
    text_copy(vm.name, sizeof(vm.name), name);
    vm.pool = pool;
    vm.limits.device_memory_mib = memory_mib;
    return store_add_vm(place->store, &vm, &place->error);
}

static int move_vm(struct place *place, uint32_t vm_id, char pool)
{
    struct store_vm_change vm_change = {STORE_VM_POOL, {.pool = pool}};

    return store_change_vm(place->store, vm_id, &vm_change, NULL, NULL, &place->error);
}

static int limit_vm(struct place *place, uint32_t vm_id, uint32_t memory_mib)
{
    struct store_vm_change vm_change = {STORE_VM_DEVICE_MEMORY,
                                        {.limits.device_memory_mib = memory_mib}};

    return store_change_vm(place->store, vm_id, &vm_change, NULL, NULL, &place->error);
}

static void a_new_database_has_pools_a_and_b_on_the_cpu(void **state)
{
    struct place *place = *state;
    struct store_pool *pools;
    struct store_device *devices;
    size_t count;

    DONE(place, store_list_pools(place->store, &pools, &count, &place->error));
    assert_int_equal(count, 2);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(pools[i].id, 'A' + (int)i);
        assert_true(pools[i].enabled);
        assert_int_equal(pools[i].sharing, STORE_SHARED);
        assert_string_equal(pools[i].device, "cpu");
        assert_int_equal(pools[i].vm_count, 0);
    }
    assert_string_equal(pools[0].name, "Pool A");
    free(pools);
    DONE(place, store_list_devices(place->store, &devices, &count, &place->error));
    assert_int_equal(count, 1);
    assert_string_equal(devices[0].name, "cpu");
    free(devices);
}

static void every_field_of_a_pool_comes_back(void **state)
{
    struct place *place = *state;
    struct store_device gpu = {.name = "GPU-0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                               .kind = STORE_DEVICE_GPU,
                               .description = "the first"};
    struct store_pool pool = {.id = 'Z',
                              .name = "night",
                              .description = "after \xe2\x98\xbe",
                              .enabled = false,
                              .sharing = STORE_INDEPENDENT,
                              .session_devices = 3,
                              .policy = STORE_POLICY_WFQ,
                              .aging_ms = 500,
                              .demand = true,
                              .vms_max = 7,
                              .device_memory_max_mib = 1ull << 30};

    DONE(place, store_put_device(place->store, &gpu, &place->error));
    snprintf(pool.device, sizeof(pool.device), "%s 0000:01:00.0 0000:02:00.0", gpu.name);
    for (int i = 1; i < 3; i++) {
        snprintf(gpu.name, sizeof(gpu.name), "0000:0%d:00.0", i);
        DONE(place, store_put_device(place->store, &gpu, &place->error));
    }
    DONE(place, store_add_pool(place->store, &pool, &place->error));
    place_reopen(place);
    for (int i = 0; i < 2; i++) {
        struct store_pool found = get(place, i ? "night" : "Z");

        assert_string_equal(found.name, pool.name);
        assert_string_equal(found.description, pool.description);
        assert_false(found.enabled);
        assert_int_equal(found.sharing, STORE_INDEPENDENT);
        assert_string_equal(found.device, pool.device);
        assert_int_equal(found.session_devices, 3);
        assert_int_equal(found.policy, STORE_POLICY_WFQ);
        assert_int_equal(found.aging_ms, 500);
        assert_true(found.demand);
        assert_int_equal(found.vms_max, 7);
        assert_true(found.device_memory_max_mib == 1ull << 30);
    }
}

static void a_full_pool_takes_no_more_vms(void **state)
{
    struct place *place = *state;

    DONE(place, change(place, 'B', STORE_POOL_VMS_MAX, (struct store_pool){.vms_max = 1}));
    DONE(place, add_vm(place, "one", 'B', 0));
    DONE(place, add_vm(place, "two", 'A', 0));
    REFUSED(place, EINVAL, "pool B ('Pool B') is full: it has 1 VMs and takes at most 1",
            add_vm(place, "three", 'B', 0));
    REFUSED(place, EINVAL, "is full", move_vm(place, 2, 'B'));
    assert_int_equal(place_sql(place->path, "UPDATE vms SET pool = 'B' WHERE vm_id = 2"),
                     SQLITE_CONSTRAINT);
    assert_int_equal(place_sql(place->path, "INSERT INTO vms (vm_id, pool, created_us)"
                                            " VALUES (3, 'B', 0)"),
                     SQLITE_CONSTRAINT);
    DONE(place, move_vm(place, 1, 'B')); /* it is there already */
    DONE(place, change(place, 'B', STORE_POOL_VMS_MAX, (struct store_pool){.vms_max = 2}));
    DONE(place, move_vm(place, 2, 'B'));
    REFUSED(place, EINVAL, "pool B has 2 VMs: vms_max 1 is too small",
            change(place, 'B', STORE_POOL_VMS_MAX, (struct store_pool){.vms_max = 1}));
    assert_int_equal(place_sql(place->path, "UPDATE pools SET vms_max = 1"), SQLITE_CONSTRAINT);
    assert_int_equal(get(place, "B").vm_count, 2);
}

static void a_pool_gives_out_no_more_device_memory_than_it_has(void **state)
{
    struct place *place = *state;
    struct store_pool bound = {.device_memory_max_mib = 1000};

    DONE(place, change(place, 'B', STORE_POOL_DEVICE_MEMORY, bound));
    REFUSED(place, EINVAL, "needs a limit of its own", add_vm(place, "none", 'B', 0));
    DONE(place, add_vm(place, "one", 'B', 600));
    REFUSED(place, EINVAL,
            "1000 MiB of device memory in all, its other VMs have 600 MiB of it: "
            "401 MiB are too much",
            add_vm(place, "two", 'B', 401));
    DONE(place, add_vm(place, "two", 'B', 400));
    DONE(place, limit_vm(place, 1, 500));
    DONE(place, limit_vm(place, 1, 600));
    REFUSED(place, EINVAL, "601 MiB are too much", limit_vm(place, 1, 601));
    REFUSED(place, EINVAL, "needs a limit of its own", limit_vm(place, 1, 0));
    assert_int_equal(place_sql(place->path, "UPDATE vms SET device_memory_mib = 601"),
                     SQLITE_CONSTRAINT);
    bound.device_memory_max_mib = 999;
    REFUSED(place, EINVAL, "device_memory_max_mib 999 is too small",
            change(place, 'B', STORE_POOL_DEVICE_MEMORY, bound));
    DONE(place, add_vm(place, "three", 'A', 0));
    REFUSED(place, EINVAL, "VM 3 has none", change(place, 'A', STORE_POOL_DEVICE_MEMORY, bound));
}

static void a_disabled_pool_keeps_its_vms_and_takes_none(void **state)
{
    struct place *place = *state;

    DONE(place, add_vm(place, "one", 'B', 0));
    DONE(place, add_vm(place, "two", 'A', 0));
    DONE(place, change(place, 'B', STORE_POOL_ENABLED, (struct store_pool){.enabled = false}));
    REFUSED(place, EINVAL, "pool B ('Pool B') is disabled", add_vm(place, "three", 'B', 0));
    REFUSED(place, EINVAL, "is disabled", move_vm(place, 2, 'B'));
    assert_int_equal(place_sql(place->path, "UPDATE vms SET pool = 'B'"), SQLITE_CONSTRAINT);
    DONE(place, limit_vm(place, 1, 5)); /* all else of its VMs can change */
    DONE(place, move_vm(place, 1, 'A'));
}

static void bad_pools_are_refused_and_nothing_is_changed(void **state)
{
    struct place *place = *state;
    struct store_pool pool;
    size_t events = place_event_count(place);

    store_pool_init(&pool);
    pool.id = 'c';
    strcpy(pool.name, "night");
    REFUSED(place, EINVAL, "pool id 'c'", store_add_pool(place->store, &pool, &place->error));
    pool.id = 'A';
    REFUSED(place, EEXIST, "pool A is there already ('Pool A')",
            store_add_pool(place->store, &pool, &place->error));
    pool.id = 'C';
    strcpy(pool.name, "");
    REFUSED(place, EINVAL, "name ''", store_add_pool(place->store, &pool, &place->error));
    strcpy(pool.name, "B");
    REFUSED(place, EINVAL, "taken for a pool's id",
            store_add_pool(place->store, &pool, &place->error));
    strcpy(pool.name, "Pool B");
    REFUSED(place, EEXIST, "name 'Pool B' is taken by pool B",
            store_add_pool(place->store, &pool, &place->error));
    strcpy(pool.name, "night");
    strcpy(pool.device, "cpu:5");
    REFUSED(place, ENOENT, "no device 'cpu:5'; there are: cpu",
            store_add_pool(place->store, &pool, &place->error));
    strcpy(pool.device, "tape");
    REFUSED(place, EINVAL, "device 'tape'", store_add_pool(place->store, &pool, &place->error));
    REFUSED(place, ENOENT, "no pool 'Q'; there are: A ('Pool A'), B ('Pool B')",
            change(place, 'Q', STORE_POOL_VMS_MAX, pool));
    REFUSED(place, ENOENT, "no pool 'day'",
            store_find_pool(place->store, "day", &pool, &place->error));
    assert_int_equal(place_event_count(place), events);
}

static void only_an_empty_pool_is_removed_and_never_the_last(void **state)
{
    struct place *place = *state;

    DONE(place, add_vm(place, "one", 'B', 0));
    REFUSED(place, EINVAL, "pool B has 1 VMs", store_remove_pool(place->store, 'B', &place->error));
    DONE(place, store_remove_vm(place->store, 1, NULL, &place->error));
    DONE(place, store_remove_pool(place->store, 'B', &place->error));
    REFUSED(place, ENOENT, "no pool 'B'", store_remove_pool(place->store, 'B', &place->error));
    REFUSED(place, EINVAL, "the last one", store_remove_pool(place->store, 'A', &place->error));
}

static void a_pool_can_be_unbound(void **state)
{
    struct place *place = *state;

    DONE(place, change(place, 'B', STORE_POOL_DEVICE, (struct store_pool){.device = ""}));
    assert_string_equal(get(place, "B").device, "");
    DONE(place, change(place, 'B', STORE_POOL_DEVICE, (struct store_pool){.device = "cpu"}));
    assert_string_equal(get(place, "B").device, "cpu");
}

static void a_device_is_added_once_and_described_anew(void **state)
{
    struct place *place = *state;
    struct store_device device = {.name = "0000:01:00.0", .kind = STORE_DEVICE_GPU};
    struct store_device *devices;
    size_t count, events = place_event_count(place);

    DONE(place, store_put_device(place->store, &device, &place->error));
    DONE(place, store_put_device(place->store, &device, &place->error));
    strcpy(device.description, "H100");
    DONE(place, store_put_device(place->store, &device, &place->error));
    assert_int_equal(place_event_count(place), events + 2);
    DONE(place, store_list_devices(place->store, &devices, &count, &place->error));
    assert_int_equal(count, 2);
    assert_string_equal(devices[0].description, "H100");
    assert_int_equal(devices[0].kind, STORE_DEVICE_GPU);
    free(devices);
    strcpy(device.name, "0000:01:00.8");
    REFUSED(place, EINVAL, "PCI address", store_put_device(place->store, &device, &place->error));
}

static void an_event_says_who_what_and_only_what_changed(void **state)
{
    struct place *place = *state;
    struct store_event_filter filter = {.action = "set-pool-name"};
    struct store_event *events;

    place_act(place, "alice (sudo)", "set-pool-name");
    DONE(place, change(place, 'B', STORE_POOL_NAME, (struct store_pool){.name = "night"}));
    assert_int_equal(place_events(place, &filter, &events), 1);
    assert_string_equal(events[0].actor, "alice (sudo)");
    assert_string_equal(events[0].action, "set-pool-name");
    assert_int_equal(events[0].pool, 'B');
    assert_int_equal(events[0].vm_id, 0);
    assert_string_equal(events[0].before, "{\"name\":\"Pool B\"}");
    assert_string_equal(events[0].after, "{\"name\":\"night\"}");
    assert_true(events[0].time_us > 1600000000000000u);
    free(events);
}

static void events_are_filtered_and_come_oldest_first(void **state)
{
    struct place *place = *state;
    struct store_event_filter newest = {.limit = 3}, of_vm = {.vm_id = 2}, later = {0};
    struct store_event *events;
    uint64_t last;

    for (int i = 0; i < 5; i++) {
        struct store_event event = {.action = "restart-vm", .vm_id = 1 + (uint32_t)i % 2};

        DONE(place, store_add_event(place->store, &event, &place->error));
    }
    assert_int_equal(place_events(place, &newest, &events), 3);
    assert_true(events[0].id < events[1].id && events[1].id < events[2].id);
    assert_string_equal(events[2].action, "restart-vm");
    assert_string_equal(events[2].actor, "root");
    last = events[2].time_us;
    free(events);
    assert_int_equal(place_events(place, &of_vm, &events), 2);
    free(events);
    later.since_us = last + 1;
    assert_int_equal(place_events(place, &later, &events), 0);
    free(events);
}

static void bad_events_are_refused(void **state)
{
    struct place *place = *state;
    struct store_event event = {.before = "[1]"};

    REFUSED(place, EINVAL, "before of an event: expected a JSON object",
            store_add_event(place->store, &event, &place->error));
    event = (struct store_event){.after = "{"};
    REFUSED(place, EINVAL, "after of an event",
            store_add_event(place->store, &event, &place->error));
    event = (struct store_event){.pool = 'a'};
    REFUSED(place, EINVAL, "expected an id or 0 and a letter or nothing",
            store_add_event(place->store, &event, &place->error));
    event = (struct store_event){.actor = "a\tb"};
    REFUSED(place, EINVAL, "the actor", store_add_event(place->store, &event, &place->error));
}

static void the_largest_row_fits_its_event(void **state)
{
    struct place *place = *state;
    struct store_event_filter filter = {.vm_id = 1};
    struct store_event *events;
    struct store_vm vm;

    store_vm_init(&vm);
    memset(vm.name, '"', sizeof(vm.name) - 1);
    memset(vm.reason, '\\', sizeof(vm.reason) - 1);
    vm.state = STORE_VM_QUARANTINED;
    strcpy(vm.uuid, "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0");
    DONE(place, store_add_vm(place->store, &vm, &place->error));
    assert_int_equal(place_events(place, &filter, &events), 1);
    assert_int_equal(events[0].after[strlen(events[0].after) - 1], '}');
    free(events);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(a_new_database_has_pools_a_and_b_on_the_cpu),
        PLACE_TEST(every_field_of_a_pool_comes_back),
        PLACE_TEST(a_full_pool_takes_no_more_vms),
        PLACE_TEST(a_pool_gives_out_no_more_device_memory_than_it_has),
        PLACE_TEST(a_disabled_pool_keeps_its_vms_and_takes_none),
        PLACE_TEST(bad_pools_are_refused_and_nothing_is_changed),
        PLACE_TEST(only_an_empty_pool_is_removed_and_never_the_last),
        PLACE_TEST(a_pool_can_be_unbound),
        PLACE_TEST(a_device_is_added_once_and_described_anew),
        PLACE_TEST(an_event_says_who_what_and_only_what_changed),
        PLACE_TEST(events_are_filtered_and_come_oldest_first),
        PLACE_TEST(bad_events_are_refused),
        PLACE_TEST(the_largest_row_fits_its_event),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
