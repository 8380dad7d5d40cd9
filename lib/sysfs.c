/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way without the module, for root and one process at a time: BARs through
 * sysfs.  No interrupts reach a program that way, so it sleeps a little longer
 * each time; and the mapping is uncached on some hosts, which makes it slow.
 *
 *   resource0  registers: SESSION_OPEN, SESSION_STATE, SLOT_DOORBELL
 *   resource2  the window; a lock on it keeps other processes away
 */
#include "private.h"
#include "vgpu/regs.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEVICES "/sys/bus/pci/devices"
#define NAP_MIN_NS (20 * NS_PER_US)
#define NAP_MAX_NS NS_PER_MS
#define LOOK_NS (10 * NS_PER_MS)

struct sysfs {
    volatile uint32_t *registers;
    int window_fd;
    uint32_t slot;
    int64_t nap_ns;
    int64_t looked_ns; /* when the registers were read last */
};

static uint32_t get(const struct sysfs *sysfs, unsigned offset)
{
    return le32toh(sysfs->registers[offset / 4]);
}

static void put(struct sysfs *sysfs, unsigned offset, uint32_t value)
{
    sysfs->registers[offset / 4] = htole32(value);
}

static uint32_t slot_status(const struct sysfs *sysfs)
{
    return get(sysfs, VGPU_REG_SESSION_STATE + 4 * sysfs->slot);
}

static int open_attribute(const char *directory, const char *name, int flags)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%.4000s/%s", directory, name);
    return open(path, flags | O_CLOEXEC);
}

static bool is_candidate(const char *directory)
{
    int fd = open_attribute(directory, "class", O_RDONLY);
    char text[32] = "";

    if (fd < 0)
        return false;
    if (read(fd, text, sizeof(text) - 1) < 0)
        text[0] = '\0';
    close(fd);
    return strtoul(text, NULL, 0) >> 8 == VGPU_PCI_CLASS;
}

static bool find_device(char *path, size_t bytes)
{
    DIR *directory = opendir(DEVICES);
    const struct dirent *entry;
    bool found = false;

    while (directory && !found && (entry = readdir(directory))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, bytes, DEVICES "/%.64s", entry->d_name);
        found = is_candidate(path);
    }
    if (directory)
        closedir(directory);
    return found;
}

static int map_registers(struct vgpu_session *session, struct sysfs *sysfs,
                         struct vgpu_problem *problem)
{
    int fd = open_attribute(session->info.path, "resource0", O_RDWR);
    void *map = MAP_FAILED;
    int error = errno;

    if (fd >= 0) {
        map = mmap(NULL, VGPU_BAR0_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        error = errno;
        close(fd);
    }
    if (map == MAP_FAILED)
        return problem_set(problem,
                           error == EACCES || error == EPERM ? VGPU_PROBLEM_DENIED
                                                             : VGPU_PROBLEM_NO_DEVICE,
                           "cannot map the registers of %s: %s; only root can, and not under "
                           "kernel lockdown",
                           session->info.path, strerror(error));
    madvise(map, VGPU_BAR0_BYTES, MADV_DONTFORK);
    sysfs->registers = map;
    if (get(sysfs, VGPU_REG_MAGIC) != VGPU_MAGIC)
        return problem_set(problem, VGPU_PROBLEM_NO_DEVICE, "%s is no vgpu-stub",
                           session->info.path);
    if (!(get(sysfs, VGPU_REG_CAPS) & VGPU_CAP_WINDOW) || get(sysfs, VGPU_REG_SLOTS) == 0)
        return problem_set(problem, VGPU_PROBLEM_NO_DEVICE,
                           "%s has no window: its host gives it none", session->info.path);
    return 0;
}

static int lock_window(struct vgpu_session *session, struct sysfs *sysfs,
                       struct vgpu_problem *problem)
{
    char path[PATH_MAX];
    struct stat info;

    snprintf(path, sizeof(path), "%.4000s/driver", session->info.path);
    if (stat(path, &info) == 0)
        return problem_set(problem, VGPU_PROBLEM_BUSY,
                           "%s belongs to a driver: use /dev/vgpu<n>, or unload it",
                           session->info.path);
    sysfs->window_fd = open_attribute(session->info.path, "resource2", O_RDWR);
    if (sysfs->window_fd < 0)
        return problem_set(problem, errno == EACCES ? VGPU_PROBLEM_DENIED : VGPU_PROBLEM_NO_DEVICE,
                           "cannot open resource2 of %s: %s", session->info.path, strerror(errno));
    if (flock(sysfs->window_fd, LOCK_EX | LOCK_NB) < 0)
        return problem_set(problem, VGPU_PROBLEM_BUSY,
                           "%s is used by another process; without the module only one can",
                           session->info.path);
    return 0;
}

static int await_session(struct vgpu_session *session, const struct sysfs *sysfs,
                         struct vgpu_problem *problem)
{
    const struct timespec moment = {.tv_nsec = NS_PER_MS};
    uint32_t status, state;

    for (;;) {
        status = slot_status(sysfs);
        state = status & VGPU_SESSION_STATE_MASK;
        if (state == VGPU_SESSION_READY || state == VGPU_SESSION_LOST)
            return 0;
        if (state == VGPU_SESSION_REFUSED)
            return problem_set(problem, VGPU_PROBLEM_NO_HOST,
                               "the mediator refused the session: %s; its log says more",
                               strerror((int)(status >> VGPU_SESSION_CODE_SHIFT)));
        if (clock_ns() > session->deadline_ns)
            return problem_set(problem, VGPU_PROBLEM_TIMEOUT,
                               "the host did not open slot %u in time: is the mediator running?",
                               sysfs->slot);
        nanosleep(&moment, NULL);
    }
}

/* A slot that an earlier process left is open still: nobody else can hold it. */
static int open_slot(struct vgpu_session *session, struct sysfs *sysfs,
                     struct vgpu_problem *problem)
{
    const struct timespec moment = {.tv_nsec = NS_PER_MS};

