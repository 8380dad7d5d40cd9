/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks of owners and modes: who but root may read or change what VMs rely on.
 * Files of whoever runs this count as root's: a mediator need not run as root.
 */
#include "host/private.h"

#include <errno.h>
#include <grp.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUP_NAME "vgpu"

/* What is found at `path` is added; false when it is not there. */
static bool judge(const struct host *host, const char *path, mode_t forbidden, bool ours,
                  struct findings *findings)
{
    char whole[PATH_MAX];
    struct stat info;

    if (!host_path(host, whole, "%s", path) || lstat(whole, &info) < 0)
        return false;
    if (S_ISLNK(info.st_mode))
        host_add(findings->failed, sizeof(findings->failed), "%s is a link", path);
    else if (info.st_mode & forbidden)
        host_add(findings->failed, sizeof(findings->failed),
                 "%s has mode %04o, at most %04o is "
                 "right",
                 path, (unsigned)info.st_mode & 07777,
                 (unsigned)info.st_mode & 07777 & ~(unsigned)forbidden);
    if (ours && info.st_uid != 0 && info.st_uid != geteuid())
        host_add(findings->failed, sizeof(findings->failed), "%s belongs to user %u, not to root",
                 path, (unsigned)info.st_uid);
    return true;
}

static void remedy_modes(struct host_check *check)
{
    if (check->verdict == HOST_FAIL)
        check_remedy(check, "chown root and chmod as said; systemd-tmpfiles --create sets those "
                            "below /run and /var");
}

/* --- the share ------------------------------------------------------------------------- */

struct owner {
    uid_t uid;
    unsigned at; /* of the directories' names */
};

static int by_uid(const void *one, const void *other)
{
    const struct owner *a = one, *b = other;

    return a->uid < b->uid ? -1 : a->uid > b->uid;
}

/* Each VM has a user of its own, so that no guest is another's on this host. */
static void judge_owners(struct owner *owners, size_t count, const struct host_names *names,
                         struct findings *findings)
{
    qsort(owners, count, sizeof(*owners), by_uid);
    for (size_t i = 0; i < count; i++) {
        if (owners[i].uid == 0)
            host_add(findings->warned, sizeof(findings->warned),
                     "%s belongs to root: so its export makes the guest's users root",
                     names->names[owners[i].at]);
        else if (i && owners[i].uid == owners[i - 1].uid)
            host_add(findings->warned, sizeof(findings->warned),
                     "%s and %s have one owner, user %u", names->names[owners[i - 1].at],
                     names->names[owners[i].at], (unsigned)owners[i].uid);
    }
}

static void judge_number(const struct survey *survey, uint32_t vm_id, struct findings *findings)
{
    if (registered_lacks(&survey->registered, vm_id))
        host_add(findings->warned, sizeof(findings->warned),
                 "vm%u is there, and no VM %u with the file channel is registered", vm_id, vm_id);
}

static void judge_vm_directories(const struct survey *survey, struct findings *findings,
                                 unsigned *ret_count)
{
    const struct host *host = survey->host;
    struct host_names names = host_list(host, "%s", host->share);
    struct owner *owners = calloc(names.count + 1, sizeof(*owners));

    for (size_t i = 0; owners && i < names.count; i++) {
        char path[PATH_MAX], whole[PATH_MAX];
        struct stat info;
        uint32_t vm_id;

        if (!host_is_vm_directory(names.names[i], &vm_id) ||
            snprintf(path, sizeof(path), "%s/%s", host->share, names.names[i]) >= PATH_MAX ||
            !host_path(host, whole, "%s", path) || lstat(whole, &info) < 0)
            continue;
        judge(host, path, 0007, false, findings);
        judge_number(survey, vm_id, findings);
        owners[*ret_count] = (struct owner){info.st_uid, (unsigned)i};
        *ret_count += 1;
    }
    if (owners)
        judge_owners(owners, *ret_count, &names, findings);
    free(owners);
    host_names_free(&names);
}

/* A guest can fill its file system and reach for anything in it. */
static void judge_mount(const struct host *host, struct findings *findings)
{
    char path[PATH_MAX];
    struct mntent *entry;
    bool found = false;
    FILE *mounts = host_path(host, path, "/proc/mounts") ? setmntent(path, "re") : NULL;

    while (mounts && (entry = getmntent(mounts))) {
        if (strcmp(entry->mnt_dir, host->share) != 0)
            continue;
        found = true;
        if (!hasmntopt(entry, "nosuid") || !hasmntopt(entry, "nodev") ||
            !hasmntopt(entry, "noexec"))
            host_add(findings->warned, sizeof(findings->warned),
                     "%s is mounted without nosuid,nodev,noexec", host->share);
    }
    if (mounts)
        endmntent(mounts);
    if (mounts && !found)
        host_add(findings->warned, sizeof(findings->warned),
                 "%s is no file system of its own: a guest can fill the host's", host->share);
}

