/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the orders and carries out those that are about calls. */
#include "fake_cuda.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef FAKE_CUDA_VERSION
#define FAKE_CUDA_VERSION 13000
#endif

#define DEFAULT_ORDERS                                                                             \
    {                                                                                              \
        .devices = 1, .version = FAKE_CUDA_VERSION, .bus = 0x65, .memory_bytes = 1ull << 30,       \
        .granule_bytes = 2ull << 20, .pin_bytes = SIZE_MAX, .multiprocessor_threads = 2048,        \
        .queue_depth = 1024, .engines = 1                                                          \
    }

static struct fake_orders orders = DEFAULT_ORDERS;

const struct fake_orders *fake_orders(void)
{
    return &orders;
}

/* --- time --------------------------------------------------------------------------------------
 */

uint64_t fake_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void fake_sleep_ns(uint64_t time_ns)
{
    struct timespec left = {.tv_sec = (time_t)(time_ns / NS_PER_S),
                            .tv_nsec = (long)(time_ns % NS_PER_S)};

    while (time_ns && nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/* --- the file ------------------------------------------------------------------------------------
 */

/* "50ms" */
static uint64_t parse_time_ns(const char *text)
{
    char *unit;
    uint64_t number = strtoull(text, &unit, 10);

    if (strcmp(unit, "us") == 0)
        return number * NS_PER_US;
    if (strcmp(unit, "ms") == 0)
        return number * NS_PER_MS;
    return number * NS_PER_S;
}

static void add_entry(const char *name, char *sizes)
{
    struct fake_entry *entry = &orders.entries[orders.entry_count];
    size_t offset = 0;
    char *word;

    if (orders.entry_count == FAKE_RULES_MAX)
        return;
    orders.entry_count++;
    *entry = (struct fake_entry){.count = 0};
    snprintf(entry->name, sizeof(entry->name), "%s", name);
    while ((word = strsep(&sizes, " \t\n")) && entry->count < FAKE_PARAMETERS_MAX) {
        size_t bytes = strtoul(word, NULL, 10);

        if (!bytes)
            continue;
        offset = (offset + bytes - 1) / bytes * bytes;
        entry->offsets[entry->count] = offset;
        entry->sizes[entry->count++] = bytes;
        offset += bytes;
    }
}

static bool add_rule(const char *word, const char *name, const char *first, const char *second)
{
    static const char *const names[] = {
        [RULE_FAIL] = "fail", [RULE_DELAY] = "delay", [RULE_BUSY] = "busy",
        [RULE_HANG] = "hang", [RULE_CRASH] = "crash", [RULE_SKIP] = "skip",
    };

    for (size_t kind = 0; kind < VGPU_ARRAY_LENGTH(names); kind++) {
        struct fake_rule *rule = &orders.rules[orders.rule_count];

        if (strcmp(word, names[kind]) != 0 || orders.rule_count == FAKE_RULES_MAX)
            continue;
        *rule = (struct fake_rule){.kind = (enum fake_rule_kind)kind};
        snprintf(rule->name, sizeof(rule->name), "%s", name);
        rule->number = strtoull(first, NULL, 10);
        rule->code = (cuda_result)strtol(second, NULL, 10);
        rule->time_ns = parse_time_ns(first);
        orders.rule_count++;
        return true;
    }
    return false;
}

static void set_value(const char *word, const char *value, const char *second)
{
    uint64_t number = strtoull(value, NULL, 10);

    if (strcmp(word, "devices") == 0)
        orders.devices = number < FAKE_DEVICES_MAX ? (int)number : FAKE_DEVICES_MAX;
    else if (strcmp(word, "bus") == 0)
        orders.bus = (int)number;
    else if (strcmp(word, "memory_bytes") == 0)
        orders.memory_bytes = number;
    else if (strcmp(word, "granule_bytes") == 0)
        orders.granule_bytes = number ? number : 1;
    else if (strcmp(word, "context_bytes") == 0)
        orders.context_bytes = number;
    else if (strcmp(word, "pin_bytes") == 0)
        orders.pin_bytes = number;
    else if (strcmp(word, "code_bytes") == 0)
        orders.code_bytes = number;
    else if (strcmp(word, "multiprocessor_threads") == 0)
        orders.multiprocessor_threads = (int)number;
    else if (strcmp(word, "version") == 0)
        orders.version = (int)number;
    else if (strcmp(word, "lost") == 0)
        orders.lost = !number ? 0 : second[0] ? (cuda_result)strtol(second, NULL, 10) : 999;
    else if (strcmp(word, "only") == 0)
        orders.only = (pid_t)number;
    else if (strcmp(word, "queue_depth") == 0)
        orders.queue_depth = number ? (unsigned)number : 1;
    else if (strcmp(word, "engines") == 0)
        orders.engines = (unsigned)number;
    else if (strcmp(word, "keep") == 0)
        orders.keep = number != 0;
    else if (strcmp(word, "trace") == 0)
        orders.trace = number != 0;
    else if (strcmp(word, "contexts") == 0)
        orders.contexts = number != 0;
    else if (strcmp(word, "models") == 0)
        orders.models = number != 0;
    else if (strcmp(word, "images") == 0)
        orders.images = number != 0;
    else if (strcmp(word, "others_free") == 0)
        orders.others_free_bytes = strtoll(value, NULL, 10);
    else if (strcmp(word, "forge") == 0)
        orders.forge = number != 0;
    else if (strcmp(word, "delay_us") == 0)
        orders.kernel_us = number;
    else if (strcmp(word, "log") == 0)
        orders.log = number != 0;
    else
        fprintf(stderr, "fake libcuda: unknown order '%s'\n", word);
}

static void obey(char *line)
{
    char word[FAKE_NAME_BYTES] = "", name[FAKE_NAME_BYTES] = "", first[32] = "", second[32] = "";
    int rest = 0;

    if (sscanf(line, "%127s %127s%n %31s %31s", word, name, &rest, first, second) < 2 ||
        word[0] == '#')
        return;
    if (strcmp(word, "entry") == 0)
        add_entry(name, line + rest);
    else if (!add_rule(word, name, first, second))
        set_value(word, name, first);
}

static void read_orders(const char *path)
{
    FILE *file = fopen(path, "re");
    char line[1024];

    orders = (struct fake_orders)DEFAULT_ORDERS;
    while (file && fgets(line, sizeof(line), file))
        obey(line);
    if (file)
        fclose(file);
}

bool fake_path(char path[PATH_MAX], const char *ending)
{
    Dl_info info;

    return dladdr((void *)&orders, &info) &&
           snprintf(path, PATH_MAX, "%s%s", info.dli_fname, ending) < PATH_MAX;
}

/* Where the file cannot be looked at, as in a sandbox, what was read last stays. */
static void refresh(void)
{
    static struct stat known;
    struct stat now = {0};
    char path[PATH_MAX];

    if (!fake_path(path, ".conf") || (stat(path, &now) < 0 && errno != ENOENT))
        return;
    if (now.st_mtim.tv_sec == known.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == known.st_mtim.tv_nsec && now.st_size == known.st_size &&
        now.st_ino == known.st_ino)
        return;
    known = now;
    read_orders(path);
}

/* --- calls
 * ----------------------------------------------------------------------------------------- */

#define FAKE_NAME(member, symbol, need, parameters) #symbol,

/* How often the function was called, this time included. */
static uint64_t count_call(const char *function)
{
    static const char *const names[] = {CUDA_FUNCTIONS(FAKE_NAME)};
    static uint64_t counts[VGPU_ARRAY_LENGTH(names)];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        if (strcmp(names[i], function) == 0)
            return ++counts[i];
    }
    abort();
}

void fake_note(const char *word)
{
    static int fd = -1;
    char path[PATH_MAX], line[FAKE_NAME_BYTES + 32];
    int length = snprintf(line, sizeof(line), "%d %s\n", (int)getpid(), word);

    if (fd < 0 && fake_path(path, ".log"))
        fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0 && write(fd, line, (size_t)length) < 0)
        fprintf(stderr, "fake libcuda: the log cannot be written\n");
}

