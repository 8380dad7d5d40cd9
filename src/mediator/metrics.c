/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is counted and timed, and the sockets where it can be asked for.
 *
 *   vm_count(), session_time_...() ─▶ the VM's scope
 *                                  ─▶ its pool's at its priority
 *                                  ─▶ "others", where the VM has no label of its own
 *
 * Prometheus is told of metrics_vms VMs one by one: those that were known first, until they
 * are removed.  A VM stays what it was when it came, so that no counter ever falls.
 */
#include "mediator/mediator.h"

#include "control/control.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SOCKET_NAME "metrics.sock"
#define BACKLOG 16

/* --- what is counted ------------------------------------------------------------------- */

void metrics_add_vm(struct vm *vm)
{
    struct numbers *numbers = &vm->mediator->numbers;

    vm->statistics.labelled = numbers->labels < vm->mediator->config->metrics_vms;
    numbers->labels += vm->statistics.labelled;
}

void metrics_remove_vm(struct vm *vm)
{
    vm->mediator->numbers.labels -= vm->statistics.labelled;
    metrics_scope_clear(&vm->statistics.scope);
    metrics_latency_clear(&vm->statistics.answer);
}

/* The scopes in which something of the VM counts; returns how many. */
static unsigned scopes_of(struct vm *vm, struct metrics_scope *scopes[3])
{
    struct numbers *numbers = &vm->mediator->numbers;
    struct metrics_scope **group = &numbers->groups[vm_pool(vm) - 'A'][vm_priority(vm)];
    unsigned count = 0;

    scopes[count++] = &vm->statistics.scope;
    if (!*group)
        *group = calloc(1, sizeof(**group));
    if (*group)
        scopes[count++] = *group;
    if (!vm->statistics.labelled)
        scopes[count++] = &numbers->others;
    return count;
}

void vm_count(struct vm *vm, enum metrics_counter counter, uint64_t number)
{
    struct metrics_scope *scopes[3];
    unsigned count = scopes_of(vm, scopes);

    for (unsigned i = 0; i < count; i++)
        scopes[i]->counters[counter] += number;
}

void vm_count_refusals(struct vm *vm, enum metrics_refusal refusal, uint64_t number)
{
    struct metrics_scope *scopes[3];
    unsigned count = scopes_of(vm, scopes);

    for (unsigned i = 0; i < count; i++)
        scopes[i]->refusals[refusal] += number;
}

void vm_count_fault(struct vm *vm, enum metrics_fault fault)
{
    struct metrics_scope *scopes[3];
    unsigned count = scopes_of(vm, scopes);

    for (unsigned i = 0; i < count; i++)
        scopes[i]->faults[fault]++;
}

void vm_count_refused(struct vm *vm, uint64_t number)
{
    vm_count_refusals(vm,
                      vm->removed            ? METRICS_REFUSED_STOPPING
                      : quarantine_is_on(vm) ? METRICS_REFUSED_QUARANTINED
                                             : METRICS_REFUSED_POOL,
                      number);
}

/* --- what is timed ---------------------------------------------------------------------- */

static void record(struct vm *vm, enum metrics_duration duration, uint64_t from_ns, uint64_t to_ns)
{
    struct metrics_scope *scopes[3];
    unsigned count = scopes_of(vm, scopes);

    for (unsigned i = 0; i < count; i++)
        metrics_latency_record(&scopes[i]->durations[duration], (to_ns - from_ns) / NS_PER_US,
                               to_ns);
}

/* Since when the device is changed over to it.  What it did not wait for is no cost: nobody had
 * work.  Nor is of interest who was given another device later. */
static uint64_t switched_ns(const struct session *session)
{
    const struct vm *vm = session->vm;
    const struct device_load *load = &vm->mediator->loads[session->places[0]->device];
    bool is_change = load->returned_vm != 0 && load->returned_vm != vm->vm_id;

    if (session->place_count > 1 || !is_change || session->waiting_since_ns > load->returned_ns)
        return 0;
    return load->returned_ns;
}

