/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /metrics, by libmicrohttpd without a thread: the caller's loop runs it.
 *
 *   its epoll descriptor, its timeout ─▶ MHD_run() ─▶ on_request() ─▶ suspended ─▶ wanted()
 *                                                                          │
 *   metrics_server_answer() ─▶ one response for all who wait ─▶ resumed ◀──┘
 *
 * Clients may be hostile: a connection is for one request of at most MEMORY_BYTES of headers,
 * is closed when nothing came for idle_s, and in any case patience_ms after it began; there are
 * METRICS_CONNECTIONS_MAX of them a socket, and whoever takes the last place costs the oldest one
 * that has not asked for anything its own.
 */
#include "metrics/metrics.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>

#define MEMORY_BYTES 8192u
#define IDLE_S 10u
#define PATIENCE_MS 30000u

static const char about[] = "vgpu-mediator: its numbers are at /metrics\n";
static const char no_such_page[] = "there is no such page: /metrics is all\n";
static const char no_such_method[] = "only GET and HEAD: nothing can be changed here\n";
static const char no_memory[] = "no memory to tell the numbers: try again\n";

/* From its accept(2) on. */
struct connection {
    struct listener *listener;
    struct MHD_Connection *http;
    int fd;
    uint64_t since_ns;
    bool has_asked; /* the headers were there */
    bool ends;      /* it was shut down */
    bool asks;      /* suspended, until there is a text */
    bool to_tell;   /* there is one */
    LIST_ENTRY(connection) in_listener;
};

struct listener {
    struct metrics_server *server;
    struct MHD_Daemon *daemon;
    uv_poll_t poll;
    uv_timer_t timer; /* of the daemon */
    uv_timer_t sweep; /* of connections that are here for long */
    LIST_HEAD(, connection) connections;
    bool has_ended; /* one of them, since the daemon last looked at its socket */
};

struct metrics_server {
    struct metrics_server_config config;
    struct listener listeners[METRICS_LISTENERS_MAX];
    unsigned listener_count;
    unsigned handles;
    bool wanted;                   /* a text is being made */
    struct MHD_Response *response; /* the text that those who wait are told now */
};

static void run(struct listener *listener);

/* --- requests ------------------------------------------------------------------------------- */

static enum MHD_Result respond(struct MHD_Connection *http, unsigned status,
                               struct MHD_Response *response, const char *type)
{
    enum MHD_Result result;

    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    result = MHD_queue_response(http, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result say(struct MHD_Connection *http, unsigned status, const char *words)
{
    return respond(
        http, status,
        MHD_create_response_from_buffer(strlen(words), (void *)words, MHD_RESPMEM_PERSISTENT),
        "text/plain");
}

/* Its text is made, and told when the connection goes on. */
static enum MHD_Result ask(struct connection *connection)
{
    struct metrics_server *server = connection->listener->server;

    connection->asks = true;
    MHD_suspend_connection(connection->http);
    if (server->wanted)
        return MHD_YES;
    server->wanted = true;
    server->config.wanted(server->config.context);
    return MHD_YES;
}

static enum MHD_Result tell(struct connection *connection)
{
    struct metrics_server *server = connection->listener->server;

    connection->to_tell = false;
    return server->response ? MHD_queue_response(connection->http, MHD_HTTP_OK, server->response)
                            : say(connection->http, MHD_HTTP_SERVICE_UNAVAILABLE, no_memory);
}

/* Called when the headers are there, again for what follows them, and when a suspended
 * connection goes on. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *http, const char *path,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_bytes, void **request)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(http, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct connection *connection = info ? info->socket_context : NULL;

    (void)context, (void)version, (void)upload, (void)upload_bytes;
    if (!connection)
        return MHD_NO;
    connection->has_asked = true;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return say(http, MHD_HTTP_METHOD_NOT_ALLOWED, no_such_method);
    if (strcmp(path, "/") == 0)
        return say(http, MHD_HTTP_OK, about);
    if (strcmp(path, "/metrics") != 0)
        return say(http, MHD_HTTP_NOT_FOUND, no_such_page);
    if (connection->to_tell)
        return tell(connection);
    if (!*request) {
        *request = connection; /* a body would follow: it is not for us, and is not read */
        return MHD_YES;
    }
    if (*upload_bytes > 0)
        return MHD_NO;
    return ask(connection);
}

