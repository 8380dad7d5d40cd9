/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libvirt, by its own library: no output of virsh is parsed.
 *
 * What a VM is started with next is its inactive definition; that one is read and
 * changed, with its secrets (VIR_DOMAIN_XML_SECURE), because a definition without
 * them would lose the console's password.  What runs now keeps what it has.
 */
#include "toolstack/private.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STOP_LOOK_MS 100 /* how often a VM is looked at that was asked to shut down */

struct libvirt_data {
    virConnectPtr connection;
    char wrapper[4096]; /* what <emulator> is to name */
};

static void be_quiet(void *data, virErrorPtr problem)
{
    (void)data;
    (void)problem;
}

/* libvirt's words, in one line, with our code. */
static int fail(const char *what, struct vgpu_error *error)
{
    virErrorPtr problem = virGetLastError();
    const char *text = problem && problem->message ? problem->message : "libvirt gave no reason";
    char line[VGPU_ERROR_BYTES];
    size_t used = 0;
    int code;

    for (; *text && used + 1 < sizeof(line); text++)
        line[used++] = *text == '\n' ? ' ' : *text;
    while (used > 0 && line[used - 1] == ' ')
        used--;
    line[used] = '\0';
    switch (problem ? problem->code : 0) {
    case VIR_ERR_NO_DOMAIN:
        code = ENOENT;
        break;
    case VIR_ERR_OPERATION_INVALID:
        code = EBUSY;
        break;
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
    case VIR_ERR_ACCESS_DENIED:
    case VIR_ERR_OPERATION_DENIED:
        code = EACCES;
        break;
    case VIR_ERR_OPERATION_TIMEOUT:
        code = ETIMEDOUT;
        break;
    case VIR_ERR_NO_SUPPORT:
    case VIR_ERR_OPERATION_UNSUPPORTED:
        code = ENOTSUP;
        break;
    default:
        code = EIO;
    }
    return error_set(error, code, "%s: %s", what, line);
}

static int find_wrapper(struct libvirt_data *data, struct vgpu_error *error)
{
    const char *wrapper = getenv("VGPU_QEMU_WRAPPER");

    if (!wrapper || !*wrapper)
        wrapper = VGPU_QEMU_WRAPPER;
    if (wrapper[0] != '/' || strlen(wrapper) >= sizeof(data->wrapper))
        return error_set(error, EINVAL, "VGPU_QEMU_WRAPPER is '%.128s': give an absolute path",
                         wrapper);
    text_copy(data->wrapper, sizeof(data->wrapper), wrapper);
    return 0;
}

static int libvirt_open(const char *uri, void **ret_data, struct vgpu_error *error)
{
    struct libvirt_data *data;
    const char *type;

    virSetErrorFunc(NULL, be_quiet);
    data = calloc(1, sizeof(*data));
    if (!data)
        return error_set(error, ENOMEM, "no memory");
    if (find_wrapper(data, error) < 0) {
        free(data);
        return -1;
    }
    data->connection = virConnectOpen(uri);
    if (!data->connection) {
        free(data);
        return fail("connecting to libvirt", error);
    }
    type = virConnectGetType(data->connection);
    if (!type || strcmp(type, "QEMU") != 0) {
        error_set(error, ENOTSUP,
                  "libvirt speaks for '%s' here, and only its QEMU driver is supported: give "
                  "--connect qemu:///system",
                  type ? type : "nothing");
        virConnectClose(data->connection);
        free(data);
        return -1;
    }
    *ret_data = data;
    return 0;
}

static void libvirt_close(void *opaque)
{
    struct libvirt_data *data = opaque;

    virConnectClose(data->connection);
    free(data);
}

static virDomainPtr look_up(struct libvirt_data *data, const char *vm, struct vgpu_error *error)
{
    virDomainPtr domain = toolstack_is_uuid(vm) ? virDomainLookupByUUIDString(data->connection, vm)
                                                : virDomainLookupByName(data->connection, vm);

    if (!domain)
        fail("looking for the VM", error);
    return domain;
}

static enum toolstack_state state_of(int state)
{
    switch (state) {
    case VIR_DOMAIN_RUNNING:
    case VIR_DOMAIN_BLOCKED:
        return TOOLSTACK_RUNNING;
    case VIR_DOMAIN_PAUSED:
    case VIR_DOMAIN_PMSUSPENDED:
        return TOOLSTACK_PAUSED;
    case VIR_DOMAIN_SHUTOFF:
        return TOOLSTACK_OFF;
    default:
        return TOOLSTACK_OTHER;
    }
}

/* --- list --------------------------------------------------------------------------- */

/* 1 read, 0 it has gone meanwhile, -1. */
static int describe(virDomainPtr domain, struct toolstack_vm *ret_vm, struct vgpu_error *error)
{
    char *xml = virDomainGetXMLDesc(domain, VIR_DOMAIN_XML_INACTIVE);
    struct vgpu_error problem;
    int state;

    if (!xml) {
        virErrorPtr why = virGetLastError();

        return why && why->code == VIR_ERR_NO_DOMAIN ? 0 : fail("reading a definition", error);
    }
    if (libvirt_xml_read(xml, ret_vm, &problem) < 0) {
        *ret_vm = (struct toolstack_vm){.has_device = false};
        text_copy(ret_vm->name, sizeof(ret_vm->name), virDomainGetName(domain));
        virDomainGetUUIDString(domain, ret_vm->uuid);
        text_copy(ret_vm->device_problem, sizeof(ret_vm->device_problem), problem.message);
    }
    free(xml);
    ret_vm->state =
        virDomainGetState(domain, &state, NULL, 0) == 0 ? state_of(state) : TOOLSTACK_OTHER;
    return 1;
}

