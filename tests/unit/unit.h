/* SPDX-License-Identifier: Apache-2.0 */
/* What every unit test needs: cmocka with its includes, temporary places. */
#ifndef VGPU_TESTS_UNIT_H
#define VGPU_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A new directory under $TMPDIR; unit_remove_directory() removes and frees. */
static inline char *unit_temporary_directory(void)
{
    const char *parent = getenv("TMPDIR");
    char *path = NULL;

    if (asprintf(&path, "%s/vgpu-unit-XXXXXX", parent ? parent : "/tmp") < 0)
        abort();
    if (!mkdtemp(path)) {
        perror(path);
        abort();
    }
    return path;
}

static inline int unit_remove_entry(const char *path, const struct stat *info, int type,
                                    struct FTW *where)
{
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static inline void unit_remove_directory(char *path)
{
    nftw(path, unit_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}

/* The whole file as a string that the caller frees; "" when it is not there. */
static inline char *unit_read_file(const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = NULL;
    size_t bytes = 0;

    if (!file)
        return strdup("");
    if (getdelim(&text, &bytes, '\0', file) < 0) {
        free(text);
        text = strdup("");
    }
    fclose(file);
    return text;
}

#endif
