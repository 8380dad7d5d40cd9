/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In Dom0: the control socket of a mediator that is in a worker domain (docs/control.md).
 *
 *   a line ─▶ hello     answered here
 *             reload    the registry is sent, then the mediator there reads it
 *             others    asked there
 *
 * A process a connection.  With one worker domain its mediator answers at run_dir; with
 * more each has a socket in a directory of its own name besides, and that of run_dir takes
 * what is for all of them.
 */
#include "relay/relay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_S 10

struct connection {
    struct relay *relay;
    struct relay_worker *worker; /* NULL: all */
    struct xenbus bus;
    int fd;
    uint64_t end_ns; /* of waiting for what it asked */
    bool is_late;    /* and the registry was not taken until then */
    size_t in_bytes;
    char in[CONTROL_REQUEST_MAX_BYTES];
};

struct failure {
    char code[64];
    char message[VGPU_ERROR_BYTES];
};

/* The words may be a worker domain's, and JSON has no half characters. */
static json_t *fail(struct failure *failure, const char *code, const char *message)
{
    text_copy_utf8(failure->code, sizeof(failure->code), code);
    text_copy_utf8(failure->message, sizeof(failure->message), message);
    return NULL;
}

/* --- asking a worker domain's mediator --------------------------------------------------- */

/* {"result":...} or {"code":...,"message":...}; takes it over. */
static json_t *judge_answer(json_t *answer, struct failure *failure)
{
    json_t *result = json_incref(json_object_get(answer, "result"));
    const char *code = json_string_value(json_object_get(answer, "code"));
    const char *message = json_string_value(json_object_get(answer, "message"));

    if (!json_is_object(result)) {
        json_decref(result);
        result = NULL;
        fail(failure, code ? code : "internal",
             message ? message : "the worker domain's relay answered what is no answer");
    }
    json_decref(answer);
    return result;
}

/* What its relay answered. */
static json_t *take_answer(const char *text, struct failure *failure)
{
    json_error_t wrong;
    json_t *answer = json_loads(text, JSON_REJECT_DUPLICATES, &wrong);

    relay_clean(answer);
    return judge_answer(answer, failure);
}

static json_t *ask(struct connection *connection, const struct relay_worker *worker,
                   const char *command, const json_t *arguments, struct failure *failure)
{
    json_t *question = json_pack("{s:s, s:O*}", "command", command, "arguments", arguments);
    char *text = json_dumps(question, JSON_COMPACT), *answer;
    struct message message = {.kind = MESSAGE_COMMAND, .data = text};
    struct vgpu_error error;
    json_t *result = NULL;

    json_decref(question);
    if (!text)
        return fail(failure, "internal", "no memory for the question");
    message.bytes = strlen(text);
    if (message_exchange(&connection->bus, worker, &message, connection->end_ns, &answer, &error) <
        0) {
        fail(failure, error.code == ETIMEDOUT ? "not-running" : "internal", error.message);
    } else {
        result = take_answer(answer, failure);
        free(answer);
    }
    free(text);
    return result;
}

static bool is_ready(struct connection *connection, const struct relay_worker *worker)
{
    char path[XENBUS_PATH_BYTES], version[16];

    if (!worker->runs)
        return false;
    relay_path(path, worker->domain, WORKER_READY);
    return xenbus_read(&connection->bus, path, version, sizeof(version)) == 0 &&
           strcmp(version, WORKER_VERSION) == 0;
}

static json_t *ask_if_ready(struct connection *connection, const struct relay_worker *worker,
                            const char *command, const json_t *arguments, struct failure *failure)
{
    char text[200];

    if (is_ready(connection, worker))
        return ask(connection, worker, command, arguments, failure);
    snprintf(text, sizeof(text),
             "worker domain %s is not there, or vgpu-relay does not run in it: start it",
             worker->name);
    return fail(failure, "not-running", text);
}

/* --- reload ---------------------------------------------------------------------------------- */

/* The one that serves the VM or the pool that the arguments name; NULL: none. */
static const struct relay_worker *worker_of(const struct connection *connection,
                                            const json_t *arguments)
{
    const char *pool = json_string_value(json_object_get(arguments, "pool"));
    const char *word = json_string_value(json_object_get(arguments, "vm"));
    const json_t *number = json_object_get(arguments, "vm_id");
    struct relay *relay = connection->relay;
    struct vgpu_error error;
    struct store_vm vm = {.pool = pool ? pool[0] : '\0'};
    struct store *store;
    char text[24];

    snprintf(text, sizeof(text), "%lld", (long long)json_integer_value(number));
    if (!word && json_is_integer(number))
        word = text;
    if (word) {
        if (store_open(relay->config.database, STORE_READ_BRIEFLY, &store, &error) < 0)
            return NULL;
        if (store_find_vm(store, word, &vm, &error) < 0)
            vm.pool = '\0';
        store_close(store);
    }
    return vm.pool ? relay_domains_find(&relay->domains, vm.pool) : NULL;
}

