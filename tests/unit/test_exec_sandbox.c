/* SPDX-License-Identifier: Apache-2.0 */
/* What a confined worker can and cannot do: calls tried one by one in a process that
 * entered the sandbox, and what the kernel says of a real worker.  That every
 * operation works under it is test_exec_session_operations.c's. */
#include "session_bench.h"

#include "exec/private.h"
#include "exec/session_worker.h"

#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#ifdef EXEC_SANITIZED
#define SANDBOX_TESTS 0 /* a sanitizer makes calls of its own: there is no list */
#else
#define SANDBOX_TESTS 1
#endif

static int some_fd, parent;
static void *some_mapping; /* the first of two pages of a file */
static char some_path[600];

/* Each returns what the call did, errno filled. */
static long try_open(void)
{
    return syscall(SYS_open, "/etc/passwd", O_RDONLY);
}

static long try_openat(void)
{
    return syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
}

static long try_creat(void)
{
    return syscall(SYS_creat, some_path, 0600);
}

static long try_unlink(void)
{
    return syscall(SYS_unlink, some_path);
}

static long try_socket(void)
{
    return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static long try_unix_socket(void)
{
    return syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
}

static long try_connect(void)
{
    return syscall(SYS_connect, some_fd, NULL, 0);
}

static long try_listen(void)
{
    return syscall(SYS_listen, some_fd, 1);
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

static long try_map_file(void)
{
    return syscall(SYS_mmap, NULL, 4096, PROT_READ, MAP_PRIVATE, some_fd, 0);
}

static long try_map_file_shared(void)
{
    return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, some_fd, 0);
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

/* A shared mapping that grows shows more of its file: the window's next slot. */
static long try_grow_mapping(void)
{
    return syscall(SYS_mremap, some_mapping, 4096, 8192, MREMAP_MAYMOVE);
}

static long try_truncate(void)
{
    return syscall(SYS_ftruncate, some_fd, 0);
}

static long try_change_flags(void)
{
    return syscall(SYS_fcntl, some_fd, F_SETFL, O_NONBLOCK);
}

static long try_ioctl(void)
{
    return syscall(SYS_ioctl, some_fd, 0, NULL);
}

static long try_mount(void)
{
    return syscall(SYS_mount, "none", "/", "tmpfs", 0, NULL);
}

static long try_setuid(void)
{
    return syscall(SYS_setuid, 0);
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

static long try_userfaultfd(void)
{
    return syscall(SYS_userfaultfd, 0);
}

static const struct {
    const char *name;
    long (*call)(void);
} forbidden[] = {
    {"open", try_open},
    {"openat", try_openat},
    {"creat", try_creat},
    {"unlink", try_unlink},
    {"socket", try_socket},
    {"socket of unix", try_unix_socket},
    {"connect", try_connect},
    {"listen", try_listen},
    {"fork", try_fork},
    {"clone", try_clone},
    {"execve", try_execve},
    {"kill", try_kill},
    {"tgkill of another", try_tgkill},
    {"ptrace", try_ptrace},
    {"process_vm_readv", try_read_other},
    {"mmap of a file", try_map_file},
    {"shared mmap of a file", try_map_file_shared},
    {"executable mmap", try_map_executable},
    {"executable mprotect", try_make_executable},
    {"mremap", try_grow_mapping},
    {"ftruncate", try_truncate},
    {"fcntl", try_change_flags},
    {"ioctl", try_ioctl},
    {"mount", try_mount},
    {"setuid", try_setuid},
    {"unshare", try_unshare},
    {"bpf", try_bpf},
    {"io_uring_setup", try_uring},
    {"userfaultfd", try_userfaultfd},
};

/* In the child: nothing of cmocka's.  The exit status is 0, or the number of the
 * first call that was not refused. */
static _Noreturn void try_all(void)
{
    struct vgpu_error error;

    if (sandbox_drop_user(UINT32_MAX, UINT32_MAX, &error) < 0 || sandbox_enter(false, &error) < 0)
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

/* Left out of the list where there is no sandbox. */
#define UNUSED __attribute__((unused))

UNUSED static void calls_that_no_operation_needs_fail_with_eperm(void **state)
{
    pid_t child;
    int status;

    (void)state;
    child = fork();
    if (child == 0)
        try_all();
    status = status_of(child);
    if (status == 200)
        fail_msg("the sandbox could not be entered");
    if (status > 0)
        fail_msg("%s was not refused", forbidden[status - 1].name);
}

/* The same calls without the sandbox: most would do something. */
static void the_calls_are_refused_by_the_sandbox_alone(void **state)
{
    (void)state;
    assert_true(try_openat() >= 0);
    assert_true(try_unix_socket() >= 0);
    assert_int_equal(try_kill(), 0);
    assert_true(try_map_file() != -1);
    assert_true(try_map_executable() != -1);
    assert_true(try_grow_mapping() != -1);
    assert_int_equal(try_truncate(), 0);
}

UNUSED static void memory_and_time_are_still_to_be_had(void **state)
{
    pid_t child;
    int status;

    (void)state;
    child = fork();
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        struct vgpu_error error;
        void *big;

        setrlimit(RLIMIT_CORE, &no_core);
        if (sandbox_enter(false, &error) < 0)
            _exit(1);
        big = malloc(64u << 20);
        if (!big)
            _exit(2);
        memset(big, 1, 64u << 20);
        big = realloc(big, 128u << 20); /* by copying: see mremap above */
        if (!big || ((const char *)big)[(64u << 20) - 1] != 1)
            _exit(4);
        free(big);
        if (clock_monotonic_ns() == 0 || usleep(1) < 0 || write(some_fd, "", 1) != 1)
            _exit(3);
        abort(); /* allowed: itself */
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* --- a real worker --------------------------------------------------------------------------- */

static void expect_line(const char *status, const char *name, const char *value)
{
    char line[100];

    snprintf(line, sizeof(line), "\n%s:\t%s\n", name, value);
    if (!strstr(status, line))
        fail_msg("expected %s: %s in\n%s", name, value, status);
}

static void expect_confined(pid_t pid)
{
    char path[64], *status;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    status = unit_read_file(path);
    expect_line(status, "NoNewPrivs", "1");
    expect_line(status, "CapEff", "0000000000000000");
    expect_line(status, "CapPrm", "0000000000000000");
    if (SANDBOX_TESTS)
        expect_line(status, "Seccomp", "2");
    free(status);
}

static void a_worker_is_confined_before_it_is_ready(void **state)
{
    struct bench *bench = *state;

    expect_confined(bench->pid);
}

static void all_its_threads_are(void **state)
{
    struct bench *bench = *state;
    char path[64];
    struct dirent *entry;
    DIR *tasks;
    unsigned count = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)bench->pid);
    tasks = opendir(path);
    while ((entry = readdir(tasks))) {
        if (entry->d_name[0] == '.')
            continue;
        expect_confined(atoi(entry->d_name));
        count++;
    }
    closedir(tasks);
    assert_true(count >= 2);
}

static void it_becomes_its_user_and_forgets_the_groups(void **state)
{
    struct bench *bench = *state;
    char path[64], *status;

    if (geteuid() != 0)
        skip();
    bench->uid = 65534;
    chmod(bench->directory, 0755);
    session_start(bench, false);
    snprintf(path, sizeof(path), "/proc/%d/status", (int)bench->pid);
    status = unit_read_file(path);
    expect_line(status, "Uid", "65534\t65534\t65534\t65534");
    expect_line(status, "Gid", "65534\t65534\t65534\t65534");
    expect_line(status, "Groups", " ");
    free(status);
    assert_int_equal(guest_run(bench, text(bench, "GPU_INFO")).status, VGPU_OK);
}

static void of_a_window_it_has_its_slot_only(void **state)
{
    struct bench *bench = *state;
    char path[64], *maps, *line, *rest;
    unsigned windows = 0;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)bench->pid);
    maps = unit_read_file(path);
    assert_true(maps[0] != '\0');
    for (rest = maps; (line = strsep(&rest, "\n"));) {
        unsigned long long begin, end, offset;

        if (!strstr(line, "memfd:window"))
            continue;
        assert_int_equal(sscanf(line, "%llx-%llx %*s %llx", &begin, &end, &offset), 3);
        assert_int_equal(offset, bench->slot_offset);
        assert_int_equal(end - begin, bench->slot_bytes);
        windows++;
    }
    assert_int_equal(windows, 1);
    free(maps);
    for (int fd = 0; fd < 64; fd++) {
        char target[256];
        ssize_t bytes;

        snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)bench->pid, fd);
        bytes = readlink(path, target, sizeof(target) - 1);
        if (bytes < 0)
            continue;
        target[bytes] = '\0';
        assert_null(strstr(target, "memfd:window"));
    }
}

