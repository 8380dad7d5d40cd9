/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plain Xen, by its command line `xl` and the domains' configuration files.
 *
 * xl knows only what runs; what could run are the files in /etc/xen.  So the list is
 * both together, by the UUID.  A file without uuid= gives its domain a new one at each
 * start: such a VM is known by its name, and the registry should be too.
 *
 * Commands take the domain's number, never its name: xl reads a name of digits as a
 * number.
 */
#include "toolstack/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CONFIG_DIRECTORY "/etc/xen"
#define CONFIG_MAX_BYTES (1u << 20)
#define CREATE_TIMEOUT_MS 300000u
#define LOOK_AGAIN_MS 200u
#define TEMPORARY_BYTES 600
#define VMS_MAX 4096u

struct xl_vm {
    struct toolstack_vm vm;
    unsigned domain; /* 0: does not run */
    char file[512];  /* "" none */
};

struct xl_data {
    char *xl;
    const char *directory;
};

struct xl_list {
    struct xl_vm *vms;
    size_t count;
};

static int xl_open(const char *uri, void **ret_data, struct vgpu_error *error)
{
    const char *directory = getenv("VGPU_XL_DIRECTORY");
    struct xl_data *data;

    if (uri)
        return error_set(error, EINVAL, "--connect belongs to libvirt, and this host has xl");
    data = calloc(1, sizeof(*data));
    if (!data)
        return error_set(error, ENOMEM, "no memory");
    data->xl = toolstack_find_program("xl", toolstack_program_path());
    data->directory = directory && *directory ? directory : CONFIG_DIRECTORY;
    if (!data->xl) {
        free(data);
        return error_set(error, ENOENT, "there is no program 'xl' in %s", toolstack_program_path());
    }
    *ret_data = data;
    return 0;
}

static void xl_close(void *opaque)
{
    struct xl_data *data = opaque;

    free(data->xl);
    free(data);
}

static struct xl_vm *add_vm(struct xl_list *list)
{
    struct xl_vm *grown;

    if (list->count == VMS_MAX)
        return NULL;
    grown = reallocarray(list->vms, list->count + 1, sizeof(*grown));
    if (!grown)
        return NULL;
    list->vms = grown;
    memset(&grown[list->count], 0, sizeof(*grown));
    return &grown[list->count++];
}

/* --- configuration files --------------------------------------------------------------- */

/* The file's text, freed by the caller; NULL on failure. */
static char *read_file(const char *path, struct stat *ret_info, struct vgpu_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    char *text = NULL;

    if (fd < 0) {
        error_set_errno(error, "opening %s", path);
        return NULL;
    }
    if (fstat(fd, ret_info) < 0)
        error_set_errno(error, "looking at %s", path);
    else if (!S_ISREG(ret_info->st_mode) || ret_info->st_size > (off_t)CONFIG_MAX_BYTES)
        error_set(error, EBADMSG, "%s is no plain file of at most %u bytes", path,
                  CONFIG_MAX_BYTES);
    else if (!(text = calloc(1, (size_t)ret_info->st_size + 1)))
        error_set(error, ENOMEM, "no memory");
    else if (fd_pread_all(fd, text, (size_t)ret_info->st_size, 0) < 0) {
        error_set_errno(error, "reading %s", path);
        free(text);
        text = NULL;
    }
    fd_close(&fd);
    return text;
}

static bool is_config_name(const char *name)
{
    size_t length = strlen(name);

    return name[0] != '.' && length > 4 && !strcmp(name + length - 4, ".cfg");
}

/* A file that is no domain's is passed over: /etc/xen has others too. */
static int add_file(struct xl_data *data, const char *name, struct xl_list *list,
                    struct vgpu_error *error)
{
    struct vgpu_error problem;
    struct toolstack_vm vm;
    struct stat info;
    struct xl_vm *added;
    char path[512];
    char *text;
    int result;

