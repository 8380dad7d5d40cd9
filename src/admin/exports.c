/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NFS exports of VMs' directories, one file each, which no one else writes:
 *
 *   ganesha   exports_dir/vm7.conf, and exports_dir/vgpu.conf that includes them all;
 *             ganesha.conf includes that one
 *   kernel    exports_dir/vgpu-vm7.exports (exports_dir is /etc/exports.d)
 *
 * An export is for one guest's address, and all users in the guest become the owner
 * of its directory.  The address stands in the file's first line and nowhere else: a
 * directory whose guest's address is not known yet is exported to nobody.
 */
#include "admin/exports.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT_BYTES 8192
#define GANESHA_ID_MAX 65535
#define RELOAD_TIMEOUT_MS 30000
#define RELOAD_WORDS_MAX 16
#define INDEX_NAME "vgpu.conf"

static const char reload_ganesha[] = "/usr/bin/systemctl reload nfs-ganesha";
static const char reload_kernel[] = "/usr/sbin/exportfs -ra";

static int file_path(const struct admin *admin, const char *name, char path[PATH_MAX],
                     struct vgpu_error *error)
{
    if (snprintf(path, PATH_MAX, "%s/%s", admin->exports_dir, name) >= PATH_MAX)
        return error_set(error, ENAMETOOLONG, "exports_dir = %s is too long", admin->exports_dir);
    return 0;
}

static void file_name(const struct admin *admin, uint32_t vm_id, char name[64])
{
    snprintf(name, 64, admin->exports_kind == EXPORTS_KERNEL ? "vgpu-vm%u.exports" : "vm%u.conf",
             vm_id);
}

/* --- the text -------------------------------------------------------------------------- */

void exports_address(const char *text, char ret_address[64])
{
    char address[64];

    ret_address[0] = '\0';
    if (text && sscanf(text, "# VM %*u for %63[0-9a-fA-F.:]", address) == 1)
        text_copy(ret_address, 64, address);
}

static int check(const struct admin *admin, const struct store_vm *vm, struct vgpu_error *error)
{
    if (vm->owner_uid < 0)
        return error_set(error, EINVAL,
                         "VM %u has no owner of its own, and its export would need one: give it a "
                         "number that no account has, as --owner %u",
                         vm->vm_id, vm->vm_id > 1000000 ? vm->vm_id : 100000 + vm->vm_id);
    if (admin->exports_kind == EXPORTS_GANESHA && vm->vm_id > GANESHA_ID_MAX)
        return error_set(error, EINVAL,
                         "VM %u cannot be exported: nfs-ganesha's Export_Id ends at %d; choose a "
                         "smaller vm_id or the window channel alone",
                         vm->vm_id, GANESHA_ID_MAX);
    if (strpbrk(admin->share, " \t\n\"#(),;{}\\"))
        return error_set(error, EINVAL,
                         "share = %s has characters that an export cannot name: use letters, "
                         "digits, / - _ and .",
                         admin->share);
    return 0;
}

static int ganesha_text(const struct admin *admin, const struct store_vm *vm, const char *address,
                        char *text, size_t bytes)
{
    char client[128] = "";

    if (address[0])
        snprintf(client, sizeof(client), "    CLIENT { Clients = %s; Access_Type = RW; }\n",
                 address);
    return snprintf(text, bytes,
                    "EXPORT {\n"
                    "    Export_Id = %u;\n"
                    "    Path = %s/vm%u;\n"
                    "    Pseudo = /vm%u;\n"
                    "    Protocols = 4;\n"
                    "    Access_Type = None;\n"
                    "    Squash = All;\n"
                    "    Anonymous_Uid = %lld;\n"
                    "    Anonymous_Gid = %lld;\n"
                    "    FSAL { Name = VFS; }\n"
                    "%s"
                    "}\n",
                    vm->vm_id, admin->share, vm->vm_id, vm->vm_id, (long long)vm->owner_uid,
                    (long long)vm->owner_gid, client);
}

static int kernel_text(const struct admin *admin, const struct store_vm *vm, const char *address,
                       char *text, size_t bytes)
{
    if (!address[0])
        return snprintf(text, bytes, "# Exported to nobody.\n");
    return snprintf(text, bytes,
                    "%s/vm%u  %s(rw,sync,all_squash,anonuid=%lld,anongid=%lld,no_subtree_check,"
                    "sec=sys)\n",
                    admin->share, vm->vm_id, address, (long long)vm->owner_uid,
                    (long long)vm->owner_gid);
}

char *exports_text(const struct admin *admin, const struct store_vm *vm, const char *address,
                   const char *old, struct vgpu_error *error)
{
    char was[64], *text = malloc(EXPORT_BYTES);
    int used, more;

    if (!text || check(admin, vm, error) < 0) {
        if (!text)
            error_set(error, ENOMEM, "no memory for an export");
        free(text);
        return NULL;
    }
    exports_address(old, was);
    if (!address)
        address = was;
    used = snprintf(text, EXPORT_BYTES,
                    "# VM %u for %s; written by vgpu-admin, which replaces what is changed here.\n",
                    vm->vm_id, address[0] ? address : "nobody yet (update-vm --address)");
    more = (admin->exports_kind == EXPORTS_KERNEL ? kernel_text : ganesha_text)(
        admin, vm, address, text + used, EXPORT_BYTES - (size_t)used);
    if (more >= EXPORT_BYTES - used) {
        error_set(error, ENAMETOOLONG, "share = %s is too long for an export", admin->share);
        free(text);
        return NULL;
    }
    return text;
}