    if (!(get(sysfs, VGPU_REG_STATUS) & VGPU_STATUS_HOST))
        return problem_set(problem, VGPU_PROBLEM_NO_HOST,
                           "no mediator is connected on the host: is it running?");
    if ((slot_status(sysfs) & VGPU_SESSION_STATE_MASK) != VGPU_SESSION_CLOSED)
        put(sysfs, VGPU_REG_SESSION_CLOSE, sysfs->slot);
    while ((slot_status(sysfs) & VGPU_SESSION_STATE_MASK) != VGPU_SESSION_CLOSED) {
        if (clock_ns() > session->deadline_ns)
            return problem_set(problem, VGPU_PROBLEM_BUSY, "slot %u of %s was not closed in time",
                               sysfs->slot, session->info.path);
        nanosleep(&moment, NULL);
    }
    put(sysfs, VGPU_REG_SESSION_OPEN, sysfs->slot);
    return await_session(session, sysfs, problem);
}

static int map_slot(struct vgpu_session *session, const struct sysfs *sysfs,
                    struct vgpu_problem *problem)
{
    uint64_t bytes =
        (uint64_t)get(sysfs, VGPU_REG_WINDOW_HI) << 32 | get(sysfs, VGPU_REG_WINDOW_LO);
    uint64_t slot_bytes = vgpu_window_slot_bytes(bytes, get(sysfs, VGPU_REG_SLOTS));

    session->info.vm_id = get(sysfs, VGPU_REG_VM_ID);
    session->info.pool = (char)(get(sysfs, VGPU_REG_POOL_ID) & 0x7f);
    session->info.priority = get(sysfs, VGPU_REG_PRIORITY);
    session->info.slot = sysfs->slot;
    return session_map(session, sysfs->window_fd, vgpu_window_slot_offset(slot_bytes, sysfs->slot),
                       slot_bytes, problem);
}

static void sysfs_forked(struct vgpu_session *session)
{
    struct sysfs *sysfs = session->way;

    if (sysfs->window_fd >= 0)
        close(sysfs->window_fd);
    sysfs->window_fd = -1;
}

static void sysfs_close(struct vgpu_session *session)
{
    struct sysfs *sysfs = session->way;

    if (sysfs->registers && session->slot)
        put(sysfs, VGPU_REG_SESSION_CLOSE, sysfs->slot);
    if (sysfs->registers)
        munmap((void *)sysfs->registers, VGPU_BAR0_BYTES);
    sysfs->registers = NULL;
    sysfs_forked(session);
}

static int sysfs_open(struct vgpu_session *session, const struct vgpu_options *options,
                      const char *path, struct vgpu_problem *problem)
{
    struct sysfs *sysfs;

    (void)options;
    if (path)
        snprintf(session->info.path, sizeof(session->info.path), "%s", path);
    else if (!find_device(session->info.path, sizeof(session->info.path)))
        return problem_set(problem, VGPU_PROBLEM_NO_DEVICE,
                           "no device of class 0x%04x00 in " DEVICES, VGPU_PCI_CLASS);
    sysfs = calloc(1, sizeof(*sysfs));
    if (!sysfs)
        return problem_set(problem, VGPU_PROBLEM_SYSTEM, "out of memory");
    sysfs->window_fd = -1;
    sysfs->nap_ns = NAP_MIN_NS;
    session->way = sysfs;
    if (map_registers(session, sysfs, problem) < 0 || lock_window(session, sysfs, problem) < 0 ||
        open_slot(session, sysfs, problem) < 0 || map_slot(session, sysfs, problem) < 0) {
        sysfs_close(session);
        free(sysfs);
        session->way = NULL;
        return -1;
    }
    return 0;
}

static void sysfs_ring(struct vgpu_session *session)
{
    struct sysfs *sysfs = session->way;

    put(sysfs, VGPU_REG_SLOT_DOORBELL + 4 * sysfs->slot, 1);
    sysfs->nap_ns = NAP_MIN_NS;
}

static uint32_t sysfs_state(struct vgpu_session *session)
{
    return session_state(session, slot_status(session->way) & VGPU_SESSION_STATE_MASK);
}

static void sysfs_sleep(struct vgpu_session *session, int64_t timeout_ns)
{
    struct sysfs *sysfs = session->way;
    int64_t nap_ns = timeout_ns >= 0 && timeout_ns < sysfs->nap_ns ? timeout_ns : sysfs->nap_ns;
    const struct timespec nap = {.tv_nsec = nap_ns};
    int64_t now_ns = clock_ns();
    uint32_t state;

    if (nap_ns > 0)
        nanosleep(&nap, NULL);
    sysfs->nap_ns = sysfs->nap_ns * 2 < NAP_MAX_NS ? sysfs->nap_ns * 2 : NAP_MAX_NS;
    if (now_ns - sysfs->looked_ns < LOOK_NS)
        return;
    sysfs->looked_ns = now_ns;
    state = sysfs_state(session);
    if (state != VGPU_SESSION_READY && state != VGPU_SESSION_LOST)
        session_end(session, VGPU_PROBLEM_CLOSED,
                    "the session of %s was ended by the host (state %u): open a new one; "
                    "the mediator's log says why",
                    session->info.path, state);
}

const struct transport sysfs_transport = {
    .kind = VGPU_TRANSPORT_SYSFS,
    .open = sysfs_open,
    .ring = sysfs_ring,
    .sleep = sysfs_sleep,
    .state = sysfs_state,
    .close = sysfs_close,
    .forked = sysfs_forked,
};