    if (snprintf(path, sizeof(path), "%s/%s", data->directory, name) >= (int)sizeof(path))
        return 0;
    text = read_file(path, &info, &problem);
    if (!text)
        return 0;
    result = xl_config_read(text, &vm, &problem);
    free(text);
    if (result < 0 && problem.code == ENOENT)
        return 0;
    added = add_vm(list);
    if (!added)
        return error_set(error, ENOMEM, "over %u domains in %s", VMS_MAX, data->directory);
    if (result < 0) {
        text_copy(added->vm.name, sizeof(added->vm.name), name);
        text_copy(added->vm.device_problem, sizeof(added->vm.device_problem), problem.message);
    } else {
        added->vm = vm;
    }
    text_copy(added->file, sizeof(added->file), path);
    return 0;
}

static int add_files(struct xl_data *data, struct xl_list *list, struct vgpu_error *error)
{
    DIR *directory = opendir(data->directory);
    struct dirent *entry;
    int result = 0;

    if (!directory)
        return error_set_errno(error, "reading %s", data->directory);
    while (result == 0 && (entry = readdir(directory))) {
        if (is_config_name(entry->d_name))
            result = add_file(data, entry->d_name, list, error);
    }
    closedir(directory);
    return result;
}

/* --- what runs ---------------------------------------------------------------------------- */

static void trim_right(char *text)
{
    size_t length = strlen(text);

    while (length > 0 && text[length - 1] == ' ')
        text[--length] = '\0';
}

/* "UUID  ID  name": the name is the rest of the line, and blanks fill it up to 30. */
static bool read_vm_line(char *line, char uuid[TOOLSTACK_UUID_BYTES], unsigned *ret_domain,
                         const char **ret_name)
{
    char *word = strsep(&line, " ");
    uint64_t domain;

    if (!toolstack_is_uuid(word) || !line)
        return false;
    text_copy(uuid, TOOLSTACK_UUID_BYTES, word);
    line += strspn(line, " ");
    word = strsep(&line, " ");
    if (!line || !text_parse_u64(word, 0, UINT16_MAX, &domain))
        return false;
    trim_right(line);
    *ret_domain = (unsigned)domain;
    *ret_name = line + strspn(line, " ");
    return true;
}

/* By the file's UUID, which xl gives the domain, or else by name.  Without it NULL. */
static struct xl_vm *find_stopped(struct xl_list *list, const char *uuid, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        struct xl_vm *vm = &list->vms[i];

        if (!vm->domain &&
            (*vm->vm.uuid ? !strcasecmp(vm->vm.uuid, uuid) : !strcmp(vm->vm.name, name)))
            return vm;
    }
    return NULL;
}

static int add_running(struct xl_list *list, char *line, struct vgpu_error *error)
{
    char uuid[TOOLSTACK_UUID_BYTES];
    const char *name;
    unsigned domain;
    struct xl_vm *vm;

    if (!*line || !strncmp(line, "UUID", 4))
        return 0;
    if (!read_vm_line(line, uuid, &domain, &name))
        return error_set(error, EIO, "xl vm-list said '%.64s', which is no UUID, number and name",
                         line);
    if (domain == 0) /* Dom0 is no VM */
        return 0;
    vm = find_stopped(list, uuid, name);
    if (!vm)
        vm = add_vm(list);
    if (!vm)
        return error_set(error, ENOMEM, "over %u domains", VMS_MAX);
    text_copy(vm->vm.name, sizeof(vm->vm.name), name);
    if (!*vm->vm.uuid && !*vm->file)
        text_copy(vm->vm.uuid, sizeof(vm->vm.uuid), uuid);
    vm->domain = domain;
    vm->vm.state = TOOLSTACK_RUNNING;
    return 0;
}

static enum toolstack_state read_state(const char *letters)
{
    if (strchr(letters, 's') || strchr(letters, 'c') || strchr(letters, 'd'))
        return TOOLSTACK_OTHER;
    return strchr(letters, 'p') ? TOOLSTACK_PAUSED : TOOLSTACK_RUNNING;
}

