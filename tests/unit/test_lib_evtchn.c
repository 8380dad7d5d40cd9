/* SPDX-License-Identifier: Apache-2.0 */
/* A port that the kernel has forgotten: who closes it dies of that here, as of the kernel's
 * bug, so it must be a child, and the last who has it open. */
#include "unit.h"

#include "xenbus.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define SHARED_BYTES 4096

static struct {
    pid_t program;
    int port_fd; /* whose last close ends the process */
    const char *panic_on_oops;
    const char *device; /* in place of Xen's; NULL: as it is here */
    struct {            /* with the child */
        bool is_closed_here;
        bool was_last;
    } * shared;
} rig;

int __real_close(int fd);
int __wrap_close(int fd);
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
FILE *__real_fopen64(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);

int __wrap_close(int fd)
{
    if (fd != rig.port_fd)
        return __real_close(fd);
    if (getpid() != rig.program) {
        rig.shared->was_last = rig.shared->is_closed_here;
        raise(SIGKILL);
    }
    rig.shared->is_closed_here = true;
    return __real_close(fd);
}

int __wrap_open64(const char *path, int flags, ...)
{
    return __real_open64(rig.device && strcmp(path, "/dev/xen/evtchn") == 0 ? rig.device : path,
                         flags);
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
    if (strcmp(path, "/proc/sys/kernel/panic_on_oops") != 0)
        return __real_fopen64(path, mode);
    return fmemopen((char *)(uintptr_t)rig.panic_on_oops, strlen(rig.panic_on_oops), "r");
}

static int open_rig(void **state)
{
    (void)state;
    rig.program = getpid();
    rig.port_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    rig.shared =
        mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return rig.port_fd < 0 || rig.shared == MAP_FAILED ? -1 : 0;
}

static int close_rig(void **state)
{
    (void)state;
    munmap(rig.shared, SHARED_BYTES);
    return 0;
}

static void a_child_closes_it_last_and_is_waited_for(void **state)
{
    (void)state;
    rig.panic_on_oops = "0\n";
    evtchn_abandon(rig.port_fd);
    assert_true(rig.shared->is_closed_here);
    assert_true(rig.shared->was_last);
    assert_int_equal(fcntl(rig.port_fd, F_GETFD), -1);
    assert_int_equal(waitpid(-1, NULL, __WALL), -1);
    assert_int_equal(errno, ECHILD);
}

static void it_stays_open_where_the_bug_would_end_the_machine(void **state)
{
    (void)state;
    rig.panic_on_oops = "1\n";
    evtchn_abandon(rig.port_fd);
    assert_false(rig.shared->is_closed_here);
    assert_int_not_equal(fcntl(rig.port_fd, F_GETFD), -1);
    assert_int_equal(__real_close(rig.port_fd), 0);
}

static void programs_see_to_their_ports_one_at_a_time_and_wait_not_for_ever(void **state)
{
    char *directory = unit_temporary_directory(), *path = NULL;
    int lock, other;

    (void)state;
    assert_true(asprintf(&path, "%s/evtchn", directory) > 0);
    fclose(fopen(path, "we"));
    rig.device = path;
    other = open(path, O_RDONLY | O_CLOEXEC);
    lock = evtchn_lock();
    assert_int_equal(flock(other, LOCK_EX | LOCK_NB), -1);
    evtchn_unlock(lock);
    assert_int_equal(flock(other, LOCK_EX | LOCK_NB), 0);
    lock = evtchn_lock();
    assert_true(lock >= 0);
    evtchn_unlock(lock);
    close(other);
    rig.device = NULL;
    free(path);
    unit_remove_directory(directory);
}

static void without_xen_no_port_is_known_to_be_free(void **state)
{
    (void)state;
    if (access("/dev/xen/evtchn", F_OK) == 0)
        skip();
    assert_false(evtchn_is_free(1000));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, open_rig, close_rig)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_child_closes_it_last_and_is_waited_for),
        CASE(it_stays_open_where_the_bug_would_end_the_machine),
        CASE(programs_see_to_their_ports_one_at_a_time_and_wait_not_for_ever),
        cmocka_unit_test(without_xen_no_port_is_known_to_be_free),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
