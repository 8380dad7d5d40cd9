/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this program must know of the mediator's configuration: where share, sockets
 * and database are.  Its own settings stand in the same file, in the section [admin],
 * which the mediator skips.  Other sections and keys are the mediator's business and
 * are not judged here: `vgpu-mediator --check-config` does.
 */
#include "admin/admin.h"

#include "control/control.h"

#include <errno.h>
#include <ini.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_SHARE "/var/vgpu"
#define DEFAULT_STATE_DIR "/var/lib/vgpu"
#define DEFAULT_RUN_DIR "/run/vgpu"

struct reader {
    struct admin *admin;
    struct vgpu_error *error;
    const char *path;
    bool file_channel;
    bool failed;
};

static const char *const exports_kinds[] = {
    [EXPORTS_NONE] = "none", [EXPORTS_GANESHA] = "ganesha", [EXPORTS_KERNEL] = "kernel"};

static int bad(struct reader *reader, const char *key, const char *value, const char *expected)
{
    reader->failed = true;
    return error_set(reader->error, EINVAL, "%s: [admin] %s = %s: expected %s", reader->path, key,
                     value, expected);
}

static int set_exports_kind(struct reader *reader, const char *value)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(exports_kinds); i++) {
        if (strcmp(value, exports_kinds[i]) == 0) {
            reader->admin->exports_kind = (enum exports_kind)i;
            return 0;
        }
    }
    return bad(reader, "exports_kind", value, "none, ganesha or kernel");
}

static int set_owner_base(struct reader *reader, const char *key, const char *value)
{
    uint64_t base;
    char expected[160];

    if (text_parse_u64(value, ADMIN_OWNER_BASE_MIN, ADMIN_OWNER_MAX, &base)) {
        reader->admin->xen_owner_base = (uint32_t)base;
        return 0;
    }
    snprintf(expected, sizeof(expected),
             "a whole number from %u to %u, above which no user or group of this host or its "
             "containers has one",
             ADMIN_OWNER_BASE_MIN, ADMIN_OWNER_MAX);
    return bad(reader, key, value, expected);
}

static int set_admin_key(struct reader *reader, const char *key, const char *value)
{
    struct admin *admin = reader->admin;

    if (strcmp(key, "exports_kind") == 0)
        return set_exports_kind(reader, value);
    if (strcmp(key, "exports_dir") == 0) {
        if (value[0] != '/')
            return bad(reader, key, value, "an absolute path");
        text_copy(admin->exports_dir, sizeof(admin->exports_dir), value);
        return 0;
    }
    if (strcmp(key, "exports_reload") == 0) {
        if (value[0] != '/' && strcmp(value, "none") != 0)
            return bad(reader, key, value,
                       "the absolute path of a program with its arguments, or "
                       "none");
        text_copy(admin->exports_reload, sizeof(admin->exports_reload), value);
        return 0;
    }
    if (strcmp(key, "toolstack") == 0) {
        text_copy(admin->toolstack_name, sizeof(admin->toolstack_name), value);
        return 0;
    }
    if (strcmp(key, "xen_owner_base") == 0)
        return set_owner_base(reader, key, value);
    return bad(reader, key, value,
               "one of the keys toolstack, exports_kind, exports_dir, "
               "exports_reload, xen_owner_base");
}

static void set_mediator_key(struct reader *reader, const char *key, const char *value)
{
    struct admin *admin = reader->admin;

    if (strcmp(key, "share") == 0)
        text_copy(admin->share, sizeof(admin->share), value);
    else if (strcmp(key, "run_dir") == 0)
        text_copy(admin->run_dir, sizeof(admin->run_dir), value);
    else if (strcmp(key, "state_dir") == 0)
        text_copy(admin->state_dir, sizeof(admin->state_dir), value);
    else if (strcmp(key, "database") == 0)
        text_copy(admin->database_path, sizeof(admin->database_path), value);
    else if (strcmp(key, "cuda_library") == 0)
        text_copy(admin->cuda_library, sizeof(admin->cuda_library), value);
    else if (strcmp(key, "nvml_library") == 0)
        text_copy(admin->nvml_library, sizeof(admin->nvml_library), value);
    else if (strcmp(key, "worker_user") == 0)
        text_copy(admin->worker_user, sizeof(admin->worker_user), value);
    else if (strcmp(key, "channels") == 0)
        reader->file_channel = strstr(value, "file") != NULL;
}

