/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is to be simulated: sections [simulation], [pool X] and [load NAME] of a file, and the same
 * keys in options.  Every key stands once in a table below with what it accepts.
 */
#include "sim/private.h"

#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 198 /* inih cuts longer lines in two without a word */
#define DAY_MS 86400000u
#define DEFAULT_DURATION_MS 10000u
#define JOB_MAX_US 60000000u
#define DEFAULT_POLICY                                                                             \
    ((struct sched_policy_config){.type = SCHED_POLICY_STRICT, .class_weight = {1, 4, 16}})

/* --- keys -------------------------------------------------------------------------------- */

struct choice {
    const char *name;
    int value;
};

struct key {
    const char *name;
    size_t offset;
    uint32_t min, max;            /* of a number */
    const struct choice *choices; /* NULL: a number */
    size_t bytes;                 /* of a choice's field */
};

static const struct choice policies[] = {{"strict", SCHED_POLICY_STRICT},
                                         {"wfq", SCHED_POLICY_WFQ},
                                         {"fifo", SCHED_POLICY_FIFO},
                                         {"round-robin", SCHED_POLICY_ROUND_ROBIN},
                                         {NULL, 0}};
static const struct choice pools_modes[] = {
    {"shared", SCHED_POOLS_SHARED}, {"independent", SCHED_POOLS_INDEPENDENT}, {NULL, 0}};
static const struct choice yes_no[] = {{"yes", true}, {"no", false}, {NULL, 0}};
static const struct choice priorities[] = {{"0", 0},      {"1", 1},    {"2", 2}, {"low", 0},
                                           {"medium", 1}, {"high", 2}, {NULL, 0}};
static const struct choice arrivals[] = {{"poisson", SIM_ARRIVALS_POISSON},
                                         {"bursts", SIM_ARRIVALS_BURSTS},
                                         {"closed", SIM_ARRIVALS_CLOSED},
                                         {NULL, 0}};
static const struct choice sizes[] = {{"fixed", SIM_SIZES_FIXED},
                                      {"exponential", SIM_SIZES_EXPONENTIAL},
                                      {"pareto", SIM_SIZES_PARETO},
                                      {NULL, 0}};

#define NUMBER(structure, field, min_, max_)                                                       \
    {                                                                                              \
        .name = #field, .offset = offsetof(struct structure, field), .min = (min_), .max = (max_)  \
    }
#define CHOICE(structure, field, choices_)                                                         \
    {                                                                                              \
        .name = #field, .offset = offsetof(struct structure, field), .choices = (choices_),        \
        .bytes = sizeof(((struct structure *)NULL)->field)                                         \
    }

#define POLICY_CHOICE(structure, name_, member, choices_)                                          \
    {                                                                                              \
        .name = (name_), .offset = offsetof(struct structure, policy.member),                      \
        .choices = (choices_), .bytes = sizeof(((struct structure *)NULL)->policy.member)          \
    }
#define POLICY_NUMBER(structure, name_, member, min_, max_)                                        \
    {                                                                                              \
        .name = (name_), .offset = offsetof(struct structure, policy.member), .min = (min_),       \
        .max = (max_)                                                                              \
    }
#define CLASS_WEIGHT(structure, name_, class)                                                      \
    POLICY_NUMBER(structure, name_, class_weight[class], 1, SCHED_CLASS_WEIGHT_MAX)
/* What stands in [simulation] and in [pool X]. */
#define POLICY_KEYS(structure)                                                                     \
    POLICY_CHOICE(structure, "policy", type, policies),                                            \
        POLICY_NUMBER(structure, "aging_ms", aging_ms, 0, SCHED_AGING_MAX_MS),                     \
        POLICY_CHOICE(structure, "demand", demand, yes_no),                                        \
        CLASS_WEIGHT(structure, "low_weight", SCHED_CLASS_LOW),                                    \
        CLASS_WEIGHT(structure, "medium_weight", SCHED_CLASS_MEDIUM),                              \
        CLASS_WEIGHT(structure, "high_weight", SCHED_CLASS_HIGH)

