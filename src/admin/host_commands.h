/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands of the group Host share. */
#ifndef VGPU_ADMIN_HOST_COMMANDS_H
#define VGPU_ADMIN_HOST_COMMANDS_H

#include "admin/admin.h"
#include "host/host.h"

/* --root DIR, which --help does not show: another machine's files, for tests. */
#define HOST_KEY_ROOT 0x2000
#define HOST_ROOT_OPTION                                                                           \
    {                                                                                              \
        "root", HOST_KEY_ROOT, "DIR", OPTION_HIDDEN, NULL, 0                                       \
    }

struct host_options {
    struct admin *admin;
    const char *root; /* NULL: the real one */
};

/* Reads the settings; `ret_host` points into `admin` and `options`. */
int host_settings(const struct host_options *options, struct host *ret_host,
                  struct vgpu_error *error);

json_t *host_json_text(const char *text); /* also what is no UTF-8 */

/* bind-vfio and unbind-vfio, which differ in one function. */
typedef int host_move(const struct host *host, const char *address, bool whole_group,
                      struct host_binding *ret_binding, struct vgpu_error *error);
int host_move_command(struct admin *admin, int argc, char **argv, host_move *move,
                      const char *nothing);

#endif
