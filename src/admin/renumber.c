/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another number for a VM needs it stopped: its device, socket and directory carry
 * the number.  Seven steps, each with its way back, which is walked from where a step
 * failed:
 *
 *   stop ─▶ row, tried ─▶ definition ─▶ directory, export ─▶ row ─▶ mediator ─▶ start
 *    ◀── start ◀── definition ◀── directory, export ◀── row ◀── mediator ◀─────┘
 *
 * The directory moves last before the commit: a mediator that still knows the old
 * number makes a missing directory anew, and that one is removed in the end.  A
 * signal waits for the step's end and is a failure then.
 *
 * Before the first of them xl is asked whether it takes the new definition.
 *
 * After SIGKILL the journal (renumber_journal.c) tells the next call for this VM how
 * far it came.  Before the commit what was done is taken back first, and the call
 * begins anew; behind it the same command does the last two steps.
 */
#include "admin/renumber.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* --- before ------------------------------------------------------------------------------ */

/* A name alone may be another machine's: its device must have the old number, or the
 * new one, which an interrupted call has left. */
static int check_machine(const struct renumber *renumber, struct vgpu_error *error)
{
    const struct store_vm *vm = &renumber->before;
    const struct toolstack_vm *machine = &renumber->machine;

    if (vm->uuid[0] || !machine->has_device || machine->device.vm_id == vm->vm_id ||
        machine->device.vm_id == renumber->vm_id)
        return 0;
    renumber->admin->failed_exit = ADMIN_FAILED;
    return error_set(error, EBUSY,
                     "the machine '%.100s' has the device of VM %u and may be another than VM %u, "
                     "which has no UUID: register its UUID with update-vm %u --uuid, or say "
                     "--toolstack none",
                     machine->name, machine->device.vm_id, vm->vm_id, vm->vm_id);
}

static int find_machine(struct renumber *renumber, struct vgpu_error *error)
{
    const struct store_vm *vm = &renumber->before;
    struct admin *admin = renumber->admin;
    struct vgpu_error inner;

    if (strcmp(admin->toolstack_name, "none") == 0 || (!vm->uuid[0] && !vm->name[0]))
        return 0;
    if (publish_open(admin, &renumber->toolstack, &inner) < 0) {
        if (admin->toolstack_name[0]) /* it was asked for */
            return error_set(error, inner.code, "%s", inner.message);
        admin->failed_exit = 0;
        return 0;
    }
    if (toolstack_find(renumber->toolstack, vm->uuid[0] ? vm->uuid : vm->name, &renumber->machine,
                       &inner) == 0)
        return check_machine(renumber, error);
    toolstack_close(renumber->toolstack);
    renumber->toolstack = NULL;
    return inner.code == ENOENT ? 0 : error_set(error, inner.code, "%s", inner.message);
}

static bool is_registered(const struct renumber *renumber, uint32_t vm_id)
{
    struct vgpu_error ignored;
    struct store_vm vm;

    return store_get_vm(renumber->store, vm_id, &vm, &ignored) == 0;
}

/* The word means the VM that has the new number: by that, its name or UUID, or by the
 * old number, which is nobody's now. */
static bool means(const struct renumber *renumber, const struct store_vm *vm)
{
    const char *word = renumber->admin->words[0];
    struct vgpu_error ignored;
    struct store_vm found;
    uint64_t number;

    if (store_find_vm(renumber->store, word, &found, &ignored) == 0)
        return found.vm_id == vm->vm_id;
    return text_parse_u64(word, 1, STORE_VM_ID_MAX, &number) && number == renumber->journal.from;
}

/* An earlier call with these words was killed behind its commit. */
static bool find_committed(struct renumber *renumber)
{
    struct vgpu_error ignored;
    struct store_vm vm;

    if (store_get_vm(renumber->store, renumber->vm_id, &vm, &ignored) < 0 ||
        !renumber_journal_read(renumber->admin, vm.created_us, &renumber->journal) ||
        renumber->journal.to != vm.vm_id || !means(renumber, &vm))
        return false;
    renumber->before = renumber->after = vm;
    renumber->before.vm_id = renumber->journal.from;
    renumber->interrupted = renumber->finishing = true;
    return true;
}

static int find_vm(struct renumber *renumber, struct vgpu_error *error)
{
    const struct renumber_journal *journal = &renumber->journal;
    struct store_vm *vm = &renumber->before, other;

    if (store_find_vm(renumber->store, renumber->admin->words[0], vm, error) < 0)
        return -1;
    if (renumber->vm_id == vm->vm_id)
        return error_set(error, EEXIST, "VM %u has this number already", vm->vm_id);
    if (store_get_vm(renumber->store, renumber->vm_id, &other, &(struct vgpu_error){0}) == 0)
        return error_set(error, EEXIST, "number %u is another VM's%s%s: choose a free one",
                         other.vm_id, other.name[0] ? ", " : "", other.name);
    renumber->interrupted =
        renumber_journal_read(renumber->admin, vm->created_us, &renumber->journal) &&
        (journal->to == vm->vm_id ||
         (journal->from == vm->vm_id && !is_registered(renumber, journal->to)));
    return 0;
}

