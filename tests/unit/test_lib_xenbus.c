/* SPDX-License-Identifier: Apache-2.0 */
/* XenStore's wire protocol against a store of the test's own, which says what it is told
 * to; libvgpu where no Xen is. */
#include "unit.h"

#include "vgpu/vgpu.h"
#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ 2u
#define EVENT 15u
#define ERROR 16u

static struct {
    struct xenbus bus;
    int store; /* the other end */
} rig;

static int open_rig(void **state)
{
    int ends[2];

    (void)state;
    memset(&rig, 0, sizeof(rig));
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        return -1;
    rig.bus.fd = ends[0];
    rig.store = ends[1];
    return fcntl(rig.bus.fd, F_SETFL, O_NONBLOCK);
}

static int close_rig(void **state)
{
    (void)state;
    xenbus_close(&rig.bus);
    close(rig.store);
    return 0;
}

static void say(uint32_t type, uint32_t request, const char *payload, uint32_t bytes)
{
    const struct xenbus_header header = {.type = type, .request = request, .bytes = bytes};

    assert_int_equal(write(rig.store, &header, sizeof(header)), sizeof(header));
    assert_int_equal(write(rig.store, payload, bytes), bytes);
}

static void a_question_has_its_path_and_the_answer_is_its_value(void **state)
{
    struct {
        struct xenbus_header header;
        char payload[64];
    } asked;
    char value[16];

    (void)state;
    say(READ, 1, "connected", 9);
    assert_int_equal(xenbus_read(&rig.bus, "data/x", value, sizeof(value)), 0);
    assert_string_equal(value, "connected");
    assert_int_equal(read(rig.store, &asked, sizeof(asked)), sizeof(asked.header) + 7);
    assert_int_equal(asked.header.type, READ);
    assert_int_equal(asked.header.request, 1);
    assert_string_equal(asked.payload, "data/x");
}

static void a_long_value_is_cut(void **state)
{
    char value[4];

    (void)state;
    say(READ, 1, "connected", 9);
    assert_int_equal(xenbus_read(&rig.bus, "x", value, sizeof(value)), 0);
    assert_string_equal(value, "con");
}

static void an_error_is_its_errno(void **state)
{
    char value[16];

    (void)state;
    say(ERROR, 1, "EACCES", 7);
    say(ERROR, 2, "ENOSUCHWORD", 12);
    assert_int_equal(xenbus_read(&rig.bus, "x", value, sizeof(value)), -1);
    assert_int_equal(errno, EACCES);
    assert_int_equal(xenbus_write(&rig.bus, "x", "1"), -1);
    assert_int_equal(errno, EIO);
}

static void events_before_an_answer_are_kept_in_their_order(void **state)
{
    struct xenbus_event event;
    char value[16];

    (void)state;
    say(EVENT, 0, "first\0one", 10);
    say(EVENT, 0, "second\0two", 11);
    say(READ, 1, "v", 1);
    say(EVENT, 0, "third\0three", 12);
    assert_int_equal(xenbus_read(&rig.bus, "x", value, sizeof(value)), 0);
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 1);
    assert_string_equal(event.path, "first");
    assert_string_equal(event.token, "one");
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 1);
    assert_string_equal(event.path, "second");
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 1);
    assert_string_equal(event.token, "three");
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 0);
}

static void events_that_nobody_takes_are_bounded_and_their_loss_is_told(void **state)
{
    char value[16];

    (void)state;
    for (unsigned i = 0; i <= XENBUS_EVENTS_MAX; i++)
        say(EVENT, 0, "path\0token", 11);
    say(READ, 1, "v", 1);
    assert_int_equal(xenbus_read(&rig.bus, "x", value, sizeof(value)), 0);
    assert_int_equal(rig.bus.event_count, XENBUS_EVENTS_MAX);
    assert_true(rig.bus.lost_events);
}

static void an_event_without_a_token_is_no_event(void **state)
{
    struct xenbus_event event;

    (void)state;
    say(EVENT, 0, "path", 4);
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 0);
    assert_true(rig.bus.lost_events);
}

static void a_message_longer_than_any_can_be_is_an_error(void **state)
{
    const struct xenbus_header header = {.type = EVENT, .bytes = XENBUS_PAYLOAD_MAX + 1};
    struct xenbus_event event;

    (void)state;
    assert_int_equal(write(rig.store, &header, sizeof(header)), sizeof(header));
    assert_int_equal(xenbus_next_event(&rig.bus, &event), -1);
    assert_int_equal(errno, EPROTO);
}

static void a_message_in_pieces_is_one_message(void **state)
{
    const struct xenbus_header header = {.type = EVENT, .bytes = 4};
    const char payload[] = {'p', 0, 't', 0};
    struct xenbus_event event;

    (void)state;
    for (size_t i = 0; i < sizeof(header); i++) {
        assert_int_equal(write(rig.store, (const char *)&header + i, 1), 1);
        assert_int_equal(xenbus_next_event(&rig.bus, &event), 0);
    }
    assert_int_equal(write(rig.store, payload, 2), 2);
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 0);
    assert_int_equal(write(rig.store, payload + 2, 2), 2);
    assert_int_equal(xenbus_next_event(&rig.bus, &event), 1);
    assert_string_equal(event.path, "p");
    assert_string_equal(event.token, "t");
}

static void a_store_that_hangs_up_is_an_error(void **state)
{
    struct xenbus_event event;

    (void)state;
    shutdown(rig.store, SHUT_RDWR);
    assert_int_equal(xenbus_next_event(&rig.bus, &event), -1);
    assert_int_equal(errno, EPIPE);
}

static void what_does_not_fit_a_message_is_refused(void **state)
{
    static char value[XENBUS_PAYLOAD_MAX + 1];

    (void)state;
    memset(value, 'v', sizeof(value) - 1);
    assert_int_equal(xenbus_write(&rig.bus, "x", value), -1);
    assert_int_equal(errno, E2BIG);
}

static void without_xen_the_transport_says_so(void **state)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session;
    struct vgpu_problem problem;

    (void)state;
    if (access(XENBUS_DEVICE, F_OK) == 0)
        skip();
    options.transport = VGPU_TRANSPORT_XEN;
    assert_int_equal(vgpu_open(&options, &session, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_NO_DEVICE);
    assert_non_null(strstr(problem.text, XENBUS_DEVICE));
    assert_string_equal(vgpu_transport_name(VGPU_TRANSPORT_XEN), "xen");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, open_rig, close_rig)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_question_has_its_path_and_the_answer_is_its_value),
        CASE(a_long_value_is_cut),
        CASE(an_error_is_its_errno),
        CASE(events_before_an_answer_are_kept_in_their_order),
        CASE(events_that_nobody_takes_are_bounded_and_their_loss_is_told),
        CASE(an_event_without_a_token_is_no_event),
        CASE(a_message_longer_than_any_can_be_is_an_error),
        CASE(a_message_in_pieces_is_one_message),
        CASE(a_store_that_hangs_up_is_an_error),
        CASE(what_does_not_fit_a_message_is_refused),
        cmocka_unit_test(without_xen_the_transport_says_so),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
