/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket: who may connect, lines in, lines out.
 *
 *   accept ─▶ allowed? ─▶ READING ── a line ─▶ command_run() ─▶ WRITING ─▶ READING
 *                            ▲                      │                         │
 *                            └── too many a second: │ SYNCING: a reload waits for
 *                                a pause            │ the file channel
 *
 * One command of a connection is at work at a time; further lines wait in its buffer,
 * and when that is full in the kernel's.  Bounds: CONTROL_CONNECTIONS_MAX connections,
 * CONTROL_REQUEST_MAX_BYTES a line, CONTROL_ANSWER_MAX_BYTES an answer,
 * CONTROL_REQUESTS_PER_S commands.  A peer that sends half a line or does not read
 * loses its connection after PATIENCE_MS; one that is idle, when another one comes
 * and there is no room.
 */
#include "mediator/mediator.h"

#include "control/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_A_VISIT 4
#define LINES_A_VISIT 4
#define PATIENCE_MS 10000
#define IDLE_NS (10 * NS_PER_S) /* then it makes room for others */
#define PAUSE_MS 100
#define SYNC_PATIENCE_MS 5000

enum connection_state {
    CONNECTION_READING,
    CONNECTION_SYNCING, /* its command is done when the file channel says so */
    CONNECTION_WRITING,
    CONNECTION_CLOSED, /* its handles are being closed */
};

struct connection {
    LIST_ENTRY(connection) in_server;
    struct control_server *server;
    enum connection_state state;
    int fd;
    uv_poll_t poll;
    uv_timer_t deadline; /* of half a line, an answer nobody reads, a reload */
    uv_timer_t pause;
    unsigned handles;
    uint64_t active_ns;
    uint64_t second_ns; /* the second that counts, and its commands */
    uint32_t commands;
    bool ends; /* after what is being written */
    bool paused;
    json_t *result; /* SYNCING */
    json_int_t id;
    uint64_t token;
    char *out;
    size_t out_bytes, out_sent;
    size_t in_bytes;
    char in[CONTROL_REQUEST_MAX_BYTES];
};

struct control_server {
    struct mediator *mediator;
    struct control_listener listener;
    uv_poll_t poll;
    uv_timer_t pause;
    unsigned handles;
    bool stopped;
    LIST_HEAD(, connection) connections;
    unsigned count;
    uint64_t last_token;
    uint64_t refusals_ns; /* the second in which one was logged */
};

static void on_connection(uv_poll_t *poll, int status, int events);
static void work(struct connection *connection);

/* --- the end of things ------------------------------------------------------------------- */

static void release_server(struct control_server *server)
{
    if (--server->handles == 0 && server->stopped)
        free(server);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct connection *connection = handle->data;
    struct control_server *server = connection->server;

    if (--connection->handles == 0)
        free(connection);
    release_server(server);
}

static void hold(struct connection *connection, uv_handle_t *handle)
{
    handle->data = connection;
    connection->handles++;
    connection->server->handles++;
}

static void drop(struct connection *connection)
{
    if (connection->state == CONNECTION_CLOSED)
        return;
    connection->state = CONNECTION_CLOSED;
    LIST_REMOVE(connection, in_server);
    connection->server->count--;
    json_decref(connection->result);
    free(connection->out);
    connection->result = NULL;
    connection->out = NULL;
    uv_close((uv_handle_t *)&connection->poll, on_handle_closed);
    uv_close((uv_handle_t *)&connection->deadline, on_handle_closed);
    uv_close((uv_handle_t *)&connection->pause, on_handle_closed);
    fd_close(&connection->fd);
}

/* --- answers --------------------------------------------------------------------------------- */

static void on_late(uv_timer_t *timer)
{
    drop(timer->data);
}

static void expect_within(struct connection *connection, uint64_t patience_ms, uv_timer_cb late)
{
    uv_timer_start(&connection->deadline, late, patience_ms, 0);
}

/* Writes what the socket takes; when all is written the next line may come. */
static void write_some(struct connection *connection)
{
    while (connection->out_sent < connection->out_bytes) {
        ssize_t sent =
            send(connection->fd, connection->out + connection->out_sent,
                 connection->out_bytes - connection->out_sent, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            uv_poll_start(&connection->poll, UV_WRITABLE, on_connection);
            return;
        }
        if (sent < 0) {
            drop(connection);
            return;
        }
        connection->out_sent += (size_t)sent;
        expect_within(connection, PATIENCE_MS, on_late);
    }
    free(connection->out);
    connection->out = NULL;
    uv_timer_stop(&connection->deadline);
    if (connection->ends) {
        drop(connection);
        return;
    }
    connection->state = CONNECTION_READING;
}

