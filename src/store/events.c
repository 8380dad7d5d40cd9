/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The audit: who, when, what, before and after.  Rows are only ever added; the schema
 * refuses to change or delete one.  Pruning takes its word back for one transaction, and
 * leaves an event of its own.
 */
#include "store/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void keep_changed(json_t *before, json_t *after)
{
    const char *key;
    json_t *value;
    void *next;

    json_object_foreach_safe(before, next, key, value)
    {
        if (json_equal(value, json_object_get(after, key))) {
            json_object_del(after, key);
            json_object_del(before, key);
        }
    }
}

int event_compare(json_t *before, json_t *after, struct vgpu_error *error)
{
    bool whole = before && after;

    if (whole) {
        keep_changed(before, after);
        if (json_object_size(after) > 0)
            return 1;
    }
    json_decref(before);
    json_decref(after);
    return whole ? 0 : error_set(error, ENOMEM, "no memory for an event");
}

static int insert(struct store *store, const struct store_event *event, uint32_t new_vm_id,
                  struct vgpu_error *error)
{
    static const char sql[] =
        "INSERT INTO events (time_us, actor, action, vm_id, pool, before, after, new_vm_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    char pool[] = {event->pool, '\0'};
    sqlite3_stmt *statement;

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    sql_bind_number(statement, 1, (int64_t)(clock_realtime_ns() / NS_PER_US));
    sql_bind_text(statement, 2, event->actor[0] ? event->actor : store->who);
    sql_bind_text(statement, 3, event->action[0] ? event->action : store->action);
    if (event->vm_id)
        sql_bind_number(statement, 4, event->vm_id);
    sql_bind_text_or_null(statement, 5, pool);
    sql_bind_text_or_null(statement, 6, event->before);
    sql_bind_text_or_null(statement, 7, event->after);
    if (new_vm_id)
        sql_bind_number(statement, 8, new_vm_id);
    return sql_finish(store, statement, "write the event", error);
}

/* Takes `state` over. */
static int write_state(json_t *state, char text[STORE_STATE_BYTES], struct vgpu_error *error)
{
    size_t bytes = json_dumpb(state, text, STORE_STATE_BYTES, JSON_COMPACT);

    json_decref(state);
    if (bytes == 0 || bytes >= STORE_STATE_BYTES)
        return error_set(error, EINVAL, "the change is too large for its event");
    text[bytes] = '\0';
    return 0;
}

int event_add(struct store *store, uint32_t vm_id, uint32_t new_vm_id, char pool, json_t *before,
              json_t *after, struct vgpu_error *error)
{
    struct store_event event = {.vm_id = vm_id, .pool = pool};
    int result = 0;

    if (!before && !after)
        return error_set(error, ENOMEM, "no memory for an event");
    if (before)
        result = write_state(before, event.before, error);
    if (after && write_state(after, event.after, error) < 0)
        result = -1;
    return result < 0 ? -1 : insert(store, &event, new_vm_id, error);
}

/* --- an event of its own -------------------------------------------------------------- */

static int check_state(const char *what, const char *state, struct vgpu_error *error)
{
    json_t *value;
    bool object;

    if (!state[0])
        return 0;
    value = json_loads(state, 0, NULL);
    object = json_is_object(value);
    json_decref(value);
    if (!object)
        return error_set(error, EINVAL, "%s of an event: expected a JSON object", what);
    return 0;
}

int store_add_event(struct store *store, const struct store_event *event, struct vgpu_error *error)
{
    struct scope scope;

    if (check_text("the actor", event->actor, sizeof(event->actor), error) < 0 ||
        check_text("the action", event->action, sizeof(event->action), error) < 0 ||
        check_state("before", event->before, error) < 0 ||
        check_state("after", event->after, error) < 0)
        return -1;
    if (event->vm_id > STORE_VM_ID_MAX || (event->pool && (event->pool < 'A' || event->pool > 'Z')))
        return error_set(error, EINVAL,
                         "an event of VM %u, pool 0x%02x: expected an id or 0 and a "
                         "letter or nothing",
                         event->vm_id, (unsigned char)event->pool);
    if (scope_begin(store, &scope, error) < 0)
        return -1;
    return scope_end(store, &scope, insert(store, event, 0, error), error);
}

/* --- reading --------------------------------------------------------------------------- */

