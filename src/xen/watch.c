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

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>

#define LOOK_AGAIN_NS (5 * NS_PER_S) /* VMs are registered meanwhile */
#define LOOK_SOON_NS (NS_PER_S / 2)
#define EVENTS_AT_ONCE 64
#define QUESTIONS_A_SECOND 2000 /* to XenStore, on a domain's account */
#define QUESTIONS_AT_ONCE 1000
#define STARTS_A_SECOND 8
#define STARTS_AT_ONCE 16
#define LINES_A_SECOND 2 /* of the log, about a domain's sessions */
#define LINES_AT_ONCE 100

static void look_at_everything(struct watch *watch)
{
    struct watch_domain *domain;

    watch->is_awaiting_mediator = false;
    domain_find_all(watch);
    LIST_FOREACH (domain, &watch->domains, link) {
        domain_settle(watch, domain);
        session_forget_old(watch, domain);
        watch_tell_left_out(domain);
        domain->has_news = true;
    }
    domain_close_registry(watch);
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
        session_look(watch, domain);
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
        domain = domain_find(watch, (unsigned)id);
        if (domain)
            domain->has_news = true;
    }
    if (have_domains_changed && watch_is_worker_domain(watch))
        watch->look_ns = 0; /* one that is ours may be another VM now */
    else if (have_domains_changed)
        domain_look_at_all(watch);
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
            session_hear(watch, found);
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

static void withdraw(struct watch *watch)
{
    struct watch_domain *domain, *next;

    for (domain = LIST_FIRST(&watch->domains); domain; domain = next) {
        next = LIST_NEXT(domain, link);
        domain_withdraw(watch, domain);
        domain_forget(watch, domain);
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
    if (watch_is_worker_domain(watch))
        watch->config.database[0] = '\0'; /* a copy for the mediator: it is not asked */
    return config_complete(&watch->config, error) < 0 ? -1 : domain_watch_all(watch, error);
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