/* Takes over `answer`. */
static void send_answer(struct connection *connection, json_t *answer)
{
    size_t bytes = json_dumpb(answer, NULL, 0, JSON_COMPACT);

    connection->state = CONNECTION_WRITING;
    connection->out_sent = 0;
    connection->out_bytes = bytes + 1;
    connection->out = bytes > 0 && bytes < CONTROL_ANSWER_MAX_BYTES ? malloc(bytes + 1) : NULL;
    if (!connection->out) {
        log_error("control socket: an answer of %zu bytes cannot be sent", bytes);
        json_decref(answer);
        drop(connection);
        return;
    }
    json_dumpb(answer, connection->out, bytes, JSON_COMPACT);
    connection->out[bytes] = '\n';
    json_decref(answer);
    expect_within(connection, PATIENCE_MS, on_late);
    write_some(connection);
}

static void send_failure(struct connection *connection, json_int_t id, const char *code,
                         const char *message)
{
    send_answer(connection,
                json_pack("{s:i, s:I, s:b, s:{s:s, s:s}}", "version", CONTROL_VERSION, "id", id,
                          "ok", 0, "error", "code", code, "message", message));
}

static void send_result(struct connection *connection, json_int_t id, json_t *result)
{
    send_answer(connection, json_pack("{s:i, s:I, s:b, s:o}", "version", CONTROL_VERSION, "id", id,
                                      "ok", 1, "result", result));
}

/* --- a reload is done when the file channel has done its part -----------------------------------
 */

static void finish_sync(struct connection *connection, bool files_done)
{
    json_t *result = connection->result;

    connection->result = NULL;
    uv_timer_stop(&connection->deadline);
    json_object_set_new(result, "files_done", json_boolean(files_done));
    send_result(connection, connection->id, result);
}

static void on_sync_late(uv_timer_t *timer)
{
    struct connection *connection = timer->data;

    finish_sync(connection, false); /* the share hangs: its thread does it when it can */
    work(connection);
}

static void sync_files(struct connection *connection)
{
    struct control_server *server = connection->server;

    connection->token = ++server->last_token;
    channel_sync(server->mediator->channel, connection->token);
}

/* The answers of VMs that are removed come first. */
void control_server_removed(struct control_server *server)
{
    struct connection *connection;

    if (!server)
        return;
    LIST_FOREACH (connection, &server->connections, in_server) {
        if (connection->state == CONNECTION_SYNCING && connection->token == 0)
            sync_files(connection);
    }
}

static void wait_for_files(struct connection *connection, json_int_t id, json_t *result)
{

    connection->state = CONNECTION_SYNCING;
    connection->id = id;
    connection->result = result;
    connection->token = 0;
    uv_poll_stop(&connection->poll);
    expect_within(connection, SYNC_PATIENCE_MS, on_sync_late);
    if (LIST_EMPTY(&connection->server->mediator->removed))
        sync_files(connection);
}

void control_server_synced(struct control_server *server, uint64_t token)
{
    struct connection *connection, *next;

    if (!server)
        return;
    for (connection = LIST_FIRST(&server->connections); connection; connection = next) {
        next = LIST_NEXT(connection, in_server);
        if (connection->state != CONNECTION_SYNCING || connection->token != token)
            continue;
        finish_sync(connection, true);
        work(connection);
        return; /* a token is one connection's */
    }
}

/* --- lines ---------------------------------------------------------------------------------------
 */

static void run_command(struct connection *connection, json_int_t id, const char *command,
                        const json_t *arguments)
{
    struct mediator *mediator = connection->server->mediator;
    struct control_failure failure = {"internal", "the command failed without a reason"};
    bool sync = false;
    json_t *result = command_run(mediator, command, arguments, &sync, &failure);

    if (!result)
        send_failure(connection, id, failure.code, failure.message);
    else if (sync && mediator->channel)
        wait_for_files(connection, id, result);
    else
        send_result(connection, id, result);
}

/* What any line must have; the rest is the command's to judge. */
static void take_request(struct connection *connection, const json_t *request)
{
    const json_t *version = json_object_get(request, "version");
    const json_t *id = json_object_get(request, "id");
    const json_t *arguments = json_object_get(request, "arguments");
    const char *command = json_string_value(json_object_get(request, "command"));
    json_int_t number = json_integer_value(id);
    char text[192];

    if (json_integer_value(version) != CONTROL_VERSION) {
        snprintf(text, sizeof(text),
                 "this is vgpu-mediator %s, which speaks version %d of the control protocol: "
                 "\"version\":%d is expected",
                 VGPU_PACKAGE_VERSION, CONTROL_VERSION, CONTROL_VERSION);
        send_failure(connection, number, "version", text);
    } else if (!json_is_integer(id) || number < 1) {
        send_failure(connection, 0, "bad-request", "\"id\" must be a whole number from 1");
    } else if (!command) {
        send_failure(connection, number, "bad-request", "\"command\" must be a string");
    } else if (arguments && !json_is_object(arguments)) {
        send_failure(connection, number, "bad-request", "\"arguments\" must be an object");
    } else {
        run_command(connection, number, command, arguments);
    }
}

