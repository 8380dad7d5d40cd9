/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decision log as CSV: what vgpu-sim replays (the events `arrive`), and all the rest.
 */
#include "trace/private.h"

#include <stdlib.h>

struct line {
    uint64_t time_ns;
    const struct trace_record *record;       /* NULL: the operation's arrival */
    const struct trace_operation *operation; /* NULL: the record is all */
    uint64_t job_us;
};

static int compare_lines(const void *a, const void *b)
{
    const struct line *x = a, *y = b;

    if (x->time_ns != y->time_ns)
        return x->time_ns < y->time_ns ? -1 : 1;
    if (!x->operation != !y->operation)
        return x->operation ? -1 : 1; /* what came before what was decided */
    if (x->operation)
        return (x->operation > y->operation) - (x->operation < y->operation);
    return (x->record > y->record) - (x->record < y->record);
}

/* Whole microseconds, at least one, whose sum is that of the nanoseconds: what is cut off from
 * one counts with the next of its session. */
static void add_arrivals(const struct trace_story *story, struct line *lines, size_t *count)
{
    uint64_t rest_ns = 0;

    for (size_t i = 0; i < story->operation_count; i++) {
        const struct trace_operation *operation = &story->operations[i];
        uint64_t job_us;

        if (i > 0 && operation->source != operation[-1].source)
            rest_ns = 0;
        rest_ns += operation->device_ns;
        job_us = rest_ns / NS_PER_US;
        rest_ns %= NS_PER_US;
        if (job_us == 0)
            job_us = 1;
        else if (job_us > UINT32_MAX)
            job_us = UINT32_MAX;
        lines[(*count)++] = (struct line){operation->arrived_ns, NULL, operation, job_us};
    }
}

static void add_records(const struct trace_log *log, struct line *lines, size_t *count)
{
    for (size_t i = 0; i < log->entry_count; i++) {
        const struct trace_record *record = &log->entries[i].record;

        if (record->kind != TRACE_ARRIVE)
            lines[(*count)++] = (struct line){record->time_ns, record, NULL, 0};
    }
}

static void print_vm(const struct trace_story *story, uint64_t time_ns, uint32_t vm_id, FILE *file)
{
    const struct trace_vm *vm = trace_story_vm(story, vm_id);

    fprintf(file, "%llu,%u,%c,%u,%u,", (unsigned long long)(time_ns / NS_PER_US), vm_id, vm->pool,
            vm->priority, vm->weight);
}

static void print_arrival(const struct line *line, FILE *file)
{
    fprintf(file, "arrive,%llu,,%u,,,\n", (unsigned long long)line->job_us,
            line->operation->number);
}

static void print_record(const struct trace_record *record, FILE *file)
{
    fprintf(file, "%s,,", trace_kind_name(record->kind));
    if (record->kind != TRACE_COMPLETE)
        fprintf(file, "%u", record->what);
    fprintf(file, ",%u,", record->number);
    if (record->kind != TRACE_GRANT || record->device_ns != TRACE_LONG)
        fprintf(file, "%llu", (unsigned long long)(record->device_ns / NS_PER_US));
    fprintf(file, ",%u,", record->count);
    if (record->kind == TRACE_COMPLETE)
        fprintf(file, "%u\n", record->reason);
    else
        fprintf(file, "%s\n", trace_reason_name(record->reason));
}

/* --- grants whose operations nobody tells of ---------------------------------------------------
 */

struct ending {
    uint32_t vm_id;
    uint64_t ended_ns;
};

static int compare_endings(const void *a, const void *b)
{
    const struct ending *x = a, *y = b;

    if (x->vm_id != y->vm_id)
        return x->vm_id < y->vm_id ? -1 : 1;
    return (x->ended_ns > y->ended_ns) - (x->ended_ns < y->ended_ns);
}

/* Of that VM, from `begin_ns` to `end_ns`; `endings` are sorted. */
static bool has_ending(const struct ending *endings, size_t count, uint32_t vm_id,
                       uint64_t begin_ns, uint64_t end_ns)
{
    const struct ending wanted = {vm_id, begin_ns};
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (compare_endings(&endings[middle], &wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && endings[low].vm_id == vm_id && endings[low].ended_ns <= end_ns;
}

static size_t count_bare_grants(const struct trace_story *story)
{
    struct ending *endings = trace_grow(NULL, story->operation_count, sizeof(*endings));
    size_t bare = 0;

    for (size_t i = 0; i < story->operation_count; i++)
        endings[i] = (struct ending){story->operations[i].vm_id, story->operations[i].ended_ns};
    if (story->operation_count > 1)
        qsort(endings, story->operation_count, sizeof(*endings), compare_endings);
    for (size_t i = 0; i < story->grant_count; i++) {
        const struct trace_record *begin = story->grants[i].begin, *end = story->grants[i].end;

        if (end && end->kind == TRACE_RETURN && end->device_ns > 0 &&
            !has_ending(endings, story->operation_count, begin->vm_id, begin->time_ns,
                        end->time_ns))
            bare++;
    }
    free(endings);
    return bare;
}

/* --- the whole ----------------------------------------------------------------------------------
 */

size_t trace_write_csv(const struct trace_log *log, FILE *file)
{
    struct trace_story story;
    struct line *lines;
    size_t count = 0, bare;

    trace_story_make(log, &story);
    lines = trace_grow(NULL, story.operation_count + log->entry_count, sizeof(*lines));
    add_arrivals(&story, lines, &count);
    add_records(log, lines, &count);
    if (count > 1)
        qsort(lines, count, sizeof(*lines), compare_lines);
    fputs("time_us,vm,pool,priority,weight,event,job_us,device,number,device_us,count,reason\n",
          file);
    for (size_t i = 0; i < count; i++) {
        const struct line *line = &lines[i];

        print_vm(&story, line->time_ns - lines[0].time_ns,
                 line->record ? line->record->vm_id : line->operation->vm_id, file);
        if (line->record)
            print_record(line->record, file);
        else
            print_arrival(line, file);
    }
    free(lines);
    bare = count_bare_grants(&story);
    trace_story_clear(&story);
    return bare;
}