/* A window keeps a long grant while it has nothing to do: how long tells nothing, and its worker
 * times each operation (timing.c). */
void session_time_wait(struct session *session, const struct sched_grant *grant)
{
    session->granted_ns = clock_monotonic_ns();
    session->switched_ns = switched_ns(session);
    session->timed = grant->device_us != SCHED_GRANT_LONG_US || !session->ops->takes_many;
    record(session->vm, METRICS_WAIT, session->waiting_since_ns, session->granted_ns);
}

void session_time_run(struct session *session)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (!session->timed)
        return;
    record(session->vm, METRICS_RUN, session->granted_ns, now_ns);
    record(session->vm, METRICS_TOTAL, session->waiting_since_ns, now_ns);
}

void session_time_first(struct session *session, uint64_t first_ns)
{
    struct device_load *load = &session->vm->mediator->loads[session->places[0]->device];
    uint64_t now_ns = clock_monotonic_ns();

    if (session->switched_ns == 0 || first_ns < session->granted_ns || first_ns > now_ns)
        return; /* a worker says so: not all is possible */
    metrics_latency_record(&load->switches, (first_ns - session->switched_ns) / NS_PER_US, now_ns);
}

void place_time_return(const struct vm_place *place)
{
    struct device_load *load = &place->vm->mediator->loads[place->device];

    load->returned_ns = clock_monotonic_ns();
    load->returned_vm = place->vm->vm_id;
}

void vm_time_operations(struct vm *vm, enum metrics_duration duration, uint64_t duration_us,
                        uint64_t count)
{
    struct metrics_scope *scopes[3];
    unsigned scope_count = scopes_of(vm, scopes);
    uint64_t now_ns = clock_monotonic_ns();

    for (unsigned i = 0; i < scope_count; i++)
        metrics_latency_add(&scopes[i]->durations[duration], duration_us, count, now_ns);
}

uint64_t metrics_device_permille(struct mediator *mediator, unsigned device)
{
    struct device_load *load = &mediator->loads[device];
    uint64_t since_ns = load->look_ns ? load->look_ns : mediator->started_ns;
    uint64_t now_ns = clock_monotonic_ns(), passed_us = (now_ns - since_ns) / NS_PER_US;
    uint64_t busy_us = load->busy_us - load->look_busy_us;

    if (passed_us < NS_PER_S / NS_PER_US)
        return load->busy_permille;
    /* What a long grant used is known when it is looked at: it may be of an earlier time. */
    load->busy_permille = busy_us < passed_us ? busy_us * 1000 / passed_us : 1000;
    load->look_ns = now_ns;
    load->look_busy_us = load->busy_us;
    return load->busy_permille;
}

/* --- the sockets ---------------------------------------------------------------------------- */

/* Owner and mode are right before the name is, as of the control socket. */
static int put_in_place(const struct mediator *mediator, int fd, const char *made, const char *path,
                        struct vgpu_error *error)
{
    gid_t group = control_server_group(mediator->control);

    if (group != (gid_t)-1 && geteuid() == 0 && chown(made, (uid_t)-1, group) < 0)
        return error_set_errno(error, "cannot give socket '%s' to group %u", made, (unsigned)group);
    if (chmod(made, group != (gid_t)-1 ? 0660 : 0600) < 0 || listen(fd, BACKLOG) < 0 ||
        rename(made, path) < 0)
        return error_set_errno(error, "cannot put socket '%s' in place", path);
    return 0;
}

