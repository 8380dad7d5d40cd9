/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of host/ share among themselves. */
#ifndef VGPU_HOST_PRIVATE_H
#define VGPU_HOST_PRIVATE_H

#include "host/host.h"

#include <limits.h>
#include <stdarg.h>

#define HOST_FILE_MAX_BYTES (4u << 20) /* what is longer is read so far */

/* --- files.c: below the root ----------------------------------------------------------- */

/* False when it is too long. */
bool host_path(const struct host *host, char path[PATH_MAX], const char *format, ...)
    VGPU_PRINTF(3, 4);
bool host_exists(const struct host *host, const char *format, ...) VGPU_PRINTF(2, 3);

/* The first line without what ends it; "" and false when it cannot be read. */
bool host_read_line(const struct host *host, char *text, size_t bytes, const char *format, ...)
    VGPU_PRINTF(4, 5);

/* The whole file, with a NUL behind; free() it.  NULL with errno. */
char *host_read_file(const struct host *host, const char *format, ...) VGPU_PRINTF(2, 3);

/* The last part of where a link leads; "" and false without one. */
bool host_link_name(const struct host *host, char *name, size_t bytes, const char *format, ...)
    VGPU_PRINTF(4, 5);

/* The names in a directory, sorted, without those that start with '.'; count 0 when
 * there is no such directory. */
struct host_names {
    char **names;
    size_t count;
};

struct host_names host_list(const struct host *host, const char *format, ...) VGPU_PRINTF(2, 3);
void host_names_free(struct host_names *names);

int host_write(const struct host *host, const char *path, const char *text);

/* Where the program is, below the root; false when it is nowhere. */
bool host_find_program(const struct host *host, const char *name, char path[PATH_MAX]);

/* "a, b, c": adds one; what does not fit is left out with "…". */
void host_add(char *text, size_t bytes, const char *format, ...) VGPU_PRINTF(3, 4);

/* --- mode.c ------------------------------------------------------------------------------ */

bool host_is_xen(const struct host *host);
bool host_is_dom0(const struct host *host);

/* What `xl info` says behind "virt_caps"; why not otherwise. */
int host_virt_caps(const struct host *host, char *text, size_t bytes, struct vgpu_error *error);

/* --- iommu.c, faults.c --------------------------------------------------------------------- */

/* One line of a log; true when it tells of a fault. */
bool host_is_fault(const char *line);
void host_read_faults(const struct host *host, struct host_iommu *iommu);

/* Calls `line` for each message of the kernel's log, without its prefix. */
int host_read_kernel_log(const struct host *host, void (*line)(void *user, const char *text),
                         void *user, struct vgpu_error *error);

/* --- pci.c --------------------------------------------------------------------------------- */

bool host_same_group(const struct host_pci_device *one, const struct host_pci_device *other);

/* Holds a group up: it has a driver that is none of VFIO's and it is no bridge. */
bool host_is_neighbour_in_use(const struct host_pci_device *device);
bool host_is_for_vms(const struct host_pci_device *device); /* vfio-pci, pciback, ... */

/* --- use.c --------------------------------------------------------------------------------- */

/* EBUSY and who it is when a program or the host itself uses the device. */
int host_check_unused(const struct host *host, const struct host_pci_device *device,
                      struct vgpu_error *error);

/* --- preflight.c ---------------------------------------------------------------------------- */

/* What the registry does not say is not known. */
struct registered {
    bool known;
    uint32_t *vm_ids; /* of VMs with the file channel */
    size_t count;
    char ownerless[256]; /* "7 (web1), 9": with the window channel and no owner */
};

/* What several checks need, read once. */
struct survey {
    const struct host *host;
    enum host_mode mode;
    struct host_iommu iommu;
    struct host_pci_device *devices;
    size_t device_count;
    size_t gpu_count;
    size_t gpu_vfio_count; /* of these */
    struct registered registered;
};

void check_pass(struct host_check *check, const char *format, ...) VGPU_PRINTF(2, 3);
void check_warn(struct host_check *check, const char *format, ...) VGPU_PRINTF(2, 3);
void check_fail(struct host_check *check, const char *format, ...) VGPU_PRINTF(2, 3);
void check_skip(struct host_check *check, const char *format, ...) VGPU_PRINTF(2, 3);
void check_remedy(struct host_check *check, const char *format, ...) VGPU_PRINTF(2, 3);

/* The worse of what was found decides; nothing found: pass with `well`. */
struct findings {
    char failed[HOST_TEXT_BYTES];
    char warned[HOST_TEXT_BYTES];
};
void check_findings(struct host_check *check, const struct findings *findings, const char *well);

/* --- exports_seen.c --------------------------------------------------------------------------- */

void registered_read(const struct host *host, struct registered *ret_registered);
bool registered_lacks(const struct registered *registered, uint32_t vm_id);
void registered_free(struct registered *registered);

/* "vm7" */
bool host_is_vm_directory(const char *name, uint32_t *ret_vm_id);

/* One directory below the share for one client. */
struct export_seen {
    char path[256];
    char client[64];
};

struct exports_seen {
    struct export_seen *all;
    size_t count;
};

void exports_seen_add(struct exports_seen *seen, const char *path, const char *client);

/* What they say together is added; the list is emptied. */
void exports_seen_judge(const struct survey *survey, struct exports_seen *seen,
                        struct findings *findings);

typedef void check_function(const struct survey *survey, struct host_check *check);

check_function check_host_mode, check_iommu_enabled, check_interrupt_remapping, check_iommu_faults,
    check_iommu_groups, check_xen_virt_caps; /* check_iommu.c */
check_function check_gpu_driver, check_gpu_dma, check_gpu_neighbours, check_nvidia_driver,
    check_cuda, check_nvidia_nodes, check_gpu_host_memory, check_gpu_compute, check_vfio_nodes,
    check_kvm;                                              /* check_gpu.c */
check_function check_xen_device_model, check_xen_owners;    /* check_xen.c */
check_function check_kernel_exports, check_ganesha_exports; /* check_exports.c */
check_function check_share, check_run_dir, check_configuration, check_group,
    check_database_file;                                            /* check_files.c */
check_function check_database, check_mediator, check_memory_cgroup; /* check_service.c */

#endif
