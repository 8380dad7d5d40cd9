/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The doctor's look at the window: what must be there for it, in the order in
 * which a session needs it, then a session and a ping through it.
 *
 *   window    the device offers one
 *   module    vgpu_guest.ko is loaded: else root only, slow
 *   barriers  only told of an emulator that leaves them out
 *   xen       in a Xen guest without a window: what its programs use instead
 *   session   /dev/vgpu<n> is there and permitted, the host has a worker for it
 *   answer    the worker answers
 */
#include "client.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PINGS 100
#define CPUID_HYPERVISOR 0x40000000u
#define POSSIBLE_CPUS "/sys/devices/system/cpu/possible"

static void check_module(const struct doctor_window *job)
{
    if (access("/sys/module/vgpu_guest", F_OK) == 0)
        job->add(job->context, CHECK_PASS, 0, "module", "", "vgpu_guest is loaded");
    else
        job->add(job->context, job->severity, CLIENT_EXIT_DEVICE, "module",
                 "load it: modprobe vgpu_guest (it builds from guest/, also with DKMS)",
                 "looked for /sys/module/vgpu_guest: not there; without it the window is root's "
                 "alone, and slow");
}

static bool under_tcg(void)
{
    char name[12];
    unsigned eax, registers[3];

    __cpuid(CPUID_HYPERVISOR, eax, registers[0], registers[1], registers[2]);
    (void)eax;
    memcpy(name, registers, sizeof(name));
    return memcmp(name, "TCGTCGTCGTCG", sizeof(name)) == 0;
}

static bool one_cpu_for_ever(void)
{
    FILE *file = fopen(POSSIBLE_CPUS, "re");
    char line[16] = "";
    bool only;

    if (!file)
        return false;
    only = fgets(line, sizeof(line), file) && strcmp(line, "0\n") == 0;
    fclose(file);
    return only;
}

/* QEMU 7.2 translates barriers to nothing where only one vCPU can be; then guest
 * and worker can both miss what the other just wrote, and sleep on it. */
static void check_barriers(const struct doctor_window *job)
{
    if (under_tcg() && one_cpu_for_ever())
        job->add(job->context, CHECK_WARN, 0, "barriers",
                 "start the VM with -smp 1,maxcpus=2, or under KVM",
                 "emulated (TCG) with one processor for ever: QEMU leaves memory barriers "
                 "out then, and a sleeping program may not be woken");
}

static void check_offer(const struct doctor_window *job)
{
    uint32_t slots = device_register(job->device, VGPU_REG_SLOTS);

    if (device_offers_window(job->device))
        job->add(job->context, CHECK_PASS, 0, "window", "", "offered by the device, %u slots",
                 slots);
    else
        job->add(job->context, job->severity, CLIENT_EXIT_DEVICE, "window",
                 "give the VM a window on its host (memdev= and chardev= of vgpu-stub)",
                 "not offered by this device (bit 0 of register caps)");
}

static int ping(const struct doctor_window *job, struct vgpu_session *session, int64_t *ret_best_ns,
                struct failure *failure)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_PING};
    struct vgpu_problem problem;
    struct vgpu_result result;
    vgpu_ticket ticket;

    *ret_best_ns = INT64_MAX;
    for (int i = 0; i < PINGS; i++) {
        int64_t begin_ns = clock_now_ns(), took_ns;

        if (vgpu_submit(session, &descriptor, NULL, NULL, &ticket, &problem) < 0 ||
            vgpu_wait(session, ticket, job->options->timeout_ns / 1000, &result, &problem) < 0)
            return window_failure(&problem, failure);
        if (result.status != VGPU_OK)
            return failure_set(failure, FAILURE_WINDOW_STATUS, "the host answered: %s",
                               vgpu_status_text((int)result.status));
        took_ns = clock_now_ns() - begin_ns;
        if (took_ns < *ret_best_ns)
            *ret_best_ns = took_ns;
    }
    return 0;
}

/* The other way to a session, where no device has a window. */
static bool is_by_pages(const struct doctor_window *job)
{
    return !job->options->socket && !(job->device && device_offers_window(job->device)) &&
           doctor_is_xen(job->options);
}

static bool check_session(const struct doctor_window *job)
{
    struct failure failure = {0};
    struct window window;
    int64_t best_ns;
    bool works = false;

    if (window_open(job->options, &window, &failure) < 0) {
        if (is_by_pages(job) && failure.code == FAILURE_WINDOW_MISSING)
            doctor_xen_remedy(job->options, &failure);
        job->add(job->context, job->severity, failure.exit_code, "session", failure.remedy, "%s",
                 failure.text);
        return false;
    }
    job->add(job->context, CHECK_PASS, 0, "session", "", "slot %u of %.200s, %.1f MiB, %s, %s",
             window.info.slot, window.info.path, (double)window.info.slot_bytes / (1 << 20),
             vgpu_transport_name(window.info.transport),
             window.info.cached ? "cached" : "uncached");
    if (ping(job, window.session, &best_ns, &failure) < 0)
        job->add(job->context, job->severity, failure.exit_code, "answer", failure.remedy, "%s",
                 failure.text);
    else
        job->add(job->context, CHECK_PASS, 0, "answer", "", "%d pings, the fastest took %.1f us",
                 PINGS, (double)best_ns / 1e3);
    works = failure.code == FAILURE_NONE;
    window_close(&window);
    return works;
}

bool doctor_window_work(const struct doctor_window *job)
{
    if (job->device)
        check_offer(job);
    if (job->device && device_offers_window(job->device))
        check_module(job);
    if (job->device)
        check_barriers(job);
    if (is_by_pages(job))
        doctor_xen_devices(job);
    else if (job->device && !device_offers_window(job->device))
        return false;
    return check_session(job);
}
