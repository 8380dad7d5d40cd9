/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XenStore: which domain is which VM, which sessions its programs ask for.
 *
 *   @introduceDomain, @releaseDomain ─▶ look at all domains
 *   /local/domain/N/vm (the host's node) ─▶ UUID ─▶ registry ─▶ VM's socket
 *   .../data/vgpu/frontend: a new name, `initialising` ─▶ a broker for it
 *                           `closing`, or gone ─▶ the broker's end
 *   a broker's report, its end ─▶ .../data/vgpu/backend/<name>/
 *
 * One thread, one poll().  What is the guest's is read again each time and believed
 * nothing: its names are checked, its sessions counted, its requests paced.
 */
#include "xen/watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define DOMAINS "/local/domain"
#define LOOK_AGAIN_MS 5000
#define STARTS_A_SECOND 8
#define STARTS_AT_ONCE 16
#define FORGET_NS (30 * NS_PER_S)

/* --- paths ------------------------------------------------------------------------------- */

static void node(const struct watch_domain *domain, const char *below, char path[XENBUS_PATH_BYTES])
{
    snprintf(path, XENBUS_PATH_BYTES, DOMAINS "/%u/%s", domain->id, below);
}

static void session_node(const struct watch_session *session, const char *side, const char *key,
                         char path[XENBUS_PATH_BYTES])
{
    snprintf(path, XENBUS_PATH_BYTES, DOMAINS "/%u/%s/%s%s%s", session->domain->id, side,
             session->name, key[0] ? "/" : "", key);
}

static void tell(struct watch *watch, const struct watch_session *session, const char *key,
                 const char *value)
{
    char path[XENBUS_PATH_BYTES];

    session_node(session, VGPU_XEN_BACKEND, key, path);
    if (xenbus_write(&watch->bus, path, value) < 0 && errno != ENOENT)
        log_warning("domain %u: cannot write %s: %s", session->domain->id, path, strerror(errno));
}

static void tell_number(struct watch *watch, const struct watch_session *session, const char *key,
                        unsigned value)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", value);
    tell(watch, session, key, text);
}

static void remove_nodes(struct watch *watch, const struct watch_session *session, const char *side)
{
    char path[XENBUS_PATH_BYTES];

    session_node(session, side, "", path);
    xenbus_remove(&watch->bus, path); /* fails where it is gone */
}

/* --- sessions ------------------------------------------------------------------------------ */

static struct watch_session *find_session(struct watch_domain *domain, const char *name)
{
    struct watch_session *session;

    LIST_FOREACH (session, &domain->sessions, link) {
        if (strcmp(session->name, name) == 0)
            return session;
    }
    return NULL;
}

static void forget_session(struct watch_session *session)
{
    LIST_REMOVE(session, link);
    session->domain->session_count--;
    free(session);
}

/* After it nobody has the pages any more. */
static void end_broker(struct watch_session *session)
{
    fd_close(&session->control_fd);
    if (session->pid > 0) {
        kill(session->pid, SIGKILL); /* it may wait for the mediator */
        waitpid(session->pid, NULL, 0);
    }
    session->pid = 0;
}

static void session_over(struct watch *watch, struct watch_session *session, const char *state,
                         int code, const char *why)
{
    session->is_over = true;
    session->over_ns = clock_monotonic_ns();
    if (code > 0)
        tell_number(watch, session, VGPU_XEN_CODE, (unsigned)code);
    tell(watch, session, VGPU_XEN_ERROR, why);
    tell(watch, session, VGPU_XEN_STATE, state);
    log_info("domain %u (vm %u): session %s %s: %s", session->domain->id, session->domain->vm_id,
             session->name, state, why);
}

static void refuse(struct watch *watch, struct watch_session *session, int code, const char *why)
{
    session_over(watch, session, VGPU_XEN_REFUSED, code, why);
}

/* The guest wants its end, or is not there any more: nothing stays in XenStore. */
static void session_left(struct watch *watch, struct watch_session *session, const char *why)
{
    end_broker(session);
    remove_nodes(watch, session, VGPU_XEN_FRONTEND);
    remove_nodes(watch, session, VGPU_XEN_BACKEND);
    log_info("domain %u (vm %u): session %s ended: %s", session->domain->id, session->domain->vm_id,
             session->name, why);
    forget_session(session);
}

