/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/ - what every room may use: errors, the log, time, descriptors.
 *
 * Small and boring on purpose.  A function that can fail returns 0 or -1 (or a
 * descriptor or -1) and, on -1, fills the struct vgpu_error that it was given;
 * outputs named `ret_*` are untouched on failure.  Destructors accept NULL.
 */
#ifndef VGPU_BASE_H
#define VGPU_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VGPU_ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define VGPU_PRINTF(format_at, args_at) __attribute__((format(printf, format_at, args_at)))

/* --- errors (error.c) ------------------------------------------------------ */

#define VGPU_ERROR_BYTES 512

/*
 * What went wrong, for a person: what was tried, what was expected, what came,
 * what to do.  `code` is an errno value.  Lives on the caller's stack.
 */
struct vgpu_error {
    int code;
    char message[VGPU_ERROR_BYTES];
};

/* Fills *error and is -1, so that `return error_set(...)` reads well.  A NULL
 * error is allowed; longer messages are cut.  Macros, so that the compiler sees
 * the -1 and knows which outputs are filled. */
#define error_set(...)                                                                             \
    ({                                                                                             \
        error_fill(__VA_ARGS__);                                                                   \
        -1;                                                                                        \
    })

/* As error_set() with errno as code and ": <its text>" behind the message. */
#define error_set_errno(...)                                                                       \
    ({                                                                                             \
        error_fill_errno(__VA_ARGS__);                                                             \
        -1;                                                                                        \
    })

void error_fill(struct vgpu_error *error, int code, const char *format, ...) VGPU_PRINTF(3, 4);
void error_fill_errno(struct vgpu_error *error, const char *format, ...) VGPU_PRINTF(2, 3);

/* --- time (clock.c) -------------------------------------------------------- */

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull
#define US_PER_MS 1000ull
#define MS_PER_S 1000ull

uint64_t clock_monotonic_ns(void);
uint64_t clock_realtime_ns(void);

/* --- descriptors and files (fd.c) ------------------------------------------ */

/* Closes *fd unless it is -1, keeps errno, sets *fd to -1. */
void fd_close(int *fd);

/* Reads or writes exactly `bytes` at `offset`, retrying EINTR and short
 * transfers.  Returns 0, or -1 with errno (EIO when the file ended early). */
int fd_pread_all(int fd, void *buffer, size_t bytes, off_t offset);
int fd_pwrite_all(int fd, const void *buffer, size_t bytes, off_t offset);

/* flock(2), exclusive.  A process that was killed may have left its descriptor
 * to a child on its way to exec(2), so it is tried for a second.  Returns 0, or
 * -1 with errno: EWOULDBLOCK when another process holds the lock. */
int fd_lock(int fd);

/* mkdir -p: makes `path` and its missing parents with `mode`. */
int fd_make_directories(const char *path, mode_t mode, struct vgpu_error *error);

/* After a file was made, renamed or removed: its name is on the disk when this
 * returns.  -1 with errno. */
int fd_sync_parent(const char *path);

/* --- accounts (account.c) --------------------------------------------------- */

/* "GROUP", by name or decimal number; a number need not exist on this host.  False: no
 * such group.  Like getgrnam(), for one thread at a time. */
bool account_parse_group(const char *text, gid_t *ret_gid);

/* "USER" or "USER:GROUP", each by name or number.  Without a group: that of the user, of a
 * number the same number.  False: no such user or group, nothing is changed.  One thread
 * at a time. */
bool account_parse_owner(const char *text, uid_t *ret_uid, gid_t *ret_gid);

/* --- text (text.c) --------------------------------------------------------- */

/* Parses a whole decimal number without sign or blanks, min..max. */
bool text_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value);

/* Copies `text`, cut to fit `bytes` with its NUL (never in the middle of
 * nothing: `bytes` > 0). */
void text_copy(char *target, size_t bytes, const char *text);

/* Copies `text` with everything outside printable ASCII as `\xNN`, so that
 * what a guest wrote can stand in a log or an answer.  Cut to fit. */
