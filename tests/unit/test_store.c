/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's file: made, opened, migrated, verified, backed up and restored. */
#include "store_unit.h"

#include <fcntl.h>

static struct store_actor actor = {"root", "test"};

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* A database as version 1 left it. */
static void make_version_1(const char *path)
{
    char *sql = unit_read_file(getenv("VGPU_STORE_V1"));

    assert_true(strlen(sql) > 100);
    assert_int_equal(place_sql(path, sql), SQLITE_OK);
    free(sql);
}

/* --- made ---------------------------------------------------------------------------- */

static void a_database_is_made_once_and_readable_by_its_group_only(void **state)
{
    struct place *place = *state;
    struct stat info;

    assert_int_equal(stat(place->path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0640);
    REFUSED(place, EEXIST, "there is a database already",
            store_create(place->path, &actor, &place->error));
    place_add(place, "web", 'A');
    REFUSED(place, ENOENT, "no-such-directory",
            store_create(place_file(place, "no-such-directory/db"), &actor, &place->error));
    DONE(place, store_verify(place->store, &place->error));
}

static void a_dangling_link_is_not_followed_into_a_new_database(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "link"), *target = place_file(place, "target");

    assert_int_equal(symlink(target, path), 0);
    REFUSED(place, EEXIST, "link", store_create(path, &actor, &place->error));
    assert_int_equal(access(target, F_OK), -1);
}

/* --- opened ---------------------------------------------------------------------------- */

static void what_is_no_database_is_refused_and_left_alone(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "other");
    struct store *store = NULL;
    char text[] = "just some text, longer than the header of a database is, which is 100 bytes; "
                  "so this goes on for a while";
    char *after;

    REFUSED(place, ENOENT, "make one with 'vgpu-admin init'",
            store_open(path, STORE_READ, &store, &place->error));
    assert_int_equal(access(path, F_OK), -1);
    write_file(path, "", 0);
    REFUSED(place, EBADMSG, "no database of vgpu-admin",
            store_open(path, STORE_WRITE, &store, &place->error));
    write_file(path, text, sizeof(text) - 1);
    for (int i = 0; i < 2; i++)
        REFUSED(place, EBADMSG, "damaged or no database",
                store_open(path, i ? STORE_WRITE : STORE_READ, &store, &place->error));
    after = unit_read_file(path);
    assert_string_equal(after, text);
    free(after);
    unlink(path);
    assert_int_equal(place_sql(path, "CREATE TABLE mine (x); INSERT INTO mine VALUES (1)"),
                     SQLITE_OK);
    REFUSED(place, EBADMSG, "no database of vgpu-admin",
            store_open(path, STORE_WRITE, &store, &place->error));
    REFUSED(place, EINVAL, "no regular file",
            store_open(place->directory, STORE_READ, &store, &place->error));
    assert_int_equal(mkfifo(place_file(place, "fifo"), 0600), 0);
    REFUSED(place, EINVAL, "no regular file",
            store_open(place_file(place, "fifo"), STORE_READ, &store, &place->error));
    assert_null(store);
}

static off_t first_page_of_vms(const char *path)
{
    sqlite3 *db;
    sqlite3_stmt *statement;
    off_t offset;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db,
                                        "SELECT (rootpage - 1) * 4096 FROM sqlite_master"
                                        " WHERE name = 'vms'",
                                        -1, &statement, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    offset = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    return offset;
}

static void damaged_pages_are_found(void **state)
{
    struct place *place = *state;
    char noise[4096];
    struct store_vm *vms;
    size_t count;
    int fd;

    for (int i = 0; i < 20; i++) {
        char name[16];

        snprintf(name, sizeof(name), "vm-%d", i);
        place_add(place, name, 'A');
    }
    store_close(place->store); /* all is in the one file now */
    place->store = NULL;
    memset(noise, 0xa5, sizeof(noise));
    fd = open(place->path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, noise, sizeof(noise), first_page_of_vms(place->path)),
                     sizeof(noise));
    close(fd);
    DONE(place, store_open(place->path, STORE_READ, &place->store, &place->error));
    REFUSED(place, EBADMSG, "put a backup in its place",
            store_list_vms(place->store, &vms, &count, &place->error));
    REFUSED(place, EBADMSG, "put a backup in its place", store_verify(place->store, &place->error));
    REFUSED(place, EBADMSG, "damaged",
            store_backup(place->store, place_file(place, "backup"), &place->error));
    assert_int_equal(access(place_file(place, "backup"), F_OK), -1);
}

