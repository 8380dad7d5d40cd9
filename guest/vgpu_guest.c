// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vgpu_guest - the guest's kernel module: /dev/vgpu<n>, one session an open.
 *
 *   open(2) ── takes a slot ── SESSION_OPEN ──▶ device ──▶ mediator ──▶ worker
 *           ◀── SESSION_STATE: READY, vector 1 ◀──────────────────────────┘
 *   mmap(2) ── the slot's pages, cached ──── operations and answers pass here
 *   write(2), VGPU_IOCTL_RING ── SLOT_DOORBELL[slot] ──▶ worker
 *   read(2), poll(2) ◀── vector 0 ◀──────────────────────┘
 *   release ── SESSION_CLOSE ──▶ the slot is free again when the device says CLOSED
 *
 * include/vgpu/guest.h is what programs may expect, regs.h and window.h are
 * what the device is.  docs/guest-module.md is for people.
 *
 * The driver keeps no list of free slots: a slot is free when it has no session
 * here and the device calls it CLOSED.  So nothing can leak, whatever happened
 * before (a killed process, another kernel, an unbound driver).
 *
 * Cached mappings.  A PCI BAR that is mapped by its page frame numbers gets the
 * memory type that PAT and MTRRs have for it: uncached in most guests.  So the
 * window gets page structures (memremap_pages) and is mapped as pages, which
 * follow the mapping's own, cached, protection.
 *
 * Locks, in their order:
 *   life     SRCU; registers and window are touched only inside and while not
 *            `gone`; remove() sets `gone` and waits for all readers
 *   sessions mutex; who frees a session, or walks through them and sleeps
 *   lock     spinlock, interrupts off; `slots[]` and each session's `status`
 */
#define pr_fmt(format) KBUILD_MODNAME ": " format

#include <linux/cdev.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/stddef.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "vgpu/guest.h"
#include "vgpu/regs.h"
#include "vgpu/window.h"

#define VGPU_BAR_REGISTERS 0
#define VGPU_BAR_WINDOW 2
#define VGPU_NODES_MAX 64u
#define VGPU_CONTROL_PAGES 2u /* of a slot: the guest's and the host's */
#define VGPU_FAULT_PAGES 64u  /* mapped at once: 256 KiB */
#define VGPU_PIN_WAIT_MS 20u
#define VGPU_PIN_REPORT_MS 10000u

static unsigned int open_timeout_ms = 10000;
module_param(open_timeout_ms, uint, 0644);
MODULE_PARM_DESC(open_timeout_ms, "how long open(2) waits for the host, in ms (default 10000)");

static bool cached = true;
module_param(cached, bool, 0444);
MODULE_PARM_DESC(cached, "map the window cached; costs page structures, 1.6 % of its size "
                         "(default Y)");

struct vgpu_device {
    struct device node; /* /dev/vgpu<n>; its release frees all this */
    struct cdev cdev;
    struct pci_dev *pci;
    int number;

    struct srcu_struct life;
    bool gone;

    void __iomem *registers;
    phys_addr_t window;
    u64 slot_bytes;
    u32 slot_count; /* 0: no window, no sessions */
    struct dev_pagemap pagemap;
    bool has_pages;
    void *plain; /* the whole window without page structures, or NULL */

    struct mutex sessions;
    spinlock_t lock;
    struct vgpu_session *slots[VGPU_SLOTS_MAX];
    wait_queue_head_t changed; /* some slot's state did */
};

struct vgpu_session {
    struct vgpu_device *device;
    struct address_space *mapping; /* of its file, and so of all its mappings */
    u32 slot;
    u32 status; /* SESSION_STATE as last read */
    void *control;
    u32 cq_tail; /* as last seen */
    atomic64_t wakeups;
    wait_queue_head_t wait;
};

static dev_t vgpu_first_number;
static DEFINE_IDA(vgpu_numbers);

