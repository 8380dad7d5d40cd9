/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's half: one line out, one line back, each within its time.
 *
 *   connect ─▶ hello ─▶ call ─▶ call ─▶ ... ─▶ close
 *                        └ cut off, late, too long, not ours: the connection ends,
 *                          as what comes next could be the answer to anything
 *
 * The socket never blocks; poll(2) waits.  A peer that sends a byte now and then
 * gains no time by it: the deadline is the call's.
 */
#include "control/control.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HELLO_TIMEOUT_MS 5000
#define CONNECT_PATIENCE_MS 2000 /* while the mediator's queue is full */
#define CONNECT_PAUSE_MS 10
#define READ_BYTES 65536u

struct control {
    int fd; /* -1: ended by a failure */
    char *path;
    json_int_t last_id;
    char *line; /* what came of the answer */
    size_t bytes, room;
};

/* --- connecting -------------------------------------------------------------------- */

static int cannot_connect(const char *path, int code, struct vgpu_error *error)
{
    switch (code) {
    case ENOENT:
    case ECONNREFUSED:
        return error_set(error, code,
                         "no vgpu-mediator listens at '%s': start it (systemctl start "
                         "vgpu-mediator), or name the socket of the one that runs",
                         path);
    case EACCES:
        return error_set(error, EACCES,
                         "'%s' is not for this user: root and members of the group vgpu may "
                         "talk to the mediator",
                         path);
    case EAGAIN:
        return error_set(error, ETIMEDOUT, "the mediator at '%s' does not take connections now",
                         path);
    default:
        return error_set(error, code, "cannot connect to '%s': %s", path, strerror(code));
    }
}

static int connect_patiently(int fd, const struct sockaddr_un *address)
{
    const struct timespec pause = {.tv_nsec = (long)(CONNECT_PAUSE_MS * NS_PER_MS)};

    for (int tries = 0; tries < CONNECT_PATIENCE_MS / CONNECT_PAUSE_MS; tries++) {
        if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return errno;
        nanosleep(&pause, NULL);
    }
    return EAGAIN;
}

static int open_socket(const char *path, struct vgpu_error *error)
{
    struct sockaddr_un address;
    int fd, directory_fd, code;

    if (control_address(path, &address, &directory_fd, error) < 0)
        return error && error->code == ENOENT ? cannot_connect(path, ENOENT, error) : -1;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    code = fd < 0 ? errno : connect_patiently(fd, &address);
    fd_close(&directory_fd);
    if (code == 0)
        return fd;
    fd_close(&fd);
    return cannot_connect(path, code, error);
}

/* --- one line each way ---------------------------------------------------------------- */

static uint64_t deadline_after(int timeout_ms)
{
    return clock_monotonic_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * NS_PER_MS;
}

static int wait_for(struct control *control, short events, uint64_t deadline_ns,
                    struct vgpu_error *error)
{
    struct pollfd wait = {.fd = control->fd, .events = events};

    for (;;) {
        uint64_t now_ns = clock_monotonic_ns();
        uint64_t left_ms = now_ns < deadline_ns ? (deadline_ns - now_ns) / NS_PER_MS + 1 : 0;
        int ready;

        if (left_ms == 0)
            return error_set(error, ETIMEDOUT, "the mediator at '%s' did not answer in time",
                             control->path);
        ready = poll(&wait, 1, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR && errno != EAGAIN)
            return error_set_errno(error, "cannot wait for the mediator at '%s'", control->path);
    }
}

static int hung_up(const struct control *control, struct vgpu_error *error)
{
    return error_set(error, ECONNRESET,
                     "the mediator at '%s' ended the connection before it had answered",
                     control->path);
}

static int send_line(struct control *control, const char *text, size_t bytes, uint64_t deadline_ns,
                     struct vgpu_error *error)
{
    while (bytes > 0) {
        ssize_t sent = send(control->fd, text, bytes, MSG_NOSIGNAL);

        if (sent > 0) {
            text += sent;
            bytes -= (size_t)sent;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return 0; /* it may have said why: the answer is read all the same */
        } else if (errno != EAGAIN && errno != EINTR) {
            return error_set_errno(error, "cannot write to '%s'", control->path);
        } else if (wait_for(control, POLLOUT, deadline_ns, error) < 0) {
            return -1;
        }
    }
    return 0;
}

static int make_room(struct control *control, struct vgpu_error *error)
{
    size_t room = control->room ? control->room : READ_BYTES;
    char *line;

    if (control->bytes >= CONTROL_ANSWER_MAX_BYTES)
        return error_set(error, EMSGSIZE, "the answer of '%s' is longer than %u bytes",
                         control->path, CONTROL_ANSWER_MAX_BYTES);
    while (room - control->bytes < READ_BYTES)
        room *= 2;
    if (room == control->room)
        return 0;
    line = realloc(control->line, room);
    if (!line)
        return error_set(error, ENOMEM, "no memory for the answer of '%s'", control->path);
    control->line = line;
    control->room = room;
    return 0;
}

/* Fills control->line with exactly one line; *ret_bytes is without its newline. */
static int receive_line(struct control *control, uint64_t deadline_ns, size_t *ret_bytes,
                        struct vgpu_error *error)
{
    control->bytes = 0;
    for (;;) {
        const char *end;
        ssize_t got;

        if (make_room(control, error) < 0)
            return -1;
        got = recv(control->fd, control->line + control->bytes, control->room - control->bytes, 0);
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            return hung_up(control, error);
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return error_set_errno(error, "cannot read from '%s'", control->path);
        if (got < 0) {
            if (wait_for(control, POLLIN, deadline_ns, error) < 0)
                return -1;
            continue;
        }
        end = memchr(control->line + control->bytes, '\n', (size_t)got);
        control->bytes += (size_t)got;
        if (!end)
            continue;
        if (end != control->line + control->bytes - 1)
            return error_set(error, EPROTO, "'%s' answered more than it was asked", control->path);
        *ret_bytes = control->bytes - 1;
        return 0;
    }
}

