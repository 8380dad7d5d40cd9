/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The channel's own thread: which VM's directory is looked at when.
 *
 *   look ─▶ collect what stands in all directories ─▶ sort by time of
 *   modification, equals in turn ─▶ accept one after the other ─▶ report
 *
 * Order is the order in which requests were seen.  Only those that are found
 * by one and the same look have no such order; for them the file's time
 * decides, and after it a VM's turn, so that no VM is always first.
 */
#include "channel/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLEANUP_LIMIT_NS (5 * NS_PER_S)
#define CLEANUP_LOOK_MS 20

static void look(bool listing, void *context);
static void on_answer_read(int handle, void *context);

/* --- the VMs ------------------------------------------------------------------- */

static struct file_entry *find_vm(struct file_loop *loop, uint32_t vm_id)
{
    struct file_entry *entry;

    HASH_FIND(hh, loop->vms, &vm_id, sizeof(vm_id), entry);
    return entry;
}

/* Opens the directory if it is there; the journal stays open always. */
static void open_directory(struct file_loop *loop, struct file_vm *vm)
{
    struct vgpu_error error;

    if (vm->unusable)
        return;
    if (directory_open(&vm->directory, loop->share_fd, vm->name, &vm->owner, &error) < 0) {
        file_vm_report_trouble(vm, &error); /* the next listing tries again */
        return;
    }
    vm->watch = file_watch_add(loop->watch, vm->directory.fd, vm->vm_id);
}

static void close_directory(struct file_loop *loop, struct file_vm *vm)
{
    file_watch_remove(loop->watch, vm->watch);
    vm->watch = -1;
    directory_close(&vm->directory);
}

static int add_vm(struct file_loop *loop, uint32_t vm_id, uint64_t identity,
                  const struct directory_owner *owner, bool registered,
                  struct file_entry **ret_entry, struct vgpu_error *error)
{
    struct file_entry *entry = calloc(1, sizeof(*entry));

    if (!entry)
        return error_set(error, ENOMEM, "no memory for VM %u", vm_id);
    file_vm_init(&entry->vm, vm_id, owner, registered);
    entry->vm.identity = identity;
    entry->vm.unusable =
        journal_open(&entry->vm.journal, loop->state_fd, vm_id, identity, error) < 0;
    if (entry->vm.unusable && registered) {
        free(entry);
        return -1;
    }
    /* An unregistered one is remembered: it is told of once. */
    if (entry->vm.unusable)
        log_error("vm%u: %s; it is not served", vm_id, error->message);
    HASH_ADD(hh, loop->vms, vm.vm_id, sizeof(vm_id), entry);
    *ret_entry = entry;
    return 0;
}

static void report_answer(struct file_loop *loop, enum file_report_type type,
                          const struct file_vm *vm, bool withheld)
{
    const struct journal_entry *entry = &vm->journal.entry;
    struct file_report report = {.type = type,
                                 .request.vm_id = vm->vm_id,
                                 .request.sequence = entry->sequence,
                                 .withheld = withheld};

    text_copy(report.line, sizeof(report.line), entry->answer);
    report.line[strcspn(report.line, "\n")] = '\0';
    loop->report(&report, loop->context);
}

static void deliver(struct file_loop *loop, struct file_vm *vm)
{
    switch (file_vm_deliver(vm, &loop->rules)) {
    case FILE_DELIVERY_DONE:
        vm->answer_watch = file_watch_answer(loop->watch, vm->directory.fd);
        if (vm->answer_watch < 0)
            file_vm_hold_answer(vm, &loop->rules);
        report_answer(loop, FILE_REPORT_ANSWERED, vm, false);
        break;
    case FILE_DELIVERY_WITHHELD:
        report_answer(loop, FILE_REPORT_ANSWERED, vm, true);
        break;
    case FILE_DELIVERY_LATER:
        break;
    }
}

static void report_request(struct file_loop *loop, const struct file_vm *vm, bool recovered)
{
    struct file_report report = {.type = FILE_REPORT_REQUEST};

    file_vm_describe_request(vm, recovered, &report.request);
    loop->report(&report, loop->context);
}

static void report_accepted(struct file_loop *loop, const struct file_candidate *candidate)
{
    struct file_vm *vm = candidate->vm;

    if (!candidate->refused) {
        report_request(loop, vm, false);
        return;
    }
    report_answer(loop, FILE_REPORT_REFUSED, vm, false);
    deliver(loop, vm);
}

