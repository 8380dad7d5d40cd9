/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who uses a device just now.  Taking a device from its driver under a program that
 * has it open hangs until that program ends (nvidia), or takes the network or disk
 * from under the host; so it is asked before.
 *
 *   device ──▶ its nodes: /dev/nvidia0, /dev/dri/card0, /dev/vfio/14, ...
 *          ──▶ the links in /proc/<pid>/fd that lead there: these processes
 *          ──▶ network interfaces that are up; a storage controller at work
 */
#include "host/private.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICES "/sys/bus/pci/devices"
#define NODES_MAX 16
#define NODE_BYTES 64
#define USERS_NAMED_MAX 5
#define NVIDIA_NODE "/dev/nvidia"
#define CLASS_STORAGE 0x01
#define INTERFACE_UP 0x1

struct nodes {
    char names[NODES_MAX][NODE_BYTES];
    size_t count;
    bool all_nvidia; /* which one it is cannot be told */
};

static void add_node(struct nodes *nodes, const char *folder, const char *name)
{
    if (nodes->count < NODES_MAX)
        snprintf(nodes->names[nodes->count++], NODE_BYTES, "%s/%.40s", folder, name);
}

static void add_nvidia(const struct host *host, const char *address, struct nodes *nodes)
{
    char *text = host_read_file(host, "/proc/driver/nvidia/gpus/%s/information", address);
    const char *at = text ? strstr(text, "Device Minor:") : NULL;
    char name[32];
    size_t digits = 0;

    if (at) {
        at += strcspn(at, "0123456789\n");
        digits = strspn(at, "0123456789");
    }
    if (digits) {
        snprintf(name, sizeof(name), "nvidia%.*s", (int)digits, at);
        add_node(nodes, "/dev", name);
    } else {
        nodes->all_nvidia = true;
    }
    free(text);
}

static void add_listed(const struct host *host, const char *address, const char *folder,
                       const char *target, struct nodes *nodes)
{
    struct host_names names = host_list(host, DEVICES "/%s/%s", address, folder);

    for (size_t i = 0; i < names.count; i++)
        add_node(nodes, target, names.names[i]);
    host_names_free(&names);
}

static void find_nodes(const struct host *host, const struct host_pci_device *device,
                       struct nodes *nodes)
{
    char group[32];

    if (strcmp(device->driver, "nvidia") == 0)
        add_nvidia(host, device->address, nodes);
    if (strcmp(device->driver, "vfio-pci") == 0) {
        snprintf(group, sizeof(group), "%d", device->iommu_group);
        add_node(nodes, "/dev/vfio", group);
        add_listed(host, device->address, "vfio-dev", "/dev/vfio/devices", nodes);
    }
    add_listed(host, device->address, "drm", "/dev/dri", nodes);
    add_listed(host, device->address, "vgpu", "/dev", nodes);
}

static bool is_one_of(const struct nodes *nodes, const char *target)
{
    for (size_t i = 0; i < nodes->count; i++) {
        if (strcmp(nodes->names[i], target) == 0)
            return true;
    }
    return nodes->all_nvidia && strncmp(target, NVIDIA_NODE, strlen(NVIDIA_NODE)) == 0 &&
           strspn(target + strlen(NVIDIA_NODE), "0123456789") > 0;
}

/* What it has open of these; "" nothing. */
static void find_open(const struct host *host, const char *pid, const struct nodes *nodes,
                      char node[NODE_BYTES])
{
    struct host_names fds = host_list(host, "/proc/%s/fd", pid);

    node[0] = '\0';
    for (size_t i = 0; i < fds.count && !node[0]; i++) {
        char path[PATH_MAX], target[PATH_MAX];
        ssize_t length = -1;

        if (host_path(host, path, "/proc/%s/fd/%s", pid, fds.names[i]))
            length = readlink(path, target, sizeof(target) - 1);
        target[length > 0 ? length : 0] = '\0';
        if (is_one_of(nodes, target))
            text_copy(node, NODE_BYTES, target);
    }
    host_names_free(&fds);
}

static void find_users(const struct host *host, const struct nodes *nodes, char *users,
                       size_t bytes)
{
    struct host_names all = host_list(host, "/proc");
    unsigned count = 0;

    users[0] = '\0';
    for (size_t i = 0; i < all.count && count < USERS_NAMED_MAX; i++) {
        char node[NODE_BYTES], name[64], shown[64];

        if (!isdigit((unsigned char)all.names[i][0]))
            continue;
        find_open(host, all.names[i], nodes, node);
        if (!node[0])
            continue;
        host_read_line(host, name, sizeof(name), "/proc/%s/comm", all.names[i]);
        text_escape(shown, sizeof(shown), name, strlen(name));
        host_add(users, bytes, "%s (process %s) has %s open", shown, all.names[i], node);
        count++;
    }
    host_names_free(&all);
}

static int check_network(const struct host *host, const char *address, struct vgpu_error *error)
{
    struct host_names names = host_list(host, DEVICES "/%s/net", address);
    char up[128] = "";

    for (size_t i = 0; i < names.count; i++) {
        char flags[32];

        host_read_line(host, flags, sizeof(flags), DEVICES "/%s/net/%s/flags", address,
                       names.names[i]);
        if (strtoul(flags, NULL, 16) & INTERFACE_UP)
            host_add(up, sizeof(up), "%s", names.names[i]);
    }
    host_names_free(&names);
    if (!up[0])
        return 0;
    return error_set(error, EBUSY,
                     "%s is in use: its network interface is up (%s); take it down first: ip link "
                     "set NAME down",
                     address, up);
}

int host_check_unused(const struct host *host, const struct host_pci_device *device,
                      struct vgpu_error *error)
{
    struct nodes nodes = {.count = 0};
    char users[320];

    if (device->driver[0] && !host_is_for_vms(device) && device->class_code >> 16 == CLASS_STORAGE)
        return error_set(error, EBUSY,
                         "%s is a storage controller at work (driver %s): unmount what lies on it "
                         "and unbind it from that driver first",
                         device->address, device->driver);
    if (check_network(host, device->address, error) < 0)
        return -1;
    find_nodes(host, device, &nodes);
    if (!nodes.count && !nodes.all_nvidia)
        return 0;
    find_users(host, &nodes, users, sizeof(users));
    if (!users[0])
        return 0;
    return error_set(error, EBUSY,
                     "%s is in use: %s; stop the VM, vgpu-mediator with its workers, or whatever "
                     "else it is",
                     device->address, users);
}