static const struct key simulation_keys[] = {
    POLICY_KEYS(sim_settings),
    CHOICE(sim_settings, pools, pools_modes),
    CHOICE(sim_settings, long_grants, yes_no),
    NUMBER(sim_settings, seed, 0, UINT32_MAX),
    NUMBER(sim_settings, duration_ms, 1, DAY_MS),
    NUMBER(sim_settings, window_ms, 1, DAY_MS),
    NUMBER(sim_settings, grant_us, 10, 1000000),
    NUMBER(sim_settings, grant_ops, 1, 1000000),
    NUMBER(sim_settings, grant_inflight, 1, 1000000),
    NUMBER(sim_settings, grant_min_us, 0, 1000000),
    NUMBER(sim_settings, protect_us, 0, 1000000),
    NUMBER(sim_settings, protect_inflight, 0, 1000000),
    NUMBER(sim_settings, protect_ms, 0, 1000000),
    NUMBER(sim_settings, switch_us, 0, 1000000),
    NUMBER(sim_settings, switch_share_percent, 0, 99),
    NUMBER(sim_settings, turn_us, 0, 1000000),
    NUMBER(sim_settings, queue_max, 1, 1000000),
    NUMBER(sim_settings, stall_per_million, 0, 1000000),
    NUMBER(sim_settings, stall_us, 0, JOB_MAX_US),
    NUMBER(sim_settings, misread_percent, 0, 100),
    {NULL},
};

static const struct key pool_keys[] = {
    POLICY_KEYS(sim_pool),
    {NULL},
};

static const struct key load_keys[] = {
    NUMBER(sim_load, vms, 1, SIM_VMS_MAX),     CHOICE(sim_load, priority, priorities),
    NUMBER(sim_load, weight, 1, 1000),         CHOICE(sim_load, arrivals, arrivals),
    NUMBER(sim_load, every_us, 1, UINT32_MAX), NUMBER(sim_load, on_ms, 1, DAY_MS),
    NUMBER(sim_load, off_ms, 0, DAY_MS),       NUMBER(sim_load, depth, 1, 4096),
    NUMBER(sim_load, think_us, 0, UINT32_MAX), CHOICE(sim_load, sizes, sizes),
    NUMBER(sim_load, job_us, 1, JOB_MAX_US),   NUMBER(sim_load, job_max_us, 1, JOB_MAX_US),
    NUMBER(sim_load, shape_percent, 10, 1000), NUMBER(sim_load, start_ms, 0, DAY_MS),
    NUMBER(sim_load, stop_ms, 0, DAY_MS),      {NULL},
};

static int bad_value(const char *key, const char *value, const char *expected,
                     struct vgpu_error *error)
{
    return error_set(error, EINVAL, "%s = %s: expected %s", key, value, expected);
}

static int set_choice(void *target, const struct key *key, const char *value,
                      struct vgpu_error *error)
{
    char expected[128] = "";

    for (const struct choice *choice = key->choices; choice->name; choice++) {
        size_t used = strlen(expected);
        int number = choice->value;

        if (strcmp(value, choice->name) == 0) {
            memcpy((char *)target + key->offset, &number, key->bytes); /* little-endian */
            return 0;
        }
        snprintf(expected + used, sizeof(expected) - used, "%s%s", used ? ", " : "one of ",
                 choice->name);
    }
    return bad_value(key->name, value, expected, error);
}

static int set_number(void *target, const struct key *key, const char *value,
                      struct vgpu_error *error)
{
    char expected[64];
    uint64_t number;
    uint32_t narrow;

    if (!text_parse_u64(value, key->min, key->max, &number)) {
        snprintf(expected, sizeof(expected), "a whole number from %u to %u", key->min, key->max);
        return bad_value(key->name, value, expected, error);
    }
    narrow = (uint32_t)number;
    memcpy((char *)target + key->offset, &narrow, sizeof(narrow));
    return 0;
}

static int set_key(void *target, const struct key *keys, const char *name, const char *value,
                   const char *section, struct vgpu_error *error)
{
    for (const struct key *key = keys; key->name; key++) {
        if (strcmp(key->name, name) == 0)
            return key->choices ? set_choice(target, key, value, error)
                                : set_number(target, key, value, error);
    }
    return error_set(error, EINVAL, "unknown key '%s' in [%s]: see vgpu-sim(1)", name, section);
}

static bool is_pool(const char *text)
{
    return text[0] >= 'A' && text[0] <= 'Z' && text[1] == '\0';
}

