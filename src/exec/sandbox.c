/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker can still do once it looks at a guest's bytes: compute, and answer
 * through the descriptors that it has.  The list of calls comes from traces of
 * every operation; tests/unit/test_exec_sandbox.c runs all of them under it, and
 * tries what is not on it.  A call that is not on the list fails with EPERM: a
 * library that tries something new gets an error and no guest loses its work to a
 * kill.
 *
 * To trace anew: `strace -f -o FILE build/src/exec/vgpu-worker "$@"` in a script that
 * VGPU_WORKER names, and the tests test_exec_session* and test_exec_worker run with it;
 * the calls behind seccomp(2) in FILE are the list.
 */
#include "exec/private.h"
#include "exec/session_worker.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

void sandbox_join_cgroup(int fd)
{
    if (write(fd, "0", 1) < 0)
        log_warning("worker: cannot join its cgroup: %s", strerror(errno));
    fd_close(&fd);
}

/* Also of who stays root: it keeps the user's files, and no right beyond. */
static int drop_capabilities(struct vgpu_error *error)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

    if (syscall(SYS_capset, &header, none) < 0)
        return error_set_errno(error, "cannot give up its capabilities");
    return 0;
}

int sandbox_drop_user(uint32_t uid, uint32_t gid, struct vgpu_error *error)
{
    if (uid != UINT32_MAX &&
        (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0))
        return error_set_errno(error, "cannot become user %u, group %u", uid, gid);
    if (drop_capabilities(error) < 0)
        return -1;
        /* Changing the user set this anew. */
#ifdef EXEC_LEAKS_ARE_CHECKED
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
#else
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
    return 0;
}

void sandbox_leave_network(void)
{
    (void)unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS);
}

#ifdef EXEC_SANITIZED /* sanitizers make calls of their own */
int sandbox_enter(bool driver, struct vgpu_error *error)
{
    (void)driver;
    (void)error;
    return 0;
}
#else
static const int allowed[] = {
    /* the descriptors that it has */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(writev), /* the last words of the C library */
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(close),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(accept4),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(poll),
    /* time */
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(timerfd_settime),
    /* memory; mmap and mprotect have rules of their own.  No mremap: a slot's mapping
     * that grows would show the window's next slot.  realloc(3) copies instead. */
    SCMP_SYS(munmap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    /* itself */
    SCMP_SYS(futex),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask),
    /* the thread at the lifeline may still be starting */
    SCMP_SYS(rseq),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

/* What NVIDIA's library does when it makes a context, uses it and ends it (driver 580),
 * its threads included.  Which files it may open is the user's rights. */
static const int allowed_driver[] = {
    SCMP_SYS(openat),  SCMP_SYS(ioctl),      SCMP_SYS(fcntl),         SCMP_SYS(fstat),
    SCMP_SYS(stat),    SCMP_SYS(newfstatat), SCMP_SYS(lseek),         SCMP_SYS(dup),
    SCMP_SYS(pipe2),   SCMP_SYS(eventfd2),   SCMP_SYS(get_mempolicy), SCMP_SYS(readlink),
    SCMP_SYS(access),  SCMP_SYS(getdents64), SCMP_SYS(uname),         SCMP_SYS(sysinfo),
    SCMP_SYS(geteuid), SCMP_SYS(getuid),     SCMP_SYS(getgid),        SCMP_SYS(getegid),
    SCMP_SYS(mlock),   SCMP_SYS(munlock),    SCMP_SYS(rt_sigaction),  SCMP_SYS(sched_getparam),
};

static int add_driver_rules(scmp_filter_ctx filter)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < VGPU_ARRAY_LENGTH(allowed_driver); i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_driver[i], 0);
    /* The GPU's memory and queues are mapped from its nodes. */
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* Threads, no processes.  clone3(2) cannot be looked into: the C library then takes
     * the older call. */
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                                  SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    return result;
}

static int add_rules(scmp_filter_ctx filter, bool driver)
{
    const unsigned pid = (unsigned)getpid();
    int result = 0;

    for (size_t i = 0; result == 0 && i < VGPU_ARRAY_LENGTH(allowed); i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    if (result == 0 && driver)
        result = add_driver_rules(filter);
    /* Memory of its own only, never to be executed. */
    if (result == 0 && !driver)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0),
                                  SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* abort(3), and the fault points of tests: itself and nobody else. */
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                                  SCMP_A0(SCMP_CMP_EQ, pid));
    return result;
}

int sandbox_enter(bool driver, struct vgpu_error *error)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int result = filter ? add_rules(filter, driver) : -ENOMEM;

    if (result == 0) /* the thread at the lifeline as well */
        result = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (result == 0)
        result = seccomp_load(filter);
    if (filter)
        seccomp_release(filter);
    return result == 0 ? 0
                       : error_set(error, -result, "cannot confine itself: %s", strerror(-result));
}
#endif
