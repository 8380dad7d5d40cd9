/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Domains: which VM each is, by what the host wrote, and the offer of the channel to those
 * that are VMs of ours.
 */
#include "xen/watch.h"
#include "xen/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum identity { IDENTITY_UNKNOWN, IDENTITY_NO_VM, IDENTITY_VM };

/* Once for all domains that are looked at together: -1 until domain_close_registry(). */
static int open_registry(struct watch *watch)
{
    struct vgpu_error error;

    if (watch->store)
        return 0;
    if (watch->is_registry_away)
        return -1;
    if (store_open(watch->config.database, STORE_READ_BRIEFLY, &watch->store, &error) == 0)
        return 0;
    log_warning("%s", error.message);
    watch->is_registry_away = true;
    return -1;
}

void domain_close_registry(struct watch *watch)
{
    if (watch->store)
        store_close(watch->store);
    watch->store = NULL;
    watch->is_registry_away = false;
}

static enum identity find_in_registry(struct watch *watch, const char *uuid, uint32_t *ret_vm_id)
{
    struct vgpu_error error;
    struct store_vm vm;

    if (open_registry(watch) < 0)
        return IDENTITY_UNKNOWN;
    if (store_find_vm(watch->store, uuid, &vm, &error) < 0)
        return error.code == ENOENT ? IDENTITY_NO_VM : IDENTITY_UNKNOWN;
    if (strcasecmp(vm.uuid, uuid) != 0)
        return IDENTITY_NO_VM;
    *ret_vm_id = vm.vm_id;
    return IDENTITY_VM;
}

static void complain_of_node(struct watch_domain *domain, const char *path)
{
    if (!domain->has_complained)
        log_warning("domain %u: others than the host may write %s, so it does not say who this is",
                    domain->id, path);
    domain->has_complained = true;
}

/* Dom0 says which domains are ours, and who they are. */
bool watch_is_worker_domain(const struct watch *watch)
{
    return watch->own_domain != 0;
}

static void guests_node(const struct watch *watch, char path[XENBUS_PATH_BYTES])
{
    snprintf(path, XENBUS_PATH_BYTES, DOMAINS "/%u/" WORKER_GUESTS, watch->own_domain);
}

/* What nobody but Dom0 and this domain may write: IDENTITY_VM when it is so. */
static enum identity read_of_host(struct watch *watch, struct watch_domain *domain,
                                  const char *path, char *ret_value, size_t value_bytes)
{
    char words[256];
    int bytes = xenbus_get_permissions(&watch->bus, path, words, sizeof(words) - 1);

    if (bytes < 0 || xenbus_read(&watch->bus, path, ret_value, value_bytes) < 0)
        return IDENTITY_UNKNOWN; /* the host has not written it yet, or removes it */
    words[bytes] = '\0';
    if (xen_only_host_writes(words, (size_t)bytes, 0))
        return IDENTITY_VM;
    complain_of_node(domain, path);
    return IDENTITY_NO_VM;
}

/* By what the relay in Dom0 wrote. */
static enum identity identify_by_relay(struct watch *watch, struct watch_domain *domain,
                                       uint32_t *ret_vm_id)
{
    char guests[XENBUS_PATH_BYTES], path[XENBUS_PATH_BYTES + 16], value[16];
    enum identity identity;
    uint64_t vm_id;

    guests_node(watch, guests);
    snprintf(path, sizeof(path), "%s/%u", guests, domain->id);
    identity = read_of_host(watch, domain, path, value, sizeof(value));
    if (identity == IDENTITY_VM && !text_parse_u64(value, 1, STORE_VM_ID_MAX, &vm_id))
        identity = IDENTITY_NO_VM;
    if (identity == IDENTITY_VM)
        *ret_vm_id = (uint32_t)vm_id;
    return identity;
}

/* By what the host wrote: the guest can write neither this node nor below /vm. */
static enum identity identify(struct watch *watch, struct watch_domain *domain, uint32_t *ret_vm_id)
{
    char path[XENBUS_PATH_BYTES], value[XENBUS_PATH_BYTES], uuid[37];
    enum identity identity;

    if (watch_is_worker_domain(watch))
        return identify_by_relay(watch, domain, ret_vm_id);
    watch_node(domain, "vm", path);
    identity = read_of_host(watch, domain, path, value, sizeof(value));
    if (identity != IDENTITY_VM)
        return identity;
    return xen_uuid_of_path(value, uuid) ? find_in_registry(watch, uuid, ret_vm_id)
                                         : IDENTITY_NO_VM;
}

/* Whose area it is: what its owner is called in a node's rights. */
static bool is_backend_ours(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], words[256], number[16];
    int bytes;

    watch_node(domain, VGPU_XEN_BACKEND, path);
    bytes = xenbus_get_permissions(&watch->bus, path, words, sizeof(words) - 1);
    if (bytes <= 0)
        return false;
    words[bytes] = '\0';
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return strcmp(words + 1, number) == 0;
}

