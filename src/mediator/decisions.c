/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mediator's part of the decision log (trace/): who waits, what is granted, revoked and
 * returned, and the requests of the file channel.  Operations of window sessions are written by
 * their workers, each into a file of its own.
 *
 *   run_dir/trace/mediator.trace             kept: the next mediator goes on with it
 *   run_dir/trace/vm<id>-<inode>-<slot>.trace   as long as its session
 *
 * A log that cannot be had is missed with a warning: work goes on without.
 */
#include "mediator/mediator.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SUFFIX ".trace"
#define DIRECTORY_BYTES (PATH_MAX + sizeof("/" TRACE_DIRECTORY))

/* --- files ------------------------------------------------------------------------------- */

static void directory_of(const struct config *config, char directory[DIRECTORY_BYTES])
{
    snprintf(directory, DIRECTORY_BYTES, "%s/" TRACE_DIRECTORY, config->run_dir);
}

/* Its session is gone, with a mediator that could not see to it. */
static bool is_left_over(const char *run_dir, const char *file)
{
    char path[PATH_MAX + NAME_MAX + 32];
    size_t bytes = strlen(file);

    if (strcmp(file, TRACE_MEDIATOR_FILE) == 0 || bytes <= strlen(SUFFIX) ||
        strcmp(file + bytes - strlen(SUFFIX), SUFFIX) != 0)
        return false;
    snprintf(path, sizeof(path), "%s/sessions/%.*s.session", run_dir, (int)(bytes - strlen(SUFFIX)),
             file);
    return access(path, F_OK) < 0 && errno == ENOENT;
}

static void sweep(const struct config *config, const char *directory)
{
    DIR *files = opendir(directory);
    struct dirent *entry;

    while (files && (entry = readdir(files))) {
        if (is_left_over(config->run_dir, entry->d_name))
            unlinkat(dirfd(files), entry->d_name, 0);
    }
    if (files)
        closedir(files);
}

static int open_log(struct mediator *mediator, const char *directory, struct vgpu_error *error)
{
    const struct config *config = mediator->config;
    const struct trace_owner owner = {0};
    char path[DIRECTORY_BYTES + sizeof("/" TRACE_MEDIATOR_FILE)];
    int fd, result;

    if (fd_make_directories(config->run_dir, 0755, error) < 0 ||
        fd_make_directories(directory, 0700, error) < 0)
        return -1;
    snprintf(path, sizeof(path), "%s/" TRACE_MEDIATOR_FILE, directory);
    fd = trace_open(path, config->trace_kib, &owner, error);
    if (fd < 0)
        return -1;
    result = trace_attach(&mediator->trace, fd, error);
    fd_close(&fd);
    return result;
}

void decisions_start(struct mediator *mediator)
{
    char directory[DIRECTORY_BYTES], path[DIRECTORY_BYTES + sizeof("/" TRACE_MEDIATOR_FILE)];
    struct vgpu_error error;

    directory_of(mediator->config, directory);
    sweep(mediator->config, directory);
    if (mediator->config->trace_kib == 0) {
        snprintf(path, sizeof(path), "%s/" TRACE_MEDIATOR_FILE, directory);
        unlink(path); /* nobody takes it for one of now */
    } else if (open_log(mediator, directory, &error) < 0) {
        log_warning("there is no decision log: %s", error.message);
    }
}

void decisions_stop(struct mediator *mediator)
{
    trace_detach(&mediator->trace);
}

static void session_path(const struct window_session *ws, char path[PATH_MAX + 64])
{
    snprintf(path, PATH_MAX + 64, "%s/" TRACE_DIRECTORY "/vm%u-%llx-%u" SUFFIX,
             ws->session.vm->mediator->config->run_dir, ws->session.vm->vm_id,
             (unsigned long long)ws->identity.window_inode, ws->slot);
}

const char *decisions_open_session(struct window_session *ws, char path[PATH_MAX + 64])
{
    struct vm *vm = ws->session.vm;
    const struct config *config = vm->mediator->config;
    const struct trace_owner owner = {.vm_id = vm->vm_id,
                                      .weight = vm->settings.weight ? vm->settings.weight
                                                                    : TRACE_WEIGHT_DEFAULT,
                                      .pool = vm_pool(vm),
                                      .priority = (uint8_t)vm_priority(vm)};
    struct vgpu_error error;
    int fd;

    if (!trace_is_on(&vm->mediator->trace) || config->trace_session_kib == 0)
        return NULL;
    session_path(ws, path);
    fd = trace_open(path, config->trace_session_kib, &owner, &error);
    if (fd < 0) {
        if (vm_may_tell(vm))
            log_warning("vm%u: slot %u: its operations are not logged: %s", vm->vm_id, ws->slot,
                        error.message);
        return NULL;
    }
    fd_close(&fd);
    return path;
}