/* --- kernels differ ---------------------------------------------------------- */

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static void vm_flags_mod(struct vm_area_struct *area, vm_flags_t set, vm_flags_t clear)
{
    area->vm_flags = (area->vm_flags | set) & ~clear;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
static char *vgpu_devnode(struct device *node, umode_t *mode)
#else
static char *vgpu_devnode(const struct device *node, umode_t *mode)
#endif
{
    if (mode)
        *mode = 0660;
    return NULL;
}

static struct class vgpu_class = {
    .name = "vgpu",
    .devnode = vgpu_devnode,
};

/* --- registers ----------------------------------------------------------------- */

static bool vgpu_enter(struct vgpu_device *device, int *ret_token)
{
    int token = srcu_read_lock(&device->life);

    if (READ_ONCE(device->gone)) {
        srcu_read_unlock(&device->life, token);
        return false;
    }
    *ret_token = token;
    return true;
}

static void vgpu_leave(struct vgpu_device *device, int token)
{
    srcu_read_unlock(&device->life, token);
}

static u32 vgpu_read(struct vgpu_device *device, u32 offset)
{
    return ioread32(device->registers + offset);
}

static void vgpu_write(struct vgpu_device *device, u32 offset, u32 value)
{
    iowrite32(value, device->registers + offset);
}

static u32 vgpu_slot_status(struct vgpu_device *device, u32 slot)
{
    return vgpu_read(device, VGPU_REG_SESSION_STATE + 4 * slot);
}

/* What SESSION_CLOSE may be written for. */
static bool vgpu_status_closable(u32 status)
{
    u32 state = status & VGPU_SESSION_STATE_MASK;

    return state != VGPU_SESSION_CLOSED && state != VGPU_SESSION_RESETTING;
}

static bool vgpu_status_alive(u32 status)
{
    u32 state = status & VGPU_SESSION_STATE_MASK;

    return state == VGPU_SESSION_READY || state == VGPU_SESSION_LOST ||
           state == VGPU_SESSION_OPENING;
}

/* --- interrupts -------------------------------------------------------------------- */

static void vgpu_session_refresh(struct vgpu_session *session)
{
    u32 status;

    lockdep_assert_held(&session->device->lock);
    status = vgpu_slot_status(session->device, session->slot);
    if (status == session->status)
        return;
    WRITE_ONCE(session->status, status);
    wake_up_all(&session->wait);
}

/* One vector serves all sessions; only those are woken that have new completions,
 * so a busy program does not keep an idle one awake. */
static void vgpu_session_completed(struct vgpu_session *session)
{
    const struct vgpu_slot_host *host = session->control + VGPU_SLOT_HOST;
    u32 cq_tail;

    if (!session->control)
        return;
    cq_tail = READ_ONCE(host->cq_tail);
    if (cq_tail == session->cq_tail)
        return;
    session->cq_tail = cq_tail;
    atomic64_inc(&session->wakeups);
    wake_up_all(&session->wait);
}

static irqreturn_t vgpu_completion_interrupt(int irq, void *context)
{
    struct vgpu_device *device = context;
    u32 slot;

    spin_lock(&device->lock);
    for (slot = 0; slot < device->slot_count; slot++)
        if (device->slots[slot])
            vgpu_session_completed(device->slots[slot]);
    spin_unlock(&device->lock);
    return IRQ_HANDLED;
}

static void vgpu_refresh_all(struct vgpu_device *device)
{
    unsigned long flags;
    u32 slot;

    spin_lock_irqsave(&device->lock, flags);
    for (slot = 0; slot < device->slot_count; slot++)
        if (device->slots[slot])
            vgpu_session_refresh(device->slots[slot]);
    spin_unlock_irqrestore(&device->lock, flags);
    wake_up_all(&device->changed);
}

static irqreturn_t vgpu_config_interrupt(int irq, void *context)
{
    struct vgpu_device *device = context;

    /* Before the states are read: a change after that interrupts again. */
    vgpu_write(device, VGPU_REG_IRQ_STATUS, VGPU_IRQ_CONFIG);
    vgpu_refresh_all(device);
    return IRQ_HANDLED;
}

/* --- a session's slot ---------------------------------------------------------------- */

/* 0: taken.  -EAGAIN: a slot that nobody has is not free yet. */
static int vgpu_slot_take_free(struct vgpu_session *session)
{
    struct vgpu_device *device = session->device;
    int result = -EBUSY;
    u32 slot;

    spin_lock_irq(&device->lock);
    for (slot = 0; slot < device->slot_count && result != 0; slot++) {
        if (device->slots[slot])
            continue;
        result = -EAGAIN;
        if ((vgpu_slot_status(device, slot) & VGPU_SESSION_STATE_MASK) != VGPU_SESSION_CLOSED)
            continue;
        session->slot = slot;
        session->status = VGPU_SESSION_OPENING;
        device->slots[slot] = session;
        result = 0;
    }
    spin_unlock_irq(&device->lock);
    return result;
}

static int vgpu_slot_try(struct vgpu_session *session)
{
    struct vgpu_device *device = session->device;
    int result = -EHOSTDOWN;
    int token;

    if (!vgpu_enter(device, &token))
        return -ENODEV;
    if (vgpu_read(device, VGPU_REG_STATUS) & VGPU_STATUS_HOST)
        result = vgpu_slot_take_free(session);
    vgpu_leave(device, token);
    return result;
}

/* `*left` is what remains of the time to wait, in jiffies. */
static int vgpu_slot_take(struct vgpu_session *session, long *left)
{
    int result = -EAGAIN;
    long waited = wait_event_interruptible_timeout(
        session->device->changed, (result = vgpu_slot_try(session)) != -EAGAIN, *left);

    if (waited < 0)
        return waited;
    *left = waited;
    return result == -EAGAIN ? -ETIMEDOUT : result;
}

static void *vgpu_control_map(struct vgpu_device *device, u32 slot)
{
    u64 offset = vgpu_window_slot_offset(device->slot_bytes, slot);
    struct page *pages[VGPU_CONTROL_PAGES];
    u32 i;

    if (device->plain)
        return device->plain + offset;
    for (i = 0; i < VGPU_CONTROL_PAGES; i++)
        pages[i] = pfn_to_page(PHYS_PFN(device->window + offset) + i);
    return vmap(pages, VGPU_CONTROL_PAGES, VM_MAP, PAGE_KERNEL);
}

static void vgpu_control_unmap(struct vgpu_session *session)
{
    void *control = session->control;

    spin_lock_irq(&session->device->lock);
    session->control = NULL;
    spin_unlock_irq(&session->device->lock);
    if (control && !session->device->plain)
        vunmap(control);
}

/* Asks the host.  The slot's last user may have left anything in the indices. */
static int vgpu_session_ask(struct vgpu_session *session)
{
    struct vgpu_device *device = session->device;
    void *control;
    int token;

    if (!vgpu_enter(device, &token))
        return -ENODEV;
    control = vgpu_control_map(device, session->slot);
    if (control) {
        memset(control, 0, VGPU_CONTROL_PAGES * VGPU_PAGE_BYTES);
        spin_lock_irq(&device->lock);
        session->control = control;
        vgpu_write(device, VGPU_REG_SESSION_OPEN, session->slot);
        spin_unlock_irq(&device->lock);
    }
    vgpu_leave(device, token);
    return control ? 0 : -ENOMEM;
}

/* Has the device said what becomes of the session? */
static bool vgpu_session_decided(struct vgpu_session *session)
{
    struct vgpu_device *device = session->device;
    bool decided = true;
    int token;

    if (!vgpu_enter(device, &token))
        return true;
    spin_lock_irq(&device->lock);
    vgpu_session_refresh(session);
    decided = (session->status & VGPU_SESSION_STATE_MASK) != VGPU_SESSION_OPENING;
    spin_unlock_irq(&device->lock);
    vgpu_leave(device, token);
    return decided;
}

static int vgpu_session_verdict(struct vgpu_session *session)
{
    u32 status = READ_ONCE(session->status);
    u32 code = status >> VGPU_SESSION_CODE_SHIFT;

    if (READ_ONCE(session->device->gone))
        return -ENODEV;
    switch (status & VGPU_SESSION_STATE_MASK) {
    case VGPU_SESSION_READY:
    case VGPU_SESSION_LOST:
        return 0;
    case VGPU_SESSION_REFUSED:
        return code > 0 && code < MAX_ERRNO ? -(int)code : -ECONNREFUSED;
    case VGPU_SESSION_OPENING:
        return -ETIMEDOUT;
    default: /* a reset came in between */
        return -EAGAIN;
    }
}

static int vgpu_session_start(struct vgpu_session *session, long *left)
{
    int error = vgpu_session_ask(session);
    long waited;

    if (error)
        return error;
    waited = wait_event_interruptible_timeout(session->wait, vgpu_session_decided(session), *left);
    if (waited < 0)
        return waited;
    *left = waited;
    return vgpu_session_verdict(session);
}

/* Gives the slot back; who asks for it next waits until the device calls it closed. */
static void vgpu_slot_give_back(struct vgpu_session *session)
{
    struct vgpu_device *device = session->device;
    int token;
    bool alive;

    mutex_lock(&device->sessions);
    vgpu_control_unmap(session);
    alive = vgpu_enter(device, &token);
    spin_lock_irq(&device->lock);
    if (alive && vgpu_status_closable(vgpu_slot_status(device, session->slot)))
        vgpu_write(device, VGPU_REG_SESSION_CLOSE, session->slot);
    device->slots[session->slot] = NULL;
    spin_unlock_irq(&device->lock);
    if (alive)
        vgpu_leave(device, token);
    mutex_unlock(&device->sessions);
    wake_up_all(&device->changed);
}

/* --- file operations -------------------------------------------------------------------- */

static int vgpu_session_open(struct vgpu_session *session)
{
    long left = max(msecs_to_jiffies(READ_ONCE(open_timeout_ms)), 1ul);
    int error;

    do {
        error = vgpu_slot_take(session, &left);
        if (error)
            return error;
        error = vgpu_session_start(session, &left);
        if (error)
            vgpu_slot_give_back(session);
    } while (error == -EAGAIN && left > 0);
    return error == -EAGAIN ? -ETIMEDOUT : error;
}

static int vgpu_open(struct inode *inode, struct file *file)
{
    struct vgpu_device *device = container_of(inode->i_cdev, struct vgpu_device, cdev);
    struct vgpu_session *session;
    int error;

    if (!device->slot_count)
        return -ENXIO;
    session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
    if (!session)
        return -ENOMEM;
    session->device = device;
    session->mapping = file->f_mapping;
    init_waitqueue_head(&session->wait);
    error = vgpu_session_open(session);
    if (error) {
        kfree(session);
        return error;
    }
    file->private_data = session;
    return stream_open(inode, file);
}

static int vgpu_release(struct inode *inode, struct file *file)
{
    struct vgpu_session *session = file->private_data;

    vgpu_slot_give_back(session);
    kfree(session);
    return 0;
}

/* What read(2) and poll(2) wait for. */
static bool vgpu_session_idle(struct vgpu_session *session)
{
    return atomic64_read(&session->wakeups) == 0 && !READ_ONCE(session->device->gone) &&
           vgpu_status_alive(READ_ONCE(session->status));
}

static ssize_t vgpu_fop_read(struct file *file, char __user *buffer, size_t bytes, loff_t *offset)
{
    struct vgpu_session *session = file->private_data;
    u64 wakeups;

    if (bytes < sizeof(wakeups))
        return -EINVAL;
    for (;;) {
        if (READ_ONCE(session->device->gone))
            return -ENODEV;
        wakeups = atomic64_xchg(&session->wakeups, 0);
        if (wakeups)
            break;
        if (!vgpu_status_alive(READ_ONCE(session->status)))
            return -EPIPE;
        if (file->f_flags & O_NONBLOCK)
            return -EAGAIN;
        if (wait_event_interruptible(session->wait, !vgpu_session_idle(session)))
            return -ERESTARTSYS;
    }
    return copy_to_user(buffer, &wakeups, sizeof(wakeups)) ? -EFAULT : sizeof(wakeups);
}

static __poll_t vgpu_fop_poll(struct file *file, poll_table *table)
{
    struct vgpu_session *session = file->private_data;
    __poll_t events = 0;

    poll_wait(file, &session->wait, table);
    if (READ_ONCE(session->device->gone))
        return EPOLLHUP | EPOLLERR;
    if (atomic64_read(&session->wakeups))
        events |= EPOLLIN | EPOLLRDNORM;
    if (!vgpu_status_alive(READ_ONCE(session->status)))
        events |= EPOLLHUP;
    return events;
}

static int vgpu_ring(struct vgpu_session *session)
{
    struct vgpu_device *device = session->device;
    int token;

    if (!vgpu_enter(device, &token))
        return -ENODEV;
    vgpu_write(device, VGPU_REG_SLOT_DOORBELL + 4 * session->slot, 1);
    vgpu_leave(device, token);
    return 0;
}

static ssize_t vgpu_fop_write(struct file *file, const char __user *buffer, size_t bytes,
                              loff_t *offset)
{
    int error;

    if (bytes != sizeof(u64))
        return -EINVAL;
    error = vgpu_ring(file->private_data);
    return error ? error : (ssize_t)bytes;
}

static int vgpu_info(struct vgpu_session *session, struct vgpu_guest_info __user *target)
{
    struct vgpu_device *device = session->device;
    struct vgpu_guest_info info = {
        .slot_bytes = device->slot_bytes,
        .slot = session->slot,
        .slot_count = device->slot_count,
        .cached = device->has_pages,
    };
    u32 status;
    int token;

    if (!vgpu_enter(device, &token))
        return -ENODEV;
    info.version = vgpu_read(device, VGPU_REG_VERSION);
    info.vm_id = vgpu_read(device, VGPU_REG_VM_ID);
    info.pool = vgpu_read(device, VGPU_REG_POOL_ID);
    info.priority = vgpu_read(device, VGPU_REG_PRIORITY);
    status = vgpu_slot_status(device, session->slot);
    vgpu_leave(device, token);
    info.state = status & VGPU_SESSION_STATE_MASK;
    info.code = status >> VGPU_SESSION_CODE_SHIFT;
    return copy_to_user(target, &info, sizeof(info)) ? -EFAULT : 0;
}

static long vgpu_fop_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
    switch (command) {
    case VGPU_IOCTL_RING:
        return vgpu_ring(file->private_data);
    case VGPU_IOCTL_INFO:
        return vgpu_info(file->private_data, (struct vgpu_guest_info __user *)argument);
    default:
        return -ENOTTY;
    }
}

