/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop in a worker domain: a child for each message that Dom0 wrote.
 *
 *   vgpu/request/<id>/ complete ─▶ data/vgpu-worker/answer/<id> made: it is at work
 *   registry ─▶ registry_put()          ┐
 *   command  ─▶ the mediator's socket   ┴─▶ the answer, in chunks
 */
#include "relay/relay.h"

#include "xen/xen.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COMMAND_TIMEOUT_MS 20000
#define LOOK_AGAIN_MS 5000

/* --- one message --------------------------------------------------------------------------- */

static char *take_registry(const struct relay *relay, const char *data, size_t bytes)
{
    struct vgpu_error error;

    if (registry_put(relay, data, bytes, &error) < 0) {
        log_warning("the registry that Dom0 sent is not taken: %s", error.message);
        return strdup(error.message);
    }
    log_info("the registry is as Dom0 has it now");
    return strdup("");
}

static json_t *describe_failure(const char *code, const struct vgpu_error *error)
{
    if (error->code == ENOENT || error->code == ECONNREFUSED)
        code = "not-running";
    return json_pack("{s:s, s:s}", "code", code[0] ? code : "internal", "message", error->message);
}

static json_t *call_mediator(const struct relay *relay, const char *command, json_t *arguments)
{
    char path[PATH_MAX + 16], code[64] = "";
    struct control *control;
    struct vgpu_error error;
    json_t *result, *answer;

    snprintf(path, sizeof(path), "%s/" CONTROL_SOCKET_NAME, relay->config.run_dir);
    if (control_connect(path, &control, &error) < 0)
        return describe_failure("", &error);
    if (control_call(control, command, arguments, COMMAND_TIMEOUT_MS, &result, code, &error) < 0)
        answer = describe_failure(code, &error);
    else
        answer = json_pack("{s:o}", "result", result);
    control_close(control);
    return answer;
}

/* The mediator ends what it knows by itself; what it wrote ends here, as Dom0 has no row to
 * change. */
static void release_row(const struct relay *relay, const json_t *arguments)
{
    const char *word = json_string_value(json_object_get(arguments, "vm"));
    struct vgpu_error error;

    if (word && registry_release(relay, word, &error) < 0 && error.code != ENOENT)
        log_warning("the quarantine of VM %s stays in the registry: %s", word, error.message);
}

static char *take_command(const struct relay *relay, const char *data)
{
    json_error_t wrong;
    json_t *question = json_loads(data, JSON_REJECT_DUPLICATES, &wrong), *answer;
    const char *command = json_string_value(json_object_get(question, "command"));
    char *text;

    if (command && strcmp(command, "release") == 0)
        release_row(relay, json_object_get(question, "arguments"));
    answer = command ? call_mediator(relay, command, json_object_get(question, "arguments"))
                     : json_pack("{s:s, s:s}", "code", "internal", "message",
                                 "what Dom0 sent is no command");
    text = json_dumps(answer, JSON_COMPACT);
    json_decref(answer);
    json_decref(question);
    if (text && strlen(text) > MESSAGE_ANSWER_MAX_BYTES) {
        free(text);
        text = strdup("{\"code\":\"too-long\",\"message\":\"the answer is longer than the 458752 "
                      "bytes that go through XenStore: ask for one VM, or in the worker domain\"}");
    }
    return text;
}

static char *answer_to(const struct relay *relay, struct xenbus *bus, const char *question)
{
    char path[XENBUS_PATH_BYTES], kind[16] = "", *data, *answer = NULL;
    size_t bytes;

    snprintf(path, sizeof(path), "%.200s/" MESSAGE_KIND, question);
    if (xenbus_read(bus, path, kind, sizeof(kind)) < 0 ||
        message_get(bus, question, MESSAGE_REGISTRY_MAX_BYTES, &data, &bytes) <= 0)
        return NULL;
    if (strcmp(kind, MESSAGE_REGISTRY) == 0)
        answer = take_registry(relay, data, bytes);
    else if (strcmp(kind, MESSAGE_COMMAND) == 0)
        answer = take_command(relay, data);
    free(data);
    return answer;
}

