/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-relay: options, and which side this is. */
#include "relay/relay.h"

#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

const char *argp_program_version = "vgpu-relay " VGPU_PACKAGE_VERSION;

#define DEFAULT_CONFIG "/etc/vgpu/mediator.conf"
#define DEFAULT_DOMAINS "/etc/vgpu/domains.conf"
#define EXIT_USAGE 2

enum option_key { OPTION_WORKER = 256, OPTION_XENBUS };

static const struct argp_option option_table[] = {
    {"config", 'c', "FILE", 0, "The mediator's configuration (default " DEFAULT_CONFIG ")", 1},
    {"domains", 'd', "FILE", 0,
     "In Dom0: which domain serves which pool (default " DEFAULT_DOMAINS ")", 1},
    {"worker", OPTION_WORKER, NULL, 0,
     "In Dom0: be the side of a worker domain, for the pools that Dom0 serves itself", 1},
    {"xenbus", OPTION_XENBUS, "PATH", 0,
     "XenStore's device, or xenstored's socket (default " XENBUS_DEVICE ")", 3},
    {0},
};

struct arguments {
    struct relay_options relay;
    struct service_log log;
};

/* --- both sides ------------------------------------------------------------------------------ */

int relay_open_xenbus(struct xenbus *bus, const char *path, struct vgpu_error *error)
{
    if (xenbus_open(bus, path) < 0)
        return error_set_errno(error, "%s: is this a domain of Xen?", path);
    return 0;
}

pid_t *relay_find_seat(struct relay_seats *seats)
{
    for (unsigned i = 0; i < RELAY_SEATS; i++) {
        if (seats->pids[i] == 0)
            return &seats->pids[i];
    }
    return NULL;
}

static void free_seat(struct relay_seats *seats, pid_t pid)
{
    for (unsigned i = 0; i < RELAY_SEATS; i++) {
        if (seats->pids[i] == pid)
            seats->pids[i] = 0;
    }
}

static void forget_child(struct relay *relay, pid_t pid)
{
    free_seat(&relay->seats, pid);
    for (unsigned i = 0; i < relay->domains.count; i++) {
        struct relay_worker *worker = &relay->domains.workers[i];

        free_seat(&worker->seats, pid);
        if (worker->refresher == pid)
            worker->refresher = 0;
    }
}

pid_t relay_fork(struct relay *relay, pid_t *seat)
{
    pid_t parent = getpid(), pid = fork();
    sigset_t none;

    if (pid > 0)
        *seat = pid;
    if (pid < 0)
        log_warning("no process for a message");
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(EXIT_FAILURE);
    xenbus_close(&relay->bus);
    fd_close(&relay->signal_fd);
    fd_close(&relay->late[0]);
    fd_close(&relay->listener.fd);
    for (unsigned i = 0; i < relay->domains.count; i++)
        fd_close(&relay->domains.workers[i].listener.fd);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    return 0;
}

bool relay_take_signals(struct relay *relay)
{
    struct signalfd_siginfo info;
    bool ends = false;
    pid_t pid;

    while (read(relay->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        ends = ends || info.ssi_signo != SIGCHLD;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        forget_child(relay, pid);
    return ends;
}

static int open_signals(struct relay *relay)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    relay->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    return relay->signal_fd;
}

static int read_config(struct relay *relay, const struct relay_options *options,
                       struct vgpu_error *error)
{
    config_init(&relay->config);
    if (config_read(&relay->config, options->config_path, error) < 0)
        return -1;
    if (relay->config.database[0])
        return 0;
    return error_set(error, EINVAL,
                     "%s names no database: expected that of vgpu-admin in Dom0, and the place of "
                     "its copy in a worker domain",
                     options->config_path);
}

static int open_all(struct relay *relay, const struct relay_options *options,
                    struct vgpu_error *error)
{
    char number[16];
    uint64_t domain;

    if (read_config(relay, options, error) < 0)
        return -1;
    if (open_signals(relay) < 0)
        return error_set_errno(error, "signals");
    relay->xenbus_path = options->xenbus_path;
    if (relay_open_xenbus(&relay->bus, options->xenbus_path, error) < 0)
        return -1;
    if (xenbus_read(&relay->bus, "domid", number, sizeof(number)) < 0 ||
        !text_parse_u64(number, 0, UINT16_MAX, &domain))
        return error_set_errno(error, "XenStore does not say which domain this is (domid)");
    relay->own_domain = (unsigned)domain;
    relay->is_worker = options->is_worker || domain != 0;
    if (relay->is_worker && registry_prepare(relay, error) < 0)
        return -1;
    return config_complete(&relay->config, error);
}

static int serve(const void *own_options, struct vgpu_error *error)
{
    const struct relay_options *options = own_options;
    struct relay relay = {.signal_fd = -1, .late = {-1, -1}};
    int result = -1;

    relay.bus.fd = relay.listener.fd = -1;
    if (open_all(&relay, options, error) == 0)
        result = relay.is_worker ? relay_worker_run(&relay, error)
                                 : relay_dom0_run(&relay, options, error);
    xenbus_close(&relay.bus);
    fd_close(&relay.signal_fd);
    config_free(&relay.config);
    return result;
}

/* --- options --------------------------------------------------------------------------- */

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &arguments->log;
        return 0;
    case 'c':
        arguments->relay.config_path = value;
        return 0;
    case 'd':
        arguments->relay.domains_path = value;
        return 0;
    case OPTION_WORKER:
        arguments->relay.is_worker = true;
        return 0;
    case OPTION_XENBUS:
        arguments->relay.xenbus_path = value;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is no option: vgpu-relay takes no other words", value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&service_log_argp, 0, NULL, 0}, {0}};

static const struct argp argp = {
    .options = option_table,
    .parser = parse_option,
    .children = children,
    .doc = "Keeps Dom0 and a worker domain, which has the GPU and the mediator, in agreement: "
           "which domain is which VM, the registry, and the mediator's control socket.  It runs in "
           "both.\v"
           "Exit status: 0 told to end, 1 cannot start or go on, 2 wrong options.",
};

int main(int argc, char **argv)
{
    struct arguments arguments = {
        .relay = {.config_path = DEFAULT_CONFIG,
                  .domains_path = DEFAULT_DOMAINS,
                  .xenbus_path = XENBUS_DEVICE},
    };

    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    return service_run("vgpu-relay", &arguments.log, serve, &arguments.relay);
}
