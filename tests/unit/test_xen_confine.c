/* SPDX-License-Identifier: Apache-2.0 */
/* What a confined broker can and cannot do.  That sessions work under it is
 * tests/func/test_xen_watch.py's. */
#include "unit.h"

#include "xen/xen.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
#include <xen/evtchn.h>
#include <xen/gntdev.h>

static int some_fd, parent;

/* Each returns what the call did, errno filled. */
static long try_open(void)
{
    return syscall(SYS_open, "/etc/passwd", O_RDONLY);
}

static long try_openat(void)
{
    return syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
}

static long try_unlink(void)
{
    return syscall(SYS_unlink, "/tmp/vgpu-unit-no-such-file");
}

static long try_network(void)
{
    return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static long try_netlink(void)
{
    return syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0);
}

static long try_bind(void)
{
    return syscall(SYS_bind, some_fd, NULL, 0);
}

static long try_receive_fds(void)
{
    return syscall(SYS_recvmsg, some_fd, NULL, 0);
}

static long try_fork(void)
{
    return syscall(SYS_fork);
}

static long try_clone(void)
{
    return syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static long try_execve(void)
{
    static char *const none[] = {NULL};

    return syscall(SYS_execve, "/bin/true", none, none);
}

static long try_kill(void)
{
    return syscall(SYS_kill, parent, 0);
}

static long try_tgkill(void)
{
    return syscall(SYS_tgkill, parent, parent, 0);
}

static long try_ptrace(void)
{
    return syscall(SYS_ptrace, PTRACE_ATTACH, parent, NULL, NULL);
}

static long try_read_other(void)
{
    return syscall(SYS_process_vm_readv, parent, NULL, 0, NULL, 0, 0);
}

/* Pages of any domain's grants, or another one's port: of a broker that was taken over. */
static long try_map_grants(void)
{
    return syscall(SYS_ioctl, some_fd, IOCTL_GNTDEV_MAP_GRANT_REF, NULL);
}

static long try_map_pages(void)
{
    return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, some_fd, 0);
}

static long try_bind_port(void)
{
    return syscall(SYS_ioctl, some_fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, NULL);
}

static long try_terminal(void)
{
    return syscall(SYS_ioctl, some_fd, TIOCSTI, "x");
}

static long try_map_executable(void)
{
    return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static long try_make_executable(void)
{
    static char page[8192];
    uintptr_t at = ((uintptr_t)page + 4095) / 4096 * 4096;

    return syscall(SYS_mprotect, at, 4096, PROT_READ | PROT_EXEC);
}

static long try_change_flags(void)
{
    return syscall(SYS_fcntl, some_fd, F_SETFL, O_NONBLOCK);
}

static long try_duplicate(void)
{
    return syscall(SYS_dup, some_fd);
}

static long try_setuid(void)
{
    return syscall(SYS_setuid, 0);
}

static long try_mount(void)
{
    return syscall(SYS_mount, "none", "/", "tmpfs", 0, NULL);
}

static long try_unshare(void)
{
    return syscall(SYS_unshare, 0);
}

static long try_bpf(void)
{
    return syscall(SYS_bpf, 0, NULL, 0);
}

static long try_uring(void)
{
    return syscall(SYS_io_uring_setup, 1, NULL);
}

static const struct {
    const char *name;
    long (*call)(void);
} forbidden[] = {
    {"open", try_open},
    {"openat", try_openat},
    {"unlink", try_unlink},
    {"socket of the network", try_network},
    {"socket of netlink", try_netlink},
    {"bind", try_bind},
    {"recvmsg", try_receive_fds},
    {"fork", try_fork},
    {"clone", try_clone},
    {"execve", try_execve},
    {"kill", try_kill},
    {"tgkill of another", try_tgkill},
    {"ptrace", try_ptrace},
    {"process_vm_readv", try_read_other},
    {"ioctl that maps grants", try_map_grants},
    {"mmap of a descriptor", try_map_pages},
    {"ioctl that binds a port", try_bind_port},
    {"ioctl of a terminal", try_terminal},
    {"executable mmap", try_map_executable},
    {"executable mprotect", try_make_executable},
    {"fcntl", try_change_flags},
    {"dup", try_duplicate},
    {"setuid", try_setuid},
    {"mount", try_mount},
    {"unshare", try_unshare},
    {"bpf", try_bpf},
    {"io_uring_setup", try_uring},
};

/* In the child: nothing of cmocka's.  The exit status is 0, or the number of the first
 * call that was not refused. */
static _Noreturn void try_all(void)
{
    struct vgpu_error error;

    if (xen_confine(&error) < 0)
        _exit(200);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(forbidden); i++) {
        errno = 0;
        if (forbidden[i].call() != -1 || errno != EPERM)
            _exit((int)i + 1);
    }
    _exit(0);
}

