/* SPDX-License-Identifier: Apache-2.0 */
/* Loads libcuda: every function of the list or none, and says why not. */
#include "gpu/cuda.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define CUDA_LIBRARY "libcuda.so.1"

#define INSTALL                                                                                    \
    "install NVIDIA's driver " CUDA_DRIVER_MIN " or newer with its CUDA library (Debian: "         \
    "libcuda1), of the same version as its kernel module"

#define NEEDED true
#define OPTIONAL false

/* --- names ---------------------------------------------------------------------------------- */

#define RESULT_NAME(name, value)                                                                   \
    case (value):                                                                                  \
        return "CUDA_ERROR_" #name;

static const char *known_name(cuda_result result)
{
    switch (result) {
    case CUDA_SUCCESS:
        return "CUDA_SUCCESS";
        CUDA_RESULTS(RESULT_NAME)
    default:
        return "an unknown CUDA error";
    }
}

const char *cuda_error_name(const struct cuda *cuda, cuda_result result)
{
    const char *name = NULL;

    if (!cuda || !cuda->get_error_name || cuda->get_error_name(result, &name) != CUDA_SUCCESS ||
        !name)
        return known_name(result);
    return name;
}

/* --- loading --------------------------------------------------------------------------------- */

/* The loader has no code for it, only this text. */
static bool is_absence(const char *path, const char *problem)
{
    size_t length = strlen(path);

    return strncmp(problem, path, length) == 0 && strstr(problem + length, "No such file");
}

static void *open_library(const char *path, struct vgpu_error *error)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *problem = library ? NULL : dlerror();

    if (library)
        return library;
    if (!problem)
        problem = "the loader does not say why";
    if (is_absence(path, problem))
        error_fill(error, ENOENT, "there is no %.200s: " INSTALL, path);
    else
        error_fill(error, ELIBBAD, "%.100s cannot be loaded (%.200s): " INSTALL, path, problem);
    return NULL;
}

/* dlsym(3) gives functions as data; POSIX says that the copy is one. */
static bool find_function(void *library, const char *symbol, void *ret_function)
{
    void *address = dlsym(library, symbol);

    memcpy(ret_function, &address, sizeof(address));
    return address != NULL;
}

#define FIND(member, symbol, need, parameters)                                                     \
    if (!find_function(cuda->handle, #symbol, &cuda->member) && (need) && !missing)                \
        missing = #symbol;

/* The first function that is needed and not there; NULL when all are. */
static const char *find_functions(struct cuda *cuda)
{
    const char *missing = NULL;

    CUDA_FUNCTIONS(FIND)
    return missing;
}

static int check(const struct cuda *cuda, const char *path, const char *missing,
                 struct vgpu_error *error)
{
    int major = cuda->version / 1000, minor = cuda->version % 1000 / 10;

    if (cuda->version < CUDA_VERSION_MIN)
        return error_set(error, ENOTSUP,
                         "%.200s has CUDA %d.%d, expected %d.%d or newer%s%s%s: " INSTALL, path,
                         major, minor, CUDA_VERSION_MIN / 1000, CUDA_VERSION_MIN % 1000 / 10,
                         missing ? " (it has no " : "", missing ? missing : "", missing ? ")" : "");
    if (missing)
        return error_set(error, ELIBBAD, "%.200s has CUDA %d.%d but no %s: " INSTALL, path, major,
                         minor, missing);
    return 0;
}

int cuda_load(const char *path, struct cuda *ret_cuda, struct vgpu_error *error)
{
    struct cuda cuda = {.handle = NULL};
    const char *missing;
    cuda_result result;

    if (!path)
        path = CUDA_LIBRARY;
    cuda.handle = open_library(path, error);
    if (!cuda.handle)
        return -1;
    missing = find_functions(&cuda);
    if (!cuda.driver_get_version) {
        error_fill(error, ELIBBAD,
                   "%.200s has no cuDriverGetVersion, so it is no libcuda: " INSTALL, path);
        goto fail;
    }
    result = cuda.driver_get_version(&cuda.version);
    if (result != CUDA_SUCCESS) {
        error_fill(error, ELIBBAD, "%.200s does not say which CUDA it has: %s (%d): " INSTALL, path,
                   cuda_error_name(&cuda, result), result);
        goto fail;
    }
    if (check(&cuda, path, missing, error) < 0)
        goto fail;
    *ret_cuda = cuda;
    return 0;

fail:
    cuda_unload(&cuda);
    return -1;
}

void cuda_unload(struct cuda *cuda)
{
    if (!cuda || !cuda->handle)
        return;
    dlclose(cuda->handle);
    *cuda = (struct cuda){.handle = NULL};
}