/* --- mappings ------------------------------------------------------------------------------ */

static int vgpu_map_page(struct vgpu_session *session, struct vm_area_struct *area,
                         unsigned long page)
{
    struct vgpu_device *device = session->device;
    unsigned long address = area->vm_start + ((page - area->vm_pgoff) << PAGE_SHIFT);
    unsigned long frame =
        PHYS_PFN(device->window + vgpu_window_slot_offset(device->slot_bytes, session->slot)) +
        page;

    if (device->has_pages)
        return vm_insert_page(area, address, pfn_to_page(frame));
    return vmf_insert_pfn(area, address, frame) & VM_FAULT_ERROR ? -EFAULT : 0;
}

/* Maps the page that was touched and its neighbours: 64 faults a slot of 16 MiB. */
static vm_fault_t vgpu_fault(struct vm_fault *fault)
{
    struct vm_area_struct *area = fault->vma;
    struct vgpu_session *session = area->vm_file->private_data;
    unsigned long first = max(area->vm_pgoff, rounddown(fault->pgoff, VGPU_FAULT_PAGES));
    unsigned long end = min(area->vm_pgoff + vma_pages(area),
                            rounddown(fault->pgoff, VGPU_FAULT_PAGES) + VGPU_FAULT_PAGES);
    unsigned long page;
    int token, error;

    if (!vgpu_enter(session->device, &token))
        return VM_FAULT_SIGBUS;
    error = vgpu_map_page(session, area, fault->pgoff);
    for (page = first; page < end && !error; page++)
        if (page != fault->pgoff)
            (void)vgpu_map_page(session, area, page); /* what fails here faults again */
    vgpu_leave(session->device, token);
    if (error == -ENOMEM)
        return VM_FAULT_OOM;
    /* -EBUSY: another thread was faster. */
    return error && error != -EBUSY ? VM_FAULT_SIGBUS : VM_FAULT_NOPAGE;
}

