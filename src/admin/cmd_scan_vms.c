/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin scan-vms: the toolstack's VMs beside the registry's.
 *
 * A VM of the host is a registered one when it has its UUID, or, where one of the two
 * has none, its name.  What the host has comes by pool, unregistered last, each with
 * the command that registers it.  Told are: definitions that say something else than
 * the registry, two definitions with one vm_id (a clone keeps its original's), and
 * registered VMs that the host does not have, or, under Xen, whose sessions are refused
 * for want of an owner.
 *
 * Names come from tenants, and the commands are there to be copied into a shell: they
 * are quoted, and a name that the registry would not take is left out.
 */
#include "admin/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOTE_BYTES 512
#define COMMAND_BYTES 512

static const struct output_column columns[] = {
    {"pool", "POOL", false},         {"vm_id", "VM", true},    {"name", "NAME", false},
    {"priority", "PRIORITY", false}, {"state", "HOST", false}, {"uuid", "UUID", false},
    {"note", "NOTE", false},
};

static const char *const state_names[] = {"off", "running", "paused", "other"};

/* One line: of the host, of the registry, or of both. */
struct row {
    const struct toolstack_vm *machine; /* NULL: the host has none */
    const struct store_vm *vm;          /* NULL: not registered */
    char note[NOTE_BYTES];
    char command[COMMAND_BYTES]; /* "" nothing is to be done */
};

struct scan {
    struct admin *admin;
    struct toolstack_vm *machines;
    size_t machine_count;
    struct store_vm *vms;
    size_t vm_count;
    struct row *rows;
    size_t row_count;
};

/* --- who is who --------------------------------------------------------------------- */

static const struct store_vm *registered(const struct scan *scan,
                                         const struct toolstack_vm *machine)
{
    for (size_t i = 0; i < scan->vm_count; i++) {
        if (publish_is_same(machine, &scan->vms[i]))
            return &scan->vms[i];
    }
    return NULL;
}

static bool is_here(const struct scan *scan, const struct store_vm *vm)
{
    for (size_t i = 0; i < scan->machine_count; i++) {
        if (publish_is_same(&scan->machines[i], vm))
            return true;
    }
    return false;
}

static void shown_name(const struct row *row, char *text, size_t bytes)
{
    const char *name = "";

    if (row->machine)
        name = row->machine->name;
    else if (row->vm)
        name = row->vm->name;
    text_escape(text, bytes, name, strlen(name));
}

/* --- what is to be said ----------------------------------------------------------------- */

static void add_note(struct row *row, const char *text)
{
    size_t used = strlen(row->note);

    snprintf(row->note + used, sizeof(row->note) - used, "%s%s", used ? "; " : "", text);
}

static void note_clones(const struct scan *scan, struct row *row)
{
    const struct toolstack_vm *machine = row->machine;

    for (size_t i = 0; i < scan->machine_count; i++) {
        const struct toolstack_vm *other = &scan->machines[i];
        char name[TOOLSTACK_NAME_BYTES], text[NOTE_BYTES];

        if (other == machine || !other->has_device || other->device.vm_id != machine->device.vm_id)
            continue;
        text_escape(name, sizeof(name), other->name, strlen(other->name));
        snprintf(text, sizeof(text), "its device has vm_id %u, which '%.64s' has too (a clone?)",
                 machine->device.vm_id, name);
        add_note(row, text);
    }
}

static void note_stale(struct row *row)
{
    const struct toolstack_device *device = &row->machine->device;
    const struct store_vm *vm = row->vm;
    char text[NOTE_BYTES];

    if (device->vm_id == vm->vm_id && device->pool == vm->pool && device->priority == vm->priority)
        return;
    snprintf(text, sizeof(text), "its device says VM %u, pool %c, %s", device->vm_id, device->pool,
             output_priority(device->priority));
    add_note(row, text);
    snprintf(row->command, sizeof(row->command), "vgpu-admin publish %u", vm->vm_id);
}

/* As a broker sees it (src/xen/confine.c).  The command writes the definition, too. */
static void note_owner(struct row *row)
{
    if (row->vm->owner_uid >= 0 || !(row->vm->channels & STORE_CHANNEL_WINDOW))
        return;
    add_note(row, "it has no owner, and its sessions are refused");
    snprintf(row->command, sizeof(row->command), "vgpu-admin update-vm %u --owner default",
             row->vm->vm_id);
}

static void suggest_register(struct row *row)
{
    const struct toolstack_vm *machine = row->machine;
    char name[4 * STORE_NAME_BYTES + 4] = "", uuid[STORE_UUID_BYTES];
    struct vgpu_error ignored;
    bool has_uuid = store_check_uuid(machine->uuid, uuid, &ignored) == 0;
    bool has_name = store_check_name(machine->name, &ignored) == 0;

    if (has_name)
        output_quote(machine->name, name, sizeof(name));
    else if (has_uuid)
        snprintf(name, sizeof(name), "vm-%.8s", uuid);
    if (!name[0]) {
        add_note(row, "it has no UUID and no name that could be registered: rename it");
        return;
    }
    if (has_uuid)
        snprintf(row->command, sizeof(row->command), "vgpu-admin register-vm --uuid %s %s", uuid,
                 name);
    else
        snprintf(row->command, sizeof(row->command), "vgpu-admin register-vm %s", name);
}

static void judge(const struct scan *scan, struct row *row)
{
    if (!row->machine) {
        add_note(row, "registered, but this host has no such VM");
        return;
    }
    if (row->machine->device_problem[0])
        add_note(row, row->machine->device_problem);
    if (row->machine->has_device)
        note_clones(scan, row);
    if (!row->vm)
        suggest_register(row);
    else if (row->machine->has_device && !row->machine->device_problem[0])
        note_stale(row);
    if (row->vm && owner_is_needed(scan->admin))
        note_owner(row);
}

/* --- rows ----------------------------------------------------------------------------------- */

/* By pool, unregistered last; then by number, then by name. */
static int compare_rows(const void *left, const void *right)
{
    const struct row *a = left, *b = right;

    if (!a->vm != !b->vm)
        return a->vm ? -1 : 1;
    if (!a->vm)
        return strcmp(a->machine->name, b->machine->name);
    if (a->vm->pool != b->vm->pool)
        return a->vm->pool < b->vm->pool ? -1 : 1;
    return a->vm->vm_id < b->vm->vm_id ? -1 : a->vm->vm_id > b->vm->vm_id;
}

static int make_rows(struct scan *scan, struct vgpu_error *error)
{
    scan->rows = calloc(scan->machine_count + scan->vm_count + 1, sizeof(*scan->rows));
    if (!scan->rows)
        return error_set(error, ENOMEM, "no memory");
    for (size_t i = 0; i < scan->machine_count; i++) {
        struct row *row = &scan->rows[scan->row_count++];

        row->machine = &scan->machines[i];
        row->vm = registered(scan, row->machine);
    }
    for (size_t i = 0; i < scan->vm_count; i++) {
        if (!is_here(scan, &scan->vms[i]))
            scan->rows[scan->row_count++].vm = &scan->vms[i];
    }
    for (size_t i = 0; i < scan->row_count; i++)
        judge(scan, &scan->rows[i]);
    qsort(scan->rows, scan->row_count, sizeof(*scan->rows), compare_rows);
    return 0;
}

static int read_all(struct scan *scan, const char **ret_toolstack, struct vgpu_error *error)
{
    struct toolstack *toolstack;
    struct store *store;
    int result;

    if (admin_open_store(scan->admin, STORE_READ, &store, error) < 0)
        return -1;
    result = store_list_vms(store, &scan->vms, &scan->vm_count, error);
    store_close(store);
    if (result < 0 || publish_open(scan->admin, &toolstack, error) < 0)
        return -1;
    *ret_toolstack = toolstack_name(toolstack);
    result = toolstack_list(toolstack, &scan->machines, &scan->machine_count, error);
    toolstack_close(toolstack);
    return result < 0 ? -1 : make_rows(scan, error);
}

/* --- output --------------------------------------------------------------------------------- */

static void print_rows(const struct scan *scan)
{
    struct output *table = output_new(scan->admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < scan->row_count; i++) {
        const struct row *row = &scan->rows[i];
        char name[TOOLSTACK_NAME_BYTES], pool[2] = {row->vm ? row->vm->pool : '\0', '\0'};

        shown_name(row, name, sizeof(name));
        output_text(table, pool);
        if (row->vm)
            output_number(table, row->vm->vm_id);
        else
            output_text(table, NULL);
        output_text(table, name);
        output_text(table, row->vm ? output_priority(row->vm->priority) : NULL);
        output_text(table, row->machine ? state_names[row->machine->state] : "missing");
        output_text(table, row->machine ? row->machine->uuid : row->vm->uuid);
        output_text(table, row->note);
        output_end_row(table);
    }
    output_print(table, "This host has no VM, and none is registered.");
    output_free(table);
}

static void print_commands(const struct scan *scan, bool is_registered, const char *heading)
{
    bool first = true;

    for (size_t i = 0; i < scan->row_count; i++) {
        const struct row *row = &scan->rows[i];

        if (!row->command[0] || !row->vm == is_registered)
            continue;
        if (first)
            output_say(scan->admin, "\n%s", heading);
        first = false;
        output_say(scan->admin, "  %s", row->command);
    }
}

static json_t *row_json(const struct row *row)
{
    const struct toolstack_vm *machine = row->machine;
    char name[TOOLSTACK_NAME_BYTES];
    json_t *device = json_null();

    shown_name(row, name, sizeof(name));
    if (machine && machine->has_device)
        device = json_pack("{s:I, s:s%, s:s}", "vm_id", (json_int_t)machine->device.vm_id, "pool",
                           &machine->device.pool, (size_t)1, "priority",
                           output_priority(machine->device.priority));
    return json_pack("{s:s, s:s, s:s, s:b, s:o, s:o, s:s?, s:s?}", "name", name, "uuid",
                     machine ? machine->uuid : row->vm->uuid, "state",
                     machine ? state_names[machine->state] : "missing", "registered",
                     row->vm != NULL, "vm", row->vm ? output_vm(row->vm) : json_null(), "device",
                     device, "note", row->note[0] ? row->note : NULL, "command",
                     row->command[0] ? row->command : NULL);
}

static void print_json(const struct scan *scan, const char *toolstack)
{
    json_t *array = json_array();

    for (size_t i = 0; i < scan->row_count; i++)
        json_array_append_new(array, row_json(&scan->rows[i]));
    output_json(json_pack("{s:s, s:o}", "toolstack", toolstack, "vms", array));
}

int cmd_scan_vms(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct scan scan = {.admin = admin};
    struct vgpu_error error;
    const char *toolstack;

    if (result)
        return result;
    result = read_all(&scan, &toolstack, &error);
    if (result == 0 && admin->json) {
        print_json(&scan, toolstack);
    } else if (result == 0) {
        print_rows(&scan);
        print_commands(&scan, true, "To bring registered VMs up to date:");
        print_commands(&scan, false, "To register:");
    }
    free(scan.rows);
    free(scan.machines);
    free(scan.vms);
    return result < 0 ? admin_fail(admin, &error) : ADMIN_OK;
}
