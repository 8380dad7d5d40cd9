/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-xen: options and nothing else. */
#include "xen/xen.h"

#include "xenbus.h"

#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *argp_program_version = "vgpu-xen " VGPU_PACKAGE_VERSION;

#define DEFAULT_CONFIG "/etc/vgpu/mediator.conf"
#define EXIT_USAGE 2

enum option_key { OPTION_LOG_FORMAT = 256, OPTION_LOG_LEVEL, OPTION_XENBUS };

static const struct argp_option option_table[] = {
    {"config", 'c', "FILE", 0, "The mediator's configuration (default " DEFAULT_CONFIG ")", 1},
    {"log", 'l', "FILE", 0, "Append the log to FILE (default: standard error)", 2},
    {"log-format", OPTION_LOG_FORMAT, "FORMAT", 0, "'text' (default) or 'json', one object a line",
     2},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "'error', 'warning', 'info' (default), 'debug'", 2},
    {"xenbus", OPTION_XENBUS, "PATH", 0,
     "XenStore's device, or xenstored's socket (default " XENBUS_DEVICE ")", 3},
    {0},
};

struct arguments {
    struct watch_options watch;
    const char *log;
    enum log_format format;
    enum log_level level;
};

static enum log_level parse_level(struct argp_state *state, const char *value)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        if (strcmp(value, names[i]) == 0)
            return (enum log_level)i;
    }
    argp_error(state, "--log-level %s: expected error, warning, info or debug", value);
    return LOG_LEVEL_INFO;
}

static enum log_format parse_format(struct argp_state *state, const char *value)
{
    if (strcmp(value, "text") != 0 && strcmp(value, "json") != 0)
        argp_error(state, "--log-format %s: expected text or json", value);
    return strcmp(value, "json") == 0 ? LOG_FORMAT_JSON : LOG_FORMAT_TEXT;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case 'c':
        arguments->watch.config_path = value;
        return 0;
    case 'l':
        arguments->log = value;
        return 0;
    case OPTION_LOG_FORMAT:
        arguments->format = parse_format(state, value);
        return 0;
    case OPTION_LOG_LEVEL:
        arguments->level = parse_level(state, value);
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

static const struct argp argp = {
    .options = option_table,
    .parser = parse_option,
    .doc = "Brings the sessions of Xen domains to vgpu-mediator: maps the pages that a VM's "
           "programs grant, and copies between them and a window of the VM's socket.\v"
           "Exit status: 0 told to end, 1 cannot start or go on, 2 wrong options.",
};

int main(int argc, char **argv)
{
    struct arguments arguments = {
        .watch = {.config_path = DEFAULT_CONFIG, .xenbus_path = XENBUS_DEVICE},
        .level = LOG_LEVEL_INFO,
    };
    struct vgpu_error error;
    int result;

    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    if (log_open(arguments.log, arguments.format, arguments.level, &error) < 0) {
        fprintf(stderr, "vgpu-xen: %s\n", error.message);
        return EXIT_FAILURE;
    }
    signal(SIGPIPE, SIG_IGN); /* a XenStore that goes is an error like others */
    result = watch_run(&arguments.watch, &error);
    if (result < 0)
        log_error("%s", error.message);
    log_close();
    return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