static int bind_path(const struct mediator *mediator, int fd, struct vgpu_error *error)
{
    char path[PATH_MAX + 16], made[PATH_MAX + 24];
    struct sockaddr_un address;
    int directory_fd, result;

    snprintf(path, sizeof(path), "%s/" SOCKET_NAME, mediator->config->run_dir);
    snprintf(made, sizeof(made), "%s.new", path);
    if (unlink(made) < 0 && errno != ENOENT)
        return error_set_errno(error, "cannot remove '%s'", made);
    if (control_address(made, &address, &directory_fd, error) < 0)
        return -1;
    result = bind(fd, (struct sockaddr *)&address, sizeof(address));
    fd_close(&directory_fd);
    if (result < 0)
        return error_set_errno(error, "cannot make socket '%s'", made);
    if (put_in_place(mediator, fd, made, path, error) < 0) {
        unlink(made);
        return -1;
    }
    return 0;
}

static int bind_port(int family, int fd, uint16_t port, struct vgpu_error *error)
{
    const struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const struct sockaddr_in6 v6 = {
        .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const void *address = family == AF_INET ? (const void *)&v4 : (const void *)&v6;
    int on = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (bind(fd, address, family == AF_INET ? sizeof(v4) : sizeof(v6)) < 0 ||
        listen(fd, BACKLOG) < 0)
        return error_set_errno(error, "metrics_port = %u: cannot listen at %s", port,
                               family == AF_INET ? "127.0.0.1" : "::1");
    return 0;
}

/* Adds a socket that listens; one that cannot be had is missed, with a warning. */
static void add_listener(const struct mediator *mediator, int family,
                         struct metrics_server_config *config)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct vgpu_error error;
    int result;

    if (fd < 0)
        result = error_set_errno(&error, "cannot make a socket of family %d", family);
    else if (family == AF_UNIX)
        result = bind_path(mediator, fd, &error);
    else
        result = bind_port(family, fd, (uint16_t)mediator->config->metrics_port, &error);
    if (result == 0) {
        config->listeners[config->listener_count++] = fd;
        return;
    }
    fd_close(&fd);
    /* A host without IPv6 is none that lacks something. */
    if (family != AF_INET6 || (error.code != EAFNOSUPPORT && error.code != EADDRNOTAVAIL))
        log_warning("metrics cannot be asked for everywhere: %s", error.message);
}

static void on_wanted(void *context)
{
    exposition_begin(context);
}

void metrics_start(struct mediator *mediator)
{
    struct metrics_server_config config = {.wanted = on_wanted, .context = mediator};
    struct vgpu_error error;

    add_listener(mediator, AF_UNIX, &config);
    if (mediator->config->metrics_port > 0) {
        add_listener(mediator, AF_INET, &config);
        add_listener(mediator, AF_INET6, &config);
    }
    if (metrics_server_start(&mediator->loop, &config, &mediator->numbers.server, &error) == 0)
        return;
    log_warning("metrics cannot be asked for: %s", error.message);
    for (unsigned i = 0; i < config.listener_count; i++)
        fd_close(&config.listeners[i]);
}

void metrics_stop(struct mediator *mediator)
{
    struct numbers *numbers = &mediator->numbers;
    char path[PATH_MAX + 16];

    exposition_cancel(numbers->exposition);
    numbers->exposition = NULL;
    if (!numbers->server)
        return;
    snprintf(path, sizeof(path), "%s/" SOCKET_NAME, mediator->config->run_dir);
    unlink(path); /* our lock is held: nobody else has put one there */
    metrics_server_stop(numbers->server);
    numbers->server = NULL;
}

void metrics_free(struct mediator *mediator)
{
    struct numbers *numbers = &mediator->numbers;

    for (unsigned pool = 0; pool < CONFIG_POOLS_MAX; pool++) {
        for (unsigned priority = 0; priority < MEDIATOR_PRIORITIES; priority++) {
            if (numbers->groups[pool][priority])
                metrics_scope_clear(numbers->groups[pool][priority]);
            free(numbers->groups[pool][priority]);
        }
    }
    metrics_scope_clear(&numbers->others);
    for (unsigned device = 0; device < SCHED_DEVICES_MAX; device++)
        metrics_latency_clear(&mediator->loads[device].switches);
}
