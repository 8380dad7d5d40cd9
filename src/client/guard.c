/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work that may hang, in a child.
 *
 *   parent                               child
 *   ──────                               ─────
 *   poll(reports, signals, deadline) ◀── what I do now, what I found
 *   close(cancel) ─────────────────────▶ guard_pause() says: tidy up
 *   SIGKILL at the deadline
 *
 * The parent touches nothing that can hang.  A child in uninterruptible sleep
 * does not even die of SIGKILL, so the parent does not wait for its death: it
 * ends, and init collects the child when the kernel lets go of it.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TIDY_UP_NS CLIENT_NS_PER_S

/* A report must arrive whole, so it must fit what a pipe takes at once. */
_Static_assert(sizeof(struct report) <= PIPE_BUF, "a report is written in one piece");

static int signals_fd = -1;
static int signal_seen;

int guard_catch_signals(struct failure *failure)
{
    static const int wanted[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        /* Who started us with a signal ignored (nohup) wants it ignored. */
        if (sigaction(wanted[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(&set, wanted[i]);
    }
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signals_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals_fd < 0)
        return failure_set(failure, FAILURE_SYSTEM, "signalfd: %s", strerror(errno));
    return 0;
}

static void read_signal(void)
{
    struct signalfd_siginfo info;

    if (read(signals_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        signal_seen = (int)info.ssi_signo;
}

int guard_wait_signal(int timeout_ms)
{
    struct pollfd wait = {.fd = signals_fd, .events = POLLIN};

    if (!signal_seen && poll(&wait, 1, timeout_ms) > 0)
        read_signal();
    return signal_seen;
}

/* --- the child --------------------------------------------------------------- */

void guard_send(struct guard *guard, struct report *report)
{
    report->at_ns = clock_now_ns();
    while (write(guard->report_fd, report, sizeof(*report)) < 0 && errno == EINTR)
        ;
}

void guard_report(struct guard *guard, enum report_kind kind, int value, const char *format, ...)
{
    struct report report = {.kind = kind, .value = value};
    va_list args;

    va_start(args, format);
    vsnprintf(report.text, sizeof(report.text), format, args);
    va_end(args);
    guard_send(guard, &report);
}

bool guard_pause(struct guard *guard, int64_t ns)
{
    struct pollfd wait = {.fd = guard->cancel_fd, .events = POLLIN};
    int64_t left = guard->soft_deadline_ns - clock_now_ns();
    struct timespec time;

    if (left <= 0)
        return false;
    if (ns > left)
        ns = left;
    time.tv_sec = ns / CLIENT_NS_PER_S;
    time.tv_nsec = ns % CLIENT_NS_PER_S;
    /* The parent never writes: an event is its end, or its wish that we end. */
    return ppoll(&wait, 1, &time, NULL) <= 0;
}

static void __attribute__((noreturn))
child_main(struct guard *guard, guard_work_fn work, void *context)
{
    close(signals_fd);
    work(guard, context);
    guard_report(guard, REPORT_END, 0, "end");
    _exit(0);
}

/* --- the parent -------------------------------------------------------------- */

struct watch {
    pid_t child;
    int report_fd;
    int cancel_fd;
    int64_t deadline_ns;
    guard_report_fn report;
    void *context;
    struct report buffer;
    size_t buffered;
};

/* Time to tidy up before the parent's patience ends: a tenth, from 100 to
 * 500 ms, never more than half.  A busy machine may let the child wait. */
static int64_t reserve_ns(int64_t whole)
{
    int64_t reserve = whole / 10;

    if (reserve < 100 * CLIENT_NS_PER_MS)
        reserve = 100 * CLIENT_NS_PER_MS;
    if (reserve > CLIENT_NS_PER_S / 2)
        reserve = CLIENT_NS_PER_S / 2;
    return reserve > whole / 2 ? whole / 2 : reserve;
}

static int start_child(struct watch *watch, guard_work_fn work, struct failure *failure)
{
    struct guard guard;
    int reports[2], cancel[2];
    int64_t now = clock_now_ns();

    if (pipe2(reports, O_CLOEXEC) < 0)
        return failure_set(failure, FAILURE_SYSTEM, "cannot make a pipe: %s", strerror(errno));
    if (pipe2(cancel, O_CLOEXEC) < 0) {
        failure_set(failure, FAILURE_SYSTEM, "cannot make a pipe: %s", strerror(errno));
        goto close_reports;
    }
    fflush(NULL);
    watch->child = fork();
    if (watch->child < 0) {
        failure_set(failure, FAILURE_SYSTEM, "cannot start a process: %s", strerror(errno));
        goto close_cancel;
    }
    if (watch->child == 0) {
        close(reports[0]);
        close(cancel[1]);
        guard.report_fd = reports[1];
        guard.cancel_fd = cancel[0];
        guard.soft_deadline_ns = watch->deadline_ns - reserve_ns(watch->deadline_ns - now);
        child_main(&guard, work, watch->context);
    }
    close(reports[1]);
    close(cancel[0]);
    watch->report_fd = reports[0];
    watch->cancel_fd = cancel[1];
    return 0;

close_cancel:
    close(cancel[0]);
    close(cancel[1]);
close_reports:
    close(reports[0]);
    close(reports[1]);
    return -1;
}

/* False: the child is through, or gone. */
static bool read_report(struct watch *watch, enum guard_end *end)
{
    char *at = (char *)&watch->buffer + watch->buffered;
    ssize_t got = read(watch->report_fd, at, sizeof(watch->buffer) - watch->buffered);

    if (got < 0)
        return errno == EINTR;
    if (got == 0) {
        *end = GUARD_DIED;
        return false;
    }
    watch->buffered += (size_t)got;
    if (watch->buffered < sizeof(watch->buffer))
        return true;
    watch->buffered = 0;
    if (watch->buffer.kind == REPORT_END) {
        *end = GUARD_FINISHED;
        return false;
    }
    watch->report(&watch->buffer, watch->context);
    return true;
}

static void ask_for_an_end(struct watch *watch)
{
    int64_t patience = clock_now_ns() + TIDY_UP_NS;

    if (watch->cancel_fd < 0)
        return;
    close(watch->cancel_fd);
    watch->cancel_fd = -1;
    if (watch->deadline_ns > patience)
        watch->deadline_ns = patience;
}

static enum guard_end watch_child(struct watch *watch)
{
    enum guard_end end = GUARD_DIED;

    for (;;) {
        struct pollfd wait[2] = {{.fd = watch->report_fd, .events = POLLIN},
                                 {.fd = signal_seen ? -1 : signals_fd, .events = POLLIN}};
        int64_t left;
        struct timespec time;

        if (signal_seen)
            ask_for_an_end(watch);
        left = watch->deadline_ns - clock_now_ns();
        time = (struct timespec){left / CLIENT_NS_PER_S, left % CLIENT_NS_PER_S};

        if (left <= 0)
            return GUARD_HUNG;
        if (ppoll(wait, 2, &time, NULL) < 0)
            continue;
        if (wait[1].revents)
            read_signal();
        if (wait[0].revents && !read_report(watch, &end))
            return end;
    }
}

static void kill_child(pid_t child)
{
    const struct timespec moment = {.tv_nsec = 2 * CLIENT_NS_PER_MS};

    kill(child, SIGKILL);
    for (int i = 0; i < 10; i++) {
        if (waitpid(child, NULL, WNOHANG) != 0)
            return;
        nanosleep(&moment, NULL);
    }
}

int guard_run(guard_work_fn work, guard_report_fn report, void *context, int64_t deadline_ns,
              enum guard_end *ret_end, struct failure *failure)
{
    struct watch watch = {.deadline_ns = deadline_ns, .report = report, .context = context};

    if (start_child(&watch, work, failure) < 0)
        return -1;
    *ret_end = watch_child(&watch);
    if (watch.cancel_fd >= 0)
        close(watch.cancel_fd);
    kill_child(watch.child);
    close(watch.report_fd);
    return 0;
}
