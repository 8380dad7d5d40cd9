/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `vgpu-client bench`: what this guest gets, each measured for --seconds.
 *
 *   poll    ping by ping, spinning for the answer
 *   sleep   ping by ping, asleep until the interrupt
 *   wake    the same with pauses: the worker sleeps too, so each rings and interrupts
 *   batch   pings, --depth at once, two such batches in flight
 *   copy    heap and other memory to the device and back
 *   memcpy  this guest's own memory, to compare with
 *   file    pings through the share
 *   idle    an open session in which nothing happens: this process' own CPU time
 */
#include "client.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define SAMPLES_MAX (1u << 20)
#define COPY_MAX_BYTES (8u << 20)
#define POLL_SPIN_US 100000
#define LOOK_NS 1000000000
#define PAUSE_US 1000 /* longer than a worker spins */
#define VALUES_MAX 24
#define BATCH_MAX 512 /* two are in flight */

struct value {
    const char *key; /* of the JSON object; its end is the unit */
    const char *text;
    double number;
};

struct bench {
    const struct options *options;
    struct window window;
    struct value values[VALUES_MAX];
    unsigned count;
    char skipped[512]; /* why the window's or the share's were left out */
    struct failure failure;
};

struct mode {
    const char *name;
    bool needs_window;
    int (*run)(struct bench *bench);
};

static void note(struct bench *bench, const char *key, const char *text, double number)
{
    if (bench->count < VALUES_MAX)
        bench->values[bench->count++] = (struct value){key, text, number};
}

static int failed(struct bench *bench, const struct vgpu_problem *problem)
{
    return window_failure(problem, &bench->failure);
}

/* A session of its own: how it waits is a matter of opening. */
static int open_session(struct bench *bench, int spin_us)
{
    struct options options = *bench->options;
    char reason[sizeof(bench->window.reason)];

    memcpy(reason, bench->window.reason, sizeof(reason));
    window_close(&bench->window);
    options.spin_us = spin_us;
    if (window_open(&options, &bench->window, &bench->failure) < 0)
        return -1;
    memcpy(bench->window.reason, reason, sizeof(reason));
    return 0;
}

/* --- ping by ping -------------------------------------------------------------------- */

static int compare_samples(const void *a, const void *b)
{
    const uint32_t *first = a, *second = b;

    return (*first > *second) - (*first < *second);
}

static double quantile_us(const uint32_t *sorted, size_t count, double part)
{
    size_t at = (size_t)((double)count * part);

    return sorted[at < count ? at : count - 1] / 1e3;
}

/* How one mode pings. */
struct ping_mode {
    int spin_us;
    useconds_t pause_us;
    const char *keys[3];
    const char *texts[3];
};

/* Times between answers, of which one ping takes all; without the pauses. */
static int sample_pings(struct bench *bench, const struct ping_mode *mode, uint32_t *samples,
                        size_t *ret_count)
{
    struct vgpu_session *session = bench->window.session;
    struct vgpu_problem problem;
    int64_t begin_ns, last_ns, now_ns;
    size_t count = 0;

    for (int i = 0; i < 100; i++) {
        if (vgpu_ping(session, &problem) < 0)
            return failed(bench, &problem);
    }
    begin_ns = last_ns = clock_now_ns();
    do {
        if (mode->pause_us) {
            usleep(mode->pause_us);
            last_ns = clock_now_ns();
        }
        if (vgpu_ping(session, &problem) < 0)
            return failed(bench, &problem);
        now_ns = clock_now_ns();
        samples[count++] =
            now_ns - last_ns < UINT32_MAX ? (uint32_t)(now_ns - last_ns) : UINT32_MAX;
        last_ns = now_ns;
    } while (count < SAMPLES_MAX && now_ns - begin_ns < bench->options->bench_ns);
    *ret_count = count;
    return 0;
}

static int run_pings(struct bench *bench, const struct ping_mode *mode)
{
    static const double parts[3] = {0.5, 0.99, 0.999};
    uint32_t *samples = malloc(SAMPLES_MAX * sizeof(*samples));
    size_t count = 0;
    int result = -1;

    if (!samples)
        return failure_set(&bench->failure, FAILURE_SYSTEM, "out of memory");
    if (open_session(bench, mode->spin_us) == 0 &&
        sample_pings(bench, mode, samples, &count) == 0) {
        qsort(samples, count, sizeof(*samples), compare_samples);
        for (int i = 0; i < 3; i++)
            note(bench, mode->keys[i], mode->texts[i], quantile_us(samples, count, parts[i]));
        result = 0;
    }
    free(samples);
    return result;
}

