/* SPDX-License-Identifier: Apache-2.0 */
/* What programs that run for long and write a log begin and end with. */
#include "base/base.h"

#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum option_key { OPTION_LOG_FORMAT = 0x400, OPTION_LOG_LEVEL };

static const struct argp_option option_table[] = {
    {"log", 'l', "FILE", 0, "Append the log to FILE (default: standard error)", 2},
    {"log-format", OPTION_LOG_FORMAT, "FORMAT", 0, "'text' (default) or 'json', one object a line",
     2},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "'error', 'warning', 'info' (default), 'debug'", 2},
    {0},
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
    struct service_log *log = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        *log = (struct service_log){.level = LOG_LEVEL_INFO};
        return 0;
    case 'l':
        log->path = value;
        return 0;
    case OPTION_LOG_FORMAT:
        log->format = parse_format(state, value);
        return 0;
    case OPTION_LOG_LEVEL:
        log->level = parse_level(state, value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp service_log_argp = {.options = option_table, .parser = parse_option};

int service_run(const char *name, const struct service_log *log, service_function *run,
                const void *options)
{
    struct vgpu_error error;
    int result;

    if (log_open(log->path, log->format, log->level, &error) < 0) {
        fprintf(stderr, "%s: %s\n", name, error.message);
        return EXIT_FAILURE;
    }
    signal(SIGPIPE, SIG_IGN); /* a peer that goes is an error like others */
    result = run(options, &error);
    if (result < 0)
        log_error("%s", error.message);
    log_close();
    return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