static void it_is_on_no_network(void **state)
{
    struct bench *bench = *state;
    char path[64], own[64], its[64];
    ssize_t bytes;

    if (geteuid() != 0)
        skip();
    snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)bench->pid);
    bytes = readlink(path, its, sizeof(its) - 1);
    assert_true(bytes > 0);
    its[bytes] = '\0';
    bytes = readlink("/proc/self/ns/net", own, sizeof(own) - 1);
    own[bytes] = '\0';
    assert_string_not_equal(its, own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#if SANDBOX_TESTS
        cmocka_unit_test(calls_that_no_operation_needs_fail_with_eperm),
        cmocka_unit_test(memory_and_time_are_still_to_be_had),
#endif
        cmocka_unit_test(the_calls_are_refused_by_the_sandbox_alone),
        STARTED_TEST(a_worker_is_confined_before_it_is_ready),
        STARTED_TEST(all_its_threads_are),
        SESSION_TEST(it_becomes_its_user_and_forgets_the_groups),
        STARTED_TEST(of_a_window_it_has_its_slot_only),
        STARTED_TEST(it_is_on_no_network),
    };

    bench_prepare();
    parent = getpid();
    some_fd = memfd_create("file", MFD_CLOEXEC);
    some_mapping = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, some_fd, 0);
    snprintf(some_path, sizeof(some_path), "/tmp/vgpu-unit-no-such-file-%d", parent);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
