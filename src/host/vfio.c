/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device goes from its driver to vfio-pci, or back:
 *
 *   1. driver_override    names who may have it next, so that nobody else takes it
 *   2. unbind             its driver lets go
 *   3. drivers_probe      the kernel binds it to the one that was named
 *   4. look               the kernel's answer to 3 does not say whether it worked
 *
 * Everything that can be seen to be wrong is seen before 1.  When a step fails, the
 * steps before it are taken back in the other order, for all devices that move
 * together.  The driver that a device had is kept in run_dir/vfio/<address>, which
 * lives as long as the binding: until the next boot.
 */
#include "host/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VFIO "vfio-pci"
#define DRIVER_BYTES 64
#define MODPROBE_TIMEOUT_MS 30000

/* One device on its way. */
struct move {
    char address[HOST_ADDRESS_BYTES];
    char before[DRIVER_BYTES];
    char wanted[DRIVER_BYTES]; /* "" none, where `chosen` is not set */
    bool chosen;               /* by the kernel: any driver will do */
    bool resumed;              /* one that was killed in the middle: the record has what it had */
};

/* --- single steps ------------------------------------------------------------------------ */

static void read_driver(const struct host *host, const char *address, char driver[DRIVER_BYTES])
{
    host_link_name(host, driver, DRIVER_BYTES, "/sys/bus/pci/devices/%s/driver", address);
}

static int write_step(const struct host *host, const char *path, const char *text, const char *what,
                      const char *address, struct vgpu_error *error)
{
    char whole[PATH_MAX];

    if (!host_path(host, whole, "%s", path))
        return error_set(error, ENAMETOOLONG, "%s: the path is too long", path);
    if (host_write(host, whole, text) < 0)
        return error_set_errno(error, "%s: %s (%s)", address, what, path);
    return 0;
}

/* "" takes the override away. */
static int set_override(const struct host *host, const char *address, const char *driver,
                        struct vgpu_error *error)
{
    char path[128], text[DRIVER_BYTES + 1];

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override", address);
    snprintf(text, sizeof(text), "%s\n", driver);
    return write_step(host, path, text, "naming its next driver failed", address, error);
}

static int unbind(const struct host *host, const char *address, const char *driver,
                  struct vgpu_error *error)
{
    char path[160];

    if (!driver[0])
        return 0;
    snprintf(path, sizeof(path), "/sys/bus/pci/drivers/%s/unbind", driver);
    return write_step(host, path, address, "its driver did not let it go", address, error);
}

static int bind_to(const struct host *host, const char *address, const char *driver,
                   struct vgpu_error *error)
{
    char path[160];

    snprintf(path, sizeof(path), "/sys/bus/pci/drivers/%s/bind", driver);
    return write_step(host, path, address, "the driver did not take it", address, error);
}

static int probe(const struct host *host, const char *address, struct vgpu_error *error)
{
    return write_step(host, "/sys/bus/pci/drivers_probe", address,
                      "the kernel bound it to no driver", address, error);
}

static bool has_driver(const struct host *host, const char *driver)
{
    return host_exists(host, "/sys/bus/pci/drivers/%s", driver);
}

static int load_driver(const struct host *host, const char *driver, struct vgpu_error *error)
{
    char path[PATH_MAX];
    char *argv[] = {path, (char *)driver, NULL};
    struct program_result result = {.output = NULL};
    struct vgpu_error inner = {.message = ""};

    if (has_driver(host, driver))
        return 0;
    if (!host_find_program(host, "modprobe", path))
        error_fill(&inner, ENOENT, "there is no program modprobe");
    else if (program_check(argv, MODPROBE_TIMEOUT_MS, &result, &inner) == 0)
        error_fill(&inner, ENOENT, "modprobe says it is loaded");
    program_clear(&result);
    if (has_driver(host, driver))
        return 0;
    return error_set(error, ENOENT,
                     "the driver %s is not there: %.300s; install the kernel's modules or load it "
                     "by hand",
                     driver, inner.message);
}

/* --- the driver that a device had --------------------------------------------------------------
 */

static bool record_path(const struct host *host, const char *address, char path[PATH_MAX])
{
    return host_path(host, path, "%s/vfio/%s", host->run_dir, address);
}

