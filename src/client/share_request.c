/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of one request, as the child sees it:
 *
 *   look      is the directory there?
 *   earlier   wait until nothing unread stands in request.txt
 *   ready     response.txt := 0:Ready      (an old answer is no answer)
 *   send      request.txt  := the line     (temporary file, fsync, rename)
 *   taken     wait until request.txt is no longer our line
 *   answer    wait for a whole line in response.txt that is not 0:…
 *
 * The mediator empties request.txt when it takes a request, so an answer that
 * is seen before that belongs to an earlier request whose client gave up: only
 * what is read after "taken" counts.
 *
 * Each stage is one attempt that is repeated until it is through; an attempt
 * that fails in a way that network file systems fail now and then is repeated
 * just the same.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAUSE_LEAST_NS CLIENT_NS_PER_MS
#define PAUSE_MOST_NS (50 * CLIENT_NS_PER_MS)

/* A fixed name: the lock admits one writer, and what a killed client left is
 * overwritten, not collected. */
#define TEMPORARY_NAME ".request.txt.new"

struct share {
    struct guard *guard;
    const struct share_request *request;
    struct failure failure;
    char request_path[PATH_MAX];
    char response_path[PATH_MAX];
    char temporary_path[PATH_MAX];
    size_t line_bytes;
    mode_t mode;   /* of new files: as the directory, without execute bits */
    gid_t gid;     /* of the file that is replaced; (gid_t)-1: as it comes */
    bool renaming; /* a rename failed, but may have happened */
    bool sending;
    bool sent;
    bool taken;
    bool told_of_earlier;
};

typedef enum share_result (*share_attempt)(struct share *share);

static enum share_result classify(struct share *share, const char *action, const char *path)
{
    return share_classify(action, path, errno, &share->failure);
}

static bool holds_our_line(const struct share *share, const struct share_text *text)
{
    return text->length == share->line_bytes &&
           memcmp(text->bytes, share->request->line, share->line_bytes) == 0;
}

static enum share_result look(struct share *share)
{
    const char *path = share->request->directory;
    struct stat info;

    if (stat(path, &info) < 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return classify(share, "look at", path);
        share_missing(path, &share->failure);
        return SHARE_FAILED;
    }
    if (!S_ISDIR(info.st_mode)) {
        failure_set(&share->failure, FAILURE_SHARE_MISSING,
                    "expected the VM's directory at %.300s, found something else", path);
        failure_remedy(&share->failure, "remove it, or name another place with --share or --dir");
        return SHARE_FAILED;
    }
    share->mode = (info.st_mode & 0666) | 0600;
    return SHARE_DONE;
}

static enum share_result wait_for_earlier(struct share *share)
{
    struct share_text text;
    enum share_result result = share_read(share->request_path, &text, &share->failure);

    if (result != SHARE_DONE)
        return result;
    if (text.exists) {
        share->mode = (text.mode & 0666) | 0600;
        share->gid = text.gid;
    }
    if (share_is_blank(&text))
        return SHARE_DONE;
    if (!share->told_of_earlier)
        guard_report(share->guard, REPORT_NOTE, NOTE_PLAIN,
                     "an earlier request stands unread in %.300s, waiting for the mediator to "
                     "take it",
                     share->request_path);
    share->told_of_earlier = true;
    return SHARE_AGAIN;
}

/* A file that we made: the mediator must be able to read it, whatever our
 * umask and our group.  Not being allowed to is no failure. */
static void adopt(struct share *share, int fd, const struct stat *info)
{
    if ((info->st_mode & 0777) != share->mode)
        (void)!fchmod(fd, share->mode);
    if (share->gid != (gid_t)-1 && info->st_gid != share->gid)
        (void)!fchown(fd, (uid_t)-1, share->gid);
}

/* Writes a whole file; what an earlier, longer text left is cut off last, so
 * that no reader ever sees half of the new line.  Nothing else is cut: by then the
 * mediator may have taken the line and emptied the file, which would grow again. */
static enum share_result write_file(struct share *share, const char *path, const char *text,
                                    size_t bytes, int flags, bool is_new)
{
    enum share_result result = SHARE_DONE;
    struct stat info;
    int fd = open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | flags,
                  share->mode);

    if (fd < 0)
        return classify(share, "open for writing", path);
    if (fstat(fd, &info) < 0) {
        result = classify(share, "look at", path);
    } else if (!S_ISREG(info.st_mode)) {
        errno = ENXIO;
        result = classify(share, "write", path);
    } else if (pwrite(fd, text, bytes, 0) != (ssize_t)bytes ||
               (info.st_size > (off_t)bytes && ftruncate(fd, (off_t)bytes) < 0)) {
        result = classify(share, "write", path);
    } else {
        if (is_new)
            adopt(share, fd, &info);
        if (fsync(fd) < 0)
            result = classify(share, "sync", path);
    }
    if (close(fd) < 0 && result == SHARE_DONE)
        result = classify(share, "close", path);
    return result;
}

