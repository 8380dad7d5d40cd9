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
 * In a worker domain Dom0's relay says which domain is which VM (worker.h), and has made
 * the places in the guests' areas that this one may write.
 *
 * One thread, one poll().  What is the guest's is read again each time and believed
 * nothing: its names are checked, its sessions counted, its requests paced.  An event only
 * marks its domain; those marked are looked at in turn, each as often as its questions to
 * XenStore allow, so that a guest that never stops writing takes the time of no other.
 * What is due by time is due however much is said meanwhile.
 */
#include "xen/watch.h"
#include "xen/worker.h"

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
#define LOOK_AGAIN_NS (5 * NS_PER_S) /* VMs are registered meanwhile */
#define LOOK_SOON_NS (NS_PER_S / 2)
#define EVENTS_AT_ONCE 64
#define QUESTIONS_A_SECOND 2000 /* to XenStore, on a domain's account */
#define QUESTIONS_AT_ONCE 1000
#define STARTS_A_SECOND 8
#define STARTS_AT_ONCE 16
#define LINES_A_SECOND 2 /* of the log, about a domain's sessions */
#define LINES_AT_ONCE 100
#define FORGET_NS (30 * NS_PER_S)

/* --- the log ------------------------------------------------------------------------------ */

/* A guest decides how often something is said of its sessions. */
static bool may_log(const struct watch *watch, struct watch_domain *domain)
{
    if (bucket_take(&domain->lines, &watch->line_rate, 1, clock_monotonic_ns()) == 1)
        return true;
    domain->lines_left_out++;
    return false;
}

static void tell_left_out(struct watch_domain *domain)
{
    if (domain->lines_left_out > 0)
        log_warning("domain %u (vm %u): %u lines about its sessions were left out", domain->id,
                    domain->vm_id, domain->lines_left_out);
    domain->lines_left_out = 0;
}

/* --- paths ------------------------------------------------------------------------------- */

static void node(const struct watch_domain *domain, const char *below, char path[XENBUS_PATH_BYTES])
{
    snprintf(path, XENBUS_PATH_BYTES, DOMAINS "/%u/%s", domain->id, below);
}

static void socket_of(const struct watch *watch, uint32_t vm_id, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.4000s/vm%u.sock", watch->config.run_dir, vm_id);
}

static void remove_node(struct watch *watch, const struct watch_domain *domain, const char *below)
{
    char path[XENBUS_PATH_BYTES];

    node(domain, below, path);
    xenbus_remove(&watch->bus, path); /* fails where it is gone */
}

/* The names below a node, each with its NUL, and one more: their bytes, or -1. */
static int list_below(struct watch *watch, const struct watch_domain *domain, const char *below,
                      char ret_names[XENBUS_PAYLOAD_MAX + 1])
{
    char path[XENBUS_PATH_BYTES];
    int bytes;

    node(domain, below, path);
    bytes = xenbus_list(&watch->bus, path, ret_names, XENBUS_PAYLOAD_MAX);
    if (bytes >= 0)
        ret_names[bytes] = '\0';
    return bytes;
}

static void remove_if_empty(struct watch *watch, const struct watch_domain *domain,
                            const char *below)
{
    char names[XENBUS_PAYLOAD_MAX + 1];

    if (list_below(watch, domain, below, names) == 0)
        remove_node(watch, domain, below);
}

/* What the guest says of a session: -1 with ENOENT where it says nothing. */
static int read_guest_state(struct watch *watch, const struct watch_domain *domain,
                            const char *name, char *ret_state, size_t bytes)
{
    char path[XENBUS_PATH_BYTES];

    snprintf(path, sizeof(path), DOMAINS "/%u/" VGPU_XEN_FRONTEND "/%.16s/" VGPU_XEN_STATE,
             domain->id, name);
    return xenbus_read(&watch->bus, path, ret_state, bytes);
}