static int run_poll(struct bench *bench)
{
    static const struct ping_mode mode = {
        .spin_us = POLL_SPIN_US,
        .keys = {"ping_poll_p50_us", "ping_poll_p99_us", "ping_poll_p999_us"},
        .texts = {"ping, spinning: median", "  99 % within", "  99.9 % within"}};

    return run_pings(bench, &mode);
}

static int run_sleep(struct bench *bench)
{
    static const struct ping_mode mode = {
        .keys = {"ping_sleep_p50_us", "ping_sleep_p99_us", "ping_sleep_p999_us"},
        .texts = {"ping, sleeping: median", "  99 % within", "  99.9 % within"}};

    return run_pings(bench, &mode);
}

static int run_wake(struct bench *bench)
{
    static const struct ping_mode mode = {
        .pause_us = PAUSE_US,
        .keys = {"ping_wake_p50_us", "ping_wake_p99_us", "ping_wake_p999_us"},
        .texts = {"ping, both asleep before: median", "  99 % within", "  99.9 % within"}};

    return run_pings(bench, &mode);
}

/* --- batches ----------------------------------------------------------------------------- */

static int submit_batch(struct bench *bench, vgpu_ticket *ret_last)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct vgpu_session *session = bench->window.session;
    struct vgpu_problem problem;
    int result = 0;

    vgpu_batch_begin(session);
    for (uint32_t i = 0; result == 0 && i < bench->options->bench_depth; i++)
        result = vgpu_submit(session, &ping, NULL, NULL, ret_last, &problem);
    vgpu_batch_end(session);
    return result < 0 ? failed(bench, &problem) : 0;
}

/* Waits for a batch's last and fetches the others, which were answered before it;
 * what is there of the next batch stays. */
static int fetch_batch(struct bench *bench, vgpu_ticket last, uint64_t *answered)
{
    static struct vgpu_result results[BATCH_MAX];
    struct vgpu_problem problem;
    int count;

    if (vgpu_wait(bench->window.session, last, VGPU_FOREVER, &results[0], &problem) < 0)
        return failed(bench, &problem);
    count =
        vgpu_poll(bench->window.session, results, (int)bench->options->bench_depth - 1, &problem);
    if (count < 0)
        return failed(bench, &problem);
    *answered += (uint64_t)count + 1;
    return 0;
}

static int run_batch(struct bench *bench)
{
    vgpu_ticket earlier = 0, later = 0;
    uint64_t answered = 0;
    int64_t begin_ns, now_ns;

    if (open_session(bench, -1) < 0)
        return -1;
    begin_ns = clock_now_ns();
    if (submit_batch(bench, &earlier) < 0)
        return -1;
    do {
        if (submit_batch(bench, &later) < 0 || fetch_batch(bench, earlier, &answered) < 0)
            return -1;
        earlier = later;
        now_ns = clock_now_ns();
    } while (now_ns - begin_ns < bench->options->bench_ns);
    note(bench, "pings_per_s", "pings in batches, a second",
         (double)answered * 1e9 / (double)(now_ns - begin_ns));
    return 0;
}

/* --- copies ---------------------------------------------------------------------------------- */

struct copy {
    struct bench *bench;
    uint64_t address;
    uint64_t bytes;
    void *memory;
    void *target; /* memcpy's */
};

static int copy_in(const struct copy *copy, struct vgpu_problem *problem)
{
    return vgpu_copy_in(copy->bench->window.session, copy->address, copy->memory, copy->bytes,
                        problem);
}

static int copy_out(const struct copy *copy, struct vgpu_problem *problem)
{
    return vgpu_copy_out(copy->bench->window.session, copy->memory, copy->address, copy->bytes,
                         problem);
}

static int copy_here(const struct copy *copy, struct vgpu_problem *problem)
{
    (void)problem;
    memcpy(copy->target, copy->memory, copy->bytes);
    __asm__ __volatile__("" : : "r"(copy->target) : "memory");
    return 0;
}

static int measure_copy(const struct copy *copy,
                        int (*run)(const struct copy *copy, struct vgpu_problem *problem),
                        const char *key, const char *text)
{
    struct bench *bench = copy->bench;
    struct vgpu_problem problem;
    uint64_t moved = 0;
    int64_t begin_ns, now_ns;

    if (run(copy, &problem) < 0) /* pages are there after it */
        return failed(bench, &problem);
    begin_ns = clock_now_ns();
    do {
        if (run(copy, &problem) < 0)
            return failed(bench, &problem);
        moved += copy->bytes;
        now_ns = clock_now_ns();
    } while (now_ns - begin_ns < bench->options->bench_ns / 2);
    note(bench, key, text, (double)moved / (double)(now_ns - begin_ns));
    return 0;
}

