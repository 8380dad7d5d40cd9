/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's VMs: what is kept, what is refused and in which words. */
#include "store_unit.h"

#define UUID_1 "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

static struct store_vm get(struct place *place, uint32_t vm_id)
{
    struct store_vm vm;

    DONE(place, store_get_vm(place->store, vm_id, &vm, &place->error));
    return vm;
}

static int change(struct place *place, uint32_t vm_id, unsigned fields, struct store_vm values)
{
    struct store_vm_change vm_change = {fields, values};

    return store_change_vm(place->store, vm_id, &vm_change, NULL, NULL, &place->error);
}

static void a_new_vm_has_the_defaults(void **state)
{
    struct place *place = *state;
    struct store_vm vm;

    store_vm_init(&vm);
    DONE(place, store_add_vm(place->store, &vm, &place->error));
    vm = get(place, vm.vm_id);
    assert_int_equal(vm.vm_id, 1);
    assert_int_equal(vm.pool, 'A');
    assert_int_equal(vm.priority, 1);
    assert_int_equal(vm.state, STORE_VM_ACTIVE);
    assert_int_equal(vm.channels, STORE_CHANNEL_FILE | STORE_CHANNEL_WINDOW);
    assert_int_equal(vm.owner_uid, -1);
    assert_int_equal(vm.owner_gid, -1);
    assert_int_equal(vm.mode, 0700);
    assert_string_equal(vm.name, "");
    assert_string_equal(vm.uuid, "");
    assert_true(vm.created_us > 1600000000000000u);
    assert_int_equal(vm.created_us, vm.changed_us);
}

static void every_field_comes_back_after_the_database_was_closed(void **state)
{
    struct place *place = *state;
    struct store_vm vm = {
        .vm_id = STORE_VM_ID_MAX,
        .uuid = "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0",
        .name = "John's \"VM\" (64-bit) \\ %s;",
        .pool = 'B',
        .priority = 2,
        .limits = {64, 1u << 20, 86400000, 1000, 10000000, 9999999, 100, 1000000, 65536, 1u << 30},
        .state = STORE_VM_QUARANTINED,
        .reason = "\xc3\xbc"
                  "berlast",
        .quarantine_until_us = 1800000000000000,
        .channels = STORE_CHANNEL_XEN,
        .owner_uid = 4294967294,
        .owner_gid = 0,
        .mode = 0770,
    };
    struct store_vm found;

    DONE(place, store_add_vm(place->store, &vm, &place->error));
    place_reopen(place);
    found = get(place, vm.vm_id);
    assert_string_equal(found.uuid, UUID_1);
    assert_string_equal(found.name, vm.name);
    assert_string_equal(found.reason, vm.reason);
    assert_int_equal(found.pool, 'B');
    assert_int_equal(found.priority, 2);
    assert_memory_equal(&found.limits, &vm.limits, sizeof(vm.limits));
    assert_int_equal(found.state, STORE_VM_QUARANTINED);
    assert_int_equal(found.channels, STORE_CHANNEL_XEN);
    assert_true(found.owner_uid == 4294967294 && found.owner_gid == 0);
    assert_int_equal(found.mode, 0770);
    assert_true(found.quarantine_until_us == 1800000000000000);
}

static void each_limit_is_changed_by_itself_and_is_held_to_its_range(void **state)
{
    struct place *place = *state;
    struct store_limits expected = {0};

    place_add(place, "web", 'A');
    for (unsigned i = 0; i < STORE_LIMITS; i++) {
        const struct store_limit *limit = &store_limits[i];
        struct store_vm values = {0};
        struct store_vm found;
        char sql[128];

        store_limit_set(&values.limits, limit, limit->max);
        store_limit_set(&expected, limit, limit->max);
        DONE(place, change(place, 1, limit->field, values));
        found = get(place, 1);
        assert_memory_equal(&found.limits, &expected, sizeof(expected));
        assert_ptr_equal(store_limit_find(limit->name), limit);
        store_limit_set(&values.limits, limit, limit->max + 1);
        REFUSED(place, EINVAL, limit->name, change(place, 1, limit->field, values));
        snprintf(sql, sizeof(sql), "UPDATE vms SET %s = %u", limit->name, limit->max + 1);
        assert_int_equal(place_sql(place->path, sql), SQLITE_CONSTRAINT);
    }
    assert_null(store_limit_find("speed"));
}

static void a_quarantine_ends_with_its_reason_and_its_time(void **state)
{
    struct place *place = *state;
    struct store_vm found;

    place_add(place, "web", 'A');
    DONE(place,
         change(place, 1, STORE_VM_STATE,
                (struct store_vm){
                    .state = STORE_VM_QUARANTINED, .reason = "faults", .quarantine_until_us = 77}));
    assert_int_equal(get(place, 1).quarantine_until_us, 77);
    DONE(place, change(place, 1, STORE_VM_STATE,
                       (struct store_vm){.state = STORE_VM_ACTIVE, .quarantine_until_us = 88}));
    found = get(place, 1);
    assert_int_equal(found.quarantine_until_us, 0);
    assert_string_equal(found.reason, "");
}

