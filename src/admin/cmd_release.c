/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin release: a quarantined VM is served again.  A quarantine that the mediator began by
 * itself may be in no database: where it has none, or could not write there.
 */
#include "admin/commands.h"

#include <stdio.h>
#include <unistd.h>

/* Only what it has by itself; -1: nobody could be asked, or it knows no such VM. */
static int ask_mediator(struct admin *admin, json_t **ret_result, struct vgpu_error *error)
{
    json_t *arguments = json_pack("{s:s}", "vm", admin->words[0]);
    int result = live_call(admin, "release", arguments, ret_result, error);

    json_decref(arguments);
    return result;
}

/* What is not in a database is all that there is. */
static int release_there(struct admin *admin)
{
    struct vgpu_error error;
    json_t *result;

    if (ask_mediator(admin, &result, &error) < 0)
        return admin_fail(admin, &error);
    output_say(
        admin, "VM %lld: %s", (long long)json_integer_value(json_object_get(result, "vm_id")),
        json_is_true(json_object_get(result, "released")) ? "released" : "nothing to change");
    if (admin->json)
        output_json(result);
    else
        json_decref(result);
    return ADMIN_OK;
}

int cmd_release(struct admin *admin, int argc, char **argv)
{
    const struct vm_change change = {
        .store = {.fields = STORE_VM_STATE, .values.state = STORE_VM_ACTIVE}};
    int result = admin_parse(admin, NULL, argc, argv, NULL), saved_exit = admin->failed_exit;
    struct vgpu_error error;
    json_t *answer;

    if (result)
        return result;
    if (settings_read(admin, &error) < 0)
        return admin_fail(admin, &error);
    if (access(admin->database_path, F_OK) < 0)
        return release_there(admin);
    if (ask_mediator(admin, &answer, &error) == 0)
        json_decref(answer);
    admin->failed_exit = saved_exit; /* a mediator that is down is no failure */
    return change_vm(admin, &change);
}
