/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTP server, its clients in the same loop and thread: nothing here can wait for itself. */
#include "unit.h"

#include "metrics/metrics.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CLIENTS 4
#define ANSWER_BYTES 65536

struct fixture {
    uv_loop_t loop;
    struct metrics_server *server;
    char *directory;
    struct sockaddr_un address;
    unsigned wanted;
    bool answer_at_once; /* at the loop's next turn */
    uv_idle_t later;
    bool later_open;
};

static void tell(struct fixture *fixture, const char *words)
{
    struct metrics_text text = {0};

    metrics_text_append(&text, words, strlen(words));
    metrics_server_answer(fixture->server, &text);
    assert_null(text.data);
}

static void on_later(uv_idle_t *idle)
{
    uv_idle_stop(idle);
    tell(idle->data, "numbers 1\n");
}

static void on_wanted(void *context)
{
    struct fixture *fixture = context;

    fixture->wanted++;
    if (fixture->answer_at_once)
        uv_idle_start(&fixture->later, on_later);
}

static void start_patient(struct fixture *fixture, uint32_t patience_ms, uint32_t idle_s)
{
    struct metrics_server_config config = {.listener_count = 1,
                                           .patience_ms = patience_ms,
                                           .idle_s = idle_s,
                                           .wanted = on_wanted,
                                           .context = fixture};
    struct vgpu_error error;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    *fixture = (struct fixture){.answer_at_once = true, .directory = unit_temporary_directory()};
    fixture->address.sun_family = AF_UNIX;
    snprintf(fixture->address.sun_path, sizeof(fixture->address.sun_path), "%s/s",
             fixture->directory);
    assert_int_equal(bind(fd, (struct sockaddr *)&fixture->address, sizeof(fixture->address)), 0);
    assert_int_equal(listen(fd, 64), 0);
    config.listeners[0] = fd;
    uv_loop_init(&fixture->loop);
    uv_idle_init(&fixture->loop, &fixture->later);
    fixture->later.data = fixture;
    assert_int_equal(metrics_server_start(&fixture->loop, &config, &fixture->server, &error), 0);
}

static void start(struct fixture *fixture, uint32_t patience_ms)
{
    start_patient(fixture, patience_ms, 0);
}

static void stop(struct fixture *fixture)
{
    metrics_server_stop(fixture->server);
    uv_close((uv_handle_t *)&fixture->later, NULL);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&fixture->loop), 0);
    unit_remove_directory(fixture->directory);
}

static int connect_client(const struct fixture *fixture, const char *request)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_int_equal(
        connect(fd, (const struct sockaddr *)&fixture->address, sizeof(fixture->address)), 0);
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    return fd;
}

/* Runs the loop until the server has closed the connection; returns all that it said. */
static const char *answer_to(struct fixture *fixture, int fd)
{
    static char text[ANSWER_BYTES];
    size_t bytes = 0;
    ssize_t got;

    while ((got = recv(fd, text + bytes, sizeof(text) - 1 - bytes, MSG_DONTWAIT)) != 0) {
        if (got < 0 && errno == ECONNRESET)
            break;
        if (got < 0)
            uv_run(&fixture->loop, UV_RUN_NOWAIT);
        else
            bytes += (size_t)got;
    }
    text[bytes] = '\0';
    close(fd);
    return text;
}

static const char *ask(struct fixture *fixture, const char *request)
{
    return answer_to(fixture, connect_client(fixture, request));
}

