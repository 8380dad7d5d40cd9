/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's half of the control socket against a server that answers as it is
 * told: too late, too long, cut off, something else.
 */
#include "unit.h"

#include "control/control.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define HELLO "{\"version\":1,\"id\":1,\"ok\":true,\"result\":{\"version\":1}}\n"
#define HANG_UP NULL

/* One connection's script: what is sent after each line that comes. */
struct server {
    char *directory;
    char path[300];
    int listener;
    pthread_t thread;
    const char *const *answers; /* ended by HANG_UP */
    size_t endless;             /* after the script: so many bytes without a line's end */
    char lines[8][CONTROL_REQUEST_MAX_BYTES];
    unsigned count;
    bool silent; /* holds the connection open instead of hanging up */
};

static bool read_line(int fd, char *line)
{
    size_t used = 0;

    while (used < CONTROL_REQUEST_MAX_BYTES - 1 && read(fd, line + used, 1) == 1) {
        if (line[used] == '\n') {
            line[used] = '\0';
            return true;
        }
        used++;
    }
    return false;
}

static void pour(int fd, size_t bytes)
{
    static const char block[65536] = "";

    while (bytes > 0 && send(fd, block, sizeof(block), MSG_NOSIGNAL) > 0)
        bytes -= bytes < sizeof(block) ? bytes : sizeof(block);
}

static void *serve(void *argument)
{
    struct server *server = argument;
    int fd = accept(server->listener, NULL, NULL);
    char byte;

    for (unsigned i = 0; server->answers[i] != HANG_UP; i++) {
        if (!read_line(fd, server->lines[server->count]))
            break;
        server->count++;
        send(fd, server->answers[i], strlen(server->answers[i]), MSG_NOSIGNAL);
    }
    if (server->endless || server->silent)
        read_line(fd, server->lines[7]);
    pour(fd, server->endless);
    while (server->silent && read(fd, &byte, 1) == 1)
        continue;
    close(fd);
    return NULL;
}

static int make(void **state)
{
    struct server *server = calloc(1, sizeof(*server));

    server->directory = unit_temporary_directory();
    snprintf(server->path, sizeof(server->path), "%s/control.sock", server->directory);
    server->listener = -1;
    *state = server;
    return 0;
}

static int discard(void **state)
{
    struct server *server = *state;

    if (server->listener >= 0) {
        pthread_join(server->thread, NULL);
        close(server->listener);
    }
    unit_remove_directory(server->directory);
    free(server);
    return 0;
}

static void start(struct server *server, const char *const *answers)
{
    struct sockaddr_un address;
    struct vgpu_error error;
    int directory_fd;

    assert_int_equal(control_address(server->path, &address, &directory_fd, &error), 0);
    server->answers = answers;
    server->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(server->listener, 1), 0);
    fd_close(&directory_fd);
    pthread_create(&server->thread, NULL, serve, server);
}

static struct control *connect_to(struct server *server)
{
    struct control *control = NULL;
    struct vgpu_error error = {.message = ""};

    control_connect(server->path, &control, &error);
    assert_string_equal(error.message, "");
    return control;
}

/* Connects, and expects the second command to fail so. */
static void expect_failure(struct server *server, int code, const char *words)
{
    struct control *control = connect_to(server);
    struct vgpu_error error;
    json_t *result = NULL;
    char text[64];

    assert_int_equal(control_call(control, "status", NULL, 500, &result, text, &error), -1);
    assert_int_equal(error.code, code);
    assert_non_null(strstr(error.message, words));
    assert_null(result);
    /* What comes next could be the answer to anything. */
    assert_int_equal(control_call(control, "status", NULL, 500, &result, text, &error), -1);
    assert_int_equal(error.code, ENOTCONN);
    control_close(control);
}

static void expect_no_connection(struct server *server, int code, const char *words)
{
    struct control *control = NULL;
    struct vgpu_error error;

    assert_int_equal(control_connect(server->path, &control, &error), -1);
    assert_int_equal(error.code, code);
    assert_non_null(strstr(error.message, words));
    assert_null(control);
}

/* --- good ------------------------------------------------------------------------------- */

