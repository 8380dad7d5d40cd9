/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What workers may take of the host's memory: one cgroup a VM.
 *
 *   <own cgroup, delegated>/vgpu-<n>/vm100     its bound
 *
 * Version 2 where it has the memory controller, else version 1 (older hosts, hybrid
 * ones).  In version 2 a cgroup that hands controllers down may hold no process
 * itself (the root excepted), so where the mediator's own is not the root it first
 * moves into `daemon` below it: what systemd's Delegate= is for.  Where nothing of
 * this is allowed the workers run without this bound, and the log says so once.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BOUND_V1 "memory.limit_in_bytes"
#define BOUND_V2 "memory.max"

static int write_text(const char *directory, const char *file, const char *text,
                      struct vgpu_error *error)
{
    char path[PATH_MAX];
    int fd, result = 0;

    if (snprintf(path, sizeof(path), "%s/%s", directory, file) >= (int)sizeof(path))
        return error_set(error, ENAMETOOLONG, "'%s' is too long", directory);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        result = error_set_errno(error, "cannot write '%s' to '%s'", text, path);
    fd_close(&fd);
    return result;
}

/* True when the hierarchy that is mounted there has the memory controller. */
static bool has_memory(const struct mntent *mount)
{
    char path[PATH_MAX], controllers[256] = "";
    FILE *file;

    if (strcmp(mount->mnt_type, "cgroup") == 0)
        return hasmntopt(mount, "memory") != NULL;
    if (strcmp(mount->mnt_type, "cgroup2") != 0 ||
        snprintf(path, sizeof(path), "%s/cgroup.controllers", mount->mnt_dir) >= PATH_MAX)
        return false;
    file = fopen(path, "re");
    if (file && !fgets(controllers, sizeof(controllers), file))
        controllers[0] = '\0';
    if (file)
        fclose(file);
    return strstr(controllers, "memory") != NULL;
}

static int find_mount(char path[PATH_MAX], bool *ret_v2, struct vgpu_error *error)
{
    FILE *table = setmntent("/proc/self/mounts", "re");
    struct mntent *mount;
    bool found = false;

    while (table && !found && (mount = getmntent(table))) {
        found = has_memory(mount);
        if (found) {
            text_copy(path, PATH_MAX, mount->mnt_dir);
            *ret_v2 = strcmp(mount->mnt_type, "cgroup2") == 0;
        }
    }
    if (table)
        endmntent(table);
    return found ? 0 : error_set(error, ENOTSUP, "no cgroup with the memory controller is mounted");
}

/* A line is `number:controllers:path`; version 2 has number 0. */
static bool is_own_line(const char *line, bool v2)
{
    const char *controllers = strchr(line, ':');

    return v2 ? strncmp(line, "0::", 3) == 0
              : controllers && strncmp(controllers, ":memory:", strlen(":memory:")) == 0;
}

static int find_own(char path[PATH_MAX], struct vgpu_error *error)
{
    char line[PATH_MAX];
    bool v2 = false, found = false;
    const char *own = "/";
    FILE *file;

    if (find_mount(path, &v2, error) < 0)
        return -1;
    file = fopen("/proc/self/cgroup", "re");
    while (file && !found && fgets(line, sizeof(line), file))
        found = is_own_line(line, v2);
    if (file)
        fclose(file);
    if (found) {
        line[strcspn(line, "\n")] = '\0';
        own = strchr(strchr(line, ':') + 1, ':') + 1;
    }
    if (strlen(path) + strlen(own) >= PATH_MAX)
        return error_set(error, ENAMETOOLONG, "'%s' is too long", own);
    if (strcmp(own, "/") != 0)
        text_copy(path + strlen(path), PATH_MAX - strlen(path), own);
    return 0;
}

static bool is_v2(const char *path)
{
    char file[PATH_MAX];

    return snprintf(file, sizeof(file), "%s/cgroup.controllers", path) < PATH_MAX &&
           access(file, F_OK) == 0;
}

static int make_directory(const char *path, struct vgpu_error *error)
{
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return error_set_errno(error, "cannot make cgroup '%s'", path);
    return 0;
}

/* Lets the cgroup at `path` hand the memory controller down. */
static int hand_down(const char *path, struct vgpu_error *error)
{
    char daemon[PATH_MAX];

    if (!is_v2(path))
        return 0; /* version 1 hands down without being told */
    if (write_text(path, "cgroup.subtree_control", "+memory", error) == 0)
        return 0;
    if (error->code != EBUSY)
        return -1;
    if (snprintf(daemon, sizeof(daemon), "%s/daemon", path) >= (int)sizeof(daemon))
        return error_set(error, ENAMETOOLONG, "'%s' is too long", path);
    if (make_directory(daemon, error) < 0 || write_text(daemon, "cgroup.procs", "0", error) < 0)
        return -1;
    return write_text(path, "cgroup.subtree_control", "+memory", error);
}

/* Mediators with other state directories have their own below the same parent. */
static int make_own(struct mediator *mediator, const char *parent, struct vgpu_error *error)
{
    struct stat info;

    if (stat(mediator->config->state_dir, &info) < 0)
        return error_set_errno(error, "cannot examine '%s'", mediator->config->state_dir);
    if (snprintf(mediator->cgroup, PATH_MAX, "%s/vgpu-%llx-%llx", parent,
                 (unsigned long long)info.st_dev, (unsigned long long)info.st_ino) >= PATH_MAX)
        return error_set(error, ENAMETOOLONG, "'%s' is too long", parent);
    if (make_directory(mediator->cgroup, error) < 0)
        return -1;
    return hand_down(mediator->cgroup, error);
}

void cgroup_start(struct mediator *mediator)
{
    const struct config *config = mediator->config;
    struct vgpu_error error = {0};
    char parent[PATH_MAX];

    if (config->worker_memory_mib == 0)
        return;
    text_copy(parent, sizeof(parent), config->worker_cgroup);
    if ((parent[0] || find_own(parent, &error) == 0) && hand_down(parent, &error) == 0 &&
        make_own(mediator, parent, &error) == 0)
        return;
    mediator->cgroup[0] = '\0';
    log_warning("workers run without a bound on their memory: %s; give the service Delegate=yes, "
                "name a cgroup with worker_cgroup, or set worker_memory_mib = 0",
                error.message);
}

void cgroup_of_vm(struct mediator *mediator, uint32_t vm_id, char path[PATH_MAX])
{
    struct vgpu_error error;
    char bytes[32];

    path[0] = '\0';
    if (!mediator->cgroup[0])
        return;
    if (snprintf(path, PATH_MAX, "%s/vm%u", mediator->cgroup, vm_id) >= PATH_MAX)
        path[0] = '\0';
    snprintf(bytes, sizeof(bytes), "%llu",
             (unsigned long long)mediator->config->worker_memory_mib << 20);
    if (make_directory(path, &error) == 0 &&
        write_text(path, is_v2(path) ? BOUND_V2 : BOUND_V1, bytes, &error) == 0)
        return;
    log_warning("vm%u: its workers run without a bound on their memory: %s", vm_id, error.message);
    path[0] = '\0';
}

void cgroup_stop(struct mediator *mediator)
{
    char path[PATH_MAX];
    struct vm *vm, *next;

    if (!mediator->cgroup[0])
        return;
    /* Directories of workers that live on stay: rmdir refuses them. */
    HASH_ITER (hh, mediator->vms, vm, next) {
        if (snprintf(path, sizeof(path), "%s/vm%u", mediator->cgroup, vm->vm_id) < PATH_MAX)
            rmdir(path);
    }
    rmdir(mediator->cgroup);
}
