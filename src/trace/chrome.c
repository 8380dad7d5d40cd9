/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decision log in Chrome's Trace Event Format (JSON), for Perfetto and chrome://tracing.
 *
 *   process 1, "devices":     thread 1 + device: its grants; marks: revoked, other VM
 *   process 1 + VM, "VM 7":   thread 1 + device: it waits for this one
 *                             thread 2000 + file: operations of one session
 *
 * Complete events (X) of one thread never overlap, as viewers ask.
 */
#include "trace/private.h"

#include <stdlib.h>

#define DEVICES_PROCESS 1ull
#define THREAD_OPERATIONS 2000u

struct writer {
    FILE *file;
    uint64_t begin_ns, end_ns; /* of the log */
    bool some;
};

static uint64_t process_of(uint32_t vm_id)
{
    return DEVICES_PROCESS + vm_id;
}

static void next_event(struct writer *writer)
{
    fputs(writer->some ? ",\n" : "\n", writer->file);
    writer->some = true;
}

static void print_time(const struct writer *writer, const char *key, uint64_t ns)
{
    fprintf(writer->file, "\"%s\":%llu.%03u,", key, (unsigned long long)(ns / NS_PER_US),
            (unsigned)(ns % NS_PER_US));
}

/* Up to its arguments, which the caller adds with the two brackets. */
static void begin_event(struct writer *writer, const char *phase, uint64_t process, uint32_t thread,
                        uint64_t time_ns)
{
    next_event(writer);
    fprintf(writer->file, "{\"ph\":\"%s\",\"pid\":%llu,\"tid\":%u,", phase,
            (unsigned long long)process, thread);
    print_time(writer, "ts", time_ns - writer->begin_ns);
}

static void name_process(struct writer *writer, uint64_t process, const char *word, uint32_t number)
{
    next_event(writer);
    fprintf(writer->file,
            "{\"ph\":\"M\",\"pid\":%llu,\"tid\":0,\"name\":\"process_name\","
            "\"args\":{\"name\":\"%s",
            (unsigned long long)process, word);
    if (number > 0)
        fprintf(writer->file, " %u", number);
    fputs("\"}}", writer->file);
}

static void name_thread(struct writer *writer, uint64_t process, uint32_t thread, const char *word,
                        uint32_t number)
{
    next_event(writer);
    fprintf(writer->file,
            "{\"ph\":\"M\",\"pid\":%llu,\"tid\":%u,\"name\":\"thread_name\","
            "\"args\":{\"name\":\"%s %u\"}}",
            (unsigned long long)process, thread, word, number);
}

/* --- spans --------------------------------------------------------------------------------------
 */

static uint64_t end_of(const struct writer *writer, const struct trace_span *span)
{
    return span->end ? span->end->time_ns : writer->end_ns;
}

static void write_grant(struct writer *writer, const struct trace_span *span)
{
    const struct trace_record *grant = span->begin;

    begin_event(writer, "X", DEVICES_PROCESS, 1u + grant->what, grant->time_ns);
    print_time(writer, "dur", end_of(writer, span) - grant->time_ns);
    fprintf(writer->file,
            "\"cat\":\"grant\",\"name\":\"VM %u\",\"args\":{\"pool\":\"%c\",\"priority\":%u,"
            "\"max_ops\":%u,",
            grant->vm_id, grant->pool, grant->priority, grant->number);
    if (grant->device_ns == TRACE_LONG)
        fputs("\"allowed_us\":\"unbounded\",", writer->file);
    else
        fprintf(writer->file, "\"allowed_us\":%llu,",
                (unsigned long long)(grant->device_ns / NS_PER_US));
    if (span->end && span->end->kind == TRACE_RETURN)
        fprintf(writer->file, "\"used_us\":%llu,\"waiting_left\":%u,\"reason\":\"%s\"}}",
                (unsigned long long)(span->end->device_ns / NS_PER_US), span->end->count,
                trace_reason_name(span->end->reason));
    else
        fputs("\"returned\":false}}", writer->file);
}

static void write_wait(struct writer *writer, const struct trace_span *span)
{
    const struct trace_record *wait = span->begin;

    begin_event(writer, "X", process_of(wait->vm_id), 1u + wait->what, wait->time_ns);
    print_time(writer, "dur", end_of(writer, span) - wait->time_ns);
    fprintf(writer->file,
            "\"cat\":\"wait\",\"name\":\"waits\",\"args\":{\"pool\":\"%c\",\"priority\":%u,"
            "\"granted\":%s}}",
            wait->pool, wait->priority,
            span->end && span->end->kind == TRACE_GRANT ? "true" : "false");
}

