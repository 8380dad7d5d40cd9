/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM changes: database, directory and export as one, then the
 * mediator is told and the toolstack's copy follows.
 *
 *   row, tried ─▶ directory, export ─▶ row, committed ─▶ mediator applies ─▶ definition
 *
 * Up to the commit a failure undoes everything.  After it the registry counts: a
 * mediator that is down reads it when it starts.  While the NFS server is told of an
 * export nobody has to wait for the database (share_lock()).
 */
#include "admin/exports.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARE_FIELDS (STORE_VM_CHANNELS | STORE_VM_OWNER)

/* --- what changed, in words ------------------------------------------------------------ */

struct words {
    char text[1024];
    size_t used;
};

static void add_words(struct words *words, const char *what, const char *before, const char *after)
{
    if (strcmp(before, after) == 0 || words->used >= sizeof(words->text))
        return;
    words->used += (size_t)snprintf(words->text + words->used, sizeof(words->text) - words->used,
                                    "%s%s %s -> %s", words->used ? ", " : "", what,
                                    before[0] ? before : "none", after[0] ? after : "none");
}

static void limit_text(const struct store_limit *limit, uint32_t value, char text[48])
{
    if (value)
        snprintf(text, 48, "%u%s", value, limit->unit);
    else
        text_copy(text, 48, limit->unset);
}

static void add_limits(struct words *words, const struct store_limits *before,
                       const struct store_limits *after)
{
    char old[48], new[48];

    for (unsigned i = 0; i < STORE_LIMITS; i++) {
        limit_text(&store_limits[i], store_limit_get(before, &store_limits[i]), old);
        limit_text(&store_limits[i], store_limit_get(after, &store_limits[i]), new);
        add_words(words, store_limits[i].words, old, new);
    }
}

static void owner_text(const struct store_vm *vm, char text[64])
{
    if (vm->owner_uid < 0)
        text_copy(text, 64, "default");
    else
        snprintf(text, 64, "%lld:%lld", (long long)vm->owner_uid, (long long)vm->owner_gid);
}

static void describe(const struct store_vm *before, const struct store_vm *after,
                     struct words *words)
{
    const char old_pool[2] = {before->pool, '\0'}, new_pool[2] = {after->pool, '\0'};
    char old[64], new[64];

    add_words(words, "pool", old_pool, new_pool);
    add_words(words, "priority", output_priority(before->priority),
              output_priority(after->priority));
    add_words(words, "name", before->name, after->name);
    add_words(words, "UUID", before->uuid, after->uuid);
    add_words(words, "state", output_state(before->state), output_state(after->state));
    add_words(words, "reason", before->reason, after->reason);
    output_channels(before->channels, old, sizeof(old));
    output_channels(after->channels, new, sizeof(new));
    add_words(words, "channels", old, new);
    owner_text(before, old);
    owner_text(after, new);
    add_words(words, "owner", old, new);
    snprintf(old, sizeof(old), "%04o", before->mode);
    snprintf(new, sizeof(new), "%04o", after->mode);
    add_words(words, "mode", old, new);
    add_limits(words, &before->limits, &after->limits);
}

/* --- the answer ------------------------------------------------------------------------- */

void change_answer(struct admin *admin, json_t *object, const char *sentence)
{
    json_object_set_new(object, "mediator",
                        admin->mediator ? json_string(admin->mediator) : json_null());
    if (admin->json)
        output_json(object);
    else
        json_decref(object);
    output_say(admin, "%s", sentence);
}

static void answer(struct admin *admin, const struct vm_change *change,
                   const struct store_vm *before, const struct store_vm *after)
{
    char name[STORE_NAME_BYTES + 32], sentence[1200];
    struct words words = {.text = "nothing to change"};

    describe(before, after, &words);
    if (change->address && words.used < sizeof(words.text))
        words.used += (size_t)snprintf(words.text + words.used, sizeof(words.text) - words.used,
                                       "%sexported to %s", words.used ? ", " : "", change->address);
    output_vm_name(after, name, sizeof(name));
    snprintf(sentence, sizeof(sentence), "%s: %s", name, words.text);
    change_answer(admin,
                  json_pack("{s:b, s:o, s:o}", "changed", words.used > 0, "vm", output_vm(after),
                            "before", output_vm(before)),
                  sentence);
}

/* --- the change -------------------------------------------------------------------------- */

static int change_share(struct admin *admin, const struct store_vm *before,
                        const struct store_vm *after, const char *address, struct share_undo *undo,
                        struct vgpu_error *error)
{
    bool had = before->channels & STORE_CHANNEL_FILE, has = after->channels & STORE_CHANNEL_FILE;

    if (had && !has)
        return share_retire(admin, before, undo, error);
    return (had ? share_make : share_make_new)(admin, after, address, undo, error);
}

/* --owner default. */
static int default_owner(const struct admin *admin, struct store *store, uint32_t vm_id,
                         struct store_vm *values, struct vgpu_error *error)
{
    struct store_vm vm = {.vm_id = vm_id, .owner_uid = -1, .owner_gid = -1};

    if (owner_complete(admin, store, &vm, error) < 0)
        return -1;
    values->owner_uid = vm.owner_uid;
    values->owner_gid = vm.owner_gid;
    return 0;
}