static int set_load_key(struct sim_load *load, const char *name, const char *value,
                        struct vgpu_error *error)
{
    if (strcmp(name, "pool") != 0)
        return set_key(load, load_keys, name, value, "load NAME", error);
    if (!is_pool(value))
        return bad_value(name, value, "one letter, A to Z", error);
    load->pool = value[0];
    return 0;
}

/* `N` or `FIRST-LAST`. */
static int set_devices(struct sim_pool *pool, const char *value, struct vgpu_error *error)
{
    char first[16];
    const char *dash = strchr(value, '-');
    uint64_t from, to;

    text_copy(first, sizeof(first), value);
    first[strcspn(first, "-")] = '\0';
    if (!text_parse_u64(first, 0, SIM_DEVICES_MAX - 1, &from) ||
        !text_parse_u64(dash ? dash + 1 : first, from, SIM_DEVICES_MAX - 1, &to))
        return bad_value("devices", value, "a device 0 to 999, or a range as 0-3", error);
    pool->first_device = (uint32_t)from;
    pool->last_device = (uint32_t)to;
    return 0;
}

static int set_pool_key(struct sim_pool *pool, const char *name, const char *value,
                        struct vgpu_error *error)
{
    if (strcmp(name, "devices") == 0)
        return set_devices(pool, value, error);
    pool->has_policy = true;
    return set_key(pool, pool_keys, name, value, "pool X", error);
}

/* --- each key once ------------------------------------------------------------------------ */

#define KEYS_MAX 32 /* more than any section knows */

struct seen {
    char names[KEYS_MAX][32];
    unsigned count;
};

static int refuse_second(const struct seen *seen, const char *name, struct vgpu_error *error)
{
    for (unsigned i = 0; i < seen->count; i++) {
        if (strcmp(seen->names[i], name) == 0)
            return error_set(error, EEXIST,
                             "'%s' stands twice, or its value has several lines: expected each "
                             "key once, on one line",
                             name);
    }
    return 0;
}

/* Of a key that exists, which bounds how many and how long they are. */
static void remember(struct seen *seen, const char *name)
{
    if (seen->count < KEYS_MAX)
        text_copy(seen->names[seen->count++], sizeof(seen->names[0]), name);
}

/* --- sections ---------------------------------------------------------------------------- */

static int add_pool(struct sim_scenario *scenario, const char *name, struct sim_pool **ret_pool,
                    struct vgpu_error *error)
{
    if (!is_pool(name))
        return error_set(error, EINVAL, "[pool %s]: expected one letter, A to Z", name);
    for (unsigned i = 0; i < scenario->pool_count; i++) {
        if (scenario->pools[i].name == name[0])
            return error_set(error, EEXIST, "pool %s stands twice", name);
    }
    *ret_pool = &scenario->pools[scenario->pool_count++];
    **ret_pool = (struct sim_pool){.name = name[0], .policy = DEFAULT_POLICY};
    return 0;
}

static bool is_name(const char *text)
{
    return *text && strlen(text) < SIM_NAME_BYTES &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_. %") ==
               strlen(text);
}

static int add_load(struct sim_scenario *scenario, const char *name, struct sim_load **ret_load,
                    struct vgpu_error *error)
{
    if (!is_name(name))
        return error_set(error, EINVAL,
                         "load '%s': expected a name of 1 to %u letters, digits, -, _, ., %% and "
                         "spaces",
                         name, SIM_NAME_BYTES - 1);
    for (unsigned i = 0; i < scenario->load_count; i++) {
        if (strcmp(scenario->loads[i].name, name) == 0)
            return error_set(error, EEXIST, "load %s stands twice", name);
    }
    if (scenario->load_count == SIM_LOADS_MAX)
        return error_set(error, EINVAL, "load %s: there are %u loads already, which is the most",
                         name, SIM_LOADS_MAX);
    *ret_load = &scenario->loads[scenario->load_count++];
    **ret_load = (struct sim_load){.pool = 'A',
                                   .vms = 1,
                                   .priority = 1,
                                   .weight = 100,
                                   .arrivals = SIM_ARRIVALS_CLOSED,
                                   .every_us = 10000,
                                   .on_ms = 100,
                                   .off_ms = 100,
                                   .depth = 1,
                                   .sizes = SIM_SIZES_FIXED,
                                   .job_us = 1000,
                                   .job_max_us = 100000,
                                   .shape_percent = 150};
    text_copy((*ret_load)->name, SIM_NAME_BYTES, name);
    return 0;
}

