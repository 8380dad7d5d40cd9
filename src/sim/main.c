/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-sim: reads the scenario, runs it once for each policy, tells what came of it. */
#include "sim/sim.h"

#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    EXIT_USAGE = 2,
    PROGRESS_INTERVAL_MS = 500,
    CHANGES_MAX = 64,
};

enum {
    KEY_JSON = 0x100,
    KEY_BRIEF,
    KEY_SVG,
    KEY_SEED,
    KEY_DURATION,
    KEY_WRITE_TRACE,
    KEY_PROGRESS,
};

const char *argp_program_version = "vgpu-sim " VGPU_PACKAGE_VERSION;

static const struct argp_option option_table[] = {
    {"policy", 'P', "LIST", 0,
     "Policies to compare, each in a run of its own: strict,wfq,fifo; a key of [simulation] may "
     "follow "
     "each, as strict:grant_us=500",
     1},
    {"set", 's', "KEY=VALUE", 0, "A key of [simulation], over the scenario's", 1},
    {"load", 'l', "NAME,KEY=VALUE,...", 0, "A load more, as a section [load NAME]", 1},
    {"pool", 'p', "X,KEY=VALUE,...", 0, "A pool more, as a section [pool X]", 1},
    {"trace", 't', "FILE", 0, "Replay the operations that this CSV file tells of", 1},
    {"seed", KEY_SEED, "N", 0, "As --set=seed=N", 1},
    {"duration-ms", KEY_DURATION, "N", 0, "As --set=duration_ms=N", 1},
    {"json", KEY_JSON, NULL, 0, "Print one JSON object", 2},
    {"brief", KEY_BRIEF, NULL, 0, "Print all runs beside each other, in three tables", 2},
    {"svg", KEY_SVG, "DIR", 0, "Write latency.svg, shares.svg and depth.svg into this directory",
     2},
    {"write-trace", KEY_WRITE_TRACE, "FILE", 0,
     "Write what arrives in the first run as a CSV file for --trace", 2},
    {"progress", KEY_PROGRESS, NULL, 0,
     "Tell on standard error how far it is and how fast it was (default: on a terminal, how far)",
     2},
    {0},
};

static const char option_text[] =
    "Runs the scheduler of vgpu-mediator in simulated time.\v"
    "SCENARIO is a file of the sections [simulation], [pool X] and [load NAME]; vgpu-sim(1) says "
    "what may stand there.  The same seed gives the same output.\n\n"
    "Exit status: 0 success, 1 a file cannot be read or written, or says nothing sensible, 2 "
    "usage.";

struct options {
    struct sim_scenario *scenario;
    const char *path, *policies, *trace, *svg, *write_trace;
    struct change {
        int key;
        const char *text;
    } changes[CHANGES_MAX]; /* in the order in which they came */
    unsigned change_count;
    bool json, brief, progress;
};

/* What is told while it runs. */
struct telling {
    FILE *trace;
    bool progress, terminal;
    uint64_t began_ns; /* of processor time */
    uint64_t told_ns;
    const char *label;
};

/* --- options ----------------------------------------------------------------------------- */

static error_t take_change(struct options *options, int key, const char *text,
                           struct argp_state *state)
{
    if (options->change_count == CHANGES_MAX)
        argp_error(state, "--set, --load and --pool: more than %u are too many", CHANGES_MAX);
    else
        options->changes[options->change_count++] = (struct change){.key = key, .text = text};
    return 0;
}