static const struct vm_operations_struct vgpu_vm_operations = {
    .fault = vgpu_fault,
};

static int vgpu_fop_mmap(struct file *file, struct vm_area_struct *area)
{
    struct vgpu_session *session = file->private_data;
    unsigned long pages = session->device->slot_bytes >> PAGE_SHIFT;

    if (READ_ONCE(session->device->gone))
        return -ENODEV;
    if (!(area->vm_flags & VM_MAYSHARE))
        return -EINVAL;
    if (area->vm_pgoff >= pages || vma_pages(area) > pages - area->vm_pgoff)
        return -EINVAL;
    if (area->vm_flags & VM_EXEC)
        return -EPERM;
    vm_flags_mod(area,
                 VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP |
                     (session->device->has_pages ? VM_MIXEDMAP : VM_PFNMAP | VM_IO),
                 VM_MAYEXEC);
    area->vm_ops = &vgpu_vm_operations;
    return 0;
}

static const struct file_operations vgpu_file_operations = {
    .owner = THIS_MODULE,
    .open = vgpu_open,
    .release = vgpu_release,
    .read = vgpu_fop_read,
    .write = vgpu_fop_write,
    .poll = vgpu_fop_poll,
    .mmap = vgpu_fop_mmap,
    .unlocked_ioctl = vgpu_fop_ioctl,
    .compat_ioctl = compat_ptr_ioctl,
};