/* --- the file ---------------------------------------------------------------------------- */

struct reader {
    struct sim_scenario *scenario;
    FILE *file;
    unsigned line;
    unsigned error_line; /* 0: none yet */
    struct vgpu_error *error;
    struct sim_pool *pool; /* at most one of these two: the section that lasts */
    struct sim_load *load;
    struct seen simulation_seen; /* in all [simulation] together */
    struct seen section_seen;    /* in the one that lasts */
    bool known;
};

static int open_section(struct reader *reader, const char *section)
{
    reader->pool = NULL;
    reader->load = NULL;
    reader->section_seen.count = 0;
    reader->known = true;
    if (strcmp(section, "simulation") == 0)
        return 0;
    if (strncmp(section, "pool ", 5) == 0)
        return add_pool(reader->scenario, section + 5, &reader->pool, reader->error);
    if (strncmp(section, "load ", 5) == 0)
        return add_load(reader->scenario, section + 5, &reader->load, reader->error);
    return error_set(reader->error, EINVAL,
                     "unknown section [%s]: expected [simulation], [pool X] or [load NAME]",
                     section);
}

static void note(struct reader *reader, int status)
{
    if (status < 0 && reader->error_line == 0)
        reader->error_line = reader->line;
}

char *sim_behind_mark(char *line)
{
    static const char mark[] = "\xEF\xBB\xBF";

    return strncmp(line, mark, sizeof(mark) - 1) == 0 ? line + sizeof(mark) - 1 : line;
}

/* Sections are met here, because inih tells nothing of one without keys. */
static char *read_line(char *text, int bytes, void *stream)
{
    struct reader *reader = stream;
    char *line = fgets(text, bytes, reader->file);
    char section[LINE_MAX_BYTES + 2];
    const char *start;

    if (!line || reader->error_line)
        return NULL;
    reader->line++;
    start = reader->line == 1 ? sim_behind_mark(line) : line;
    if (strcspn(line, "\n") > LINE_MAX_BYTES) {
        note(reader,
             error_set(reader->error, EINVAL, "line is longer than %d bytes", LINE_MAX_BYTES));
    } else if (start[0] == '[') {
        text_copy(section, sizeof(section), start + 1);
        section[strcspn(section, "]\n")] = '\0';
        note(reader, open_section(reader, section));
    }
    return line;
}

static int set_in_section(struct reader *reader, const char *name, const char *value)
{
    if (!reader->known)
        return error_set(reader->error, EINVAL, "a key stands before the first [section]");
    if (reader->pool)
        return set_pool_key(reader->pool, name, value, reader->error);
    if (reader->load)
        return set_load_key(reader->load, name, value, reader->error);
    return set_key(&reader->scenario->settings, simulation_keys, name, value, "simulation",
                   reader->error);
}

static int on_key(void *context, const char *section, const char *name, const char *value)
{
    struct reader *reader = context;
    struct seen *seen =
        reader->pool || reader->load ? &reader->section_seen : &reader->simulation_seen;

    (void)section;
    if (reader->error_line)
        return 1;
    if (refuse_second(seen, name, reader->error) < 0 || set_in_section(reader, name, value) < 0)
        note(reader, -1);
    else
        remember(seen, name);
    return 1;
}

int sim_scenario_read(struct sim_scenario *scenario, const char *path, struct vgpu_error *error)
{
    struct vgpu_error inner = {0};
    struct reader reader = {.scenario = scenario, .error = &inner};
    int first_bad;

    reader.file = fopen(path, "re");
    if (!reader.file)
        return error_set_errno(error, "cannot open scenario '%s'", path);
    first_bad = ini_parse_stream(read_line, &reader, on_key, &reader);
    if (ferror(reader.file)) {
        error_set_errno(error, "cannot read scenario '%s'", path);
        fclose(reader.file);
        return -1;
    }
    fclose(reader.file);
    if (reader.error_line)
        return error_set(error, EINVAL, "%s, line %u: %s", path, reader.error_line, inner.message);
    if (first_bad != 0)
        return error_set(error, EINVAL, "%s, line %d: expected [section] or key = value", path,
                         first_bad);
    return 0;
}

/* --- options ----------------------------------------------------------------------------- */

typedef int set_function(void *target, const char *name, const char *value,
                         struct vgpu_error *error);