static error_t take_argument(struct options *options, char *value, struct argp_state *state)
{
    if (options->path)
        argp_error(state, "unexpected argument '%s': one scenario is enough", value);
    options->path = value;
    return 0;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct options *options = state->input;

    switch (key) {
    case 'P':
        options->policies = value;
        return 0;
    case 's':
    case 'l':
    case 'p':
    case KEY_SEED:
    case KEY_DURATION:
        return take_change(options, key, value, state);
    case 't':
        options->trace = value;
        return 0;
    case KEY_JSON:
        options->json = true;
        return 0;
    case KEY_BRIEF:
        options->brief = true;
        return 0;
    case KEY_SVG:
        options->svg = value;
        return 0;
    case KEY_WRITE_TRACE:
        options->write_trace = value;
        return 0;
    case KEY_PROGRESS:
        options->progress = true;
        return 0;
    case ARGP_KEY_ARG:
        return take_argument(options, value, state);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int set_key(struct sim_scenario *scenario, const char *key, const char *value,
                   struct vgpu_error *error)
{
    char assignment[128];

    snprintf(assignment, sizeof(assignment), "%s=%s", key, value);
    return sim_scenario_set(scenario, assignment, error);
}

static int make_change(struct sim_scenario *scenario, const struct change *change,
                       struct vgpu_error *error)
{
    switch (change->key) {
    case 'l':
        return sim_scenario_load(scenario, change->text, error);
    case 'p':
        return sim_scenario_pool(scenario, change->text, error);
    case KEY_SEED:
        return set_key(scenario, "seed", change->text, error);
    case KEY_DURATION:
        return set_key(scenario, "duration_ms", change->text, error);
    default:
        return sim_scenario_set(scenario, change->text, error);
    }
}

/* The files first, whatever stood where on the command line, then what changes them.  The exit
 * status. */
static int read_all(const struct options *options, struct vgpu_error *error)
{
    struct sim_scenario *scenario = options->scenario;

    if (options->path && sim_scenario_read(scenario, options->path, error) < 0)
        return EXIT_FAILURE;
    if (options->trace && sim_trace_read(scenario, options->trace, error) < 0)
        return EXIT_FAILURE;
    for (unsigned i = 0; i < options->change_count; i++) {
        if (make_change(scenario, &options->changes[i], error) < 0)
            return EXIT_USAGE;
    }
    if (sim_scenario_compare(scenario,
                             options->policies ? options->policies
                                               : sched_policy_name(scenario->settings.policy.type),
                             error) < 0)
        return EXIT_USAGE;
    if (sim_scenario_finish(scenario, error) < 0)
        return options->path || options->trace ? EXIT_FAILURE : EXIT_USAGE;
    return EXIT_SUCCESS;
}

/* Pictures are drawn last; a directory that is missing is told before all that is simulated. */
static int check_directory(const char *path, struct vgpu_error *error)
{
    struct stat status;

    if (stat(path, &status) < 0 || (S_ISDIR(status.st_mode) && access(path, W_OK | X_OK) < 0))
        return error_set_errno(error, "cannot write pictures into '%s'", path);
    if (!S_ISDIR(status.st_mode))
        return error_set(error, ENOTDIR, "--svg=%s: expected a directory", path);
    return 0;
}

/* The exit status. */
static int prepare(const struct options *options, struct vgpu_error *error)
{
    int status = read_all(options, error);

    if (status == EXIT_SUCCESS && options->svg && check_directory(options->svg, error) < 0)
        status = EXIT_FAILURE;
    return status;
}

/* --- what is told meanwhile -------------------------------------------------------------- */

/* Of the processor, so that what else runs here does not count. */
static uint64_t processor_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

static void tell_speed(const struct telling *telling, uint64_t events)
{
    double seconds = (double)(processor_ns() - telling->began_ns) / NS_PER_S;

    fprintf(stderr, "%s: %llu events in %.2f s of processor time, %.0f a second\n", telling->label,
            (unsigned long long)events, seconds, (double)events / (seconds > 0 ? seconds : 1));
}

static void on_progress(uint64_t now_ns, uint64_t duration_ns, uint64_t events, void *context)
{
    struct telling *telling = context;
    uint64_t clock_ns = clock_monotonic_ns();
    bool ended = now_ns >= duration_ns;

    if (!ended && clock_ns < telling->told_ns + PROGRESS_INTERVAL_MS * NS_PER_MS)
        return;
    telling->told_ns = clock_ns;
    if (telling->terminal)
        fputs("\r\033[K", stderr);
    if (!ended)
        fprintf(stderr, "%s: %3.0f %%%s", telling->label,
                100 * (double)now_ns / (double)duration_ns, telling->terminal ? "" : "\n");
    else if (telling->progress)
        tell_speed(telling, events);
}

static void on_arrived(uint64_t now_ns, uint32_t vm_id, char pool, unsigned priority,
                       uint32_t weight, uint64_t job_us, void *context)
{
    const struct telling *telling = context;

    fprintf(telling->trace, "%llu,%u,%c,%u,%u,arrive,%llu\n",
            (unsigned long long)(now_ns / NS_PER_US), vm_id, pool, priority, weight,
            (unsigned long long)job_us);
}

static FILE *open_trace(const char *path)
{
    FILE *file = fopen(path, "we");

    if (!file) {
        fprintf(stderr, "vgpu-sim: cannot write trace '%s': %s\n", path, strerror(errno));
        return NULL;
    }
    fputs("time_us,vm,pool,priority,weight,event,job_us\n", file);
    return file;
}

static int close_trace(FILE *file, const char *path)
{
    bool failed = ferror(file) != 0;

    if (fclose(file) == 0 && !failed)
        return 0;
    fprintf(stderr, "vgpu-sim: cannot write trace '%s': %s\n", path, strerror(errno));
    return -1;
}

/* --- runs -------------------------------------------------------------------------------- */

static struct sim_result *run_one(const struct options *options, const struct sim_variant *variant,
                                  FILE *trace)
{
    struct telling telling = {.trace = trace,
                              .progress = options->progress,
                              .terminal = isatty(STDERR_FILENO) != 0,
                              .began_ns = processor_ns(),
                              .told_ns = clock_monotonic_ns(),
                              .label = variant->label};
    const struct sim_observer observer = {
        .progress = telling.progress || telling.terminal ? on_progress : NULL,
        .arrived = trace ? on_arrived : NULL,
        .context = &telling};
    struct sim_result *result = sim_run(options->scenario, &variant->settings, &observer);

    text_copy(result->label, sizeof(result->label), variant->label);
    return result;
}

static int run_all(const struct options *options, struct sim_result *results[], unsigned count)
{
    FILE *trace = NULL;

    if (options->write_trace && !(trace = open_trace(options->write_trace)))
        return -1;
    for (unsigned i = 0; i < count; i++) {
        results[i] = run_one(options, &options->scenario->variants[i], trace);
        if (trace && close_trace(trace, options->write_trace) < 0)
            return -1;
        trace = NULL;
    }
    return 0;
}

static int tell(const struct options *options, struct sim_result *const results[], unsigned count)
{
    struct vgpu_error error;

    if (options->json) {
        sim_print_json(results, count, stdout);
    } else if (options->brief) {
        sim_print_brief(results, count, stdout);
    } else {
        for (unsigned i = 0; i < count; i++) {
            if (i > 0)
                putchar('\n');
            sim_print(results[i], stdout);
        }
    }
    if (options->svg && sim_plot(results, count, options->svg, &error) < 0) {
        fprintf(stderr, "vgpu-sim: %s\n", error.message);
        return -1;
    }
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    fprintf(stderr, "vgpu-sim: cannot write to standard output: %s\n", strerror(errno));
    return -1;
}

/* The exit status. */
static int simulate(const struct options *options)
{
    struct sim_scenario *scenario = options->scenario;
    struct sim_result *results[SIM_VARIANTS_MAX] = {NULL};
    struct vgpu_error error;
    int status = prepare(options, &error);

    if (status != EXIT_SUCCESS) {
        fprintf(stderr, "vgpu-sim: %s\n", error.message);
        return status;
    }
    if (run_all(options, results, scenario->variant_count) < 0 ||
        tell(options, results, scenario->variant_count) < 0)
        status = EXIT_FAILURE;
    for (unsigned i = 0; i < scenario->variant_count; i++)
        sim_result_free(results[i]);
    return status;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {option_table, parse_option, "[SCENARIO]", option_text};
    struct options options = {.scenario = sim_scenario_new()};
    int status;

    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    status = simulate(&options);
    sim_scenario_free(options.scenario);
    return status;
}
