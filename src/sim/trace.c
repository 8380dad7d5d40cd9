/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A recorded load, as CSV:
 *
 *   time_us,vm,pool,priority,weight,event,job_us
 *   1042,7,A,2,100,arrive,350
 *
 * The columns are found by their names in the first line; others may stand there and are not
 * looked at.  Lines of other events are left out: what was granted then is decided anew.
 */
#include "sim/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum column { TIME_US, VM, POOL, PRIORITY, WEIGHT, EVENT, JOB_US, COLUMNS };

static const char *const column_names[COLUMNS] = {"time_us", "vm",    "pool",  "priority",
                                                  "weight",  "event", "job_us"};

#define FIELDS_MAX 32

struct trace {
    struct sim_scenario *scenario;
    size_t arrival_room, vm_room;
    unsigned line;
    int places[COLUMNS]; /* in a line; -1: not there */
    struct {
        uint32_t id, index;
    } * found; /* of VMs by id: open addressing; id 0: free */
    struct vgpu_error *error;
};

#define TRACE_HASH_ROOM 32768u /* a power of two, more than twice SIM_VMS_MAX */

static int bad_field(const struct trace *trace, enum column column, const char *value,
                     const char *expected)
{
    return error_set(trace->error, EINVAL, "%s = '%s': expected %s", column_names[column], value,
                     expected);
}

static unsigned split(char *line, char *fields[FIELDS_MAX])
{
    unsigned count = 0;

    line[strcspn(line, "\r\n")] = '\0';
    while (count < FIELDS_MAX && (fields[count] = strsep(&line, ",")))
        count++;
    return count;
}

static int read_header(struct trace *trace, char *line)
{
    char *fields[FIELDS_MAX];
    unsigned count = split(sim_behind_mark(line), fields);

    for (unsigned column = 0; column < COLUMNS; column++) {
        trace->places[column] = -1;
        for (unsigned i = 0; i < count; i++) {
            if (strcmp(fields[i], column_names[column]) == 0)
                trace->places[column] = (int)i;
        }
        if (trace->places[column] < 0)
            return error_set(trace->error, EINVAL,
                             "no column '%s': expected the names "
                             "time_us,vm,pool,priority,weight,event,job_us in the first line",
                             column_names[column]);
    }
    return 0;
}

/* --- VMs --------------------------------------------------------------------------------- */

static int parse_vm(const struct trace *trace, char *const values[COLUMNS],
                    struct sim_trace_vm *ret_vm)
{
    uint64_t id, priority, weight;

    if (!text_parse_u64(values[VM], 1, UINT32_MAX, &id))
        return bad_field(trace, VM, values[VM], "a number from 1 to 4294967295");
    if (values[POOL][0] < 'A' || values[POOL][0] > 'Z' || values[POOL][1])
        return bad_field(trace, POOL, values[POOL], "one letter, A to Z");
    if (!text_parse_u64(values[PRIORITY], 0, 2, &priority))
        return bad_field(trace, PRIORITY, values[PRIORITY], "0, 1 or 2");
    if (!text_parse_u64(values[WEIGHT], 1, 1000, &weight))
        return bad_field(trace, WEIGHT, values[WEIGHT], "a number from 1 to 1000");
    *ret_vm = (struct sim_trace_vm){.id = (uint32_t)id,
                                    .pool = values[POOL][0],
                                    .priority = (uint8_t)priority,
                                    .weight = (uint16_t)weight};
    return 0;
}

/* Pool, priority and weight are those of a VM's first line. */
static int find_vm(struct trace *trace, char *const values[COLUMNS], uint32_t *ret_index)
{
    struct sim_scenario *scenario = trace->scenario;
    struct sim_trace_vm vm;
    size_t at;

    if (parse_vm(trace, values, &vm) < 0)
        return -1;
    at = vm.id * 2654435761u % TRACE_HASH_ROOM;
    while (trace->found[at].id != 0 && trace->found[at].id != vm.id)
        at = (at + 1) % TRACE_HASH_ROOM;
    if (trace->found[at].id == 0) {
        if (scenario->trace_vm_count == SIM_VMS_MAX)
            return error_set(trace->error, EINVAL, "more than %u VMs", SIM_VMS_MAX);
        trace->found[at].id = vm.id;
        trace->found[at].index = (uint32_t)scenario->trace_vm_count++;
        scenario->trace_vms =
            sim_grow(scenario->trace_vms, scenario->trace_vm_count, &trace->vm_room, sizeof(vm));
        scenario->trace_vms[trace->found[at].index] = vm;
    }
    *ret_index = trace->found[at].index;
    return 0;
}