static int libvirt_list(void *opaque, struct toolstack_vm **ret_vms, size_t *ret_count,
                        struct vgpu_error *error)
{
    struct libvirt_data *data = opaque;
    virDomainPtr *domains = NULL;
    int found = virConnectListAllDomains(data->connection, &domains, 0);
    struct toolstack_vm *vms;
    size_t count = 0;
    int result = 0;

    if (found < 0)
        return fail("listing VMs", error);
    vms = calloc((size_t)found + 1, sizeof(*vms));
    if (!vms)
        result = error_set(error, ENOMEM, "no memory for %d VMs", found);
    for (int i = 0; i < found; i++) {
        if (result >= 0)
            result = describe(domains[i], &vms[count], error);
        count += result > 0;
        virDomainFree(domains[i]);
    }
    free(domains);
    if (result < 0) {
        free(vms);
        return -1;
    }
    *ret_vms = vms;
    *ret_count = count;
    return 0;
}

/* --- start and stop ------------------------------------------------------------------- */

static int libvirt_start(void *opaque, const char *vm, struct vgpu_error *error)
{
    virDomainPtr domain = look_up(opaque, vm, error);
    int result;

    if (!domain)
        return -1;
    result = virDomainCreate(domain) < 0 ? fail("starting the VM", error) : 0;
    virDomainFree(domain);
    return result;
}

/* A transient VM is gone when it is off. */
static bool is_off(virDomainPtr domain)
{
    int state;

    if (virDomainGetState(domain, &state, NULL, 0) == 0)
        return state_of(state) == TOOLSTACK_OFF;
    return virGetLastErrorCode() == VIR_ERR_NO_DOMAIN;
}

static bool wait_off(virDomainPtr domain, unsigned timeout_ms)
{
    uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    struct timespec pause = {.tv_nsec = STOP_LOOK_MS * (long)NS_PER_MS};

    while (!is_off(domain)) {
        if (clock_monotonic_ns() >= deadline_ns)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

static int stop(virDomainPtr domain, unsigned timeout_ms, bool force, struct vgpu_error *error)
{
    if (is_off(domain))
        return 0;
    /* One that cannot be asked, for example because it is paused, can still be
     * powered off. */
    if (virDomainShutdown(domain) < 0) {
        if (is_off(domain))
            return 0;
        if (!force)
            return fail("asking the VM to shut down", error);
        timeout_ms = 0;
    }
    if (wait_off(domain, timeout_ms))
        return 0;
    if (!force)
        return error_set(error, ETIMEDOUT,
                         "the VM was asked to shut down and still runs after %u ms: its guest may "
                         "not answer the power button; wait, or power it off with --force",
                         timeout_ms);
    if (virDomainDestroy(domain) < 0 && !is_off(domain))
        return fail("powering the VM off", error);
    return 0;
}

static int libvirt_stop(void *opaque, const char *vm, unsigned timeout_ms, bool force,
                        struct vgpu_error *error)
{
    virDomainPtr domain = look_up(opaque, vm, error);
    int result;

    if (!domain)
        return -1;
    result = stop(domain, timeout_ms, force, error);
    virDomainFree(domain);
    return result;
}

/* --- publish ---------------------------------------------------------------------------- */

static int check_wrapper(const struct libvirt_data *data, struct vgpu_error *error)
{
    if (access(data->wrapper, X_OK) < 0)
        return error_set(error, ENOENT,
                         "the program that starts QEMU with the device is not there: '%.200s': "
                         "install it, or name it in VGPU_QEMU_WRAPPER",
                         data->wrapper);
    return 0;
}

static int define(struct libvirt_data *data, virDomainPtr domain,
                  const struct toolstack_device *device, struct vgpu_error *error)
{
    char *before = virDomainGetXMLDesc(domain, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
    char *after = NULL;
    virDomainPtr defined;
    int result;

    if (!before)
        return fail("reading the VM's definition", error);
    result = libvirt_xml_write(before, device, data->wrapper, &after, error);
    free(before);
    if (result < 0)
        return -1;
    defined = virDomainDefineXML(data->connection, after);
    free(after);
    if (!defined)
        return fail("writing the VM's definition", error);
    virDomainFree(defined);
    return 0;
}

static int libvirt_publish(void *opaque, const char *vm, const struct toolstack_device *device,
                           struct vgpu_error *error)
{
    struct libvirt_data *data = opaque;
    virDomainPtr domain;
    int result;

    if (device && check_wrapper(data, error) < 0)
        return -1;
    domain = look_up(data, vm, error);
    if (!domain)
        return -1;
    if (virDomainIsPersistent(domain) == 0)
        result = error_set(error, ENOTSUP,
                           "the VM is transient: it has no definition that its next start would "
                           "use; define it first (virsh define)");
    else
        result = define(data, domain, device, error);
    virDomainFree(domain);
    return result;
}

const struct toolstack_ops toolstack_libvirt = {
    .name = "libvirt",
    .open = libvirt_open,
    .close = libvirt_close,
    .list = libvirt_list,
    .start = libvirt_start,
    .stop = libvirt_stop,
    .publish = libvirt_publish,
};