/* --- the window ------------------------------------------------------------------------------ */

static int vgpu_window_map_pages(struct vgpu_device *device, u64 bytes)
{
    void *address;

    device->pagemap.type = MEMORY_DEVICE_GENERIC;
    device->pagemap.range.start = device->window;
    device->pagemap.range.end = device->window + bytes - 1;
    device->pagemap.nr_range = 1;
    address = memremap_pages(&device->pagemap, dev_to_node(&device->pci->dev));
    if (IS_ERR(address))
        return PTR_ERR(address);
    device->has_pages = true;
    return 0;
}

static int vgpu_window_map(struct vgpu_device *device, u64 bytes)
{
    int error = cached ? vgpu_window_map_pages(device, bytes) : 0;

    if (error)
        dev_warn(&device->pci->dev,
                 "no page structures for the window (error %d): it is mapped uncached, rings and "
                 "copies are slow\n",
                 error);
    if (device->has_pages)
        return 0;
    device->plain = memremap(device->window, bytes, MEMREMAP_WB);
    return device->plain ? 0 : -ENOMEM;
}

/* Somebody may still hold pages for a transfer of its own (direct I/O): they
 * end by themselves, and tell nobody. */
static void vgpu_window_wait_for_pins(struct vgpu_device *device)
{
    unsigned long frame = PHYS_PFN(device->pagemap.range.start);
    unsigned long last = PHYS_PFN(device->pagemap.range.end);
    unsigned int waited_ms = 0;

    for (; frame <= last; frame++) {
        cond_resched();
        for (; page_ref_count(pfn_to_page(frame)) > 1; waited_ms += VGPU_PIN_WAIT_MS) {
            if (waited_ms % VGPU_PIN_REPORT_MS == 0 && waited_ms > 0)
                dev_warn(&device->pci->dev,
                         "waiting for a program that has pinned pages of the window\n");
            msleep(VGPU_PIN_WAIT_MS);
        }
    }
}