static void remove_session_node(struct watch *watch, const struct watch_domain *domain,
                                const char *side, const char *name)
{
    char below[64];

    snprintf(below, sizeof(below), "%.32s/%.16s", side, name);
    remove_node(watch, domain, below);
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
    int error;

    session_node(session, VGPU_XEN_BACKEND, key, path);
    if (xenbus_write(&watch->bus, path, value) == 0 || errno == ENOENT)
        return;
    error = errno;
    if (may_log(watch, session->domain))
        log_warning("domain %u: cannot write %s: %s", session->domain->id, path, strerror(error));
}

static void tell_number(struct watch *watch, const struct watch_session *session, const char *key,
                        unsigned value)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", value);
    tell(watch, session, key, text);
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
    session->domain->has_news |= session->domain->is_full; /* another waits for its place */
    session->domain->is_full = false;
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
    if (may_log(watch, session->domain))
        log_info("domain %u (vm %u): session %s %s: %s", session->domain->id,
                 session->domain->vm_id, session->name, state, why);
}

static void refuse(struct watch *watch, struct watch_session *session, int code, const char *why)
{
    session_over(watch, session, VGPU_XEN_REFUSED, code, why);
}

/* The guest wants its end, or is not there any more: nothing stays in XenStore. */
static void session_left(struct watch *watch, struct watch_session *session, const char *why)
{
    end_broker(session);
    remove_session_node(watch, session->domain, VGPU_XEN_FRONTEND, session->name);
    remove_session_node(watch, session->domain, VGPU_XEN_BACKEND, session->name);
    if (may_log(watch, session->domain))
        log_info("domain %u (vm %u): session %s ended: %s", session->domain->id,
                 session->domain->vm_id, session->name, why);
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

    if (!session->domain->is_offered) {
        refuse(watch, session, VGPU_PROBLEM_NO_HOST,
               "this VM is registered with the host no more: its administrator knows why");
    } else if (bucket_take(&session->domain->starts, &watch->start_rate, 1, clock_monotonic_ns()) ==
               0) {
        refuse(watch, session, VGPU_PROBLEM_BUSY,
               "this VM opens sessions faster than 8 a second: wait a second");
    } else if (read_words(watch, session, &words) < 0) {
        refuse(watch, session, VGPU_PROBLEM_ARGUMENT, "a node of the session cannot be read");
    } else if (xen_request_parse(&words, &order.request, &error) < 0) {
        refuse(watch, session, VGPU_PROBLEM_ARGUMENT, error.message);
    } else {
        socket_of(watch, order.vm_id, order.socket_path);
        if (start_broker(watch, session, &order) < 0)
            refuse(watch, session, VGPU_PROBLEM_NO_HOST, "the host can start no further process");
    }
}

/* The host's node is there already: of an earlier vgpu-xen, which may have told its end. */
static void take_over(struct watch *watch, struct watch_session *session, const char *state)
{
    if (strcmp(state, VGPU_XEN_CONNECTED) == 0) {
        session_over(watch, session, VGPU_XEN_CLOSED, 0,
                     "vgpu-xen was started anew: open a new session");
        return;
    }
    session->is_over = true;
    session->over_ns = clock_monotonic_ns();
}

/* Whose area it is: what its owner is called in a node's rights. */
static bool is_backend_ours(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], words[256], number[16];
    int bytes;

    node(domain, VGPU_XEN_BACKEND, path);
    bytes = xenbus_get_permissions(&watch->bus, path, words, sizeof(words) - 1);
    if (bytes <= 0)
        return false;
    words[bytes] = '\0';
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return strcmp(words + 1, number) == 0;
}

/* As long as the guest does not remove it, with all of its area; one that it made itself is
 * none. */
static bool is_offer_there(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], value[16], number[16];

    node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, path);
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return xenbus_read(&watch->bus, path, value, sizeof(value)) == 0 &&
           strcmp(value, number) == 0 && is_backend_ours(watch, domain);
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
        take_over(watch, session, state);
    else
        start_session(watch, session);
}