static void read_row(sqlite3_stmt *row, struct store_event *event)
{
    char pool[2];

    event->id = (uint64_t)sqlite3_column_int64(row, 0);
    event->time_us = (uint64_t)sqlite3_column_int64(row, 1);
    sql_column_text(row, 2, event->actor, sizeof(event->actor));
    sql_column_text(row, 3, event->action, sizeof(event->action));
    event->vm_id = (uint32_t)sqlite3_column_int64(row, 4);
    sql_column_text(row, 5, pool, sizeof(pool));
    event->pool = pool[0];
    sql_column_text(row, 6, event->before, sizeof(event->before));
    sql_column_text(row, 7, event->after, sizeof(event->after));
}

static int prepare_list(struct store *store, const struct store_event_filter *filter,
                        sqlite3_stmt **ret_statement, struct vgpu_error *error)
{
    /* A renumbered VM's history is found under both of its ids. */
    static const char sql[] =
        "SELECT * FROM (SELECT id, time_us, actor, action, vm_id, pool, before, after FROM events"
        " WHERE (?1 = 0 OR vm_id = ?1 OR new_vm_id = ?1) AND (?2 IS NULL OR action = ?2)"
        " AND time_us >= ?3 ORDER BY id DESC LIMIT ?4) ORDER BY id";

    if (sql_prepare(store, sql, ret_statement, error) < 0)
        return -1;
    sql_bind_number(*ret_statement, 1, filter->vm_id);
    if (filter->action)
        sql_bind_text(*ret_statement, 2, filter->action);
    sql_bind_number(*ret_statement, 3, (int64_t)filter->since_us);
    sql_bind_number(*ret_statement, 4, filter->limit ? (int64_t)filter->limit : -1);
    return 0;
}

int store_list_events(struct store *store, const struct store_event_filter *filter,
                      struct store_event **ret_events, size_t *ret_count, struct vgpu_error *error)
{
    static const struct store_event_filter all = {0};
    sqlite3_stmt *statement;
    void *events = NULL;
    size_t count = 0;
    int result;

    if (prepare_list(store, filter ? filter : &all, &statement, error) < 0)
        return -1;
    while ((result = sql_step(store, statement, error)) == 1) {
        struct store_event *event = sql_new_row(&events, &count, sizeof(*event));

        if (!event) {
            result = error_set(error, ENOMEM, "no memory for a list of events");
            break;
        }
        read_row(statement, event);
    }
    sqlite3_finalize(statement);
    if (result < 0) {
        free(events);
        return -1;
    }
    *ret_events = events;
    *ret_count = count;
    return 0;
}

/* --- pruning ------------------------------------------------------------------------------ */

static int delete_before(struct store *store, uint64_t before_us, struct vgpu_error *error)
{
    sqlite3_stmt *statement;

    if (sql_prepare(store, "DELETE FROM events WHERE time_us < ?1", &statement, error) < 0)
        return -1;
    sql_bind_number(statement, 1, (int64_t)before_us);
    return sql_finish(store, statement, "delete the events", error);
}

/* The trigger comes back word by word, as the schema is compared by its text. */
static int read_guard(struct store *store, char *text, size_t bytes, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store, "SELECT sql FROM sqlite_master WHERE name = 'events_stay'", &statement,
                    error) < 0)
        return -1;
    result = sql_step(store, statement, error);
    if (result > 0) /* with its line breaks */
        snprintf(text, bytes, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return result > 0 ? 0
           : result == 0
               ? error_set(error, EBADMSG, "%s: its trigger events_stay is missing", store->path)
               : -1;
}

static int prune(struct store *store, uint64_t before_us, uint64_t *ret_count,
                 struct vgpu_error *error)
{
    struct store_event event = {.vm_id = 0};
    char guard[512];
    uint64_t count;

    if (read_guard(store, guard, sizeof(guard), error) < 0 ||
        sql_run(store, "DROP TRIGGER events_stay", "delete the events", error) < 0 ||
        delete_before(store, before_us, error) < 0)
        return -1;
    count = (uint64_t)sqlite3_changes(store->db);
    if (sql_run(store, guard, "delete the events", error) < 0)
        return -1;
    snprintf(event.after, sizeof(event.after), "{\"pruned\": %llu, \"before_us\": %llu}",
             (unsigned long long)count, (unsigned long long)before_us);
    *ret_count = count;
    return insert(store, &event, 0, error);
}

int store_prune_events(struct store *store, uint64_t before_us, uint64_t *ret_count,
                       struct vgpu_error *error)
{
    struct scope scope;
    uint64_t count = 0;
    int result;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    result = prune(store, before_us, &count, error);
    if (scope_end(store, &scope, result, error) < 0)
        return -1;
    if (ret_count)
        *ret_count = count;
    return 0;
}
