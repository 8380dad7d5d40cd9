/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store/ inside: the handle, and what all tables share.
 *
 *   sql.c       statements, and SQLite's results as struct vgpu_error
 *   scope.c     one change: its rows and its event together, or nothing
 *   file.c      a new file that is there whole or not at all
 *   restore.c   backup and restore
 *   near.c      names that were probably meant
 */
#ifndef VGPU_STORE_PRIVATE_H
#define VGPU_STORE_PRIVATE_H

#include "store/store.h"

#include <jansson.h>
#include <sqlite3.h>

struct store {
    sqlite3 *db;
    char *path;
    enum store_access access;
    char who[STORE_ACTOR_BYTES];
    char action[STORE_ACTION_BYTES];
    bool began; /* by store_begin() */
    uint64_t busy_since_ns;
};

/* --- sql.c ------------------------------------------------------------------------ */

/* Opens `path` and sets up what each connection has; no look at the content yet. */
int sql_open(const char *path, enum store_access access, struct store **ret_store,
             struct vgpu_error *error);

/* What SQLite said last about this connection, as "PATH: cannot WHAT: ..."; is -1. */
int sql_fail(struct store *store, struct vgpu_error *error, const char *what);

/* Pauses before the try after the one numbered `count`, from 0 on; 0 when it was long
 * enough.  SQLite's busy handler, of a struct store. */
int sql_wait(void *argument, int count);

int sql_prepare(struct store *store, const char *sql, sqlite3_stmt **ret_statement,
                struct vgpu_error *error);
int sql_run(struct store *store, const char *sql, const char *what, struct vgpu_error *error);

/* 1 when there is a row, 0 after the last, -1. */
int sql_step(struct store *store, sqlite3_stmt *statement, struct vgpu_error *error);

/* Steps a statement that has no rows to its end and frees it. */
int sql_finish(struct store *store, sqlite3_stmt *statement, const char *what,
               struct vgpu_error *error);

/* One number: the first column of the first row, 0 without one. */
int sql_number(struct store *store, const char *sql, int64_t *ret_number, struct vgpu_error *error);

/* The text must outlive the statement's run. */
void sql_bind_text(sqlite3_stmt *statement, int index, const char *text);
void sql_bind_text_or_null(sqlite3_stmt *statement, int index, const char *text); /* for "" */
void sql_bind_number(sqlite3_stmt *statement, int index, int64_t number);

/* SQLite's messages can have several, and pieces of a damaged file. */
void sql_one_line(char *text);

/* "" when NULL; cut to fit. */
void sql_column_text(sqlite3_stmt *statement, int column, char *target, size_t bytes);

/* Grows *rows by one of `row_bytes`, zeroed; NULL when there is no memory. */
void *sql_new_row(void **rows, size_t *count, size_t row_bytes);

/* --- scope.c ------------------------------------------------------------------------ */

/* A change inside store_begin() is a savepoint, else a transaction of its own. */
struct scope {
    bool nested;
};

int scope_begin(struct store *store, struct scope *scope, struct vgpu_error *error);

/* Keeps the change when `result` is 0, else takes it back; returns the result of both. */
int scope_end(struct store *store, const struct scope *scope, int result, struct vgpu_error *error);

/* --- schema.c ------------------------------------------------------------------------ */

#define SCHEMA_APPLICATION_ID 0x76475055 /* "vGPU", at byte 68 of the file */

/* The newest schema in an empty database, without rows. */
int schema_create(struct store *store, struct vgpu_error *error);

/* Is it ours, and of which version? */
int schema_read_version(struct store *store, unsigned *ret_version, struct vgpu_error *error);

/* From whatever version to the newest, as one transaction. */
int schema_migrate(struct store *store, struct vgpu_error *error);

/* The schema is what its version says: nothing is missing, nothing else is there. */
int schema_verify(struct store *store, struct vgpu_error *error);

