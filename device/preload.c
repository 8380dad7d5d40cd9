/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the device needs when it comes as a shared object into a distribution's
 * QEMU, by LD_PRELOAD: two guards.
 *
 * The shared object holds QEMU's structures as they were in the headers of one
 * version.  In any other QEMU it would write into the wrong fields, so it asks
 * the program for its version, which is a plain string, before it touches
 * anything.  And the programs that QEMU starts (network scripts, helpers) must
 * not inherit the preload: they lack QEMU's symbols and would not start.
 */
#include "qemu/osdep.h"
#include <dlfcn.h>
#include "qapi/qapi-commands-control.h"
#include "qapi/qapi-types-control.h"
#include "compat.h"

/* Found by `grep -a` in device/qemu-with-vgpu. */
static const char vgpu_preload_mark[] __attribute__((used)) =
    "vgpu-stub for QEMU=" VGPU_PRELOAD_VERSION ";";

/* True for the version itself and its rebuilds: 1.2-3 fits 1.2-3+b1. */
static bool vgpu_preload_version_fits(const char *package)
{
    const char *found = strstr(package, VGPU_PRELOAD_VERSION);
    const char *rest;

    if (!found || (found != package && found[-1] != ' ')) {
        return false;
    }
    rest = found + strlen(VGPU_PRELOAD_VERSION);
    if (g_str_has_prefix(rest, "+b")) {
        rest += 2 + strspn(rest + 2, "0123456789");
    }
    return *rest == '\0' || *rest == ')';
}

bool vgpu_preload_fits(void)
{
    VersionInfo *info = qmp_query_version(NULL);
    bool fits = vgpu_preload_version_fits(info->package);

    if (!fits) {
        fprintf(stderr, "vgpu-stub: this shared object is for QEMU %s, but "
                "this QEMU is %" PRId64 ".%" PRId64 ".%" PRId64 " %s: "
                "rebuild it with scripts/build-device\n", VGPU_PRELOAD_VERSION,
                info->qemu->major, info->qemu->minor, info->qemu->micro,
                info->package);
    }
    qapi_free_VersionInfo(info);
    return fits;
}

/* Takes this object, and only it, out of LD_PRELOAD. */
static void __attribute__((constructor)) vgpu_preload_leave_environment(void)
{
    const char *value = getenv("LD_PRELOAD");
    Dl_info self;
    GString *rest;
    char **parts;
    int i;

    if (!value || !dladdr(vgpu_preload_mark, &self)) {
        return;
    }
    rest = g_string_new(NULL);
    parts = g_strsplit_set(value, ": ", -1);
    for (i = 0; parts[i]; i++) {
        if (*parts[i] && strcmp(parts[i], self.dli_fname)) {
            g_string_append_printf(rest, "%s%s", rest->len ? ":" : "",
                                   parts[i]);
        }
    }
    if (rest->len) {
        setenv("LD_PRELOAD", rest->str, 1);
    } else {
        unsetenv("LD_PRELOAD");
    }
    g_strfreev(parts);
    g_string_free(rest, TRUE);
}
