/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin backup: a whole copy, while others write. */
#include "admin/commands.h"

#include <errno.h>

int cmd_backup(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;
    struct store *store;

    if (result)
        return result;
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = store_backup(store, admin->words[0], &error);
    store_close(store);
    if (result < 0 && error.code == ENOENT)
        admin->failed_exit = ADMIN_FAILED; /* a path, no VM */
    if (result < 0)
        return admin_fail(admin, &error);
    if (admin->json)
        output_json(json_pack("{s:s}", "backup", admin->words[0]));
    output_say(admin, "%s is a copy of %s.", admin->words[0], admin->database_path);
    return ADMIN_OK;
}