static int read_words(struct watch *watch, const struct watch_session *session,
                      struct xen_words *ret_words)
{
    const struct {
        const char *key;
        char *value;
        size_t bytes;
    } keys[] = {
        {VGPU_XEN_PROTOCOL, ret_words->version, sizeof(ret_words->version)},
        {VGPU_XEN_SLOT_BYTES, ret_words->slot_bytes, sizeof(ret_words->slot_bytes)},
        {VGPU_XEN_DIRECTORY, ret_words->directory, sizeof(ret_words->directory)},
        {VGPU_XEN_EVENT_CHANNEL, ret_words->event_channel, sizeof(ret_words->event_channel)},
    };
    char path[XENBUS_PATH_BYTES];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(keys); i++) {
        session_node(session, VGPU_XEN_FRONTEND, keys[i].key, path);
        if (xenbus_read(&watch->bus, path, keys[i].value, keys[i].bytes) < 0)
            return -1;
    }
    return 0;
}

/* In the child: nothing of the watcher's but the order and its end of the control socket. */
static __attribute__((noreturn)) void be_broker(struct watch *watch,
                                                const struct broker_order *order, int control_fd)
{
    struct watch_domain *domain;
    struct watch_session *session;
    sigset_t none;

    LIST_FOREACH (domain, &watch->domains, link) {
        LIST_FOREACH (session, &domain->sessions, link)
            fd_close(&session->control_fd);
    }
    xenbus_close(&watch->bus);
    fd_close(&watch->signal_fd);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    _exit(broker_run(order, control_fd));
}

static int start_broker(struct watch *watch, struct watch_session *session,
                        const struct broker_order *order)
{
    int ends[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    pid = fork();
    if (pid == 0) {
        close(ends[0]);
        be_broker(watch, order, ends[1]);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -1;
    }
    session->pid = pid;
    session->control_fd = ends[0];
    return 0;
}

static void start_session(struct watch *watch, struct watch_session *session)
{
    struct broker_order order = {.domain = session->domain->id, .vm_id = session->domain->vm_id};
    struct xen_words words;
    struct vgpu_error error;

    if (bucket_take(&session->domain->starts, &watch->start_rate, 1, clock_monotonic_ns()) == 0) {
        refuse(watch, session, VGPU_PROBLEM_BUSY,
               "this VM opens sessions faster than 8 a second: wait a second");
    } else if (read_words(watch, session, &words) < 0) {
        refuse(watch, session, VGPU_PROBLEM_ARGUMENT, "a node of the session cannot be read");
    } else if (xen_request_parse(&words, &order.request, &error) < 0) {
        refuse(watch, session, VGPU_PROBLEM_ARGUMENT, error.message);
    } else {
        snprintf(order.socket_path, sizeof(order.socket_path), "%.4000s/vm%u.sock",
                 watch->config.run_dir, order.vm_id);
        if (start_broker(watch, session, &order) < 0)
            refuse(watch, session, VGPU_PROBLEM_NO_HOST, "the host can start no further process");
    }
}

static void add_session(struct watch *watch, struct watch_domain *domain, const char *name)
{
    struct watch_session *session = calloc(1, sizeof(*session));
    char path[XENBUS_PATH_BYTES], state[32];

    if (!session)
        return;
    session->domain = domain;
    session->control_fd = -1;
    text_copy(session->name, sizeof(session->name), name);
    LIST_INSERT_HEAD(&domain->sessions, session, link);
    domain->session_count++;
    session_node(session, VGPU_XEN_BACKEND, VGPU_XEN_STATE, path);
    if (xenbus_read(&watch->bus, path, state, sizeof(state)) == 0)
        session_over(watch, session, VGPU_XEN_CLOSED, 0,
                     "vgpu-xen was started anew: open a new session");
    else
        start_session(watch, session);
}

/* What the guest says of a session now. */
static void look_at_session(struct watch *watch, struct watch_domain *domain, const char *name)
{
    struct watch_session *session = find_session(domain, name);
    char path[XENBUS_PATH_BYTES], state[32];

    snprintf(path, sizeof(path), DOMAINS "/%u/" VGPU_XEN_FRONTEND "/%.16s/" VGPU_XEN_STATE,
             domain->id, name);
    if (xenbus_read(&watch->bus, path, state, sizeof(state)) < 0)
        return;
    if (!session && strcmp(state, VGPU_XEN_INITIALISING) == 0) {
        if (domain->session_count < XEN_SESSIONS_MAX)
            add_session(watch, domain, name);
    } else if (session && strcmp(state, VGPU_XEN_CLOSING) == 0) {
        session_left(watch, session, "closed by the guest");
    }
}

static bool lists(const char *names, int bytes, const char *name)
{
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (strcmp(names + at, name) == 0)
            return true;
    }
    return false;
}