/* As long as the guest does not remove it, with all of its area; one that it made itself is
 * none. */
bool domain_is_offer_there(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], value[16], number[16];

    watch_node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, path);
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return xenbus_read(&watch->bus, path, value, sizeof(value)) == 0 &&
           strcmp(value, number) == 0 && is_backend_ours(watch, domain);
}

/* Nodes of the host about sessions that nobody has any more.  More than can be listed are
 * not the host's alone: all of them go. */
static void sweep(struct watch *watch, struct watch_domain *domain)
{
    char names[XENBUS_PAYLOAD_MAX + 1], state[32];
    int bytes = watch_list(watch, domain, VGPU_XEN_BACKEND, names);

    if (bytes < 0 && errno != ENOENT)
        watch_remove(watch, domain, VGPU_XEN_BACKEND);
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (xen_name_is_valid(names + at) &&
            watch_read_guest_state(watch, domain, names + at, state, sizeof(state)) < 0 &&
            errno == ENOENT)
            watch_remove_session(watch, domain, VGPU_XEN_BACKEND, names + at);
    }
}

/* What the guest made there would stay its own. */
static int make_backend(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES];

    if (is_backend_ours(watch, domain))
        return 0;
    watch_node(domain, VGPU_XEN_BACKEND, path);
    return xenbus_make_anew(&watch->bus, path, watch->own_domain, domain->id);
}

/* In a worker domain the relay in Dom0 has made them. */
static int make_places(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES];

    if (watch_is_worker_domain(watch))
        return 0;
    watch_node(domain, VGPU_XEN_FRONTEND, path);
    if (xenbus_make_directory(&watch->bus, path) < 0 && errno != EEXIST)
        return -1;
    return make_backend(watch, domain);
}

/* Says where to grant pages to; what an earlier vgpu-xen said of single sessions stays for
 * those. */
static int offer(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], number[16];

    if (make_places(watch, domain) < 0)
        return -1;
    watch_remove(watch, domain, VGPU_XEN_BACKEND "/" VGPU_XEN_ERROR);
    domain->says_full = false;
    watch_node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL, path);
    if (xenbus_write(&watch->bus, path, VGPU_XEN_VERSION) < 0)
        return -1;
    watch_node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, path);
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return xenbus_write(&watch->bus, path, number);
}

static int watch_frontend(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];

    if (domain->is_watched)
        return 0;
    watch_node(domain, VGPU_XEN_FRONTEND, path);
    snprintf(token, sizeof(token), "%u", domain->id);
    if (xenbus_watch(&watch->bus, path, token) < 0)
        return -1;
    domain->is_watched = true;
    return 0;
}

static void serve_domain(struct watch *watch, struct watch_domain *domain)
{
    if (!domain->is_watched)
        sweep(watch, domain);
    if (offer(watch, domain) < 0 || watch_frontend(watch, domain) < 0) {
        if (!domain->has_complained)
            log_warning("domain %u (vm %u): cannot offer the channel in XenStore: %s", domain->id,
                        domain->vm_id, strerror(errno));
        domain->has_complained = true;
        return;
    }
    domain->is_offered = true;
    domain->has_complained = false;
    domain->has_news = true;
    log_info("domain %u is vm %u: the channel is offered", domain->id, domain->vm_id);
}

static void remove_offer(struct watch *watch, struct watch_domain *domain)
{
    domain->is_offered = false;
    if (!domain_is_offer_there(watch, domain))
        return; /* or it is another domain's, which serves this VM now */
    watch_remove(watch, domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN);
    watch_remove(watch, domain, VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL);
    watch_remove(watch, domain, VGPU_XEN_BACKEND "/" VGPU_XEN_ERROR);
}

/* It is no VM of ours, or no more: the mediator ends its sessions.  What an earlier
 * vgpu-xen offered it is looked for once. */
static void refuse_domain(struct watch *watch, struct watch_domain *domain)
{
    if (domain->is_offered) {
        remove_offer(watch, domain);
        log_info("domain %u is vm %u no more: the offer is withdrawn", domain->id, domain->vm_id);
    } else if (!domain->is_watched && !domain->is_cleared && domain_is_offer_there(watch, domain)) {
        watch_remove(watch, domain, VGPU_XEN_BACKEND);
        watch_remove_if_empty(watch, domain, VGPU_XEN_FRONTEND);
        log_info("domain %u is no vm of ours: an earlier offer is withdrawn", domain->id);
    }
    domain->is_cleared = true;
}

/* A worker domain's programs start together: nothing is offered before there is somebody to
 * serve it. */
static bool can_serve(struct watch *watch, uint32_t vm_id)
{
    char path[PATH_MAX];

    if (!watch_is_worker_domain(watch))
        return true;
    watch_socket(watch, vm_id, path);
    if (access(path, F_OK) == 0)
        return true;
    watch->is_awaiting_mediator = true;
    return false;
}

