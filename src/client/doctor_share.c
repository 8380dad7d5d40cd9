/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The doctor's checks of the share, in the child, because each may hang.  Each
 * check reports the step before it begins, so that the parent can say which
 * one hung.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CLOCK_TOLERANCE_NS (2 * CLIENT_NS_PER_S)

/* The slowest known reader of answers looks once a second. */
#define ANSWER_STALE_NS (3 * CLIENT_NS_PER_S)

struct doctor {
    struct guard *guard;
    const struct doctor_share *job;
    char probe_path[PATH_MAX];
    char request_path[PATH_MAX];
    char response_path[PATH_MAX];
    struct timespec probe_time; /* as the file server stamped it */
    int64_t offset_ns;          /* file server's clock minus ours */
};

static void step(struct doctor *doctor, const char *name)
{
    struct report report = {.kind = REPORT_STEP};

    snprintf(report.name, sizeof(report.name), "%s", name);
    snprintf(report.text, sizeof(report.text), "%s", name);
    guard_send(doctor->guard, &report);
}

static int tell(struct doctor *doctor, enum check_status status, const char *name,
                const char *remedy, const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Returns -1 for a failed check, so that what depends on it is left out. */
static int tell(struct doctor *doctor, enum check_status status, const char *name,
                const char *remedy, const char *format, ...)
{
    struct report report = {.kind = REPORT_CHECK, .value = (int)status};
    va_list args;

    snprintf(report.name, sizeof(report.name), "%s", name);
    snprintf(report.remedy, sizeof(report.remedy), "%s", remedy);
    va_start(args, format);
    vsnprintf(report.text, sizeof(report.text), format, args);
    va_end(args);
    guard_send(doctor->guard, &report);
    return status == CHECK_FAIL ? -1 : 0;
}

static int fail_errno(struct doctor *doctor, const char *name, const char *action, const char *path,
                      int error)
{
    struct failure failure;

    share_classify(action, path, error, &failure);
    return tell(doctor, CHECK_FAIL, name,
                failure.remedy[0] ? failure.remedy
                                  : "the share is unsteady: check the network and the NFS server",
                "%s", failure.text);
}

static int check_mount(struct doctor *doctor)
{
    static const char name[] = "share mounted";
    const char *share = doctor->job->share ? doctor->job->share : doctor->job->directory;
    struct mount_entry mount;

    step(doctor, name);
    if (!mount_find("/proc/self/mountinfo", doctor->job->directory, &mount))
        return tell(doctor, CHECK_WARN, name, "mount proc: mount -t proc proc /proc",
                    "looked for %.300s in /proc/self/mountinfo: cannot read it", share);
    if (mount.read_only)
        return tell(doctor, CHECK_FAIL, name,
                    "mount -o remount,rw, and export it read-write on the host",
                    "%.300s lies on %.60s from %.200s, mounted read-only at %.300s", share,
                    mount.type, mount.source, mount.point);
    if (mount_is_network(&mount))
        return tell(doctor, CHECK_PASS, name, "", "%.300s lies on %.60s from %.200s at %.300s",
                    share, mount.type, mount.source, mount.point);
    return tell(doctor, CHECK_WARN, name,
                "mount the host's share there (mount -t nfs4 HOST:/EXPORT DIR); ignore this if the "
                "mediator runs on this very machine",
                "%.300s lies on the local file system %.60s at %.300s", share, mount.type,
                mount.point);
}

static int check_directory(struct doctor *doctor, struct stat *ret_info)
{
    static const char name[] = "vm directory";
    const char *path = doctor->job->directory;
    struct failure failure;

    step(doctor, name);
    if (stat(path, ret_info) == 0 && S_ISDIR(ret_info->st_mode))
        return tell(doctor, CHECK_PASS, name, "", "%.300s is there", path);
    if (errno != ENOENT && errno != ENOTDIR)
        return fail_errno(doctor, name, "look at", path, errno);
    share_missing(path, &failure);
    return tell(doctor, CHECK_FAIL, name, failure.remedy, "%s", failure.text);
}

static int check_permissions(struct doctor *doctor, const struct stat *info)
{
    static const char name[] = "permissions";
    const char *path = doctor->job->directory;
    unsigned mode = info->st_mode & 07777;

    step(doctor, name);
    if (access(path, R_OK | W_OK | X_OK) < 0)
        return fail_errno(doctor, name, "read and write in", path, errno);
    if (mode & S_IWOTH)
        return tell(doctor, CHECK_WARN, name,
                    "on the host: chmod o-rwx on the directory, and give it to the user that the "
                    "export maps this VM to",
                    "%.300s has mode %04o: every user may write there", path, mode);
    return tell(doctor, CHECK_PASS, name, "", "%.300s has mode %04o, owner %u:%u; we are %u:%u",
                path, mode, info->st_uid, info->st_gid, geteuid(), getegid());
}

static int check_file(struct doctor *doctor, const char *name, const char *path)
{
    struct share_text text;
    struct failure failure;

    step(doctor, name);
    if (share_read(path, &text, &failure) != SHARE_DONE)
        return tell(doctor, CHECK_FAIL, name, failure.remedy, "%s", failure.text);
    if (!text.exists)
        return tell(doctor, CHECK_WARN, name,
                    "the mediator makes it when it serves this directory: is it running?",
                    "%.300s is not there yet", path);
    if (access(path, W_OK) < 0)
        return fail_errno(doctor, name, "write", path, errno);
    return tell(doctor, CHECK_PASS, name, "", "%.300s is a regular file that we may write", path);
}

/* Really writes: permissions under NFS are the server's opinion, not what the
 * mode bits seem to say. */
static int write_probe(struct doctor *doctor, const char *name)
{
    static const char text[] = "vgpu-client doctor\n";
    struct share_text back;
    struct failure failure;
    struct stat info;
    int fd = open(doctor->probe_path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    int error = 0;

    if (fd < 0)
        return fail_errno(doctor, name, "make", doctor->probe_path, errno);
    if (write(fd, text, sizeof(text) - 1) != (ssize_t)sizeof(text) - 1 || fsync(fd) < 0 ||
        fstat(fd, &info) < 0)
        error = errno;
    if (close(fd) < 0 && !error)
        error = errno;
    if (error)
        return fail_errno(doctor, name, "write", doctor->probe_path, error);
    doctor->probe_time = info.st_mtim;
    if (share_read(doctor->probe_path, &back, &failure) != SHARE_DONE)
        return tell(doctor, CHECK_FAIL, name, failure.remedy, "%s", failure.text);
    if (back.length != sizeof(text) - 1 || memcmp(back.bytes, text, back.length) != 0)
        return tell(doctor, CHECK_FAIL, name, "the share's cache is broken: mount it again",
                    "wrote %zu bytes to %.300s and read %zu others back", sizeof(text) - 1,
                    doctor->probe_path, back.length);
    return 0;
}

static int check_write(struct doctor *doctor)
{
    static const char name[] = "writable";
    int64_t begin_ns = clock_now_ns();
    int result;

    step(doctor, name);
    result = write_probe(doctor, name);
    if (unlink(doctor->probe_path) < 0 && result == 0)
        result = fail_errno(doctor, name, "remove", doctor->probe_path, errno);
    if (result == 0)
        tell(doctor, CHECK_PASS, name, "",
             "wrote, synced, read and removed a temporary file in %.300s (%.1f ms)",
             doctor->job->directory, (double)(clock_now_ns() - begin_ns) / 1e6);
    return result;
}

static int check_clock(struct doctor *doctor)
{
    static const char name[] = "clock";
    struct timespec now;

    step(doctor, name);
    clock_gettime(CLOCK_REALTIME, &now);
    doctor->offset_ns = (doctor->probe_time.tv_sec - now.tv_sec) * CLIENT_NS_PER_S +
                        doctor->probe_time.tv_nsec - now.tv_nsec;
    if (doctor->offset_ns > CLOCK_TOLERANCE_NS || doctor->offset_ns < -CLOCK_TOLERANCE_NS)
        return tell(doctor, CHECK_WARN, name,
                    "set the clock (chrony or systemd-timesyncd) here and on the host; requests "
                    "work all the same, but times in logs do not match",
                    "the file server's clock is %.1f s %s of ours",
                    (double)(doctor->offset_ns > 0 ? doctor->offset_ns : -doctor->offset_ns) / 1e9,
                    doctor->offset_ns > 0 ? "ahead" : "behind");
    return tell(doctor, CHECK_PASS, name, "", "the file server's clock is within 2 s of ours");
}

/* --- may the mediator be asked? ------------------------------------------------- */

static bool answer_is_fresh(const struct doctor *doctor, const struct share_text *text)
{
    struct timespec now;
    int64_t age_ns;

    clock_gettime(CLOCK_REALTIME, &now);
    age_ns = (now.tv_sec - text->modified.tv_sec) * CLIENT_NS_PER_S + now.tv_nsec -
             text->modified.tv_nsec + doctor->offset_ns;
    return age_ns < ANSWER_STALE_NS;
}

/* An answer in response.txt may be another program's that has not read it yet.
 * It goes when the mediator puts 0:Ready back, or grows old. */
static enum doctor_share_state find_state(struct doctor *doctor)
{
    struct share_text request, response;
    struct failure failure;
    size_t length;

    step(doctor, "mediator");
    for (;;) {
        if (share_read(doctor->request_path, &request, &failure) != SHARE_DONE ||
            share_read(doctor->response_path, &response, &failure) != SHARE_DONE)
            return DOCTOR_SHARE_UNUSABLE;
        if (share_is_blank(&request) &&
            (!share_find_answer(&response, &length) || !answer_is_fresh(doctor, &response)))
            return DOCTOR_SHARE_FREE;
        if (!guard_pause(doctor->guard, 50 * CLIENT_NS_PER_MS))
            return DOCTOR_SHARE_PENDING;
    }
}

static enum doctor_share_state check_all(struct doctor *doctor)
{
    struct stat info;
    int result = 0;

    check_mount(doctor);
    if (check_directory(doctor, &info) < 0)
        return DOCTOR_SHARE_UNUSABLE;
    result |= check_permissions(doctor, &info);
    result |= check_file(doctor, "request file", doctor->request_path);
    result |= check_file(doctor, "response file", doctor->response_path);
    if (check_write(doctor) < 0)
        return DOCTOR_SHARE_UNUSABLE;
    check_clock(doctor);
    return result < 0 ? DOCTOR_SHARE_UNUSABLE : find_state(doctor);
}

void doctor_share_work(struct guard *guard, const struct doctor_share *job)
{
    struct doctor doctor = {.guard = guard, .job = job};

    snprintf(doctor.probe_path, PATH_MAX, "%.4000s/.vgpu-doctor.%d", job->directory, getpid());
    snprintf(doctor.request_path, PATH_MAX, "%.4000s/%s", job->directory, VGPU_FILE_REQUEST);
    snprintf(doctor.response_path, PATH_MAX, "%.4000s/%s", job->directory, VGPU_FILE_RESPONSE);
    guard_report(guard, REPORT_STOPPED, (int)check_all(&doctor), "checked");
}
