/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop in Dom0.
 *
 *   @introduceDomain, @releaseDomain, a child's end, 5 s ─▶ a look at all domains
 *   a worker domain's relay starts ─▶ it gets the registry
 *   a connection ─▶ a child
 */
#include "relay/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define WAITS_MAX (4 + RELAY_WORKERS_MAX)
#define EVENTS_AT_ONCE 64
#define LOOK_AGAIN_NS (5 * NS_PER_S)
#define LOOK_SOON_NS (NS_PER_S / 2)

/* Its relay has started, or says so. */
static void look_at_worker(struct relay *relay, struct relay_worker *worker)
{
    char path[XENBUS_PATH_BYTES], version[16], shown[64];

    relay_path(path, worker->domain, WORKER_READY);
    if (xenbus_read(&relay->bus, path, version, sizeof(version)) < 0)
        return; /* not yet */
    if (strcmp(version, WORKER_VERSION) == 0) {
        control_refresh(relay, worker);
        return;
    }
    text_escape(shown, sizeof(shown), version, strlen(version));
    log_warning("worker domain %s speaks version '%s' of vgpu-relay, expected " WORKER_VERSION
                ": install this one there",
                worker->name, shown);
}

/* At a pace of ours, not of theirs, and not while it still takes what was sent for its last
 * news: that child's end comes as a signal.  Returns when to look again. */
static int look_at_workers(struct relay *relay)
{
    uint64_t now_ns = clock_monotonic_ns();
    int again_ms = (int)(LOOK_AGAIN_NS / NS_PER_MS);

    for (unsigned i = 0; i < relay->domains.count; i++) {
        struct relay_worker *worker = &relay->domains.workers[i];

        if (!worker->runs || !worker->has_news || worker->refresher)
            continue;
        if (now_ns - worker->looked_ns >= RELAY_LOOK_PAUSE_MS * NS_PER_MS) {
            worker->has_news = false;
            worker->looked_ns = now_ns;
            look_at_worker(relay, worker);
        } else {
            again_ms = RELAY_LOOK_PAUSE_MS;
        }
    }
    return again_ms;
}

/* Some at a time, so that a worker domain that never stops writing holds nobody off.  -1:
 * XenStore is gone. */
static int take_events(struct relay *relay)
{
    struct xenbus_event event;
    int got = 0;

    for (int i = 0; i < EVENTS_AT_ONCE && (got = xenbus_next_event(&relay->bus, &event)) > 0; i++) {
        uint64_t index;

        if (text_parse_u64(event.token, 0, relay->domains.count - 1, &index))
            relay->domains.workers[index].has_news = true;
        else
            relay->look_ns = 0;
    }
    for (unsigned i = 0; relay->bus.lost_events && i < relay->domains.count; i++)
        relay->domains.workers[i].has_news = true;
    if (relay->bus.lost_events && relay->looked_ns + LOOK_SOON_NS < relay->look_ns)
        relay->look_ns = relay->looked_ns + LOOK_SOON_NS;
    relay->bus.lost_events = false;
    return got;
}

/* They get the registry once more, as of two changes that waited for each other the last may
 * not have come there. */
static void take_late(struct relay *relay)
{
    uint8_t index;

    while (read(relay->late[0], &index, sizeof(index)) == (ssize_t)sizeof(index))
        relay->domains.workers[index].has_news = true;
}

static nfds_t list_waits(const struct relay *relay, struct pollfd waits[WAITS_MAX])
{
    nfds_t count = 0;

    waits[count++] = (struct pollfd){.fd = relay->bus.fd, .events = POLLIN};
    waits[count++] = (struct pollfd){.fd = relay->signal_fd, .events = POLLIN};
    waits[count++] = (struct pollfd){.fd = relay->listener.fd, .events = POLLIN};
    waits[count++] = (struct pollfd){.fd = relay->late[0], .events = POLLIN};
    for (unsigned i = 0; i < relay->domains.count; i++)
        waits[count++] =
            (struct pollfd){.fd = relay->domains.workers[i].listener.fd, .events = POLLIN};
    return count;
}

static void look_if_due(struct relay *relay)
{
    if (clock_monotonic_ns() < relay->look_ns)
        return;
    guests_look(relay);
    relay->looked_ns = clock_monotonic_ns();
    relay->look_ns = relay->looked_ns + LOOK_AGAIN_NS;
}

/* Rounded up, so that what is waited for is due then. */
static int wait_ms(const struct relay *relay, int most_ms)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t left_ns = relay->look_ns > now_ns ? relay->look_ns - now_ns : 0;
    int left_ms = (int)((left_ns + NS_PER_MS - 1) / NS_PER_MS);

    if (relay->bus.event_count > 0)
        return 0;
    return left_ms < most_ms ? left_ms : most_ms;
}

static int serve(struct relay *relay, struct vgpu_error *error)
{
    struct pollfd waits[WAITS_MAX];

    for (;;) {
        nfds_t count = list_waits(relay, waits);

        poll(waits, count, wait_ms(relay, look_at_workers(relay)));
        if (waits[1].revents && relay_take_signals(relay))
            return 0;
        if (waits[1].revents)
            relay->look_ns = 0; /* a child's end: it may have told of a change */
        if (take_events(relay) < 0)
            return error_set_errno(error, "XenStore");
        take_late(relay);
        look_if_due(relay);
        if (waits[2].revents)
            control_accept(relay, NULL);
        for (unsigned i = 0; i < relay->domains.count; i++) {
            if (waits[4 + i].revents)
                control_accept(relay, &relay->domains.workers[i]);
        }
    }
}

int relay_dom0_run(struct relay *relay, const struct relay_options *options,
                   struct vgpu_error *error)
{
    int result;

    if (relay_domains_read(&relay->domains, options->domains_path, error) < 0)
        return -1;
    if (pipe2(relay->late, O_CLOEXEC | O_NONBLOCK) < 0)
        return error_set_errno(error, "a pipe");
    if (control_open(relay, error) < 0) {
        control_end(relay);
        return -1;
    }
    if (xenbus_watch(&relay->bus, "@introduceDomain", "introduced") < 0 ||
        xenbus_watch(&relay->bus, "@releaseDomain", "released") < 0) {
        result = error_set_errno(error, "XenStore lets us not watch domains come and go");
    } else {
        log_info("vgpu-relay " VGPU_PACKAGE_VERSION " in Dom0, control socket %s",
                 relay->listener.path);
        result = serve(relay, error);
    }
    control_end(relay);
    return result;
}
