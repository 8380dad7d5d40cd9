/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In Dom0: which domain is which VM, and who serves it.  XenStore itself is the memory: a
 * look at everything makes it say what is so, whatever an earlier relay left there.
 *
 *   a guest's data/vgpu/backend   the worker domain's to write, the guest's to read
 *              data/vgpu/frontend  the guest's; the worker domain's to read and to clear
 *   the worker's vgpu/guest/<N>    Dom0's to write: domain N is this VM
 */
#include "relay/relay.h"

#include "vgpu/xen.h"
#include "xen/xen.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DOMAINS "/local/domain"
#define NOBODY UINT_MAX /* no domain's number */

/* A domain and who is to serve it. */
struct place {
    unsigned domain;
    uint32_t vm_id;
    struct relay_worker *worker; /* NULL: none, or it does not run */
};

/* --- what the host says of a domain ----------------------------------------------------- */

static void complain_once(struct relay *relay, unsigned domain, const char *path)
{
    uint8_t *byte = &relay->complained[domain / 8], bit = (uint8_t)(1u << domain % 8);

    if (!(*byte & bit))
        log_warning("domain %u: others than Dom0 may write %s, so it does not say who this is",
                    domain, path);
    *byte |= bit;
}

/* A node that nobody but Dom0 can write. */
static int read_of_host(struct relay *relay, unsigned domain, const char *key, char *ret_value,
                        size_t bytes)
{
    char path[XENBUS_PATH_BYTES], words[256];
    int got;

    relay_path(path, domain, "%s", key);
    got = xenbus_get_permissions(&relay->bus, path, words, sizeof(words) - 1);
    if (got < 0)
        return -1;
    words[got] = '\0';
    if (!xen_only_host_writes(words, (size_t)got, 0)) {
        complain_once(relay, domain, path);
        return -1;
    }
    return xenbus_read(&relay->bus, path, ret_value, bytes);
}

static bool read_uuid(struct relay *relay, unsigned domain, char uuid[37])
{
    char value[XENBUS_PATH_BYTES];

    return read_of_host(relay, domain, "vm", value, sizeof(value)) == 0 &&
           xen_uuid_of_path(value, uuid);
}

/* --- worker domains --------------------------------------------------------------------- */

static void ready_words(const struct relay *relay, const struct relay_worker *worker,
                        char path[XENBUS_PATH_BYTES], char token[XENBUS_TOKEN_BYTES])
{
    relay_path(path, worker->domain, WORKER_READY);
    snprintf(token, XENBUS_TOKEN_BYTES, "%u", (unsigned)(worker - relay->domains.workers));
}

static void worker_gone(struct relay *relay, struct relay_worker *worker)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];

    ready_words(relay, worker, path, token);
    xenbus_unwatch(&relay->bus, path, token);
    log_info("worker domain %s (domain %u) is gone", worker->name, worker->domain);
    worker->runs = false;
}

static void worker_found(struct relay *relay, struct relay_worker *worker, unsigned domain)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];

    worker->domain = domain;
    worker->runs = true;
    relay_path(path, domain, WORKER_AREA);
    if (xenbus_make_directory(&relay->bus, path) < 0 ||
        xenbus_set_permissions(&relay->bus, path, 0, domain) < 0)
        log_warning("worker domain %s: cannot make %s: %s", worker->name, path, strerror(errno));
    relay_path(path, domain, WORKER_GUESTS);
    xenbus_make_directory(&relay->bus, path);
    relay_path(path, domain, WORKER_REQUESTS);
    xenbus_remove(&relay->bus, path); /* an earlier relay's: nobody waits for the answers */
    xenbus_make_directory(&relay->bus, path);
    ready_words(relay, worker, path, token);
    xenbus_watch(&relay->bus, path, token); /* tells at once, and of each new start there */
    log_info("worker domain %s is domain %u and serves pools %s", worker->name, domain,
             worker->pools);
}

/* A tenant may name a VM as it likes: one that is registered is no worker domain by its name. */
static bool is_worker(struct relay *relay, struct store *store, const struct relay_worker *worker,
                      unsigned domain)
{
    char name[XENBUS_PATH_BYTES], uuid[37] = "";
    struct vgpu_error error;
    struct store_vm vm;

    if (read_uuid(relay, domain, uuid) && strcasecmp(uuid, worker->name) == 0)
        return true;
    return read_of_host(relay, domain, "name", name, sizeof(name)) == 0 &&
           strcmp(name, worker->name) == 0 &&
           (!uuid[0] || (store_find_vm(store, uuid, &vm, &error) < 0 && error.code == ENOENT));
}

static bool is_listed(const struct place *places, size_t count, unsigned domain)
{
    for (size_t i = 0; i < count; i++) {
        if (places[i].domain == domain)
            return true;
    }
    return false;
}

static void forget_workers(struct relay *relay, const struct place *places, size_t count)
{
    for (unsigned i = 0; i < relay->domains.count; i++) {
        struct relay_worker *worker = &relay->domains.workers[i];

        if (worker->runs && !is_listed(places, count, worker->domain))
            worker_gone(relay, worker);
    }
}

