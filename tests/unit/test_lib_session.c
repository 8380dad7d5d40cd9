/* SPDX-License-Identifier: Apache-2.0 */
/* A session's life over the socket: open, refusals, a mediator that goes and
 * comes back, the end, fork. */
#include "lib_host.h"

#include "private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static struct vgpu_problem problem;

static struct vgpu_options options_for(const struct lib_host *host)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;

    options.path = host->path;
    options.spin_us = 0;
    return options;
}

static struct vgpu_session *open_session(struct lib_host *host)
{
    struct vgpu_options options;
    struct vgpu_session *session = NULL;

    lib_host_open(host);
    options = options_for(host);
    if (vgpu_open(&options, &session, &problem) < 0)
        fail_msg("vgpu_open: %s", problem.text);
    return session;
}

static void close_both(struct lib_host *host, struct vgpu_session *session)
{
    vgpu_close(session);
    lib_host_close(host);
}

static unsigned open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* Fails as `status` with `word` in its text. */
static void refused_as(const struct vgpu_options *options, int status, const char *word)
{
    struct vgpu_session *untouched = (struct vgpu_session *)&problem, *session = untouched;

    assert_int_equal(vgpu_open(options, &session, &problem), -1);
    assert_int_equal(problem.status, status);
    if (!strstr(problem.text, word))
        fail_msg("'%s' has no '%s'", problem.text, word);
    assert_ptr_equal(session, untouched);
}

/* --- opening ------------------------------------------------------------------------- */

static void a_session_tells_what_the_mediator_told(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);
    struct vgpu_session_info info;

    (void)state;
    vgpu_session_info(session, &info);
    assert_int_equal(info.transport, VGPU_TRANSPORT_SOCKET);
    assert_string_equal(info.path, host.path);
    assert_int_equal(info.vm_id, 7);
    assert_int_equal(info.pool, 'B');
    assert_int_equal(info.priority, 2);
    assert_int_equal(info.slot_bytes, (16u << 20) - VGPU_WINDOW_HEADER_BYTES);
    assert_int_equal(info.heap_bytes, info.slot_bytes - VGPU_SLOT_HEAP);
    assert_int_equal(info.state, VGPU_SESSION_READY);
    assert_true(info.cached);
    close_both(&host, session);
}

static void the_window_is_sealed_and_has_its_header(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);
    struct vgpu_window_header header;

    (void)state;
    assert_int_equal(fcntl(LIB_HOST_GET(&host, window_fd), F_GET_SEALS),
                     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    assert_int_equal(pread(LIB_HOST_GET(&host, window_fd), &header, sizeof(header), 0),
                     sizeof(header));
    assert_int_equal(header.magic, VGPU_WINDOW_MAGIC);
    assert_int_equal(header.slot_count, 1);
    assert_int_equal(header.window_bytes, 16u << 20);
    close_both(&host, session);
}

static void nobody_there_is_told_with_the_path(void **state)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    unsigned before = open_fds();

    (void)state;
    options.transport = VGPU_TRANSPORT_SOCKET;
    options.path = "/nonexistent/vm7.sock";
    refused_as(&options, VGPU_PROBLEM_NO_HOST, "/nonexistent/vm7.sock");
    options.transport = VGPU_TRANSPORT_AUTO;
    refused_as(&options, VGPU_PROBLEM_NO_DEVICE, "/nonexistent/vm7.sock");
    options.transport = VGPU_TRANSPORT_MODULE;
    options.path = "/nonexistent/vgpu0";
    refused_as(&options, VGPU_PROBLEM_NO_DEVICE, "vgpu_guest.ko");
    options.path = "/dev/null";
    refused_as(&options, VGPU_PROBLEM_SYSTEM, "does not answer like a vgpu device");
    options.transport = VGPU_TRANSPORT_SYSFS;
    options.path = "/sys/bus/pci";
    refused_as(&options, VGPU_PROBLEM_NO_DEVICE, "registers");
    options.transport = (enum vgpu_transport)9;
    refused_as(&options, VGPU_PROBLEM_ARGUMENT, "transport 9");
    assert_int_equal(open_fds(), before);
}