static void look_at_frontend(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], names[XENBUS_PAYLOAD_MAX + 1];
    struct watch_session *session, *next;
    int bytes;

    node(domain, VGPU_XEN_FRONTEND, path);
    bytes = xenbus_list(&watch->bus, path, names, sizeof(names) - 1);
    if (bytes < 0 && errno != ENOENT)
        return;
    bytes = bytes < 0 ? 0 : bytes;
    names[bytes] = '\0';
    for (session = LIST_FIRST(&domain->sessions); session; session = next) {
        next = LIST_NEXT(session, link);
        if (!lists(names, bytes, session->name))
            session_left(watch, session, "the guest took it back");
    }
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (xen_name_is_valid(names + at))
            look_at_session(watch, domain, names + at);
    }
}

static void take_report(struct watch *watch, struct watch_session *session,
                        const struct broker_report *told)
{
    const char pool[2] = {told->pool, '\0'};

    switch (told->state) {
    case BROKER_CONNECTED:
        tell_number(watch, session, VGPU_XEN_VM_ID, told->vm_id);
        tell_number(watch, session, VGPU_XEN_PRIORITY, told->priority);
        tell(watch, session, VGPU_XEN_POOL, pool);
        tell(watch, session, VGPU_XEN_STATE, VGPU_XEN_CONNECTED);
        log_info("domain %u (vm %u): session %s connected", session->domain->id,
                 session->domain->vm_id, session->name);
        break;
    case BROKER_REFUSED:
        end_broker(session);
        refuse(watch, session, told->code, told->text);
        break;
    case BROKER_CLOSED:
        end_broker(session);
        if (told->guest_is_gone)
            session_left(watch, session, told->text);
        else
            session_over(watch, session, VGPU_XEN_CLOSED, 0, told->text);
        break;
    }
}

static void hear_broker(struct watch *watch, struct watch_session *session)
{
    struct broker_report told;
    ssize_t got = recv(session->control_fd, &told, sizeof(told), MSG_DONTWAIT);

    if (got == (ssize_t)sizeof(told)) {
        told.text[sizeof(told.text) - 1] = '\0';
        take_report(watch, session, &told);
    } else if (got >= 0 || (errno != EAGAIN && errno != EINTR)) {
        end_broker(session);
        session_over(watch, session, VGPU_XEN_CLOSED, 0,
                     "its broker on the host died: open a new session");
    }
}

/* Sessions that are over, and that the guest does not take back: their programs died. */
static void forget_old_sessions(struct watch *watch, struct watch_domain *domain)
{
    struct watch_session *session, *next;

    for (session = LIST_FIRST(&domain->sessions); session; session = next) {
        next = LIST_NEXT(session, link);
        if (session->is_over && clock_monotonic_ns() - session->over_ns > FORGET_NS)
            session_left(watch, session, "nobody took note of its end");
    }
}

/* --- domains ---------------------------------------------------------------------------------- */

static int find_in_registry(const struct watch *watch, const char *uuid, uint32_t *ret_vm_id)
{
    struct vgpu_error error;
    struct store *store;
    struct store_vm vm;
    int result;

    if (store_open(watch->config.database, STORE_READ_BRIEFLY, &store, &error) < 0) {
        log_warning("%s", error.message);
        return -1;
    }
    result = store_find_vm(store, uuid, &vm, &error);
    store_close(store);
    if (result < 0 || strcasecmp(vm.uuid, uuid) != 0)
        return -1;
    *ret_vm_id = vm.vm_id;
    return 0;
}

/* By what the host wrote: the guest can write neither this node nor below /vm. */
static int identify(struct watch *watch, const struct watch_domain *domain, uint32_t *ret_vm_id)
{
    char path[XENBUS_PATH_BYTES], value[XENBUS_PATH_BYTES], words[256], uuid[37];
    int bytes;

    node(domain, "vm", path);
    bytes = xenbus_get_permissions(&watch->bus, path, words, sizeof(words) - 1);
    if (bytes < 0 || xenbus_read(&watch->bus, path, value, sizeof(value)) < 0)
        return -1; /* the toolstack has not written it yet */
    words[bytes] = '\0';
    if (!xen_only_host_writes(words, (size_t)bytes, watch->own_domain)) {
        log_warning("domain %u: others than the host may write %s, so it does not say who this is",
                    domain->id, path);
        return -1;
    }
    if (!xen_uuid_of_path(value, uuid))
        return -1;
    return find_in_registry(watch, uuid, ret_vm_id);
}