static void write_operation(struct writer *writer, const struct trace_operation *operation)
{
    begin_event(writer, "X", process_of(operation->vm_id), THREAD_OPERATIONS + operation->source,
                operation->began_ns);
    print_time(writer, "dur", operation->ended_ns - operation->began_ns);
    fprintf(writer->file,
            "\"cat\":\"operation\",\"name\":\"operation 0x%x\",\"args\":{\"number\":%u,"
            "\"status\":%u,\"waited_us\":%llu,\"device_us\":%llu}}",
            operation->opcode, operation->number, operation->status,
            (unsigned long long)((operation->began_ns - operation->arrived_ns) / NS_PER_US),
            (unsigned long long)(operation->device_ns / NS_PER_US));
}

static void write_mark(struct writer *writer, const struct trace_record *record)
{
    begin_event(writer, "i", DEVICES_PROCESS, 1u + record->what, record->time_ns);
    if (record->kind == TRACE_REVOKE)
        fprintf(writer->file,
                "\"s\":\"t\",\"cat\":\"revoke\",\"name\":\"revoke\",\"args\":{\"vm\":%u,"
                "\"reason\":\"%s\"}}",
                record->vm_id, trace_reason_name(record->reason));
    else
        fprintf(writer->file,
                "\"s\":\"t\",\"cat\":\"switch\",\"name\":\"switch\",\"args\":{\"vm\":%u,"
                "\"before\":%u}}",
                record->vm_id, record->number);
}

/* --- the whole -----------------------------------------------------------------------------------
 */

static void write_names(struct writer *writer, const struct trace_story *story)
{
    bool named[TRACE_DEVICES_MAX] = {false};

    name_process(writer, DEVICES_PROCESS, "devices", 0);
    for (size_t i = 0; i < story->vm_count; i++)
        name_process(writer, process_of(story->vms[i].vm_id), "VM", story->vms[i].vm_id);
    for (size_t i = 0; i < story->grant_count; i++) {
        uint16_t device = story->grants[i].begin->what;

        if (!named[device])
            name_thread(writer, DEVICES_PROCESS, 1u + device, "device", device);
        named[device] = true;
    }
    for (size_t i = 0; i < story->wait_count; i++) {
        const struct trace_record *wait = story->waits[i].begin;

        if (i == 0 || wait->vm_id != story->waits[i - 1].begin->vm_id ||
            wait->what != story->waits[i - 1].begin->what)
            name_thread(writer, process_of(wait->vm_id), 1u + wait->what, "waits for device",
                        wait->what);
    }
    for (size_t i = 0; i < story->operation_count; i++) {
        const struct trace_operation *operation = &story->operations[i];

        if (i == 0 || operation->source != operation[-1].source ||
            operation->vm_id != operation[-1].vm_id)
            name_thread(writer, process_of(operation->vm_id), THREAD_OPERATIONS + operation->source,
                        "operations, file", operation->source);
    }
}

static void find_bounds(struct writer *writer, const struct trace_log *log,
                        const struct trace_story *story)
{
    writer->begin_ns = log->entry_count > 0 ? log->entries[0].record.time_ns : 0;
    if (log->entry_count > 0)
        writer->end_ns = log->entries[log->entry_count - 1].record.time_ns;
    for (size_t i = 0; i < story->operation_count; i++) {
        if (story->operations[i].began_ns < writer->begin_ns)
            writer->begin_ns = story->operations[i].began_ns;
    }
}

void trace_write_chrome(const struct trace_log *log, FILE *file)
{
    struct writer writer = {.file = file};
    struct trace_story story;

    trace_story_make(log, &story);
    find_bounds(&writer, log, &story);
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", file);
    write_names(&writer, &story);
    for (size_t i = 0; i < story.grant_count; i++)
        write_grant(&writer, &story.grants[i]);
    for (size_t i = 0; i < story.wait_count; i++)
        write_wait(&writer, &story.waits[i]);
    for (size_t i = 0; i < story.operation_count; i++)
        write_operation(&writer, &story.operations[i]);
    for (size_t i = 0; i < log->entry_count; i++) {
        const struct trace_record *record = &log->entries[i].record;

        if (record->kind == TRACE_REVOKE || record->kind == TRACE_SWITCH)
            write_mark(&writer, record);
    }
    fputs("\n]}\n", file);
    trace_story_clear(&story);
}
