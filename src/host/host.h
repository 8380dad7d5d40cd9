/* SPDX-License-Identifier: Apache-2.0 */
/*
 * host/ - looks at this machine: IOMMU, PCI devices and their groups, the way in
 * which the GPU is used, and what an operator should mend before tenants come.
 *
 *   pci.c         PCI devices, drivers, IOMMU groups (sysfs)
 *   iommu.c       is it on, which kind, interrupt remapping
 *   faults.c      what the IOMMU stopped: the kernel's log, Xen's log
 *   mode.c        which of the supported set-ups this host is
 *   use.c         who uses a device just now
 *   vfio.c        moves a device between its driver and vfio-pci, undone on failure
 *   preflight.c   the table of checks; check_*.c hold them, one function each
 *   protection.c  which protection a VM's channel really has, in honest words
 *   files.c, program.c    reading below the root; a program without a shell
 *
 * All paths hang below `struct host.root` ("" is the real one), so that tests can
 * show it another machine's files.  Reading changes nothing.
 */
#ifndef VGPU_HOST_H
#define VGPU_HOST_H

#include "base/base.h"

#define HOST_ADDRESS_BYTES 16 /* "0000:01:00.0" */
#define HOST_TEXT_BYTES 768
#define HOST_CHECKS_MAX 32

/* What tests put something else in the place of. */
struct host_ops {
    void *user;
    /* Writes a file of sysfs; -1 with errno. */
    int (*write)(void *user, const char *path, const char *text);
    /* Makes a VM with the device `path`; -1 with errno. */
    int (*try_kvm)(void *user, const char *path);
};

/* All strings may be "", not NULL. */
struct host {
    const char *root;     /* before all the paths below and /sys, /proc, /dev, /etc */
    const char *config;   /* of the mediator */
    const char *database; /* "" none */
    const char *share;    /* "" none */
    const char *run_dir;
    const char *exports_dir;    /* looked at besides the servers' own places; "" none */
    const char *socket;         /* the mediator's control socket */
    const char *kernel_log;     /* in place of /dev/kmsg; NULL */
    const char *cuda_library;   /* NULL or "": where libcuda usually is */
    const struct host_ops *ops; /* NULL: the real ones */
};

/* --- PCI devices (pci.c) ------------------------------------------------------------- */

struct host_pci_device {
    char address[HOST_ADDRESS_BYTES];
    uint16_t vendor, device;
    uint32_t class_code; /* 24 bits */
    char driver[64];     /* "" unbound */
    int iommu_group;     /* -1 none */
    bool gpu;            /* NVIDIA display or 3D controller */
    bool stub;           /* a vgpu-stub */
    bool bridge;         /* to other devices: no obstacle in a group */
};

/* All PCI devices by address; free() them.  A host without PCI has none. */
int host_list_pci(const struct host *host, struct host_pci_device **ret_devices, size_t *ret_count,
                  struct vgpu_error *error);

/* "01:00.0" or "0000:01:00.0", in letters of either case. */
int host_check_address(const char *text, char ret_address[HOST_ADDRESS_BYTES],
                       struct vgpu_error *error);

/* What the kernel does with the DMA of a group's devices while their own drivers have
 * them: "DMA", "DMA-FQ" (translated), "identity" (not confined), "" unknown. */
void host_group_type(const struct host *host, int group, char type[32]);

/* --- IOMMU (iommu.c, faults.c) --------------------------------------------------------- */

struct host_iommu {
    bool enabled;
    char kind[32];          /* "intel", "amd", "arm-smmu", "xen", "" */
    bool firmware_table;    /* DMAR or IVRS of ACPI */
    bool intel_cpu;         /* which remedy to name */
    bool in_vm;             /* this machine is itself one: its host's IOMMU is not seen */
    bool switched_off;      /* by the kernel's command line */
    char command_line[128]; /* its words about the IOMMU */
    unsigned group_count;
    unsigned noiommu_count; /* groups that VFIO made without an IOMMU: no protection */
    bool interrupt_remapping;
    bool unsafe_interrupts; /* VFIO was told to do without */
    bool log_read;          /* else the next three are not known */
    unsigned fault_count;   /* lines of the kernel's (or Xen's) log */
    char last_fault[256];
    char last_fault_address[HOST_ADDRESS_BYTES]; /* of the device; "" */
    char log_problem[160];                       /* why it could not be read */
};