/* It has the registry, or gets it, when it starts. */
static json_t *pending(const struct relay_worker *worker, const char *what)
{
    return json_pack(
        "{s:i, s:[], s:[], s:b, s:o}", "count", 0, "changes", "next_start", "pending", 1, "reason",
        json_sprintf("%s worker domain %s: this counts when it starts", what, worker->name));
}

static json_t *refresh(struct connection *connection, const struct relay_worker *worker,
                       struct failure *failure)
{
    struct vgpu_error error;
    json_t *result;

    if (!is_ready(connection, worker))
        return pending(worker, "vgpu-relay does not run in");
    if (registry_send(connection->relay, &connection->bus, worker, connection->end_ns, &error) <
        0) {
        fail(failure, "not-read", error.message);
        connection->is_late = error.code == ETIMEDOUT;
        return connection->is_late ? pending(worker, "vgpu-relay does not answer in") : NULL;
    }
    result = ask(connection, worker, "reload", NULL, failure);
    return !result && strcmp(failure->code, "not-running") == 0
               ? pending(worker, "the mediator does not run in")
               : result;
}

/* Each one's words: an administrator is told of all that this does not count for yet. */
static void add_reason(json_t *all, const json_t *one)
{
    const char *reason = json_string_value(json_object_get(one, "reason"));
    const char *earlier = json_string_value(json_object_get(all, "reason"));

    if (reason)
        json_object_set_new(
            all, "reason", earlier ? json_sprintf("%s; %s", earlier, reason) : json_string(reason));
}

/* Any number can come; what is none of changes is 0. */
static void add_count(json_t *all, const json_t *one)
{
    json_int_t count = json_integer_value(json_object_get(all, "count"));
    json_int_t more = json_integer_value(json_object_get(one, "count"));

    if (more > 0 && __builtin_add_overflow(count, more, &count))
        count = INT64_MAX;
    json_object_set_new(all, "count", json_integer(count));
}

static void merge(json_t *all, const json_t *one)
{
    add_count(all, one);
    json_array_extend(json_object_get(all, "changes"), json_object_get(one, "changes"));
    json_array_extend(json_object_get(all, "next_start"), json_object_get(one, "next_start"));
    if (json_is_true(json_object_get(one, "pending")))
        json_object_set_new(all, "pending", json_true());
    add_reason(all, one);
    if (json_is_false(json_object_get(one, "files_done")))
        json_object_set_new(all, "files_done", json_false());
}

/* --- answers ------------------------------------------------------------------------------- */

static int send_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t sent = send(fd, data, bytes, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        data += sent;
        bytes -= (size_t)sent;
    }
    return 0;
}

/* Takes over `answer`. */
static int send_answer(int fd, json_t *answer)
{
    char *text = json_dumps(answer, JSON_COMPACT);
    int result = -1;

    json_decref(answer);
    if (text && send_all(fd, text, strlen(text)) == 0)
        result = send_all(fd, "\n", 1);
    free(text);
    return result;
}

/* --- reload: a process a worker domain ----------------------------------------------------- */

struct part {
    pid_t pid; /* 0: none */
    int fd;    /* its answer, until its end */
};

static void tell_late(const struct relay *relay, const struct relay_worker *worker)
{
    uint8_t index = (uint8_t)(worker - relay->domains.workers);
    ssize_t ignored = write(relay->late[1], &index, sizeof(index));

    (void)ignored; /* a full pipe says enough */
}

static __attribute__((noreturn)) void be_part(struct connection *connection,
                                              const struct relay_worker *worker, int fd)
{
    struct failure failure;
    struct vgpu_error error;
    json_t *result = NULL;

    xenbus_close(&connection->bus); /* what is said there is the parent's */
    if (relay_open_xenbus(&connection->bus, connection->relay->xenbus_path, &error) == 0)
        result = refresh(connection, worker, &failure);
    else
        fail(&failure, "internal", error.message);
    if (connection->is_late)
        tell_late(connection->relay, worker);
    send_answer(fd,
                result ? json_pack("{s:o}", "result", result)
                       : json_pack("{s:s, s:s}", "code", failure.code, "message", failure.message));
    _exit(EXIT_SUCCESS);
}

