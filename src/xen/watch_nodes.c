/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watcher's ways to XenStore, and to the log.
 */
#include "xen/watch.h"

#include <stdio.h>

/* A guest decides how often something is said of its sessions. */
bool watch_may_log(const struct watch *watch, struct watch_domain *domain)
{
    if (bucket_take(&domain->lines, &watch->line_rate, 1, clock_monotonic_ns()) == 1)
        return true;
    domain->lines_left_out++;
    return false;
}

void watch_tell_left_out(struct watch_domain *domain)
{
    if (domain->lines_left_out > 0)
        log_warning("domain %u (vm %u): %u lines about its sessions were left out", domain->id,
                    domain->vm_id, domain->lines_left_out);
    domain->lines_left_out = 0;
}

void watch_node(const struct watch_domain *domain, const char *below, char path[XENBUS_PATH_BYTES])
{
    snprintf(path, XENBUS_PATH_BYTES, DOMAINS "/%u/%s", domain->id, below);
}

void watch_socket(const struct watch *watch, uint32_t vm_id, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.4000s/vm%u.sock", watch->config.run_dir, vm_id);
}

void watch_remove(struct watch *watch, const struct watch_domain *domain, const char *below)
{
    char path[XENBUS_PATH_BYTES];

    watch_node(domain, below, path);
    xenbus_remove(&watch->bus, path); /* fails where it is gone */
}

/* The names below a node, each with its NUL, and one more: their bytes, or -1. */
int watch_list(struct watch *watch, const struct watch_domain *domain, const char *below,
               char ret_names[XENBUS_PAYLOAD_MAX + 1])
{
    char path[XENBUS_PATH_BYTES];
    int bytes;

    watch_node(domain, below, path);
    bytes = xenbus_list(&watch->bus, path, ret_names, XENBUS_PAYLOAD_MAX);
    if (bytes >= 0)
        ret_names[bytes] = '\0';
    return bytes;
}

void watch_remove_if_empty(struct watch *watch, const struct watch_domain *domain,
                           const char *below)
{
    char names[XENBUS_PAYLOAD_MAX + 1];

    if (watch_list(watch, domain, below, names) == 0)
        watch_remove(watch, domain, below);
}

/* What the guest says of a session: -1 with ENOENT where it says nothing. */
int watch_read_guest_state(struct watch *watch, const struct watch_domain *domain, const char *name,
                           char *ret_state, size_t bytes)
{
    char path[XENBUS_PATH_BYTES];

    snprintf(path, sizeof(path), DOMAINS "/%u/" VGPU_XEN_FRONTEND "/%.16s/" VGPU_XEN_STATE,
             domain->id, name);
    return xenbus_read(&watch->bus, path, ret_state, bytes);
}

void watch_remove_session(struct watch *watch, const struct watch_domain *domain, const char *side,
                          const char *name)
{
    char below[64];

    snprintf(below, sizeof(below), "%.32s/%.16s", side, name);
    watch_remove(watch, domain, below);
}