static void the_numbers_are_told_to_who_asks(void **state)
{
    struct fixture fixture;
    const char *answer;

    (void)state;
    start(&fixture, 0);
    answer = ask(&fixture, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_non_null(strstr(answer, "HTTP/1.1 200 OK\r\n"));
    assert_non_null(strstr(answer, "Content-Type: text/plain; version=0.0.4"));
    assert_non_null(strstr(answer, "\r\n\r\nnumbers 1\n"));
    answer = ask(&fixture, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_non_null(strstr(answer, "Content-Length: 10\r\n"));
    assert_null(strstr(answer, "numbers"));
    assert_int_equal(fixture.wanted, 2);
    stop(&fixture);
}

static void all_who_ask_meanwhile_get_the_same_text(void **state)
{
    struct fixture fixture;
    int fds[CLIENTS];

    (void)state;
    start(&fixture, 0);
    fixture.answer_at_once = false;
    for (int i = 0; i < CLIENTS; i++)
        fds[i] = connect_client(&fixture, "GET /metrics HTTP/1.0\r\n\r\n");
    while (fixture.wanted == 0)
        uv_run(&fixture.loop, UV_RUN_ONCE);
    for (int i = 0; i < 10; i++)
        uv_run(&fixture.loop, UV_RUN_NOWAIT);
    assert_int_equal(fixture.wanted, 1);
    tell(&fixture, "numbers 7\n");
    for (int i = 0; i < CLIENTS; i++)
        assert_non_null(strstr(answer_to(&fixture, fds[i]), "numbers 7\n"));
    assert_int_equal(fixture.wanted, 1);
    stop(&fixture);
}

static void without_memory_who_asks_is_told_to_try_again(void **state)
{
    struct fixture fixture;
    struct metrics_text text = {.failed = true};
    int fd;

    (void)state;
    start(&fixture, 0);
    fixture.answer_at_once = false;
    fd = connect_client(&fixture, "GET /metrics HTTP/1.0\r\n\r\n");
    while (fixture.wanted == 0)
        uv_run(&fixture.loop, UV_RUN_ONCE);
    metrics_server_answer(fixture.server, &text);
    assert_non_null(strstr(answer_to(&fixture, fd), " 503 "));
    stop(&fixture);
}

static void what_is_no_question_is_answered_so(void **state)
{
    static const struct {
        const char *request, *status;
    } cases[] = {
        {"GET /else HTTP/1.1\r\nHost: x\r\n\r\n", " 404 "},
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", " 200 "},
        {"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", " 405 "},
        {"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", " 405 "},
        {"\x01\x02\x03\r\n\r\n", ""},
        {"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\nabc", ""},
    };
    struct fixture fixture;

    (void)state;
    start(&fixture, 1500);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++)
        assert_non_null(strstr(ask(&fixture, cases[i].request), cases[i].status));
    assert_non_null(strstr(ask(&fixture, "GET /metrics HTTP/1.0\r\n\r\n"), "numbers 1"));
    stop(&fixture);
}

static void headers_without_end_are_refused(void **state)
{
    struct fixture fixture;
    char request[16384];

    (void)state;
    start(&fixture, 0);
    snprintf(request, sizeof(request), "GET /metrics HTTP/1.1\r\nHost: x\r\nA: %0*d\r\n\r\n", 12000,
             7);
    assert_null(strstr(ask(&fixture, request), "numbers"));
    assert_int_equal(fixture.wanted, 0);
    stop(&fixture);
}

static void who_is_slow_loses_the_connection_and_others_are_served(void **state)
{
    struct fixture fixture;
    int slow;

    (void)state;
    start(&fixture, 1500);
    slow = connect_client(&fixture, "GET /metrics HT");
    assert_non_null(strstr(ask(&fixture, "GET /metrics HTTP/1.0\r\n\r\n"), "numbers 1"));
    assert_string_equal(answer_to(&fixture, slow), "");
    stop(&fixture);
}

static bool is_open(int fd)
{
    char byte;

    return recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* More than may be connected, and none is ever out of time. */
static void the_oldest_who_says_nothing_makes_room(void **state)
{
    struct fixture fixture;
    int silent[3 * METRICS_CONNECTIONS_MAX];

    (void)state;
    start_patient(&fixture, 3600000, 3600);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(silent); i++)
        silent[i] = connect_client(&fixture, i % 2 ? "GET " : "");
    for (unsigned i = 0; i < 3; i++)
        assert_non_null(strstr(ask(&fixture, "GET /metrics HTTP/1.0\r\n\r\n"), "numbers 1"));
    assert_false(is_open(silent[0]));
    assert_true(is_open(silent[VGPU_ARRAY_LENGTH(silent) - 1]));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(silent); i++)
        close(silent[i]);
    stop(&fixture);
}