/* --- listing: directories that came or went ---------------------------------------- */

static bool parse_directory_name(const char *name, uint32_t *ret_vm_id)
{
    uint64_t vm_id;
    char canonical[16];

    if (strncmp(name, "vm", 2) != 0 || !text_parse_u64(name + 2, 1, UINT32_MAX, &vm_id))
        return false;
    snprintf(canonical, sizeof(canonical), "vm%u", (uint32_t)vm_id);
    if (strcmp(canonical, name) != 0)
        return false; /* vm007: one VM, one name */
    *ret_vm_id = (uint32_t)vm_id;
    return true;
}

static void recover_vm(struct file_loop *loop, struct file_vm *vm)
{
    file_vm_recover(vm, &loop->rules);
    if (vm->journal.entry.state == JOURNAL_ACCEPTED)
        report_request(loop, vm, true);
    else if (vm->journal.entry.state == JOURNAL_ANSWERING)
        deliver(loop, vm);
}

/* A fresh directory gets the two files that a client expects. */
static void furnish(struct file_vm *vm)
{
    static const char *const names[] = {VGPU_FILE_RESPONSE, VGPU_FILE_REQUEST};
    static const char *const contents[] = {VGPU_FILE_READY "\n", ""};
    struct vgpu_error error;

    for (size_t i = 0; vm->directory.fd >= 0 && i < VGPU_ARRAY_LENGTH(names); i++) {
        if (directory_furnish(&vm->directory, names[i], contents[i], &error) < 0)
            log_error("vm%u: %s", vm->vm_id, error.message);
    }
}

static void add_unregistered(struct file_loop *loop, uint32_t vm_id)
{
    static const struct directory_owner unknown = {(uid_t)-1, (gid_t)-1, 0600};
    struct file_entry *entry;
    struct vgpu_error error;

    if (add_vm(loop, vm_id, 0, &unknown, false, &entry, &error) < 0)
        log_error("vm%u: %s", vm_id, error.message);
}

/* Files that are made there belong to whoever owns the directory. */
static void adopt_owner(struct file_vm *vm)
{
    struct stat info;

    if (fstat(vm->directory.fd, &info) == 0)
        vm->directory.owner = (struct directory_owner){info.st_uid, info.st_gid, 0600};
}

/* An administrator has moved it aside, with its files, while an answer is owed: who
 * sent the request still has the files open, or reads them there. */
