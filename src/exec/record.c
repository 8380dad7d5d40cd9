/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session record: what became of a session's last operation, for whoever
 * asks after the worker or the mediator died.  One record file (base/) whose
 * two slots are written in turn, so a torn write leaves the older state.
 *
 *   mediator            worker                       the next mediator
 *   open, flock(2) ──▶  inherits the lock            exec_record_read()
 *                       attach:  its pid             lock held: 1, wait
 *                       STARTED  before it runs      lock free: 0, and the
 *                       DONE     after, with answer    record is final
 *                       dies  ── the kernel frees the lock
 *
 * flock(2) belongs to the open file description: it is taken before the worker
 * is born, and nothing but the end of the process that holds it, however it
 * came, can free it.  Nothing is synced: the record guards against the death
 * of processes.  After the host's own death no worker lives, and an operation
 * that is not DONE here runs again from the journal.
 */
#include "exec/private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* struct exec_record, as it stands in the file. */
struct record_payload {
    uint64_t sequence;
    uint64_t device_us;
    uint32_t state;
    uint32_t executions;
    uint32_t worker_pid;
    uint32_t success;
    char message[VGPU_MESSAGE_MAX_BYTES + 1];
    char padding[7];
};

_Static_assert(sizeof(struct record_payload) == EXEC_RECORD_PAYLOAD_BYTES, "no holes");

static bool payload_makes_sense(const struct record_payload *payload)
{
    return payload->state <= EXEC_RECORD_DONE && payload->success <= 1 &&
           (payload->state == EXEC_RECORD_NONE || payload->sequence > 0) &&
           memchr(payload->message, '\0', sizeof(payload->message));
}

static void payload_unpack(const struct record_payload *payload, struct exec_record *record)
{
    memset(record, 0, sizeof(*record));
    record->state = (enum exec_record_state)payload->state;
    record->sequence = payload->sequence;
    record->executions = payload->executions;
    record->worker_pid = (pid_t)payload->worker_pid;
    record->device_us = payload->device_us;
    record->response.success = payload->success == 1;
    text_copy(record->response.message, sizeof(record->response.message), payload->message);
}

static void payload_pack(struct record_payload *payload, const struct exec_record *record)
{
    memset(payload, 0, sizeof(*payload));
    payload->sequence = record->sequence;
    payload->device_us = record->device_us;
    payload->state = (uint32_t)record->state;
    payload->executions = record->executions;
    payload->worker_pid = (uint32_t)record->worker_pid;
    payload->success = record->response.success ? 1 : 0;
    text_copy(payload->message, sizeof(payload->message), record->response.message);
}

/* Nothing there, or nothing that a worker would write: state NONE. */
static int record_load(int fd, struct record_file *ret_file, struct exec_record *ret_record,
                       struct vgpu_error *error)
{
    struct record_payload payload;
    struct record_file file;
    int found = record_file_load(&file, fd, EXEC_RECORD_KIND, &payload, sizeof(payload), error);

    if (found < 0)
        return -1;
    memset(ret_record, 0, sizeof(*ret_record));
    if (found > 0 && payload_makes_sense(&payload))
        payload_unpack(&payload, ret_record);
    *ret_file = file;
    return 0;
}

/* open(2) that accepts nothing but a regular file: a symbolic link or a FIFO in
 * the record's place is somebody's trap. */
static int record_open(const char *path, int flags, struct vgpu_error *error)
{
    struct stat info;
    int fd = open(path, flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);

    if (fd < 0 && errno == ELOOP)
        return error_set(error, ELOOP,
                         "session record '%s' is a symbolic link, expected a file: remove it",
                         path);
    if (fd < 0)
        return error_set_errno(error, "cannot open session record '%s'", path);
    if (fstat(fd, &info) < 0) {
        error_set_errno(error, "cannot examine session record '%s'", path);
        fd_close(&fd);
        return -1;
    }
    if (!S_ISREG(info.st_mode)) {
        error_set(error, EINVAL, "session record '%s' is not a regular file: remove it", path);
        fd_close(&fd);
        return -1;
    }
    return fd;
}

int exec_record_read(const char *path, struct exec_record *ret_record, struct vgpu_error *error)
{
    struct vgpu_error problem;
    struct record_file file;
    bool held;
    int result, fd = record_open(path, O_RDONLY, &problem);

    if (fd < 0 && problem.code == ENOENT) {
        memset(ret_record, 0, sizeof(*ret_record));
        return 0;
    }
    if (fd < 0)
        return error_set(error, problem.code, "%s", problem.message);
    /* Shared, so that two readers do not take each other for a worker.  What is
     * read while nobody holds the lock cannot change any more. */
    held = flock(fd, LOCK_SH | LOCK_NB) < 0;
    if (held && errno != EWOULDBLOCK)
        result = error_set_errno(error, "cannot test the lock of session record '%s'", path);
    else
        result = record_load(fd, &file, ret_record, error);
    fd_close(&fd);
    return result < 0 ? -1 : held;
}

static int record_lock_fd(int fd, const char *path, struct vgpu_error *error)
{
    struct exec_record record = {0};
    struct record_file file;
    int code;

    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK)
            return error_set_errno(error, "cannot lock session record '%s'", path);
        record_load(fd, &file, &record, NULL); /* for its pid; 0 will do */
        return error_set(error, EBUSY,
                         "session record '%s' is held by a living worker (pid %d): wait for its "
                         "end",
                         path, (int)record.worker_pid);
    }
    /* Room for both slots now: a full disk is an error before the work, not
     * between work and result. */
    code = posix_fallocate(fd, 0, (off_t)EXEC_RECORD_FILE_BYTES);
    if (code != 0)
        return error_set(error, code, "cannot make room for session record '%s': %s", path,
                         strerror(code));
    return 0;
}

int exec_record_lock(const char *path, struct vgpu_error *error)
{
    int fd = record_open(path, O_RDWR | O_CREAT, error);

    if (fd >= 0 && record_lock_fd(fd, path, error) < 0)
        fd_close(&fd);
    return fd;
}

static int record_store(struct exec_record_writer *writer, const struct exec_record *record,
                        struct vgpu_error *error)
{
    struct record_payload payload;

    payload_pack(&payload, record);
    if (record_file_store(&writer->file, EXEC_RECORD_KIND, &payload, false, error) < 0)
        return -1;
    writer->record = *record;
    return 0;
}

int exec_record_attach(struct exec_record_writer *writer, int fd, struct vgpu_error *error)
{
    struct exec_record record;

    if (record_load(fd, &writer->file, &record, error) < 0)
        return -1;
    record.worker_pid = getpid();
    return record_store(writer, &record, error);
}

int exec_record_start(struct exec_record_writer *writer, uint64_t sequence,
                      struct vgpu_error *error)
{
    bool again = writer->record.state != EXEC_RECORD_NONE && writer->record.sequence == sequence;
    struct exec_record record = {
        .state = EXEC_RECORD_STARTED,
        .sequence = sequence,
        .executions = again ? writer->record.executions + 1 : 1,
        .worker_pid = getpid(),
    };

    return record_store(writer, &record, error);
}

int exec_record_finish(struct exec_record_writer *writer, const struct protocol_response *response,
                       uint64_t device_us, struct vgpu_error *error)
{
    struct exec_record record = writer->record;

    assert(record.state == EXEC_RECORD_STARTED);
    record.state = EXEC_RECORD_DONE;
    record.device_us = device_us;
    record.response = *response;
    return record_store(writer, &record, error);
}
