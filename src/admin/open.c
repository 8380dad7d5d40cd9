/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The database of this command, opened with who changes what by which command.
 */
#include "admin/admin.h"

#include <stdio.h>
#include <unistd.h>

int admin_open_store(struct admin *admin, enum store_access access, struct store **ret_store,
                     struct vgpu_error *error)
{
    const struct store_actor actor = {actor_name(), admin->command->name};

    if (settings_read(admin, error) < 0)
        return -1;
    if (store_open(admin->database_path, access, ret_store, error) < 0) {
        admin->failed_exit = ADMIN_DATABASE;
        return -1;
    }
    admin->opened = true;
    store_set_actor(*ret_store, &actor);
    return 0;
}

static int add_event(struct admin *admin, const char *before, const char *after,
                     struct vgpu_error *error)
{
    struct store_event event = {0};
    struct store *store;
    int result;

    if (admin_open_store(admin, STORE_WRITE, &store, error) < 0)
        return -1;
    text_copy(event.before, sizeof(event.before), before);
    text_copy(event.after, sizeof(event.after), after);
    result = store_add_event(store, &event, error);
    store_close(store);
    return result;
}

void admin_record(struct admin *admin, const char *before, const char *after)
{
    struct vgpu_error error;

    if (settings_read(admin, &error) < 0 || access(admin->database_path, F_OK) < 0)
        return;
    if (add_event(admin, before, after, &error) < 0)
        fprintf(stderr, "vgpu-admin: done, but not put on record: %s\n", error.message);
}
