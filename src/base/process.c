/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tells of a process: see proc(5), /proc/pid/stat. */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIELD_STATE 3 /* behind the name, which may hold anything */
#define FIELD_USER 14 /* clock ticks in its own code; in the kernel they are the next */
#define US_PER_S 1000000ull

static bool read_line(const char *line, struct process_sight *ret_sight)
{
    const char *at = strrchr(line, ')');
    uint64_t user, kernel;
    char *end;

    for (int field = FIELD_STATE; at && field < FIELD_USER; field++) {
        at = strchr(at + 1, ' ');
        if (at && field == FIELD_STATE)
            ret_sight->state = at[1];
    }
    at = at ? strchr(at + 1, ' ') : NULL;
    if (!at)
        return false;
    user = strtoull(at, &end, 10);
    kernel = strtoull(end, NULL, 10);
    ret_sight->cpu_us = (user + kernel) * US_PER_S / (uint64_t)sysconf(_SC_CLK_TCK);
    return true;
}

bool process_look(pid_t pid, struct process_sight *ret_sight)
{
    char path[32], line[512];
    FILE *file;
    bool known;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    file = fopen(path, "re");
    if (!file)
        return false;
    known = fgets(line, sizeof(line), file) && read_line(line, ret_sight);
    fclose(file);
    return known;
}
