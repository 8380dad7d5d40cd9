/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The schema, as the steps that made it (schema/N.sql): PRAGMA user_version says how
 * many of them a file has.  A new file goes through all, an old one through those that
 * it lacks, so both have the same schema by construction.  A released step is never edited: the
 * next change is the next step.
 *
 * All missing steps are one transaction: whoever is killed in its middle leaves the
 * old version.
 */
#include "store/private.h"
#include "store/steps.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

_Static_assert(VGPU_ARRAY_LENGTH(steps) < 1000, "user_version is three digits in messages");

unsigned store_schema_version(void)
{
    return VGPU_ARRAY_LENGTH(steps);
}

static int set_version(struct store *store, unsigned version, struct vgpu_error *error)
{
    char sql[96];

    snprintf(sql, sizeof(sql), "PRAGMA application_id = %d; PRAGMA user_version = %u",
             SCHEMA_APPLICATION_ID, version);
    return sql_run(store, sql, "set the version of its schema", error);
}

static int run_steps(struct store *store, unsigned from, struct vgpu_error *error)
{
    char what[64];

    for (unsigned i = from; i < VGPU_ARRAY_LENGTH(steps); i++) {
        snprintf(what, sizeof(what), "bring its schema to version %u", i + 1);
        if (sql_run(store, steps[i], what, error) < 0)
            return -1;
        fault_point("store_step");
    }
    return set_version(store, VGPU_ARRAY_LENGTH(steps), error);
}

int schema_create(struct store *store, struct vgpu_error *error)
{
    return run_steps(store, 0, error);
}

int schema_read_version(struct store *store, unsigned *ret_version, struct vgpu_error *error)
{
    int64_t application, version;

    if (sql_number(store, "PRAGMA application_id", &application, error) < 0 ||
        sql_number(store, "PRAGMA user_version", &version, error) < 0)
        return -1;
    if (application != SCHEMA_APPLICATION_ID || version < 1)
        return error_set(error, EBADMSG,
                         "%s: it is no database of vgpu-admin; check the path, or move it away and "
                         "make one with 'vgpu-admin init'",
                         store->path);
    if (version > (int64_t)VGPU_ARRAY_LENGTH(steps))
        return error_set(error, EPROTO,
                         "%s: its schema has version %lld and this program knows up to %u; use the "
                         "newer vgpu-admin and vgpu-mediator that wrote it",
                         store->path, (long long)version, store_schema_version());
    *ret_version = (unsigned)version;
    return 0;
}

static int migrate_from(struct store *store, unsigned version, struct vgpu_error *error)
{
    json_t *before, *after;

    if (run_steps(store, version, error) < 0)
        return -1;
    before = json_pack("{s:i}", "schema", (int)version);
    after = json_pack("{s:i}", "schema", (int)store_schema_version());
    return event_add(store, 0, 0, '\0', before, after, error);
}

int schema_migrate(struct store *store, struct vgpu_error *error)
{
    const struct scope scope = {.nested = false};
    unsigned version;
    int result;

    if (sql_run(store, "BEGIN IMMEDIATE", "begin to bring its schema up to date", error) < 0)
        return -1;
    /* Read again: another program may have done it since. */
    result = schema_read_version(store, &version, error);
    if (result == 0 && version < store_schema_version()) {
        text_copy(store->who, sizeof(store->who), "schema");
        text_copy(store->action, sizeof(store->action), "migrate");
        result = migrate_from(store, version, error);
        store->who[0] = store->action[0] = '\0';
    }
    return scope_end(store, &scope, result, error);
}

/* --- is it what it says? -------------------------------------------------------------- */

#define OBJECTS                                                                                    \
    "SELECT coalesce(name, '') || ' ' || coalesce(sql, '') FROM sqlite_master"                     \
    " WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1"

static int differ(struct store *store, const char *ours, const char *theirs,
                  struct vgpu_error *error)
{
    char our[48], their[48];

    text_copy(our, sizeof(our), ours);
    text_copy(their, sizeof(their), theirs);
    sql_one_line(our);
    sql_one_line(their);
    return error_set(error, EBADMSG,
                     "%s: its tables are not those of schema version %u: '%s' is not '%s'; put a "
                     "backup in its place",
                     store->path, store_schema_version(), our, their);
}

static int compare_objects(struct store *store, sqlite3_stmt *ours, sqlite3_stmt *theirs,
                           struct vgpu_error *error)
{
    for (;;) {
        int our = sql_step(store, ours, error), their = sql_step(store, theirs, error);
        const char *a, *b;

        if (our < 0 || their < 0)
            return -1;
        if (!our && !their)
            return 0;
        a = our ? (const char *)sqlite3_column_text(ours, 0) : "";
        b = their ? (const char *)sqlite3_column_text(theirs, 0) : "";
        if (!a || !b || strcmp(a, b) != 0)
            return differ(store, a ? a : "", b ? b : "", error);
    }
}

int schema_verify(struct store *store, struct vgpu_error *error)
{
    struct store *fresh;
    sqlite3_stmt *ours = NULL, *theirs = NULL;
    int result = -1;

    if (memory_open(store->path, &fresh, error) < 0)
        return -1;
    if (schema_create(fresh, error) == 0 && sql_prepare(store, OBJECTS, &ours, error) == 0 &&
        sql_prepare(fresh, OBJECTS, &theirs, error) == 0)
        result = compare_objects(store, ours, theirs, error);
    sqlite3_finalize(ours);
    sqlite3_finalize(theirs);
    store_close(fresh);
    return result;
}