/* Who has asked keeps the place until the answer. */
static void who_waits_for_the_answer_is_not_turned_out(void **state)
{
    struct fixture fixture;
    int asking, silent[METRICS_CONNECTIONS_MAX + 8];

    (void)state;
    start_patient(&fixture, 3600000, 3600);
    fixture.answer_at_once = false;
    asking = connect_client(&fixture, "GET /metrics HTTP/1.0\r\n\r\n");
    while (fixture.wanted == 0)
        uv_run(&fixture.loop, UV_RUN_ONCE);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(silent); i++)
        silent[i] = connect_client(&fixture, "");
    while (is_open(silent[0]))
        uv_run(&fixture.loop, UV_RUN_ONCE);
    tell(&fixture, "numbers 2\n");
    assert_non_null(strstr(answer_to(&fixture, asking), "numbers 2"));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(silent); i++)
        close(silent[i]);
    stop(&fixture);
}

static void a_crowd_of_silent_clients_does_not_end_service(void **state)
{
    struct fixture fixture;
    int silent[METRICS_CONNECTIONS_MAX + 8];

    (void)state;
    start(&fixture, 1500);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(silent); i++)
        silent[i] = connect_client(&fixture, "GET ");
    assert_non_null(strstr(ask(&fixture, "GET /metrics HTTP/1.0\r\n\r\n"), "numbers 1"));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(silent); i++)
        answer_to(&fixture, silent[i]);
    stop(&fixture);
}

static void who_hangs_up_before_the_answer_harms_nobody(void **state)
{
    struct fixture fixture;
    int fd, other;

    (void)state;
    start(&fixture, 0);
    fixture.answer_at_once = false;
    fd = connect_client(&fixture, "GET /metrics HTTP/1.0\r\n\r\n");
    other = connect_client(&fixture, "GET /metrics HTTP/1.0\r\n\r\n");
    while (fixture.wanted == 0)
        uv_run(&fixture.loop, UV_RUN_ONCE);
    close(fd);
    for (int i = 0; i < 10; i++)
        uv_run(&fixture.loop, UV_RUN_NOWAIT);
    tell(&fixture, "numbers 3\n");
    assert_non_null(strstr(answer_to(&fixture, other), "numbers 3\n"));
    stop(&fixture);
}

static void it_can_be_stopped_while_somebody_waits(void **state)
{
    struct fixture fixture;
    int fd;

    (void)state;
    start(&fixture, 0);
    fixture.answer_at_once = false;
    fd = connect_client(&fixture, "GET /metrics HTTP/1.0\r\n\r\n");
    while (fixture.wanted == 0)
        uv_run(&fixture.loop, UV_RUN_ONCE);
    stop(&fixture);
    close(fd);
}

static void nobody_to_stop_is_fine(void **state)
{
    (void)state;
    metrics_server_stop(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_numbers_are_told_to_who_asks),
        cmocka_unit_test(all_who_ask_meanwhile_get_the_same_text),
        cmocka_unit_test(without_memory_who_asks_is_told_to_try_again),
        cmocka_unit_test(what_is_no_question_is_answered_so),
        cmocka_unit_test(headers_without_end_are_refused),
        cmocka_unit_test(who_is_slow_loses_the_connection_and_others_are_served),
        cmocka_unit_test(the_oldest_who_says_nothing_makes_room),
        cmocka_unit_test(who_waits_for_the_answer_is_not_turned_out),
        cmocka_unit_test(a_crowd_of_silent_clients_does_not_end_service),
        cmocka_unit_test(who_hangs_up_before_the_answer_harms_nobody),
        cmocka_unit_test(it_can_be_stopped_while_somebody_waits),
        cmocka_unit_test(nobody_to_stop_is_fine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
