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
#include <poll.h>
#include <string.h>

#define WAITS_MAX (3 + RELAY_WORKERS_MAX)

static void worker_is_ready(struct relay *relay, struct relay_worker *worker)
{
    char path[XENBUS_PATH_BYTES], version[16];

    if (!worker->domain)
        return;
    relay_path(path, worker->domain, WORKER_READY);
    if (xenbus_read(&relay->bus, path, version, sizeof(version)) < 0)
        return; /* not yet */
    if (strcmp(version, WORKER_VERSION) != 0)
        log_warning(
            "worker domain %s speaks version '%.15s' of vgpu-relay, expected " WORKER_VERSION
            ": install this one there",
            worker->name, version);
    else
        worker->is_due = true;
}

/* Returns when to look again. */
static int send_what_is_due(struct relay *relay)
{
    uint64_t now_ns = clock_monotonic_ns();
    int again_ms = RELAY_LOOK_AGAIN_MS;

    for (unsigned i = 0; i < relay->domains.count; i++) {
        struct relay_worker *worker = &relay->domains.workers[i];

        if (!worker->is_due)
            continue;
        if (relay->children < RELAY_CHILDREN_MAX &&
            now_ns - worker->sent_ns >= RELAY_SEND_AGAIN_MS * NS_PER_MS) {
            worker->is_due = false;
            worker->sent_ns = now_ns;
            control_refresh(relay, worker);
        } else {
            again_ms = RELAY_SEND_AGAIN_MS;
        }
    }
    return again_ms;
}

/* -1: XenStore is gone. */
static int take_events(struct relay *relay)
{
    struct xenbus_event event;
    bool domains_changed = relay->bus.lost_events;
    int got;

    while ((got = xenbus_next_event(&relay->bus, &event)) > 0) {
        uint64_t index;

        if (text_parse_u64(event.token, 0, relay->domains.count - 1, &index))
            worker_is_ready(relay, &relay->domains.workers[index]);
        else
            domains_changed = true;
    }
    relay->bus.lost_events = false;
    if (domains_changed)
        guests_look(relay);
    return got;
}

static nfds_t list_waits(const struct relay *relay, struct pollfd waits[WAITS_MAX])
{
    nfds_t count = 0;

    waits[count++] = (struct pollfd){.fd = relay->bus.fd, .events = POLLIN};
    waits[count++] = (struct pollfd){.fd = relay->signal_fd, .events = POLLIN};
    waits[count++] = (struct pollfd){.fd = relay->listener.fd, .events = POLLIN};
    for (unsigned i = 0; i < relay->domains.count; i++)
        waits[count++] =
            (struct pollfd){.fd = relay->domains.workers[i].listener.fd, .events = POLLIN};
    return count;
}

static int serve(struct relay *relay, struct vgpu_error *error)
{
    struct pollfd waits[WAITS_MAX];

    for (;;) {
        nfds_t count = list_waits(relay, waits);
        int again_ms = send_what_is_due(relay);
        int ready = poll(waits, count, relay->bus.event_count > 0 ? 0 : again_ms);

        if (waits[1].revents && relay_take_signals(relay))
            return 0;
        if (take_events(relay) < 0)
            return error_set_errno(error, "XenStore");
        if (ready == 0 || waits[1].revents)
            guests_look(relay); /* also after a child, which may have told of a change */
        if (waits[2].revents)
            control_accept(relay, NULL);
        for (unsigned i = 0; i < relay->domains.count; i++) {
            if (waits[3 + i].revents)
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
        guests_look(relay);
        result = serve(relay, error);
    }
    control_end(relay);
    return result;
}
