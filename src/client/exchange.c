/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request and its answer, from the parent's side: the lock, the child, the
 * clock, and plain words for every way in which it can end.
 */
#include "client.h"

#include <signal.h>
#include <string.h>

#define LOCK_PAUSE_MS 10

void exchange_format_line(const struct identity *identity, const char *command, char *line,
                          size_t bytes)
{
    snprintf(line, bytes, "%c:%u:%u:%s\n", identity->pool, identity->priority, identity->vm_id,
             command);
}

static void tell(const struct exchange *exchange, int64_t at_ns, const char *text)
{
    fprintf(stderr, "vgpu-client: %8.1f ms  %s\n", (double)(at_ns - exchange->begin_ns) / 1e6,
            text);
}

static void take_note(struct exchange *exchange, const struct report *report)
{
    if (report->value == NOTE_TROUBLE)
        snprintf(exchange->trouble, sizeof(exchange->trouble), "%.511s", report->text);
    else if (report->value == NOTE_RECOVERED)
        exchange->trouble[0] = '\0';
    else if (report->value == NOTE_SENDING)
        exchange->sending = true;
}

static void take_failure(struct exchange *exchange, const struct report *report)
{
    struct failure *failure = &exchange->child_failure;

    failure_set(failure, (enum failure_code)report->value, "%s", report->text);
    failure_remedy(failure, "%s", report->remedy);
    exchange->child_failed = true;
}

static void take_report(const struct report *report, void *context)
{
    struct exchange *exchange = context;

    if (exchange->verbose)
        tell(exchange, report->at_ns, report->text);
    switch (report->kind) {
    case REPORT_STEP:
        snprintf(exchange->step, sizeof(exchange->step), "%.511s", report->text);
        exchange->step_ns = report->at_ns;
        exchange->trouble[0] = '\0';
        break;
    case REPORT_NOTE:
        take_note(exchange, report);
        break;
    case REPORT_SENT:
        exchange->sent = true;
        exchange->sent_ns = report->at_ns;
        break;
    case REPORT_TAKEN:
        exchange->taken = true;
        exchange->taken_ns = report->at_ns;
        break;
    case REPORT_ANSWER:
        exchange->answered = true;
        exchange->answered_ns = report->at_ns;
        snprintf(exchange->answer, sizeof(exchange->answer), "%s", report->text);
        break;
    case REPORT_STOPPED:
        exchange->stopped = true;
        exchange->left = (enum share_left)report->value;
        break;
    case REPORT_FAILURE:
        take_failure(exchange, report);
        break;
    default:
        break;
    }
}

/* --- the lock -------------------------------------------------------------------- */

static int interrupted(const struct exchange *exchange, int signal_number, const char *what,
                       struct failure *failure)
{
    failure_set(failure, FAILURE_INTERRUPTED, "interrupted by %s after %.3g s; %s",
                signal_number == SIGINT    ? "SIGINT"
                : signal_number == SIGTERM ? "SIGTERM"
                                           : "SIGHUP",
                (double)(clock_now_ns() - exchange->begin_ns) / 1e9, what);
    failure->exit_code = 128 + signal_number;
    return -1;
}

static int wait_for_lock(struct exchange *exchange, struct client_lock *lock, int64_t deadline_ns,
                         struct failure *failure)
{
    bool told = exchange->quiet;
    int signal_number = guard_wait_signal(0);

    for (;;) {
        enum lock_result result = signal_number ? LOCK_BUSY : lock_try(exchange->directory, lock);

        if (result == LOCK_UNAVAILABLE && exchange->verbose)
            tell(exchange, clock_now_ns(), "no place for a lock file, going on without");
        if (result != LOCK_BUSY)
            return 0;
        if (signal_number)
            return interrupted(exchange, signal_number, "nothing was sent", failure);
        if (exchange->try_lock_once || clock_now_ns() >= deadline_ns)
            break;
        if (!told)
            fprintf(stderr, "vgpu-client: waiting for another vgpu-client that uses %s\n",
                    exchange->directory);
        told = true;
        signal_number = guard_wait_signal(LOCK_PAUSE_MS);
    }
    failure_set(failure, FAILURE_TIMEOUT_BUSY,
                "another vgpu-client in this VM uses %.300s (lock %.200s), waited %.3g s; nothing "
                "was sent",
                exchange->directory, lock->path,
                (double)(clock_now_ns() - exchange->begin_ns) / 1e9);
    return failure_remedy(failure, "a VM has one request at a time: wait for the other, or wait "
                                   "longer with --timeout");
}

/* --- how it ended ------------------------------------------------------------------ */

static const char *left_words(const struct exchange *exchange)
{
    if (!exchange->sending)
        return "nothing was sent";
    if (!exchange->stopped)
        return exchange->sent ? "the request may still stand in " VGPU_FILE_REQUEST
                              : "it is not known whether the request was sent";
    switch (exchange->left) {
    case SHARE_NOT_SENT:
        return "nothing was sent";
    case SHARE_WITHDRAWN:
        return "the request was withdrawn";
    case SHARE_WAS_TAKEN:
        return "the mediator took the request, it is queued or running or its answer is lost";
    default:
        return "the request could not be withdrawn from " VGPU_FILE_REQUEST;
    }
}