static void a_refusal_says_why(void **state)
{
    struct lib_host host = {.refuse_open = EBUSY};
    struct vgpu_options options;

    (void)state;
    lib_host_open(&host);
    options = options_for(&host);
    refused_as(&options, VGPU_PROBLEM_BUSY, "the test wants it so");
    LIB_HOST_SET(&host, refuse_open, 0);
    LIB_HOST_SET(&host, refuse_hello, EACCES);
    refused_as(&options, VGPU_PROBLEM_DENIED, "the test wants it so");
    LIB_HOST_SET(&host, refuse_hello, EPROTO);
    refused_as(&options, VGPU_PROBLEM_NO_HOST, "the test wants it so");
    lib_host_close(&host);
}

static void a_mediator_that_says_nothing_is_not_waited_for_for_ever(void **state)
{
    struct lib_host host = {.is_silent = true};
    struct vgpu_options options;

    (void)state;
    lib_host_open(&host);
    options = options_for(&host);
    options.open_timeout_ms = 50;
    refused_as(&options, VGPU_PROBLEM_TIMEOUT, host.path);
    lib_host_close(&host);
}

static void a_window_of_an_impossible_size_is_refused(void **state)
{
    struct lib_host host = {0};
    struct vgpu_options options;

    (void)state;
    lib_host_open(&host);
    options = options_for(&host);
    options.window_bytes = (16 << 20) + 1;
    refused_as(&options, VGPU_PROBLEM_ARGUMENT, "16777217");
    lib_host_close(&host);
}

static void closing_says_so_and_leaves_nothing_behind(void **state)
{
    struct lib_host host = {0};
    struct vgpu_options options;
    struct vgpu_session *sessions[3];
    unsigned before;

    (void)state;
    lib_host_open(&host);
    options = options_for(&host);
    before = open_fds();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vgpu_open(&options, &sessions[0], &problem), 0);
        vgpu_close(sessions[0]);
        vgpu_close(NULL);
    }
    lib_host_leave(&host);
    assert_true(open_fds() <= before + 4); /* the host's of the last window */
    lib_host_close(&host);
    assert_int_equal(LIB_HOST_GET(&host, hellos), 3);
}

/* --- a mediator that goes ------------------------------------------------------------- */

static void *return_later(void *argument)
{
    usleep(30000);
    lib_host_return(argument);
    return NULL;
}

static void a_wait_connects_again_and_the_session_goes_on(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    vgpu_ticket ticket;
    pthread_t later;

    (void)state;
    LIB_HOST_SET(&host, by_hand, true);
    lib_host_leave(&host);
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, &ticket, &problem), 0);
    pthread_create(&later, NULL, return_later, &host);
    while (LIB_HOST_GET(&host, hellos) < 2) {
        assert_int_equal(vgpu_wait(session, ticket, 5000, NULL, &problem), -1);
        assert_int_equal(problem.status, VGPU_PROBLEM_TIMEOUT);
    }
    pthread_join(later, NULL);
    assert_int_equal(LIB_HOST_GET(&host, open_slots), 1);
    LIB_HOST_SET(&host, by_hand, false);
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(LIB_HOST_GET(&host, opens), 1);
    close_both(&host, session);
}