/* --- the files --------------------------------------------------------------------------- */

static char *read_whole(const char *path)
{
    char *text = calloc(1, EXPORT_BYTES);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0 || !text || read(fd, text, EXPORT_BYTES - 1) < 0) {
        free(text);
        text = NULL;
    }
    fd_close(&fd);
    return text;
}

bool exports_is_file(const struct admin *admin, const char *name, uint32_t *ret_vm_id)
{
    char right[64];
    unsigned vm_id;

    if (sscanf(name, admin->exports_kind == EXPORTS_KERNEL ? "vgpu-vm%u" : "vm%u", &vm_id) != 1)
        return false;
    file_name(admin, vm_id, right);
    if (strcmp(name, right) != 0)
        return false;
    *ret_vm_id = vm_id;
    return true;
}

char *exports_read(const struct admin *admin, uint32_t vm_id)
{
    char name[64], path[PATH_MAX];
    struct vgpu_error ignored;

    file_name(admin, vm_id, name);
    return file_path(admin, name, path, &ignored) < 0 ? NULL : read_whole(path);
}

/* The export's name, or that it is gone, outlives a power cut as the row does. */
static int sync_name(const char *path, struct vgpu_error *error)
{
    return fd_sync_parent(path) == 0
               ? 0
               : error_set_errno(error, "cannot sync the directory of '%s'", path);
}

/* Through a second name, so that the server never reads half of it. */
static int replace_file(const char *path, const char *text, struct vgpu_error *error)
{
    char next[PATH_MAX + 8];
    size_t bytes = strlen(text);
    int fd;

    snprintf(next, sizeof(next), "%s.new", path);
    fd = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return error_set_errno(error, "cannot write the export '%s'", next);
    if (fd_pwrite_all(fd, text, bytes, 0) < 0 || fsync(fd) < 0 || rename(next, path) < 0) {
        error_set_errno(error, "cannot write the export '%s'", path);
        unlink(next);
        fd_close(&fd);
        return -1;
    }
    fd_close(&fd);
    return sync_name(path, error);
}

/* "vm7.conf" */
static int is_export(const struct dirent *entry)
{
    const char *number = entry->d_name + 2;
    size_t digits;

    if (strncmp(entry->d_name, "vm", 2) != 0)
        return 0;
    digits = strspn(number, "0123456789");
    return digits > 0 && strcmp(number + digits, ".conf") == 0;
}

/* ganesha includes files by name. */
static int write_index(const struct admin *admin, struct vgpu_error *error)
{
    char path[PATH_MAX], *text = NULL;
    struct dirent **entries;
    size_t bytes = 0;
    FILE *stream;
    int count = scandir(admin->exports_dir, &entries, is_export, versionsort), result;

    if (count < 0)
        return error_set_errno(error, "cannot list '%s'", admin->exports_dir);
    stream = open_memstream(&text, &bytes);
    if (stream)
        fprintf(stream, "# Written by vgpu-admin, which replaces what is changed here.\n");
    for (int i = 0; i < count; i++) {
        if (stream)
            fprintf(stream, "%%include \"%s/%s\"\n", admin->exports_dir, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    if (!stream || fclose(stream) != 0) {
        free(text);
        return error_set(error, ENOMEM, "no memory for the list of exports");
    }
    result = file_path(admin, INDEX_NAME, path, error);
    if (result == 0)
        result = replace_file(path, text, error);
    free(text);
    return result;
}

int exports_write(const struct admin *admin, uint32_t vm_id, const char *text,
                  struct vgpu_error *error)
{
    char name[64], path[PATH_MAX];

    file_name(admin, vm_id, name);
    if (file_path(admin, name, path, error) < 0 ||
        fd_make_directories(admin->exports_dir, 0755, error) < 0)
        return -1;
    if (text && replace_file(path, text, error) < 0)
        return -1;
    if (!text && unlink(path) < 0 && errno != ENOENT)
        return error_set_errno(error, "cannot remove the export '%s'", path);
    if (!text && sync_name(path, error) < 0)
        return -1;
    return admin->exports_kind == EXPORTS_GANESHA ? write_index(admin, error) : 0;
}

int exports_reload(const struct admin *admin, struct vgpu_error *error)
{
    char line[sizeof(admin->exports_reload)], *state, *words[RELOAD_WORDS_MAX + 1];
    struct program_result result;
    struct vgpu_error inner;
    size_t count = 0;

    text_copy(line, sizeof(line),
              admin->exports_reload[0]                 ? admin->exports_reload
              : admin->exports_kind == EXPORTS_GANESHA ? reload_ganesha
                                                       : reload_kernel);
    if (strcmp(line, "none") == 0)
        return 0;
    for (char *word = strtok_r(line, " ", &state); word && count < RELOAD_WORDS_MAX;
         word = strtok_r(NULL, " ", &state))
        words[count++] = word;
    words[count] = NULL;
    if (program_check(words, RELOAD_TIMEOUT_MS, &result, &inner) == 0) {
        program_clear(&result);
        return 0;
    }
    return error_set(
        error, inner.code,
        "the NFS server could not be told of the export: %.300s; [admin] exports_reload "
        "in the configuration says what is run, `none` leaves it to you",
        inner.message);
}
