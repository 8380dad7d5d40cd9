/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of src/store/ share: a database in a directory of its own. */
#ifndef VGPU_TESTS_STORE_UNIT_H
#define VGPU_TESTS_STORE_UNIT_H

#include "unit.h"

#include "store/store.h"

#include <errno.h>
#include <sqlite3.h>

struct place {
    char *directory;
    char path[256]; /* of the database */
    struct store *store;
    struct vgpu_error error;
};

#define DONE(place_, call)                                                                         \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, (place_)->error.message);                                    \
    } while (0)

/* It fails with this code, and its message holds `words`. */
#define REFUSED(place_, code_, words, call)                                                        \
    do {                                                                                           \
        (place_)->error = (struct vgpu_error){0};                                                  \
        assert_int_equal(call, -1);                                                                \
        if ((place_)->error.code != (code_) || !strstr((place_)->error.message, words))            \
            fail_msg("%s: %d: %s", #call, (place_)->error.code, (place_)->error.message);          \
    } while (0)

static inline const char *place_file(struct place *place, const char *name)
{
    static char paths[4][300];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", place->directory, name);
    return path;
}

static inline void place_act(struct place *place, const char *who, const char *action)
{
    struct store_actor actor = {who, action};

    store_set_actor(place->store, &actor);
}

static inline void place_reopen(struct place *place)
{
    store_close(place->store);
    DONE(place, store_open(place->path, STORE_WRITE, &place->store, &place->error));
    place_act(place, "root", "test");
}

static inline int place_set_up(void **state)
{
    struct place *place = calloc(1, sizeof(*place));
    struct store_actor actor = {"root", "init"};

    place->directory = unit_temporary_directory();
    text_copy(place->path, sizeof(place->path), place_file(place, "vgpu.db"));
    DONE(place, store_create(place->path, &actor, &place->error));
    place_reopen(place);
    *state = place;
    return 0;
}

static inline int place_tear_down(void **state)
{
    struct place *place = *state;

    store_close(place->store);
    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

/* As another program would write it: SQL on a connection of its own; SQLite's result. */
static inline int place_sql(const char *path, const char *sql)
{
    sqlite3 *db;
    int result;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    sqlite3_exec(db, "PRAGMA foreign_keys = ON", NULL, NULL, NULL);
    result = sqlite3_exec(db, sql, NULL, NULL, NULL);
    sqlite3_close(db);
    return result;
}

static inline void place_add(struct place *place, const char *name, char pool)
{
    struct store_vm vm;

    store_vm_init(&vm);
    text_copy(vm.name, sizeof(vm.name), name);
    vm.pool = pool;
    DONE(place, store_add_vm(place->store, &vm, &place->error));
}

static inline size_t place_events(struct place *place, const struct store_event_filter *filter,
                                  struct store_event **ret_events)
{
    size_t count;

    DONE(place, store_list_events(place->store, filter, ret_events, &count, &place->error));
    return count;
}

static inline size_t place_event_count(struct place *place)
{
    struct store_event *events;
    size_t count = place_events(place, NULL, &events);

    free(events);
    return count;
}

#define PLACE_TEST(name) cmocka_unit_test_setup_teardown(name, place_set_up, place_tear_down)

#endif