static int set_of_simulation(void *target, const char *name, const char *value,
                             struct vgpu_error *error)
{
    return set_key(target, simulation_keys, name, value, "simulation", error);
}

static int set_of_load(void *target, const char *name, const char *value, struct vgpu_error *error)
{
    return set_load_key(target, name, value, error);
}

static int set_of_pool(void *target, const char *name, const char *value, struct vgpu_error *error)
{
    return set_pool_key(target, name, value, error);
}

/* `KEY=VALUE`; cuts the text in two. */
static int assign(void *target, set_function *set, char *assignment, struct vgpu_error *error)
{
    char *equals = strchr(assignment, '=');

    if (!equals)
        return error_set(error, EINVAL, "'%s': expected KEY=VALUE", assignment);
    *equals = '\0';
    return set(target, assignment, equals + 1, error);
}

/* Each of the words behind the first. */
static int assign_each(void *target, set_function *set, char *words, const char *separator,
                       struct vgpu_error *error)
{
    struct seen seen = {.count = 0};
    char *word;

    while ((word = strsep(&words, separator))) {
        if (assign(target, set, word, error) < 0 || refuse_second(&seen, word, error) < 0)
            return -1;
        remember(&seen, word);
    }
    return 0;
}

static char *copy(const char *text)
{
    size_t bytes = strlen(text) + 1;

    return memcpy(sim_allocate(1, bytes), text, bytes);
}

int sim_scenario_set(struct sim_scenario *scenario, const char *assignment,
                     struct vgpu_error *error)
{
    char *text = copy(assignment);
    int status = assign(&scenario->settings, set_of_simulation, text, error);

    free(text);
    return status;
}

int sim_scenario_load(struct sim_scenario *scenario, const char *text, struct vgpu_error *error)
{
    char *words = copy(text), *rest = words, *name = strsep(&rest, ",");
    struct sim_load *load;
    int status = add_load(scenario, name, &load, error);

    if (status == 0)
        status = assign_each(load, set_of_load, rest, ",", error);
    free(words);
    return status;
}

int sim_scenario_pool(struct sim_scenario *scenario, const char *text, struct vgpu_error *error)
{
    char *words = copy(text), *rest = words, *name = strsep(&rest, ",");
    struct sim_pool *pool;
    int status = add_pool(scenario, name, &pool, error);

    if (status == 0)
        status = assign_each(pool, set_of_pool, rest, ",", error);
    free(words);
    return status;
}

/* What was not said: ten seconds, or a trace and the second behind it. */
static void default_duration(struct sim_scenario *scenario)
{
    uint64_t ms = DEFAULT_DURATION_MS;

    if (scenario->settings.duration_ms > 0)
        return;
    if (scenario->arrival_count > 0 && scenario->load_count == 0)
        ms = scenario->arrivals[scenario->arrival_count - 1].time_us / US_PER_MS + MS_PER_S;
    scenario->settings.duration_ms = ms < DAY_MS ? (uint32_t)ms : DAY_MS;
}

static int add_variant(struct sim_scenario *scenario, char *text, struct vgpu_error *error)
{
    struct sim_variant *variant = &scenario->variants[scenario->variant_count];
    char *policy;

    if (scenario->variant_count == SIM_VARIANTS_MAX)
        return error_set(error, EINVAL, "--policy: more than %u are too many to compare",
                         SIM_VARIANTS_MAX);
    if (strlen(text) >= SIM_NAME_BYTES)
        return error_set(error, EINVAL, "--policy %s: expected at most %u bytes for each", text,
                         SIM_NAME_BYTES - 1);
    text_copy(variant->label, SIM_NAME_BYTES, text);
    variant->settings = scenario->settings;
    policy = strsep(&text, ":");
    if (set_of_simulation(&variant->settings, "policy", policy, error) < 0 ||
        assign_each(&variant->settings, set_of_simulation, text, ":", error) < 0)
        return -1;
    scenario->variant_count++;
    return 0;
}

int sim_scenario_compare(struct sim_scenario *scenario, const char *list, struct vgpu_error *error)
{
    char *text = copy(list), *rest = text, *word;
    int status = 0;

    default_duration(scenario);
    while (status == 0 && (word = strsep(&rest, ",")))
        status = add_variant(scenario, word, error);
    free(text);
    return status;
}

/* --- the whole --------------------------------------------------------------------------- */

