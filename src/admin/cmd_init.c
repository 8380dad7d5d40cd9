/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin init: the database, with pools A and B on device cpu. */
#include "admin/commands.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <string.h>

static int make_parent(const char *path, struct vgpu_error *error)
{
    char copy[PATH_MAX];

    text_copy(copy, sizeof(copy), path);
    return fd_make_directories(dirname(copy), 0700, error);
}

/* A database of an older version is brought up to date; 0 when this one was not. */
static int bring_up_to_date(struct admin *admin, const struct store_actor *actor,
                            struct vgpu_error *error)
{
    struct vgpu_error inner;
    struct store *store;

    if (store_open(admin->database_path, STORE_READ, &store, &inner) == 0) {
        store_close(store);
        return 0;
    }
    if (inner.code != EPROTO || store_open(admin->database_path, STORE_WRITE, &store, error) < 0)
        return -1;
    store_set_actor(store, actor);
    store_close(store);
    return 1;
}

static int make(struct admin *admin, const char **ret_what, struct vgpu_error *error)
{
    const struct store_actor actor = {actor_name(), "init"};
    int migrated;

    *ret_what = "is made, with pools A and B on device cpu";
    if (make_parent(admin->database_path, error) < 0)
        return -1;
    if (store_create(admin->database_path, &actor, error) == 0)
        return 0;
    migrated = error->code == EEXIST ? bring_up_to_date(admin, &actor, error) : -1;
    *ret_what = "is brought up to date";
    return migrated == 1 ? 0 : -1;
}

int cmd_init(struct admin *admin, int argc, char **argv)
{
    struct vgpu_error error;
    const char *what;
    int result = admin_parse(admin, NULL, argc, argv, NULL);

    if (result)
        return result;
    if (settings_read(admin, &error) < 0)
        return admin_fail(admin, &error);
    if (make(admin, &what, &error) < 0) {
        if (error.code != EEXIST)
            admin->failed_exit = ADMIN_DATABASE;
        return admin_fail(admin, &error);
    }
    if (admin->json)
        output_json(json_pack("{s:s, s:i}", "database", admin->database_path, "schema",
                              (int)store_schema_version()));
    output_say(admin, "%s %s.", admin->database_path, what);
    return ADMIN_OK;
}
