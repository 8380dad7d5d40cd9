/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `vgpu-client [COMMAND]`: sends one request, through the window or files, and
 * prints what happened, line by line as it becomes known, or as one JSON object
 * at the end.
 */
#include "client.h"

#include <string.h>

static double answer_ms(const struct exchange *exchange)
{
    return (double)(exchange->answered_ns - exchange->sent_ns) / 1e6;
}

static void print_answer(const struct options *options, const struct exchange *exchange,
                         const struct failure *failure)
{
    if (!options->quiet)
        printf("answer   %s (%.1f ms)\n", exchange->answer, answer_ms(exchange));
    else if (failure->code == FAILURE_NONE)
        printf("%s\n", exchange->answer + 2);
    if (failure->code == FAILURE_BAD_ANSWER || (options->quiet && failure->code != FAILURE_NONE))
        command_fail(options, failure);
}

static void print_json(const struct identity *identity, const struct exchange *exchange,
                       const char *line, const struct failure *failure)
{
    struct json json;

    json_begin(&json, stdout);
    identity_json(identity, &json);
    json_string(&json, "request", line);
    if (exchange->answered) {
        json_open(&json, "answer", '{');
        json_string(&json, "status", (char[]){exchange->answer[0], '\0'});
        json_string(&json, "message",
                    exchange->answer[0] && exchange->answer[1] ? exchange->answer + 2 : "");
        json_milliseconds(&json, "milliseconds", exchange->answered_ns - exchange->sent_ns);
        json_milliseconds(&json, "taken_milliseconds", exchange->taken_ns - exchange->sent_ns);
        json_close(&json, '}');
    }
    json_end(&json, failure->code == FAILURE_NONE ? 0 : failure->exit_code,
             failure->code == FAILURE_NONE ? NULL : failure);
}

static void print_head(const struct options *options, const struct identity *identity,
                       const char *line)
{
    if (options->json || options->quiet)
        return;
    identity_print(identity, stdout);
    printf("request  %s\n", line);
    fflush(stdout);
}

/* --- through the window ---------------------------------------------------------------- */

static void print_window_json(const struct options *options, const struct window *window,
                              const struct window_exchange *exchange, const struct failure *failure)
{
    struct json json;

    json_begin(&json, stdout);
    window_json(window, &json);
    json_string(&json, "request", options->command);
    if (exchange->answered) {
        json_open(&json, "answer", '{');
        json_string(&json, "status", (char[]){exchange->answer[0], '\0'});
        json_string(&json, "message", exchange->answer + 2);
        json_milliseconds(&json, "milliseconds", exchange->took_ns);
        json_null(&json, "taken_milliseconds");
        json_close(&json, '}');
    }
    json_end(&json, failure->exit_code, failure->code == FAILURE_NONE ? NULL : failure);
}

static int request_window(const struct options *options, struct window *window)
{
    struct window_exchange exchange = {0};
    struct failure failure = {0};

    if (!options->json && !options->quiet) {
        window_print(window, stdout);
        printf("request  %s\n", options->command);
        fflush(stdout);
    }
    window_exchange(options, window, &exchange, &failure);
    window_close(window);
    if (options->json) {
        print_window_json(options, window, &exchange, &failure);
    } else if (exchange.answered && !options->quiet) {
        printf("answer   %s (%.3f ms)\n", exchange.answer, (double)exchange.took_ns / 1e6);
    } else if (failure.code == FAILURE_NONE) {
        printf("%s\n", exchange.answer + 2);
    } else {
        command_fail(options, &failure);
    }
    return failure.exit_code;
}

/* --- through files ----------------------------------------------------------------------- */

static int request_file(const struct options *options, const char *reason)
{
    struct failure failure = {0};
    struct identity identity;
    char line[VGPU_REQUEST_MAX_BYTES + 2], shown[VGPU_REQUEST_MAX_BYTES + 1];
    struct exchange exchange = {.line = line,
                                .timeout_ns = options->timeout_ns,
                                .in_place = options->in_place,
                                .verbose = options->verbose,
                                .quiet = options->quiet};

    if (guard_catch_signals(&failure) < 0 || identity_find(options, &identity, &failure) < 0)
        return command_fail(options, &failure);
    identity_explain(&identity, reason);
    exchange.directory = identity.directory;
    exchange_format_line(&identity, options->command, line, sizeof(line));
    snprintf(shown, sizeof(shown), "%.*s", (int)strcspn(line, "\n"), line);
    print_head(options, &identity, shown);
    exchange_run(&exchange, &failure);
    if (options->json)
        print_json(&identity, &exchange, shown, &failure);
    else if (exchange.answered)
        print_answer(options, &exchange, &failure);
    else
        command_fail(options, &failure);
    return failure.exit_code;
}

int command_request(const struct options *options)
{
    struct failure failure = {0};
    struct window window;

    if (window_choose(options, &window, &failure) < 0)
        return command_fail(options, &failure);
    if (window.session)
        return request_window(options, &window);
    return request_file(options, window.reason);
}