static void the_smallest_free_id_is_given(void **state)
{
    struct place *place = *state;
    struct store_vm vm;

    for (int i = 0; i < 4; i++)
        place_add(place, i == 0 ? "a" : i == 1 ? "b" : i == 2 ? "c" : "d", 'A');
    DONE(place, store_remove_vm(place->store, 2, NULL, &place->error));
    store_vm_init(&vm);
    DONE(place, store_add_vm(place->store, &vm, &place->error));
    assert_int_equal(vm.vm_id, 2);
    store_vm_init(&vm);
    DONE(place, store_add_vm(place->store, &vm, &place->error));
    assert_int_equal(vm.vm_id, 5);
}

static void what_is_taken_names_the_holder(void **state)
{
    struct place *place = *state;
    struct store_vm vm;

    store_vm_init(&vm);
    vm.vm_id = 7;
    strcpy(vm.name, "web");
    strcpy(vm.uuid, UUID_1);
    DONE(place, store_add_vm(place->store, &vm, &place->error));

    store_vm_init(&vm);
    vm.vm_id = 7;
    REFUSED(place, EEXIST, "VM id 7 is taken by VM 7 ('web')",
            store_add_vm(place->store, &vm, &place->error));
    vm.vm_id = 0;
    strcpy(vm.name, "web");
    REFUSED(place, EEXIST, "name 'web' is taken by VM 7 ('web')",
            store_add_vm(place->store, &vm, &place->error));
    assert_int_equal(vm.vm_id, 0); /* untouched on failure */
    strcpy(vm.name, "other");
    strcpy(vm.uuid, "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0");
    REFUSED(place, EEXIST, "UUID " UUID_1 " is taken by VM 7 ('web')",
            store_add_vm(place->store, &vm, &place->error));
    vm.uuid[0] = '\0';
    DONE(place, store_add_vm(place->store, &vm, &place->error));
    REFUSED(place, EEXIST, "taken by VM 7",
            change(place, vm.vm_id, STORE_VM_ID, (struct store_vm){.vm_id = 7}));
    REFUSED(place, EEXIST, "taken by VM 7",
            change(place, vm.vm_id, STORE_VM_NAME, (struct store_vm){.name = "web"}));
    /* Its own are not taken. */
    DONE(place, change(place, 7, STORE_VM_NAME | STORE_VM_ID,
                       (struct store_vm){.name = "web", .vm_id = 7}));
}

static void bad_values_are_refused_and_nothing_is_changed(void **state)
{
    static const struct {
        const char *words;
        unsigned field;
        struct store_vm values;
    } cases[] = {
        {"priority 3", STORE_VM_PRIORITY, {.priority = 3}},
        {"VM id 0", STORE_VM_ID, {.vm_id = 0}},
        {"VM id 2147483648", STORE_VM_ID, {.vm_id = 2147483648u}},
        {"sessions_max 65", STORE_VM_SESSIONS_MAX, {.limits.sessions_max = 65}},
        {"device_memory_mib 1048577",
         STORE_VM_DEVICE_MEMORY,
         {.limits.device_memory_mib = 1048577}},
        {"operation_limit_ms 86400001",
         STORE_VM_OPERATION_LIMIT,
         {.limits.operation_limit_ms = 86400001}},
        {"channels 8", STORE_VM_CHANNELS, {.channels = 8}},
        {"mode 0702", STORE_VM_OWNER, {.mode = 0702}},
        {"mode 0400", STORE_VM_OWNER, {.mode = 0400}},
        {"owner -2", STORE_VM_OWNER, {.mode = 0700, .owner_uid = -2}},
        {"owner 4294967295", STORE_VM_OWNER, {.mode = 0700, .owner_uid = 4294967295}},
        {"no pool 'C'", STORE_VM_POOL, {.pool = 'C'}},
        {"pool id", STORE_VM_POOL, {.pool = 'a'}},
        {"UUID 'no'", STORE_VM_UUID, {.uuid = "no"}},
        {"name ' x'", STORE_VM_NAME, {.name = " x"}},
        {"state 2", STORE_VM_STATE, {.state = (enum store_vm_state)2}},
        {"the reason", STORE_VM_STATE, {.state = STORE_VM_QUARANTINED, .reason = "two\nlines"}},
        {"the reason", STORE_VM_STATE, {.state = STORE_VM_QUARANTINED, .reason = "\xff"}},
    };
    struct place *place = *state;
    struct store_vm before, after;
    size_t events;

    place_add(place, "web", 'A');
    before = get(place, 1);
    events = place_event_count(place);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        int code = strncmp(cases[i].words, "no pool", 7) == 0 ? ENOENT : EINVAL;

        REFUSED(place, code, cases[i].words, change(place, 1, cases[i].field, cases[i].values));
    }
    after = get(place, 1);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(place_event_count(place), events);
}