/* --- lines ------------------------------------------------------------------------------- */

static int add_arrival(struct trace *trace, char *const values[COLUMNS])
{
    struct sim_scenario *scenario = trace->scenario;
    struct sim_arrival arrival;
    uint64_t job_us;

    if (!text_parse_u64(values[TIME_US], 0, UINT64_MAX / NS_PER_US, &arrival.time_us))
        return bad_field(trace, TIME_US, values[TIME_US], "a whole number of microseconds");
    if (!text_parse_u64(values[JOB_US], 1, UINT32_MAX, &job_us))
        return bad_field(trace, JOB_US, values[JOB_US], "a number from 1 to 4294967295");
    if (find_vm(trace, values, &arrival.vm) < 0)
        return -1;
    if (scenario->arrival_count > 0 &&
        arrival.time_us < scenario->arrivals[scenario->arrival_count - 1].time_us)
        return error_set(trace->error, EINVAL,
                         "time_us goes back: expected lines in the order of time (sort them)");
    arrival.job_us = (uint32_t)job_us;
    scenario->arrival_count++;
    scenario->arrivals = sim_grow(scenario->arrivals, scenario->arrival_count, &trace->arrival_room,
                                  sizeof(arrival));
    scenario->arrivals[scenario->arrival_count - 1] = arrival;
    return 0;
}

static int read_line(struct trace *trace, char *line)
{
    char *fields[FIELDS_MAX], *values[COLUMNS];
    unsigned count = split(line, fields);

    if (count == 1 && fields[0][0] == '\0')
        return 0;
    for (unsigned column = 0; column < COLUMNS; column++) {
        if ((unsigned)trace->places[column] >= count)
            return error_set(trace->error, EINVAL, "%u fields: the first line promises more",
                             count);
        values[column] = fields[trace->places[column]];
    }
    return strcmp(values[EVENT], "arrive") == 0 ? add_arrival(trace, values) : 0;
}

static int read_lines(struct trace *trace, FILE *file)
{
    char *line = NULL;
    size_t bytes = 0;
    int status = 0;

    while (status == 0 && getline(&line, &bytes, file) >= 0)
        status = trace->line++ == 0 ? read_header(trace, line) : read_line(trace, line);
    free(line);
    return status;
}

static int compare_ids(const void *a, const void *b)
{
    const struct sim_trace_vm *x = a, *y = b;

    return (x->id > y->id) - (x->id < y->id);
}

/* By id, whoever came first: devices are dealt out in this order. */
static void sort_vms(struct sim_scenario *scenario)
{
    size_t count = scenario->trace_vm_count;
    uint32_t *ids = sim_allocate(count, sizeof(*ids));

    for (size_t i = 0; i < count; i++)
        ids[i] = scenario->trace_vms[i].id;
    qsort(scenario->trace_vms, count, sizeof(*scenario->trace_vms), compare_ids);
    for (size_t i = 0; i < scenario->arrival_count; i++) {
        const struct sim_trace_vm key = {.id = ids[scenario->arrivals[i].vm]};
        const struct sim_trace_vm *vm =
            bsearch(&key, scenario->trace_vms, count, sizeof(key), compare_ids);

        scenario->arrivals[i].vm = (uint32_t)(vm - scenario->trace_vms);
    }
    free(ids);
}

int sim_trace_read(struct sim_scenario *scenario, const char *path, struct vgpu_error *error)
{
    struct vgpu_error inner = {0};
    struct trace trace = {.scenario = scenario, .error = &inner};
    FILE *file = fopen(path, "re");
    int status;

    if (!file)
        return error_set_errno(error, "cannot open trace '%s'", path);
    trace.found = sim_allocate(TRACE_HASH_ROOM, sizeof(*trace.found));
    status = read_lines(&trace, file);
    free(trace.found);
    if (status < 0)
        error_set(error, EINVAL, "%s, line %u: %s", path, trace.line, inner.message);
    else if (ferror(file))
        status = error_set_errno(error, "cannot read trace '%s'", path);
    else if (scenario->arrival_count == 0)
        status = error_set(error, EINVAL, "%s has no line of the event 'arrive'", path);
    fclose(file);
    if (status == 0)
        sort_vms(scenario);
    return status;
}
