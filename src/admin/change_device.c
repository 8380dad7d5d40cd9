/* SPDX-License-Identifier: Apache-2.0 */
/* A device is withdrawn or comes back: in one transaction, then the mediator is told. */
#include "admin/admin.h"

#include <stdio.h>

int change_device(struct admin *admin, bool withdrawn)
{
    struct store_device device;
    struct vgpu_error error;
    struct store *store;
    char sentence[128];
    int result;

    if (admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = store_withdraw_device(store, admin->words[0], withdrawn, &device, &error);
    store_close(store);
    if (result < 0)
        return admin_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    snprintf(sentence, sizeof(sentence), "Device %s is %s", device.name,
             device.withdrawn ? "withdrawn: no pool uses it" : "in use by the pools that name it");
    change_answer(admin, json_pack("{s:o}", "device", output_device(&device)), sentence);
    return ADMIN_OK;
}
