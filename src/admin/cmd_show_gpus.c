/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin show-gpus: how the GPUs of this host are.  The mediator that watches them
 * is asked; where none does, NVIDIA's library is, by this program, and that is said.
 */
#include "admin/commands.h"
#include "admin/gpu_view.h"
#include "admin/live_view.h"
#include "gpu/gpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_MS 10000u /* a driver in trouble may never answer */

struct gpus {
    struct admin *admin;
    const char *source;            /* "mediator" or "library" */
    char reason[VGPU_ERROR_BYTES]; /* why it is the library */
    json_t *list, *driver;         /* owned */
    json_t *devices;               /* "mediator": what its pools name; owned */
    uint64_t interval_ms;          /* "mediator" */
};

/* --- from the mediator ---------------------------------------------------------------------- */

static void take_watch(struct gpus *gpus, const json_t *status)
{
    const json_t *watch = json_object_get(status, "gpu_watch");

    if (!view_flag(watch, "on")) {
        snprintf(gpus->reason, sizeof(gpus->reason), "the mediator does not watch: %.400s",
                 watch ? view_text(watch, "reason") : "its version cannot");
        return;
    }
    gpus->source = "mediator";
    gpus->list = json_incref(json_object_get(status, "gpus"));
    gpus->driver = json_incref(json_object_get(watch, "driver"));
    gpus->devices = json_incref(json_object_get(status, "devices"));
    gpus->interval_ms = view_number(watch, "interval_ms");
}

/* True when it watches. */
static bool ask_mediator(struct gpus *gpus)
{
    struct vgpu_error error = {0};
    json_t *status;

    if (live_call(gpus->admin, "status", NULL, &status, &error) < 0) {
        snprintf(gpus->reason, sizeof(gpus->reason), "no mediator told: %.400s", error.message);
        return false;
    }
    take_watch(gpus, status);
    json_decref(status);
    return gpus->source != NULL;
}

/* --- from the library ------------------------------------------------------------------------- */

static void take_snapshot(struct gpus *gpus, struct gpu_health *health,
                          struct gpu_snapshot *snapshot)
{
    if (!gpu_health_wait(health, 1, PATIENCE_MS)) {
        gpu_health_read(health, snapshot);
        snprintf(snapshot->problem, sizeof(snapshot->problem),
                 "the driver has not answered within %u s; look at dmesg | grep NVRM",
                 PATIENCE_MS / 1000);
    } else {
        gpu_health_read(health, snapshot);
    }
    gpus->source = "library";
    gpus->list = gpu_health_json_gpus(snapshot);
    gpus->driver = gpu_health_json_driver(snapshot);
}

static int ask_library(struct gpus *gpus, struct vgpu_error *error)
{
    const char *library = gpus->admin->nvml_library;
    const struct gpu_health_config config = {.nvml_library = library[0] ? library : NULL,
                                             .interval_ms = 3600000}; /* one look */
    struct gpu_snapshot *snapshot;
    struct gpu_health *health;

    if (strcmp(library, "none") == 0)
        return error_set(error, ENOSYS,
                         "nvml_library = none in the configuration: GPUs are not looked at");
    if (gpu_health_open(&config, &health, error) < 0)
        return -1;
    snapshot = calloc(1, sizeof(*snapshot));
    if (snapshot)
        take_snapshot(gpus, health, snapshot);
    free(snapshot);
    gpu_health_close(health);
    return snapshot ? 0 : error_set(error, ENOMEM, "no memory for what is known of the GPUs");
}

/* --- telling ------------------------------------------------------------------------------------
 */

static void say_source(const struct gpus *gpus)
{
    const char *version = view_text(gpus->driver, "version");
    const char *problem = view_text(gpus->driver, "problem");
    const char *library = gpus->admin->nvml_library;

    if (strcmp(gpus->source, "mediator") == 0)
        output_say(gpus->admin, "Source: the mediator, which looks every %.1f s; driver %s.",
                   (double)gpus->interval_ms / 1000, version[0] ? version : "unknown");
    else
        output_say(gpus->admin, "Source: %s, read by this program just now (%s); driver %s.",
                   library[0] ? library : "libnvidia-ml.so.1", gpus->reason,
                   version[0] ? version : "unknown");
    if (problem[0])
        output_say(gpus->admin, "Problem: %s.", problem);
}

static void tell_json(const struct gpus *gpus)
{
    json_t *object = json_pack("{s:s, s:s, s:O, s:O}", "source", gpus->source, "reason",
                               gpus->reason, "driver", gpus->driver, "gpus", gpus->list);

    if (gpus->devices)
        json_object_set(object, "devices", gpus->devices);
    output_json(object);
}

static void tell(const struct gpus *gpus)
{
    if (gpus->admin->json) {
        tell_json(gpus);
        return;
    }
    say_source(gpus);
    gpu_view_print(gpus->admin, gpus->list, "No GPU is known.");
    view_say_devices(gpus->admin, gpus->devices);
}

int cmd_show_gpus(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct gpus gpus = {.admin = admin};
    struct vgpu_error error = {0};

    if (result)
        return result;
    if (settings_read(admin, &error) < 0)
        return admin_fail(admin, &error);
    if (!ask_mediator(&gpus)) {
        admin->failed_exit = ADMIN_FAILED; /* it was only asked first */
        if (ask_library(&gpus, &error) < 0)
            return admin_fail(admin, &error);
    }
    tell(&gpus);
    json_decref(gpus.list);
    json_decref(gpus.driver);
    json_decref(gpus.devices);
    return ADMIN_OK;
}
