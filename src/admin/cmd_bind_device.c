/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin bind-device: a pool's work runs on this device, or on these with commas
 * between, from now on; `none` takes it away.
 */
#include "admin/commands.h"
#include "admin/live_view.h"

#include <string.h>
#include <time.h>

#define CHECK_PATIENCE_NS (20 * NS_PER_S)
#define CHECK_PAUSE_NS (100 * NS_PER_MS)

static bool is_named(const char *devices, const char *name)
{
    size_t bytes = strlen(name);
    const char *at = devices;

    while ((at = strstr(at, name))) {
        if ((at == devices || at[-1] == ' ') && (at[bytes] == ' ' || !at[bytes]))
            return true;
        at += bytes;
    }
    return false;
}

/* Of what the mediator says: those that are not fit for work.  True: one is still checked. */
static bool look_at(const json_t *all, const char *devices, json_t *unfit)
{
    const json_t *device;
    bool checking = false;
    size_t i;

    json_array_clear(unfit);
    json_array_foreach(all, i, device)
    {
        if (!is_named(devices, view_text(device, "name")) || !view_text(device, "reason")[0])
            continue;
        json_array_append(unfit, (json_t *)device);
        checking = checking || strcmp(view_text(device, "state"), "checking") == 0;
    }
    return checking;
}

/* The binding stands, whatever the device does; whether it works is what the caller wants to
 * know, so the check that the mediator has begun is waited for. */
static void say_unfit(struct admin *admin, const char *devices)
{
    const struct timespec pause = {.tv_nsec = CHECK_PAUSE_NS};
    uint64_t until_ns = clock_monotonic_ns() + CHECK_PATIENCE_NS;
    json_t *unfit = json_array(), *status;
    struct vgpu_error ignored;
    bool checking = true;

    while (checking && live_call(admin, "status", NULL, &status, &ignored) == 0) {
        checking = look_at(json_object_get(status, "devices"), devices, unfit) &&
                   clock_monotonic_ns() < until_ns;
        json_decref(status);
        if (checking)
            nanosleep(&pause, NULL);
    }
    view_say_unusable(admin, unfit);
    json_decref(unfit);
}

int cmd_bind_device(struct admin *admin, int argc, char **argv)
{
    struct pool_change change = {.store.fields = STORE_POOL_DEVICE};
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;

    if (result)
        return result;
    if (strcmp(admin->words[1], "none") != 0) {
        if (value_devices(admin->words[1], change.store.values.device, &error) < 0)
            return admin_fail(admin, &error);
        change.devices = true;
    }
    result = change_pool(admin, &change);
    if (result == ADMIN_OK && !admin->json && !admin->quiet &&
        strcmp(admin->mediator, "applied") == 0)
        say_unfit(admin, change.store.values.device);
    return result;
}