static struct part start_part(struct connection *connection, const struct relay_worker *worker)
{
    struct part part = {.fd = -1};
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return part;
    if (relay_fork(connection->relay, &part.pid) == 0) {
        close(ends[0]);
        be_part(connection, worker, ends[1]);
    }
    close(ends[1]);
    part.fd = ends[0];
    return part;
}

/* It ends in time by itself.  Without a process or an answer: a failure. */
static json_t *end_part(struct part *part, struct failure *failure)
{
    json_error_t wrong;
    json_t *answer = part->fd < 0 ? NULL : json_loadfd(part->fd, 0, &wrong);

    fd_close(&part->fd);
    if (part->pid > 0)
        waitpid(part->pid, NULL, 0);
    return judge_answer(answer, failure);
}

/* The mediators read copies; who asks knows the database in Dom0.  A worker domain that cannot
 * take the registry, or does not answer, keeps no other one from it. */
static json_t *reload(struct connection *connection, struct failure *failure)
{
    const struct relay_domains *domains = &connection->relay->domains;
    json_t *all = json_pack("{s:i, s:[], s:[], s:b, s:s}", "count", 0, "changes", "next_start",
                            "files_done", 1, "database", connection->relay->config.database);
    struct part parts[RELAY_WORKERS_MAX];
    unsigned count = 0;
    bool failed = !all;

    for (unsigned i = 0; i < domains->count; i++) {
        if (!connection->worker || connection->worker == &domains->workers[i])
            parts[count++] = start_part(connection, &domains->workers[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        json_t *one = end_part(&parts[i], failure);

        failed = failed || !one;
        if (one)
            merge(all, one);
        json_decref(one);
    }
    if (!failed)
        return all;
    json_decref(all);
    return NULL;
}

/* --- lines ----------------------------------------------------------------------------- */

static json_t *hello(void)
{
    return json_pack("{s:i, s:s, s:i, s:b, s:b}", "version", CONTROL_VERSION, "mediator",
                     VGPU_PACKAGE_VERSION, "pid", (int)getpid(), "ready", 1, "relay", 1);
}

static json_t *run(struct connection *connection, const char *command, const json_t *arguments,
                   struct failure *failure)
{
    const struct relay_domains *domains = &connection->relay->domains;
    const struct relay_worker *worker = connection->worker;
    char text[PATH_MAX + 200];

    if (strcmp(command, "hello") == 0)
        return hello();
    if (strcmp(command, "reload") == 0)
        return reload(connection, failure);
    if (!worker)
        worker = domains->count == 1 ? &domains->workers[0] : worker_of(connection, arguments);
    if (worker)
        return ask_if_ready(connection, worker, command, arguments, failure);
    snprintf(text, sizeof(text),
             "%u worker domains are served here, and this is for one of them: ask at its own "
             "socket, such as %s (vgpu-admin --socket)",
             domains->count, domains->workers[0].listener.path);
    return fail(failure, "bad-request", text);
}

static json_t *take_request(struct connection *connection, const json_t *request,
                            json_int_t *ret_id, struct failure *failure)
{
    const json_t *arguments = json_object_get(request, "arguments");
    const char *command = json_string_value(json_object_get(request, "command"));
    json_int_t id = json_integer_value(json_object_get(request, "id"));

    *ret_id = id > 0 ? id : 0;
    if (!json_is_object(request))
        return fail(failure, "bad-json", "a line is one JSON object");
    if (json_integer_value(json_object_get(request, "version")) != CONTROL_VERSION)
        return fail(failure, "version", "\"version\":1 is expected");
    if (id < 1)
        return fail(failure, "bad-request", "\"id\" must be a whole number from 1");
    if (!command)
        return fail(failure, "bad-request", "\"command\" must be a string");
    if (arguments && !json_is_object(arguments))
        return fail(failure, "bad-request", "\"arguments\" must be an object");
    return run(connection, command, arguments, failure);
}

static int send_failure(int fd, json_int_t id, const struct failure *failure)
{
    return send_answer(fd, json_pack("{s:i, s:I, s:b, s:{s:s, s:s}}", "version", CONTROL_VERSION,
                                     "id", id, "ok", 0, "error", "code", failure->code, "message",
                                     failure->message));
}

static int take_line(struct connection *connection, const char *line, size_t bytes)
{
    struct failure failure = {"internal", "the command failed without a reason"};
    json_error_t wrong;
    json_t *request = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &wrong);
    json_t *result;
    json_int_t id;

    connection->end_ns = clock_monotonic_ns() + RELAY_ANSWER_MS * NS_PER_MS;
    result = take_request(connection, request, &id, &failure);
    json_decref(request);
    if (!result)
        return send_failure(connection->fd, id, &failure);
    return send_answer(connection->fd, json_pack("{s:i, s:I, s:b, s:o}", "version", CONTROL_VERSION,
                                                 "id", id, "ok", 1, "result", result));
}

/* Until the peer is gone, or says nothing for PATIENCE_S. */
static void serve(struct connection *connection)
{
    for (;;) {
        char *end = memchr(connection->in, '\n', connection->in_bytes);
        size_t line_bytes = end ? (size_t)(end - connection->in) : 0;
        ssize_t got;

        if (end) {
            if (take_line(connection, connection->in, line_bytes) < 0)
                return;
            connection->in_bytes -= line_bytes + 1;
            memmove(connection->in, end + 1, connection->in_bytes);
            continue;
        }
        if (connection->in_bytes == sizeof(connection->in)) {
            send_failure(connection->fd, 0,
                         &(struct failure){"too-long", "a line has at most "
                                                       "16384 bytes"});
            return;
        }
        got = recv(connection->fd, connection->in + connection->in_bytes,
                   sizeof(connection->in) - connection->in_bytes, 0);
        if (got <= 0)
            return;
        connection->in_bytes += (size_t)got;
    }
}

/* --- a process a connection ------------------------------------------------------------ */

static __attribute__((noreturn)) void be_connection(struct relay *relay,
                                                    struct relay_worker *worker, int fd)
{
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    struct connection *connection = calloc(1, sizeof(*connection));
    struct vgpu_error error;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (!connection)
        _exit(EXIT_FAILURE);
    connection->relay = relay;
    connection->worker = worker;
    connection->fd = fd;
    if (relay_open_xenbus(&connection->bus, relay->xenbus_path, &error) < 0) {
        log_error("%s", error.message);
        _exit(EXIT_FAILURE);
    }
    serve(connection);
    _exit(EXIT_SUCCESS);
}

static void send_away(int fd, const char *code, const char *message)
{
    struct failure failure;

    fail(&failure, code, message);
    send_failure(fd, 0, &failure);
    close(fd);
}

void control_accept(struct relay *relay, struct relay_worker *worker)
{
    struct control_listener *listener = worker ? &worker->listener : &relay->listener;
    pid_t *seat = relay_find_seat(worker ? &worker->seats : &relay->seats);
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
    struct ucred peer;

    if (fd < 0)
        return;
    if (!control_is_allowed(listener, fd, &peer)) {
        send_away(fd, "not-allowed",
                  "the control socket is for root and members of the mediator's control group");
        return;
    }
    if (!seat) {
        send_away(fd, "busy", "all connections of the control socket are in use: try again");
        return;
    }
    if (relay_fork(relay, seat) == 0)
        be_connection(relay, worker, fd);
    close(fd);
}

/* --- without anybody asking ------------------------------------------------------------ */

static __attribute__((noreturn)) void be_refresh(struct relay *relay, struct relay_worker *worker)
{
    struct connection connection = {.relay = relay,
                                    .worker = worker,
                                    .fd = -1,
                                    .end_ns = clock_monotonic_ns() + RELAY_ANSWER_MS * NS_PER_MS};
    struct failure failure;
    struct vgpu_error error;
    json_t *result;

    if (relay_open_xenbus(&connection.bus, relay->xenbus_path, &error) < 0)
        _exit(EXIT_FAILURE);
    result = refresh(&connection, worker, &failure);
    if (connection.is_late || !result)
        log_warning("worker domain %s does not have the registry as it is now: %s", worker->name,
                    failure.message);
    else
        log_info("worker domain %s has the registry%s", worker->name,
                 json_object_get(result, "pending") ? "; its mediator reads it later" : "");
    _exit(EXIT_SUCCESS);
}

void control_refresh(struct relay *relay, struct relay_worker *worker)
{
    if (relay_fork(relay, &worker->refresher) == 0)
        be_refresh(relay, worker);
}

/* --- start and stop -------------------------------------------------------------------- */

int control_open(struct relay *relay, struct vgpu_error *error)
{
    char directory[PATH_MAX];

    if (control_listen(&relay->listener, relay->config.run_dir, relay->config.control_group,
                       error) < 0)
        return -1;
    for (unsigned i = 0; relay->domains.count > 1 && i < relay->domains.count; i++) {
        struct relay_worker *worker = &relay->domains.workers[i];

        snprintf(directory, sizeof(directory), "%.3900s/%s", relay->config.run_dir, worker->name);
        if (control_listen(&worker->listener, directory, relay->config.control_group, error) < 0)
            return -1;
    }
    return 0;
}

void control_end(struct relay *relay)
{
    control_listen_end(&relay->listener);
    for (unsigned i = 0; i < relay->domains.count; i++)
        control_listen_end(&relay->domains.workers[i].listener);
}