void text_escape(char *target, size_t bytes, const char *text, size_t text_bytes);

/* How many bytes of UTF-8 one character has here, in a string; 0: it is none. */
size_t text_character_bytes(const char *at);

/* Where `text` was cut inside a character of UTF-8, its beginning goes too. */
void text_end_whole(char *text);

/* Copies `text` with bytes that are no UTF-8 as `\xNN`, as JSON can hold it.  Cut to fit, at
 * a character's end. */
void text_copy_utf8(char *target, size_t bytes, const char *text);

/* Copies word number `index` (from 0) of `words`, which stand one space apart; false when
 * there are not so many, or it does not fit `bytes` with its NUL. */
bool text_word(const char *words, unsigned index, char *ret_word, size_t bytes);

/* CRC-32 (IEEE 802.3, reflected, as zlib's crc32) of `bytes` at `data`. */
uint32_t text_crc32(const void *data, size_t bytes);

/* --- other programs (program.c) ---------------------------------------------- */

#define PROGRAM_OUTPUT_MAX_BYTES (8u << 20)

struct program_result {
    int status;   /* exit status, or 128 + signal */
    char *output; /* what it wrote to standard output, with a NUL behind */
    size_t output_bytes;
    char problem[1024]; /* its standard error, or the end of it, in one printable line */
};

/*
 * Runs argv[0] (an absolute path) with just these arguments, a fixed environment,
 * no blocked signal and no input; waits for its end.  -1 when it could not be run,
 * did not end in time (ETIMEDOUT: it and what it started are killed) or wrote too
 * much.  A status other than 0 is a result; program_check() makes an error of it.
 */
int program_run(char *const argv[], unsigned timeout_ms, struct program_result *ret_result,
                struct vgpu_error *error);
void program_clear(struct program_result *result);

/* As program_run(), and a status other than 0 is EIO with the program's words. */
int program_check(char *const argv[], unsigned timeout_ms, struct program_result *ret_result,
                  struct vgpu_error *error);

/* --- other processes (process.c) ----------------------------------------------- */

struct process_sight {
    char state;      /* as proc(5) has it: 'R' runs or wants to, 'D' waits for a disk, 'S' sleeps */
    uint64_t cpu_us; /* processor time that it has had, in steps of 10 ms */
};

/* False: there is no such process, and *ret_sight is undefined. */
bool process_look(pid_t pid, struct process_sight *ret_sight);

/* --- a file that holds one record (record_file.c) --------------------------- */

/*
 * The newest of the records that were written, whatever instant the writer was
 * killed at: two slots are written in turn, each with a generation and a
 * CRC-32 over everything, and a slot that does not check is as if unwritten.
 * One writer at a time.  Not for other hosts: numbers are in host order.
 */
struct record_file {
    int fd;
    size_t payload_bytes;
    uint64_t generation; /* of the newest record, 0 when there is none */
};

#define RECORD_FILE_PAYLOAD_MAX_BYTES 4000u

/* Takes over `fd`, open for reading and, if the caller means to write, for
 * writing.  `kind` tells files of different use apart.  Fills `payload` with
 * the newest record and returns 1; 0 when there is none (payload untouched);
 * -1 when it cannot be read.  On -1 the descriptor stays the caller's. */
int record_file_load(struct record_file *file, int fd, uint32_t kind, void *payload,
                     size_t payload_bytes, struct vgpu_error *error);

/* Writes a new record by one pwrite(2); with `sync` it is on the disk when the
 * function returns.  On failure the older record still counts. */
int record_file_store(struct record_file *file, uint32_t kind, const void *payload, bool sync,
                      struct vgpu_error *error);

/* --- token buckets (bucket.c) ------------------------------------------------ */

/*
 * A rate that is never exceeded, but for a burst: tokens come evenly, so many of them are
 * kept, and who takes more has to wait.  No drift, however long it runs and however it is
 * used.  The bucket itself is one number, full when it is 0 (as after a reboot) or has long
 * been left alone; several threads and processes may use it at once.  `now_ns` is of one
 * monotonic clock, the same for all of them.
 */