static bool owes_an_answer_elsewhere(const struct file_loop *loop, const struct file_vm *vm)
{
    struct stat named, held;

    return vm->journal.entry.state != JOURNAL_IDLE &&
           fstatat(loop->share_fd, vm->name, &named, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT &&
           fstat(vm->directory.fd, &held) == 0 && held.st_nlink > 0;
}

/* A registered VM's directory is made when it is missing, whenever that is.
 * Returns true when it is another one than before. */
static bool refresh_directory(struct file_loop *loop, struct file_vm *vm)
{
    struct vgpu_error error;

    if (vm->unusable)
        return false;
    if (vm->directory.fd >= 0 && directory_replaced(&vm->directory, loop->share_fd, vm->name) &&
        !owes_an_answer_elsewhere(loop, vm))
        close_directory(loop, vm);
    if (vm->directory.fd >= 0 || loop->share_trouble)
        return false;
    if (vm->registered && directory_make(loop->share_fd, vm->name, &vm->owner, &error) < 0)
        file_vm_report_trouble(vm, &error);
    open_directory(loop, vm);
    if (vm->directory.fd >= 0 && !vm->registered)
        adopt_owner(vm);
    return vm->directory.fd >= 0;
}

static void refresh_vm(struct file_loop *loop, struct file_vm *vm)
{
    bool is_new = refresh_directory(loop, vm);

    if (!vm->met)
        return;
    if (vm->directory.fd >= 0 && !vm->reconciled)
        file_vm_recover(vm, &loop->rules); /* it was not there at the start */
    if (is_new)
        furnish(vm);
}

/* --- the share itself ---------------------------------------------------------------- */

/* Two mediators on one share would answer each request twice. */
static int lock_share(int fd, const char *share, struct vgpu_error *error)
{
    if (fd_lock(fd) < 0 && errno == EWOULDBLOCK)
        return error_set(error, EBUSY,
                         "another vgpu-mediator serves the share '%s': stop it, or give this one "
                         "its own share",
                         share);
    return 0; /* not every network file system can lock a directory */
}

static int open_share(const struct file_channel_config *config, struct vgpu_error *error)
{
    int fd = open(config->share, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return error_set_errno(error, "cannot open share '%s'", config->share);
    if (lock_share(fd, config->share, error) < 0)
        fd_close(&fd);
    return fd;
}

static int watch_share(struct file_loop *loop, struct vgpu_error *error)
{
    const struct file_watch_events events = {look, on_answer_read, loop};
    const struct file_channel_config *config = loop->config;

    if (file_watch_new(&loop->loop, config->share, config->poll_min_ms, config->poll_max_ms,
                       &events, &loop->watch, error) < 0)
        return -1;
    loop->rules.force_open = !file_watch_is_local(loop->watch);
    return 0;
}

/* The path names another directory now: it was mounted, or made again. */
static int change_share(struct file_loop *loop, struct vgpu_error *error)
{
    struct file_watch *old = loop->watch;
    struct file_entry *entry, *next;
    int fd = open_share(loop->config, error);

    if (fd < 0)
        return -1;
    if (watch_share(loop, error) < 0) {
        fd_close(&fd);
        return -1;
    }
    HASH_ITER (hh, loop->vms, entry, next) {
        directory_close(&entry->vm.directory);
        entry->vm.watch = entry->vm.answer_watch = -1; /* gone with the old watch */
    }
    file_watch_stop(old);
    fd_close(&loop->share_fd);
    loop->share_fd = fd;
    log_info("share '%s' is another directory now", loop->config->share);
    return 0;
}

static void refresh_share(struct file_loop *loop)
{
    struct stat named, held;
    struct vgpu_error error;
    int result = 0;

    if (stat(loop->config->share, &named) < 0)
        result = error_set_errno(&error, "share '%s' is gone", loop->config->share);
    else if (fstat(loop->share_fd, &held) < 0 || named.st_dev != held.st_dev ||
             named.st_ino != held.st_ino)
        result = change_share(loop, &error);
    if (result < 0 && !loop->share_trouble)
        log_error("%s; trying again", error.message);
    if (result == 0 && loop->share_trouble)
        log_info("share '%s' works again", loop->config->share);
    loop->share_trouble = result < 0;
}

/* Adds the VMs whose directories nobody has registered. */
static void find_unregistered(struct file_loop *loop)
{
    const struct dirent *found;
    uint32_t vm_id;
    DIR *listing;
    int fd;

    fd = openat(loop->share_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    listing = fd >= 0 ? fdopendir(fd) : NULL;
    if (!listing) {
        fd_close(&fd);
        return; /* the share is in trouble: the VMs' own looks report it */
    }
    while ((found = readdir(listing))) {
        if (parse_directory_name(found->d_name, &vm_id) && !find_vm(loop, vm_id))
            add_unregistered(loop, vm_id);
    }
    closedir(listing);
}

/* The first time that a VM is met: what an earlier mediator owes it. */
static void meet_vm(struct file_loop *loop, struct file_vm *vm)
{
    vm->met = true;
    recover_vm(loop, vm);
    furnish(vm);
}

static void list_share(struct file_loop *loop)
{
    struct file_entry *entry, *next;

    refresh_share(loop);
    find_unregistered(loop);
    HASH_ITER (hh, loop->vms, entry, next) {
        refresh_vm(loop, &entry->vm);
        if (!entry->vm.met)
            meet_vm(loop, &entry->vm);
    }
}

/* --- looking --------------------------------------------------------------------------- */

struct found {
    struct file_candidate candidate;
    uint32_t turn; /* place among equals */
};

static int compare_found(const void *left, const void *right)
{
    const struct found *a = left, *b = right;

    if (a->candidate.identity.mtime_ns != b->candidate.identity.mtime_ns)
        return a->candidate.identity.mtime_ns < b->candidate.identity.mtime_ns ? -1 : 1;
    return a->turn < b->turn ? -1 : a->turn > b->turn;
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

/* Fills `found` (room for every VM), returns how many. */
static size_t collect(struct file_loop *loop, struct found *found, uint64_t *deadline_ns)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint32_t count = HASH_COUNT(loop->vms), index = 0;
    struct file_entry *entry, *next;
    size_t used = 0;

    HASH_ITER (hh, loop->vms, entry, next) {
        struct file_vm *vm = &entry->vm;
        uint32_t turn = (index++ + count - loop->rotation % count) % count;

        if (vm->directory.fd < 0)
            continue;
        file_vm_restore_ready(vm, &loop->rules, now_ns);
        if (vm->journal.entry.state == JOURNAL_ANSWERING)
            deliver(loop, vm); /* the share failed when it was tried before */
        if (!loop->stopping && file_vm_look(vm, &loop->rules, now_ns, &found[used].candidate))
            found[used++].turn = turn;
        *deadline_ns = earlier(*deadline_ns, file_vm_deadline_ns(vm, &loop->rules));
    }
    return used;
}

static uint32_t milliseconds_until(uint64_t deadline_ns)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (deadline_ns == UINT64_MAX)
        return UINT32_MAX;
    return deadline_ns <= now_ns ? 0 : (uint32_t)((deadline_ns - now_ns) / NS_PER_MS + 1);
}

static void look(bool listing, void *context)
{
    struct file_loop *loop = context;
    uint64_t deadline_ns = UINT64_MAX;
    struct found *found;
    size_t used, accepted = 0;

    if (listing)
        list_share(loop);
    found = calloc(HASH_COUNT(loop->vms) + 1, sizeof(*found));
    if (!found) {
        file_watch_looked(loop->watch, false, UINT32_MAX);
        return;
    }
    used = collect(loop, found, &deadline_ns);
    qsort(found, used, sizeof(*found), compare_found);
    /* All are accepted before the first is reported, so that the scheduler
     * chooses among all. */
    for (size_t i = 0; i < used; i++) {
        if (file_vm_accept(found[i].candidate.vm, &found[i].candidate))
            found[accepted++] = found[i];
    }
    for (size_t i = 0; i < accepted; i++)
        report_accepted(loop, &found[i].candidate);
    free(found);
    loop->flush(loop->context);
    loop->rotation++;
    file_watch_looked(loop->watch, accepted > 0, milliseconds_until(deadline_ns));
}

/* --- orders ------------------------------------------------------------------------------- */

static void obey_answer(struct file_loop *loop, const struct file_order *order)
{
    struct file_entry *entry = find_vm(loop, order->vm_id);

    if (entry && order->sequence <= entry->vm.settled)
        return; /* to an earlier VM of this number */
    if (!entry || entry->vm.journal.entry.state != JOURNAL_ACCEPTED ||
        entry->vm.journal.entry.sequence != order->sequence) {
        log_error("vm%u: answer to request %llu, which is not waiting for one", order->vm_id,
                  (unsigned long long)order->sequence);
        return;
    }
    file_vm_set_answer(&entry->vm, &order->response);
    deliver(loop, &entry->vm);
}

static bool owners_equal(const struct directory_owner *a, const struct directory_owner *b)
{
    return a->uid == b->uid && a->gid == b->gid && a->mode == b->mode;
}

/* Where an owner was named and is not any more, it is the mediator's user. */
static struct directory_owner named_owner(const struct file_vm *vm,
                                          const struct directory_owner *owner)
{
    struct directory_owner named = *owner;

    if (vm->registered && vm->owner.uid != (uid_t)-1 && named.uid == (uid_t)-1)
        named.uid = geteuid();
    if (vm->registered && vm->owner.gid != (gid_t)-1 && named.gid == (gid_t)-1)
        named.gid = getegid();
    return named;
}

static void change_owner(struct file_loop *loop, struct file_vm *vm,
                         const struct directory_owner *owner)
{
    static const char *const names[] = {VGPU_FILE_REQUEST, VGPU_FILE_COMMAND, VGPU_FILE_RESPONSE};
    struct directory_owner named = named_owner(vm, owner);
    struct vgpu_error error;

    vm->owner = *owner;
    if (directory_make(loop->share_fd, vm->name, &named, &error) < 0)
        file_vm_report_trouble(vm, &error);
    if (vm->directory.fd < 0)
        return;
    vm->directory.owner = named;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++)
        directory_give(&vm->directory, names[i]);
}

/* Its directory is not one that another VM has by now. */
static bool holds_its_directory(const struct file_loop *loop, const struct file_vm *vm)
{
    return vm->directory.fd >= 0 && directory_replaced(&vm->directory, loop->share_fd, vm->name);
}

/* The number is another VM's now, or the VM has another number. */
static void end_tenure(struct file_loop *loop, struct file_vm *vm)
{
    static const struct protocol_response response = {
        .success = false,
        .message = "this VM was removed or has another number now: send it again if it is there"};
    struct journal_entry *entry = &vm->journal.entry;

    vm->settled = entry->sequence > vm->settled ? entry->sequence : vm->settled;
    if (entry->state == JOURNAL_ACCEPTED)
        file_vm_set_answer(vm, &response);
    if (entry->state == JOURNAL_ANSWERING && holds_its_directory(loop, vm))
        deliver(loop, vm);
    close_directory(loop, vm);
    journal_close(&vm->journal);
    entry->state = JOURNAL_IDLE;
    vm->unusable = true;
}

/* It had another number until now: two must not write one journal. */
static void leave_other_number(struct file_loop *loop, uint32_t vm_id, uint64_t identity)
{
    struct file_entry *entry, *next;

    HASH_ITER (hh, loop->vms, entry, next) {
        if (identity && entry->vm.identity == identity && entry->vm.vm_id != vm_id &&
            !entry->vm.unusable)
            end_tenure(loop, &entry->vm);
    }
}

/* Begins anew with the journal of the VM that has the number now. */
static int begin_tenure(struct file_loop *loop, struct file_vm *vm, uint64_t identity,
                        const struct directory_owner *owner, bool registered,
                        struct vgpu_error *error)
{
    uint64_t settled = vm->settled;

    file_vm_init(vm, vm->vm_id, owner, registered);
    vm->identity = identity;
    vm->settled = settled;
    vm->unusable = journal_open(&vm->journal, loop->state_fd, vm->vm_id, identity, error) < 0;
    if (vm->unusable)
        return -1;
    if (vm->journal.entry.sequence < settled) /* an answer's number means one request */
        vm->journal.entry.sequence = settled;
    return 0;
}

/* Finds or makes the entry of the VM that has this number from now on. */
static struct file_entry *take_number(struct file_loop *loop, const struct file_channel_vm *vm,
                                      const struct directory_owner *owner, struct vgpu_error *error)
{
    struct file_entry *entry = find_vm(loop, vm->vm_id);

    if (entry && entry->vm.identity == vm->identity && !entry->vm.unusable)
        return entry;
    leave_other_number(loop, vm->vm_id, vm->identity);
    if (!entry)
        return add_vm(loop, vm->vm_id, vm->identity, owner, true, &entry, error) < 0 ? NULL : entry;
    if (!entry->vm.unusable)
        end_tenure(loop, &entry->vm);
    return begin_tenure(loop, &entry->vm, vm->identity, owner, true, error) < 0 ? NULL : entry;
}

static void register_vm(struct file_loop *loop, const struct file_channel_vm *vm,
                        const struct directory_owner *owner)
{
    struct vgpu_error error;
    struct file_entry *entry = take_number(loop, vm, owner, &error);

    if (!entry) {
        log_error("vm%u: %s; its directory is not served", vm->vm_id, error.message);
        return;
    }
    if (!owners_equal(&entry->vm.owner, owner))
        change_owner(loop, &entry->vm, owner);
    entry->vm.registered = true;
    refresh_vm(loop, &entry->vm);
    if (!entry->vm.met)
        meet_vm(loop, &entry->vm);
}

static void obey_set_vm(struct file_loop *loop, const struct file_order *order)
{
    const struct directory_owner owner = {order->vm.owner_uid, order->vm.owner_gid, order->vm.mode};
    struct file_entry *entry;

    if (loop->stopping)
        return;
    if (order->registered) {
        register_vm(loop, &order->vm, &owner);
        return;
    }
    entry = find_vm(loop, order->vm.vm_id);
    if (entry)
        entry->vm.registered = false;
}

static void report_synced(struct file_loop *loop, uint64_t token)
{
    const struct file_report report = {.type = FILE_REPORT_SYNCED, .request.sequence = token};

    loop->report(&report, loop->context);
}

static void end_loop(struct file_loop *loop)
{
    loop->open = false;
    uv_close((uv_handle_t *)&loop->wake, NULL);
    uv_close((uv_handle_t *)&loop->cleanup_timer, NULL);
    file_watch_stop(loop->watch);
    loop->watch = NULL;
}

static bool all_answers_read(struct file_loop *loop)
{
    struct file_entry *entry, *next;

    HASH_ITER (hh, loop->vms, entry, next) {
        struct file_vm *vm = &entry->vm;

        if (vm->answer_unread && vm->directory.fd >= 0 &&
            !file_vm_answer_replaced(vm, &loop->rules))
            return false;
    }
    return true;
}

static void on_cleanup_timer(uv_timer_t *timer)
{
    struct file_loop *loop = timer->data;
    struct file_entry *entry, *next;

    if (!all_answers_read(loop)) {
        if (clock_monotonic_ns() < loop->cleanup_until_ns)
            return;
        log_info("not all answers were read within %llu s: their files are emptied all the same",
                 CLEANUP_LIMIT_NS / NS_PER_S);
    }
    HASH_ITER (hh, loop->vms, entry, next)
        file_vm_empty_files(&entry->vm);
    end_loop(loop);
}

static void on_answer_read(int handle, void *context)
{
    struct file_loop *loop = context;
    struct file_entry *entry, *next;

    HASH_ITER (hh, loop->vms, entry, next) {
        struct file_vm *vm = &entry->vm;

        if (vm->answer_watch != handle || !vm->answer_unread)
            continue; /* unless unread, it was a look at 0:Ready */
        vm->answer_unread = false;
        file_vm_hold_answer(vm, &loop->rules);
    }
}

/* All that ran has been answered, so these wait, here or on the way to the
 * mediator. */
static void answer_shutting_down(struct file_loop *loop, struct file_vm *vm)
{
    static const struct protocol_response response = {
        .success = false, .message = "mediator is shutting down: send it again when it is back"};

    if (vm->journal.entry.state != JOURNAL_ACCEPTED)
        return;
    file_vm_set_answer(vm, &response);
    deliver(loop, vm);
}

static void obey_stop(struct file_loop *loop, bool cleanup)
{
    struct file_entry *entry, *next;

    loop->stopping = true;
    if (!cleanup) {
        end_loop(loop);
        return;
    }
    loop->cleanup_until_ns = clock_monotonic_ns() + CLEANUP_LIMIT_NS;
    HASH_ITER (hh, loop->vms, entry, next) {
        answer_shutting_down(loop, &entry->vm);
    }
    uv_timer_start(&loop->cleanup_timer, on_cleanup_timer, CLEANUP_LOOK_MS, CLEANUP_LOOK_MS);
}

static void obey(struct file_loop *loop, const struct file_order *order)
{
    switch (order->type) {
    case FILE_ORDER_ANSWER:
        obey_answer(loop, order);
        break;
    case FILE_ORDER_SET_VM:
        obey_set_vm(loop, order);
        break;
    case FILE_ORDER_SET_POOLS:
        text_copy(loop->pools, sizeof(loop->pools), order->pools);
        break;
    case FILE_ORDER_SYNC:
        report_synced(loop, order->sequence);
        break;
    case FILE_ORDER_STOP:
        obey_stop(loop, order->cleanup);
        break;
    }
}

static void on_wake(uv_async_t *wake)
{
    struct file_loop *loop = wake->data;
    struct file_order *order;
    bool answered = false;

    while ((order = loop->next_order(loop->context))) {
        obey(loop, order);
        answered = answered || order->type == FILE_ORDER_ANSWER;
        free(order);
    }
    loop->flush(loop->context);
    if (answered && loop->watch) /* the client's next request may come soon */
        file_watch_looked(loop->watch, true, UINT32_MAX);
}

/* --- life ----------------------------------------------------------------------------------- */

static int open_places(struct file_loop *loop, const struct file_channel_config *config,
                       struct vgpu_error *error)
{
    if (fd_make_directories(config->share, 0711, error) < 0 ||
        fd_make_directories(config->state_dir, 0700, error) < 0)
        return -1;
    loop->share_fd = open_share(config, error);
    if (loop->share_fd < 0)
        return -1;
    loop->state_fd = open(config->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (loop->state_fd < 0)
        return error_set_errno(error, "cannot open state directory '%s'", config->state_dir);
    if (directory_is_below(loop->state_fd, loop->share_fd))
        return error_set(error, EINVAL,
                         "state_dir = %s lies inside share = %s: guests could reach the journal; "
                         "put it elsewhere",
                         config->state_dir, config->share);
    return 0;
}

static int add_registered(struct file_loop *loop, const struct file_channel_config *config,
                          struct vgpu_error *error)
{
    struct file_entry *entry, *next;

    for (size_t i = 0; i < config->vm_count; i++) {
        const struct file_channel_vm *vm = &config->vms[i];
        const struct directory_owner owner = {vm->owner_uid, vm->owner_gid, vm->mode};

        if (add_vm(loop, vm->vm_id, vm->identity, &owner, true, &entry, error) < 0)
            return -1;
    }
    HASH_ITER (hh, loop->vms, entry, next) {
        if (directory_make(loop->share_fd, entry->vm.name, &entry->vm.owner, error) < 0)
            return -1;
    }
    return 0;
}

int file_loop_prepare(struct file_loop *loop, const struct file_channel_config *config,
                      struct vgpu_error *error)
{
    loop->share_fd = loop->state_fd = -1;
    loop->config = config;
    text_copy(loop->pools, sizeof(loop->pools), config->pools);
    loop->rules = (struct file_rules){
        .pools = loop->pools,
        .accept_unregistered = config->accept_unregistered,
        .response_hold_ms = config->response_hold_ms,
        .unterminated_hold_ms = config->unterminated_hold_ms,
    };
    if (open_places(loop, config, error) < 0 || add_registered(loop, config, error) < 0)
        return -1;
    loop->open = true;
    uv_async_init(&loop->loop, &loop->wake, on_wake);
    uv_timer_init(&loop->loop, &loop->cleanup_timer);
    loop->wake.data = loop->cleanup_timer.data = loop;
    return watch_share(loop, error);
}

static int compare_arrival(const void *left, const void *right)
{
    const struct file_vm *a = *(struct file_vm *const *)left;
    const struct file_vm *b = *(struct file_vm *const *)right;

    if (a->journal.entry.arrival_ns != b->journal.entry.arrival_ns)
        return a->journal.entry.arrival_ns < b->journal.entry.arrival_ns ? -1 : 1;
    return a->vm_id < b->vm_id ? -1 : a->vm_id > b->vm_id;
}

/* What an earlier mediator accepted is delivered in its order of arrival. */
static void recover(struct file_loop *loop)
{
    const struct file_report done = {.type = FILE_REPORT_RECOVERED};
    struct file_entry *entry, *next;
    struct file_vm **vms;
    size_t count = 0;

    find_unregistered(loop); /* they may be owed something too */
    vms = calloc(HASH_COUNT(loop->vms) + 1, sizeof(struct file_vm *));
    if (!vms) {
        log_error("file channel: out of memory");
        abort();
    }
    HASH_ITER (hh, loop->vms, entry, next) {
        refresh_directory(loop, &entry->vm);
        vms[count++] = &entry->vm;
    }
    qsort(vms, count, sizeof(struct file_vm *), compare_arrival);
    for (size_t i = 0; i < count; i++)
        meet_vm(loop, vms[i]);
    free(vms);
    loop->report(&done, loop->context);
    loop->flush(loop->context);
}

void file_loop_run(struct file_loop *loop)
{
    const struct file_report stopped = {.type = FILE_REPORT_STOPPED};

    recover(loop);
    uv_run(&loop->loop, UV_RUN_DEFAULT);
    loop->report(&stopped, loop->context);
    loop->flush(loop->context);
}

void file_loop_wake(struct file_loop *loop)
{
    uv_async_send(&loop->wake);
}

void file_loop_free(struct file_loop *loop)
{
    struct file_entry *entry, *next;

    if (loop->open) { /* it never ran */
        end_loop(loop);
        uv_run(&loop->loop, UV_RUN_DEFAULT);
    }
    uv_loop_close(&loop->loop);
    HASH_ITER (hh, loop->vms, entry, next) {
        HASH_DEL(loop->vms, entry); /* NOLINT: the analyzer is lost in the macro */
        file_vm_close(&entry->vm);
        free(entry);
    }
    fd_close(&loop->share_fd);
    fd_close(&loop->state_fd);
}
