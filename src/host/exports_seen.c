/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all exports say together: a guest that may mount two VMs' directories, a
 * directory that two guests may mount, and directories that are no VM's (any more).
 */
#include "host/private.h"

#include "store/store.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the registry ------------------------------------------------------------------------ */

static void add_registered(struct registered *registered, const struct store_vm *vm)
{
    const char *name = vm->name;

    if (vm->channels & STORE_CHANNEL_FILE)
        registered->vm_ids[registered->count++] = vm->vm_id;
    if ((vm->channels & STORE_CHANNEL_WINDOW) && vm->owner_uid < 0)
        host_add(registered->ownerless, sizeof(registered->ownerless), "%u%s%s%s", vm->vm_id,
                 name[0] ? " (" : "", name, name[0] ? ")" : "");
}

void registered_read(const struct host *host, struct registered *ret_registered)
{
    struct registered registered = {.known = false};
    struct store_vm *vms = NULL;
    struct store *store;
    char path[PATH_MAX];
    size_t count;

    if (host->database[0] && host_path(host, path, "%s", host->database) &&
        host_exists(host, "%s", host->database) &&
        store_open(path, STORE_READ_BRIEFLY, &store, NULL) == 0) {
        registered.known = store_list_vms(store, &vms, &count, NULL) == 0;
        store_close(store);
    }
    if (registered.known)
        registered.vm_ids = calloc(count + 1, sizeof(*registered.vm_ids));
    for (size_t i = 0; registered.vm_ids && i < count; i++)
        add_registered(&registered, &vms[i]);
    registered.known = registered.vm_ids;
    free(vms);
    *ret_registered = registered;
}

bool registered_lacks(const struct registered *registered, uint32_t vm_id)
{
    for (size_t i = 0; i < registered->count; i++) {
        if (registered->vm_ids[i] == vm_id)
            return false;
    }
    return registered->known;
}

void registered_free(struct registered *registered)
{
    free(registered->vm_ids);
    *registered = (struct registered){.known = false};
}

bool host_is_vm_directory(const char *name, uint32_t *ret_vm_id)
{
    uint64_t vm_id;

    if (strncmp(name, "vm", 2) != 0 || !text_parse_u64(name + 2, 1, UINT32_MAX, &vm_id))
        return false;
    *ret_vm_id = (uint32_t)vm_id;
    return true;
}

/* --- the exports -------------------------------------------------------------------------- */

/* One notation for one address; names of hosts in lower case. */
static void make_plain(const char *client, char plain[64])
{
    unsigned char binary[16];

    if (inet_pton(AF_INET, client, binary) == 1 || inet_pton(AF_INET6, client, binary) == 1) {
        inet_ntop(strchr(client, ':') ? AF_INET6 : AF_INET, binary, plain, 64);
        return;
    }
    text_copy(plain, 64, client);
    for (char *at = plain; *at; at++)
        *at = (char)tolower((unsigned char)*at);
}

void exports_seen_add(struct exports_seen *seen, const char *path, const char *client)
{
    struct export_seen *grown = realloc(seen->all, (seen->count + 1) * sizeof(*grown));
    size_t length;

    if (!grown)
        return;
    seen->all = grown;
    grown = &seen->all[seen->count++];
    text_copy(grown->path, sizeof(grown->path), path);
    length = strlen(grown->path);
    while (length > 1 && grown->path[length - 1] == '/')
        grown->path[--length] = '\0';
    make_plain(client, grown->client);
}

static int by_client(const void *one, const void *other)
{
    const struct export_seen *a = one, *b = other;
    int order = strcmp(a->client, b->client);

    return order ? order : strcmp(a->path, b->path);
}

static int by_path(const void *one, const void *other)
{
    const struct export_seen *a = one, *b = other;
    int order = strcmp(a->path, b->path);

    return order ? order : strcmp(a->client, b->client);
}

static void judge_clients(struct exports_seen *seen, struct findings *findings)
{
    qsort(seen->all, seen->count, sizeof(*seen->all), by_client);
    for (size_t i = 1; i < seen->count; i++) {
        const struct export_seen *last = &seen->all[i - 1], *one = &seen->all[i];

        if (strcmp(last->client, one->client) == 0 && strcmp(last->path, one->path) != 0)
            host_add(findings->failed, sizeof(findings->failed), "%s may mount both %s and %s",
                     one->client, last->path, one->path);
    }
}

static void judge_number(const struct survey *survey, const char *path, struct findings *findings)
{
    const char *share = survey->host->share;
    char name[64];
    uint32_t vm_id;

    if (strncmp(path, share, strlen(share)) != 0)
        return; /* above it: told already */
    path += strlen(share);
    path += strspn(path, "/");
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(path, "/"), path);
    if (!name[0])
        return; /* the share itself: told too */
    if (!host_is_vm_directory(name, &vm_id))
        host_add(findings->warned, sizeof(findings->warned), "%s is exported and no VM's directory",
                 name);
    else if (registered_lacks(&survey->registered, vm_id))
        host_add(findings->warned, sizeof(findings->warned),
                 "%s is exported, and no VM %u with the file channel is registered", name, vm_id);
}

static void judge_paths(const struct survey *survey, struct exports_seen *seen,
                        struct findings *findings)
{
    qsort(seen->all, seen->count, sizeof(*seen->all), by_path);
    for (size_t i = 0; i < seen->count; i++) {
        const struct export_seen *one = &seen->all[i], *last = i ? &seen->all[i - 1] : NULL;

        if (!last || strcmp(last->path, one->path) != 0)
            judge_number(survey, one->path, findings);
        else if (strcmp(last->client, one->client) != 0)
            host_add(findings->warned, sizeof(findings->warned), "%s is for two guests, %s and %s",
                     one->path, last->client, one->client);
    }
}

void exports_seen_judge(const struct survey *survey, struct exports_seen *seen,
                        struct findings *findings)
{
    if (seen->count > 0) {
        judge_clients(seen, findings);
        judge_paths(survey, seen, findings);
    }
    free(seen->all);
    *seen = (struct exports_seen){.count = 0};
}