static void a_mediator_that_knows_the_session_no_more_ends_it(void **state)
{
    struct lib_host host = {.forgets = true};
    struct vgpu_session *session = open_session(&host);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    vgpu_ticket ticket;

    (void)state;
    LIB_HOST_SET(&host, by_hand, true);
    lib_host_leave(&host);
    lib_host_return(&host);
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, &ticket, &problem), 0);
    assert_int_equal(vgpu_wait(session, ticket, VGPU_FOREVER, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    close_both(&host, session);
}

static void a_mediator_that_refuses_on_return_ends_it(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);

    (void)state;
    LIB_HOST_SET(&host, by_hand, true);
    LIB_HOST_SET(&host, refuse_hello, EACCES);
    lib_host_leave(&host);
    lib_host_return(&host);
    assert_int_equal(vgpu_ping(session, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    assert_non_null(strstr(problem.text, "the test wants it so"));
    close_both(&host, session);
}

static void the_event_loops_descriptor_brings_the_session_back_too(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);
    struct pollfd wait = {.fd = vgpu_fd(session), .events = POLLIN};
    struct vgpu_result result;

    (void)state;
    lib_host_leave(&host);
    lib_host_return(&host);
    while (LIB_HOST_GET(&host, hellos) < 2) {
        assert_int_equal(vgpu_arm(session), 0);
        assert_int_equal(poll(&wait, 1, 10000), 1);
        assert_int_equal(vgpu_poll(session, &result, 1, &problem), 0);
    }
    assert_int_equal(vgpu_ping(session, &problem), 0);
    close_both(&host, session);
}

/* --- the end ----------------------------------------------------------------------------- */

static void *say_faulted(void *argument)
{
    usleep(20000);
    lib_host_say(argument, VGPU_SESSION_FAULTED);
    return NULL;
}

static void every_wait_ends_when_the_host_ends_the_session(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host);
    struct vgpu_session_info info;
    struct vgpu_result result;
    pthread_t later;

    (void)state;
    pthread_create(&later, NULL, say_faulted, &host);
    assert_int_equal(vgpu_ping(session, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    pthread_join(later, NULL);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    assert_int_equal(vgpu_poll(session, &result, 1, &problem), -1);
    assert_int_equal(vgpu_arm(session), 1);
    vgpu_session_info(session, &info);
    assert_int_equal(info.state, VGPU_SESSION_CLOSED);
    close_both(&host, session);
}

static void results_that_came_before_the_end_can_still_be_fetched(void **state)
{
    struct lib_host host = {.by_hand = true};
    struct vgpu_session *session = open_session(&host);
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    vgpu_ticket first, second;

    (void)state;
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, &first, &problem), 0);
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, &second, &problem), 0);
    lib_host_run(&host, 1);
    lib_host_say(&host, VGPU_SESSION_CLOSED);
    assert_int_equal(vgpu_wait(session, second, VGPU_FOREVER, NULL, &problem), -1);
    assert_int_equal(problem.status, VGPU_PROBLEM_CLOSED);
    assert_int_equal(vgpu_wait(session, first, VGPU_FOREVER, NULL, &problem), 0);
    close_both(&host, session);
}