static int keep_record(const struct host *host, const struct move *move, struct vgpu_error *error)
{
    char path[PATH_MAX], folder[PATH_MAX], line[DRIVER_BYTES + 1];
    int fd, result = 0;

    if (!host_path(host, folder, "%s/vfio", host->run_dir) ||
        !record_path(host, move->address, path))
        return error_set(error, ENAMETOOLONG, "the path of run_dir is too long");
    if (fd_make_directories(folder, 0755, error) < 0)
        return -1;
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    snprintf(line, sizeof(line), "%s\n", move->before);
    if (fd < 0 || fd_pwrite_all(fd, line, strlen(line), 0) < 0)
        result =
            error_set_errno(error, "cannot keep the driver of %s in '%s'", move->address, path);
    fd_close(&fd);
    return result;
}

static void drop_record(const struct host *host, const char *address)
{
    char path[PATH_MAX];

    if (record_path(host, address, path))
        unlink(path);
}

/* False when there is none, or one that cannot be a driver's name. */
static bool read_record(const struct host *host, const char *address, char driver[DRIVER_BYTES])
{
    char text[DRIVER_BYTES];

    if (!host_read_line(host, text, sizeof(text), "%s/vfio/%s", host->run_dir, address) ||
        text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")])
        return false;
    text_copy(driver, DRIVER_BYTES, text);
    return true;
}

/* One that was killed in the middle of a move has left a device without driver, and the
 * record of what it had. */
static bool is_in_the_middle(const struct host *host, const struct host_pci_device *device)
{
    char driver[DRIVER_BYTES];

    return !device->driver[0] && read_record(host, device->address, driver);
}

/* --- one device ----------------------------------------------------------------------------------
 */

static int verify(const struct host *host, const struct move *move, struct vgpu_error *error)
{
    char now[DRIVER_BYTES];

    read_driver(host, move->address, now);
    if (move->chosen || strcmp(now, move->wanted) == 0)
        return 0;
    return error_set(
        error, EIO, "%s: the kernel did not bind it to %s (it has %s): its log says why: dmesg",
        move->address, move->wanted[0] ? move->wanted : "nothing", now[0] ? now : "no driver");
}

static int to_vfio(const struct host *host, const struct move *move, struct vgpu_error *error)
{
    if ((!move->resumed && keep_record(host, move, error) < 0) ||
        set_override(host, move->address, VFIO, error) < 0 ||
        unbind(host, move->address, move->before, error) < 0 ||
        probe(host, move->address, error) < 0)
        return -1;
    return verify(host, move, error);
}

static int from_vfio(const struct host *host, const struct move *move, struct vgpu_error *error)
{
    if (set_override(host, move->address, "", error) < 0 ||
        unbind(host, move->address, move->before, error) < 0)
        return -1;
    if (move->chosen ? probe(host, move->address, error) < 0
                     : move->wanted[0] && bind_to(host, move->address, move->wanted, error) < 0)
        return -1;
    return verify(host, move, error);
}

/* What the device had, it gets again. */
static int take_back(const struct host *host, const struct move *move, struct vgpu_error *error)
{
    bool was_vfio = strcmp(move->before, VFIO) == 0;
    char now[DRIVER_BYTES];
    int result;

    read_driver(host, move->address, now);
    result = set_override(host, move->address, was_vfio ? VFIO : "", error);
    if (strcmp(now, move->before) != 0) {
        if (unbind(host, move->address, now, error) < 0)
            result = -1;
        if (move->before[0] && bind_to(host, move->address, move->before, error) < 0)
            result = -1;
    }
    read_driver(host, move->address, now);
    if (result == 0 && strcmp(now, move->before) != 0)
        result = error_set(error, EIO, "%s has %s", move->address, now[0] ? now : "no driver");
    if (result == 0 && !was_vfio && !move->resumed)
        drop_record(host, move->address);
    return result;
}

/* --- all that move together
 * -------------------------------------------------------------------------- */

struct plan {
    struct move moves[HOST_GROUP_MAX];
    unsigned count;
};

typedef int move_function(const struct host *host, const struct move *move,
                          struct vgpu_error *error);

static int run_plan(const struct host *host, const struct plan *plan, move_function *move,
                    struct vgpu_error *error)
{
    char troubles[256] = "";
    struct vgpu_error first, inner;

    for (unsigned i = 0; i < plan->count; i++) {
        if (move(host, &plan->moves[i], &first) == 0)
            continue;
        for (unsigned j = i + 1; j > 0; j--) {
            if (take_back(host, &plan->moves[j - 1], &inner) < 0)
                host_add(troubles, sizeof(troubles), "%s", inner.message);
        }
        return error_set(error, first.code, "%.300s; %s%s", first.message,
                         troubles[0] ? "and it could not all be taken back: "
                                     : "all is as it was before",
                         troubles);
    }
    return 0;
}

static void report(const struct host *host, const struct plan *plan, int group,
                   struct host_binding *ret_binding)
{
    struct host_binding binding = {.group = group, .count = plan->count};

    for (unsigned i = 0; i < plan->count; i++) {
        text_copy(binding.moved[i].address, HOST_ADDRESS_BYTES, plan->moves[i].address);
        text_copy(binding.moved[i].before, DRIVER_BYTES, plan->moves[i].before);
        read_driver(host, plan->moves[i].address, binding.moved[i].after);
    }
    *ret_binding = binding;
}

static void add_move(struct plan *plan, const struct host_pci_device *device, const char *wanted)
{
    struct move *move = &plan->moves[plan->count++];

    *move = (struct move){.chosen = !wanted};
    text_copy(move->address, sizeof(move->address), device->address);
    text_copy(move->before, sizeof(move->before), device->driver);
    text_copy(move->wanted, sizeof(move->wanted), wanted ? wanted : "");
}

/* --- what is looked at before
 * ------------------------------------------------------------------------- */

struct group {
    struct host_pci_device *all;
    const struct host_pci_device *device;
    const struct host_pci_device *members[HOST_GROUP_MAX]; /* `device` first, no bridges */
    unsigned count;
};

static int read_group(const struct host *host, const char *address, struct group *group,
                      struct vgpu_error *error)
{
    size_t count;

    *group = (struct group){0};
    if (host_list_pci(host, &group->all, &count, error) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(group->all[i].address, address) == 0)
            group->device = group->all + i;
    }
    if (!group->device)
        return error_set(error, ENOENT, "there is no PCI device %s: lspci -D lists them", address);
    group->members[group->count++] = group->device;
    for (size_t i = 0; i < count; i++) {
        if (group->all + i == group->device || group->all[i].bridge ||
            !host_same_group(group->all + i, group->device))
            continue;
        if (group->count == HOST_GROUP_MAX)
            return error_set(error, E2BIG, "%s: its IOMMU group has more than %d devices", address,
                             HOST_GROUP_MAX);
        group->members[group->count++] = group->all + i;
    }
    return 0;
}

