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

void recovery_add(struct session *session)
{
    struct mediator *mediator = session->mediator;

    session->next_recovering = mediator->recovering;
    mediator->recovering = session;
    if (mediator->recovered) { /* its directory came late */
        mediator->recovered = false;
        recovery_start(mediator);
    }
}

static void log_recovery(const struct session *session, const char *how)
{
    const struct log_field fields[] = {LOG_NUMBER("vm", session->vm_id),
                                       LOG_NUMBER("sequence", session->request.sequence),
                                       LOG_TEXT("how", how)};

    log_event("RECOVERY", fields, VGPU_ARRAY_LENGTH(fields), "vm=%u, sequence=%llu: %s",
              session->vm_id, (unsigned long long)session->request.sequence, how);
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
static bool settle(struct session *session)
{
    char path[PATH_MAX + 32];
    struct exec_record record;
    struct vgpu_error error;
    int held;

    session_record_path(session, path, sizeof(path));
    held = exec_record_read(path, &record, &error);
    if (held < 0) {
        log_error("vm%u: %s; its request runs again", session->vm_id, error.message);
        return true;
    }
    if (held > 0) {
        if (overstays(session->mediator) && record.worker_pid > 1 && is_worker(record.worker_pid)) {
            log_warning("vm%u: worker %d of an earlier mediator runs beyond its limit: ending it",
                        session->vm_id, (int)record.worker_pid);
            session->limit_exceeded = true;
            kill(record.worker_pid, SIGKILL); /* it holds the lock, so the number is still its */
        }
        return false;
    }
    if (record.state == EXEC_RECORD_NONE || record.sequence != session->request.sequence) {
        log_recovery(session, "had not begun; it runs in its turn");
    } else if (record.state == EXEC_RECORD_DONE) {
        log_recovery(session, "had run; its result is the answer");
        session_answer(session, &record.response, record.device_us);
    } else if (session->limit_exceeded) {
        log_recovery(session, "ran longer than its limit");
        session_answer_limit(session);
    } else {
        log_recovery(session, "was cut off while it ran; it runs again");
    }
    return true;
}

static void look(struct mediator *mediator)
{
    struct session **at = &mediator->recovering;

    while (*at) {
        struct session *session = *at;

        if (settle(session))
            *at = session->next_recovering;
        else
            at = &session->next_recovering;
    }
    if (mediator->recovering)
        return;
    uv_timer_stop(&mediator->recovery_timer);
    mediator_recovered(mediator);
}

static void on_timer(uv_timer_t *timer)
{
    look(timer->data);
}

void recovery_start(struct mediator *mediator)
{
    mediator->recovery_until_ns =
        clock_monotonic_ns() + mediator->config->operation_limit_ms * NS_PER_MS;
    mediator->recovery_timer.data = mediator;
    uv_timer_start(&mediator->recovery_timer, on_timer, RECOVERY_LOOK_MS, RECOVERY_LOOK_MS);
    look(mediator);
}
