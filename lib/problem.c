/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words for what went wrong: a number for programs, a text for people that says
 * what was expected, what came and what to do.
 */
#include "private.h"

#include <stdio.h>

static const struct {
    const char *text;
    const char *advice;
} words[] = {
    [VGPU_OK] = {"success", ""},
    [VGPU_INVALID] = {"invalid value", "a field has a value that this operation cannot have"},
    [VGPU_BAD_OPCODE] = {"no such operation", "the host's version does not know it"},
    [VGPU_NOT_SUPPORTED] = {"not supported by this backend",
                            "vgpu_session_info() tells the features of the host"},
    [VGPU_OUT_OF_MEMORY] = {"out of memory",
                            "free device memory, or ask for less; the limit is the host's"},
    [VGPU_BAD_ADDRESS] = {"bad address",
                          "give an address from vgpu_memory_alloc() and stay inside its bytes"},
    [VGPU_BAD_HANDLE] = {"bad handle", "no such stream, event, module or device; create it first"},
    [VGPU_HANDLE_EXISTS] = {"handle exists", "destroy it first, or choose another number"},
    [VGPU_NOT_FOUND] = {"not found", "the backend has no kernel of this name"},
    [VGPU_TOO_MANY] = {"too many", "destroy handles or free memory that is not needed any more"},
    [VGPU_COMMAND_FAILED] = {"command failed", "its answer says why"},
    [VGPU_CANCELLED] = {"cancelled", ""},
    [VGPU_DEVICE_LOST] = {"device lost", "its memory, streams and events are gone: vgpu_reset(), "
                                         "then begin anew"},
    [VGPU_NOT_READY] = {"not ready", "look again later"},
    [VGPU_TIME_LIMIT] = {"time limit",
                         "it ran longer than the host allows (VGPU_QUERY_OPERATION_LIMIT_MS), and "
                         "the session was lost with it: vgpu_reset(), then smaller pieces"},
    [VGPU_REFUSED] = {"refused", "the host's administrator has quarantined this VM or disabled its "
                                 "pool; what the session holds is kept: try again later"},
    [VGPU_KERNEL_FAULT] = {"kernel fault",
                           "a kernel of this session used an address or an instruction that the "
                           "GPU forbids, and the session was lost: vgpu_reset(), then begin anew"},
    [VGPU_BAD_IMAGE] = {"bad module image", "give PTX, a cubin for this GPU, or a fatbin with "
                                            "either; PTX may be too new for the host's driver"},
    [VGPU_PROBLEM_NO_DEVICE] = {"no device", ""},
    [VGPU_PROBLEM_DENIED] = {"permission denied", ""},
    [VGPU_PROBLEM_NO_HOST] = {"no host", ""},
    [VGPU_PROBLEM_BUSY] = {"all sessions are taken", ""},
    [VGPU_PROBLEM_CLOSED] = {"session closed", ""},
    [VGPU_PROBLEM_TIMEOUT] = {"timeout", ""},
    [VGPU_PROBLEM_FULL] = {"full", ""},
    [VGPU_PROBLEM_FORKED] = {"session of another process", ""},
    [VGPU_PROBLEM_ARGUMENT] = {"wrong argument", ""},
    [VGPU_PROBLEM_SYSTEM] = {"system error", ""},
};

const char *vgpu_status_text(int status)
{
    if (status < 0 || (size_t)status >= sizeof(words) / sizeof(words[0]) || !words[status].text)
        return "unknown status";
    return words[status].text;
}

const char *vgpu_transport_name(enum vgpu_transport transport)
{
    static const char *const names[] = {"auto", "module", "sysfs", "socket", "xen"};

    return (size_t)transport < sizeof(names) / sizeof(names[0]) ? names[transport] : "unknown";
}

const char *vgpu_version(void)
{
    return VGPU_PACKAGE_VERSION;
}

int problem_set(struct vgpu_problem *problem, int status, const char *format, ...)
{
    va_list args;

    if (!problem)
        return -1;
    problem->status = status;
    va_start(args, format);
    vsnprintf(problem->text, sizeof(problem->text), format, args);
    va_end(args);
    return -1;
}

int problem_copy(struct vgpu_problem *problem, const struct vgpu_problem *from)
{
    if (problem)
        *problem = *from;
    return -1;
}

int problem_of_status(struct vgpu_problem *problem, uint32_t status, const char *what)
{
    const char *text = vgpu_status_text(status > INT32_MAX ? -1 : (int)status);

    if (status == VGPU_OK)
        return 0;
    if (status >= VGPU_STATUS_COUNT)
        return problem_set(problem, (int)(status & INT32_MAX),
                           "%s: the host answered with status %u, which this library does not "
                           "know: install the one of the host's version",
                           what, status);
    return problem_set(problem, (int)status, "%s: %s%s%s", what, text,
                       words[status].advice[0] ? ": " : "", words[status].advice);
}