/* Says where to grant pages to; what an earlier vgpu-xen said of sessions stays for those. */
static int offer(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], number[16];

    node(domain, VGPU_XEN_FRONTEND, path);
    if (xenbus_make_directory(&watch->bus, path) < 0 && errno != EEXIST)
        return -1;
    node(domain, VGPU_XEN_BACKEND, path);
    if ((xenbus_make_directory(&watch->bus, path) < 0 && errno != EEXIST) ||
        xenbus_set_permissions(&watch->bus, path, watch->own_domain, domain->id) < 0)
        return -1;
    node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL, path);
    if (xenbus_write(&watch->bus, path, VGPU_XEN_VERSION) < 0)
        return -1;
    node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, path);
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return xenbus_write(&watch->bus, path, number);
}

static void serve_domain(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];

    if (identify(watch, domain, &domain->vm_id) < 0)
        return;
    node(domain, VGPU_XEN_FRONTEND, path);
    snprintf(token, sizeof(token), "%u", domain->id);
    if (offer(watch, domain) < 0 || xenbus_watch(&watch->bus, path, token) < 0) {
        log_warning("domain %u (vm %u): cannot offer the channel in XenStore: %s", domain->id,
                    domain->vm_id, strerror(errno));
        return;
    }
    domain->is_served = true;
    log_info("domain %u is vm %u: the channel is offered", domain->id, domain->vm_id);
}

static struct watch_domain *find_domain(struct watch *watch, unsigned id)
{
    struct watch_domain *domain;

    LIST_FOREACH (domain, &watch->domains, link) {
        if (domain->id == id)
            return domain;
    }
    return NULL;
}

static void forget_domain(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];
    struct watch_session *session, *next;

    for (session = LIST_FIRST(&domain->sessions); session; session = next) {
        next = LIST_NEXT(session, link);
        end_broker(session);
        forget_session(session);
    }
    if (domain->is_served) {
        node(domain, VGPU_XEN_FRONTEND, path);
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

static void look_at_domains(struct watch *watch)
{
    char names[XENBUS_PAYLOAD_MAX + 1];
    struct watch_domain *domain, *next;
    int bytes = xenbus_list(&watch->bus, DOMAINS, names, sizeof(names) - 1);

    if (bytes < 0)
        return;
    names[bytes] = '\0';
    for (domain = LIST_FIRST(&watch->domains); domain; domain = next) {
        char name[16];

        next = LIST_NEXT(domain, link);
        snprintf(name, sizeof(name), "%u", domain->id);
        if (!lists(names, bytes, name))
            forget_domain(watch, domain);
    }
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        uint64_t id;

        if (text_parse_u64(names + at, 1, UINT16_MAX, &id) && id != watch->own_domain &&
            !find_domain(watch, (unsigned)id))
            add_domain(watch, (unsigned)id);
    }
    LIST_FOREACH (domain, &watch->domains, link) {
        /* NOLINTNEXTLINE: the analyzer does not see that those freed were taken out */
        if (!domain->is_served)
            serve_domain(watch, domain);
    }
}

/* --- the loop ------------------------------------------------------------------------------------
 */

static void look_at_everything(struct watch *watch)
{
    struct watch_domain *domain;

    look_at_domains(watch);
    LIST_FOREACH (domain, &watch->domains, link) {
        forget_old_sessions(watch, domain);
        if (domain->is_served)
            look_at_frontend(watch, domain);
    }
}

static int take_events(struct watch *watch)
{
    struct xenbus_event event;
    int got;

    while ((got = xenbus_next_event(&watch->bus, &event)) > 0) {
        struct watch_domain *domain;
        uint64_t id;

        if (!text_parse_u64(event.token, 1, UINT16_MAX, &id)) {
            look_at_domains(watch);
            continue;
        }
        domain = find_domain(watch, (unsigned)id);
        if (domain)
            look_at_frontend(watch, domain);
    }
    if (watch->bus.lost_events) {
        watch->bus.lost_events = false;
        look_at_everything(watch);
    }
    return got;
}

/* Of those that have said something: hearing one may end it, so each is looked for anew. */
static void hear_brokers(struct watch *watch, const struct pollfd *waits, nfds_t count)
{
    struct watch_domain *domain;

    for (nfds_t i = 0; i < count; i++) {
        struct watch_session *session, *found = NULL;

        if (!waits[i].revents)
            continue;
        LIST_FOREACH (domain, &watch->domains, link) {
            LIST_FOREACH (session, &domain->sessions, link)
                found = session->control_fd == waits[i].fd ? session : found;
        }
        if (found)
            hear_broker(watch, found);
    }
}