static int measure_copies(struct copy *copy)
{
    void *heap = vgpu_heap_alloc(copy->bench->window.session, copy->bytes);
    void *other = calloc(1, copy->bytes);
    int result = -1;

    copy->memory = heap;
    if (!heap || !other)
        failure_set(&copy->bench->failure, FAILURE_SYSTEM, "no memory for %llu bytes to copy",
                    (unsigned long long)copy->bytes);
    else if (measure_copy(copy, copy_in, "copy_gbps", "heap to device, GB/s") == 0 &&
             measure_copy(copy, copy_out, "copy_out_gbps", "device to heap, GB/s") == 0)
        result = 0;
    copy->memory = other;
    if (result == 0 &&
        (measure_copy(copy, copy_in, "copy_other_gbps", "other memory to device, GB/s") < 0 ||
         measure_copy(copy, copy_out, "copy_other_out_gbps", "device to other memory, GB/s") < 0))
        result = -1;
    free(other);
    return result;
}

static int run_copy(struct bench *bench)
{
    struct copy copy = {.bench = bench};
    struct vgpu_problem problem;

    if (open_session(bench, -1) < 0)
        return -1;
    /* Half of the heap at most: the other memory goes through the rest. */
    copy.bytes = bench->window.info.heap_bytes / 2 & ~4095ull;
    if (copy.bytes > COPY_MAX_BYTES)
        copy.bytes = COPY_MAX_BYTES;
    if (vgpu_memory_alloc(bench->window.session, copy.bytes, &copy.address, &problem) < 0)
        return failed(bench, &problem);
    return measure_copies(&copy);
}

static int run_memcpy(struct bench *bench)
{
    struct copy copy = {.bench = bench, .bytes = COPY_MAX_BYTES};
    int result = -1;

    copy.memory = calloc(1, copy.bytes);
    copy.target = calloc(1, copy.bytes);
    if (copy.memory && copy.target)
        result = measure_copy(&copy, copy_here, "memcpy_gbps", "memcpy in this guest, GB/s");
    else
        failure_set(&bench->failure, FAILURE_SYSTEM, "out of memory");
    free(copy.memory);
    free(copy.target);
    return result;
}

/* --- files -------------------------------------------------------------------------------------
 */

static int exchange_pings(struct bench *bench, const struct identity *identity)
{
    char line[VGPU_REQUEST_MAX_BYTES + 2];
    int64_t begin_ns = clock_now_ns(), now_ns;
    uint64_t count = 0;

    exchange_format_line(identity, "PING", line, sizeof(line));
    do {
        struct exchange exchange = {.directory = identity->directory,
                                    .line = line,
                                    .timeout_ns = bench->options->timeout_ns,
                                    .in_place = bench->options->in_place,
                                    .quiet = true};

        if (exchange_run(&exchange, &bench->failure) < 0)
            return -1;
        count++;
        now_ns = clock_now_ns();
    } while (now_ns - begin_ns < bench->options->bench_ns);
    note(bench, "file_pings_per_s", "pings through the share, a second",
         (double)count * 1e9 / (double)(now_ns - begin_ns));
    return 0;
}

static int run_file(struct bench *bench)
{
    struct identity identity;

    window_close(&bench->window);
    if (guard_catch_signals(&bench->failure) < 0 ||
        identity_find(bench->options, &identity, &bench->failure) < 0)
        return -1;
    return exchange_pings(bench, &identity);
}

/* --- nothing ---------------------------------------------------------------------------- */

static double cpu_used_ns(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e9 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e3;
}

/* A loss is told by the state alone, as long as nothing is in flight. */
static int check_session(struct bench *bench)
{
    struct vgpu_session_info info;
    struct vgpu_problem problem;

    if (vgpu_poll(bench->window.session, NULL, 0, &problem) < 0)
        return failed(bench, &problem);
    vgpu_session_info(bench->window.session, &info);
    if (info.state != VGPU_SESSION_LOST)
        return 0;
    failure_set(&bench->failure, FAILURE_WINDOW_STATUS, "the session ended while it was idle: %s",
                vgpu_status_text(VGPU_DEVICE_LOST));
    return failure_remedy(&bench->failure, "try again; the mediator's log on the host says more");
}