static int check_device(const struct host *host, const struct host_pci_device *device,
                        struct vgpu_error *error)
{
    if (host_is_dom0(host))
        return error_set(error, ENOTSUP,
                         "this is Xen's Dom0, which has no VFIO: use xl pci-assignable-add %s",
                         device->address);
    if (device->bridge)
        return error_set(error, EINVAL,
                         "%s is a bridge: bridges stay with the host, name the device behind it",
                         device->address);
    if (device->iommu_group < 0)
        return error_set(error, ENOTSUP,
                         "%s has no IOMMU group: the IOMMU is off, and nothing would confine the "
                         "device's DMA; vgpu-admin preflight --only iommu-enabled says what to do",
                         device->address);
    return 0;
}

static int check_neighbours(const struct group *group, struct vgpu_error *error)
{
    char names[256] = "";

    for (unsigned i = 1; i < group->count; i++) {
        if (host_is_neighbour_in_use(group->members[i]))
            host_add(names, sizeof(names), "%s (driver %s)", group->members[i]->address,
                     group->members[i]->driver);
    }
    if (!names[0])
        return 0;
    return error_set(error, EBUSY,
                     "%s shares IOMMU group %d with devices that this host uses: %s; a group goes "
                     "to a VM as a whole: move them too with --group, or put the device into "
                     "another slot",
                     group->device->address, group->device->iommu_group, names);
}