static void look_at_own_sessions(struct watch *watch, struct watch_domain *domain)
{
    struct watch_session *session, *next;
    char state[32];

    for (session = LIST_FIRST(&domain->sessions); session; session = next) {
        next = LIST_NEXT(session, link);
        if (read_guest_state(watch, domain, session->name, state, sizeof(state)) < 0) {
            if (errno == ENOENT)
                session_left(watch, session, "the guest took it back");
        } else if (strcmp(state, VGPU_XEN_CLOSING) == 0) {
            session_left(watch, session, "closed by the guest");
        }
    }
}

/* A name that is no session's of ours.  One that begins where the offer is not ours is
 * another domain's, which serves this VM now, or waits for the offer that is made again. */
static void look_at_name(struct watch *watch, struct watch_domain *domain, const char *name)
{
    char state[32];

    if (read_guest_state(watch, domain, name, state, sizeof(state)) < 0)
        return;
    if (strcmp(state, VGPU_XEN_INITIALISING) == 0) {
        if (!domain->is_offered || is_offer_there(watch, domain))
            add_session(watch, domain, name);
    } else if (strcmp(state, VGPU_XEN_CLOSING) == 0) { /* while no vgpu-xen was there */
        remove_session_node(watch, domain, VGPU_XEN_FRONTEND, name);
        remove_session_node(watch, domain, VGPU_XEN_BACKEND, name);
    }
}

/* The list is bounded by what a message holds: a longer one is none, to the guest's own
 * harm. */
static void look_for_sessions(struct watch *watch, struct watch_domain *domain)
{
    char names[XENBUS_PAYLOAD_MAX + 1];
    int bytes = list_below(watch, domain, VGPU_XEN_FRONTEND, names);

    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (!xen_name_is_valid(names + at) || find_session(domain, names + at))
            continue;
        if (domain->session_count < XEN_SESSIONS_MAX) {
            look_at_name(watch, domain, names + at);
        } else if (!domain->is_full) {
            domain->is_full = true;
            if (may_log(watch, domain))
                log_warning("domain %u (vm %u) has %u sessions: the next waits for the end of one",
                            domain->id, domain->vm_id, XEN_SESSIONS_MAX);
        }
    }
}

static void look_at_frontend(struct watch *watch, struct watch_domain *domain)
{
    uint32_t before = watch->bus.request;

    look_at_own_sessions(watch, domain);
    look_for_sessions(watch, domain);
    bucket_charge(&domain->questions, &watch->question_rate, watch->bus.request - before,
                  clock_monotonic_ns());
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
        if (may_log(watch, session->domain))
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

enum identity { IDENTITY_UNKNOWN, IDENTITY_NO_VM, IDENTITY_VM };

/* Once for all domains that are looked at together: -1 until close_registry(). */
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

static void close_registry(struct watch *watch)
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
static bool is_worker_domain(const struct watch *watch)
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

    if (is_worker_domain(watch))
        return identify_by_relay(watch, domain, ret_vm_id);
    node(domain, "vm", path);
    identity = read_of_host(watch, domain, path, value, sizeof(value));
    if (identity != IDENTITY_VM)
        return identity;
    return xen_uuid_of_path(value, uuid) ? find_in_registry(watch, uuid, ret_vm_id)
                                         : IDENTITY_NO_VM;
}

/* Nodes of the host about sessions that nobody has any more.  More than can be listed are
 * not the host's alone: all of them go. */
static void sweep(struct watch *watch, struct watch_domain *domain)
{
    char names[XENBUS_PAYLOAD_MAX + 1], state[32];
    int bytes = list_below(watch, domain, VGPU_XEN_BACKEND, names);

    if (bytes < 0 && errno != ENOENT)
        remove_node(watch, domain, VGPU_XEN_BACKEND);
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (xen_name_is_valid(names + at) &&
            read_guest_state(watch, domain, names + at, state, sizeof(state)) < 0 &&
            errno == ENOENT)
            remove_session_node(watch, domain, VGPU_XEN_BACKEND, names + at);
    }
}

/* What the guest made there would stay its own.  A new area is the guest's until its rights
 * are set: what it made in that time is no better. */
