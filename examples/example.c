/* SPDX-License-Identifier: Apache-2.0 */
/* See example.h. */
#include "example.h"

#include <err.h>
#include <stdlib.h>

struct vgpu_problem example_problem;

void example_must(int result, const char *what)
{
    if (result < 0)
        errx(1, "%s: %s", what, example_problem.text);
}

/* A session tells what its GPU can do before anything is asked of it. */
static void require_modules(struct vgpu_session *session)
{
    struct vgpu_session_info info;

    vgpu_session_info(session, &info);
    if (info.features & VGPU_FEATURE_MODULES)
        return;
    vgpu_close(session);
    errx(EXAMPLE_NO_MODULES,
         "this VM's device takes no modules, so no kernels of our own: its backend is not cuda. "
         "Ask the host's administrator for a pool with a GPU");
}

struct vgpu_session *example_open(const char *ptx, size_t ptx_bytes)
{
    struct vgpu_session *session;

    example_must(vgpu_open(NULL, &session, &example_problem), "opening a session");
    require_modules(session);
    example_must(vgpu_module_load(session, EXAMPLE_MODULE, ptx, ptx_bytes + 1, &example_problem),
                 "loading the module");
    return session;
}

uint64_t example_alloc(struct vgpu_session *session, uint64_t bytes)
{
    uint64_t address = 0;

    example_must(vgpu_memory_alloc(session, bytes, &address, &example_problem), "device memory");
    return address;
}

uint64_t example_upload(struct vgpu_session *session, const void *data, uint64_t bytes)
{
    uint64_t address = example_alloc(session, bytes);

    example_must(vgpu_copy_in(session, address, data, bytes, &example_problem),
                 "copy to the device");
    return address;
}