/* The one domain that is meant: of two that have its name neither is. */
static void find_worker(struct relay *relay, struct store *store, struct relay_worker *worker,
                        const struct place *places, size_t count)
{
    unsigned domain = 0, found = 0;

    for (size_t i = 0; i < count; i++) {
        if (is_worker(relay, store, worker, places[i].domain)) {
            domain = places[i].domain;
            found++;
        }
    }
    if (found == 1)
        worker_found(relay, worker, domain);
    if (found > 1 && !worker->is_ambiguous)
        log_warning("%u domains are called %s, so none of them is the worker domain: give its UUID "
                    "in the file of domains",
                    found, worker->name);
    worker->is_ambiguous = found > 1;
}

static void find_workers(struct relay *relay, struct store *store, const struct place *places,
                         size_t count)
{
    for (unsigned i = 0; i < relay->domains.count; i++) {
        if (!relay->domains.workers[i].runs)
            find_worker(relay, store, &relay->domains.workers[i], places, count);
    }
}

/* --- a guest's area --------------------------------------------------------------------- */

/* Who can write what the host says to a guest; NOBODY: there is no such place. */
static unsigned backend_owner(struct relay *relay, unsigned domain)
{
    char path[XENBUS_PATH_BYTES], words[256];
    uint64_t owner;
    int got;

    relay_path(path, domain, VGPU_XEN_BACKEND);
    got = xenbus_get_permissions(&relay->bus, path, words, sizeof(words) - 1);
    if (got < 2)
        return NOBODY;
    words[got] = '\0';
    return text_parse_u64(words + 1, 0, UINT16_MAX, &owner) ? (unsigned)owner : NOBODY;
}

static int make_backend(struct relay *relay, unsigned domain, unsigned owner)
{
    char path[XENBUS_PATH_BYTES];

    relay_path(path, domain, VGPU_XEN_BACKEND);
    return xenbus_make_anew(&relay->bus, path, owner, domain);
}

/* The worker domain removes what programs that died left there. */
static int make_frontend(struct relay *relay, unsigned domain, unsigned worker)
{
    char path[XENBUS_PATH_BYTES];

    relay_path(path, domain, VGPU_XEN_FRONTEND);
    if (xenbus_make_directory(&relay->bus, path) < 0 && errno != EEXIST)
        return -1;
    return xenbus_share(&relay->bus, path, domain, worker);
}

static void say_closed(struct relay *relay, unsigned domain, const char *name)
{
    char path[XENBUS_PATH_BYTES];

    relay_path(path, domain, VGPU_XEN_BACKEND "/%s/" VGPU_XEN_ERROR, name);
    xenbus_write(&relay->bus, path, "no worker domain serves this VM now");
    relay_path(path, domain, VGPU_XEN_BACKEND "/%s/" VGPU_XEN_STATE, name);
    xenbus_write(&relay->bus, path, VGPU_XEN_CLOSED);
}

/* Its programs are told; the worker domain cannot do that any more, and has no rights there.
 * Where no backend is, its owner is gone, or the guest removed it: that is told to nobody
 * but the guest.  More names than can be listed are the guest's own harm. */
static void take_away(struct relay *relay, unsigned domain)
{
    char path[XENBUS_PATH_BYTES], names[XENBUS_PAYLOAD_MAX + 1];
    unsigned owner = backend_owner(relay, domain);
    int bytes;

    if (owner == 0)
        return; /* told, or served from Dom0 */
    relay_path(path, domain, VGPU_XEN_FRONTEND);
    bytes = xenbus_list(&relay->bus, path, names, sizeof(names) - 1);
    if (bytes < 0 && errno == ENOENT && owner == NOBODY)
        return; /* it was never served */
    xenbus_set_permissions(&relay->bus, path, domain, 0);
    if (make_backend(relay, domain, 0) < 0)
        return;
    names[bytes < 0 ? 0 : bytes] = '\0';
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (xen_name_is_valid(names + at))
            say_closed(relay, domain, names + at);
    }
    if (owner != NOBODY)
        log_info("domain %u is served by worker domain %u no more", domain, owner);
}

/* Rights first: the worker domain begins when it is told of the guest. */
static void give(struct relay *relay, const struct place *place)
{
    const unsigned worker = place->worker->domain;
    char path[XENBUS_PATH_BYTES], number[16], there[16] = "";

    if (backend_owner(relay, place->domain) != worker &&
        (make_frontend(relay, place->domain, worker) < 0 ||
         make_backend(relay, place->domain, worker) < 0)) {
        log_warning("domain %u (vm %u): cannot make its places in XenStore: %s", place->domain,
                    place->vm_id, strerror(errno));
        return;
    }
    relay_path(path, worker, WORKER_GUESTS "/%u", place->domain);
    snprintf(number, sizeof(number), "%u", place->vm_id);
    if (xenbus_read(&relay->bus, path, there, sizeof(there)) == 0 && strcmp(there, number) == 0)
        return;
    if (xenbus_write(&relay->bus, path, number) == 0)
        log_info("domain %u is vm %s: worker domain %s (domain %u) serves it", place->domain,
                 number, place->worker->name, worker);
}