static int on_key(void *user, const char *section, const char *key, const char *value)
{
    struct reader *reader = user;

    if (reader->failed)
        return 0;
    if (strcmp(section, "mediator") == 0)
        set_mediator_key(reader, key, value);
    else if (strcmp(section, "admin") == 0)
        return set_admin_key(reader, key, value) == 0;
    return 1;
}

/* A missing file is fine where nobody named it. */
static int read_file(struct reader *reader)
{
    FILE *file = fopen(reader->path, "re");
    int line;

    if (!file && errno == ENOENT && !reader->admin->config) {
        reader->file_channel = false;
        return 0;
    }
    if (!file) {
        reader->admin->failed_exit = ADMIN_FAILED;
        return error_set_errno(reader->error, "cannot open the configuration '%s'", reader->path);
    }
    line = ini_parse_file(file, on_key, reader);
    fclose(file);
    if (line != 0 && !reader->failed)
        return error_set(reader->error, EINVAL,
                         "%s, line %d: cannot be read; vgpu-mediator --check-config says more",
                         reader->path, line);
    return reader->failed ? -1 : 0;
}

/* As the mediator does it: its own state directory means its own sockets. */
static void complete(struct reader *reader)
{
    struct admin *admin = reader->admin;

    if (!admin->run_dir[0] && strcmp(admin->state_dir, DEFAULT_STATE_DIR) == 0)
        text_copy(admin->run_dir, sizeof(admin->run_dir), DEFAULT_RUN_DIR);
    else if (!admin->run_dir[0])
        snprintf(admin->run_dir, sizeof(admin->run_dir), "%.*s/run", PATH_MAX - 8,
                 admin->state_dir);
    if (!reader->file_channel)
        admin->share[0] = '\0';
    if (admin->database)
        text_copy(admin->database_path, sizeof(admin->database_path), admin->database);
    if (admin->socket)
        text_copy(admin->socket_path, sizeof(admin->socket_path), admin->socket);
    else
        snprintf(admin->socket_path, sizeof(admin->socket_path), "%.*s/%s", PATH_MAX - 32,
                 admin->run_dir, CONTROL_SOCKET_NAME);
    if (admin->toolstack)
        text_copy(admin->toolstack_name, sizeof(admin->toolstack_name), admin->toolstack);
    if (!admin->exports_dir[0] && admin->exports_kind != EXPORTS_NONE)
        text_copy(admin->exports_dir, sizeof(admin->exports_dir),
                  admin->exports_kind == EXPORTS_KERNEL ? "/etc/exports.d" : "/etc/ganesha/vgpu");
}

int settings_read(struct admin *admin, struct vgpu_error *error)
{
    struct reader reader = {.admin = admin,
                            .error = error,
                            .path = admin->config ? admin->config : ADMIN_DEFAULT_CONFIG,
                            .file_channel = true};

    text_copy(admin->share, sizeof(admin->share), DEFAULT_SHARE);
    text_copy(admin->state_dir, sizeof(admin->state_dir), DEFAULT_STATE_DIR);
    text_copy(admin->database_path, sizeof(admin->database_path), STORE_DEFAULT_PATH);
    text_copy(admin->worker_user, sizeof(admin->worker_user), "nobody");
    admin->xen_owner_base = ADMIN_OWNER_BASE_DEFAULT;
    if (read_file(&reader) < 0)
        return -1;
    complete(&reader);
    return 0;
}