static int status_of(pid_t child)
{
    int status;

    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Left out where there is no list. */
#define UNUSED __attribute__((unused))

UNUSED static void calls_that_no_session_needs_fail_with_eperm(void **state)
{
    pid_t child;
    int status;

    (void)state;
    child = fork();
    if (child == 0)
        try_all();
    status = status_of(child);
    if (status == 200)
        fail_msg("the list could not be loaded");
    if (status > 0)
        fail_msg("%s was not refused", forbidden[status - 1].name);
}

/* The same calls without the list: most would do something. */
static void the_calls_are_refused_by_the_list_alone(void **state)
{
    (void)state;
    assert_true(try_openat() >= 0);
    assert_true(try_network() >= 0);
    assert_int_equal(try_kill(), 0);
    assert_true(try_map_pages() != -1);
    assert_true(try_map_executable() != -1);
    assert_true(try_duplicate() >= 0);
}

/* In the child: 0, or which one failed. */
static int do_what_sessions_need(void)
{
    const struct sockaddr_un nobody = {.sun_family = AF_UNIX, .sun_path = "/nowhere/vm1.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return 1;
    if (connect(fd, (const struct sockaddr *)&nobody, sizeof(nobody)) == 0 || errno != ENOENT)
        return 2;
    if (close(fd) < 0)
        return 3;
    /* No device of Xen's, but the request gets as far as that. */
    if (ioctl(some_fd, IOCTL_EVTCHN_NOTIFY, NULL) == 0 || errno != ENOTTY)
        return 4;
    if (ioctl(some_fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, NULL) == 0 || errno != ENOTTY)
        return 5;
    if (clock_monotonic_ns() == 0 || write(some_fd, "", 1) != 1)
        return 6;
    return 0;
}

static void what_a_session_needs_is_still_to_be_had(void **state)
{
    struct vgpu_error error;
    pid_t child;

    (void)state;
    child = fork();
    if (child == 0)
        _exit(xen_confine(&error) < 0 ? 100 : do_what_sessions_need());
    assert_int_equal(status_of(child), 0);
}

static void of_roots_rights_none_stays(void **state)
{
    struct vgpu_error error;
    pid_t child;
    char path[64], *status, *line;
    int ready[2];

    (void)state;
    assert_int_equal(pipe(ready), 0);
    child = fork();
    if (child == 0) {
        char byte = (char)(xen_confine(&error) < 0 ? 'n' : 'y');

        if (write(ready[1], &byte, 1) == 1)
            poll(NULL, 0, -1);
        _exit(1);
    }
    assert_int_equal(read(ready[0], path, 1), 1);
    assert_int_equal(path[0], 'y');
    snprintf(path, sizeof(path), "/proc/%d/status", (int)child);
    status = unit_read_file(path);
    line = strstr(status, "\nCapPrm:\t");
    assert_non_null(line);
    assert_int_equal(strtoull(line + 9, NULL, 16), 0);
    assert_non_null(strstr(status, "\nNoNewPrivs:\t1\n"));
    free(status);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(ready[0]);
    close(ready[1]);
}

/* --- whose socket it is --------------------------------------------------------------- */

#define OWNER 100101u
#define OWNER_GROUP 100201u

static char directory[] = "/tmp/vgpu-unit-confine-XXXXXX";

/* A socket that listens, of this owner: its descriptor. */
static int listen_at(const char *name, uid_t uid, gid_t gid, struct sockaddr_un *ret_address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(ret_address->sun_path, sizeof(ret_address->sun_path), "%s/%s", directory, name);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)ret_address, sizeof(*ret_address)), 0);
    assert_int_equal(chown(ret_address->sun_path, uid, gid), 0);
    assert_int_equal(chmod(ret_address->sun_path, 0600), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

static int connect_error(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    return connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ? 0 : errno;
}

/* In the child: 0, or what was otherwise than it should be. */
static int be_owner(const struct sockaddr_un *own, const struct sockaddr_un *others, size_t count)
{
    struct vgpu_error error;
    uid_t uids[3];
    gid_t gids[3];

    if (xen_become_owner(own->sun_path, &error) < 0 || xen_confine(&error) < 0)
        return 1;
    if (connect_error(own) != 0)
        return 2;
    for (size_t i = 0; i < count; i++) {
        if (connect_error(&others[i]) != EACCES)
            return 10 + (int)i;
    }
    /* Not on the list; where there is none they say so. */
    if (getresuid(&uids[0], &uids[1], &uids[2]) == 0 &&
        (uids[0] != OWNER || uids[1] != OWNER || uids[2] != OWNER))
        return 3;
    if (getresgid(&gids[0], &gids[1], &gids[2]) == 0 &&
        (gids[0] != OWNER_GROUP || gids[1] != OWNER_GROUP || gids[2] != OWNER_GROUP))
        return 4;
    return 0;
}

static void root_becomes_the_sockets_owner_and_reaches_no_other_socket(void **state)
{
    struct sockaddr_un own, others[2];
    int fds[3];
    pid_t child;

    (void)state;
    if (geteuid() != 0)
        skip();
    fds[0] = listen_at("own", OWNER, OWNER_GROUP, &own);
    fds[1] = listen_at("other", OWNER + 1, OWNER_GROUP + 1, &others[0]);
    fds[2] = listen_at("control", 0, 0, &others[1]);
    child = fork();
    if (child == 0)
        _exit(be_owner(&own, others, 2));
    assert_int_equal(status_of(child), 0);
    for (size_t i = 0; i < 3; i++)
        close(fds[i]);
    unlink(own.sun_path);
    unlink(others[0].sun_path);
    unlink(others[1].sun_path);
}

static void nobody_becomes_root_or_the_owner_of_nothing(void **state)
{
    const struct {
        const char *name, *expected;
        uid_t uid;
        gid_t gid;
    } refused[] = {{"root", "belongs to 0:100201, and no broker runs as root", 0, OWNER_GROUP},
                   {"group", "belongs to 100101:0, and no broker runs as root", OWNER, 0}};
    struct sockaddr_un address;
    struct vgpu_error error;

    (void)state;
    if (geteuid() != 0)
        skip();
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(refused); i++) {
        int fd = listen_at(refused[i].name, refused[i].uid, refused[i].gid, &address);

        assert_int_equal(xen_become_owner(address.sun_path, &error), -1);
        assert_non_null(strstr(error.message, refused[i].expected));
        close(fd);
        unlink(address.sun_path);
    }
    assert_int_equal(xen_become_owner("/nowhere/vm1.sock", &error), -1);
    assert_non_null(strstr(error.message, "is vgpu-mediator running"));
    assert_int_equal(geteuid(), 0);
}

static int make_directory(void **state)
{
    (void)state;
    return mkdtemp(directory) && chmod(directory, 0711) == 0 ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifndef XEN_SANITIZED
        cmocka_unit_test(calls_that_no_session_needs_fail_with_eperm),
#endif
        cmocka_unit_test(the_calls_are_refused_by_the_list_alone),
        cmocka_unit_test(what_a_session_needs_is_still_to_be_had),
        cmocka_unit_test(of_roots_rights_none_stays),
        cmocka_unit_test(root_becomes_the_sockets_owner_and_reaches_no_other_socket),
        cmocka_unit_test(nobody_becomes_root_or_the_owner_of_nothing),
    };

    parent = getpid();
    some_fd = memfd_create("file", MFD_CLOEXEC);
    if (ftruncate(some_fd, 4096) < 0)
        return EXIT_FAILURE;
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
