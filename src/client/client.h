/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client/ - vgpu-client, the guest's program.
 *
 * One static binary that needs nothing in the guest but a kernel, so this room
 * uses include/vgpu/, libvgpu and the C library only.
 *
 *   options.c ─▶ main.c ─┬─▶ request.c ─┬─▶ window.c ─▶ libvgpu      shared memory
 *                        ├─▶ info.c     ├─▶ identity.c ─▶ device.c   who am I?
 *                        ├─▶ bench.c    │
 *                        └─▶ doctor.c ──┴─▶ exchange.c ─▶ lock.c     one at a time
 *                                            │
 *                                            ▼ guard.c: a child, a pipe, a clock
 *                                          share.c, doctor_share.c   file I/O
 *
 * The share may be a network mount that hangs, and a process that hangs in it
 * may not even die of SIGKILL.  So every access to the share happens in a
 * child; the parent owns the clock and never touches the share.
 */
#ifndef VGPU_CLIENT_H
#define VGPU_CLIENT_H

#include "vgpu/file_channel.h"
#include "vgpu/regs.h"
#include "vgpu/vgpu.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define CLIENT_NS_PER_MS 1000000LL
#define CLIENT_NS_PER_S 1000000000LL

/* --- failure.c: what went wrong, and what to do --------------------------- */

enum client_exit {
    CLIENT_EXIT_SUCCESS = 0,
    CLIENT_EXIT_ANSWER = 1, /* the mediator answered with an error */
    CLIENT_EXIT_USAGE = 2,
    CLIENT_EXIT_DEVICE = 3,
    CLIENT_EXIT_SHARE = 4,
    CLIENT_EXIT_TIMEOUT = 5,
    CLIENT_EXIT_SYSTEM = 70, /* no process, no memory, no output */
};

enum failure_code {
    FAILURE_NONE,
    FAILURE_ERROR_ANSWER,
    FAILURE_BAD_ANSWER,
    FAILURE_USAGE,
    FAILURE_SEVERAL_DEVICES,
    FAILURE_NO_DEVICE,
    FAILURE_DEVICE_ACCESS,
    FAILURE_DEVICE_VALUES,
    FAILURE_SHARE_MISSING,
    FAILURE_SHARE_DENIED,
    FAILURE_SHARE_BROKEN,
    FAILURE_TIMEOUT_BUSY,
    FAILURE_TIMEOUT_SHARE,
    FAILURE_TIMEOUT_NOT_TAKEN,
    FAILURE_TIMEOUT_NO_ANSWER,
    FAILURE_WINDOW_MISSING,
    FAILURE_WINDOW_DENIED,
    FAILURE_WINDOW_BUSY,
    FAILURE_WINDOW_HOST,
    FAILURE_WINDOW_ENDED,
    FAILURE_WINDOW_STATUS,
    FAILURE_INTERRUPTED,
    FAILURE_SYSTEM,
    FAILURE_COUNT,
};

struct failure {
    enum failure_code code;
    int exit_code;
    char text[1536];  /* what was looked for, where, and what came */
    char remedy[768]; /* what to do; may be empty */
};

