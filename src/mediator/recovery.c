/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What workers of an earlier mediator still do or have done.  Their records
 * tell; until the last living one has let go of its record its device may be in
 * use, so nothing is dispatched meanwhile.
 */
#include "mediator/mediator.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define RECOVERY_LOOK_MS 10

void recovery_add(struct file_session *file)
{
    struct mediator *mediator = file->session.vm->mediator;

    file->next_recovering = mediator->recovering;
    mediator->recovering = file;
    if (mediator->files_recovered) { /* its directory came late */
        mediator->files_recovered = false;
        recovery_start(mediator);
    }
}

static void log_recovery(const struct file_session *file, const char *how)
{
    const struct log_field fields[] = {LOG_NUMBER("vm", file->session.vm->vm_id),
                                       LOG_NUMBER("sequence", file->request.sequence),
                                       LOG_TEXT("how", how)};

    log_event("RECOVERY", fields, VGPU_ARRAY_LENGTH(fields), "vm=%u, sequence=%llu: %s",
              file->session.vm->vm_id, (unsigned long long)file->request.sequence, how);
}

static bool overstays(const struct mediator *mediator)
{
    return clock_monotonic_ns() > mediator->recovery_until_ns;
}

/* The process id comes from a worker, so it is looked at before it is believed. */
static bool is_worker(pid_t pid)
{
    char path[32], name[16] = "";
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    file = fopen(path, "re");
    if (!file)
        return false;
    if (!fgets(name, sizeof(name), file))
        name[0] = '\0';
    fclose(file);
    return strncmp(name, "vgpu-w", strlen("vgpu-w")) == 0;
}

/* Returns true when the session's request needs no more waiting. */
static bool settle(struct file_session *file)
{
    char path[PATH_MAX + 32];
    struct exec_record record;
    struct vgpu_error error;
    int held;

    file_session_record_path(file, path, sizeof(path));
    held = exec_record_read(path, &record, &error);
    if (held < 0) {
        log_error("vm%u: %s; its request runs again", file->session.vm->vm_id, error.message);
        file_session_resume(file);
        return true;
    }
    if (held > 0) {
        if (overstays(file->session.vm->mediator) && record.worker_pid > 1 &&
            is_worker(record.worker_pid)) {
            log_warning("vm%u: worker %d of an earlier mediator runs beyond its limit: ending it",
                        file->session.vm->vm_id, (int)record.worker_pid);
            file->limit_exceeded = true;
            kill(record.worker_pid, SIGKILL); /* it holds the lock, so the number is still its */
        }
        return false;
    }
    if (record.state == EXEC_RECORD_NONE || record.sequence != file->request.sequence) {
        log_recovery(file, "had not begun; it runs in its turn");
        file_session_resume(file);
    } else if (record.state == EXEC_RECORD_DONE) {
        log_recovery(file, "had run; its result is the answer");
        file_session_answer(file, &record.response, record.device_us);
    } else if (file->limit_exceeded) {
        log_recovery(file, "ran longer than its limit");
        file_session_answer_limit(file);
    } else {
        log_recovery(file, "was cut off while it ran; it runs again");
        file_session_resume(file);
    }
    return true;
}

static void look(struct mediator *mediator)
{
    struct file_session **at = &mediator->recovering;

    while (*at) {
        struct file_session *file = *at;

        if (settle(file))
            *at = file->next_recovering;
        else
            at = &file->next_recovering;
    }
    if (mediator->recovering)
        return;
    uv_timer_stop(&mediator->recovery_timer);
    mediator->files_recovered = true;
    mediator_recovered(mediator);
}

static void on_timer(uv_timer_t *timer)
{
    look(timer->data);
}

/* Of the VMs that are waited for. */
static uint64_t longest_limit_ms(const struct mediator *mediator)
{
    uint64_t longest_ms = 0;

    for (const struct file_session *file = mediator->recovering; file;
         file = file->next_recovering) {
        uint64_t limit_ms = vm_operation_limit_ms(file->session.vm);

        longest_ms = limit_ms > longest_ms ? limit_ms : longest_ms;
    }
    return longest_ms;
}

void recovery_start(struct mediator *mediator)
{
    mediator->recovery_until_ns = clock_monotonic_ns() + longest_limit_ms(mediator) * NS_PER_MS;
    mediator->recovery_timer.data = mediator;
    uv_timer_start(&mediator->recovery_timer, on_timer, RECOVERY_LOOK_MS, RECOVERY_LOOK_MS);
    look(mediator);
}
