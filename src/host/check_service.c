/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of what serves: the database's content, the mediator, memory's bounds. */
#include "host/private.h"

#include "control/control.h"
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void check_database(const struct survey *survey, struct host_check *check)
{
    char path[PATH_MAX];
    struct vgpu_error error;
    struct store *store;

    if (!survey->host->database[0] || !host_exists(survey->host, "%s", survey->host->database) ||
        !host_path(survey->host, path, "%s", survey->host->database)) {
        check_skip(check, "there is no database %s", survey->host->database);
        check_remedy(check, "vgpu-admin init makes it");
        return;
    }
    if (store_open(path, STORE_READ, &store, &error) < 0) {
        check_fail(check, "%s", error.message);
        check_remedy(check, "vgpu-admin restore FILE puts a backup in its place");
        return;
    }
    if (store_verify(store, &error) < 0) {
        check_fail(check, "%s", error.message);
        check_remedy(check, "vgpu-admin restore FILE puts a backup in its place");
    } else {
        check_pass(check, "whole, schema version %u", store_schema_version());
    }
    store_close(store);
}

static int try_connect(const char *path, struct vgpu_error *error)
{
    int directory = -1, result = 0;
    struct sockaddr_un address;
    int fd;

    if (control_address(path, &address, &directory, error) < 0)
        return -1;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        result = error_set_errno(error, "%s", path);
    fd_close(&fd);
    fd_close(&directory);
    return result;
}

void check_mediator(const struct survey *survey, struct host_check *check)
{
    char path[PATH_MAX];
    struct vgpu_error error;

    if (!survey->host->socket[0] || !host_path(survey->host, path, "%s", survey->host->socket)) {
        check_skip(check, "no control socket is known");
    } else if (try_connect(path, &error) == 0) {
        check_pass(check, "it answers at %s", survey->host->socket);
    } else if (error.code == EACCES || error.code == EPERM) {
        check_skip(check, "%s", error.message);
        check_remedy(check, "run it as root or as a member of the group vgpu");
    } else {
        check_warn(check, "it does not run: %s", error.message);
        check_remedy(check, "systemctl start vgpu-mediator; its log says why it ended");
    }
}

static bool has_word(const char *text, const char *word)
{
    size_t length = strlen(word);

    for (const char *at = text; (at = strstr(at, word)); at += length) {
        if ((at == text || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return true;
    }
    return false;
}

void check_memory_cgroup(const struct survey *survey, struct host_check *check)
{
    char controllers[256];

    if (host_read_line(survey->host, controllers, sizeof(controllers),
                       "/sys/fs/cgroup/cgroup.controllers") &&
        has_word(controllers, "memory")) {
        check_pass(check, "version 2");
    } else if (host_exists(survey->host, "/sys/fs/cgroup/memory/memory.limit_in_bytes")) {
        check_pass(check, "version 1");
    } else {
        check_warn(check, "no memory controller: workers run without a bound on their memory");
        check_remedy(check, "boot with systemd.unified_cgroup_hierarchy=1 and without "
                            "cgroup_disable=memory; in a container hand the controller down");
    }
}