static void missing_constraints_and_lost_references_are_found(void **state)
{
    struct place *place = *state;

    place_add(place, "web", 'A');
    assert_int_equal(place_sql(place->path, "DROP TRIGGER events_stay"), SQLITE_OK);
    REFUSED(place, EBADMSG, "not those of schema version",
            store_verify(place->store, &place->error));
    assert_int_equal(place_sql(place->path, "CREATE TABLE extra (x)"), SQLITE_OK);
    REFUSED(place, EBADMSG, "not those of", store_verify(place->store, &place->error));
    assert_int_equal(place_sql(place->path, "PRAGMA foreign_keys = OFF;"
                                            "DELETE FROM pools WHERE id = 'A'"),
                     SQLITE_OK);
    REFUSED(place, EBADMSG, "names a row of pools that is not there",
            store_verify(place->store, &place->error));
}

static void a_reader_changes_nothing(void **state)
{
    struct place *place = *state;
    struct store *reader;
    struct store_vm vm;

    DONE(place, store_open(place->path, STORE_READ, &reader, &place->error));
    store_set_actor(reader, &actor);
    store_vm_init(&vm);
    REFUSED(place, EACCES, "for reading only", store_add_vm(reader, &vm, &place->error));
    REFUSED(place, EACCES, "for reading only", store_restore(reader, place->path, &place->error));
    store_close(reader);
}

static void nobody_changes_anything_without_a_name(void **state)
{
    struct place *place = *state;
    struct store *store;
    struct store_vm vm;

    DONE(place, store_open(place->path, STORE_WRITE, &store, &place->error));
    store_vm_init(&vm);
    REFUSED(place, EINVAL, "who makes it", store_add_vm(store, &vm, &place->error));
    store_close(store);
    store_close(NULL);
}

/* --- versions ---------------------------------------------------------------------------- */

static void version_1_is_brought_up_to_date_with_all_it_holds(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "old.db");
    struct store *old;
    struct store_vm vm;
    struct store_pool pool;
    struct store_event *events;
    size_t count;

    make_version_1(path);
    REFUSED(place, EPROTO, "its schema has version 1 and this program needs",
            store_open(path, STORE_READ, &old, &place->error));
    DONE(place, store_open(path, STORE_WRITE, &old, &place->error));
    DONE(place, store_verify(old, &place->error));
    DONE(place, store_find_vm(old, "web", &vm, &place->error));
    assert_int_equal(vm.vm_id, 1);
    assert_int_equal(vm.priority, 2);
    assert_string_equal(vm.uuid, "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0");
    assert_int_equal(vm.channels, STORE_CHANNEL_FILE | STORE_CHANNEL_WINDOW);
    assert_int_equal(vm.mode, 0700);
    assert_true(vm.created_us == 1700000000000000 && vm.changed_us == vm.created_us);
    DONE(place, store_get_vm(old, 7, &vm, &place->error));
    assert_int_equal(vm.pool, 'B');
    DONE(place, store_find_pool(old, "B", &pool, &place->error));
    assert_string_equal(pool.description, "batch");
    assert_string_equal(pool.device, "cpu");
    assert_true(pool.enabled);
    DONE(place, store_list_events(old, NULL, &events, &count, &place->error));
    assert_int_equal(count, 3);
    assert_string_equal(events[1].actor, "alice");
    assert_string_equal(events[2].action, "migrate");
    assert_string_equal(events[2].before, "{\"schema\":1}");
    free(events);
    store_close(old);
    DONE(place, store_open(path, STORE_READ, &old, &place->error));
    store_close(old);
}

static void a_migration_that_cannot_be_done_leaves_the_old_version(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "old.db");
    struct store *old;

    make_version_1(path);
    /* The second step finds its table there already. */
    assert_int_equal(place_sql(path, "CREATE TABLE devices (x)"), SQLITE_OK);
    REFUSED(place, EIO, "bring its schema to version 2",
            store_open(path, STORE_WRITE, &old, &place->error));
    REFUSED(place, EPROTO, "has version 1", store_open(path, STORE_READ, &old, &place->error));
    assert_int_equal(place_sql(path, "DROP TABLE devices"), SQLITE_OK);
    DONE(place, store_open(path, STORE_WRITE, &old, &place->error));
    DONE(place, store_verify(old, &place->error));
    store_close(old);
}

static void a_newer_version_is_refused_and_left_alone(void **state)
{
    struct place *place = *state;
    struct store *store;
    char sql[64];

    store_close(place->store);
    place->store = NULL;
    snprintf(sql, sizeof(sql), "PRAGMA user_version = %u", store_schema_version() + 1);
    assert_int_equal(place_sql(place->path, sql), SQLITE_OK);
    for (int i = 0; i < 2; i++)
        REFUSED(place, EPROTO, "use the newer vgpu-admin",
                store_open(place->path, i ? STORE_WRITE : STORE_READ, &store, &place->error));
}