void decisions_end_session(const struct window_session *ws)
{
    char path[PATH_MAX + 64];

    session_path(ws, path);
    unlink(path);
}

/* --- records ------------------------------------------------------------------------------ */

static struct trace_record record_of(const struct vm *vm, enum trace_kind kind)
{
    return (struct trace_record){.time_ns = clock_monotonic_ns(),
                                 .vm_id = vm->vm_id,
                                 .kind = (uint8_t)kind,
                                 .pool = (uint8_t)vm_pool(vm),
                                 .priority = (uint8_t)vm_priority(vm)};
}

static struct trace_record record_at(const struct vm_place *place, enum trace_kind kind)
{
    struct trace_record record = record_of(place->vm, kind);

    record.what = (uint16_t)place->device;
    record.count = place->waiting_count < UINT16_MAX ? (uint16_t)place->waiting_count : UINT16_MAX;
    return record;
}

void decisions_wait(const struct vm_place *place)
{
    struct trace *trace = &place->vm->mediator->trace;
    struct trace_record record;

    if (!trace_is_on(trace))
        return;
    record = record_at(place, TRACE_WAIT);
    record.number = place->vm->settings.weight ? place->vm->settings.weight : TRACE_WEIGHT_DEFAULT;
    trace_write(trace, &record);
}

static void note_switch(const struct vm_place *place)
{
    struct mediator *mediator = place->vm->mediator;
    uint32_t *last = &mediator->last_vms[place->device];
    struct trace_record record;

    if (*last != 0 && *last != place->vm->vm_id) {
        record = record_at(place, TRACE_SWITCH);
        record.number = *last;
        trace_write(&mediator->trace, &record);
    }
    *last = place->vm->vm_id;
}

void decisions_grant(const struct vm_place *place, const struct sched_grant *grant)
{
    struct trace *trace = &place->vm->mediator->trace;
    struct trace_record record;

    if (!trace_is_on(trace))
        return;
    note_switch(place);
    record = record_at(place, TRACE_GRANT);
    record.number = grant->max_ops;
    record.device_ns =
        grant->device_us >= UINT64_MAX / NS_PER_US ? TRACE_LONG : grant->device_us * NS_PER_US;
    trace_write(trace, &record);
}

void decisions_revoke(const struct vm_place *place, enum trace_reason reason)
{
    struct trace *trace = &place->vm->mediator->trace;
    struct trace_record record;

    if (!trace_is_on(trace))
        return;
    record = record_at(place, TRACE_REVOKE);
    record.reason = (uint8_t)reason;
    trace_write(trace, &record);
}

void decisions_return(const struct vm_place *place, uint64_t used_us, enum trace_reason reason)
{
    struct trace *trace = &place->vm->mediator->trace;
    struct trace_record record;

    if (!trace_is_on(trace))
        return;
    record = record_at(place, TRACE_RETURN);
    record.device_ns = used_us * NS_PER_US;
    record.reason = (uint8_t)reason;
    trace_write(trace, &record);
}

void decisions_arrive(const struct vm *vm, uint64_t sequence)
{
    struct trace *trace = &vm->mediator->trace;
    struct trace_record record;

    if (!trace_is_on(trace))
        return;
    record = record_of(vm, TRACE_ARRIVE);
    record.number = (uint32_t)sequence;
    record.count = 1;
    trace_write(trace, &record);
}

void decisions_complete(const struct vm *vm, uint64_t sequence, uint64_t device_us, bool success)
{
    struct trace *trace = &vm->mediator->trace;
    struct trace_record record;

    if (!trace_is_on(trace))
        return;
    record = record_of(vm, TRACE_COMPLETE);
    record.number = (uint32_t)sequence;
    record.device_ns = device_us * NS_PER_US;
    record.what = VGPU_OP_TEXT;
    record.reason = success ? VGPU_OK : VGPU_COMMAND_FAILED;
    trace_write(trace, &record);
}
