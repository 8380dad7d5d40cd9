/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two sides of exec/ share and nobody else needs: the descriptors
 * that a worker is born with, the messages on its socket, and the writing side
 * of the session record.
 */
#ifndef VGPU_EXEC_PRIVATE_H
#define VGPU_EXEC_PRIVATE_H

#include "exec/exec.h"

/* --- sanitizers: they need addresses and system calls of their own ------------ */

#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define EXEC_SANITIZED
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define EXEC_LEAKS_ARE_CHECKED /* the checker traces its own process */
#endif

/* --- a worker's descriptors -------------------------------------------------- */

#define EXEC_SOCKET_FD 3 /* SOCK_SEQPACKET, to the mediator */
#define EXEC_RECORD_FD 4 /* the session record, already locked */
#define EXEC_LOG_FD 5    /* the execution log, if the worker was told of one */
#define EXEC_CGROUP_FD 6 /* cgroup.procs, if it was told of one */
#define EXEC_FD_COUNT 7

/* --- messages: one packet each, always of exactly this size ------------------- */

#define EXEC_MESSAGE_MAGIC 0x57555047u /* "GPUW" in memory */
#define EXEC_MESSAGE_VERSION 2u        /* an upgrade may pair an old mediator, a new worker */

struct exec_operation_message {
    uint32_t magic;
    uint32_t version;
    uint64_t sequence;
    char command[VGPU_COMMAND_MAX_BYTES + 1];
};

struct exec_result_message {
    uint32_t magic;
    uint32_t version;
    uint64_t sequence;
    uint64_t device_us;
    uint32_t success;  /* 0 or 1 */
    uint32_t contexts; /* of GPUs, that the worker has now */
    char message[VGPU_MESSAGE_MAX_BYTES + 1];
    char padding[7];
};

/* --- the session record, written (record.c) ----------------------------------- */

/* "XEC1" in memory.  Raise the digit with every change of the layout: what an
 * older release wrote is then state NONE. */
#define EXEC_RECORD_KIND 0x31434558u

/* Bytes of a record, and of the file with its two slots and their headers. */
#define EXEC_RECORD_PAYLOAD_BYTES ((size_t)1040)
#define EXEC_RECORD_FILE_BYTES (2 * (EXEC_RECORD_PAYLOAD_BYTES + 24))

struct exec_record_writer {
    struct record_file file;
    struct exec_record record; /* what stands in it */
};

/* Opens the record for a worker, makes it when missing, and locks it.  Returns
 * a descriptor; -1 with EBUSY when a living worker holds it. */
int exec_record_lock(const char *path, struct vgpu_error *error);

/* Takes over a locked record: reads what stands in it, and writes the same
 * again with the caller's pid, so that a reader knows who lives. */
int exec_record_attach(struct exec_record_writer *writer, int fd, struct vgpu_error *error);

/* Writes STARTED for `sequence` and counts the execution. */
int exec_record_start(struct exec_record_writer *writer, uint64_t sequence,
                      struct vgpu_error *error);

/* Writes DONE for the operation that was started last. */
int exec_record_finish(struct exec_record_writer *writer, const struct protocol_response *response,
                       uint64_t device_us, struct vgpu_error *error);

/* --- starting a worker of either kind (worker.c) ------------------------------- */

/* What a worker needs to know of its surroundings, and nothing else: the
 * mediator's environment may hold secrets.  NULL: no memory. */
char **exec_environment_new(void);
void exec_environment_free(char **environment);

/* Returns a descriptor, or -1. */
int exec_execution_log_open(const char *path, struct vgpu_error *error);

/* The account's file; a descriptor, or -1. */
int exec_account_descriptor(const struct exec_account *account, struct vgpu_error *error);

/* cgroup.procs of the cgroup at `path`; a descriptor, or -1. */
int exec_cgroup_open(const char *path, struct vgpu_error *error);

/* "killed by signal 11 (SIGSEGV)": how a process ended; `fault` is what it did when
 * it was `killed` for that, or "". */
void exec_describe_end(bool killed, const char *fault, int64_t status, int number, char *reason,
                       size_t bytes);

#endif /* VGPU_EXEC_PRIVATE_H */