static void a_command_has_its_result(void **state)
{
    static const char *const answers[] = {
        HELLO, "{\"version\":1,\"id\":2,\"ok\":true,\"result\":{\"vms\":[1,2]}}\n", HANG_UP};
    struct server *server = *state;
    json_t *arguments = json_pack("{s:i}", "vm_id", 7), *result;
    struct control *control;
    struct vgpu_error error;

    start(server, answers);
    control = connect_to(server);
    assert_int_equal(control_call(control, "status", arguments, 5000, &result, NULL, &error), 0);
    assert_int_equal(json_array_size(json_object_get(result, "vms")), 2);
    assert_string_equal(server->lines[0], "{\"version\":1,\"id\":1,\"command\":\"hello\"}");
    assert_string_equal(server->lines[1], "{\"version\":1,\"id\":2,\"command\":\"status\","
                                          "\"arguments\":{\"vm_id\":7}}");
    json_decref(result);
    json_decref(arguments);
    control_close(control);
}

static void what_the_mediator_refuses_is_its_message_and_its_code(void **state)
{
    static const char *const answers[] = {
        HELLO,
        "{\"version\":1,\"id\":2,\"ok\":false,\"error\":{\"code\":\"no-such-vm\",\"message\":"
        "\"no VM 9\"}}\n",
        "{\"version\":1,\"id\":3,\"ok\":true,\"result\":{}}\n", HANG_UP};
    struct server *server = *state;
    struct control *control;
    struct vgpu_error error;
    json_t *result = NULL;
    char code[64];

    start(server, answers);
    control = connect_to(server);
    assert_int_equal(control_call(control, "status", NULL, 5000, &result, code, &error), -1);
    assert_int_equal(error.code, EREMOTEIO);
    assert_string_equal(error.message, "no VM 9");
    assert_string_equal(code, "no-such-vm");
    assert_null(result);
    assert_int_equal(control_call(control, "status", NULL, 5000, &result, code, &error), 0);
    assert_string_equal(code, "");
    json_decref(result);
    control_close(control);
}

static void a_path_longer_than_an_address_goes_by_its_directory(void **state)
{
    static const char *const answers[] = {HELLO, HANG_UP};
    struct server *server = *state;
    struct vgpu_error error;

    snprintf(server->path, sizeof(server->path), "%s/%0100d", server->directory, 1);
    assert_int_equal(fd_make_directories(server->path, 0700, &error), 0);
    strcat(server->path, "/control.sock");
    start(server, answers);
    control_close(connect_to(server));
}

/* --- nobody there, or not for us ------------------------------------------------------------ */