static struct pollfd *list_waits(struct watch *watch, nfds_t *ret_count)
{
    struct watch_domain *domain;
    struct watch_session *session;
    struct pollfd *waits;
    nfds_t count = 2;

    LIST_FOREACH (domain, &watch->domains, link)
        count += domain->session_count;
    waits = calloc(count, sizeof(*waits));
    if (!waits)
        return NULL;
    waits[0] = (struct pollfd){.fd = watch->bus.fd, .events = POLLIN};
    waits[1] = (struct pollfd){.fd = watch->signal_fd, .events = POLLIN};
    count = 2;
    LIST_FOREACH (domain, &watch->domains, link) {
        LIST_FOREACH (session, &domain->sessions, link)
            waits[count++] = (struct pollfd){.fd = session->control_fd, .events = POLLIN};
    }
    *ret_count = count;
    return waits;
}

static int serve(struct watch *watch, struct vgpu_error *error)
{
    for (;;) {
        nfds_t count = 0;
        struct pollfd *waits = list_waits(watch, &count);
        bool is_told_to_end, has_news;

        if (!waits)
            return error_set(error, ENOMEM, "out of memory");
        has_news = watch->bus.event_count > 0 || poll(waits, count, LOOK_AGAIN_MS) > 0;
        is_told_to_end = waits[1].revents;
        hear_brokers(watch, waits + 2, count - 2);
        free(waits);
        if (is_told_to_end)
            return 0;
        if (take_events(watch) < 0)
            return error_set_errno(error, "XenStore");
        if (!has_news)
            look_at_everything(watch); /* VMs are registered meanwhile */
    }
}

/* Nobody is to wait for a host that is not there. */
static void withdraw(struct watch *watch)
{
    struct watch_domain *domain, *next;
    struct watch_session *session;
    char path[XENBUS_PATH_BYTES];

    for (domain = LIST_FIRST(&watch->domains); domain; domain = next) {
        next = LIST_NEXT(domain, link);
        LIST_FOREACH (session, &domain->sessions, link) {
            end_broker(session);
            if (!session->is_over)
                session_over(watch, session, VGPU_XEN_CLOSED, 0, "vgpu-xen on the host ends");
        }
        if (domain->is_served) {
            node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, path);
            xenbus_remove(&watch->bus, path);
        }
        forget_domain(watch, domain);
    }
}

static int open_signals(struct watch *watch)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    watch->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    return watch->signal_fd;
}

static int open_all(struct watch *watch, const struct watch_options *options,
                    struct vgpu_error *error)
{
    char number[16];

    config_init(&watch->config);
    if (config_read(&watch->config, options->config_path, error) < 0 ||
        config_complete(&watch->config, error) < 0)
        return -1;
    if (!watch->config.database[0])
        return error_set(error, EINVAL,
                         "%s names no database: domains are known by the UUIDs of the registry, "
                         "see vgpu-admin(8)",
                         options->config_path);
    if (open_signals(watch) < 0)
        return error_set_errno(error, "signals");
    if (xenbus_open(&watch->bus, options->xenbus_path) < 0)
        return error_set_errno(error, "%s: is this a Xen host (modprobe xenfs, xen-gntdev)?",
                               options->xenbus_path);
    if (xenbus_read(&watch->bus, "domid", number, sizeof(number)) == 0)
        watch->own_domain = (unsigned)strtoul(number, NULL, 10);
    if (xenbus_watch(&watch->bus, "@introduceDomain", "introduced") < 0 ||
        xenbus_watch(&watch->bus, "@releaseDomain", "released") < 0)
        return error_set_errno(error, "XenStore lets us not watch domains come and go");
    return 0;
}

int watch_run(const struct watch_options *options, struct vgpu_error *error)
{
    struct watch *watch = calloc(1, sizeof(*watch));
    int result = -1;

    if (!watch)
        return error_set(error, ENOMEM, "out of memory");
    watch->bus.fd = watch->signal_fd = -1;
    watch->start_rate = bucket_rate(STARTS_A_SECOND, NS_PER_S, STARTS_AT_ONCE);
    LIST_INIT(&watch->domains);
    if (open_all(watch, options, error) == 0) {
        log_info("vgpu-xen " VGPU_PACKAGE_VERSION " serves from domain %u, sockets in %s",
                 watch->own_domain, watch->config.run_dir);
        look_at_everything(watch);
        result = serve(watch, error);
        withdraw(watch);
    }
    xenbus_close(&watch->bus);
    fd_close(&watch->signal_fd);
    config_free(&watch->config);
    free(watch);
    return result;
}
