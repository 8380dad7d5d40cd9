/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which way this host starts its VMs, and what all ways have in common.
 *
 * Looked for in this order, because a host may have several: XAPI runs xl's library
 * below itself, and VMs of one must not be touched behind its back by the other.
 *
 *   xapi      /etc/xensource-inventory and a program `xe`
 *   xl        we are a Xen control domain and have a program `xl`
 *   libvirt   everything else, where we were built with its library
 */
#include "toolstack/private.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define DEFAULT_PATH "/opt/xensource/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static const struct toolstack_ops *const all_toolstacks[] = {
#ifdef VGPU_WITH_LIBVIRT
    &toolstack_libvirt,
#endif
    &toolstack_xapi,
    &toolstack_xl,
};

const char *toolstack_program_path(void)
{
    const char *path = getenv("VGPU_TOOLSTACK_PATH");

    return path && *path ? path : DEFAULT_PATH;
}

char *toolstack_find_program(const char *name, const char *path)
{
    while (*path) {
        size_t length = strcspn(path, ":");
        char *file = NULL;

        if (length > 0 && *path == '/') {
            if (asprintf(&file, "%.*s/%s", (int)length, path, name) < 0)
                return NULL;
            if (access(file, X_OK) == 0)
                return file;
            free(file);
        }
        path += length;
        path += *path == ':';
    }
    return NULL;
}

static bool file_exists(const char *root, const char *path)
{
    char whole[4096];

    snprintf(whole, sizeof(whole), "%s%s", root, path);
    return access(whole, F_OK) == 0;
}

static bool is_control_domain(const char *root)
{
    char path[4096], text[64] = "";
    FILE *file;

    snprintf(path, sizeof(path), "%s/proc/xen/capabilities", root);
    file = fopen(path, "re");
    if (!file)
        return false;
    if (!fgets(text, sizeof(text), file))
        text[0] = '\0';
    fclose(file);
    return strstr(text, "control_d");
}

static bool has_program(const char *name, const char *path)
{
    char *file = toolstack_find_program(name, path);

    free(file);
    return file;
}

const struct toolstack_ops *toolstack_detect(const char *root, const char *path)
{
    if (file_exists(root, "/etc/xensource-inventory") && has_program("xe", path))
        return &toolstack_xapi;
    if (is_control_domain(root) && has_program("xl", path))
        return &toolstack_xl;
#ifdef VGPU_WITH_LIBVIRT
    if (file_exists(root, "/run/libvirt/libvirt-sock") ||
        file_exists(root, "/run/libvirt/virtqemud-sock") || file_exists(root, "/usr/sbin/libvirtd"))
        return &toolstack_libvirt;
#endif
    return NULL;
}

static const struct toolstack_ops *by_name(const char *name)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(all_toolstacks); i++) {
        if (!strcmp(all_toolstacks[i]->name, name))
            return all_toolstacks[i];
    }
    return NULL;
}

static const struct toolstack_ops *choose_ops(const char *name, const char *uri,
                                              struct vgpu_error *error)
{
    const struct toolstack_ops *ops;

    if (!name && uri)
        name = "libvirt";
    ops = name ? by_name(name) : toolstack_detect("", toolstack_program_path());
    if (ops)
        return ops;
    if (!name)
        error_set(
            error, ENOENT,
            "no toolstack was found: no XAPI (/etc/xensource-inventory and xe), no Xen control "
            "domain with xl, no libvirt%s: install one, or name it with --toolstack",
#ifdef VGPU_WITH_LIBVIRT
            ""
#else
            " (and this program was built without its library)"
#endif
        );
    else if (!strcmp(name, "libvirt"))
        error_set(error, ENOTSUP,
                  "this program was built without libvirt: build it with libvirt-dev and "
                  "libxml2-dev installed");
    else
        error_set(error, EINVAL, "'%.32s' is no toolstack: use libvirt, xapi or xl", name);
    return NULL;
}

int toolstack_open(const char *name, const char *uri, struct toolstack **ret_toolstack,
                   struct vgpu_error *error)
{
    const struct toolstack_ops *ops = choose_ops(name, uri, error);
    struct toolstack *toolstack;

    if (!ops)
        return -1;
    toolstack = calloc(1, sizeof(*toolstack));
    if (!toolstack)
        return error_set(error, ENOMEM, "no memory");
    toolstack->ops = ops;
    if (ops->open(uri, &toolstack->data, error) < 0) {
        free(toolstack);
        return -1;
    }
    *ret_toolstack = toolstack;
    return 0;
}

