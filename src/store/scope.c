/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transactions.  A writer's begins with BEGIN IMMEDIATE: who reads in order to write
 * must be alone from the reading on, or two would both write what only one has seen.
 * A reader's is a snapshot, taken when it begins.
 *
 * A change that fails inside somebody's transaction takes only itself back.  When
 * SQLite itself ended the whole transaction (a full disk can do that), nothing may
 * act as if it were still open: BEGIN is never implied in its middle, and its commit
 * is refused.
 */
#include "store/private.h"

#include <errno.h>

/*
 * After a failed write or sync the -wal file is emptied: what it has of earlier changes
 * goes to where it belongs, so that a full disk has room for the next try; what it has
 * of the failed one must not be taken for a change by who opens the database after a
 * crash, and it looks like one when all of it was written and only the sync failed.
 */
static void empty_wal(struct store *store)
{
    sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
}

static bool disk_failed(struct store *store)
{
    int result = sqlite3_errcode(store->db) & 0xff;

    return result == SQLITE_FULL || result == SQLITE_IOERR;
}

static bool in_transaction(struct store *store)
{
    return sqlite3_get_autocommit(store->db) == 0;
}

int store_begin(struct store *store, struct vgpu_error *error)
{
    int64_t version;

    if (store->began)
        return error_set(error, EINVAL, "%s: a transaction is open already", store->path);
    if (store->access == STORE_WRITE) {
        if (sql_run(store, "BEGIN IMMEDIATE", "begin a change", error) < 0)
            return -1;
    } else {
        if (sql_run(store, "BEGIN", "begin to read", error) < 0)
            return -1;
        if (sql_number(store, "SELECT count(*) FROM sqlite_master", &version, error) < 0) {
            sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
            return -1;
        }
    }
    store->began = true;
    return 0;
}

int store_commit(struct store *store, struct vgpu_error *error)
{
    if (!store->began)
        return error_set(error, EINVAL, "%s: no transaction is open", store->path);
    store->began = false;
    if (!in_transaction(store))
        return error_set(error, EIO, "%s: the change was taken back after an error in its middle",
                         store->path);
    if (sql_run(store, "COMMIT", "write the change", error) < 0) {
        bool disk = disk_failed(store);

        store_rollback(store);
        if (disk)
            empty_wal(store);
        return -1;
    }
    return 0;
}

void store_rollback(struct store *store)
{
    store->began = false;
    if (in_transaction(store))
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
}

int scope_begin(struct store *store, struct scope *scope, struct vgpu_error *error)
{
    if (store->access != STORE_WRITE)
        return error_set(error, EACCES, "%s: it was opened for reading only", store->path);
    if (!store->action[0])
        return error_set(error, EINVAL, "%s: no change without a name of who makes it",
                         store->path);
    scope->nested = store->began;
    if (!scope->nested)
        return sql_run(store, "BEGIN IMMEDIATE", "begin a change", error);
    if (!in_transaction(store))
        return error_set(error, EIO, "%s: the change was taken back after an error in its middle",
                         store->path);
    return sql_run(store, "SAVEPOINT change", "begin a change", error);
}

int scope_end(struct store *store, const struct scope *scope, int result, struct vgpu_error *error)
{
    bool disk;

    if (result == 0)
        result =
            sql_run(store, scope->nested ? "RELEASE change" : "COMMIT", "write the change", error);
    if (result == 0)
        return 0;
    disk = disk_failed(store);
    if (in_transaction(store))
        sqlite3_exec(store->db, scope->nested ? "ROLLBACK TO change; RELEASE change" : "ROLLBACK",
                     NULL, NULL, NULL);
    if (disk && !scope->nested)
        empty_wal(store);
    return -1;
}