static void take_line(struct connection *connection, const char *line, size_t bytes)
{
    json_error_t wrong;
    json_t *request = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &wrong);
    char text[256];

    connection->active_ns = clock_monotonic_ns();
    if (!json_is_object(request)) {
        snprintf(text, sizeof(text), "a line is one JSON object: %s",
                 request ? "this is another value" : wrong.text);
        send_failure(connection, 0, "bad-json", text);
    } else {
        take_request(connection, request);
    }
    json_decref(request);
}

static void on_pause_over(uv_timer_t *timer)
{
    struct connection *connection = timer->data;

    connection->paused = false;
    work(connection);
}

static void pause_connection(struct connection *connection, uint64_t pause_ms)
{
    connection->paused = true;
    uv_poll_stop(&connection->poll);
    uv_timer_start(&connection->pause, on_pause_over, pause_ms, 0);
}

/* Counts; false when this second has none left. */
static bool may_command(struct connection *connection)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (now_ns - connection->second_ns >= NS_PER_S) {
        connection->second_ns = now_ns;
        connection->commands = 0;
    }
    return connection->commands++ < CONTROL_REQUESTS_PER_S;
}

/* Takes the first line out of the buffer and runs it.  False: there is none yet. */
static bool next_line(struct connection *connection)
{
    char *end = memchr(connection->in, '\n', connection->in_bytes);
    size_t bytes = end ? (size_t)(end - connection->in) : 0;

    if (!end && connection->in_bytes == sizeof(connection->in)) {
        connection->ends = true;
        send_failure(connection, 0, "too-long", "a line has at most 16384 bytes");
        return true;
    }
    if (!end)
        return false;
    if (!may_command(connection)) {
        connection->commands--;
        pause_connection(connection, PAUSE_MS);
        return false;
    }
    take_line(connection, connection->in, bytes);
    if (connection->state != CONNECTION_CLOSED) {
        connection->in_bytes -= bytes + 1;
        memmove(connection->in, end + 1, connection->in_bytes);
    }
    return true;
}

/* Runs lines that are here; a few a visit, so that nobody has the loop for long. */
static void work(struct connection *connection)
{
    int visits = LINES_A_VISIT;

    while (connection->state == CONNECTION_READING && visits-- > 0) {
        if (!next_line(connection))
            break;
    }
    if (connection->state != CONNECTION_READING || connection->paused)
        return;
    if (visits < 0) {
        pause_connection(connection, 0);
        return;
    }
    uv_poll_start(&connection->poll, UV_READABLE, on_connection);
    if (connection->in_bytes == 0)
        uv_timer_stop(&connection->deadline);
    else if (!uv_is_active((uv_handle_t *)&connection->deadline))
        expect_within(connection, PATIENCE_MS, on_late); /* the rest of the line */
}

static void read_some(struct connection *connection)
{
    ssize_t got = recv(connection->fd, connection->in + connection->in_bytes,
                       sizeof(connection->in) - connection->in_bytes, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        drop(connection);
        return;
    }
    connection->in_bytes += (size_t)got;
    work(connection);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct connection *connection = poll->data;

    (void)status, (void)events; /* a failed socket says so when it is used */
    if (connection->state == CONNECTION_READING) {
        read_some(connection);
    } else if (connection->state == CONNECTION_WRITING) {
        write_some(connection);
        if (connection->state == CONNECTION_READING)
            work(connection);
    }
}

/* --- who may connect
 * -------------------------------------------------------------------------------- */