static void the_schema_holds_other_programs_to_the_same(void **state)
{
    static const char *const bad[] = {
        "UPDATE vms SET priority = 3",
        "UPDATE vms SET priority = 'high'",
        "UPDATE vms SET pool = 'C'",
        "UPDATE vms SET vm_id = 0",
        "UPDATE vms SET uuid = 'no'",
        "UPDATE vms SET name = 'a' || char(10)",
        "UPDATE vms SET name = ''",
        "UPDATE vms SET mode = 511",
        "UPDATE vms SET state = 'gone'",
        "UPDATE vms SET channels = 8",
        "UPDATE vms SET owner_uid = -2",
        "UPDATE vms SET sessions_max = 65",
        "UPDATE vms SET weight = -1",
        "UPDATE vms SET device_share_percent = 'all'",
        "UPDATE vms SET quarantine_until_us = 5", /* it is active */
        "UPDATE pools SET policy = 'fair'",
        "UPDATE pools SET aging_ms = 86400001",
        "UPDATE pools SET demand = 2",
        "INSERT INTO vms (vm_id, name, created_us) VALUES (2, 'web', 0)",
        "DELETE FROM pools",
        "UPDATE events SET actor = 'nobody'",
        "DELETE FROM events",
        "UPDATE pools SET device = 'GPU-none'",
        "UPDATE pools SET id = 'a' WHERE id = 'B'",
    };
    struct place *place = *state;

    place_add(place, "web", 'A');
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        if (place_sql(place->path, bad[i]) != SQLITE_CONSTRAINT)
            fail_msg("taken: %s", bad[i]);
    }
    assert_int_equal(place_sql(place->path, "UPDATE vms SET priority = 2"), SQLITE_OK);
    assert_int_equal(get(place, 1).priority, 2);
}

static void a_vm_is_found_by_id_uuid_and_name_in_this_order(void **state)
{
    struct place *place = *state;
    struct store_vm vm;

    store_vm_init(&vm);
    vm.vm_id = 12;
    strcpy(vm.uuid, UUID_1);
    strcpy(vm.name, "web1");
    DONE(place, store_add_vm(place->store, &vm, &place->error));
    DONE(place, store_find_vm(place->store, "12", &vm, &place->error));
    DONE(place, store_find_vm(place->store, UUID_1, &vm, &place->error));
    DONE(place,
         store_find_vm(place->store, "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0", &vm, &place->error));
    DONE(place, store_find_vm(place->store, "web1", &vm, &place->error));
    assert_int_equal(vm.vm_id, 12);
    REFUSED(place, ENOENT, "'WEB' is registered; did you mean 'web1'?",
            store_find_vm(place->store, "WEB", &vm, &place->error));
    REFUSED(place, ENOENT, "id 13", store_get_vm(place->store, 13, &vm, &place->error));
}

static void names_that_were_probably_meant_are_said(void **state)
{
    struct place *place = *state;
    struct store_vm vm;

    place_add(place, "database", 'A');
    place_add(place, "data-lake", 'A');
    place_add(place, "build", 'A');
    REFUSED(place, ENOENT, "; did you mean 'database'?",
            store_find_vm(place->store, "dtabase", &vm, &place->error));
    REFUSED(place, ENOENT, "'data-lake'", store_find_vm(place->store, "data", &vm, &place->error));
    REFUSED(place, ENOENT, "'database'", store_find_vm(place->store, "data", &vm, &place->error));
    REFUSED(place, ENOENT, "list-vms", store_find_vm(place->store, "zzz", &vm, &place->error));
    REFUSED(place, ENOENT, "'a\\x0a'", store_find_vm(place->store, "a\n", &vm, &place->error));
}

static void changes_of_different_columns_both_last(void **state)
{
    struct place *place = *state;
    struct store *other;
    struct store_actor actor = {"alice", "set-pool"};
    struct store_vm_change pool = {STORE_VM_POOL, {.pool = 'B'}};
    struct store_vm before, after;

    place_add(place, "web", 'A');
    DONE(place, store_open(place->path, STORE_WRITE, &other, &place->error));
    store_set_actor(other, &actor);
    DONE(place, change(place, 1, STORE_VM_PRIORITY, (struct store_vm){.priority = 2}));
    DONE(place, store_change_vm(other, 1, &pool, &before, &after, &place->error));
    store_close(other);
    assert_int_equal(before.pool, 'A');
    assert_int_equal(after.pool, 'B');
    assert_int_equal(get(place, 1).pool, 'B');
    assert_int_equal(get(place, 1).priority, 2);
}

