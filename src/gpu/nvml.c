/* SPDX-License-Identifier: Apache-2.0 */
/* Opens libnvidia-ml and finds its functions: all that are needed, or none. */
#include "gpu/nvml.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>

struct function {
    const char *symbol;
    size_t offset; /* in struct nvml */
    bool needed;
};

#define FUNCTION(result, member, symbol, parameters, needed)                                       \
    {#symbol, offsetof(struct nvml, member), needed},

static const struct function functions[] = {NVML_FUNCTIONS(FUNCTION)};

/* Old drivers lack the newest of the names; the first one that is missing is told. */
static int find_functions(const char *path, struct nvml *nvml, struct vgpu_error *error)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(functions); i++) {
        void *symbol = dlsym(nvml->handle, functions[i].symbol);

        if (!symbol && functions[i].needed)
            return error_set(error, ENOSYS,
                             "'%s' has no function %s: expected NVIDIA's management library of "
                             "driver 450 or newer; install a newer driver",
                             path, functions[i].symbol);
        *(void **)((char *)nvml + functions[i].offset) = symbol;
    }
    return 0;
}

int nvml_load(const char *path, struct nvml *ret_nvml, struct vgpu_error *error)
{
    const char *name = path ? path : NVML_DEFAULT_LIBRARY;
    struct nvml nvml = {.handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)};

    if (!nvml.handle)
        return error_set(error, ENOENT,
                         "cannot load NVIDIA's management library (%s): install the one of the "
                         "driver's version (Debian: libnvidia-ml1), or name it in nvml_library",
                         dlerror());
    if (find_functions(name, &nvml, error) < 0) {
        dlclose(nvml.handle);
        return -1;
    }
    *ret_nvml = nvml;
    return 0;
}

void nvml_unload(struct nvml *nvml)
{
    if (nvml->handle)
        dlclose(nvml->handle);
    *nvml = (struct nvml){0};
}

void nvml_describe_code(const struct nvml *nvml, nvml_code code, char *text, size_t bytes)
{
    const char *words = nvml->error_string(code);

    snprintf(text, bytes, "%s (%u)", words ? words : "unknown error", code);
}