/* Both return -1, so that a caller can return them. */
int failure_set(struct failure *failure, enum failure_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int failure_remedy(struct failure *failure, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A stable word for scripts: "no-device". */
const char *failure_name(enum failure_code code);
enum client_exit failure_exit(enum failure_code code);

/* --- text.c ---------------------------------------------------------------- */

int64_t clock_now_ns(void);

/* The length of the valid UTF-8 character at `text`, or 0. */
size_t text_utf8_length(const char *text, size_t bytes);

/* A copy that is safe to show on a terminal: control characters and bytes that
 * are no UTF-8 become \xNN.  Always terminated; cut where it does not fit. */
void text_show(char *out, size_t out_bytes, const char *text, size_t bytes);

bool text_parse_u32(const char *text, uint32_t least, uint32_t most, uint32_t *ret_value);

/* Seconds with decimals, 0.001 to 86400. */
bool text_parse_seconds(const char *text, int64_t *ret_ns);

bool text_parse_priority(const char *text, unsigned *ret_priority);
const char *text_priority_name(unsigned priority);

/* An absolute path without doubled, dotted or trailing slashes, without any
 * access to the file system behind it. */
bool text_normalize_path(const char *path, char *out, size_t out_bytes);

/* --- json.c: one object on one stream -------------------------------------- */

struct json {
    FILE *out;
    bool comma;
};

/* `key` is NULL inside an array and for the outermost object. */
void json_open(struct json *json, const char *key, char bracket);
void json_close(struct json *json, char bracket);
void json_string(struct json *json, const char *key, const char *value);
void json_integer(struct json *json, const char *key, int64_t value);
void json_milliseconds(struct json *json, const char *key, int64_t ns);
void json_number(struct json *json, const char *key, double value);
void json_bool(struct json *json, const char *key, bool value);
void json_null(struct json *json, const char *key);
void json_failure(struct json *json, const struct failure *failure);
void json_begin(struct json *json, FILE *out); /* { and who speaks */
void json_end(struct json *json, int exit_code, const struct failure *failure); /* } */

/* --- options.c -------------------------------------------------------------- */

enum client_action {
    ACTION_REQUEST,
    ACTION_INFO,
    ACTION_DOCTOR,
    ACTION_BENCH,
};

enum client_channel {
    CHANNEL_AUTO,
    CHANNEL_WINDOW,
    CHANNEL_FILE,
};

struct options {
    enum client_action action;
    enum client_channel channel;
    const char *socket; /* NULL: none was named */
    bool socket_is_environment;
    const char *share;
    bool share_given;
    const char *directory; /* NULL: share/vm<id> */
    const char *device;    /* NULL: the only one */
    const char *sysfs;
    int64_t timeout_ns;
    bool timeout_given;
    bool json;
    bool quiet;
    bool verbose;
    bool in_place;
    char pool;              /* 0: as the device says */
    int priority;           /* -1: as the device says */
    uint32_t vm_id;         /* 0: as the device says */
    int spin_us;            /* of the window's waits; -1: libvgpu's default */
    const char *bench_mode; /* NULL: all */
    int64_t bench_ns;       /* of each measurement */
    uint32_t bench_depth;   /* operations in a batch */
    char command[VGPU_COMMAND_MAX_BYTES + 1];
};

/* --help and --version end the program. */
int options_parse(int argc, char **argv, struct options *ret_options, struct failure *failure);

/* --- device.c: find and read the PCI device --------------------------------- */

#define DEVICE_LIST_MAX 32
#define DEVICE_REGISTER_COUNT (VGPU_REG_END / 4)

enum device_memory_space {
    MEMORY_SPACE_UNKNOWN,
    MEMORY_SPACE_ON,
    MEMORY_SPACE_OFF,
    MEMORY_SPACE_SWITCHED_ON, /* by this program, just now */
};

/* A device of class 0x1200xx; `problem` says why it is not ours or not usable. */
struct device {
    char address[64];
    unsigned vendor_id;
    unsigned device_id;
    unsigned class_code;
    enum device_memory_space memory_space;
    bool usable;
    bool denied; /* the problem is one of permissions */
    char problem[384];
    char remedy[384];
    uint32_t registers[DEVICE_REGISTER_COUNT];
};

struct device_list {
    char path[PATH_MAX]; /* where was looked */
    unsigned looked_at;  /* devices of any class */
    unsigned count;
    struct device devices[DEVICE_LIST_MAX];
};

/* All devices of our class, by address; with `only` just that one, of whatever
 * class.  Fails only when there is no place to look. */
int device_scan(const char *sysfs, const char *only, struct device_list *ret_list,
                struct failure *failure);

static inline uint32_t device_register(const struct device *device, unsigned offset)
{
    return device->registers[offset / 4];
}

/* The one usable device; *failure tells what was seen instead. */
const struct device *device_choose(const struct device_list *list, const char *only,
                                   struct failure *failure);

/* Whether the device could have a session for us. */
bool device_offers_window(const struct device *device);

/* Registers in words, for `info`. */
struct device_register_text {
    const char *name;
    unsigned offset;
    uint32_t value;
    char meaning[128];
};
unsigned device_describe(const struct device *device, struct device_register_text *texts,
                         unsigned most);

/* --- identity.c: who this VM is and where its directory is ------------------ */

struct identity {
    bool has_device;
    struct device device;
    char pool;
    unsigned priority;
    uint32_t vm_id;
    char directory[PATH_MAX];
    char channel_reason[512];
};

int identity_find(const struct options *options, struct identity *ret_identity,
                  struct failure *failure);

/* The same from a list that was already made. */
int identity_from(const struct options *options, const struct device_list *list,
                  struct identity *ret_identity, struct failure *failure);

/* Why files: what the device says, unless it could have a window. */
void identity_explain(struct identity *identity, const char *reason);

/* A session by another way than the device (pages granted under Xen) is to be the same VM's
 * as the device's registers say, where there is a device: `text` tells in words what was
 * compared, also when there was nothing.  Fails when they do not agree. */
int identity_compare(const struct device_list *list, uint32_t vm_id, char *text, size_t bytes,
                     struct failure *failure);

bool identity_needs_device(const struct options *options);
void identity_print(const struct identity *identity, FILE *out);
void identity_json(const struct identity *identity, struct json *json);

/* --- guard.c: work that may hang, in a child --------------------------------- */

/* Kinds of one conversation; the guard itself knows REPORT_END only. */
enum report_kind {
    REPORT_END,
    REPORT_STEP,    /* text: what is done now, for the day when it hangs */
    REPORT_NOTE,    /* text: something for --verbose; value: enum note */
    REPORT_SENT,    /* the request stands where the mediator looks */
    REPORT_TAKEN,   /* the mediator has it */
    REPORT_ANSWER,  /* text: the line, shown safely */
    REPORT_STOPPED, /* value: enum share_left */
    REPORT_FAILURE, /* value: enum failure_code */
    REPORT_CHECK,   /* value: enum check_status, name, text, remedy */
};

enum note {
    NOTE_PLAIN,
    NOTE_TROUBLE,   /* something failed and will be tried again */
    NOTE_RECOVERED, /* it did not fail any more */
    NOTE_SENDING,   /* from here on the request may stand there */
};

struct report {
    enum report_kind kind;
    int value;
    int64_t at_ns;
    char name[32];
    char text[1536];
    char remedy[768];
};

/* The child's side. */
struct guard {
    int report_fd;
    int cancel_fd;
    int64_t soft_deadline_ns; /* stop waiting, tidy up */
};

typedef void (*guard_work_fn)(struct guard *guard, void *context);
typedef void (*guard_report_fn)(const struct report *report, void *context);

enum guard_end {
    GUARD_FINISHED,
    GUARD_HUNG, /* the deadline passed; the child was killed, not waited for */
    GUARD_DIED,
};

/* From here on SIGINT, SIGTERM and SIGHUP are noticed, not obeyed. */
int guard_catch_signals(struct failure *failure);

/* Sleeps; returns a signal that came (now or before), or 0. */
int guard_wait_signal(int timeout_ms);

/*
 * Runs work(…, context) in a child until it ends or deadline_ns passes, and
 * gives its reports to report(…, context).  A signal asks the child to tidy
 * up and leaves it one second.
 */
int guard_run(guard_work_fn work, guard_report_fn report, void *context, int64_t deadline_ns,
              enum guard_end *ret_end, struct failure *failure);

/* For the child. */
void guard_report(struct guard *guard, enum report_kind kind, int value, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void guard_send(struct guard *guard, struct report *report);

/* False: the time is up, or the parent wants an end. */
bool guard_pause(struct guard *guard, int64_t ns);

/* --- lock.c: one client at a time for one directory --------------------------- */

struct client_lock {
    int fd; /* -1: none */
    char path[PATH_MAX];
};

enum lock_result {
    LOCK_TAKEN,
    LOCK_UNAVAILABLE, /* no place for a lock file: go on without */
    LOCK_BUSY,
};

enum lock_result lock_try(const char *directory, struct client_lock *lock);
void lock_release(struct client_lock *lock);

/* --- share.c: the child's side of one request --------------------------------- */

enum share_left {
    SHARE_NOT_SENT,
    SHARE_WITHDRAWN,   /* it had not been taken, and is gone again */
    SHARE_WAS_TAKEN,   /* queued or running */
    SHARE_LEFT_BEHIND, /* not taken, and could not be withdrawn */
};

enum share_result {
    SHARE_DONE,
    SHARE_AGAIN,     /* not yet */
    SHARE_TRANSIENT, /* a network file system's mood; try again */
    SHARE_FAILED,    /* *failure is filled */
};

bool share_is_transient(int error);

/* Sorts an errno: transient, or a failure with text and remedy. */
enum share_result share_classify(const char *action, const char *path, int error,
                                 struct failure *failure);

/* Why `directory` is not there: no share, an empty share, no vm<id>/ in it. */
int share_missing(const char *directory, struct failure *failure);

/* Reads a regular file that may be changed under us.  ENOENT counts as empty,
 * and *ret_exists says so. */
struct share_text {
    char bytes[4096];
    size_t length;
    bool exists;
    mode_t mode;
    gid_t gid;
    struct timespec modified;
};
enum share_result share_read(const char *path, struct share_text *ret_text,
                             struct failure *failure);

bool share_is_blank(const struct share_text *text);

/* The first line if it is a whole answer: ended by newline, no `0:`. */
bool share_find_answer(const struct share_text *text, size_t *ret_length);

struct share_request {
    const char *directory;
    const char *line; /* with its newline */
    bool in_place;
    int lock_fd; /* the parent's; the child must not keep it */
};
void share_work(struct guard *guard, const struct share_request *request);

/* --- exchange.c: one request and its answer ----------------------------------- */

struct exchange {
    /* in */
    const char *directory;
    const char *line;
    int64_t timeout_ns;
    bool in_place;
    bool verbose;
    bool quiet;
    bool try_lock_once;
    /* out */
    bool sending, sent, taken, answered;
    int64_t sent_ns, taken_ns, answered_ns;
    char answer[1536]; /* "1:message", safe to show */
    /* private */
    struct share_request request;
    struct failure child_failure;
    bool child_failed, stopped;
    enum share_left left;
    char step[512];
    int64_t step_ns;
    char trouble[512]; /* the last thing that was retried */
    int64_t begin_ns;
};

int exchange_run(struct exchange *exchange, struct failure *failure);

/* "A:2:100:PING\n" */
void exchange_format_line(const struct identity *identity, const char *command, char *line,
                          size_t bytes);

/* --- window.c: the other channel ------------------------------------------------- */

struct window {
    struct vgpu_session *session; /* NULL: files are to be used */
    struct vgpu_session_info info;
    char reason[512];       /* why this channel, or why not the window */
    char identity[256];     /* granted pages: what the device's registers say beside; or "" */
    enum failure_code code; /* of that, where a window was tried */
};

/* The option that asks for files, NULL: none does. */
const char *window_file_option(const struct options *options);

/* Fails only when the window was asked for and cannot be had. */
int window_choose(const struct options *options, struct window *ret_window,
                  struct failure *failure);
int window_open(const struct options *options, struct window *ret_window, struct failure *failure);
void window_close(struct window *window);
int window_failure(const struct vgpu_problem *problem, struct failure *failure);
void window_print(const struct window *window, FILE *out);
void window_json(const struct window *window, struct json *json);
void window_json_channel(const struct window *window, struct json *json);

#define WINDOW_ANSWER_BYTES 1024u

struct window_exchange {
    bool answered;
    int64_t took_ns;
    char answer[4 * WINDOW_ANSWER_BYTES + 3]; /* "1:message", safe to show */
};
int window_exchange(const struct options *options, const struct window *window,
                    struct window_exchange *exchange, struct failure *failure);

/* --- bench.c ---------------------------------------------------------------------- */

bool bench_knows(const char *mode);

/* --- mounts.c ------------------------------------------------------------------ */

struct mount_entry {
    char point[PATH_MAX];
    char type[64];
    char source[512];
    bool read_only;
};

/* The mount that `path` lies on, from a file like /proc/self/mountinfo. */
bool mount_find(const char *mountinfo, const char *path, struct mount_entry *ret_entry);
bool mount_is_network(const struct mount_entry *entry);

/* --- doctor.c, doctor_share.c ---------------------------------------------------- */

enum check_status {
    CHECK_PASS,
    CHECK_WARN,
    CHECK_FAIL,
};

struct doctor_share {
    const char *directory;
    const char *share; /* NULL: only the directory was named */
};

/* Ends with a REPORT_STOPPED whose value is: */
enum doctor_share_state {
    DOCTOR_SHARE_UNUSABLE,
    DOCTOR_SHARE_FREE,    /* a request would disturb nobody */
    DOCTOR_SHARE_PENDING, /* a request or an answer waits for its reader */
};
void doctor_share_work(struct guard *guard, const struct doctor_share *job);

/* --- doctor_window.c ------------------------------------------------------------- */

struct doctor_window {
    const struct options *options;
    const struct device *device; /* NULL: not known, or not needed */
    enum check_status severity;  /* of what is wrong: without the window files are used */
    void (*add)(void *context, enum check_status status, int exit_code, const char *name,
                const char *remedy, const char *format, ...) __attribute__((format(printf, 6, 7)));
    void *context;
};

/* True: a session works. */
bool doctor_window_work(const struct doctor_window *job);

/* In a Xen guest programs need no device with a window: its kernel's devices, and what
 * the host must do when it offers nothing. */
bool doctor_is_xen(const struct options *options);
void doctor_xen_devices(const struct doctor_window *job);
void doctor_xen_remedy(const struct options *options, struct failure *failure);

/* --- commands: each returns the program's exit code ------------------------------- */

int command_request(const struct options *options);
int command_info(const struct options *options);
int command_doctor(const struct options *options);
int command_bench(const struct options *options);

/* Prints a failure as text (standard error) or as the JSON object. */
int command_fail(const struct options *options, const struct failure *failure);

#endif /* VGPU_CLIENT_H */
