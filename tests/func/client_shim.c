/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults of a network mount, put under vgpu-client-dynamic by LD_PRELOAD.
 *
 *   VGPU_SHIM=rule[;rule...]     rule: operation,name,action,count
 *
 * The first `count` calls of the operation on a file whose path ends in `name`
 * fail with errno `action`, or `hang` for ever, or `late`: do what was asked
 * and fail with EIO all the same, as when an answer is lost on the wire.  `repeated`
 * is done and fails with ENOENT: a kernel that lost the answer asked again by itself.
 * Before what goes `away`, its directory does.  A write that is `taken` succeeds, and
 * the file is empty at once, as by a quick mediator.
 * VGPU_SHIM_CLOCK_S is added to the clock of the day.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RULES_MAX 16

enum verdict { PASS, FAIL, LATE, REPEATED, TAKEN };

static struct rule {
    char operation[16], name[64], action[16];
    int left;
} rules[RULES_MAX];
static int rule_count;

static void __attribute__((constructor)) parse(void)
{
    char *text = getenv("VGPU_SHIM"), *state = NULL;

    for (char *at = text ? strtok_r(text, ";", &state) : NULL; at && rule_count < RULES_MAX;
         at = strtok_r(NULL, ";", &state)) {
        struct rule *rule = &rules[rule_count++];

        if (sscanf(at, "%15[^,],%63[^,],%15[^,],%d", rule->operation, rule->name, rule->action,
                   &rule->left) != 4) {
            fprintf(stderr, "client_shim: bad rule '%s'\n", at);
            abort();
        }
    }
}

static bool ends_in(const char *path, const char *name)
{
    size_t path_bytes = strlen(path), name_bytes = strlen(name);

    return path_bytes >= name_bytes && strcmp(path + path_bytes - name_bytes, name) == 0;
}

/* The directory of `path` gets another name. */
static void move_directory(const char *path)
{
    char from[PATH_MAX], to[PATH_MAX];

    snprintf(from, sizeof(from), "%.*s", (int)(strrchr(path, '/') - path), path);
    snprintf(to, sizeof(to), "%.4000s.away", from);
    if (rename(from, to) < 0)
        abort();
}

static enum verdict judge(const char *operation, const char *path)
{
    for (int i = 0; i < rule_count; i++) {
        struct rule *rule = &rules[i];

        if (rule->left <= 0 || strcmp(rule->operation, operation) != 0 ||
            !ends_in(path, rule->name))
            continue;
        rule->left--;
        while (strcmp(rule->action, "hang") == 0)
            pause();
        if (strcmp(rule->action, "late") == 0)
            return LATE;
        if (strcmp(rule->action, "repeated") == 0)
            return REPEATED;
        if (strcmp(rule->action, "taken") == 0)
            return TAKEN;
        if (strcmp(rule->action, "away") == 0) {
            move_directory(path);
            return PASS;
        }
        errno = atoi(rule->action);
        return FAIL;
    }
    return PASS;
}

static enum verdict judge_fd(const char *operation, int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t bytes;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    bytes = readlink(link, path, sizeof(path) - 1);
    if (bytes < 0)
        return PASS;
    path[bytes] = '\0';
    return judge(operation, path);
}

/* Calls the C library's own, or fails as a rule says. */
#define RETURN_CALL(judgement, type, name, parameters, arguments)                                  \
    do {                                                                                           \
        type(*next) parameters = (type(*) parameters)dlsym(RTLD_NEXT, name);                       \
        enum verdict judged = (judgement);                                                         \
        type result;                                                                               \
        if (judged == FAIL)                                                                        \
            return -1;                                                                             \
        result = next arguments;                                                                   \
        if (judged != LATE && judged != REPEATED)                                                  \
            return result;                                                                         \
        errno = judged == LATE ? EIO : ENOENT;                                                     \
        return -1;                                                                                 \
    } while (0)

static int open_any(const char *name, const char *path, int flags, mode_t mode)
{
    RETURN_CALL(judge(flags & O_ACCMODE ? "create" : "open", path), int, name,
                (const char *, int, ...), (path, flags, mode));
}

int open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
    return open_any("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
    return open_any("open64", path, flags, mode);
}

ssize_t read(int fd, void *buffer, size_t bytes)
{
    RETURN_CALL(judge_fd("read", fd), ssize_t, "read", (int, void *, size_t), (fd, buffer, bytes));
}

ssize_t __read_chk(int fd, void *buffer, size_t bytes, size_t room)
{
    RETURN_CALL(judge_fd("read", fd), ssize_t, "__read_chk", (int, void *, size_t, size_t),
                (fd, buffer, bytes, room));
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off_t offset)
{
    ssize_t (*next)(int, const void *, size_t, off_t) =
        (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    int (*cut)(int, off_t) = (int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate64");
    enum verdict judged = judge_fd("write", fd);
    ssize_t result = judged == FAIL ? -1 : next(fd, buffer, bytes, offset);

    if (judged == TAKEN && cut(fd, 0) < 0)
        abort();
    if (judged != LATE)
        return result;
    errno = EIO;
    return -1;
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    return pwrite64(fd, buffer, bytes, offset);
}

int ftruncate64(int fd, off_t bytes)
{
    RETURN_CALL(judge_fd("truncate", fd), int, "ftruncate64", (int, off_t), (fd, bytes));
}

int ftruncate(int fd, off_t bytes)
{
    return ftruncate64(fd, bytes);
}

int fsync(int fd)
{
    RETURN_CALL(judge_fd("fsync", fd), int, "fsync", (int), (fd));
}

/* A descriptor is gone after close() even when it fails. */
int close(int fd)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "close");
    enum verdict judged = judge_fd("close", fd);
    int error = judged == LATE ? EIO : errno;

    if (judged == PASS)
        return next(fd);
    next(fd);
    errno = error;
    return -1;
}

int rename(const char *from, const char *to)
{
    RETURN_CALL(judge("rename", to), int, "rename", (const char *, const char *), (from, to));
}

int stat64(const char *path, struct stat64 *info)
{
    RETURN_CALL(judge("stat", path), int, "stat64", (const char *, struct stat64 *), (path, info));
}

int stat(const char *path, struct stat *info)
{
    return stat64(path, (struct stat64 *)info);
}

int clock_gettime(clockid_t id, struct timespec *time)
{
    int (*next)(clockid_t, struct timespec *) =
        (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *shift = getenv("VGPU_SHIM_CLOCK_S");
    int result = next(id, time);

    if (id == CLOCK_REALTIME && shift)
        time->tv_sec += atoi(shift);
    return result;
}
