/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between SQLite and the tables: connections that are all set up the same, small
 * helpers for statements, and SQLite's results in the project's words.
 *
 * Every connection: foreign keys on, schema not trusted, synchronous FULL (a
 * commit is on the disk when it returns), defensive.  Waiting for another writer
 * is ours, not SQLite's: its own pauses grow to 100 ms, so that one of eight busy
 * writers can wait for seconds; ours are short and differ, and end together after
 * BUSY_TIMEOUT_MS.
 */
#include "store/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BUSY_TIMEOUT_MS 10000u
#define BRIEF_TIMEOUT_MS 500u
#define BUSY_PAUSE_US_MAX 8000u

/* --- failures ---------------------------------------------------------------------- */

static int io_code(struct store *store)
{
    int code = sqlite3_system_errno(store->db);

    return code ? code : EIO;
}

static int code_of(struct store *store, int result)
{
    if (result == SQLITE_READONLY_ROLLBACK || result == SQLITE_READONLY_RECOVERY ||
        result == SQLITE_READONLY_CANTINIT)
        return EUCLEAN;
    switch (result & 0xff) {
    case SQLITE_FULL:
        return ENOSPC;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return EBUSY;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return EACCES;
    case SQLITE_CANTOPEN:
        return sqlite3_system_errno(store->db) == ENOSPC ? ENOSPC : EACCES;
    case SQLITE_IOERR:
        return io_code(store);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
        return EBADMSG;
    case SQLITE_NOMEM:
        return ENOMEM;
    case SQLITE_CONSTRAINT:
        return EINVAL;
    default:
        return EIO;
    }
}

static const char *remedy_of(int code)
{
    switch (code) {
    case ENOSPC:
        return "; nothing was changed: make room on its disk and try again";
    case EBUSY:
        return "; another program is changing it and did not finish in time: try again";
    case EBADMSG:
        return "; the file is damaged or no database: put a backup in its place";
    case EUCLEAN:
        return "; a writer was killed and who may only read cannot clear up after it: run this "
               "command as root once";
    case EACCES:
        return "; the file and its directory must be writable for who changes it";
    default:
        return "";
    }
}

void sql_one_line(char *text)
{
    for (; *text; text++) {
        if (*text < ' ' || *text > '~')
            *text = ' ';
    }
}

int sql_fail(struct store *store, struct vgpu_error *error, const char *what)
{
    int result = sqlite3_extended_errcode(store->db);
    int code = code_of(store, result);
    char said[200];

    text_copy(said, sizeof(said), sqlite3_errmsg(store->db));
    sql_one_line(said);
    /* SQLite's own words are "disk I/O error", whatever it was. */
    if ((result & 0xff) == SQLITE_IOERR && sqlite3_system_errno(store->db) != 0)
        text_copy(said, sizeof(said), strerror(sqlite3_system_errno(store->db)));
    return error_set(error, code, "%s: cannot %s: %s%s", store->path, what,
                     code == ENOSPC ? "no space left on the disk" : said, remedy_of(code));
}

/* --- connections -------------------------------------------------------------------- */

int sql_wait(void *argument, int count)
{
    struct store *store = argument;
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t pause_us = 500 + (now_ns >> 8 ^ (uint64_t)getpid() * 7919) % BUSY_PAUSE_US_MAX;
    struct timespec pause = {.tv_nsec = (long)(pause_us * NS_PER_US)};

    if (count == 0)
        store->busy_since_ns = now_ns;
    if (now_ns - store->busy_since_ns >=
        (store->access == STORE_READ_BRIEFLY ? BRIEF_TIMEOUT_MS : BUSY_TIMEOUT_MS) * NS_PER_MS)
        return 0;
    nanosleep(&pause, NULL);
    return 1;
}

