/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives src/store/ for tests that kill it, fill its disk or cut its power.
 *
 *   store_probe create FILE           VMs "left" and "right"
 *   store_probe count FILE TIMES      adds 1 to both, as one transaction, TIMES times (0: for ever)
 *   store_probe set FILE WHAT TIMES   sets left's WHAT (memory, sessions) to 1, 2, ... by itself
 *   store_probe show FILE             verifies; "LEFT RIGHT MEMORY SESSIONS EVENTS"
 *   store_probe fill FILE PREFIX N    as the only VMs PREFIX-1 to PREFIX-N, in pool B named PREFIX
 *   store_probe watch FILE            snapshots, for ever: "PREFIX N", or "mixed ..."
 *   store_probe backup FILE TO
 *   store_probe restore FILE TIMES FROM...   one after the other, TIMES times (0: for ever)
 *   store_probe open FILE read|write
 *   store_probe begin FILE            holds a write transaction until its input ends
 *
 * A line on standard output is an acknowledgement: what it says is committed.  "error
 * CODE MESSAGE" is a refusal; `count` tries again after a line of input, all else ends
 * with status 1.
 */
#include "store/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct vgpu_error error;

static int refused(void)
{
    printf("error %d %s\n", error.code, error.message);
    return 1;
}

static struct store *open_store(const char *path, enum store_access access, const char *action)
{
    struct store_actor actor = {"probe", action};
    struct store *store;

    if (store_open(path, access, &store, &error) < 0)
        exit(refused());
    store_set_actor(store, &actor);
    return store;
}

static int add(struct store *store, const char *name, char pool)
{
    struct store_vm vm;

    store_vm_init(&vm);
    vm.pool = pool;
    text_copy(vm.name, sizeof(vm.name), name);
    return store_add_vm(store, &vm, &error);
}

static int create(const char *path)
{
    struct store_actor actor = {"probe", "init"};
    struct store *store;

    if (store_create(path, &actor, &error) < 0)
        return refused();
    store = open_store(path, STORE_WRITE, "add");
    if (add(store, "left", 'A') < 0 || add(store, "right", 'A') < 0)
        return refused();
    store_close(store);
    puts("created");
    return 0;
}

/* --- counting ---------------------------------------------------------------------- */

/* The number of this VM becomes `number`, or 1 more when that is 0; returns it, 0 on error. */
static uint32_t raise_number(struct store *store, const char *name, uint32_t number)
{
    struct store_vm vm;
    struct store_vm_change change = {.fields = STORE_VM_OPERATION_LIMIT};

    if (store_find_vm(store, name, &vm, &error) < 0)
        return 0;
    if (number == 0)
        number = vm.limits.operation_limit_ms + 1;
    change.values.limits.operation_limit_ms = number;
    if (store_change_vm(store, vm.vm_id, &change, NULL, NULL, &error) < 0)
        return 0;
    return number;
}

static uint32_t count_once(struct store *store)
{
    uint32_t number;

    if (store_begin(store, &error) < 0)
        return 0;
    number = raise_number(store, "left", 0);
    if (number && raise_number(store, "right", number) && store_commit(store, &error) == 0)
        return number;
    store_rollback(store);
    return 0;
}

static int count(const char *path, unsigned long times)
{
    struct store *store = open_store(path, STORE_WRITE, "count");
    char line[16];

    for (unsigned long i = 0; times == 0 || i < times; i++) {
        uint32_t number = count_once(store);

        if (number) {
            printf("%u\n", number);
        } else {
            refused();
            if (!fgets(line, sizeof(line), stdin))
                return 1;
        }
    }
    store_close(store);
    return 0;
}

static int set(const char *path, const char *what, uint32_t times)
{
    struct store *store = open_store(path, STORE_WRITE, "set");
    bool memory = strcmp(what, "memory") == 0;

    for (uint32_t i = 1; i <= times; i++) {
        struct store_vm_change change = {
            .fields = memory ? STORE_VM_DEVICE_MEMORY : STORE_VM_SESSIONS_MAX,
            .values.limits = {.device_memory_mib = i, .sessions_max = i},
        };

        if (store_change_vm(store, 1, &change, NULL, NULL, &error) < 0)
            return refused();
        printf("%u\n", i);
    }
    store_close(store);
    return 0;
}

static int show(const char *path)
{
    struct store *store = open_store(path, STORE_READ, "show");
    struct store_event_filter filter = {.action = "count"};
    struct store_event *events;
    struct store_vm left, right;
    size_t event_count;

    if (store_verify(store, &error) < 0 || store_begin(store, &error) < 0 ||
        store_find_vm(store, "left", &left, &error) < 0 ||
        store_find_vm(store, "right", &right, &error) < 0 ||
        store_list_events(store, &filter, &events, &event_count, &error) < 0)
        return refused();
    printf("%u %u %u %u %zu\n", left.limits.operation_limit_ms, right.limits.operation_limit_ms,
           left.limits.device_memory_mib, left.limits.sessions_max, event_count);
    free(events);
    store_close(store);
    return 0;
}

