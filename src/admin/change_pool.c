/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One pool changes: in one transaction, then the mediator is told.
 */
#include "admin/admin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int put_device(struct store *store, const char *name, struct vgpu_error *error)
{
    struct store_device device, *known;
    size_t count;

    if (value_device(name, &device, error) < 0 ||
        store_list_devices(store, &known, &count, error) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(known[i].name, name) == 0) {
            free(known);
            return 0;
        }
    }
    free(known);
    return store_put_device(store, &device, error);
}

int put_devices(struct store *store, const struct pool_change *change, struct vgpu_error *error)
{
    char text[STORE_POOL_DEVICE_BYTES], *rest = text, *name;

    if (!change->devices)
        return 0;
    text_copy(text, sizeof(text), change->store.values.device);
    while ((name = strtok_r(rest, " ", &rest))) {
        if (put_device(store, name, error) < 0)
            return -1;
    }
    return 0;
}

/* Between begin and commit. */
static int change_inside(struct admin *admin, struct store *store, const struct pool_change *change,
                         struct store_pool *ret_before, struct store_pool *ret_after,
                         struct vgpu_error *error)
{
    struct store_pool pool;

    if (store_find_pool(store, admin->words[0], &pool, error) < 0)
        return -1;
    if (put_devices(store, change, error) < 0)
        return -1;
    return store_change_pool(store, pool.id, &change->store, ret_before, ret_after, error);
}

static int change_rows(struct admin *admin, struct store *store, const struct pool_change *change,
                       struct store_pool *ret_before, struct store_pool *ret_after,
                       struct vgpu_error *error)
{
    if (store_begin(store, error) < 0)
        return -1;
    if (change_inside(admin, store, change, ret_before, ret_after, error) < 0 ||
        store_commit(store, error) < 0) {
        store_rollback(store);
        return -1;
    }
    return 0;
}

static void describe(const struct store_pool *pool, char *text, size_t bytes)
{
    char vms[32] = "any number of VMs", memory[48] = "any device memory", each[32] = "";

    if (pool->vms_max)
        snprintf(vms, sizeof(vms), "at most %u VMs", pool->vms_max);
    if (pool->device_memory_max_mib)
        snprintf(memory, sizeof(memory), "at most %llu MiB",
                 (unsigned long long)pool->device_memory_max_mib);
    if (pool->session_devices > 1)
        snprintf(each, sizeof(each), " (%u a session)", pool->session_devices);
    snprintf(text, bytes, "Pool %c%s%s%s is %s, %s, on %s%s, %s, %s", pool->id,
             pool->name[0] ? " (" : "", pool->name, pool->name[0] ? ")" : "",
             pool->enabled ? "enabled" : "disabled", output_sharing(pool->sharing),
             pool->device[0] ? pool->device : "no device", each, vms, memory);
}

static void add_change(char *text, size_t bytes, const char *what, const char *before,
                       const char *after)
{
    size_t used = strlen(text);

    if (strcmp(before, after) != 0)
        snprintf(text + used, bytes - used, "; %s %s -> %s", what, before, after);
}

static void aging_text(const struct store_pool *pool, char text[32])
{
    if (pool->aging_ms)
        snprintf(text, 32, "%u ms", pool->aging_ms);
    else
        text_copy(text, 32, "none");
}

/* Who runs next, before and now: appended. */
static void describe_policy(const struct store_pool *before, const struct store_pool *after,
                            char *text, size_t bytes)
{
    char old[32], new[32];

    add_change(text, bytes, "policy", store_policy_name(before->policy),
               store_policy_name(after->policy));
    aging_text(before, old);
    aging_text(after, new);
    add_change(text, bytes, "aging", old, new);
    add_change(text, bytes, "demand", before->demand ? "yes" : "no", after->demand ? "yes" : "no");
}

/* What `default` is here only the mediator knows. */
static bool has_other_policy(const struct store_pool *pool, enum store_policy policy)
{
    return pool->policy != policy && pool->policy != STORE_POLICY_DEFAULT;
}

static void note_without_effect(const struct admin *admin, uint32_t fields,
                                const struct store_pool *pool)
{
    const char *name = store_policy_name(pool->policy);

    if (admin->json || admin->quiet)
        return;
    if ((fields & (STORE_POOL_POLICY | STORE_POOL_DEMAND)) && pool->demand &&
        has_other_policy(pool, STORE_POLICY_WFQ))
        fprintf(stderr,
                "vgpu-admin: note: demand = yes has no effect with the policy %s: it is "
                "for wfq\n",
                name);
    if ((fields & (STORE_POOL_POLICY | STORE_POOL_AGING)) && pool->aging_ms &&
        has_other_policy(pool, STORE_POLICY_STRICT))
        fprintf(stderr,
                "vgpu-admin: note: aging = %u ms has no effect with the policy %s: it is "
                "for strict\n",
                pool->aging_ms, name);
}

int change_pool(struct admin *admin, const struct pool_change *change)
{
    struct store_pool before, after;
    struct vgpu_error error;
    struct store *store;
    char sentence[1024];
    int result;

    if (admin_open_store(admin, STORE_WRITE, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = change_rows(admin, store, change, &before, &after, &error);
    store_close(store);
    if (result < 0)
        return admin_fail(admin, &error);
    if (live_apply(admin, &error) < 0)
        return admin_fail_applied(admin, &error);
    describe(&after, sentence, sizeof(sentence));
    describe_policy(&before, &after, sentence, sizeof(sentence));
    note_without_effect(admin, change->store.fields, &after);
    change_answer(
        admin, json_pack("{s:o, s:o}", "pool", output_pool(&after), "before", output_pool(&before)),
        sentence);
    return ADMIN_OK;
}