void check_share(const struct survey *survey, struct host_check *check)
{
    const struct host *host = survey->host;
    struct findings findings = {.failed = ""};
    unsigned count = 0;
    char well[96];

    if (!host->share[0]) {
        check_skip(check, "there is no share: the file channel is off or not configured");
        return;
    }
    if (!judge(host, host->share, 0022, true, &findings)) {
        check_skip(check, "there is no %s yet: the mediator makes it", host->share);
        return;
    }
    judge_vm_directories(survey, &findings, &count);
    judge_mount(host, &findings);
    snprintf(well, sizeof(well), "%u directories of VMs, each for its owner alone", count);
    check_findings(check, &findings, well);
    if (check->verdict == HOST_FAIL)
        check_remedy(check, "chown root %s; chmod 0711 %s; chmod 0700 %s/vm*", host->share,
                     host->share, host->share);
    else if (check->verdict == HOST_WARN)
        check_remedy(check,
                     "docs/nfs.md: a small file system of its own with nosuid,nodev,noexec "
                     "and quotas (step 1), a user of its own for each VM (step 2; vgpu-admin "
                     "update-vm --owner), and nothing that is no VM's any more: register the VM, "
                     "or move its directory away");
}

/* --- sockets, configuration, database ------------------------------------------------------ */

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);

    return length > end_length && strcmp(text + length - end_length, end) == 0;
}

void check_run_dir(const struct survey *survey, struct host_check *check)
{
    const struct host *host = survey->host;
    struct findings findings = {.failed = ""};
    struct host_names names;
    unsigned sockets = 0;
    char well[96];

    if (!host->run_dir[0] || !judge(host, host->run_dir, 0022, true, &findings)) {
        check_skip(check, "there is no %s yet: the mediator makes it",
                   host->run_dir[0] ? host->run_dir : "run_dir");
        return;
    }
    names = host_list(host, "%s", host->run_dir);
    for (size_t i = 0; i < names.count; i++) {
        char path[PATH_MAX];

        if (!ends_with(names.names[i], ".sock") ||
            snprintf(path, sizeof(path), "%s/%s", host->run_dir, names.names[i]) >= PATH_MAX)
            continue;
        sockets++;
        judge(host, path, 0007, strcmp(names.names[i], "control.sock") == 0, &findings);
    }
    host_names_free(&names);
    snprintf(well, sizeof(well), "%u sockets, none for everybody", sockets);
    check_findings(check, &findings, well);
    remedy_modes(check);
}

void check_configuration(const struct survey *survey, struct host_check *check)
{
    struct findings findings = {.failed = ""};

    if (!survey->host->config[0] ||
        !judge(survey->host, survey->host->config, 0022, true, &findings)) {
        check_warn(check, "there is no %s",
                   survey->host->config[0] ? survey->host->config : "configuration");
        check_remedy(check, "copy the example mediator.conf there and change it; try it with "
                            "vgpu-mediator --check-config");
        return;
    }
    check_findings(check, &findings, "only root may change it");
    remedy_modes(check);
}

void check_database_file(const struct survey *survey, struct host_check *check)
{
    static const char *const endings[] = {"-wal", "-shm"};
    const struct host *host = survey->host;
    struct findings findings = {.failed = ""};

    if (!host->database[0] || !judge(host, host->database, 0027, true, &findings)) {
        check_skip(check, "there is no database %s", host->database);
        check_remedy(check, "vgpu-admin init makes it");
        return;
    }
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(endings); i++) {
        char path[PATH_MAX];

        if (snprintf(path, sizeof(path), "%s%s", host->database, endings[i]) < PATH_MAX)
            judge(host, path, 0027, true, &findings);
    }
    check_findings(check, &findings, "only root may change it");
    remedy_modes(check);
}

/* --- the group ---------------------------------------------------------------------------------
 */

static bool is_in_file(const struct host *host, const char *name, gid_t *ret_gid)
{
    char path[PATH_MAX];
    struct group *group;
    bool found = false;
    FILE *file = host_path(host, path, "/etc/group") ? fopen(path, "re") : NULL;

    while (file && !found && (group = fgetgrent(file))) {
        found = strcmp(group->gr_name, name) == 0;
        if (found)
            *ret_gid = group->gr_gid;
    }
    if (file)
        fclose(file);
    return found;
}

void check_group(const struct survey *survey, struct host_check *check)
{
    const struct group *known = survey->host->root[0] ? NULL : getgrnam(GROUP_NAME);
    gid_t gid = known ? known->gr_gid : 0;

    if (known || is_in_file(survey->host, GROUP_NAME, &gid)) {
        check_pass(check, "number %u", (unsigned)gid);
        return;
    }
    check_warn(check, "there is no group %s: only root can use the control socket", GROUP_NAME);
    check_remedy(
        check, "groupadd --system %s; its members may ask the mediator, the database stays root's",
        GROUP_NAME);
}
