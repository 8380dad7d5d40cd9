/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a broker can still do once it looks at a guest's pages: copy, wake both sides, let
 * the pages go, and connect to the mediator again.  A call that is not on the list fails
 * with EPERM.  It connects as the owner of its VM's socket, without a right of root's: to
 * that socket, and to others only where everybody may or that owner.
 *
 * The list is that of traces of whole sessions, with the mediator's restart and each end
 * (`strace -f -o FILE vgpu-xen ...`: a broker's lines behind seccomp(2)), and what the
 * devices of Xen need besides: two requests of ioctl(2).  Under Xen's paravirtualised
 * clocks time is a system call as well.
 */
#include "xen/xen.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t domid_t; /* which the next headers of some versions need */
typedef uint32_t grant_ref_t;
#include <xen/evtchn.h>
#include <xen/gntdev.h>

/* Root's is refused: its files are the host's, other machines' sockets among them. */
static int find_owner(const char *socket_path, struct stat *ret_status, struct vgpu_error *error)
{
    struct stat status;

    if (stat(socket_path, &status) < 0)
        return error_set_errno(error,
                               "%s: is vgpu-mediator running, and does this VM have the window "
                               "channel?",
                               socket_path);
    if (status.st_uid == 0 || status.st_gid == 0)
        return error_set(error, EPERM,
                         "%s belongs to %u:%u, and no broker runs as root: give the VM an owner of "
                         "its own (vgpu-admin update-vm VM --owner default, or a NUMBER)",
                         socket_path, (unsigned)status.st_uid, (unsigned)status.st_gid);
    *ret_status = status;
    return 0;
}

int xen_become_owner(const char *socket_path, struct vgpu_error *error)
{
    struct stat status;

    if (geteuid() != 0)
        return 0;
    if (find_owner(socket_path, &status, error) < 0)
        return -1;
    if (setgroups(0, NULL) < 0 || setresgid(status.st_gid, status.st_gid, status.st_gid) < 0 ||
        setresuid(status.st_uid, status.st_uid, status.st_uid) < 0)
        return error_set_errno(error, "cannot become %u:%u, the owner of %s",
                               (unsigned)status.st_uid, (unsigned)status.st_gid, socket_path);
    return 0;
}

static int give_up_capabilities(struct vgpu_error *error)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capset, &header, none) < 0)
        return error_set_errno(error, "cannot give up its capabilities");
    return 0;
}

#ifdef XEN_SANITIZED /* sanitizers make calls of their own */
static int load_list(struct vgpu_error *error)
{
    (void)error;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return 0;
}
#else
#include <seccomp.h>

static const int allowed[] = {
    /* the descriptors that it has */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(writev), /* the last words of the C library */
    SCMP_SYS(close),
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    /* the mediator, when it is there again; socket(2) has a rule of its own */
    SCMP_SYS(connect),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(timerfd_settime),
    /* time */
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    /* memory; mmap and mprotect have rules of their own.  No mremap: see exec/sandbox.c */
    SCMP_SYS(munmap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    /* itself */
    SCMP_SYS(futex),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

static int allow_one(scmp_filter_ctx filter, int call, struct scmp_arg_cmp argument)
{
    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1, argument);
}

static int add_rules(scmp_filter_ctx filter)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < VGPU_ARRAY_LENGTH(allowed); i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    /* Of Xen: wake the guest, let its pages go. */
    if (result == 0)
        result = allow_one(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, IOCTL_EVTCHN_NOTIFY));
    if (result == 0)
        result =
            allow_one(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, IOCTL_GNTDEV_UNMAP_GRANT_REF));
    if (result == 0)
        result = allow_one(filter, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
    /* Memory of its own only, never to be executed. */
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2,
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0),
                                  SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS));
    if (result == 0)
        result = allow_one(filter, SCMP_SYS(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (result == 0) /* abort(3): itself and nobody else */
        result = allow_one(filter, SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_EQ, (unsigned)getpid()));
    return result;
}

static int load_list(struct vgpu_error *error)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int result = filter ? add_rules(filter) : -ENOMEM;

    if (result == 0)
        result = seccomp_load(filter);
    if (filter)
        seccomp_release(filter);
    return result == 0 ? 0
                       : error_set(error, -result, "cannot confine itself: %s", strerror(-result));
}
#endif

int xen_confine(struct vgpu_error *error)
{
    return give_up_capabilities(error) < 0 ? -1 : load_list(error);
}