static int make_backend(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], names[XENBUS_PAYLOAD_MAX + 1];

    if (is_backend_ours(watch, domain))
        return 0;
    remove_node(watch, domain, VGPU_XEN_BACKEND);
    node(domain, VGPU_XEN_BACKEND, path);
    if (xenbus_make_directory(&watch->bus, path) < 0 ||
        xenbus_set_permissions(&watch->bus, path, watch->own_domain, domain->id) < 0)
        return -1;
    if (list_below(watch, domain, VGPU_XEN_BACKEND, names) == 0)
        return 0;
    remove_node(watch, domain, VGPU_XEN_BACKEND);
    errno = EEXIST;
    return -1;
}

/* In a worker domain the relay in Dom0 has made them. */
static int make_places(struct watch *watch, const struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES];

    if (is_worker_domain(watch))
        return 0;
    node(domain, VGPU_XEN_FRONTEND, path);
    if (xenbus_make_directory(&watch->bus, path) < 0 && errno != EEXIST)
        return -1;
    return make_backend(watch, domain);
}

/* Says where to grant pages to; what an earlier vgpu-xen said of sessions stays for those. */
static int offer(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], number[16];

    if (make_places(watch, domain) < 0)
        return -1;
    node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL, path);
    if (xenbus_write(&watch->bus, path, VGPU_XEN_VERSION) < 0)
        return -1;
    node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN, path);
    snprintf(number, sizeof(number), "%u", watch->own_domain);
    return xenbus_write(&watch->bus, path, number);
}

static int watch_frontend(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], token[XENBUS_TOKEN_BYTES];

    if (domain->is_watched)
        return 0;
    node(domain, VGPU_XEN_FRONTEND, path);
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
    if (!is_offer_there(watch, domain))
        return; /* or it is another domain's, which serves this VM now */
    remove_node(watch, domain, VGPU_XEN_BACKEND "/" VGPU_XEN_DOMAIN);
    remove_node(watch, domain, VGPU_XEN_BACKEND "/" VGPU_XEN_PROTOCOL);
}

/* It is no VM of ours, or no more: the mediator ends its sessions.  What an earlier
 * vgpu-xen offered it is looked for once. */
static void refuse_domain(struct watch *watch, struct watch_domain *domain)
{
    if (domain->is_offered) {
        remove_offer(watch, domain);
        log_info("domain %u is vm %u no more: the offer is withdrawn", domain->id, domain->vm_id);
    } else if (!domain->is_watched && !domain->is_cleared && is_offer_there(watch, domain)) {
        remove_node(watch, domain, VGPU_XEN_BACKEND);
        remove_if_empty(watch, domain, VGPU_XEN_FRONTEND);
        log_info("domain %u is no vm of ours: an earlier offer is withdrawn", domain->id);
    }
    domain->is_cleared = true;
}

/* A worker domain's programs start together: nothing is offered before there is somebody to
 * serve it. */
static bool can_serve(struct watch *watch, uint32_t vm_id)
{
    char path[PATH_MAX];

    if (!is_worker_domain(watch))
        return true;
    socket_of(watch, vm_id, path);
    if (access(path, F_OK) == 0)
        return true;
    watch->is_awaiting_mediator = true;
    return false;
}

static void settle_domain(struct watch *watch, struct watch_domain *domain)
{
    uint32_t vm_id = 0;
    enum identity identity = identify(watch, domain, &vm_id);

    if (identity == IDENTITY_NO_VM) {
        refuse_domain(watch, domain);
    } else if (identity == IDENTITY_VM &&
               !(domain->is_offered && domain->vm_id == vm_id && is_offer_there(watch, domain)) &&
               can_serve(watch, vm_id)) {
        domain->vm_id = vm_id;
        serve_domain(watch, domain);
    }
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
    tell_left_out(domain);
    if (domain->is_watched) {
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

    if (is_worker_domain(watch))
        guests_node(watch, path);
    bytes = xenbus_list(&watch->bus, path, ret_names, names_bytes);
    return bytes < 0 && errno == ENOENT ? 0 : bytes;
}

static void find_domains(struct watch *watch)
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
            forget_domain(watch, domain);
    }
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        uint64_t id;

        if (text_parse_u64(names + at, 1, UINT16_MAX, &id) && id != watch->own_domain &&
            !find_domain(watch, (unsigned)id))
            add_domain(watch, (unsigned)id);
    }
}