struct sim_scenario *sim_scenario_new(void)
{
    struct sim_scenario *scenario = sim_allocate(1, sizeof(*scenario));

    scenario->settings =
        (struct sim_settings){.policy = {.type = SCHED_POLICY_STRICT, .class_weight = {1, 4, 16}},
                              .pools = SCHED_POOLS_SHARED,
                              .long_grants = true,
                              .seed = 1,
                              .window_ms = 1000,
                              .grant_us = 2000,
                              .grant_ops = 4096,
                              .grant_inflight = 1024,
                              .protect_us = 1000,
                              .protect_inflight = 2,
                              .protect_ms = 100,
                              .switch_share_percent = 5,
                              .queue_max = 4096};
    return scenario;
}

void sim_scenario_free(struct sim_scenario *scenario)
{
    if (!scenario)
        return;
    free(scenario->arrivals);
    free(scenario->trace_vms);
    free(scenario);
}

static bool has_pool(const struct sim_scenario *scenario, char name)
{
    for (unsigned i = 0; i < scenario->pool_count; i++) {
        if (scenario->pools[i].name == name)
            return true;
    }
    return false;
}

static int check_load(const struct sim_scenario *scenario, const struct sim_load *load,
                      struct vgpu_error *error)
{
    if (!has_pool(scenario, load->pool))
        return error_set(error, EINVAL, "load %s: pool %c does not exist: add [pool %c]",
                         load->name, load->pool, load->pool);
    if (load->sizes == SIM_SIZES_PARETO && load->job_max_us <= load->job_us)
        return error_set(error, EINVAL,
                         "load %s: job_max_us = %u: expected more than job_us, which is %u",
                         load->name, load->job_max_us, load->job_us);
    if (load->stop_ms > 0 && load->stop_ms <= load->start_ms)
        return error_set(error, EINVAL,
                         "load %s: stop_ms = %u: expected 0 (never), or more than start_ms, which "
                         "is %u",
                         load->name, load->stop_ms, load->start_ms);
    if (load->arrivals == SIM_ARRIVALS_CLOSED && load->depth > scenario->settings.queue_max)
        return error_set(error, EINVAL,
                         "load %s: depth = %u: expected at most queue_max, which "
                         "is %u",
                         load->name, load->depth, scenario->settings.queue_max);
    return 0;
}

static int check_trace(const struct sim_scenario *scenario, struct vgpu_error *error)
{
    for (size_t i = 0; i < scenario->trace_vm_count; i++) {
        const struct sim_trace_vm *vm = &scenario->trace_vms[i];

        if (!has_pool(scenario, vm->pool))
            return error_set(error, EINVAL, "trace: vm %u: pool %c does not exist: add [pool %c]",
                             vm->id, vm->pool, vm->pool);
    }
    return 0;
}

/* Without any [pool X] all pools that are named share device 0. */
static void add_pools_named(struct sim_scenario *scenario)
{
    for (unsigned letter = 0; letter < SIM_POOLS_MAX; letter++) {
        char name = (char)('A' + letter);
        bool named = false;

        for (unsigned i = 0; i < scenario->load_count; i++)
            named = named || scenario->loads[i].pool == name;
        for (size_t i = 0; i < scenario->trace_vm_count; i++)
            named = named || scenario->trace_vms[i].pool == name;
        if (named)
            scenario->pools[scenario->pool_count++] = (struct sim_pool){.name = name};
    }
}

int sim_scenario_finish(struct sim_scenario *scenario, struct vgpu_error *error)
{
    uint64_t vms = scenario->trace_vm_count;

    default_duration(scenario);
    if (scenario->load_count == 0 && scenario->trace_vm_count == 0)
        return error_set(error, EINVAL,
                         "nothing to simulate: expected a scenario with a [load NAME], --load or "
                         "--trace");
    if (scenario->pool_count == 0)
        add_pools_named(scenario);
    for (unsigned i = 0; i < scenario->load_count; i++) {
        vms += scenario->loads[i].vms;
        if (check_load(scenario, &scenario->loads[i], error) < 0)
            return -1;
    }
    if (vms > SIM_VMS_MAX)
        return error_set(error, EINVAL, "%llu VMs: expected at most %u in all",
                         (unsigned long long)vms, SIM_VMS_MAX);
    return check_trace(scenario, error);
}