/* --- transactions -------------------------------------------------------------------------- */

static void what_is_not_committed_was_never_there(void **state)
{
    struct place *place = *state;
    struct store_vm vm;
    size_t events = place_event_count(place);

    DONE(place, store_begin(place->store, &place->error));
    place_add(place, "web", 'A');
    REFUSED(place, EINVAL, "open already", store_begin(place->store, &place->error));
    REFUSED(place, EINVAL, "in the middle of a change",
            store_backup(place->store, place_file(place, "b"), &place->error));
    REFUSED(place, EINVAL, "in the middle of a change",
            store_restore(place->store, place_file(place, "b"), &place->error));
    store_rollback(place->store);
    assert_int_equal(place_event_count(place), events);
    REFUSED(place, ENOENT, "'web'", store_find_vm(place->store, "web", &vm, &place->error));
    REFUSED(place, EINVAL, "no transaction", store_commit(place->store, &place->error));
    store_rollback(place->store); /* harmless */
    DONE(place, store_begin(place->store, &place->error));
    place_add(place, "web", 'A');
    place_reopen(place); /* closing takes it back, too */
    assert_int_equal(place_event_count(place), events);
}

static void a_failed_change_takes_only_itself_back(void **state)
{
    struct place *place = *state;
    struct store_vm vm;

    DONE(place, store_begin(place->store, &place->error));
    place_add(place, "one", 'A');
    store_vm_init(&vm);
    strcpy(vm.name, "one");
    REFUSED(place, EEXIST, "is taken", store_add_vm(place->store, &vm, &place->error));
    place_add(place, "two", 'A');
    DONE(place, store_commit(place->store, &place->error));
    DONE(place, store_find_vm(place->store, "one", &vm, &place->error));
    DONE(place, store_find_vm(place->store, "two", &vm, &place->error));
    assert_int_equal(vm.vm_id, 2);
}

static void a_readers_transaction_is_one_snapshot(void **state)
{
    struct place *place = *state;
    struct store *reader;
    struct store_vm *vms;
    size_t count;

    place_add(place, "one", 'A');
    DONE(place, store_open(place->path, STORE_READ, &reader, &place->error));
    DONE(place, store_begin(reader, &place->error));
    place_add(place, "two", 'A'); /* the writer does not wait */
    for (int i = 0; i < 2; i++) {
        DONE(place, store_list_vms(reader, &vms, &count, &place->error));
        assert_int_equal(count, 1 + i);
        free(vms);
        if (i == 0)
            DONE(place, store_commit(reader, &place->error));
    }
    store_close(reader);
}

/* --- backup and restore -------------------------------------------------------------------- */

static void a_backup_is_a_whole_database_in_one_file(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "backup.db");
    struct store *backup;
    struct store_vm vm;
    struct stat info;

    place_add(place, "web", 'A');
    DONE(place, store_backup(place->store, path, &place->error));
    REFUSED(place, EEXIST, "backup.db", store_backup(place->store, path, &place->error));
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0640);
    DONE(place, store_open(path, STORE_READ, &backup, &place->error));
    DONE(place, store_find_vm(backup, "web", &vm, &place->error));
    DONE(place, store_verify(backup, &place->error));
    store_close(backup);
    assert_int_equal(access(place_file(place, "backup.db-wal"), F_OK), -1);
    REFUSED(place, ENOENT, "cannot make",
            store_backup(place->store, place_file(place, "no/b"), &place->error));
}

static void an_index_that_somebody_added_hinders_no_backup(void **state)
{
    struct place *place = *state;

    assert_int_equal(place_sql(place->path, "CREATE INDEX mine ON vms (name)"), SQLITE_OK);
    DONE(place, store_backup(place->store, place_file(place, "b"), &place->error));
    DONE(place, store_restore(place->store, place_file(place, "b"), &place->error));
    REFUSED(place, EBADMSG, "'mine", store_verify(place->store, &place->error));
}

