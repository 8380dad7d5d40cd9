/* SPDX-License-Identifier: Apache-2.0 */
/* The table of devices that pools can be bound to. */
#include "store/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_words[] = {"cpu", "gpu", "mig"};

static void read_row(sqlite3_stmt *row, struct store_device *device)
{
    char word[16];

    *device = (struct store_device){0};
    sql_column_text(row, 0, device->name, sizeof(device->name));
    sql_column_text(row, 1, word, sizeof(word));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(kind_words); i++) {
        if (strcmp(word, kind_words[i]) == 0)
            device->kind = (enum store_device_kind)i;
    }
    sql_column_text(row, 2, device->description, sizeof(device->description));
    device->withdrawn = sqlite3_column_int(row, 3) == 1;
}

static json_t *describe(const struct store_device *device)
{
    return json_pack("{s:s, s:s, s:s}", "device", device->name, "kind", kind_words[device->kind],
                     "description", device->description);
}

/* 1 found, 0 not, -1. */
static int find_row(struct store *store, const char *name, struct store_device *ret_device,
                    struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    int result;

    if (sql_prepare(store, "SELECT name, kind, description, withdrawn FROM devices WHERE name = ?1",
                    &statement, error) < 0)
        return -1;
    sql_bind_text(statement, 1, name);
    result = sql_step(store, statement, error);
    if (result > 0)
        read_row(statement, ret_device);
    sqlite3_finalize(statement);
    return result;
}

static int write_row(struct store *store, const struct store_device *device, bool known,
                     struct vgpu_error *error)
{
    const char *sql = known ? "UPDATE devices SET kind = ?2, description = ?3 WHERE name = ?1"
                            : "INSERT INTO devices (name, kind, description) VALUES (?1, ?2, ?3)";
    sqlite3_stmt *statement;

    if (sql_prepare(store, sql, &statement, error) < 0)
        return -1;
    sql_bind_text(statement, 1, device->name);
    sql_bind_text(statement, 2, kind_words[device->kind]);
    sql_bind_text(statement, 3, device->description);
    return sql_finish(store, statement, "write the device", error);
}

static int put(struct store *store, const struct store_device *device, struct vgpu_error *error)
{
    struct store_device old;
    int known = find_row(store, device->name, &old, error);

    if (known < 0)
        return -1;
    if (known > 0 && old.kind == device->kind && strcmp(old.description, device->description) == 0)
        return 0;
    if (write_row(store, device, known, error) < 0)
        return -1;
    return event_add(store, 0, 0, '\0', known ? describe(&old) : NULL, describe(device), error);
}

int store_put_device(struct store *store, const struct store_device *device,
                     struct vgpu_error *error)
{
    struct scope scope;

    if (store_check_device(device->name, error) < 0 ||
        check_text("the description", device->description, sizeof(device->description), error) < 0)
        return -1;
    if ((unsigned)device->kind >= VGPU_ARRAY_LENGTH(kind_words))
        return error_set(error, EINVAL, "device '%s': kind %u is none of cpu, gpu, mig",
                         device->name, (unsigned)device->kind);
    if (scope_begin(store, &scope, error) < 0)
        return -1;
    return scope_end(store, &scope, put(store, device, error), error);
}

static void no_such_device(struct store *store, const char *name, struct vgpu_error *error)
{
    struct store_device *devices;
    size_t count, used = 0;
    char known[256] = "", escaped[2 * STORE_DEVICE_BYTES];

    if (store_list_devices(store, &devices, &count, error) < 0)
        return;
    for (size_t i = 0; i < count && used < sizeof(known); i++)
        used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "",
                                 devices[i].name);
    free(devices);
    text_escape(escaped, sizeof(escaped), name, strlen(name));
    error_fill(error, ENOENT, "no device '%s'; there are: %s", escaped, known);
}

static int write_withdrawn(struct store *store, const struct store_device *device,
                           struct vgpu_error *error)
{
    const char *const states[] = {"in use", "withdrawn"};
    sqlite3_stmt *statement;

    if (sql_prepare(store, "UPDATE devices SET withdrawn = ?2 WHERE name = ?1", &statement, error) <
        0)
        return -1;
    sql_bind_text(statement, 1, device->name);
    sql_bind_number(statement, 2, device->withdrawn);
    if (sql_finish(store, statement, "change the device", error) < 0)
        return -1;
    return event_add(
        store, 0, 0, '\0',
        json_pack("{s:s, s:s}", "device", device->name, "state", states[!device->withdrawn]),
        json_pack("{s:s, s:s}", "device", device->name, "state", states[device->withdrawn]), error);
}

static int withdraw(struct store *store, const char *name, bool withdrawn,
                    struct store_device *device, struct vgpu_error *error)
{
    int found = find_row(store, name, device, error);

    if (found == 0)
        no_such_device(store, name, error);
    if (found <= 0)
        return -1;
    if (device->withdrawn == withdrawn)
        return 0;
    device->withdrawn = withdrawn;
    return write_withdrawn(store, device, error);
}

int store_withdraw_device(struct store *store, const char *name, bool withdrawn,
                          struct store_device *ret_device, struct vgpu_error *error)
{
    struct store_device device;
    struct scope scope;

    if (scope_begin(store, &scope, error) < 0)
        return -1;
    if (scope_end(store, &scope, withdraw(store, name, withdrawn, &device, error), error) < 0)
        return -1;
    *ret_device = device;
    return 0;
}

int store_list_devices(struct store *store, struct store_device **ret_devices, size_t *ret_count,
                       struct vgpu_error *error)
{
    sqlite3_stmt *statement;
    void *devices = NULL;
    size_t count = 0;
    int result;

    if (sql_prepare(store, "SELECT name, kind, description, withdrawn FROM devices ORDER BY name",
                    &statement, error) < 0)
        return -1;
    while ((result = sql_step(store, statement, error)) == 1) {
        struct store_device *device = sql_new_row(&devices, &count, sizeof(*device));

        if (!device) {
            result = error_set(error, ENOMEM, "no memory for a list of devices");
            break;
        }
        read_row(statement, device);
    }
    sqlite3_finalize(statement);
    if (result < 0) {
        free(devices);
        return -1;
    }
    *ret_devices = devices;
    *ret_count = count;
    return 0;
}

int devices_describe(struct store *store, json_t **ret_all, struct vgpu_error *error)
{
    struct store_device *devices;
    json_t *description;
    size_t count;

    if (store_list_devices(store, &devices, &count, error) < 0)
        return -1;
    *ret_all = json_object();
    for (size_t i = 0; i < count; i++) {
        description = describe(&devices[i]);
        json_object_set_new(description, "withdrawn", json_boolean(devices[i].withdrawn));
        json_object_set_new(*ret_all, devices[i].name, description);
    }
    free(devices);
    return 0;
}
