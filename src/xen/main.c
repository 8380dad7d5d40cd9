/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-xen: options and nothing else. */
#include "xen/xen.h"

#include "xenbus.h"

#include <argp.h>

const char *argp_program_version = "vgpu-xen " VGPU_PACKAGE_VERSION;

#define DEFAULT_CONFIG "/etc/vgpu/mediator.conf"
#define EXIT_USAGE 2

enum option_key { OPTION_XENBUS = 256 };

static const struct argp_option option_table[] = {
    {"config", 'c', "FILE", 0, "The mediator's configuration (default " DEFAULT_CONFIG ")", 1},
    {"xenbus", OPTION_XENBUS, "PATH", 0,
     "XenStore's device, or xenstored's socket (default " XENBUS_DEVICE ")", 3},
    {0},
};

struct arguments {
    struct watch_options watch;
    struct service_log log;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &arguments->log;
        return 0;
    case 'c':
        arguments->watch.config_path = value;
        return 0;
    case OPTION_XENBUS:
        arguments->watch.xenbus_path = value;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is no option: vgpu-xen takes no other words", value);
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
    .doc = "Brings the sessions of Xen domains to vgpu-mediator: maps the pages that a VM's "
           "programs grant, and copies between them and a window of the VM's socket.\v"
           "Exit status: 0 told to end, 1 cannot start or go on, 2 wrong options.",
};

static int serve(const void *options, struct vgpu_error *error)
{
    return watch_run(options, error);
}

int main(int argc, char **argv)
{
    struct arguments arguments = {
        .watch = {.config_path = DEFAULT_CONFIG, .xenbus_path = XENBUS_DEVICE},
    };

    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    return service_run("vgpu-xen", &arguments.log, serve, &arguments.watch);
}