/* --- store.c ------------------------------------------------------------------------- */

/* Version, pages, rows and references; not whether somebody has added an index. */
int verify_content(struct store *store, struct vgpu_error *error);

/* --- file.c -------------------------------------------------------------------------- */

/* A new file with this content, mode 0640, the group of its directory, synced together
 * with its directory.  EEXIST when there is one. */
int file_publish(const char *path, const void *data, size_t bytes, struct vgpu_error *error);

/* --- restore.c ------------------------------------------------------------------------ */

/* A connection to an empty database in memory. */
int memory_open(const char *name, struct store **ret_store, struct vgpu_error *error);

enum memory_use {
    MEMORY_IN_USE, /* WAL from its first byte: it never has to be turned into that */
    MEMORY_ALONE,  /* asks for no file next to it, so it is read where nothing can be written */
};

/* The whole database as a new file. */
int memory_publish(struct store *memory, const char *path, enum memory_use use,
                   struct vgpu_error *error);

/* The columns of a row, in the order in which vms.c and pools.c read and bind them. */
#define VM_COLUMNS                                                                                 \
    "vm_id, uuid, name, pool, priority, sessions_max, device_memory_mib, operation_limit_ms,"      \
    " weight, request_rate, request_burst, device_share_percent, queue_depth_max,"                 \
    " inflight_ops_max, inflight_kib_max, state, reason, channels, owner_uid, owner_gid, mode,"    \
    " created_us, changed_us, quarantine_until_us"
#define VM_MARKS "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
#define POOL_COLUMNS                                                                               \
    "id, name, description, enabled, sharing, device, vms_max, device_memory_max_mib,"             \
    " more_devices, placement, session_devices, policy, aging_ms, demand"
#define POOL_MARKS "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"

/* --- check.c -------------------------------------------------------------------------- */

int check_vm(const struct store_vm *vm, struct vgpu_error *error);
int check_pool(const struct store_pool *pool, struct vgpu_error *error);

/* Printable UTF-8, at most bytes - 1 long. */
int check_text(const char *what, const char *text, size_t bytes, struct vgpu_error *error);

/* --- vms.c, pools.c, devices.c, events.c: inside a scope ------------------------------- */

int pool_get(struct store *store, char id, struct store_pool *ret_pool, struct vgpu_error *error);

/* Says what keeps a VM from being in this pool, or from having these limits there.
 * `before` is NULL for a new one. */
int pool_check_fits(struct store *store, const struct store_vm *before,
                    const struct store_vm *after, struct vgpu_error *error);

/* All of a table as events say it: an object by id or name, for the caller to free. */
int vms_describe(struct store *store, json_t **ret_all, struct vgpu_error *error);
int pools_describe(struct store *store, json_t **ret_all, struct vgpu_error *error);
int devices_describe(struct store *store, json_t **ret_all, struct vgpu_error *error);

/* Adds the event of this change. `before` and `after` are taken over; NULL: nothing was,
 * is.  `new_vm_id` is 0 unless the VM got another id. */
int event_add(struct store *store, uint32_t vm_id, uint32_t new_vm_id, char pool, json_t *before,
              json_t *after, struct vgpu_error *error);

/* Leaves in both only what differs: 1.  0 when nothing does; then, and on -1, both are
 * freed. */
int event_compare(json_t *before, json_t *after, struct vgpu_error *error);

/* --- near.c ---------------------------------------------------------------------------- */

#define NEAR_MAX 3

struct near {
    struct {
        char name[STORE_NAME_BYTES];
        unsigned distance;
    } best[NEAR_MAX];
    unsigned count;
};

/* Keeps `name` when it is among the nearest to `text`. */
void near_offer(struct near *near, const char *text, const char *name);

/* "; did you mean 'a' or 'b'?", or "". */
void near_words(const struct near *near, char *target, size_t bytes);

#endif /* VGPU_STORE_PRIVATE_H */
