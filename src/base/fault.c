/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#ifdef VGPU_FAULT_POINTS

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

void fault_point(const char *point)
{
    static atomic_uint_least64_t passed;
    const char *wanted = getenv("VGPU_FAULT");
    size_t length = strlen(point);
    uint64_t count;

    if (!wanted || strncmp(wanted, point, length) != 0 || wanted[length] != ':')
        return;
    if (!text_parse_u64(wanted + length + 1, 1, UINT32_MAX, &count))
        return;
    /* One point is named a run, so one counter serves. */
    if (atomic_fetch_add(&passed, 1) + 1 == count)
        raise(SIGKILL);
}

#else

/* ISO C wants a translation unit to declare something. */
typedef int fault_points_are_not_built;

#endif