/* What depends on the present row is read in the transaction that changes it. */
static int complete_change(const struct admin *admin, struct store *store,
                           const struct vm_change *change, const struct store_vm *vm,
                           struct store_vm_change *ret_change, struct vgpu_error *error)
{
    bool gives_owner = (change->store.fields & STORE_VM_OWNER) && !change->keep_owner;
    struct store_pool pool;

    *ret_change = change->store;
    if (change->pool) {
        if (store_find_pool(store, change->pool, &pool, error) < 0)
            return -1;
        ret_change->fields |= STORE_VM_POOL;
        ret_change->values.pool = pool.id;
    }
    if (change->keep_owner) {
        ret_change->values.owner_uid = vm->owner_uid;
        ret_change->values.owner_gid = vm->owner_gid;
    }
    if (gives_owner && change->store.values.owner_uid < 0 &&
        default_owner(admin, store, vm->vm_id, &ret_change->values, error) < 0)
        return -1;
    if (change->keep_mode)
        ret_change->values.mode = vm->mode;
    if (change->keep_reason && vm->state == STORE_VM_QUARANTINED)
        memcpy(ret_change->values.reason, vm->reason, sizeof(vm->reason));
    return 0;
}

/* The address stands in the export alone, but is a change as any other. */
static int note_address(struct store *store, const struct store_vm *vm,
                        const struct share_undo *undo, const char *address,
                        struct vgpu_error *error)
{
    struct store_event event = {.vm_id = vm->vm_id, .pool = vm->pool};
    char old[64];

    exports_address(undo->export_from, old);
    if (strcmp(old, address) == 0)
        return 0;
    snprintf(event.before, sizeof(event.before), "{\"address\": \"%s\"}", old);
    snprintf(event.after, sizeof(event.after), "{\"address\": \"%s\"}", address);
    return store_add_event(store, &event, error);
}

static bool touches_share(const struct vm_change *change)
{
    return (change->store.fields & SHARE_FIELDS) || change->address;
}

/* Between begin and commit. */
static int change_inside(struct admin *admin, struct store *store, const struct vm_change *change,
                         struct store_vm *ret_before, struct store_vm *ret_after,
                         struct vgpu_error *error)
{
    struct store_vm_change whole;
    struct store_vm vm;

    if (store_find_vm(store, admin->words[0], &vm, error) < 0 ||
        complete_change(admin, store, change, &vm, &whole, error) < 0 ||
        store_change_vm(store, vm.vm_id, &whole, ret_before, ret_after, error) < 0)
        return -1;
    return touches_share(change) && !change->force
               ? tenant_check(admin, store, ret_before, ret_after, change->address, error)
               : 0;
}

/* What the change would do. */
static int try_rows(struct admin *admin, struct store *store, const struct vm_change *change,
                    struct store_vm *ret_before, struct store_vm *ret_after,
                    struct vgpu_error *error)
{
    int result;

    if (store_begin(store, error) < 0)
        return -1;
    result = change_inside(admin, store, change, ret_before, ret_after, error);
    store_rollback(store);
    return result;
}

/* `tried`: the row that the share was changed for; NULL: it was not. */
static int write_rows(struct admin *admin, struct store *store, const struct vm_change *change,
                      const struct store_vm *tried, const struct share_undo *undo,
                      struct store_vm *ret_before, struct store_vm *ret_after,
                      struct vgpu_error *error)
{
    if (store_begin(store, error) < 0)
        return -1;
    if (change_inside(admin, store, change, ret_before, ret_after, error) < 0 ||
        (tried && share_check_row(tried, ret_before, error) < 0) ||
        (change->address && note_address(store, ret_after, undo, change->address, error) < 0) ||
        store_commit(store, error) < 0) {
        store_rollback(store);
        return -1;
    }
    return 0;
}

static int change_rows_and_share(struct admin *admin, struct store *store,
                                 const struct vm_change *change, struct store_vm *ret_before,
                                 struct store_vm *ret_after, struct vgpu_error *error)
{
    struct share_undo undo = {0};
    struct vgpu_error ignored;
    struct store_vm tried;

    if (try_rows(admin, store, change, &tried, ret_after, error) < 0 ||
        change_share(admin, &tried, ret_after, change->address, &undo, error) < 0)
        return -1;
    if (write_rows(admin, store, change, &tried, &undo, ret_before, ret_after, error) < 0) {
        share_undo(admin, &undo, &ignored);
        return -1;
    }
    share_done(&undo);
    return 0;
}

static int change_rows(struct admin *admin, struct store *store, const struct vm_change *change,
                       struct store_vm *ret_before, struct store_vm *ret_after,
                       struct vgpu_error *error)
{
    int turn, result;

    if (!touches_share(change))
        return write_rows(admin, store, change, NULL, NULL, ret_before, ret_after, error);
    if (share_lock(admin, &turn, error) < 0)
        return -1;
    result = change_rows_and_share(admin, store, change, ret_before, ret_after, error);
    fd_close(&turn);
    return result;
}

int change_vm(struct admin *admin, const struct vm_change *change)
{
    struct store_vm before, after;
    struct vgpu_error error;
    struct store *store;

    if (admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    if (change_rows(admin, store, change, &before, &after, &error) < 0) {
        store_close(store);
        return admin_fail(admin, &error);
    }
    store_close(store);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    if ((before.channels & ~after.channels) & STORE_CHANNEL_FILE)
        share_sweep(admin, after.vm_id);
    publish_changed(admin, &after);
    answer(admin, change, &before, &after);
    return ADMIN_OK;
}
