/* SPDX-License-Identifier: Apache-2.0 */
/* What programs on libvgpu that test or measure it share: they end at the first thing that
 * is not as it must be, with a line that says which. */
#ifndef VGPU_TESTS_PROBE_H
#define VGPU_TESTS_PROBE_H

#include <vgpu/vgpu.h>

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static struct vgpu_problem problem;

static void __attribute__((noreturn, format(printf, 3, 4)))
wrong(const char *file, int line, const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "; last problem: %d %s\n", problem.status, problem.text);
    _exit(1);
}

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            wrong(__FILE__, __LINE__, "not true: %s", #condition);                                 \
    } while (0)
#define GOOD(call) MUST((call) == 0)
#define FAILS(call, code) MUST((call) == -1 && problem.status == (code))

static inline uint64_t allocate(struct vgpu_session *session, uint64_t bytes)
{
    uint64_t address;

    GOOD(vgpu_memory_alloc(session, bytes, &address, &problem));
    return address;
}

#endif /* VGPU_TESTS_PROBE_H */