void host_read_iommu(const struct host *host, struct host_iommu *ret_iommu);

/* --- the set-up (mode.c) ------------------------------------------------------------------ */

enum host_mode {
    HOST_MODE_NO_GPU,        /* cpu backend only */
    HOST_MODE_KVM_GPU,       /* KVM, the GPU with its driver in the host */
    HOST_MODE_KVM_WORKER_VM, /* KVM, the GPU on vfio-pci for a worker VM */
    HOST_MODE_XEN_PVH_DOM0,  /* Xen, the GPU in a PVH Dom0 */
    HOST_MODE_XEN_PV_DOM0,   /* Xen, PV Dom0: CUDA cannot work there */
    HOST_MODE_XEN_WORKER_VM, /* Xen, the GPU passed through to a worker VM */
};

enum host_mode host_mode(const struct host *host);
const char *host_mode_name(enum host_mode mode); /* "kvm-gpu-in-host", ... */
const char *host_mode_text(enum host_mode mode); /* a sentence */

/* --- preflight (preflight.c) ----------------------------------------------------------------- */

enum host_verdict { HOST_PASS, HOST_WARN, HOST_FAIL, HOST_SKIP };

struct host_check {
    const char *name; /* stable: "iommu-enabled" */
    enum host_verdict verdict;
    char found[HOST_TEXT_BYTES];
    char remedy[HOST_TEXT_BYTES]; /* "" when nothing is to be done */
};

const char *host_verdict_name(enum host_verdict verdict); /* "pass", ... */

/* The checks' names in their order; NULL behind the last. */
const char *host_check_name(size_t number);

/* Runs all checks, or the one of that name (NULL: all); returns how many. */
size_t host_preflight(const struct host *host, const char *only,
                      struct host_check checks[HOST_CHECKS_MAX]);

/* --- protection (protection.c) ------------------------------------------------------------------
 */

#define HOST_SENTENCES_MAX 8

/* What keeps one subject ("gpu", "device", "file", "window", "xen") in its bounds. */
struct host_sentence {
    const char *subject;
    const char *by; /* "iommu", "host-checks", "nfs-server", "grants", "nothing" */
    char text[HOST_TEXT_BYTES];
};

/* Which protection a VM with these channels (STORE_CHANNEL_* bits) has on this host;
 * returns how many sentences. */
size_t host_protection(const struct host *host, unsigned channels,
                       struct host_sentence sentences[HOST_SENTENCES_MAX]);

/* --- to vfio-pci and back (vfio.c, use.c)
 * ---------------------------------------------------------- */

#define HOST_GROUP_MAX 32 /* devices of one group that move together */

struct host_binding {
    int group;
    unsigned count; /* devices moved; 0: there was nothing to do */
    struct {
        char address[HOST_ADDRESS_BYTES];
        char before[64], after[64]; /* drivers, "" none */
    } moved[HOST_GROUP_MAX];
};

/* To vfio-pci: the whole group is looked at first; refused (EBUSY) when the device is
 * used or a neighbour has a driver, with names.  `whole_group`: the neighbours move
 * too, all or none.  On failure each device has its driver again.
 * Back: to the driver that it had (kept in run_dir/vfio), or the one that the kernel
 * chooses. */
int host_bind_vfio(const struct host *host, const char *address, bool whole_group,
                   struct host_binding *ret_binding, struct vgpu_error *error);
int host_unbind_vfio(const struct host *host, const char *address, bool whole_group,
                     struct host_binding *ret_binding, struct vgpu_error *error);

#endif /* VGPU_HOST_H */
