/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVIDIA's library as it is, but for one thing: it registers no host memory larger than
 * PIN_BYTES_MAX.  So a session's slot is not pinned, and its copies go through chunks, on a
 * real GPU too:
 *
 *   worker ──cuMemcpyHtoDAsync_v2──▶ a jump ──▶ libcuda.so.1
 *          ──cuMemHostRegister_v2──▶ register_small() ──▶ libcuda.so.1, or CUDA_OUT_OF_MEMORY
 *
 * The library is libcuda.so.1, or the one whose path stands in `<path of this one>.real`.
 */
#include "gpu/cuda.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIN_BYTES_MAX 65536

/* Where each function's jump goes. */
#define TARGET(member, symbol, need, parameters) static void *target_##symbol __attribute__((used));
CUDA_FUNCTIONS(TARGET)

/* Parameters stay where they are: a jump needs to know none of them. */
#define JUMP(member, symbol, need, parameters)                                                     \
    __attribute__((visibility("default"))) void symbol(void);                                      \
    __attribute__((naked)) void symbol(void)                                                       \
    {                                                                                              \
        __asm__("jmp *target_" #symbol "(%rip)");                                                  \
    }
CUDA_FUNCTIONS(JUMP)

static cuda_result (*real_register)(void *memory, size_t bytes, unsigned flags);

static cuda_result register_small(void *memory, size_t bytes, unsigned flags)
{
    return bytes > PIN_BYTES_MAX ? CUDA_OUT_OF_MEMORY : real_register(memory, bytes, flags);
}

/* What stands for an optional function that the library has not. */
static cuda_result is_missing(void)
{
    return CUDA_NOT_SUPPORTED;
}

static void *find(void *library, const char *symbol)
{
    void *function = dlsym(library, symbol);

    return function ? function : (void *)(uintptr_t)is_missing;
}

/* The path in the file beside this library, without its line's end. */
static void read_path(char path[PATH_MAX])
{
    char beside[PATH_MAX];
    Dl_info self;
    FILE *file;

    snprintf(path, PATH_MAX, "libcuda.so.1");
    if (!dladdr(&real_register, &self) ||
        snprintf(beside, sizeof(beside), "%s.real", self.dli_fname) >= (int)sizeof(beside))
        return;
    file = fopen(beside, "re");
    if (!file)
        return;
    if (fgets(path, PATH_MAX, file))
        path[strcspn(path, "\n")] = '\0';
    fclose(file);
}

static __attribute__((constructor)) void find_all(void)
{
    char path[PATH_MAX];
    void *library;

    read_path(path);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "unpinned libcuda: %s\n", dlerror());
        abort();
    }
#define FIND(member, symbol, need, parameters) target_##symbol = find(library, #symbol);
    CUDA_FUNCTIONS(FIND)
    memcpy(&real_register, &target_cuMemHostRegister_v2, sizeof(real_register));
    target_cuMemHostRegister_v2 = (void *)(uintptr_t)register_small;
}