/* "name  ID  Mem VCPUs  State  Time(s)": from the right, for names may have blanks. */
static void note_state(struct xl_list *list, char *line)
{
    char *columns[5];
    uint64_t domain;

    for (int i = 4; i >= 0; i--) {
        trim_right(line);
        columns[i] = strrchr(line, ' ');
        if (!columns[i])
            return;
        *columns[i]++ = '\0';
    }
    if (!text_parse_u64(columns[0], 0, UINT16_MAX, &domain) || domain == 0)
        return;
    for (size_t i = 0; i < list->count; i++) {
        if (list->vms[i].domain == domain)
            list->vms[i].vm.state = read_state(columns[3]);
    }
}

static int add_domains(struct xl_data *data, struct xl_list *list, struct vgpu_error *error)
{
    char *const argv[] = {data->xl, (char *)"vm-list", NULL};
    struct program_result result;
    char *rest, *line;
    int status = 0;

    if (program_check(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    rest = result.output;
    while (status == 0 && (line = strsep(&rest, "\n")))
        status = add_running(list, line, error);
    program_clear(&result);
    return status;
}

static int note_states(struct xl_data *data, struct xl_list *list, struct vgpu_error *error)
{
    char *const argv[] = {data->xl, (char *)"list", NULL};
    struct program_result result;
    char *rest, *line;

    if (program_check(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    rest = result.output;
    while ((line = strsep(&rest, "\n")))
        note_state(list, line);
    program_clear(&result);
    return 0;
}

static int load(struct xl_data *data, struct xl_list *ret_list, struct vgpu_error *error)
{
    struct xl_list list = {.vms = NULL};

    if (add_files(data, &list, error) < 0 || add_domains(data, &list, error) < 0 ||
        note_states(data, &list, error) < 0) {
        free(list.vms);
        return -1;
    }
    *ret_list = list;
    return 0;
}

static int xl_list(void *opaque, struct toolstack_vm **ret_vms, size_t *ret_count,
                   struct vgpu_error *error)
{
    struct toolstack_vm *vms;
    struct xl_list list;

    if (load(opaque, &list, error) < 0)
        return -1;
    vms = calloc(list.count + 1, sizeof(*vms));
    if (!vms) {
        free(list.vms);
        return error_set(error, ENOMEM, "no memory");
    }
    for (size_t i = 0; i < list.count; i++)
        vms[i] = list.vms[i].vm;
    *ret_count = list.count;
    *ret_vms = vms;
    free(list.vms);
    return 0;
}

static int find(struct xl_data *data, const char *text, struct xl_vm *ret_vm,
                struct vgpu_error *error)
{
    struct toolstack_vm *vms, chosen;
    struct xl_list list;
    int result = -1;

    if (load(data, &list, error) < 0)
        return -1;
    vms = calloc(list.count + 1, sizeof(*vms));
    for (size_t i = 0; vms && i < list.count; i++)
        vms[i] = list.vms[i].vm;
    if (!vms)
        error_set(error, ENOMEM, "no memory");
    else
        result = toolstack_choose(vms, list.count, text, &chosen, error);
    for (size_t i = 0; result == 0 && i < list.count; i++) {
        if (!strcmp(vms[i].name, chosen.name) && !strcmp(vms[i].uuid, chosen.uuid))
            *ret_vm = list.vms[i];
    }
    free(vms);
    free(list.vms);
    return result;
}

/* --- start and stop ------------------------------------------------------------------------ */

static int xl_start(void *opaque, const char *text, struct vgpu_error *error)
{
    struct xl_data *data = opaque;
    struct program_result result;
    struct xl_vm vm = {.domain = 0};
    char *const argv[] = {data->xl, (char *)"create", vm.file, NULL};

    if (find(data, text, &vm, error) < 0)
        return -1;
    if (vm.domain)
        return error_set(error, EBUSY, "'%.128s' runs already, as domain %u", vm.vm.name,
                         vm.domain);
    if (!*vm.file)
        return error_set(error, ENOENT, "'%.128s' has no configuration file in %s", vm.vm.name,
                         data->directory);
    if (program_check(argv, CREATE_TIMEOUT_MS, &result, error) < 0)
        return -1;
    program_clear(&result);
    return 0;
}

/* 1 or 0: whether Xen has it; -1: that cannot be told. */
static int is_there(struct xl_data *data, unsigned domain, struct vgpu_error *error)
{
    struct xl_list list = {.vms = NULL};
    int result = add_domains(data, &list, error);

    for (size_t i = 0; result == 0 && i < list.count; i++)
        result = list.vms[i].domain == domain;
    free(list.vms);
    return result;
}

static int end_domain(struct xl_data *data, unsigned domain, bool destroy, unsigned timeout_ms,
                      struct vgpu_error *error)
{
    char number[16];
    /* -w waits for its end, -F presses the power button of a guest without Xen's drivers. */
    char *const shut_down[] = {data->xl, (char *)"shutdown", (char *)"-w", (char *)"-F", number,
                               NULL};
    char *const power_off[] = {data->xl, (char *)"destroy", number, NULL};
    struct program_result result;
    struct vgpu_error ignored;

    snprintf(number, sizeof(number), "%u", domain);
    if (program_check(destroy ? power_off : shut_down, timeout_ms, &result, error) == 0) {
        program_clear(&result);
        return 0;
    }
    /* One that has ended by itself meanwhile is what was wanted. */
    return error->code != ETIMEDOUT && is_there(data, domain, &ignored) == 0 ? 0 : -1;
}

/* `xl shutdown -w` ends with the guest; the xl that watches its domain takes that down
 * then, and xl has no command that waits for it. */
static int wait_gone(struct xl_data *data, unsigned domain, uint64_t deadline_ns,
                     struct vgpu_error *error)
{
    const struct timespec pause = {.tv_nsec = LOOK_AGAIN_MS * NS_PER_MS};
    struct vgpu_error problem;
    int there;

    while ((there = is_there(data, domain, &problem)) > 0) {
        if (clock_monotonic_ns() >= deadline_ns)
            return error_set(error, ETIMEDOUT,
                             "the guest has shut down, but Xen still has domain %u: where its file "
                             "says on_poweroff=\"preserve\", end it with xl destroy %u, or --force",
                             domain, domain);
        nanosleep(&pause, NULL);
    }
    if (there < 0)
        return error_set(error, ETIMEDOUT,
                         "domain %u was told to shut down, and whether it is gone cannot be found "
                         "out: %.400s",
                         domain, problem.message);
    return 0;
}

static int xl_stop(void *opaque, const char *text, unsigned timeout_ms, bool force,
                   struct vgpu_error *error)
{
    uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    struct xl_data *data = opaque;
    struct xl_vm vm = {.domain = 0};

    if (find(data, text, &vm, error) < 0)
        return -1;
    if (!vm.domain)
        return 0;
    if (end_domain(data, vm.domain, false, timeout_ms, error) == 0 &&
        wait_gone(data, vm.domain, deadline_ns, error) == 0)
        return 0;
    return force ? end_domain(data, vm.domain, true, COMMAND_TIMEOUT_MS, error) : -1;
}

/* --- publish ---------------------------------------------------------------------------------- */

static int write_all(int fd, const char *path, const char *text, const struct stat *info,
                     struct vgpu_error *error)
{
    if (fchown(fd, info->st_uid, info->st_gid) < 0 || fchmod(fd, info->st_mode & 07777) < 0 ||
        fd_pwrite_all(fd, text, strlen(text), 0) < 0 || fsync(fd) < 0)
        return error_set_errno(error, "writing %s", path);
    return 0;
}

/* A file beside the one at `path`, with its owner and mode. */
static int write_beside(const char *path, const char *text, const struct stat *info,
                        char temporary[TEMPORARY_BYTES], struct vgpu_error *error)
{
    int fd, result;

    snprintf(temporary, TEMPORARY_BYTES, "%s.vgpu-XXXXXX", path);
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, "making %s", temporary);
    result = write_all(fd, temporary, text, info, error);
    fd_close(&fd);
    if (result < 0)
        unlink(temporary);
    return result;
}

/* Whole or not at all. */
static int replace_file(const char *path, const char *text, const struct stat *info,
                        struct vgpu_error *error)
{
    char temporary[TEMPORARY_BYTES];

    if (write_beside(path, text, info, temporary, error) < 0)
        return -1;
    if (rename(temporary, path) == 0)
        return 0;
    error_set_errno(error, "putting %s in its place", path);
    unlink(temporary);
    return -1;
}

/* A domain's file, and what it is to say. */
struct change {
    struct xl_vm vm;
    struct stat info;
    char *before, *after;
};

static void free_change(struct change *change)
{
    free(change->before);
    free(change->after);
}

static int make_change(struct xl_data *data, const char *text,
                       const struct toolstack_device *device, struct change *change,
                       struct vgpu_error *error)
{
    struct toolstack_device registers;
    struct vgpu_error problem;

    *change = (struct change){.before = NULL};
    if (find(data, text, &change->vm, error) < 0)
        return -1;
    if (!*change->vm.file)
        return error_set(error, ENOTSUP, "'%.128s' has no configuration file to write into",
                         change->vm.vm.name);
    change->before = read_file(change->vm.file, &change->info, error);
    if (!change->before)
        return -1;
    if (device) {
        registers = *device;
        registers.window = false; /* no shared memory with QEMU under Xen */
    }
    if (xl_config_write(change->before, device ? &registers : NULL, &change->after, &problem) < 0)
        return error_set(error, problem.code, "%s: %.400s", change->vm.file, problem.message);
    return 0;
}

static int xl_publish(void *opaque, const char *text, const struct toolstack_device *device,
                      struct vgpu_error *error)
{
    struct change change;
    int result = make_change(opaque, text, device, &change, error);

    if (result == 0 && strcmp(change.before, change.after) != 0)
        result = replace_file(change.vm.file, change.after, &change.info, error);
    free_change(&change);
    return result;
}

/* --- check ------------------------------------------------------------------------------------ */

/* xl reads the file as for a start, and makes no domain. */
static int dry_run(struct xl_data *data, char *file, struct vgpu_error *error)
{
    char *const argv[] = {data->xl, (char *)"create", (char *)"-n", file, NULL};
    struct program_result result;

    if (program_check(argv, COMMAND_TIMEOUT_MS, &result, error) < 0)
        return -1;
    program_clear(&result);
    return 0;
}

static int check_file(struct xl_data *data, const char *text, struct vgpu_error *error)
{
    struct xl_vm vm = {.domain = 0};

    if (find(data, text, &vm, error) < 0)
        return -1;
    if (!*vm.file)
        return error_set(error, ENOENT, "'%.128s' has no configuration file in %s", vm.vm.name,
                         data->directory);
    return dry_run(data, vm.file, error);
}

static int xl_check(void *opaque, const char *text, const struct toolstack_device *device,
                    struct vgpu_error *error)
{
    char temporary[TEMPORARY_BYTES];
    struct change change;
    int result;

    if (!device)
        return check_file(opaque, text, error);
    result = make_change(opaque, text, device, &change, error);
    if (result == 0)
        result = write_beside(change.vm.file, change.after, &change.info, temporary, error);
    if (result == 0) {
        result = dry_run(opaque, temporary, error);
        unlink(temporary);
    }
    free_change(&change);
    return result;
}

const struct toolstack_ops toolstack_xl = {
    .name = "xl",
    .open = xl_open,
    .close = xl_close,
    .list = xl_list,
    .start = xl_start,
    .stop = xl_stop,
    .publish = xl_publish,
    .check = xl_check,
};