static void vgpu_window_unmap(struct vgpu_device *device)
{
    if (device->plain)
        memunmap(device->plain);
    if (device->has_pages) {
        vgpu_window_wait_for_pins(device);
        memunmap_pages(&device->pagemap);
    }
    device->plain = NULL;
    device->has_pages = false;
}

/* Leaves slot_count at 0 when there is no window. */
static int vgpu_window_probe(struct vgpu_device *device)
{
    struct device *parent = &device->pci->dev;
    u64 high = vgpu_read(device, VGPU_REG_WINDOW_HI);
    u64 bytes = high << 32 | vgpu_read(device, VGPU_REG_WINDOW_LO);
    u32 slots = vgpu_read(device, VGPU_REG_SLOTS);

    if (!(vgpu_read(device, VGPU_REG_CAPS) & VGPU_CAP_WINDOW))
        return 0;
    device->slot_bytes = vgpu_window_slot_bytes(bytes, slots);
    if (!device->slot_bytes || bytes != pci_resource_len(device->pci, VGPU_BAR_WINDOW)) {
        dev_err(parent, "the window makes no sense: %llu bytes, %u slots, BAR2 of %llu bytes\n",
                bytes, slots, (u64)pci_resource_len(device->pci, VGPU_BAR_WINDOW));
        return -EINVAL;
    }
    device->window = pci_resource_start(device->pci, VGPU_BAR_WINDOW);
    if (!devm_request_mem_region(parent, device->window, bytes, KBUILD_MODNAME))
        return -EBUSY;
    device->slot_count = slots;
    return vgpu_window_map(device, bytes);
}

/* --- life ---------------------------------------------------------------------------- */

static void vgpu_node_release(struct device *node)
{
    struct vgpu_device *device = container_of(node, struct vgpu_device, node);

    cleanup_srcu_struct(&device->life);
    kfree(device);
}

static struct vgpu_device *vgpu_device_new(struct pci_dev *pci)
{
    struct vgpu_device *device = kzalloc(sizeof(*device), GFP_KERNEL);

    if (!device || init_srcu_struct(&device->life) != 0) {
        kfree(device);
        return NULL;
    }
    device->number = ida_alloc_max(&vgpu_numbers, VGPU_NODES_MAX - 1, GFP_KERNEL);
    if (device->number < 0) {
        cleanup_srcu_struct(&device->life);
        kfree(device);
        return NULL;
    }
    device->pci = pci;
    mutex_init(&device->sessions);
    spin_lock_init(&device->lock);
    init_waitqueue_head(&device->changed);
    device_initialize(&device->node);
    device->node.class = &vgpu_class;
    device->node.parent = &pci->dev;
    device->node.devt = MKDEV(MAJOR(vgpu_first_number), device->number);
    device->node.release = vgpu_node_release;
    cdev_init(&device->cdev, &vgpu_file_operations);
    device->cdev.owner = THIS_MODULE;
    return device;
}

static int vgpu_registers_probe(struct vgpu_device *device)
{
    struct device *parent = &device->pci->dev;
    u32 magic, version;
    int error;

    error = pcim_enable_device(device->pci);
    if (!error)
        error = pcim_iomap_regions(device->pci, BIT(VGPU_BAR_REGISTERS), KBUILD_MODNAME);
    if (error) {
        dev_err(parent, "cannot map the registers in BAR0: error %d\n", error);
        return error;
    }
    device->registers = pcim_iomap_table(device->pci)[VGPU_BAR_REGISTERS];
    magic = vgpu_read(device, VGPU_REG_MAGIC);
    version = vgpu_read(device, VGPU_REG_VERSION);
    if (magic != VGPU_MAGIC) {
        dev_err(parent, "this is no vgpu device: its magic is 0x%08x, not 0x%08x\n", magic,
                VGPU_MAGIC);
        return -ENODEV;
    }
    if (version >> 16 != VGPU_VERSION_MAJOR) {
        dev_err(parent, "the device speaks version %u.%u, this module %u: update the older one\n",
                version >> 16, version & 0xffff, VGPU_VERSION_MAJOR);
        return -ENODEV;
    }
    return 0;
}