/* --- whole states ------------------------------------------------------------------- */

static int fill(const char *path, const char *prefix, unsigned long number)
{
    struct store *store = open_store(path, STORE_WRITE, "fill");
    struct store_pool_change change = {.fields = STORE_POOL_NAME};
    struct store_vm *vms;
    size_t vm_count;
    char name[STORE_NAME_BYTES];

    text_copy(change.values.name, sizeof(change.values.name), prefix);
    if (store_begin(store, &error) < 0 || store_list_vms(store, &vms, &vm_count, &error) < 0)
        return refused();
    for (size_t i = 0; i < vm_count; i++) {
        if (store_remove_vm(store, vms[i].vm_id, NULL, &error) < 0)
            return refused();
    }
    free(vms);
    for (unsigned long i = 1; i <= number; i++) {
        snprintf(name, sizeof(name), "%s-%lu", prefix, i);
        if (add(store, name, 'B') < 0)
            return refused();
    }
    if (store_change_pool(store, 'B', &change, NULL, NULL, &error) < 0 ||
        store_commit(store, &error) < 0)
        return refused();
    store_close(store);
    puts("filled");
    return 0;
}

static void print_snapshot(const struct store_vm *vms, size_t vm_count,
                           const struct store_pool *pool)
{
    size_t length = strlen(pool->name);

    for (size_t i = 0; i < vm_count; i++) {
        if (strncmp(vms[i].name, pool->name, length) != 0 || vms[i].name[length] != '-') {
            printf("mixed %s %s\n", pool->name, vms[i].name);
            return;
        }
    }
    printf("%s %zu\n", pool->name, vm_count);
}

static int watch(const char *path)
{
    struct store *store = open_store(path, STORE_READ, "watch");

    for (;;) {
        struct store_pool pool;
        struct store_vm *vms;
        size_t vm_count;

        if (store_begin(store, &error) < 0 || store_find_pool(store, "B", &pool, &error) < 0 ||
            store_list_vms(store, &vms, &vm_count, &error) < 0 || store_commit(store, &error) < 0)
            return refused();
        print_snapshot(vms, vm_count, &pool);
        free(vms);
    }
}

static int restore(const char *path, unsigned long times, char **from, unsigned from_count)
{
    struct store *store = open_store(path, STORE_WRITE, "restore");

    for (unsigned long i = 0; times == 0 || i < times; i++) {
        const char *next = from[i % from_count];

        if (store_restore(store, next, &error) < 0)
            return refused();
        printf("%s\n", next);
    }
    store_close(store);
    return 0;
}

static int backup(const char *path, const char *to)
{
    struct store *store = open_store(path, STORE_READ, "backup");

    if (store_backup(store, to, &error) < 0)
        return refused();
    store_close(store);
    puts("backed up");
    return 0;
}

static int begin(const char *path)
{
    struct store *store = open_store(path, STORE_WRITE, "begin");

    if (store_begin(store, &error) < 0)
        return refused();
    puts("begun");
    while (getchar() != EOF)
        continue;
    store_close(store);
    return 0;
}

int main(int argc, char **argv)
{
    const char *command = argc > 2 ? argv[1] : "", *path = argc > 2 ? argv[2] : "";

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(command, "create") == 0)
        return create(path);
    if (strcmp(command, "count") == 0 && argc == 4)
        return count(path, strtoul(argv[3], NULL, 10));
    if (strcmp(command, "set") == 0 && argc == 5)
        return set(path, argv[3], (uint32_t)strtoul(argv[4], NULL, 10));
    if (strcmp(command, "show") == 0)
        return show(path);
    if (strcmp(command, "fill") == 0 && argc == 5)
        return fill(path, argv[3], strtoul(argv[4], NULL, 10));
    if (strcmp(command, "watch") == 0)
        return watch(path);
    if (strcmp(command, "backup") == 0 && argc == 4)
        return backup(path, argv[3]);
    if (strcmp(command, "restore") == 0 && argc > 4)
        return restore(path, strtoul(argv[3], NULL, 10), argv + 4, (unsigned)argc - 4);
    if (strcmp(command, "begin") == 0)
        return begin(path);
    if (strcmp(command, "open") == 0 && argc == 4) {
        store_close(open_store(path, argv[3][0] == 'w' ? STORE_WRITE : STORE_READ, "open"));
        puts("opened");
        return 0;
    }
    fprintf(stderr, "store_probe: see the head of its source\n");
    return 2;
}
