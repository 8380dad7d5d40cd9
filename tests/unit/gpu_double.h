/* SPDX-License-Identifier: Apache-2.0 */
/* A copy of a double of libcuda in a directory of its own, with its own orders. */
#ifndef VGPU_TESTS_GPU_DOUBLE_H
#define VGPU_TESTS_GPU_DOUBLE_H

#include "unit.h"

#include "gpu/cuda.h"

#include <limits.h>

struct gpu_double {
    char *directory;
    char path[PATH_MAX];
};

static inline void gpu_double_copy(const char *from, const char *to)
{
    FILE *source = fopen(from, "re"), *target = fopen(to, "we");
    char part[65536];
    size_t got;

    assert_non_null(source);
    assert_non_null(target);
    while ((got = fread(part, 1, sizeof(part), source)) > 0)
        assert_int_equal(fwrite(part, 1, got, target), got);
    fclose(source);
    assert_int_equal(fclose(target), 0);
}

/* `variable`: of the environment, names the library. */
static inline void gpu_double_begin(struct gpu_double *own, const char *variable)
{
    const char *library = getenv(variable);

    assert_non_null(library);
    own->directory = unit_temporary_directory();
    snprintf(own->path, sizeof(own->path), "%s/libcuda.so.1", own->directory);
    gpu_double_copy(library, own->path);
}

static inline void gpu_double_end(struct gpu_double *own)
{
    unit_remove_directory(own->directory);
}

/* What it does from its next call on; "" as if nothing was ever ordered. */
static inline void gpu_double_order(const struct gpu_double *own, const char *orders)
{
    char path[PATH_MAX + 8], fresh[PATH_MAX + 8];
    FILE *file;

    snprintf(path, sizeof(path), "%s.conf", own->path);
    snprintf(fresh, sizeof(fresh), "%s.new", own->path);
    file = fopen(fresh, "we");
    assert_non_null(file);
    fputs(orders, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(rename(fresh, path), 0);
}

#endif /* VGPU_TESTS_GPU_DOUBLE_H */
