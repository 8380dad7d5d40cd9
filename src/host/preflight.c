/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checks in their order: first what the host is, then what is on it, then what
 * serves.  A new check is a function in check_*.c, a line in private.h and one here.
 */
#include "host/private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    check_function *run;
} table[] = {
    {"host-mode", check_host_mode},
    {"iommu-enabled", check_iommu_enabled},
    {"interrupt-remapping", check_interrupt_remapping},
    {"iommu-faults", check_iommu_faults},
    {"iommu-groups", check_iommu_groups},
    {"xen-virt-caps", check_xen_virt_caps},
    {"xen-device-model", check_xen_device_model},
    {"xen-owners", check_xen_owners},
    {"gpu-driver", check_gpu_driver},
    {"gpu-dma", check_gpu_dma},
    {"gpu-neighbours", check_gpu_neighbours},
    {"nvidia-driver", check_nvidia_driver},
    {"cuda", check_cuda},
    {"nvidia-nodes", check_nvidia_nodes},
    {"gpu-host-memory", check_gpu_host_memory},
    {"gpu-compute", check_gpu_compute},
    {"vfio-nodes", check_vfio_nodes},
    {"kvm", check_kvm},
    {"memory-cgroup", check_memory_cgroup},
    {"group-vgpu", check_group},
    {"configuration", check_configuration},
    {"share", check_share},
    {"kernel-exports", check_kernel_exports},
    {"ganesha-exports", check_ganesha_exports},
    {"run-dir", check_run_dir},
    {"database-file", check_database_file},
    {"database", check_database},
    {"mediator", check_mediator},
};

_Static_assert(VGPU_ARRAY_LENGTH(table) <= HOST_CHECKS_MAX, "HOST_CHECKS_MAX is too small");

#define SET_VERDICT(name_, verdict_)                                                               \
    void name_(struct host_check *check, const char *format, ...)                                  \
    {                                                                                              \
        va_list args;                                                                              \
                                                                                                   \
        check->verdict = (verdict_);                                                               \
        va_start(args, format);                                                                    \
        vsnprintf(check->found, sizeof(check->found), format, args);                               \
        va_end(args);                                                                              \
    }

SET_VERDICT(check_pass, HOST_PASS)
SET_VERDICT(check_warn, HOST_WARN)
SET_VERDICT(check_fail, HOST_FAIL)
SET_VERDICT(check_skip, HOST_SKIP)

void check_remedy(struct host_check *check, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(check->remedy, sizeof(check->remedy), format, args);
    va_end(args);
}

void check_findings(struct host_check *check, const struct findings *findings, const char *well)
{
    if (findings->failed[0] && findings->warned[0])
        check_fail(check, "%.500s; also %.250s", findings->failed, findings->warned);
    else if (findings->failed[0])
        check_fail(check, "%s", findings->failed);
    else if (findings->warned[0])
        check_warn(check, "%s", findings->warned);
    else
        check_pass(check, "%s", well);
}

const char *host_verdict_name(enum host_verdict verdict)
{
    static const char *const names[] = {
        [HOST_PASS] = "pass", [HOST_WARN] = "warn", [HOST_FAIL] = "fail", [HOST_SKIP] = "skip"};

    return names[verdict];
}

const char *host_check_name(size_t number)
{
    return number < VGPU_ARRAY_LENGTH(table) ? table[number].name : NULL;
}

static void make_survey(const struct host *host, struct survey *survey)
{
    *survey = (struct survey){.host = host, .mode = host_mode(host)};
    host_read_iommu(host, &survey->iommu);
    registered_read(host, &survey->registered);
    if (host_list_pci(host, &survey->devices, &survey->device_count, NULL) < 0)
        return;
    for (size_t i = 0; i < survey->device_count; i++) {
        survey->gpu_count += survey->devices[i].gpu;
        survey->gpu_vfio_count += survey->devices[i].gpu && host_is_for_vms(&survey->devices[i]);
    }
}

size_t host_preflight(const struct host *host, const char *only,
                      struct host_check checks[HOST_CHECKS_MAX])
{
    struct survey survey;
    size_t count = 0;

    make_survey(host, &survey);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(table); i++) {
        if (only && strcmp(only, table[i].name) != 0)
            continue;
        checks[count] = (struct host_check){.name = table[i].name, .verdict = HOST_SKIP};
        table[i].run(&survey, &checks[count++]);
    }
    free(survey.devices);
    registered_free(&survey.registered);
    return count;
}