static void a_lost_device_is_told_until_it_is_reset(void **state)
{
    struct lib_host host = {.answers_with = VGPU_DEVICE_LOST};
    struct vgpu_session *session = open_session(&host);

    (void)state;
    lib_host_say(&host, VGPU_SESSION_LOST);
    assert_int_equal(vgpu_ping(session, &problem), -1);
    assert_int_equal(problem.status, VGPU_DEVICE_LOST);
    assert_non_null(strstr(problem.text, "vgpu_reset()"));
    LIB_HOST_SET(&host, answers_with, VGPU_OK);
    assert_int_equal(vgpu_reset(session, &problem), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    close_both(&host, session);
}

/* --- fork ------------------------------------------------------------------------------------ */

/* In a child: a bit for each thing that is not as it must be. */
static int look_from_child(struct vgpu_session *session, unsigned fds_before_session)
{
    struct vgpu_result result;
    struct vgpu_session_info info;
    int wrong = 0;

    wrong |= vgpu_ping(session, &problem) != -1 || problem.status != VGPU_PROBLEM_FORKED;
    wrong |=
        (vgpu_poll(session, &result, 1, &problem) != -1 || problem.status != VGPU_PROBLEM_FORKED)
        << 1;
    wrong |=
        (vgpu_wait(session, 1024, 0, NULL, &problem) != -1 || problem.status != VGPU_PROBLEM_FORKED)
        << 2;
    wrong |= (vgpu_fd(session) != -1 || vgpu_heap_alloc(session, 64) != NULL) << 3;
    vgpu_session_info(session, &info);
    wrong |= (info.state != VGPU_SESSION_CLOSED) << 4;
    vgpu_batch_begin(session);
    vgpu_batch_end(session);
    vgpu_close(session);
    wrong |= (open_fds() != fds_before_session) << 5;
    return wrong;
}

static int child_status(pid_t child)
{
    int status = -1;

    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void a_child_cannot_use_the_session_and_the_parent_goes_on(void **state)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct lib_host host = {0};
    struct vgpu_session *session;
    struct vgpu_result result;
    unsigned before;
    pid_t child;

    (void)state;
    lib_host_open(&host);
    before = open_fds();
    lib_host_close(&host);
    session = open_session(&host);
    before += 5; /* the host's: link, window, interrupt, lifeline, doorbell */
    assert_int_equal(vgpu_submit(session, &ping, NULL, NULL, NULL, &problem), 0);
    assert_int_equal(vgpu_wait_all(session, VGPU_FOREVER, &problem), 0);
    child = fork();
    if (child == 0)
        _exit(look_from_child(session, before));
    assert_int_equal(child_status(child), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    assert_int_equal(vgpu_poll(session, &result, 1, &problem), 1);
    close_both(&host, session);
}

static void a_child_made_past_the_c_library_is_told_apart_too(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);
    long child;

    (void)state;
    child = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (child == 0)
        _exit(vgpu_ping(session, &problem) == -1 && problem.status == VGPU_PROBLEM_FORKED ? 0 : 1);
    assert_int_equal(child_status((pid_t)child), 0);
    assert_int_equal(vgpu_ping(session, &problem), 0);
    close_both(&host, session);
}

static void the_lifeline_hangs_up_when_the_parent_closes_whatever_children_do(void **state)
{
    struct lib_host host = {0};
    struct vgpu_session *session = open_session(&host);
    struct pollfd lifeline = {.events = POLLIN};
    pid_t child = fork();

    (void)state;
    if (child == 0) {
        pause();
        _exit(0);
    }
    lifeline.fd = LIB_HOST_GET(&host, lifeline_fd);
    assert_int_equal(poll(&lifeline, 1, 0), 0);
    vgpu_close(session);
    assert_int_equal(poll(&lifeline, 1, 10000), 1);
    assert_true(lifeline.revents & POLLHUP);
    kill(child, SIGKILL);
    child_status(child);
    lib_host_close(&host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_session_tells_what_the_mediator_told),
        cmocka_unit_test(the_window_is_sealed_and_has_its_header),
        cmocka_unit_test(nobody_there_is_told_with_the_path),
        cmocka_unit_test(a_refusal_says_why),
        cmocka_unit_test(a_mediator_that_says_nothing_is_not_waited_for_for_ever),
        cmocka_unit_test(a_window_of_an_impossible_size_is_refused),
        cmocka_unit_test(closing_says_so_and_leaves_nothing_behind),
        cmocka_unit_test(a_wait_connects_again_and_the_session_goes_on),
        cmocka_unit_test(a_mediator_that_knows_the_session_no_more_ends_it),
        cmocka_unit_test(a_mediator_that_refuses_on_return_ends_it),
        cmocka_unit_test(the_event_loops_descriptor_brings_the_session_back_too),
        cmocka_unit_test(every_wait_ends_when_the_host_ends_the_session),
        cmocka_unit_test(results_that_came_before_the_end_can_still_be_fetched),
        cmocka_unit_test(a_lost_device_is_told_until_it_is_reset),
        cmocka_unit_test(a_child_cannot_use_the_session_and_the_parent_goes_on),
        cmocka_unit_test(a_child_made_past_the_c_library_is_told_apart_too),
        cmocka_unit_test(the_lifeline_hangs_up_when_the_parent_closes_whatever_children_do),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