/* Domains came or went. */
static void look_at_domains(struct watch *watch)
{
    struct watch_domain *domain;

    find_domains(watch);
    LIST_FOREACH (domain, &watch->domains, link) {
        /* NOLINTNEXTLINE: the analyzer does not see that those freed were taken out */
        if (!domain->is_offered)
            settle_domain(watch, domain);
    }
    close_registry(watch);
}

/* --- the loop ------------------------------------------------------------------------------------
 */

static void look_at_everything(struct watch *watch)
{
    struct watch_domain *domain;

    watch->is_awaiting_mediator = false;
    find_domains(watch);
    LIST_FOREACH (domain, &watch->domains, link) {
        /* NOLINTNEXTLINE: as above */
        settle_domain(watch, domain);
        forget_old_sessions(watch, domain);
        tell_left_out(domain);
        domain->has_news = true;
    }
    close_registry(watch);
    watch->looked_ns = clock_monotonic_ns();
    watch->look_ns =
        watch->looked_ns + (watch->is_awaiting_mediator ? LOOK_SOON_NS : LOOK_AGAIN_NS);
}

/* A look that is due; and one is due soon, but no sooner, when events were lost. */
static void look_if_due(struct watch *watch)
{
    if (watch->bus.lost_events && watch->looked_ns + LOOK_SOON_NS < watch->look_ns)
        watch->look_ns = watch->looked_ns + LOOK_SOON_NS;
    watch->bus.lost_events = false;
    if (clock_monotonic_ns() >= watch->look_ns)
        look_at_everything(watch);
}

/* How long until a domain may be looked at again. */
static uint64_t pause_ns(const struct watch *watch, const struct watch_domain *domain)
{
    return bucket_wait_ns(&domain->questions, &watch->question_rate, 1, clock_monotonic_ns());
}

static void look_at_news(struct watch *watch)
{
    struct watch_domain *domain;

    LIST_FOREACH (domain, &watch->domains, link) {
        if (!domain->is_watched || !domain->has_news || pause_ns(watch, domain) > 0)
            continue;
        domain->has_news = false;
        look_at_frontend(watch, domain);
    }
}

/* Some at a time: brokers and signals have their turn as well. */
static int take_events(struct watch *watch)
{
    struct xenbus_event event;
    bool have_domains_changed = false;
    int got = 0;

    for (int i = 0; i < EVENTS_AT_ONCE && (got = xenbus_next_event(&watch->bus, &event)) > 0; i++) {
        struct watch_domain *domain;
        uint64_t id;

        if (!text_parse_u64(event.token, 1, UINT16_MAX, &id)) {
            have_domains_changed = true;
            continue;
        }
        domain = find_domain(watch, (unsigned)id);
        if (domain)
            domain->has_news = true;
    }
    if (have_domains_changed && is_worker_domain(watch))
        watch->look_ns = 0; /* one that is ours may be another VM now */
    else if (have_domains_changed)
        look_at_domains(watch);
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

/* Rounded up, so that what is waited for is due then. */
static int wait_ms(const struct watch *watch)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t wait_ns = watch->look_ns > now_ns ? watch->look_ns - now_ns : 0;
    const struct watch_domain *domain;

    if (watch->bus.event_count > 0)
        return 0;
    LIST_FOREACH (domain, &watch->domains, link) {
        uint64_t domain_ns = pause_ns(watch, domain);

        if (domain->is_watched && domain->has_news && domain_ns < wait_ns)
            wait_ns = domain_ns;
    }
    return (int)((wait_ns + NS_PER_MS - 1) / NS_PER_MS);
}