/* --- signals ------------------------------------------------------------------------------------
 */

/* Those that would end us in the middle; not those that nohup has us ignore. */
static void hold_signals(sigset_t *ret_held, sigset_t *ret_before)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};

    sigemptyset(ret_held);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(numbers); i++) {
        struct sigaction action;

        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(ret_held, numbers[i]);
    }
    sigprocmask(SIG_BLOCK, ret_held, ret_before);
}

/* One that came is taken away. */
static bool take_signal(const sigset_t *held)
{
    const struct timespec now = {0};
    bool came = false;

    while (sigtimedwait(held, NULL, &now) > 0)
        came = true;
    return came;
}

/* The guest is not to be stopped for a definition that does not start again. */
static int check_definition(struct renumber *renumber, struct vgpu_error *error)
{
    const struct toolstack_vm *machine = &renumber->machine;
    struct store_vm after = renumber->before;
    struct toolstack_device device;
    struct vgpu_error inner;

    if (renumber->finishing || !renumber_restarts(renumber))
        return 0;
    after.vm_id = renumber->vm_id;
    publish_device(renumber->admin, &after, &machine->device, &device);
    if (toolstack_check(renumber->toolstack, publish_handle(machine),
                        machine->has_device ? &device : NULL, &inner) == 0)
        return 0;
    renumber->admin->failed_exit = ADMIN_FAILED;
    return error_set(error, inner.code,
                     "VM %u would not start again as VM %u, so nothing was done: %.400s",
                     renumber->before.vm_id, renumber->vm_id, inner.message);
}

/* What the toolstack writes for that goes before a signal ends us. */
static int check_undisturbed(struct renumber *renumber, struct vgpu_error *error)
{
    sigset_t held, before;
    int result;

    hold_signals(&held, &before);
    result = check_definition(renumber, error);
    if (take_signal(&held) && result == 0)
        result = error_set(error, EINTR, "interrupted: nothing was done");
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}

int renumber_prepare(struct renumber *renumber, struct vgpu_error *error)
{
    struct admin *admin = renumber->admin;

    if (admin_open_store(admin, STORE_WRITE, &renumber->store, error) < 0)
        return -1;
    if (!find_committed(renumber) && find_vm(renumber, error) < 0)
        return -1;
    if (find_machine(renumber, error) < 0)
        return -1;
    if (renumber->toolstack && renumber->machine.state == TOOLSTACK_OTHER)
        return error_set(error, EBUSY,
                         "VM %u is neither running nor off (starting, stopping or crashed): wait, "
                         "or put it in order with its toolstack first",
                         renumber->before.vm_id);
    return check_undisturbed(renumber, error);
}

bool renumber_restarts(const struct renumber *renumber)
{
    bool off = renumber->machine.state == TOOLSTACK_OFF;

    if (!renumber->toolstack)
        return false;
    if (renumber->finishing)
        return off && renumber->journal.ran;
    return !off || (renumber->interrupted && renumber->journal.ran);
}

void renumber_free(struct renumber *renumber)
{
    toolstack_close(renumber->toolstack);
    store_close(renumber->store);
    share_done(&renumber->share);
    fd_close(&renumber->turn);
}

/* --- the way there --------------------------------------------------------------------------- */

static int stop(struct renumber *renumber, struct vgpu_error *error)
{
    if (!renumber_restarts(renumber))
        return 0;
    if (renumber->machine.state != TOOLSTACK_OFF) {
        output_say(renumber->admin, "Stopping %s ...", renumber->machine.name);
        fflush(stdout);
    }
    if (toolstack_stop(renumber->toolstack, publish_handle(&renumber->machine),
                       renumber->timeout_ms, renumber->force, error) < 0)
        return -1;
    renumber->stopped = true;
    return 0;
}

/* Stopping took its time: the number may be another VM's by now. */
static int check_row(struct renumber *renumber, struct vgpu_error *error)
{
    const struct store_vm *shown = &renumber->before;
    struct store_vm now;

    if (store_get_vm(renumber->store, shown->vm_id, &now, error) < 0)
        return -1;
    if (now.created_us == shown->created_us && strcmp(now.uuid, shown->uuid) == 0 &&
        strcmp(now.name, shown->name) == 0)
        return 0;
    return error_set(error, EBUSY, "VM %u is another now: somebody changed it meanwhile",
                     shown->vm_id);
}