/* --- what the lines say ------------------------------------------------------------------ */

/* Before a refused connection is closed, the mediator says why, to nobody's command. */
static int refused(const struct control *control, const char *code, const char *message,
                   char ret_code[64], struct vgpu_error *error)
{
    if (ret_code)
        text_copy(ret_code, 64, code);
    if (strcmp(code, "not-allowed") == 0)
        return error_set(error, EACCES, "%s", message);
    if (strcmp(code, "version") == 0)
        return error_set(error, EPROTO, "the mediator at '%s' speaks another version: %s",
                         control->path, message);
    if (strcmp(code, "busy") == 0)
        return error_set(error, EBUSY, "%s", message);
    return error_set(error, EREMOTEIO, "%s", message);
}

/* Takes `answer` apart.  Returns 0, -1, or -2 when it is no answer to this command. */
static int read_answer(struct control *control, json_t *answer, json_t **ret_result,
                       char ret_code[64], struct vgpu_error *error)
{
    json_int_t version = json_integer_value(json_object_get(answer, "version"));
    json_int_t id = json_integer_value(json_object_get(answer, "id"));
    json_t *ok = json_object_get(answer, "ok"), *result = json_object_get(answer, "result");
    json_t *failure = json_object_get(answer, "error");
    const char *code = json_string_value(json_object_get(failure, "code"));
    const char *message = json_string_value(json_object_get(failure, "message"));

    if (version != CONTROL_VERSION) {
        error_fill(error, EPROTO,
                   "'%s' answers in version %lld of the control protocol, and this program speaks "
                   "%d: use the vgpu-admin of the mediator's release",
                   control->path, (long long)version, CONTROL_VERSION);
        return -2;
    }
    if (json_is_false(ok) && code && message && (id == control->last_id || id == 0)) {
        refused(control, code, message, ret_code, error);
        return id == 0 ? -2 : -1;
    }
    if (id != control->last_id || !json_is_true(ok) || !result) {
        error_fill(error, EPROTO, "what '%s' sent is no answer to this command", control->path);
        return -2;
    }
    *ret_result = json_incref(result);
    return 0;
}

/* Returns the request as a line that the caller frees. */
static char *write_request(struct control *control, const char *command, json_t *arguments,
                           size_t *ret_bytes, struct vgpu_error *error)
{
    json_t *request = json_pack("{s:i, s:I, s:s, s:O*}", "version", CONTROL_VERSION, "id",
                                ++control->last_id, "command", command, "arguments", arguments);
    char *line = request ? json_dumps(request, JSON_COMPACT) : NULL;
    size_t bytes = line ? strlen(line) : 0;

    json_decref(request);
    if (!line) {
        error_fill(error, EINVAL, "command '%s' cannot be written as JSON", command);
    } else if (bytes + 1 > CONTROL_REQUEST_MAX_BYTES) {
        error_fill(error, E2BIG, "command '%s' has %zu bytes, and the mediator takes %u", command,
                   bytes + 1, CONTROL_REQUEST_MAX_BYTES);
        free(line);
        line = NULL;
    } else {
        line[bytes] = '\n'; /* in the place of its NUL */
        *ret_bytes = bytes + 1;
    }
    return line;
}

static int exchange(struct control *control, const char *line, size_t bytes, int timeout_ms,
                    json_t **ret_answer, struct vgpu_error *error)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    size_t length;
    json_error_t wrong;

    if (send_line(control, line, bytes, deadline_ns, error) < 0 ||
        receive_line(control, deadline_ns, &length, error) < 0)
        return -1;
    *ret_answer = json_loadb(control->line, length, JSON_REJECT_DUPLICATES, &wrong);
    if (!*ret_answer)
        return error_set(error, EPROTO, "what '%s' sent is no JSON: %s", control->path, wrong.text);
    return 0;
}

int control_call(struct control *control, const char *command, json_t *arguments, int timeout_ms,
                 json_t **ret_result, char code[64], struct vgpu_error *error)
{
    json_t *answer;
    size_t bytes = 0;
    char *line;
    int result;

    if (code)
        code[0] = '\0';
    if (control->fd < 0)
        return error_set(error, ENOTCONN, "the connection to '%s' was ended by an earlier failure",
                         control->path);
    line = write_request(control, command, arguments, &bytes, error);
    if (!line)
        return -1;
    result = exchange(control, line, bytes, timeout_ms, &answer, error);
    free(line);
    if (result < 0) {
        fd_close(&control->fd);
        return -1;
    }
    result = read_answer(control, answer, ret_result, code, error);
    json_decref(answer);
    if (result == -2)
        fd_close(&control->fd);
    return result == 0 ? 0 : -1;
}

/* --- life ----------------------------------------------------------------------------------- */

int control_connect(const char *path, struct control **ret_control, struct vgpu_error *error)
{
    struct control *control = calloc(1, sizeof(*control));
    json_t *hello;

    if (control)
        control->path = strdup(path);
    if (!control || !control->path) {
        free(control);
        return error_set(error, ENOMEM, "no memory for a connection to '%s'", path);
    }
    control->fd = open_socket(path, error);
    if (control->fd < 0 ||
        control_call(control, "hello", NULL, HELLO_TIMEOUT_MS, &hello, NULL, error) < 0) {
        control_close(control);
        return -1;
    }
    json_decref(hello);
    *ret_control = control;
    return 0;
}

void control_close(struct control *control)
{
    if (!control)
        return;
    fd_close(&control->fd);
    free(control->line);
    free(control->path);
    free(control);
}
