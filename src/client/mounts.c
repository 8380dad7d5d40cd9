/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which mount a path lies on, from /proc/self/mountinfo, which answers even
 * when the mount itself hangs:
 *
 *   36 35 0:45 / /mnt/vgpu rw,relatime shared:1 - nfs4 10.0.2.2:/exp rw,vers=4.2
 */
#include "client.h"

#include <stdlib.h>
#include <string.h>

/* The kernel writes space, tab, newline and backslash as \ooo. */
static void unescape(char *text)
{
    char *out = text;

    while (*text) {
        if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] && text[3]) {
            *out++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0'));
            text += 4;
        } else {
            *out++ = *text++;
        }
    }
    *out = '\0';
}

static bool covers(const char *point, const char *path)
{
    size_t length = strlen(point);

    if (strcmp(point, "/") == 0)
        return path[0] == '/';
    return strncmp(point, path, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static bool has_option(const char *options, const char *wanted)
{
    size_t length = strlen(wanted);

    for (const char *at = options; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, wanted, length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return true;
    }
    return false;
}

static bool parse_line(char *line, struct mount_entry *entry)
{
    char *tail = strstr(line, " - "), *fields[6] = {0}, *more[3] = {0}, *state = NULL;

    if (!tail)
        return false;
    *tail = '\0';
    for (int i = 0; i < 6; i++)
        fields[i] = strtok_r(i == 0 ? line : NULL, " ", &state);
    for (int i = 0; i < 3; i++)
        more[i] = strtok_r(i == 0 ? tail + 3 : NULL, " \n", &state);
    if (!fields[5] || !more[2])
        return false;
    unescape(fields[4]);
    unescape(more[1]);
    snprintf(entry->point, sizeof(entry->point), "%s", fields[4]);
    snprintf(entry->type, sizeof(entry->type), "%s", more[0]);
    snprintf(entry->source, sizeof(entry->source), "%s", more[1]);
    entry->read_only = has_option(fields[5], "ro") || has_option(more[2], "ro");
    return true;
}

bool mount_find(const char *mountinfo, const char *path, struct mount_entry *ret_entry)
{
    FILE *file = fopen(mountinfo, "re");
    struct mount_entry entry;
    size_t bytes = 0, best = 0;
    char *line = NULL;

    if (!file)
        return false;
    while (getline(&line, &bytes, file) >= 0) {
        /* A later mount at the same point hides the earlier one. */
        if (parse_line(line, &entry) && covers(entry.point, path) && strlen(entry.point) >= best) {
            best = strlen(entry.point);
            *ret_entry = entry;
        }
    }
    free(line);
    fclose(file);
    return best > 0;
}

bool mount_is_network(const struct mount_entry *entry)
{
    static const char *const types[] = {"nfs",  "nfs4", "9p",        "virtiofs",  "cifs",
                                        "smb3", "ceph", "ceph-fuse", "fuse.sshfs"};

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(entry->type, types[i]) == 0)
            return true;
    }
    return false;
}