static void without_a_mediator_the_error_says_how_to_start_it(void **state)
{
    struct server *server = *state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    expect_no_connection(server, ENOENT, "systemctl start vgpu-mediator");
    text_copy(address.sun_path, sizeof(address.sun_path), server->path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    expect_no_connection(server, ECONNREFUSED, "systemctl start vgpu-mediator");
    close(fd);
}

/* In a child that is nobody: root may use every socket. */
static void a_socket_that_is_not_ours_to_use_says_for_whom_it_is(void **state)
{
    struct server *server = *state;
    struct control *control = NULL;
    struct vgpu_error error = {.message = ""};
    int status = 0;
    pid_t child;

    assert_int_equal(chmod(server->directory, 0), 0);
    child = fork();
    if (child == 0) {
        if (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0)
            _exit(2);
        control_connect(server->path, &control, &error);
        _exit(!control && error.code == EACCES && strstr(error.message, "group vgpu") ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(chmod(server->directory, 0700), 0);
    assert_int_equal(status, 0);
}

static void who_is_sent_away_is_told_why(void **state)
{
    static const char *const answers[] = {
        "{\"version\":1,\"id\":0,\"ok\":false,\"error\":{\"code\":\"not-allowed\",\"message\":"
        "\"for root\"}}\n",
        HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_no_connection(server, EACCES, "for root");
}

static void a_mediator_without_room_is_busy(void **state)
{
    static const char *const answers[] = {"{\"version\":1,\"id\":0,\"ok\":false,\"error\":{"
                                          "\"code\":\"busy\",\"message\":\"full\"}}\n",
                                          HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_no_connection(server, EBUSY, "full");
}

static void another_version_is_named(void **state)
{
    static const char *const answers[] = {"{\"version\":2,\"id\":1,\"ok\":true,\"result\":{}}\n",
                                          HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_no_connection(server, EPROTO, "version 2");
}

static void a_mediator_that_does_not_take_this_version_is_named(void **state)
{
    static const char *const answers[] = {
        "{\"version\":1,\"id\":1,\"ok\":false,\"error\":{\"code\":\"version\",\"message\":"
        "\"speaks version 3\"}}\n",
        HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_no_connection(server, EPROTO, "speaks version 3");
}

/* --- answers that are none ------------------------------------------------------------------- */

static void an_answer_that_is_cut_off_is_an_error(void **state)
{
    static const char *const answers[] = {HELLO, "{\"version\":1,\"id\":2,\"ok\":tr", HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_failure(server, ECONNRESET, "before it had answered");
}

static void an_answer_that_does_not_come_is_an_error_in_time(void **state)
{
    static const char *const answers[] = {HELLO, HANG_UP};
    struct server *server = *state;

    server->silent = true;
    start(server, answers);
    expect_failure(server, ETIMEDOUT, "did not answer in time");
}

static void an_answer_without_end_is_an_error(void **state)
{
    static const char *const answers[] = {HELLO, HANG_UP};
    struct server *server = *state;
    struct control *control;
    struct vgpu_error error;
    json_t *result;

    server->endless = CONTROL_ANSWER_MAX_BYTES + (1u << 20);
    start(server, answers);
    control = connect_to(server);
    assert_int_equal(control_call(control, "status", NULL, 30000, &result, NULL, &error), -1);
    assert_int_equal(error.code, EMSGSIZE);
    control_close(control);
}

static void two_answers_to_one_command_are_an_error(void **state)
{
    static const char *const answers[] = {HELLO, HELLO HELLO, HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_failure(server, EPROTO, "more than it was asked");
}

static void an_answer_to_another_command_is_an_error(void **state)
{
    static const char *const answers[] = {
        HELLO, "{\"version\":1,\"id\":7,\"ok\":true,\"result\":{}}\n", HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_failure(server, EPROTO, "no answer to this command");
}

static void what_is_no_json_is_an_error(void **state)
{
    static const char *const answers[] = {HELLO, "HTTP/1.1 400 Bad Request\n", HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_failure(server, EPROTO, "no JSON");
}

static void an_answer_with_neither_result_nor_error_is_an_error(void **state)
{
    static const char *const answers[] = {HELLO, "{\"version\":1,\"id\":2,\"ok\":true}\n", HANG_UP};
    struct server *server = *state;

    start(server, answers);
    expect_failure(server, EPROTO, "no answer to this command");
}

static void a_command_that_is_too_long_is_not_sent(void **state)
{
    static const char *const answers[] = {
        HELLO, "{\"version\":1,\"id\":3,\"ok\":true,\"result\":{}}\n", HANG_UP};
    struct server *server = *state;
    struct control *control;
    struct vgpu_error error;
    json_t *result, *arguments;
    char *text = calloc(1, CONTROL_REQUEST_MAX_BYTES + 1);

    start(server, answers);
    control = connect_to(server);
    memset(text, 'x', CONTROL_REQUEST_MAX_BYTES);
    arguments = json_pack("{s:s}", "x", text);
    assert_int_equal(control_call(control, "status", arguments, 500, &result, NULL, &error), -1);
    assert_int_equal(error.code, E2BIG);
    assert_int_equal(control_call(control, "status", NULL, 5000, &result, NULL, &error), 0);
    json_decref(result);
    json_decref(arguments);
    free(text);
    control_close(control);
}

static void nothing_is_closed_twice(void **state)
{
    (void)state;
    control_close(NULL);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, make, discard)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_command_has_its_result),
        CASE(what_the_mediator_refuses_is_its_message_and_its_code),
        CASE(a_path_longer_than_an_address_goes_by_its_directory),
        CASE(without_a_mediator_the_error_says_how_to_start_it),
        CASE(a_socket_that_is_not_ours_to_use_says_for_whom_it_is),
        CASE(who_is_sent_away_is_told_why),
        CASE(a_mediator_without_room_is_busy),
        CASE(another_version_is_named),
        CASE(a_mediator_that_does_not_take_this_version_is_named),
        CASE(an_answer_that_is_cut_off_is_an_error),
        CASE(an_answer_that_does_not_come_is_an_error_in_time),
        CASE(an_answer_without_end_is_an_error),
        CASE(two_answers_to_one_command_are_an_error),
        CASE(an_answer_to_another_command_is_an_error),
        CASE(what_is_no_json_is_an_error),
        CASE(an_answer_with_neither_result_nor_error_is_an_error),
        CASE(a_command_that_is_too_long_is_not_sent),
        cmocka_unit_test(nothing_is_closed_twice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