/* --- all of them --------------------------------------------------------------------------- */

static bool is_served_by(const struct place *places, size_t count, unsigned domain,
                         const struct relay_worker *worker)
{
    for (size_t i = 0; i < count; i++) {
        if (places[i].domain == domain && places[i].worker == worker)
            return true;
    }
    return false;
}

/* Guests that ended, went to another pool or are registered no more. */
static void forget_others(struct relay *relay, const struct relay_worker *worker,
                          const struct place *places, size_t count)
{
    char path[XENBUS_PATH_BYTES], names[XENBUS_PAYLOAD_MAX + 1];
    int bytes;

    relay_path(path, worker->domain, WORKER_GUESTS);
    bytes = xenbus_list(&relay->bus, path, names, sizeof(names) - 1);
    if (bytes < 0)
        return;
    names[bytes] = '\0';
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        uint64_t domain;

        if (text_parse_u64(names + at, 1, UINT16_MAX, &domain) &&
            is_served_by(places, count, (unsigned)domain, worker))
            continue;
        relay_path(path, worker->domain, WORKER_GUESTS "/%.16s", names + at);
        xenbus_remove(&relay->bus, path);
    }
}

static bool is_a_worker(const struct relay *relay, unsigned domain)
{
    for (unsigned i = 0; i < relay->domains.count; i++) {
        if (relay->domains.workers[i].runs && relay->domains.workers[i].domain == domain)
            return true;
    }
    return false;
}

/* By what Dom0 wrote of it, and the registry; -1: that cannot be read now. */
static int find_place(struct relay *relay, struct store *store, struct place *place)
{
    struct vgpu_error error;
    struct store_vm vm;
    char uuid[37];

    if (place->domain == 0 || is_a_worker(relay, place->domain) ||
        !read_uuid(relay, place->domain, uuid))
        return 0;
    if (store_find_vm(store, uuid, &vm, &error) < 0) {
        if (error.code == ENOENT)
            return 0;
        log_warning("all stays as it is: %s", error.message);
        return -1;
    }
    if (strcasecmp(vm.uuid, uuid) != 0)
        return 0;
    place->vm_id = vm.vm_id;
    place->worker = relay_domains_find(&relay->domains, vm.pool);
    if (place->worker && !place->worker->runs)
        place->worker = NULL;
    return 0;
}

/* Of domains that another file of domains named: they serve nobody any more. */
static void forget_old_workers(struct relay *relay, const struct place *places, size_t count)
{
    char path[XENBUS_PATH_BYTES];

    for (size_t i = 0; i < count; i++) {
        if (is_a_worker(relay, places[i].domain))
            continue;
        relay_path(path, places[i].domain, WORKER_AREA);
        xenbus_remove(&relay->bus, path); /* fails where there is none */
    }
    relay->has_settled = true;
}

static void settle(struct relay *relay, struct store *store, struct place *places, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (find_place(relay, store, &places[i]) < 0)
            return;
    }
    if (!relay->has_settled)
        forget_old_workers(relay, places, count);
    /* Taken away before it is given: another worker domain is to end its brokers. */
    for (unsigned i = 0; i < relay->domains.count; i++) {
        if (relay->domains.workers[i].runs)
            forget_others(relay, &relay->domains.workers[i], places, count);
    }
    for (size_t i = 0; i < count; i++) {
        if (places[i].domain == 0)
            continue;
        if (places[i].worker && places[i].worker->domain != 0)
            give(relay, &places[i]);
        else
            take_away(relay, places[i].domain);
    }
}

/* NULL: XenStore cannot say. */
static struct place *list_domains(struct relay *relay, size_t *ret_count)
{
    char names[XENBUS_PAYLOAD_MAX + 1];
    int bytes = xenbus_list(&relay->bus, DOMAINS, names, sizeof(names) - 1);
    struct place *places = bytes < 0 ? NULL : calloc((size_t)bytes + 1, sizeof(*places));
    size_t count = 0;

    if (!places)
        return NULL;
    names[bytes] = '\0';
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        uint64_t id;

        if (text_parse_u64(names + at, 0, UINT16_MAX, &id))
            places[count++].domain = (unsigned)id;
    }
    *ret_count = count;
    return places;
}

void guests_look(struct relay *relay)
{
    struct vgpu_error error;
    struct place *places;
    struct store *store;
    size_t count = 0;

    places = list_domains(relay, &count);
    if (!places)
        return;
    forget_workers(relay, places, count);
    if (store_open(relay->config.database, STORE_READ_BRIEFLY, &store, &error) < 0) {
        log_warning("%s", error.message);
    } else {
        find_workers(relay, store, places, count);
        settle(relay, store, places, count);
        store_close(store);
    }
    free(places);
}
