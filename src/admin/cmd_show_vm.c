/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin show-vm: all that the registry knows of one VM. */
#include "admin/commands.h"

#include "admin/exports.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

static void line(const char *what, const char *value)
{
    printf("%-16s %s\n", what, value && value[0] ? value : "-");
}

/* "request rate" as "Request rate". */
static void limit_line(const struct store_limits *limits, const struct store_limit *limit)
{
    uint32_t value = store_limit_get(limits, limit);
    char what[32], text[48];

    text_copy(what, sizeof(what), limit->words);
    what[0] = (char)toupper((unsigned char)what[0]);
    snprintf(text, sizeof(text), "%u%s", value, limit->unit);
    line(what, value ? text : limit->unset);
}

static void pool_line(struct store *store, char id)
{
    const char letter[2] = {id, '\0'};
    struct store_pool pool;
    struct vgpu_error ignored;
    char text[STORE_NAME_BYTES + 16];

    if (store_find_pool(store, letter, &pool, &ignored) == 0 && pool.name[0])
        snprintf(text, sizeof(text), "%c (%s)", id, pool.name);
    else
        snprintf(text, sizeof(text), "%c", id);
    line("Pool", text);
}

static void directory_text(const struct admin *admin, const struct store_vm *vm, char *text,
                           size_t bytes)
{
    text[0] = '\0';
    if (admin->share[0] && (vm->channels & STORE_CHANNEL_FILE))
        snprintf(text, bytes, "%s/vm%u", admin->share, vm->vm_id);
}

static void export_lines(const struct admin *admin, const struct store_vm *vm)
{
    char *export = admin->exports_kind == EXPORTS_NONE ? NULL : exports_read(admin, vm->vm_id);
    char address[64], directory[4200];

    directory_text(admin, vm, directory, sizeof(directory));
    line("Directory", directory);
    if (export) {
        exports_address(export, address);
        line("Exported to", address[0] ? address : "nobody yet");
    }
    free(export);
}

static void print_vm(const struct admin *admin, struct store *store, const struct store_vm *vm)
{
    char text[64];

    snprintf(text, sizeof(text), "%u", vm->vm_id);
    line("VM", text);
    line("Name", vm->name);
    line("UUID", vm->uuid);
    pool_line(store, vm->pool);
    line("Priority", output_priority(vm->priority));
    line("State", output_state(vm->state));
    if (vm->reason[0])
        line("Reason", vm->reason);
    if (vm->quarantine_until_us) {
        output_time(vm->quarantine_until_us, text);
        line("Until", text);
    }
    for (unsigned i = 0; i < STORE_LIMITS; i++)
        limit_line(&vm->limits, &store_limits[i]);
    output_channels(vm->channels, text, sizeof(text));
    line("Channels", text);
    if (vm->owner_uid < 0)
        line("Owner", "default");
    else
        printf("%-16s %lld:%lld\n", "Owner", (long long)vm->owner_uid, (long long)vm->owner_gid);
    snprintf(text, sizeof(text), "%04o", vm->mode);
    line("Mode", text);
    export_lines(admin, vm);
    output_time(vm->created_us, text);
    line("Registered", text);
    output_time(vm->changed_us, text);
    line("Changed", text);
}

int cmd_show_vm(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;
    struct store *store;
    struct store_vm vm;

    if (result)
        return result;
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    if (store_find_vm(store, admin->words[0], &vm, &error) < 0) {
        store_close(store);
        return admin_fail(admin, &error);
    }
    if (admin->json)
        output_json(json_pack("{s:o}", "vm", output_vm(&vm)));
    else
        print_vm(admin, store, &vm);
    store_close(store);
    return ADMIN_OK;
}