static const struct fake_rule *find_rule(enum fake_rule_kind kind, const char *name,
                                         uint64_t number)
{
    for (size_t i = 0; i < orders.rule_count && (!orders.only || orders.only == getpid()); i++) {
        const struct fake_rule *rule = &orders.rules[i];

        if (rule->kind == kind && strcmp(rule->name, name) == 0 &&
            (kind != RULE_FAIL || !rule->number || rule->number == number))
            return rule;
    }
    return NULL;
}

bool fake_is_ordered(enum fake_rule_kind kind, const char *name)
{
    return find_rule(kind, name, 0) != NULL;
}

uint64_t fake_busy_ns(const char *function)
{
    const struct fake_rule *rule = find_rule(RULE_BUSY, function, 0);

    return rule ? rule->time_ns : 0;
}

static void note_failure(const char *function)
{
    char word[FAKE_NAME_BYTES + 8];

    snprintf(word, sizeof(word), "failed %s", function);
    fake_note(word);
}

/* With the lock: what is wrong with the call, orders apart. */
static cuda_result check_state(enum fake_need need)
{
    cuda_context context = fake_current();

    if (need == NEEDS_NOTHING)
        return CUDA_SUCCESS;
    if (orders.lost)
        return orders.lost;
    if (!fake_is_initialised())
        return CUDA_NOT_INITIALIZED;
    if (need == NEEDS_INIT)
        return CUDA_SUCCESS;
    if (!context)
        return CUDA_INVALID_CONTEXT;
    return fake_object_is(KIND_CONTEXT, context) ? context->fault : CUDA_CONTEXT_IS_DESTROYED;
}

cuda_result fake_enter(const char *function, enum fake_need need)
{
    const struct fake_rule *fail, *delay;
    uint64_t number, delay_ns;
    cuda_result result;
    bool logged;

    pthread_mutex_lock(&fake_lock);
    refresh();
    number = count_call(function);
    logged = orders.log && (!orders.only || orders.only == getpid());
    if (logged)
        fake_note(function);
    if (fake_is_ordered(RULE_CRASH, function))
        raise(SIGSEGV);
    fail = find_rule(RULE_FAIL, function, number);
    if (fail && logged)
        note_failure(function);
    delay = find_rule(RULE_DELAY, function, number);
    result = fail ? fail->code : check_state(need);
    delay_ns = delay ? delay->time_ns : 0;
    if (fake_is_ordered(RULE_HANG, function))
        delay_ns = FAKE_UNLIMITED_NS;
    pthread_mutex_unlock(&fake_lock);
    while (delay_ns == FAKE_UNLIMITED_NS)
        pause();
    fake_sleep_ns(delay_ns);
    return result;
}