bool toolstack_is_xen(const char *name, const char *uri)
{
    const struct toolstack_ops *ops = choose_ops(name, uri, NULL);

    return ops == &toolstack_xapi || ops == &toolstack_xl;
}

void toolstack_close(struct toolstack *toolstack)
{
    if (!toolstack)
        return;
    toolstack->ops->close(toolstack->data);
    free(toolstack);
}

const char *toolstack_name(const struct toolstack *toolstack)
{
    return toolstack->ops->name;
}

static int compare_vms(const void *left, const void *right)
{
    const struct toolstack_vm *a = left, *b = right;
    int order = strcmp(a->name, b->name);

    return order ? order : strcmp(a->uuid, b->uuid);
}

int toolstack_list(struct toolstack *toolstack, struct toolstack_vm **ret_vms, size_t *ret_count,
                   struct vgpu_error *error)
{
    struct toolstack_vm *vms = NULL;
    size_t count = 0;

    if (toolstack->ops->list(toolstack->data, &vms, &count, error) < 0)
        return -1;
    if (count > 0)
        qsort(vms, count, sizeof(*vms), compare_vms);
    *ret_vms = vms;
    *ret_count = count;
    return 0;
}

bool toolstack_is_uuid(const char *text)
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    if (strlen(text) != sizeof(shape) - 1)
        return false;
    for (size_t i = 0; shape[i]; i++) {
        if (shape[i] == '-' ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
            return false;
    }
    return true;
}

int toolstack_choose(const struct toolstack_vm *vms, size_t count, const char *text,
                     struct toolstack_vm *ret_vm, struct vgpu_error *error)
{
    const struct toolstack_vm *found = NULL;
    char shown[TOOLSTACK_NAME_BYTES];

    text_escape(shown, sizeof(shown), text, strlen(text));
    for (size_t i = 0; i < count; i++) {
        if (*vms[i].uuid && !strcasecmp(vms[i].uuid, text)) {
            *ret_vm = vms[i];
            return 0;
        }
        if (strcmp(vms[i].name, text) != 0)
            continue;
        if (found)
            return error_set(error, EINVAL,
                             "two VMs have the name '%.128s': give the UUID, %s or %s", shown,
                             found->uuid, vms[i].uuid);
        found = &vms[i];
    }
    if (!found)
        return error_set(error, ENOENT, "the host has no VM with the UUID or name '%.128s'", shown);
    *ret_vm = *found;
    return 0;
}

int toolstack_find(struct toolstack *toolstack, const char *text, struct toolstack_vm *ret_vm,
                   struct vgpu_error *error)
{
    struct toolstack_vm *vms = NULL;
    size_t count = 0;
    int result;

    if (toolstack_list(toolstack, &vms, &count, error) < 0)
        return -1;
    result = toolstack_choose(vms, count, text, ret_vm, error);
    free(vms);
    return result;
}

int toolstack_start(struct toolstack *toolstack, const char *uuid, struct vgpu_error *error)
{
    return toolstack->ops->start(toolstack->data, uuid, error);
}

int toolstack_stop(struct toolstack *toolstack, const char *uuid, unsigned timeout_ms, bool force,
                   struct vgpu_error *error)
{
    return toolstack->ops->stop(toolstack->data, uuid, timeout_ms, force, error);
}

int toolstack_publish(struct toolstack *toolstack, const char *uuid,
                      const struct toolstack_device *device, struct vgpu_error *error)
{
    if (device && device_check(device, error) < 0)
        return -1;
    return toolstack->ops->publish(toolstack->data, uuid, device, error);
}

int toolstack_check(struct toolstack *toolstack, const char *uuid,
                    const struct toolstack_device *device, struct vgpu_error *error)
{
    if (device && device_check(device, error) < 0)
        return -1;
    return toolstack->ops->check ? toolstack->ops->check(toolstack->data, uuid, device, error) : 0;
}

int toolstack_read_domain_xml(const char *xml, struct toolstack_vm *ret_vm,
                              struct vgpu_error *error)
{
#ifdef VGPU_WITH_LIBVIRT
    return libvirt_xml_read(xml, ret_vm, error);
#else
    (void)xml;
    (void)ret_vm;
    return error_set(error, ENOTSUP, "this program was built without libvirt and libxml2");
#endif
}
