/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's sessions: what its programs ask for in .../data/vgpu/frontend, a broker for each,
 * and what they are told in .../data/vgpu/backend.
 */
#include "xen/watch.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORGET_NS (30 * NS_PER_S)

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
    if (watch_may_log(watch, session->domain))
        log_warning("domain %u: cannot write %s: %s", session->domain->id, path, strerror(error));
}

static void tell_number(struct watch *watch, const struct watch_session *session, const char *key,
                        unsigned value)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", value);
    tell(watch, session, key, text);
}

static struct watch_session *find_session(struct watch_domain *domain, const char *name)
{
    struct watch_session *session;

    LIST_FOREACH (session, &domain->sessions, link) {
        if (strcmp(session->name, name) == 0)
            return session; /* NOLINT: the analyzer does not see that those freed were taken out */
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
    if (watch_may_log(watch, session->domain))
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
    watch_remove_session(watch, session->domain, VGPU_XEN_FRONTEND, session->name);
    watch_remove_session(watch, session->domain, VGPU_XEN_BACKEND, session->name);
    if (watch_may_log(watch, session->domain))
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
        watch_socket(watch, order.vm_id, order.socket_path);
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
        if (watch_read_guest_state(watch, domain, session->name, state, sizeof(state)) < 0) {
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

    if (watch_read_guest_state(watch, domain, name, state, sizeof(state)) < 0)
        return;
    if (strcmp(state, VGPU_XEN_INITIALISING) == 0) {
        if (!domain->is_offered || domain_is_offer_there(watch, domain))
            add_session(watch, domain, name);
    } else if (strcmp(state, VGPU_XEN_CLOSING) == 0) { /* while no vgpu-xen was there */
        watch_remove_session(watch, domain, VGPU_XEN_FRONTEND, name);
        watch_remove_session(watch, domain, VGPU_XEN_BACKEND, name);
    }
}

/* To those that wait, one node for all of them: a guest decides how many they are. */
static void tell_full(struct watch *watch, struct watch_domain *domain)
{
    char path[XENBUS_PATH_BYTES], why[128];

    if (domain->is_full == domain->says_full || !domain_is_offer_there(watch, domain))
        return;
    watch_node(domain, VGPU_XEN_BACKEND "/" VGPU_XEN_ERROR, path);
    snprintf(why, sizeof(why),
             "this VM has %u sessions, those of dead programs too: the next begins when one ends",
             XEN_SESSIONS_MAX);
    if (domain->is_full)
        xenbus_write(&watch->bus, path, why);
    else
        xenbus_remove(&watch->bus, path);
    domain->says_full = domain->is_full;
}

/* The list is bounded by what a message holds: a longer one is none, to the guest's own
 * harm. */
static void look_for_sessions(struct watch *watch, struct watch_domain *domain)
{
    char names[XENBUS_PAYLOAD_MAX + 1];
    int bytes = watch_list(watch, domain, VGPU_XEN_FRONTEND, names);
    bool is_full = false;

    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (!xen_name_is_valid(names + at) || find_session(domain, names + at))
            continue;
        if (domain->session_count < XEN_SESSIONS_MAX)
            look_at_name(watch, domain, names + at);
        else
            is_full = true;
    }
    if (is_full && !domain->is_full && watch_may_log(watch, domain))
        log_warning("domain %u (vm %u) has %u sessions: the next waits for the end of one",
                    domain->id, domain->vm_id, XEN_SESSIONS_MAX);
    domain->is_full = is_full;
    tell_full(watch, domain);
}

void session_look(struct watch *watch, struct watch_domain *domain)
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
        if (watch_may_log(watch, session->domain))
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

void session_hear(struct watch *watch, struct watch_session *session)
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
void session_forget_old(struct watch *watch, struct watch_domain *domain)
{
    struct watch_session *session, *next;

    for (session = LIST_FIRST(&domain->sessions); session; session = next) {
        next = LIST_NEXT(session, link);
        if (session->is_over && clock_monotonic_ns() - session->over_ns > FORGET_NS)
            session_left(watch, session, "nobody took note of its end");
    }
}

/* What stays is what those are told that still listen. */
void session_end_all(struct watch *watch, struct watch_domain *domain, const char *why)
{
    struct watch_session *session;

    LIST_FOREACH (session, &domain->sessions, link) {
        end_broker(session);
        if (!session->is_over)
            session_over(watch, session, VGPU_XEN_CLOSED, 0, why);
    }
}

/* The domain is gone: nobody is told. */
void session_forget_all(struct watch_domain *domain)
{
    struct watch_session *session, *next;

    for (session = LIST_FIRST(&domain->sessions); session; session = next) {
        next = LIST_NEXT(session, link);
        end_broker(session);
        forget_session(session);
    }
}