static int hung(const struct exchange *exchange, struct failure *failure)
{
    failure_set(failure, FAILURE_TIMEOUT_SHARE,
                "the share at %.300s does not respond: hung for %.3g s in '%.300s'; %s",
                exchange->directory, (double)(clock_now_ns() - exchange->step_ns) / 1e9,
                exchange->step, left_words(exchange));
    return failure_remedy(failure, "check the network and the NFS server on the host, and `dmesg` "
                                   "here for \"server not responding\"");
}

static int not_taken(const struct exchange *exchange, struct failure *failure)
{
    const char *what = exchange->sent ? "the request" : "an earlier request";

    failure_set(failure, FAILURE_TIMEOUT_NOT_TAKEN,
                "no mediator took %s from %.300s/%s within %.3g s; %s", what, exchange->directory,
                VGPU_FILE_REQUEST, (double)exchange->timeout_ns / 1e9, left_words(exchange));
    return failure_remedy(failure,
                          "is it running? On the host: systemctl status vgpu-mediator; its "
                          "share (--share, default %s) must be the one that is mounted here",
                          VGPU_FILE_HOST_SHARE);
}

static int timed_out(const struct exchange *exchange, struct failure *failure)
{
    if (exchange->trouble[0] && !exchange->taken) {
        failure_set(failure, FAILURE_TIMEOUT_SHARE,
                    "the share kept failing for %.3g s, last: %.500s; %s",
                    (double)exchange->timeout_ns / 1e9, exchange->trouble, left_words(exchange));
        return failure_remedy(failure,
                              "check the network and the NFS server on the host; mount the "
                              "share again if the errors stay (umount -l, mount)");
    }
    if (exchange->left != SHARE_WAS_TAKEN)
        return not_taken(exchange, failure);
    failure_set(failure, FAILURE_TIMEOUT_NO_ANSWER,
                "no answer came to %.300s/%s within %.3g s; the mediator took the request, it is "
                "still queued or running%s%.300s",
                exchange->directory, VGPU_FILE_RESPONSE, (double)exchange->timeout_ns / 1e9,
                exchange->trouble[0] ? "; the share had trouble: " : "", exchange->trouble);
    return failure_remedy(failure, "wait longer with --timeout, or see what runs before it in the "
                                   "mediator's log on the host");
}

/* Success, or an answer that says what went wrong. */
static int judge_answer(const struct exchange *exchange, struct failure *failure)
{
    const char *answer = exchange->answer;

    if (answer[0] == VGPU_STATUS_CHAR_SUCCESS && answer[1] == ':')
        return 0;
    if (answer[0] == VGPU_STATUS_CHAR_ERROR && answer[1] == ':') {
        failure_set(failure, FAILURE_ERROR_ANSWER, "the mediator answered: %.1400s", answer + 2);
        return failure_remedy(failure, "the answer says what was wrong with the request '%.*s'",
                              (int)strcspn(exchange->line, "\n"), exchange->line);
    }
    failure_set(failure, FAILURE_BAD_ANSWER, "expected `1:…` or `2:…` in %.300s/%s, came '%.300s'",
                exchange->directory, VGPU_FILE_RESPONSE, answer);
    return failure_remedy(failure, "something else than the mediator wrote there, or versions "
                                   "differ: compare vgpu-client --version with the host's");
}

static int judge(const struct exchange *exchange, enum guard_end end, struct failure *failure)
{
    int signal_number = guard_wait_signal(0);

    if (exchange->answered)
        return judge_answer(exchange, failure);
    if (exchange->child_failed) {
        *failure = exchange->child_failure;
        return -1;
    }
    if (signal_number)
        return interrupted(exchange, signal_number, left_words(exchange), failure);
    if (end == GUARD_HUNG && !exchange->stopped)
        return hung(exchange, failure);
    if (end == GUARD_DIED && !exchange->stopped) {
        failure_set(failure, FAILURE_SYSTEM, "the process that reads the share died in '%.300s'",
                    exchange->step);
        return failure_remedy(failure, "look at `dmesg` here: was memory short?");
    }
    return timed_out(exchange, failure);
}

static void work(struct guard *guard, void *context)
{
    const struct exchange *exchange = context;

    share_work(guard, &exchange->request);
}

int exchange_run(struct exchange *exchange, struct failure *failure)
{
    struct client_lock lock = {.fd = -1};
    enum guard_end end;
    int64_t deadline_ns;
    int result;

    exchange->begin_ns = exchange->step_ns = clock_now_ns();
    deadline_ns = exchange->begin_ns + exchange->timeout_ns;
    if (wait_for_lock(exchange, &lock, deadline_ns, failure) < 0)
        return -1;
    exchange->request = (struct share_request){.directory = exchange->directory,
                                               .line = exchange->line,
                                               .in_place = exchange->in_place,
                                               .lock_fd = lock.fd};
    result = guard_run(work, take_report, exchange, deadline_ns, &end, failure);
    if (result == 0)
        result = judge(exchange, end, failure);
    lock_release(&lock);
    return result;
}
