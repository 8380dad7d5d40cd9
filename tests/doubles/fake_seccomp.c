/* SPDX-License-Identifier: Apache-2.0 */
/* For LD_PRELOAD of a worker under valgrind, which knows no seccomp(2): the list of calls is
 * made as ever, and nothing is confined.  For bench/launches.py only. */
#include <seccomp.h>

int seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
    (void)ctx;
    (void)attr;
    (void)value;
    return 0;
}

int seccomp_load(scmp_filter_ctx ctx)
{
    (void)ctx;
    return 0;
}
