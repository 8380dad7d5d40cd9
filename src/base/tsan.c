/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Only in builds with ThreadSanitizer: lets it see the descriptors that libuv closes.
 *
 *   libuv ── syscall(SYS_close, fd) ──▶ this syscall() ──▶ close(2), which it watches
 *
 * libuv closes by syscall(2) to be no point of cancellation.  The sanitizer does not watch
 * that, so the number seems open still, and the next file of another thread that gets the
 * same number looks like a race with the call that had made the descriptor.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARGUMENTS_MAX 6

/* As the C library declares it; the dynamic linker gives libuv this one.  Not instrumented:
 * a library may call it before the sanitizer has begun. */
/* NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name) */
__attribute__((no_sanitize("thread"))) long syscall(long number, ...)
{
    long (*next)(long, ...);
    long arguments[ARGUMENTS_MAX];
    va_list list;

    va_start(list, number);
    for (int i = 0; i < ARGUMENTS_MAX; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_close)
        return close((int)arguments[0]);
    *(void **)&next = dlsym(RTLD_NEXT, "syscall");
    return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                arguments[5]);
}