void domain_settle(struct watch *watch, struct watch_domain *domain)
{
    uint32_t vm_id = 0;
    enum identity identity = identify(watch, domain, &vm_id);

    if (identity == IDENTITY_NO_VM) {
        refuse_domain(watch, domain);
    } else if (identity == IDENTITY_VM &&
               !(domain->is_offered && domain->vm_id == vm_id &&
                 domain_is_offer_there(watch, domain)) &&
               can_serve(watch, vm_id)) {
        domain->vm_id = vm_id;
        serve_domain(watch, domain);
    }
}

struct watch_domain *domain_find(struct watch *watch, unsigned id)
{
    struct watch_domain *domain;

    LIST_FOREACH (domain, &watch->domains, link) {
        /* NOLINTNEXTLINE: the analyzer does not see that those freed were taken out */
        if (domain->id == id)
            return domain;
    }
    return NULL;
}

void domain_forget(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];

    session_forget_all(domain);
    watch_tell_left_out(domain);
    if (domain->is_watched) {
        watch_node(domain, VGPU_XEN_FRONTEND, path);
        snprintf(token, sizeof(token), "%u", domain->id);
        xenbus_unwatch(&watch->bus, path, token);
        log_info("domain %u (vm %u) is gone", domain->id, domain->vm_id);
    }
    LIST_REMOVE(domain, link);
    free(domain);
}

static void add_domain(struct watch *watch, unsigned id)
{
    struct watch_domain *domain = calloc(1, sizeof(*domain));

    if (!domain)
        return;
    domain->id = id;
    LIST_INIT(&domain->sessions);
    LIST_INSERT_HEAD(&watch->domains, domain, link);
}

static bool lists(const char *names, int bytes, const char *name)
{
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (strcmp(names + at, name) == 0)
            return true;
    }
    return false;
}

/* The names of all domains that may be ours: their bytes, or -1. */
static int list_domains(struct watch *watch, char *ret_names, size_t names_bytes)
{
    char path[XENBUS_PATH_BYTES] = DOMAINS;
    int bytes;

    if (watch_is_worker_domain(watch))
        guests_node(watch, path);
    bytes = xenbus_list(&watch->bus, path, ret_names, names_bytes);
    return bytes < 0 && errno == ENOENT ? 0 : bytes;
}

void domain_find_all(struct watch *watch)
{
    char names[XENBUS_PAYLOAD_MAX + 1];
    struct watch_domain *domain, *next;
    int bytes = list_domains(watch, names, sizeof(names) - 1);

    if (bytes < 0)
        return;
    names[bytes] = '\0';
    for (domain = LIST_FIRST(&watch->domains); domain; domain = next) {
        char name[16];

        next = LIST_NEXT(domain, link);
        snprintf(name, sizeof(name), "%u", domain->id);
        if (!lists(names, bytes, name))
            domain_forget(watch, domain);
    }
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        uint64_t id;

        if (text_parse_u64(names + at, 1, UINT16_MAX, &id) && id != watch->own_domain &&
            !domain_find(watch, (unsigned)id))
            add_domain(watch, (unsigned)id);
    }
}

/* Domains came or went. */
void domain_look_at_all(struct watch *watch)
{
    struct watch_domain *domain;

    domain_find_all(watch);
    LIST_FOREACH (domain, &watch->domains, link) {
        /* NOLINTNEXTLINE: the analyzer does not see that those freed were taken out */
        if (!domain->is_offered)
            domain_settle(watch, domain);
    }
    domain_close_registry(watch);
}

/* Nobody is to wait for a host that is not there: what stays is what those are told that
 * still listen. */
void domain_withdraw(struct watch *watch, struct watch_domain *domain)
{
    session_end_all(watch, domain, "vgpu-xen on the host ends");
    if (!domain->is_watched)
        return;
    remove_offer(watch, domain);
    sweep(watch, domain);
    if (watch_is_worker_domain(watch))
        return; /* the places are Dom0's to make */
    watch_remove_if_empty(watch, domain, VGPU_XEN_BACKEND);
    watch_remove_if_empty(watch, domain, VGPU_XEN_FRONTEND);
    watch_remove_if_empty(watch, domain, VGPU_XEN_AREA);
}

int domain_watch_all(struct watch *watch, struct vgpu_error *error)
{
    char path[XENBUS_PATH_BYTES];

    if (watch_is_worker_domain(watch)) {
        guests_node(watch, path);
        return xenbus_watch(&watch->bus, path, "guests") < 0
                   ? error_set_errno(error, "XenStore lets us not watch %s", path)
                   : 0;
    }
    if (xenbus_watch(&watch->bus, "@introduceDomain", "introduced") < 0 ||
        xenbus_watch(&watch->bus, "@releaseDomain", "released") < 0)
        return error_set_errno(error, "XenStore lets us not watch domains come and go");
    return 0;
}