/* Between begin and commit. */
static int change_row(struct renumber *renumber, struct store_vm *ret_before,
                      struct vgpu_error *error)
{
    const struct store_vm_change change = {.fields = STORE_VM_ID, .values.vm_id = renumber->vm_id};

    if (check_row(renumber, error) < 0)
        return -1;
    return store_change_vm(renumber->store, renumber->before.vm_id, &change, ret_before,
                           &renumber->after, error);
}

static int try_row(struct renumber *renumber, struct vgpu_error *error)
{
    int result;

    if (share_lock(renumber->admin, &renumber->turn, error) < 0 ||
        store_begin(renumber->store, error) < 0)
        return -1;
    result = change_row(renumber, &renumber->before, error);
    store_rollback(renumber->store);
    return result;
}

static int publish(struct renumber *renumber, struct vgpu_error *error)
{
    struct toolstack_device device;

    if (!renumber->toolstack || !renumber->machine.has_device)
        return 0;
    publish_device(renumber->admin, &renumber->after, &renumber->machine.device, &device);
    if (toolstack_publish(renumber->toolstack, publish_handle(&renumber->machine), &device, error) <
        0)
        return -1;
    renumber->published = true;
    return 0;
}

static int move(struct renumber *renumber, struct vgpu_error *error)
{
    return share_move(renumber->admin, &renumber->before, &renumber->after, &renumber->share,
                      error);
}

static int write_row(struct renumber *renumber, struct vgpu_error *error)
{
    struct store_vm now;

    if (store_begin(renumber->store, error) < 0)
        return -1;
    if (change_row(renumber, &now, error) < 0 ||
        share_check_row(&renumber->before, &now, error) < 0 ||
        store_commit(renumber->store, error) < 0) {
        store_rollback(renumber->store);
        return -1;
    }
    renumber->committed = true;
    fd_close(&renumber->turn);
    return 0;
}

/* An empty directory of a number that is nobody's. */
static void sweep(struct renumber *renumber, uint32_t vm_id)
{
    if ((renumber->before.channels & STORE_CHANNEL_FILE) && !is_registered(renumber, vm_id))
        share_sweep(renumber->admin, vm_id);
}

static int tell(struct renumber *renumber, struct vgpu_error *error)
{
    if (live_apply(renumber->admin, error) < 0)
        return -1;
    sweep(renumber, renumber->before.vm_id);
    if (renumber->interrupted)
        sweep(renumber, renumber->journal.from);
    return 0;
}

static int start(struct renumber *renumber, struct vgpu_error *error)
{
    if (!renumber->stopped)
        return 0;
    output_say(renumber->admin, "Starting %s ...", renumber->machine.name);
    fflush(stdout);
    return toolstack_start(renumber->toolstack, publish_handle(&renumber->machine), error);
}

#define STEPS_TO_COMMIT 5

static const struct {
    const char *what;
    int (*run)(struct renumber *renumber, struct vgpu_error *error);
} steps[] = {
    {"stopping it", stop},   {"the database", try_row},   {"its definition", publish},
    {"its directory", move}, {"the database", write_row}, {"the mediator", tell},
    {"starting it", start},
};

/* --- the way back -------------------------------------------------------------------------------
 */

static int row_back(struct renumber *renumber, struct vgpu_error *error)
{
    const struct store_vm_change change = {.fields = STORE_VM_ID,
                                           .values.vm_id = renumber->before.vm_id};

    struct vgpu_error ignored;

    if (!renumber->committed)
        return 0;
    share_lock(renumber->admin, &renumber->turn, &ignored); /* for this way's steps, if it can */
    return store_change_vm(renumber->store, renumber->vm_id, &change, NULL, NULL, error);
}

static int share_back(struct renumber *renumber, struct vgpu_error *error)
{
    return share_undo(renumber->admin, &renumber->share, error);
}

static int definition_back(struct renumber *renumber, struct vgpu_error *error)
{
    if (!renumber->published)
        return 0;
    return toolstack_publish(renumber->toolstack, publish_handle(&renumber->machine),
                             &renumber->machine.device, error);
}

static int mediator_back(struct renumber *renumber, struct vgpu_error *error)
{
    if (!renumber->committed)
        return 0;
    if (live_apply(renumber->admin, error) < 0)
        return -1;
    sweep(renumber, renumber->vm_id);
    return 0;
}

static int start_again(struct renumber *renumber, struct vgpu_error *error)
{
    if (!renumber->stopped)
        return 0;
    return toolstack_start(renumber->toolstack, publish_handle(&renumber->machine), error);
}