static int check_users(const struct host *host, const struct plan *plan, const struct group *group,
                       struct vgpu_error *error)
{
    for (unsigned i = 0; i < plan->count; i++) {
        for (unsigned j = 0; j < group->count; j++) {
            if (strcmp(plan->moves[i].address, group->members[j]->address) == 0 &&
                host_check_unused(host, group->members[j], error) < 0)
                return -1;
        }
    }
    return 0;
}

static int plan_bind(const struct host *host, const struct group *group, bool whole_group,
                     struct plan *plan, struct vgpu_error *error)
{
    if (!whole_group && check_neighbours(group, error) < 0)
        return -1;
    for (unsigned i = 0; i < (whole_group ? group->count : 1); i++) {
        if (strcmp(group->members[i]->driver, VFIO) == 0)
            continue;
        add_move(plan, group->members[i], VFIO);
        plan->moves[plan->count - 1].resumed = is_in_the_middle(host, group->members[i]);
    }
    return 0;
}

static bool may_leave_vfio(const struct host *host, const struct host_pci_device *device)
{
    return strcmp(device->driver, VFIO) == 0 || is_in_the_middle(host, device);
}

static int plan_unbind(const struct host *host, const struct group *group, bool whole_group,
                       struct plan *plan, struct vgpu_error *error)
{
    if (!may_leave_vfio(host, group->device))
        return error_set(error, EINVAL, "%s is not bound to vfio-pci: it has %s",
                         group->device->address,
                         group->device->driver[0] ? group->device->driver : "no driver");
    for (unsigned i = 0; i < (whole_group ? group->count : 1); i++) {
        char driver[DRIVER_BYTES] = "";

        if (!may_leave_vfio(host, group->members[i]))
            continue;
        add_move(plan, group->members[i],
                 read_record(host, group->members[i]->address, driver) ? driver : NULL);
        if (driver[0] && load_driver(host, driver, error) < 0)
            return -1;
    }
    return 0;
}

/* --- the two ways
 * ------------------------------------------------------------------------------------------ */

static int bind_group(const struct host *host, const struct group *group, bool whole_group,
                      struct host_binding *ret_binding, struct vgpu_error *error)
{
    struct plan plan = {.count = 0};

    if (check_device(host, group->device, error) < 0 ||
        plan_bind(host, group, whole_group, &plan, error) < 0 ||
        check_users(host, &plan, group, error) < 0)
        return -1;
    if (plan.count && load_driver(host, VFIO, error) < 0)
        return -1;
    if (run_plan(host, &plan, to_vfio, error) < 0)
        return -1;
    report(host, &plan, group->device->iommu_group, ret_binding);
    return 0;
}

int host_bind_vfio(const struct host *host, const char *address, bool whole_group,
                   struct host_binding *ret_binding, struct vgpu_error *error)
{
    char checked[HOST_ADDRESS_BYTES];
    struct group group = {0};
    int result;

    if (host_check_address(address, checked, error) < 0)
        return -1;
    result = read_group(host, checked, &group, error);
    if (result == 0)
        result = bind_group(host, &group, whole_group, ret_binding, error);
    free(group.all);
    return result;
}

static int unbind_group(const struct host *host, const struct group *group, bool whole_group,
                        struct host_binding *ret_binding, struct vgpu_error *error)
{
    struct plan plan = {.count = 0};

    if (plan_unbind(host, group, whole_group, &plan, error) < 0 ||
        check_users(host, &plan, group, error) < 0 || run_plan(host, &plan, from_vfio, error) < 0)
        return -1;
    for (unsigned i = 0; i < plan.count; i++)
        drop_record(host, plan.moves[i].address);
    report(host, &plan, group->device->iommu_group, ret_binding);
    return 0;
}

int host_unbind_vfio(const struct host *host, const char *address, bool whole_group,
                     struct host_binding *ret_binding, struct vgpu_error *error)
{
    char checked[HOST_ADDRESS_BYTES];
    struct group group = {0};
    int result;

    if (host_check_address(address, checked, error) < 0)
        return -1;
    result = read_group(host, checked, &group, error);
    if (result == 0)
        result = unbind_group(host, &group, whole_group, ret_binding, error);
    free(group.all);
    return result;
}