/* As an event loop does it; it looks each second, too, whether there is a session still. */
static int idle_until(struct bench *bench, int64_t end_ns)
{
    struct vgpu_session *session = bench->window.session;
    struct pollfd answers = {.fd = vgpu_fd(session), .events = POLLIN};
    int64_t left_ns;

    while ((left_ns = end_ns - clock_now_ns()) > 0) {
        if (vgpu_arm(session) == 0)
            poll(&answers, 1, (int)(left_ns < LOOK_NS ? left_ns / 1000000 + 1 : LOOK_NS / 1000000));
        if (check_session(bench) < 0)
            return -1;
    }
    return 0;
}

static int run_idle(struct bench *bench)
{
    struct vgpu_problem problem;
    int64_t begin_ns;
    double before_ns;

    if (open_session(bench, -1) < 0)
        return -1;
    if (vgpu_ping(bench->window.session, &problem) < 0) /* now its worker has a grant */
        return failed(bench, &problem);
    before_ns = cpu_used_ns();
    begin_ns = clock_now_ns();
    if (idle_until(bench, begin_ns + bench->options->bench_ns) < 0)
        return -1;
    note(bench, "idle_cpu_pct", "open and idle, % of a processor",
         (cpu_used_ns() - before_ns) * 100 / (double)(clock_now_ns() - begin_ns));
    return 0;
}

/* --- the whole
 * ------------------------------------------------------------------------------------ */

static const struct mode modes[] = {
    {"poll", true, run_poll},   {"sleep", true, run_sleep}, {"wake", true, run_wake},
    {"batch", true, run_batch}, {"copy", true, run_copy},   {"memcpy", false, run_memcpy},
    {"idle", true, run_idle},   {"file", false, run_file},
};

bool bench_knows(const char *mode)
{
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(mode, modes[i].name) == 0)
            return true;
    }
    return strcmp(mode, "all") == 0;
}

static void skip(struct bench *bench, const char *why)
{
    size_t used = strlen(bench->skipped);

    snprintf(bench->skipped + used, sizeof(bench->skipped) - used, "%s%.240s", used ? "; " : "",
             why);
}

/* With all modes, what cannot be measured is left out and told. */
static int run_modes(struct bench *bench)
{
    const char *wanted = bench->options->bench_mode;
    bool is_all = !wanted || strcmp(wanted, "all") == 0;

    if (!bench->window.session)
        skip(bench, bench->window.reason);
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        const struct mode *mode = &modes[i];
        bool has_window = bench->window.session != NULL;

        if (!is_all && strcmp(wanted, mode->name) != 0)
            continue;
        if (is_all && ((mode->needs_window && !has_window) ||
                       (mode->run == run_file && bench->options->channel == CHANNEL_WINDOW)))
            continue;
        if (mode->needs_window && !has_window) {
            failure_set(&bench->failure, FAILURE_WINDOW_MISSING, "mode %s needs the window: %.400s",
                        mode->name, bench->window.reason);
            return failure_remedy(&bench->failure, "see `vgpu-client doctor`");
        }
        if (mode->run(bench) == 0)
            continue;
        if (!is_all || mode->run != run_file)
            return -1;
        skip(bench, bench->failure.text);
        bench->failure = (struct failure){0};
    }
    return 0;
}

static void print_table(const struct bench *bench, const struct window *window)
{
    if (window->session)
        window_print(window, stdout);
    for (unsigned i = 0; i < bench->count; i++)
        printf("%-34s %14.2f\n", bench->values[i].text, bench->values[i].number);
    if (bench->skipped[0])
        printf("not measured  %s\n", bench->skipped);
}

static void print_json(const struct bench *bench, const struct window *window,
                       const struct failure *failure)
{
    struct json json;

    json_begin(&json, stdout);
    if (window->session)
        window_json(window, &json);
    for (unsigned i = 0; i < bench->count; i++)
        json_number(&json, bench->values[i].key, bench->values[i].number);
    json_string(&json, "not_measured", bench->skipped);
    json_end(&json, failure->exit_code, failure->code == FAILURE_NONE ? NULL : failure);
}

int command_bench(const struct options *options)
{
    struct bench bench = {.options = options};
    struct window first;

    if (window_choose(options, &bench.window, &bench.failure) < 0)
        return command_fail(options, &bench.failure);
    first = bench.window;
    run_modes(&bench);
    window_close(&bench.window);
    if (options->json) {
        print_json(&bench, &first, &bench.failure);
        return bench.failure.exit_code;
    }
    print_table(&bench, &first);
    return bench.failure.code == FAILURE_NONE ? 0 : command_fail(options, &bench.failure);
}