static void go_back(struct renumber *renumber, const char *what, struct vgpu_error *error)
{
    static int (*const ways[])(struct renumber *, struct vgpu_error *) = {
        row_back, share_back, definition_back, mediator_back, start_again};
    char trouble[300] = "";
    struct vgpu_error first = *error;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(ways); i++) {
        struct vgpu_error inner;
        size_t used = strlen(trouble);

        if (ways[i](renumber, &inner) < 0)
            snprintf(trouble + used, sizeof(trouble) - used, "%s%.140s", used ? "; " : "",
                     inner.message);
    }
    fd_close(&renumber->turn);
    if (!trouble[0])
        renumber_journal_remove(renumber->admin, renumber->before.created_us);
    if (trouble[0])
        error_set(error, first.code, "%s failed: %.180s. NOT all could be put back: %.270s", what,
                  first.message, trouble);
    else if (first.code == EINTR)
        error_set(error, EINTR, "interrupted: all is as it was");
    else if (first.code == ETIMEDOUT && !renumber->stopped && renumber_restarts(renumber))
        error_set(error, first.code,
                  "%s failed: %.300s. All is as it was, but the guest was asked to shut down and "
                  "may still do so",
                  what, first.message);
    else
        error_set(error, first.code, "%s failed: %.400s. All is as it was", what, first.message);
}

static int fail(struct renumber *renumber, const char *what, struct vgpu_error *error)
{
    const struct vgpu_error first = *error;

    renumber->admin->failed_exit = ADMIN_FAILED;
    if (!renumber->finishing) {
        go_back(renumber, what, error);
        return -1;
    }
    return error_set(error, first.code,
                     "%s failed: %.400s. It is VM %u all the same; the same command does the rest",
                     what, first.message, renumber->vm_id);
}

static int run_steps(struct renumber *renumber, const sigset_t *held, struct vgpu_error *error)
{
    const size_t count = VGPU_ARRAY_LENGTH(steps);

    for (size_t i = renumber->finishing ? STEPS_TO_COMMIT : 0; i < count; i++) {
        int result = steps[i].run(renumber, error);
        char point[32];

        snprintf(point, sizeof(point), "renumber-%zu", i);
        if (result == 0)
            fault_point(point);
        /* All is done after the last one. */
        if (result == 0 && i + 1 < count && take_signal(held))
            result = error_set(error, EINTR, "interrupted");
        if (result == 0)
            continue;
        return fail(renumber, steps[i].what, error);
    }
    renumber_journal_remove(renumber->admin, renumber->before.created_us);
    return 0;
}

/* --- after an interrupted call --------------------------------------------------------------- */

static int rewind_definition(struct renumber *renumber, struct vgpu_error *error)
{
    struct toolstack_vm *machine = &renumber->machine;
    struct toolstack_device device;

    if (!renumber->toolstack || !machine->has_device ||
        machine->device.vm_id != renumber->journal.to)
        return 0;
    publish_device(renumber->admin, &renumber->before, &machine->device, &device);
    machine->device = device;
    return toolstack_publish(renumber->toolstack, publish_handle(machine), &device, error);
}

/* What it did before its commit is taken back. */
static int rewind_steps(struct renumber *renumber, struct vgpu_error *error)
{
    const struct renumber_journal *journal = &renumber->journal;
    struct store_vm moved = renumber->before;
    int result;

    if (!renumber->interrupted || journal->from != renumber->before.vm_id)
        return 0;
    moved.vm_id = journal->to;
    if (share_lock(renumber->admin, &renumber->turn, error) < 0)
        return -1;
    result = is_registered(renumber, journal->to)
                 ? 0
                 : share_rewind(renumber->admin, &renumber->before, &moved, journal->inode, error);
    fd_close(&renumber->turn);
    return result < 0 ? -1 : rewind_definition(renumber, error);
}

static int begin_journal(const struct renumber *renumber, struct vgpu_error *error)
{
    const struct store_vm *vm = &renumber->before;
    const struct renumber_journal journal = {.from = vm->vm_id,
                                             .to = renumber->vm_id,
                                             .inode = share_inode(renumber->admin, vm),
                                             .ran = renumber_restarts(renumber)};

    return renumber_journal_write(renumber->admin, vm->created_us, &journal, error);
}

static int begin(struct renumber *renumber, struct vgpu_error *error)
{
    struct vgpu_error inner;

    if (renumber->finishing)
        renumber->stopped = renumber_restarts(renumber);
    if (renumber->finishing ||
        (rewind_steps(renumber, &inner) == 0 && begin_journal(renumber, &inner) == 0))
        return 0;
    renumber->admin->failed_exit = ADMIN_FAILED;
    return error_set(error, inner.code, "%.500s. Nothing was done%s", inner.message,
                     renumber->interrupted ? "; an earlier call was interrupted, and its rest "
                                             "stays where it is"
                                           : "");
}

int renumber_run(struct renumber *renumber, struct vgpu_error *error)
{
    sigset_t held, before;
    int result;

    hold_signals(&held, &before);
    result = begin(renumber, error);
    if (result == 0)
        result = run_steps(renumber, &held, error);
    take_signal(&held);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}