static enum share_result set_ready(struct share *share)
{
    static const char ready[] = VGPU_FILE_READY "\n";
    const size_t bytes = sizeof(ready) - 1;
    struct share_text text;
    enum share_result result = share_read(share->response_path, &text, &share->failure);

    if (result != SHARE_DONE)
        return result;
    if (text.length == bytes && memcmp(text.bytes, ready, bytes) == 0)
        return SHARE_DONE;
    return write_file(share, share->response_path, ready, bytes, 0, !text.exists);
}

/* Makes a rename last on the host's disk where that takes an extra step. */
static void sync_directory(struct share *share)
{
    int fd = open(share->request->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

    if (fd < 0)
        return;
    (void)!fsync(fd);
    close(fd);
}

/* Whether a rename that found no file was done before.  We have just written its source,
 * so without it there are two cases: the directory is gone, or the server did the rename
 * and could not say so.  It may be the kernel that asked again: a hard mount does that by
 * itself when the server was restarted in between.  Sending again would run the request
 * twice. */
static bool was_renamed(const struct share *share)
{
    struct stat info;

    return share->renaming || stat(share->request->directory, &info) == 0;
}

static enum share_result send_by_rename(struct share *share)
{
    enum share_result result;

    if (!share->renaming) {
        result = write_file(share, share->temporary_path, share->request->line, share->line_bytes,
                            O_TRUNC, true);
        if (result != SHARE_DONE)
            return result;
    }
    if (rename(share->temporary_path, share->request_path) == 0)
        return SHARE_DONE;
    if (errno == ENOENT && was_renamed(share))
        return SHARE_DONE;
    share->renaming = share_is_transient(errno);
    return classify(share, "rename a temporary file to", share->request_path);
}

static enum share_result send_in_place(struct share *share)
{
    struct share_text text;
    enum share_result result = share_read(share->request_path, &text, &share->failure);

    /* A failed sync may have brought the line there all the same. */
    if (result != SHARE_DONE || holds_our_line(share, &text))
        return result;
    return write_file(share, share->request_path, share->request->line, share->line_bytes, O_TRUNC,
                      !text.exists);
}

static enum share_result send_request(struct share *share)
{
    return share->request->in_place ? send_in_place(share) : send_by_rename(share);
}

static enum share_result wait_for_taken(struct share *share)
{
    struct share_text text;
    enum share_result result = share_read(share->request_path, &text, &share->failure);

    if (result != SHARE_DONE)
        return result;
    return holds_our_line(share, &text) ? SHARE_AGAIN : SHARE_DONE;
}

static enum share_result wait_for_answer(struct share *share)
{
    struct share_text text;
    struct report report = {.kind = REPORT_ANSWER};
    enum share_result result = share_read(share->response_path, &text, &share->failure);
    size_t length;

    if (result != SHARE_DONE)
        return result;
    if (!share_find_answer(&text, &length))
        return SHARE_AGAIN;
    text_show(report.text, sizeof(report.text), text.bytes, length);
    guard_send(share->guard, &report);
    return SHARE_DONE;
}

/* --- one stage after the other ------------------------------------------------ */

static int64_t pause_after(int64_t elapsed_ns)
{
    int64_t pause = elapsed_ns / 10;

    if (pause < PAUSE_LEAST_NS)
        return PAUSE_LEAST_NS;
    return pause > PAUSE_MOST_NS ? PAUSE_MOST_NS : pause;
}

/* 0: through; -1: failed; 1: the time is up. */
static int repeat(struct share *share, const char *step, const char *path, share_attempt attempt)
{
    int64_t begin_ns = clock_now_ns();
    char trouble[sizeof(share->failure.text)] = "";

    guard_report(share->guard, REPORT_STEP, 0, "%s %.400s", step, path);
    for (;;) {
        enum share_result result = attempt(share);

        if (result == SHARE_DONE)
            return 0;
        if (result == SHARE_FAILED) {
            struct report report = {.kind = REPORT_FAILURE, .value = (int)share->failure.code};

            snprintf(report.text, sizeof(report.text), "%s", share->failure.text);
            snprintf(report.remedy, sizeof(report.remedy), "%s", share->failure.remedy);
            guard_send(share->guard, &report);
            return -1;
        }
        if (result == SHARE_TRANSIENT && strcmp(trouble, share->failure.text) != 0) {
            snprintf(trouble, sizeof(trouble), "%s", share->failure.text);
            guard_report(share->guard, REPORT_NOTE, NOTE_TROUBLE, "%s", trouble);
        }
        if (result == SHARE_AGAIN && trouble[0]) {
            trouble[0] = '\0';
            guard_report(share->guard, REPORT_NOTE, NOTE_RECOVERED, "the share works again");
        }
        if (!guard_pause(share->guard, pause_after(clock_now_ns() - begin_ns)))
            return 1;
    }
}

static int run_stages(struct share *share)
{
    int result = repeat(share, "look at", share->request->directory, look);

    if (result == 0)
        result = repeat(share, "read", share->request_path, wait_for_earlier);
    if (result == 0)
        result = repeat(share, "write " VGPU_FILE_READY " to", share->response_path, set_ready);
    if (result != 0)
        return result;
    share->sending = true;
    guard_report(share->guard, REPORT_NOTE, NOTE_SENDING, "may write the request now");
    result = repeat(share, "write the request to", share->request_path, send_request);
    if (result != 0)
        return result;
    share->sent = true;
    guard_report(share->guard, REPORT_SENT, 0, "sent");
    if (!share->request->in_place)
        sync_directory(share);
    result = repeat(share, "read", share->request_path, wait_for_taken);
    if (result != 0)
        return result;
    share->taken = true;
    guard_report(share->guard, REPORT_TAKEN, 0, "taken");
    return repeat(share, "read", share->response_path, wait_for_answer);
}

/* Takes the request back, but only if the file holds exactly ours.  Between
 * the look and the cut the mediator may take it: then it runs for nobody. */
static enum share_left withdraw_once(struct share *share)
{
    char text[VGPU_REQUEST_MAX_BYTES + 2];
    int fd = open(share->request_path, O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0);
    enum share_left left = SHARE_WAS_TAKEN;
    ssize_t got;

    if (fd < 0)
        return errno == ENOENT ? SHARE_WAS_TAKEN : SHARE_LEFT_BEHIND;
    got = pread(fd, text, sizeof(text), 0);
    if (got < 0)
        left = SHARE_LEFT_BEHIND;
    else if ((size_t)got == share->line_bytes &&
             memcmp(text, share->request->line, share->line_bytes) == 0)
        left = ftruncate(fd, 0) == 0 ? SHARE_WITHDRAWN : SHARE_LEFT_BEHIND;
    if (close(fd) < 0)
        left = SHARE_LEFT_BEHIND;
    return left;
}

static enum share_left withdraw(struct share *share)
{
    const struct timespec moment = {.tv_nsec = 5 * CLIENT_NS_PER_MS};
    enum share_left left = withdraw_once(share);
    bool is_certain = share->sent;

    for (int i = 0; i < 3 && left == SHARE_LEFT_BEHIND && share_is_transient(errno); i++) {
        nanosleep(&moment, NULL);
        left = withdraw_once(share);
    }
    if (share->renaming && access(share->temporary_path, F_OK) < 0 && errno == ENOENT)
        is_certain = true;
    return left == SHARE_WAS_TAKEN && !is_certain ? SHARE_NOT_SENT : left;
}

static void stop(struct share *share)
{
    enum share_left left = SHARE_NOT_SENT;

    if (share->taken)
        left = SHARE_WAS_TAKEN;
    else if (share->sending)
        left = withdraw(share);
    guard_report(share->guard, REPORT_STOPPED, (int)left, "stopped");
}

void share_work(struct guard *guard, const struct share_request *request)
{
    struct share share = {
        .guard = guard, .request = request, .line_bytes = strlen(request->line), .gid = (gid_t)-1};
    const char *directory = request->directory;

    /* A child that hangs must not keep others out when its parent is gone. */
    if (request->lock_fd >= 0)
        close(request->lock_fd);
    snprintf(share.request_path, PATH_MAX, "%.4000s/%s", directory, VGPU_FILE_REQUEST);
    snprintf(share.response_path, PATH_MAX, "%.4000s/%s", directory, VGPU_FILE_RESPONSE);
    snprintf(share.temporary_path, PATH_MAX, "%.4000s/%s", directory, TEMPORARY_NAME);
    if (run_stages(&share) == 0)
        return;
    stop(&share);
    if (!request->in_place)
        unlink(share.temporary_path);
}