struct bucket_rate {
    uint64_t token_ticks; /* in which one comes; 0: no bound */
    uint64_t burst_ticks; /* in which it is full */
};

/* `tokens` in `per_ns` (to 2^60 - 1) nanoseconds, 0: no bound; `burst` (at least one) are kept. */
struct bucket_rate bucket_rate(uint64_t tokens, uint64_t per_ns, uint64_t burst);

/* Takes up to `most`; returns how many. */
uint32_t bucket_take(uint64_t *bucket, const struct bucket_rate *rate, uint32_t most,
                     uint64_t now_ns);

/* Takes in any case; what there was not is owed, up to two days' worth. */
void bucket_charge(uint64_t *bucket, const struct bucket_rate *rate, uint64_t tokens,
                   uint64_t now_ns);

/* How long until `tokens` (at most the burst) can be taken; 0: now. */
uint64_t bucket_wait_ns(const uint64_t *bucket, const struct bucket_rate *rate, uint64_t tokens,
                        uint64_t now_ns);

/* How many tokens come in so long, rounded down; not where there is no bound. */
uint64_t bucket_tokens(const struct bucket_rate *rate, uint64_t in_ns);

/* Another rate from now on; as many tokens stay owed. */
void bucket_change(uint64_t *bucket, const struct bucket_rate *from, const struct bucket_rate *to,
                   uint64_t now_ns);

/* --- log (log.c) ----------------------------------------------------------- */

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

/* One named value of a log event.  `text` NULL means that `number` counts. */
struct log_field {
    const char *key;
    const char *text;
    uint64_t number;
};

#define LOG_TEXT(key_, text_)                                                                      \
    {                                                                                              \
        .key = (key_), .text = (text_)                                                             \
    }
#define LOG_NUMBER(key_, number_)                                                                  \
    {                                                                                              \
        .key = (key_), .number = (number_)                                                         \
    }

/*
 * Opens the process's log: `path` NULL is stderr, else the file is appended
 * to.  Every line is written by one write(2), so lines of several threads and
 * processes never mix.  Until then, and after log_close(), stderr is used.
 */
int log_open(const char *path, enum log_format format, enum log_level level,
             struct vgpu_error *error);

/* Opens the same path again, after log rotation moved the file away. */
int log_reopen(struct vgpu_error *error);
void log_close(void);

/* A message for people.  Text: `TIME [LEVEL] message`. */
void log_message(enum log_level level, const char *format, ...) VGPU_PRINTF(2, 3);

/*
 * An event that programs read too.  Text: `TIME [TAG] message`.  JSON: one
 * object a line with `time`, `event` (the tag in lower case), `message` and
 * the fields.  Thread-safe.  Events are INFO.
 */
void log_event(const char *tag, const struct log_field *fields, size_t field_count,
               const char *format, ...) VGPU_PRINTF(4, 5);

#define log_error(...) log_message(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_message(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_message(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_message(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* --- services (service.c) --------------------------------------------------- */

/* Where a program's log goes, by its options. */
struct service_log {
    const char *path; /* NULL: standard error */
    enum log_format format;
    enum log_level level;
};

/* --log, --log-format and --log-level, as a child of a program's own parser: its input is a
 * struct service_log, which it sets to what counts without options first. */
struct argp;
extern const struct argp service_log_argp;

/* Opens the log and runs: the process's exit status, why it failed being told. */
typedef int service_function(const void *options, struct vgpu_error *error);
int service_run(const char *name, const struct service_log *log, service_function *run,
                const void *options);

/* --- fault points (fault.c) ------------------------------------------------ */

/*
 * A named place where a test can end the process, to prove that nothing is
 * lost there.  Present only in builds with -Dfault_points=true (the tests'
 * builds), where the environment variable VGPU_FAULT=`point:count` raises
 * SIGKILL the count-th time that the point is passed; nothing otherwise.
 */
#ifdef VGPU_FAULT_POINTS
void fault_point(const char *point);
#else
static inline void fault_point(const char *point)
{
    (void)point;
}
#endif

#endif /* VGPU_BASE_H */