/* As well as it goes without waiting. */
static void send_away(int fd, const char *code, const char *message)
{
    char text[512];
    int bytes = snprintf(text, sizeof(text),
                         "{\"version\":%d,\"id\":0,\"ok\":false,\"error\":{\"code\":\"%s\","
                         "\"message\":\"%s\"}}\n",
                         CONTROL_VERSION, code, message);

    if (send(fd, text, (size_t)bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_debug("control socket: %s", strerror(errno));
    fd_close(&fd);
}

static void report_stranger(struct control_server *server, const struct ucred *peer)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (now_ns - server->refusals_ns < NS_PER_S)
        return; /* one can try as often as one likes */
    server->refusals_ns = now_ns;
    log_warning("control socket: process %d of user %u is neither root's nor of group %s: refused",
                (int)peer->pid, (unsigned)peer->uid, server->mediator->config->control_group);
}

static void make_connection(struct control_server *server, int fd)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    uv_loop_t *loop = &server->mediator->loop;

    if (!connection || uv_poll_init(loop, &connection->poll, fd) < 0) {
        free(connection);
        fd_close(&fd);
        return;
    }
    connection->server = server;
    connection->fd = fd;
    connection->active_ns = clock_monotonic_ns();
    uv_timer_init(loop, &connection->deadline);
    uv_timer_init(loop, &connection->pause);
    hold(connection, (uv_handle_t *)&connection->poll);
    hold(connection, (uv_handle_t *)&connection->deadline);
    hold(connection, (uv_handle_t *)&connection->pause);
    LIST_INSERT_HEAD(&server->connections, connection, in_server);
    server->count++;
    uv_poll_start(&connection->poll, UV_READABLE, on_connection);
}

/* Whoever has been idle for longest, and for long, goes when there is no room. */
static bool make_room(struct control_server *server, uid_t uid)
{
    struct connection *connection, *oldest = NULL;
    /* Members of the group cannot lock the administrator out. */
    unsigned limit = uid == 0 || uid == geteuid() ? CONTROL_CONNECTIONS_MAX
                                                  : CONTROL_CONNECTIONS_MAX - CONTROL_RESERVED;

    if (server->count < limit)
        return true;
    LIST_FOREACH (connection, &server->connections, in_server) {
        if (connection->state == CONNECTION_READING &&
            (!oldest || connection->active_ns < oldest->active_ns))
            oldest = connection;
    }
    if (!oldest || clock_monotonic_ns() - oldest->active_ns < IDLE_NS)
        return false;
    drop(oldest);
    return true;
}

static void on_server(uv_poll_t *poll, int status, int events);

static void on_server_pause_over(uv_timer_t *timer)
{
    struct control_server *server = timer->data;

    uv_poll_start(&server->poll, UV_READABLE, on_server);
}

static bool accept_one(struct control_server *server)
{
    int fd = accept4(server->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ucred peer = {.uid = (uid_t)-1};

    if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        log_warning("control socket: cannot accept a connection: %s", strerror(errno));
        uv_poll_stop(&server->poll); /* no descriptors left: it would come back at once */
        uv_timer_start(&server->pause, on_server_pause_over, PAUSE_MS, 0);
    }
    if (fd < 0)
        return false;
    if (!control_is_allowed(&server->listener, fd, &peer)) {
        report_stranger(server, &peer);
        send_away(fd, "not-allowed",
                  "the control socket is for root and members of the mediator's control group");
    } else if (!make_room(server, peer.uid)) {
        send_away(fd, "busy", "all connections of the control socket are in use: try again");
    } else {
        make_connection(server, fd);
    }
    return true;
}

static void on_server(uv_poll_t *poll, int status, int events)
{
    struct control_server *server = poll->data;

    (void)status, (void)events;
    for (int i = 0; i < ACCEPTS_A_VISIT; i++) {
        if (!accept_one(server))
            return;
    }
}

/* --- start and stop
 * ------------------------------------------------------------------------------------ */

static void on_server_closed(uv_handle_t *handle)
{
    release_server(handle->data);
}

int control_server_start(struct mediator *mediator, struct vgpu_error *error)
{
    struct control_server *server = calloc(1, sizeof(*server));

    if (!server)
        return error_set(error, ENOMEM, "no memory for the control socket");
    server->mediator = mediator;
    LIST_INIT(&server->connections);
    if (control_listen(&server->listener, mediator->config->run_dir,
                       mediator->config->control_group, error) < 0) {
        free(server);
        return -1;
    }
    uv_poll_init(&mediator->loop, &server->poll, server->listener.fd);
    uv_timer_init(&mediator->loop, &server->pause);
    server->poll.data = server->pause.data = server;
    server->handles = 2;
    uv_poll_start(&server->poll, UV_READABLE, on_server);
    mediator->control = server;
    return 0;
}

gid_t control_server_group(const struct control_server *server)
{
    return server->listener.group;
}

void control_server_stop(struct control_server *server)
{
    if (!server)
        return;
    server->stopped = true;
    while (!LIST_EMPTY(&server->connections))
        drop(LIST_FIRST(&server->connections)); /* NOLINT: the analyzer is lost in the macro */
    uv_close((uv_handle_t *)&server->poll, on_server_closed);
    uv_close((uv_handle_t *)&server->pause, on_server_closed);
    control_listen_end(&server->listener);
}