static int vgpu_interrupts_start(struct vgpu_device *device)
{
    struct pci_dev *pci = device->pci;
    int error;

    pci_set_master(pci); /* a message-signalled interrupt is a write to memory */
    error = pci_alloc_irq_vectors(pci, VGPU_VECTOR_COUNT, VGPU_VECTOR_COUNT, PCI_IRQ_MSIX);
    if (error < 0)
        return dev_err_probe(&pci->dev, error, "no MSI-X interrupts\n");
    error = pci_request_irq(pci, VGPU_VECTOR_COMPLETION, vgpu_completion_interrupt, NULL, device,
                            "vgpu%d-completion", device->number);
    if (error)
        goto free_vectors;
    error = pci_request_irq(pci, VGPU_VECTOR_CONFIG, vgpu_config_interrupt, NULL, device,
                            "vgpu%d-config", device->number);
    if (error)
        goto free_completion;
    vgpu_write(device, VGPU_REG_IRQ_STATUS, VGPU_IRQ_ALL);
    vgpu_write(device, VGPU_REG_IRQ_MASK, VGPU_IRQ_ALL);
    return 0;

free_completion:
    pci_free_irq(pci, VGPU_VECTOR_COMPLETION, device);
free_vectors:
    pci_free_irq_vectors(pci);
    return error;
}

static void vgpu_interrupts_stop(struct vgpu_device *device)
{
    if (!device->slot_count)
        return;
    vgpu_write(device, VGPU_REG_IRQ_MASK, 0);
    pci_free_irq(device->pci, VGPU_VECTOR_CONFIG, device);
    pci_free_irq(device->pci, VGPU_VECTOR_COMPLETION, device);
    pci_free_irq_vectors(device->pci);
}

/* Ends every session that the device has, also those of an earlier driver. */
static void vgpu_close_all(struct vgpu_device *device)
{
    u32 slot;

    for (slot = 0; slot < device->slot_count; slot++)
        if (vgpu_status_closable(vgpu_slot_status(device, slot)))
            vgpu_write(device, VGPU_REG_SESSION_CLOSE, slot);
}

static int vgpu_start(struct vgpu_device *device)
{
    int error = dev_set_name(&device->node, "vgpu%d", device->number);

    if (!error)
        error = vgpu_registers_probe(device);
    if (!error)
        error = vgpu_window_probe(device);
    if (error)
        return error;
    if (device->slot_count) {
        error = vgpu_interrupts_start(device);
        if (error)
            goto unmap;
        vgpu_close_all(device);
    }
    error = cdev_device_add(&device->cdev, &device->node);
    if (!error)
        return 0;
    vgpu_interrupts_stop(device);
unmap:
    vgpu_window_unmap(device);
    return error;
}

static int vgpu_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
    struct vgpu_device *device = vgpu_device_new(pci);
    int error;

    if (!device)
        return -ENOMEM;
    error = vgpu_start(device);
    if (error) {
        ida_free(&vgpu_numbers, device->number);
        put_device(&device->node);
        return error;
    }
    pci_set_drvdata(pci, device);
    if (device->slot_count)
        dev_info(&pci->dev, "vgpu%d: VM %u, %u sessions of %llu KiB, %s\n", device->number,
                 vgpu_read(device, VGPU_REG_VM_ID), device->slot_count, device->slot_bytes >> 10,
                 device->has_pages ? "cached" : "uncached");
    else
        dev_info(&pci->dev, "vgpu%d: VM %u, no window: it cannot be opened\n", device->number,
                 vgpu_read(device, VGPU_REG_VM_ID));
    return 0;
}

/* Takes the window away from every program that has it; touching it then
 * raises SIGBUS. */
static void vgpu_revoke_all(struct vgpu_device *device)
{
    u32 slot;

    mutex_lock(&device->sessions);
    for (slot = 0; slot < device->slot_count; slot++) {
        struct vgpu_session *session = device->slots[slot];

        if (!session)
            continue;
        unmap_mapping_range(session->mapping, 0, 0, 1);
        vgpu_control_unmap(session);
        wake_up_all(&session->wait);
    }
    mutex_unlock(&device->sessions);
    wake_up_all(&device->changed);
}