static int serve(struct watch *watch, struct vgpu_error *error)
{
    for (;;) {
        nfds_t count = 0;
        struct pollfd *waits = list_waits(watch, &count);
        bool is_told_to_end;

        if (!waits)
            return error_set(error, ENOMEM, "out of memory");
        poll(waits, count, wait_ms(watch));
        is_told_to_end = waits[1].revents;
        hear_brokers(watch, waits + 2, count - 2);
        free(waits);
        if (is_told_to_end)
            return 0;
        if (take_events(watch) < 0)
            return error_set_errno(error, "XenStore");
        look_if_due(watch);
        look_at_news(watch);
    }
}

/* Nobody is to wait for a host that is not there: what stays is what those are told that
 * still listen. */
static void withdraw_from(struct watch *watch, struct watch_domain *domain)
{
    struct watch_session *session;

    LIST_FOREACH (session, &domain->sessions, link) {
        end_broker(session);
        if (!session->is_over)
            session_over(watch, session, VGPU_XEN_CLOSED, 0, "vgpu-xen on the host ends");
    }
    if (!domain->is_watched)
        return;
    remove_offer(watch, domain);
    sweep(watch, domain);
    if (is_worker_domain(watch))
        return; /* the places are Dom0's to make */
    remove_if_empty(watch, domain, VGPU_XEN_BACKEND);
    remove_if_empty(watch, domain, VGPU_XEN_FRONTEND);
    remove_if_empty(watch, domain, VGPU_XEN_AREA);
}

static void withdraw(struct watch *watch)
{
    struct watch_domain *domain, *next;

    for (domain = LIST_FIRST(&watch->domains); domain; domain = next) {
        next = LIST_NEXT(domain, link);
        withdraw_from(watch, domain);
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

static int watch_domains(struct watch *watch, struct vgpu_error *error)
{
    char path[XENBUS_PATH_BYTES];

    if (is_worker_domain(watch)) {
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

static int read_config(struct watch *watch, const struct watch_options *options,
                       struct vgpu_error *error)
{
    config_init(&watch->config);
    if (config_read(&watch->config, options->config_path, error) < 0)
        return -1;
    if (watch->config.database[0])
        return 0;
    return error_set(error, EINVAL,
                     "%s names no database: domains are known by the UUIDs of the registry, see "
                     "vgpu-admin(8)",
                     options->config_path);
}

static int open_all(struct watch *watch, const struct watch_options *options,
                    struct vgpu_error *error)
{
    char number[16];

    if (read_config(watch, options, error) < 0)
        return -1;
    if (open_signals(watch) < 0)
        return error_set_errno(error, "signals");
    if (xenbus_open(&watch->bus, options->xenbus_path) < 0)
        return error_set_errno(error, "%s: is this a Xen host (modprobe xenfs, xen-gntdev)?",
                               options->xenbus_path);
    if (xenbus_read(&watch->bus, "domid", number, sizeof(number)) == 0)
        watch->own_domain = (unsigned)strtoul(number, NULL, 10);
    if (is_worker_domain(watch))
        watch->config.database[0] = '\0'; /* a copy for the mediator: it is not asked */
    return config_complete(&watch->config, error) < 0 ? -1 : watch_domains(watch, error);
}

int watch_run(const struct watch_options *options, struct vgpu_error *error)
{
    struct watch *watch = calloc(1, sizeof(*watch));
    int result = -1;

    if (!watch)
        return error_set(error, ENOMEM, "out of memory");
    watch->bus.fd = watch->signal_fd = -1;
    watch->start_rate = bucket_rate(STARTS_A_SECOND, NS_PER_S, STARTS_AT_ONCE);
    watch->question_rate = bucket_rate(QUESTIONS_A_SECOND, NS_PER_S, QUESTIONS_AT_ONCE);
    watch->line_rate = bucket_rate(LINES_A_SECOND, NS_PER_S, LINES_AT_ONCE);
    LIST_INIT(&watch->domains);
    if (open_all(watch, options, error) == 0) {
        log_info("vgpu-xen " VGPU_PACKAGE_VERSION " serves from domain %u, sockets in %s",
                 watch->own_domain, watch->config.run_dir);
        result = serve(watch, error);
        withdraw(watch);
    }
    xenbus_close(&watch->bus);
    fd_close(&watch->signal_fd);
    config_free(&watch->config);
    free(watch);
    return result;
}