static void restore_brings_back_all_but_the_events(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "backup.db");
    struct store_pool_change off = {STORE_POOL_ENABLED, {.enabled = false}};
    struct store_pool pool;
    struct store_event *events;
    struct store_vm vm;
    size_t count;

    place_add(place, "old", 'B');
    DONE(place, store_change_pool(place->store, 'B', &off, NULL, NULL, &place->error));
    DONE(place, store_backup(place->store, path, &place->error));
    DONE(place, store_remove_vm(place->store, 1, NULL, &place->error));
    DONE(place, store_remove_pool(place->store, 'B', &place->error));
    place_add(place, "new", 'A');
    count = place_event_count(place);
    place_act(place, "root", "restore");
    DONE(place, store_restore(place->store, path, &place->error));
    DONE(place, store_verify(place->store, &place->error));
    DONE(place, store_find_vm(place->store, "old", &vm, &place->error));
    assert_int_equal(vm.pool, 'B');
    DONE(place, store_find_pool(place->store, "B", &pool, &place->error));
    assert_false(pool.enabled);
    REFUSED(place, ENOENT, "'new'", store_find_vm(place->store, "new", &vm, &place->error));
    /* One for all of it, and one each for the VM, which has another's number, and pool B. */
    assert_int_equal(place_events(place, NULL, &events), count + 3);
    assert_string_equal(events[count].action, "restore");
    assert_string_equal(events[count].before, "{\"vms\":1,\"pools\":1}");
    assert_string_equal(events[count].after, "{\"vms\":1,\"pools\":2}");
    assert_int_equal(events[count + 1].vm_id, vm.vm_id);
    assert_string_equal(events[count + 1].before, "{\"name\":\"new\",\"pool\":\"A\"}");
    assert_string_equal(events[count + 1].after, "{\"name\":\"old\",\"pool\":\"B\"}");
    assert_int_equal(events[count + 2].pool, 'B');
    assert_string_equal(events[count + 2].before, "");
    free(events);
}

static void an_old_backup_is_migrated_in_a_copy(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "old.db");
    struct store *old;
    struct store_vm vm;

    make_version_1(path);
    DONE(place, store_restore(place->store, path, &place->error));
    DONE(place, store_get_vm(place->store, 7, &vm, &place->error));
    DONE(place, store_verify(place->store, &place->error));
    REFUSED(place, EPROTO, "version 1", store_open(path, STORE_READ, &old, &place->error));
}

static void bad_backups_are_refused_and_nothing_is_changed(void **state)
{
    struct place *place = *state;
    const char *path = place_file(place, "backup.db");
    char sql[64];
    size_t events;

    place_add(place, "web", 'A');
    events = place_event_count(place);
    REFUSED(place, ENOENT, "cannot read the backup",
            store_restore(place->store, path, &place->error));
    write_file(path, "text", 4);
    REFUSED(place, EBADMSG, "backup.db", store_restore(place->store, path, &place->error));
    unlink(path);
    assert_int_equal(place_sql(path, "CREATE TABLE mine (x)"), SQLITE_OK);
    REFUSED(place, EBADMSG, "no database of vgpu-admin",
            store_restore(place->store, path, &place->error));
    unlink(path);
    DONE(place, store_backup(place->store, path, &place->error));
    assert_int_equal(place_sql(path, "PRAGMA foreign_keys = OFF; DELETE FROM pools"), SQLITE_OK);
    REFUSED(place, EBADMSG, "is not there", store_restore(place->store, path, &place->error));
    snprintf(sql, sizeof(sql), "PRAGMA user_version = %u", store_schema_version() + 1);
    assert_int_equal(place_sql(path, sql), SQLITE_OK);
    REFUSED(place, EPROTO, "newer", store_restore(place->store, path, &place->error));
    assert_int_equal(place_event_count(place), events);
    DONE(place, store_verify(place->store, &place->error));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(a_database_is_made_once_and_readable_by_its_group_only),
        PLACE_TEST(a_dangling_link_is_not_followed_into_a_new_database),
        PLACE_TEST(what_is_no_database_is_refused_and_left_alone),
        PLACE_TEST(damaged_pages_are_found),
        PLACE_TEST(missing_constraints_and_lost_references_are_found),
        PLACE_TEST(a_reader_changes_nothing),
        PLACE_TEST(nobody_changes_anything_without_a_name),
        PLACE_TEST(version_1_is_brought_up_to_date_with_all_it_holds),
        PLACE_TEST(a_migration_that_cannot_be_done_leaves_the_old_version),
        PLACE_TEST(a_newer_version_is_refused_and_left_alone),
        PLACE_TEST(what_is_not_committed_was_never_there),
        PLACE_TEST(a_failed_change_takes_only_itself_back),
        PLACE_TEST(a_readers_transaction_is_one_snapshot),
        PLACE_TEST(a_backup_is_a_whole_database_in_one_file),
        PLACE_TEST(an_index_that_somebody_added_hinders_no_backup),
        PLACE_TEST(restore_brings_back_all_but_the_events),
        PLACE_TEST(an_old_backup_is_migrated_in_a_copy),
        PLACE_TEST(bad_backups_are_refused_and_nothing_is_changed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