/* --- connections ------------------------------------------------------------------------------ */

/* The library sees a socket that was shut down, and lets go of it. */
static void end(struct connection *connection)
{
    connection->ends = true;
    shutdown(connection->fd, SHUT_RDWR);
}

/* So that the next one need not wait until those who are silent are out of time.  `newest` has had
 * no time to ask. */
static void make_room(struct listener *listener, const struct connection *newest)
{
    struct connection *connection, *oldest = NULL;
    unsigned count = 0;

    LIST_FOREACH (connection, &listener->connections, in_listener) {
        count++;
        if (connection != newest && !connection->has_asked && !connection->ends)
            oldest = connection; /* the list begins with the newest */
    }
    if (count >= METRICS_CONNECTIONS_MAX && oldest)
        end(oldest);
}

static void on_connection(void *context, struct MHD_Connection *http, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(http, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct listener *listener = context;
    struct connection *connection = *socket_context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        connection = calloc(1, sizeof(*connection));
        if (!connection)
            return; /* its request is refused */
        *connection = (struct connection){.listener = listener,
                                          .http = http,
                                          .fd = info ? info->connect_fd : -1,
                                          .since_ns = clock_monotonic_ns()};
        LIST_INSERT_HEAD(&listener->connections, connection, in_listener);
        *socket_context = connection;
        make_room(listener, connection);
    } else if (connection) {
        LIST_REMOVE(connection, in_listener);
        listener->has_ended = true;
        free(connection);
        *socket_context = NULL;
    }
}

static void on_sweep(uv_timer_t *timer)
{
    struct listener *listener = timer->data;
    uint64_t patience_ns = listener->server->config.patience_ms * NS_PER_MS;
    struct connection *connection;

    LIST_FOREACH (connection, &listener->connections, in_listener) {
        if (clock_monotonic_ns() - connection->since_ns >= patience_ns && !connection->asks)
            end(connection);
    }
    run(listener);
}

/* --- the loop -------------------------------------------------------------------------------- */

static void on_timer(uv_timer_t *timer)
{
    run(timer->data);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    (void)status, (void)events;
    run(poll->data);
}

static void run(struct listener *listener)
{
    uint64_t sweep_ms = listener->server->config.patience_ms / 4 + 1;
    unsigned long long timeout_ms;

    /* Full, it does not look at its socket, and begins again no sooner than in the next run. */
    do {
        listener->has_ended = false;
        MHD_run(listener->daemon);
    } while (listener->has_ended);
    if (MHD_get_timeout(listener->daemon, &timeout_ms) == MHD_YES)
        uv_timer_start(&listener->timer, on_timer, timeout_ms, 0);
    else
        uv_timer_stop(&listener->timer);
    if (LIST_EMPTY(&listener->connections))
        uv_timer_stop(&listener->sweep);
    else if (!uv_is_active((uv_handle_t *)&listener->sweep))
        uv_timer_start(&listener->sweep, on_sweep, sweep_ms, sweep_ms);
}

/* All who wait go on: to be told, or to their end. */
static void resume(struct listener *listener, bool told)
{
    struct connection *connection;

    LIST_FOREACH (connection, &listener->connections, in_listener) {
        if (!connection->asks)
            continue;
        connection->asks = false;
        connection->to_tell = told;
        MHD_resume_connection(connection->http);
    }
}

static struct MHD_Response *make_response(struct metrics_text *text)
{
    struct MHD_Response *response =
        text->failed
            ? NULL
            : MHD_create_response_from_buffer(text->bytes, text->data, MHD_RESPMEM_MUST_FREE);

    if (!response) {
        metrics_text_clear(text);
        return NULL;
    }
    *text = (struct metrics_text){0}; /* the response's */
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, METRICS_TEXT_TYPE);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    return response;
}