static int set_up(struct store *store, struct vgpu_error *error)
{
    sqlite3 *db = store->db;
    int keep_wal = 1;

    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_handler(db, sql_wait, store);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
    sqlite3_limit(db, SQLITE_LIMIT_ATTACHED, 0);
    /* A reader that may not write the directory needs the two files next to ours. */
    sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &keep_wal);
    return sql_run(store,
                   "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;"
                   "PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = 0",
                   "set up its connection", error);
}

int sql_open(const char *path, enum store_access access, struct store **ret_store,
             struct vgpu_error *error)
{
    int flags = access == STORE_WRITE ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY;
    struct store *store = calloc(1, sizeof(*store));

    if (!store || !(store->path = strdup(path))) {
        store_close(store);
        return error_set(error, ENOMEM, "%s: no memory to open it", path);
    }
    store->access = access;
    if (sqlite3_open_v2(path, &store->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
        if (store->db)
            sql_fail(store, error, "open the database");
        else
            error_fill(error, ENOMEM, "%s: no memory to open it", path);
        store_close(store);
        return -1;
    }
    if (set_up(store, error) < 0) {
        store_close(store);
        return -1;
    }
    *ret_store = store;
    return 0;
}

/* --- statements ---------------------------------------------------------------------- */

int sql_prepare(struct store *store, const char *sql, sqlite3_stmt **ret_statement,
                struct vgpu_error *error)
{
    if (sqlite3_prepare_v2(store->db, sql, -1, ret_statement, NULL) != SQLITE_OK)
        return sql_fail(store, error, "read its tables");
    return 0;
}

int sql_run(struct store *store, const char *sql, const char *what, struct vgpu_error *error)
{
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return sql_fail(store, error, what);
    return 0;
}

int sql_step(struct store *store, sqlite3_stmt *statement, struct vgpu_error *error)
{
    int result = sqlite3_step(statement);

    if (result == SQLITE_ROW)
        return 1;
    if (result == SQLITE_DONE)
        return 0;
    return sql_fail(store, error, "read its tables");
}

int sql_finish(struct store *store, sqlite3_stmt *statement, const char *what,
               struct vgpu_error *error)
{
    int result = 0;

    if (sqlite3_step(statement) != SQLITE_DONE)
        result = sql_fail(store, error, what);
    sqlite3_finalize(statement);
    return result;
}

int sql_number(struct store *store, const char *sql, int64_t *ret_number, struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    result = sql_step(store, statement, error);
    if (result >= 0)
        *ret_number = result ? sqlite3_column_int64(statement, 0) : 0;
    sqlite3_finalize(statement);
    return result < 0 ? -1 : 0;
}

void sql_bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    sqlite3_bind_text(statement, index, text, -1, SQLITE_STATIC);
}

void sql_bind_text_or_null(sqlite3_stmt *statement, int index, const char *text)
{
    if (text[0])
        sql_bind_text(statement, index, text);
}

void sql_bind_number(sqlite3_stmt *statement, int index, int64_t number)
{
    sqlite3_bind_int64(statement, index, number);
}

/* The schema lets no such text in; what a damaged file holds must not reach a terminal
 * or spoil JSON. */
static void make_printable(char *text)
{
    bool plain = true;
    json_t *string;

    for (char *at = text; *at; at++) {
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            *at = '?';
        plain = plain && *at > 0;
    }
    if (plain)
        return;
    string = json_string(text); /* jansson knows what UTF-8 is */
    if (!string)
        sql_one_line(text);
    json_decref(string);
}

void sql_column_text(sqlite3_stmt *statement, int column, char *target, size_t bytes)
{
    const unsigned char *text = sqlite3_column_text(statement, column);

    text_copy(target, bytes, text ? (const char *)text : "");
    make_printable(target);
}

void *sql_new_row(void **rows, size_t *count, size_t row_bytes)
{
    /* Doubles at powers of two. */
    if ((*count & (*count - 1)) == 0) {
        void *grown = realloc(*rows, (*count ? *count * 2 : 1) * row_bytes);

        if (!grown)
            return NULL;
        *rows = grown;
    }
    return memset((char *)*rows + (*count)++ * row_bytes, 0, row_bytes);
}