static __attribute__((noreturn)) void be_answer(struct relay *relay, const char *id)
{
    char question[XENBUS_PATH_BYTES], place[XENBUS_PATH_BYTES], *answer;
    struct vgpu_error error;
    struct xenbus bus;

    relay_path(question, relay->own_domain, WORKER_REQUESTS "/%s", id);
    relay_path(place, relay->own_domain, WORKER_ANSWERS "/%s", id);
    if (relay_open_xenbus(&bus, relay->xenbus_path, &error) < 0) {
        log_error("%s", error.message);
        _exit(EXIT_FAILURE);
    }
    answer = answer_to(relay, &bus, question);
    if (!answer || message_put(&bus, place, NULL, answer, strlen(answer)) < 0) {
        log_warning("a message of Dom0 cannot be answered: %s", strerror(errno));
        _exit(EXIT_FAILURE);
    }
    _exit(EXIT_SUCCESS);
}

/* --- all of them ------------------------------------------------------------------------------ */

static bool exists(struct relay *relay, const char *path)
{
    char ignored[XENBUS_PAYLOAD_MAX];

    return xenbus_list(&relay->bus, path, ignored, sizeof(ignored)) >= 0;
}

static void look_at_question(struct relay *relay, const char *id)
{
    pid_t *seat = relay_find_seat(&relay->seats);
    char path[XENBUS_PATH_BYTES], chunks[16];

    relay_path(path, relay->own_domain, WORKER_REQUESTS "/%s/" MESSAGE_CHUNKS, id);
    if (xenbus_read(&relay->bus, path, chunks, sizeof(chunks)) < 0)
        return; /* not complete, or gone */
    relay_path(path, relay->own_domain, WORKER_ANSWERS "/%s", id);
    if (!seat || exists(relay, path))
        return;
    if (xenbus_make_directory(&relay->bus, path) < 0) {
        log_warning("cannot answer Dom0: %s: %s", path, strerror(errno));
        return;
    }
    if (relay_fork(relay, seat) == 0)
        be_answer(relay, id);
}

static bool lists(const char *names, int bytes, const char *name)
{
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (strcmp(names + at, name) == 0)
            return true;
    }
    return false;
}

/* Dom0 takes a question back when it has the answer; one that came too late stays here. */
static void forget_answers(struct relay *relay, const char *questions, int question_bytes)
{
    char path[XENBUS_PATH_BYTES], names[XENBUS_PAYLOAD_MAX + 1];
    int bytes;

    relay_path(path, relay->own_domain, WORKER_ANSWERS);
    bytes = xenbus_list(&relay->bus, path, names, sizeof(names) - 1);
    if (bytes < 0)
        return;
    names[bytes] = '\0';
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (lists(questions, question_bytes, names + at))
            continue;
        relay_path(path, relay->own_domain, WORKER_ANSWERS "/%.16s", names + at);
        xenbus_remove(&relay->bus, path);
    }
}

static void look_at_questions(struct relay *relay)
{
    char path[XENBUS_PATH_BYTES], names[XENBUS_PAYLOAD_MAX + 1];
    int bytes;

    relay_path(path, relay->own_domain, WORKER_REQUESTS);
    bytes = xenbus_list(&relay->bus, path, names, sizeof(names) - 1);
    bytes = bytes < 0 ? 0 : bytes;
    names[bytes] = '\0';
    for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1) {
        if (xen_name_is_valid(names + at))
            look_at_question(relay, names + at);
    }
    forget_answers(relay, names, bytes);
}

static int serve(struct relay *relay, struct vgpu_error *error)
{
    for (;;) {
        struct pollfd waits[2] = {{.fd = relay->bus.fd, .events = POLLIN},
                                  {.fd = relay->signal_fd, .events = POLLIN}};
        struct xenbus_event event;
        int got;

        if (relay->bus.event_count == 0)
            poll(waits, 2, LOOK_AGAIN_MS);
        if (waits[1].revents && relay_take_signals(relay))
            return 0;
        while ((got = xenbus_next_event(&relay->bus, &event)) > 0)
            ;
        if (got < 0)
            return error_set_errno(error, "XenStore");
        look_at_questions(relay);
    }
}

int relay_worker_run(struct relay *relay, struct vgpu_error *error)
{
    char requests[XENBUS_PATH_BYTES], ready[XENBUS_PATH_BYTES];
    int result;

    relay_path(requests, relay->own_domain, WORKER_REQUESTS);
    relay_path(ready, relay->own_domain, WORKER_READY);
    if (xenbus_watch(&relay->bus, requests, "request") < 0 ||
        xenbus_write(&relay->bus, ready, WORKER_VERSION) < 0)
        return error_set_errno(error, "cannot tell Dom0 through XenStore (%s)", ready);
    log_info("vgpu-relay " VGPU_PACKAGE_VERSION " in worker domain %u, database %s",
             relay->own_domain, relay->config.database);
    result = serve(relay, error);
    xenbus_remove(&relay->bus, ready);
    return result;
}