static void vgpu_remove(struct pci_dev *pci)
{
    struct vgpu_device *device = pci_get_drvdata(pci);

    cdev_device_del(&device->cdev, &device->node);
    /* Not when the last descriptor is closed: who comes back keeps its name. */
    ida_free(&vgpu_numbers, device->number);
    WRITE_ONCE(device->gone, true);
    synchronize_srcu(&device->life);
    vgpu_interrupts_stop(device);
    vgpu_revoke_all(device);
    vgpu_close_all(device);
    vgpu_window_unmap(device);
    put_device(&device->node);
}

/* Before another kernel starts: no interrupt may come, the host need not wait. */
static void vgpu_shutdown(struct pci_dev *pci)
{
    struct vgpu_device *device = pci_get_drvdata(pci);

    if (!device->slot_count)
        return;
    vgpu_write(device, VGPU_REG_IRQ_MASK, 0);
    vgpu_close_all(device);
}

/* After a sleep or a reset the device may have lost its sessions: look. */
static void vgpu_woken(struct pci_dev *pci)
{
    struct vgpu_device *device = pci_get_drvdata(pci);

    if (!device->slot_count)
        return;
    vgpu_write(device, VGPU_REG_IRQ_MASK, VGPU_IRQ_ALL);
    vgpu_refresh_all(device);
}

static int __maybe_unused vgpu_resume(struct device *parent)
{
    vgpu_woken(to_pci_dev(parent));
    return 0;
}

static SIMPLE_DEV_PM_OPS(vgpu_power, NULL, vgpu_resume);

static const struct pci_error_handlers vgpu_error_handlers = {
    .reset_done = vgpu_woken,
};

/* By class and id: other makers' accelerators are of the same class, and their
 * registers must not be touched to ask for a magic. */
static const struct pci_device_id vgpu_ids[] = {
    {PCI_DEVICE(VGPU_PCI_VENDOR_ID, VGPU_PCI_DEVICE_ID), .class = VGPU_PCI_CLASS_CODE,
     .class_mask = 0xffffff},
    {},
};
MODULE_DEVICE_TABLE(pci, vgpu_ids);

/*
 * While this driver has BAR0 the kernel lets no program map it.  Programs that only
 * want to know who the VM is read the registers here, without a session.
 */
static ssize_t vgpu_registers_show(struct file *file, struct kobject *kobj,
                                   struct bin_attribute *attribute, char *buffer, loff_t offset,
                                   size_t count)
{
    struct vgpu_device *device = dev_get_drvdata(kobj_to_dev(kobj));
    size_t done;

    if (offset % sizeof(u32) || count % sizeof(u32))
        return -EINVAL;
    for (done = 0; done < count; done += sizeof(u32)) {
        __le32 value = cpu_to_le32(vgpu_read(device, offset + done));

        memcpy(buffer + done, &value, sizeof(value));
    }
    return done;
}

static struct bin_attribute vgpu_registers_attribute = {
    .attr = {.name = "vgpu_registers", .mode = 0444},
    .size = VGPU_REG_END,
    .read = vgpu_registers_show,
};

static struct bin_attribute *vgpu_attributes[] = {&vgpu_registers_attribute, NULL};
static const struct attribute_group vgpu_attribute_group = {.bin_attrs = vgpu_attributes};
static const struct attribute_group *vgpu_attribute_groups[] = {&vgpu_attribute_group, NULL};

static struct pci_driver vgpu_driver = {
    .name = KBUILD_MODNAME,
    .id_table = vgpu_ids,
    .probe = vgpu_probe,
    .remove = vgpu_remove,
    .shutdown = vgpu_shutdown,
    .err_handler = &vgpu_error_handlers,
    .driver.pm = &vgpu_power,
    .dev_groups = vgpu_attribute_groups,
};

static int __init vgpu_guest_init(void)
{
    int error = class_register(&vgpu_class);

    if (error)
        return error;
    error = alloc_chrdev_region(&vgpu_first_number, 0, VGPU_NODES_MAX, "vgpu");
    if (error)
        goto no_numbers;
    error = pci_register_driver(&vgpu_driver);
    if (error)
        goto no_driver;
    return 0;

no_driver:
    unregister_chrdev_region(vgpu_first_number, VGPU_NODES_MAX);
no_numbers:
    class_unregister(&vgpu_class);
    return error;
}

static void __exit vgpu_guest_exit(void)
{
    pci_unregister_driver(&vgpu_driver);
    unregister_chrdev_region(vgpu_first_number, VGPU_NODES_MAX);
    class_unregister(&vgpu_class);
    ida_destroy(&vgpu_numbers);
}

module_init(vgpu_guest_init);
module_exit(vgpu_guest_exit);

MODULE_DESCRIPTION("Sessions on a virtual GPU of vgpu-mediator");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
