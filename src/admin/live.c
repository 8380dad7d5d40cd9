/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The running mediator: told after each change of the database.  A change counts
 * without it, as it reads the database when it starts, so that it is down is said and
 * is no failure.  A mediator that reads another database, or none, is said too: there
 * the change would never count.
 */
#include "admin/admin.h"

#include "control/control.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define TIMEOUT_MS 30000
#define BUSY_PATIENCE_NS (10 * NS_PER_S)
#define BUSY_PAUSE_NS (100 * NS_PER_MS)

static bool is_down(const struct vgpu_error *error)
{
    return error->code == ENOENT || error->code == ECONNREFUSED;
}

static void note(const struct admin *admin, const char *format, ...) VGPU_PRINTF(2, 3);
static void note(const struct admin *admin, const char *format, ...)
{
    va_list args;

    if (admin->json || admin->quiet)
        return;
    fputs("vgpu-admin: note: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

/* What the mediator refused, in the errno values that exit codes are made of. */
static int code_of(const char *refusal, int code)
{
    static const struct {
        const char *refusal;
        int code;
    } codes[] = {{"no-such-vm", ENOENT}, {"no-such-pool", ENOENT}, {"wrong-configuration", EINVAL}};

    for (size_t i = 0; code == EREMOTEIO && i < VGPU_ARRAY_LENGTH(codes); i++) {
        if (strcmp(refusal, codes[i].refusal) == 0)
            return codes[i].code;
    }
    return code;
}

int live_call(struct admin *admin, const char *command, json_t *arguments, json_t **ret_result,
              struct vgpu_error *error)
{
    struct control *control;
    char refusal[64] = "";
    int result;

    if (!admin->socket_path[0] && settings_read(admin, error) < 0)
        return -1;
    if (control_connect(admin->socket_path, &control, error) < 0) {
        if (is_down(error))
            admin->failed_exit = ADMIN_NOT_RUNNING;
        return -1;
    }
    result = control_call(control, command, arguments, TIMEOUT_MS, ret_result, refusal, error);
    if (result < 0)
        error->code = code_of(refusal, error->code);
    control_close(control);
    return result;
}

/* The first VM of the next page; 0: this was the last.  `vms` are in order. */
static json_int_t next_page(const json_t *page)
{
    const json_t *vms = json_object_get(page, "vms");
    const json_t *last = json_array_get(vms, json_array_size(vms) - 1);
    json_int_t vm_id = json_integer_value(json_object_get(last, "vm_id"));

    return json_integer_value(json_object_get(page, "vms_left_out")) > 0 && vm_id < UINT32_MAX
               ? vm_id + 1
               : 0;
}

/* Appends the next page to `status`; *from becomes that of the one behind it. */
static int add_page(struct admin *admin, json_t *status, json_int_t *from, struct vgpu_error *error)
{
    json_t *arguments = json_pack("{s:I}", "vms_from", *from), *page;
    int result = live_call(admin, "status", arguments, &page, error);

    json_decref(arguments);
    if (result < 0)
        return -1;
    *from = json_array_size(json_object_get(page, "vms")) > 0 ? next_page(page) : 0;
    json_array_extend(json_object_get(status, "vms"), json_object_get(page, "vms"));
    json_decref(page);
    return 0;
}

int live_status(struct admin *admin, json_t **ret_status, struct vgpu_error *error)
{
    json_int_t from;
    json_t *status;

    if (live_call(admin, "status", NULL, &status, error) < 0)
        return -1;
    from = next_page(status);
    while (from > 0) {
        if (add_page(admin, status, &from, error) < 0) {
            json_decref(status);
            return -1;
        }
    }
    json_object_del(status, "vms_left_out");
    *ret_status = status;
    return 0;
}

/* By the file, whatever the path. */
static bool is_ours(const struct admin *admin, const char *database)
{
    struct stat ours, theirs;

    return database && stat(admin->database_path, &ours) == 0 && stat(database, &theirs) == 0 &&
           ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

static void judge(struct admin *admin, const json_t *applied)
{
    const char *database = json_string_value(json_object_get(applied, "database"));
    const char *reason = json_string_value(json_object_get(applied, "reason"));

    if (!is_ours(admin, database)) {
        admin->mediator = "elsewhere";
        note(admin,
             "the mediator that runs (%s) reads %s%s, not %s: nothing of this counts there; set "
             "database in its configuration, or name the right one with --database or --config",
             admin->socket_path, database ? "the database " : "no database",
             database ? database : "", admin->database_path);
    } else if (json_is_true(json_object_get(applied, "pending"))) {
        admin->mediator = "pending";
        note(admin, "%s",
             reason ? reason
                    : "the mediator has just started and settles what an earlier one left: it "
                      "applies this right after that");
    } else {
        admin->mediator = "applied";
    }
}

static int reload_once(struct admin *admin, json_t **ret_applied, struct vgpu_error *error)
{
    struct control *control;
    int result;

    if (control_connect(admin->socket_path, &control, error) < 0)
        return -1;
    result = control_call(control, "reload", NULL, TIMEOUT_MS, ret_applied, NULL, error);
    control_close(control);
    return result;
}

/* Many administrators at once, or one who holds the database, are no failure yet. */
static int reload(struct admin *admin, json_t **ret_applied, struct vgpu_error *error)
{
    const struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};
    uint64_t until_ns = clock_monotonic_ns() + BUSY_PATIENCE_NS;
    int result;

    while ((result = reload_once(admin, ret_applied, error)) < 0 && error->code == EBUSY &&
           clock_monotonic_ns() < until_ns)
        nanosleep(&pause, NULL);
    return result;
}

int live_fail(struct admin *admin, const struct vgpu_error *error)
{
    struct vgpu_error ignored;
    json_t *applied;

    if ((error->code == ENOENT || error->code == EEXIST) && !admin->failed_exit &&
        admin->socket_path[0] && reload(admin, &applied, &ignored) == 0)
        json_decref(applied);
    return admin_fail(admin, error);
}

int live_apply(struct admin *admin, struct vgpu_error *error)
{
    json_t *applied;

    fault_point("admin-committed");
    if (reload(admin, &applied, error) < 0) {
        if (!is_down(error))
            return -1;
        admin->mediator = "down";
        note(admin, "the mediator is not running (%s): it reads the database when it starts",
             admin->socket_path);
        return 0;
    }
    judge(admin, applied);
    json_decref(applied);
    return 0;
}