static void what_is_as_it_was_makes_no_event(void **state)
{
    struct place *place = *state;
    struct store_vm before;
    size_t events;

    place_add(place, "web", 'A');
    before = get(place, 1);
    events = place_event_count(place);
    DONE(place, change(place, 1, STORE_VM_PRIORITY | STORE_VM_POOL,
                       (struct store_vm){.priority = 1, .pool = 'A'}));
    assert_int_equal(place_event_count(place), events);
    assert_int_equal(get(place, 1).changed_us, before.changed_us);
}

static void a_reason_lasts_as_long_as_the_quarantine(void **state)
{
    struct place *place = *state;

    place_add(place, "web", 'A');
    DONE(place, change(place, 1, STORE_VM_STATE,
                       (struct store_vm){.state = STORE_VM_QUARANTINED, .reason = "mines"}));
    assert_string_equal(get(place, 1).reason, "mines");
    DONE(place, change(place, 1, STORE_VM_STATE, (struct store_vm){.reason = "mines"}));
    assert_string_equal(get(place, 1).reason, "");
    assert_int_equal(get(place, 1).state, STORE_VM_ACTIVE);
}

static void a_renumbered_vm_keeps_its_history_under_both_ids(void **state)
{
    struct place *place = *state;
    struct store_event *events;
    struct store_event_filter of_new = {.vm_id = 9}, of_old = {.vm_id = 1};

    place_add(place, "web", 'A');
    DONE(place, change(place, 1, STORE_VM_ID, (struct store_vm){.vm_id = 9}));
    assert_int_equal(place_events(place, &of_old, &events), 2);
    free(events);
    assert_int_equal(place_events(place, &of_new, &events), 1);
    assert_string_equal(events[0].before, "{\"vm_id\":1}");
    assert_string_equal(events[0].after, "{\"vm_id\":9}");
    free(events);
    REFUSED(place, ENOENT, "id 1 ", change(place, 1, STORE_VM_PRIORITY, (struct store_vm){0}));
}

static void a_removed_vm_is_gone_and_its_last_state_is_in_the_event(void **state)
{
    struct place *place = *state;
    struct store_event_filter filter = {.vm_id = 1, .limit = 1};
    struct store_event *events;
    struct store_vm vm;
    size_t count;
    struct store_vm *vms;

    place_add(place, "web", 'B');
    DONE(place, store_remove_vm(place->store, 1, &vm, &place->error));
    assert_string_equal(vm.name, "web");
    REFUSED(place, ENOENT, "id 1", store_remove_vm(place->store, 1, &vm, &place->error));
    assert_int_equal(place_events(place, &filter, &events), 1);
    assert_non_null(strstr(events[0].before, "\"name\":\"web\""));
    assert_string_equal(events[0].after, "");
    free(events);
    DONE(place, store_list_vms(place->store, &vms, &count, &place->error));
    assert_int_equal(count, 0);
    free(vms);
}

static void vms_are_listed_by_id(void **state)
{
    struct place *place = *state;
    struct store_vm *vms, vm;
    size_t count;

    for (uint32_t id = 50; id >= 1; id--) {
        store_vm_init(&vm);
        vm.vm_id = id;
        DONE(place, store_add_vm(place->store, &vm, &place->error));
    }
    DONE(place, store_list_vms(place->store, &vms, &count, &place->error));
    assert_int_equal(count, 50);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(vms[i].vm_id, i + 1);
    free(vms);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(a_new_vm_has_the_defaults),
        PLACE_TEST(every_field_comes_back_after_the_database_was_closed),
        PLACE_TEST(each_limit_is_changed_by_itself_and_is_held_to_its_range),
        PLACE_TEST(a_quarantine_ends_with_its_reason_and_its_time),
        PLACE_TEST(the_smallest_free_id_is_given),
        PLACE_TEST(what_is_taken_names_the_holder),
        PLACE_TEST(bad_values_are_refused_and_nothing_is_changed),
        PLACE_TEST(the_schema_holds_other_programs_to_the_same),
        PLACE_TEST(a_vm_is_found_by_id_uuid_and_name_in_this_order),
        PLACE_TEST(names_that_were_probably_meant_are_said),
        PLACE_TEST(changes_of_different_columns_both_last),
        PLACE_TEST(what_is_as_it_was_makes_no_event),
        PLACE_TEST(a_reason_lasts_as_long_as_the_quarantine),
        PLACE_TEST(a_renumbered_vm_keeps_its_history_under_both_ids),
        PLACE_TEST(a_removed_vm_is_gone_and_its_last_state_is_in_the_event),
        PLACE_TEST(vms_are_listed_by_id),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
