/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Cut to fit, at a character's end. */
static __attribute__((format(printf, 2, 0))) void fill(struct vgpu_error *error, const char *format,
                                                       va_list args)
{
    if (vsnprintf(error->message, sizeof(error->message), format, args) >=
        (int)sizeof(error->message))
        text_end_whole(error->message);
}

void error_fill(struct vgpu_error *error, int code, const char *format, ...)
{
    va_list args;

    if (!error)
        return;
    error->code = code;
    va_start(args, format);
    fill(error, format, args);
    va_end(args);
}

void error_fill_errno(struct vgpu_error *error, const char *format, ...)
{
    int code = errno;
    size_t used;
    va_list args;

    if (!error)
        return;
    error->code = code;
    va_start(args, format);
    fill(error, format, args);
    va_end(args);
    used = strlen(error->message);
    snprintf(error->message + used, sizeof(error->message) - used, ": %s", strerror(code));
}