void metrics_server_answer(struct metrics_server *server, struct metrics_text *text)
{
    server->wanted = false;
    server->response = make_response(text);
    for (unsigned i = 0; i < server->listener_count; i++) {
        resume(&server->listeners[i], true);
        run(&server->listeners[i]); /* those that were resumed take it now */
    }
    if (server->response)
        MHD_destroy_response(server->response); /* the connections keep it while they need it */
    server->response = NULL;
}

/* --- start and stop ----------------------------------------------------------------------------
 */

static struct MHD_Daemon *start_daemon(struct listener *listener, int fd)
{
    return MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request,
                            listener, MHD_OPTION_LISTEN_SOCKET, (MHD_socket)fd,
                            MHD_OPTION_CONNECTION_LIMIT, METRICS_CONNECTIONS_MAX,
                            MHD_OPTION_CONNECTION_TIMEOUT, listener->server->config.idle_s,
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MEMORY_BYTES,
                            MHD_OPTION_NOTIFY_CONNECTION, on_connection, listener, MHD_OPTION_END);
}

static void hold(struct metrics_server *server, uv_handle_t *handle, struct listener *listener)
{
    handle->data = listener;
    server->handles++;
}

static int start_listener(struct metrics_server *server, uv_loop_t *loop, int fd,
                          struct vgpu_error *error)
{
    struct listener *listener = &server->listeners[server->listener_count];
    const union MHD_DaemonInfo *info;

    LIST_INIT(&listener->connections);
    listener->server = server;
    listener->daemon = start_daemon(listener, fd);
    if (!listener->daemon)
        return error_set(error, EIO, "libmicrohttpd could not be started");
    info = MHD_get_daemon_info(listener->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info || uv_poll_init(loop, &listener->poll, info->epoll_fd) < 0) {
        MHD_quiesce_daemon(listener->daemon); /* the socket stays the caller's */
        MHD_stop_daemon(listener->daemon);
        return error_set(error, EIO, "libmicrohttpd cannot be run in a loop of ours");
    }
    uv_timer_init(loop, &listener->timer);
    uv_timer_init(loop, &listener->sweep);
    hold(server, (uv_handle_t *)&listener->poll, listener);
    hold(server, (uv_handle_t *)&listener->timer, listener);
    hold(server, (uv_handle_t *)&listener->sweep, listener);
    uv_poll_start(&listener->poll, UV_READABLE, on_poll);
    server->listener_count++;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    struct listener *listener = handle->data;
    struct metrics_server *server = listener->server;

    if (--server->handles == 0)
        free(server);
}

/* Its handles are closed before what they watch is. */
static void stop_listener(struct listener *listener, bool keep_socket)
{
    uv_close((uv_handle_t *)&listener->poll, on_closed);
    uv_close((uv_handle_t *)&listener->timer, on_closed);
    uv_close((uv_handle_t *)&listener->sweep, on_closed);
    resume(listener, false); /* the library wants none suspended */
    if (keep_socket)
        MHD_quiesce_daemon(listener->daemon);
    MHD_stop_daemon(listener->daemon);
}

static void stop(struct metrics_server *server, bool keep_sockets)
{
    if (server->listener_count == 0) {
        free(server);
        return;
    }
    for (unsigned i = 0; i < server->listener_count; i++)
        stop_listener(&server->listeners[i], keep_sockets);
}

int metrics_server_start(uv_loop_t *loop, const struct metrics_server_config *config,
                         struct metrics_server **ret_server, struct vgpu_error *error)
{
    struct metrics_server *server = calloc(1, sizeof(*server));

    if (!server)
        return error_set(error, ENOMEM, "no memory to tell numbers");
    server->config = *config;
    if (server->config.patience_ms == 0)
        server->config.patience_ms = PATIENCE_MS;
    if (server->config.idle_s == 0)
        server->config.idle_s = IDLE_S;
    for (unsigned i = 0; i < config->listener_count; i++) {
        if (start_listener(server, loop, config->listeners[i], error) < 0) {
            stop(server, true);
            return -1;
        }
    }
    *ret_server = server;
    return 0;
}

void metrics_server_stop(struct metrics_server *server)
{
    if (server)
        stop(server, false);
}
