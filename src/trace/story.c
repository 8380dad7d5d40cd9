/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the records of a log say together: which operations there were, who waited how long and
 * held which device.
 *
 * Everything here is done by sorting: the records of one thing (a VM's operations in one file,
 * a VM's place on a device, a device) stand together then, in the order of writing.
 */
#include "trace/private.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef int (*comparison)(const void *a, const void *b);

struct ref {
    const struct trace_entry *entry;
};

static int compare_numbers(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

static bool is_operations(uint8_t kind)
{
    return kind == TRACE_ARRIVE || kind == TRACE_COMPLETE;
}

/* Pointers to the entries of operations, or to the others, in another order; the caller's. */
static struct ref *pick(const struct trace_log *log, bool operations, comparison compare,
                        size_t *ret_count)
{
    struct ref *picked = trace_grow(NULL, log->entry_count, sizeof(*picked));
    size_t count = 0;

    for (size_t i = 0; i < log->entry_count; i++) {
        if (is_operations(log->entries[i].record.kind) == operations)
            picked[count++].entry = &log->entries[i];
    }
    if (count > 1)
        qsort(picked, count, sizeof(*picked), compare);
    *ret_count = count;
    return picked;
}

/* Entries of a sorted log stand in its order: so do their addresses. */
static int compare_places(const struct trace_entry *a, const struct trace_entry *b)
{
    return (a > b) - (a < b);
}

/* --- VMs ------------------------------------------------------------------------------------ */

static int compare_by_vm(const void *a, const void *b)
{
    const struct trace_entry *x = ((const struct ref *)a)->entry;
    const struct trace_entry *y = ((const struct ref *)b)->entry;

    return x->record.vm_id != y->record.vm_id ? compare_numbers(x->record.vm_id, y->record.vm_id)
                                              : compare_places(x, y);
}

static struct trace_vm *vm_for(struct trace_story *story, uint32_t vm_id,
                               const struct trace_owner *owner)
{
    struct trace_vm *vm = story->vm_count > 0 ? &story->vms[story->vm_count - 1] : NULL;

    if (vm && vm->vm_id == vm_id)
        return vm;
    assert(story->vms);
    vm = &story->vms[story->vm_count++];
    *vm = (struct trace_vm){vm_id, owner->weight, owner->pool ? owner->pool : 'A', owner->priority};
    return vm;
}

/* What the mediator says of a VM counts; where it says nothing any more, what stood in the
 * session's file from the beginning. */
static void make_vms(struct trace_story *story, const struct trace_log *log)
{
    struct ref *entries = trace_grow(NULL, log->entry_count, sizeof(*entries));

    for (size_t i = 0; i < log->entry_count; i++)
        entries[i].entry = &log->entries[i];
    if (log->entry_count > 1)
        qsort(entries, log->entry_count, sizeof(*entries), compare_by_vm);
    story->vms = trace_grow(NULL, log->entry_count, sizeof(*story->vms));
    for (size_t i = 0; i < log->entry_count; i++) {
        const struct trace_record *record = &entries[i].entry->record;
        const struct trace_owner *owner = &log->sources[entries[i].entry->source].owner;
        struct trace_vm *vm = vm_for(story, record->vm_id, owner);

        if (owner->vm_id == 0 && record->pool != 0) {
            vm->pool = (char)record->pool;
            vm->priority = record->priority;
        }
        if (owner->vm_id == 0 && record->kind == TRACE_WAIT && record->number >= 1 &&
            record->number <= 1000)
            vm->weight = record->number;
    }
    free(entries);
}

static int compare_vms(const void *a, const void *b)
{
    return compare_numbers(((const struct trace_vm *)a)->vm_id,
                           ((const struct trace_vm *)b)->vm_id);
}

const struct trace_vm *trace_story_vm(const struct trace_story *story, uint32_t vm_id)
{
    const struct trace_vm key = {.vm_id = vm_id};

    return story->vm_count == 0
               ? NULL
               : bsearch(&key, story->vms, story->vm_count, sizeof(key), compare_vms);
}

/* --- operations ------------------------------------------------------------------------------- */

/* By file and VM; there the arrivals before the completions. */
static int compare_operations(const void *a, const void *b)
{
    const struct trace_entry *x = ((const struct ref *)a)->entry;
    const struct trace_entry *y = ((const struct ref *)b)->entry;

    if (x->source != y->source)
        return compare_numbers(x->source, y->source);
    if (x->record.vm_id != y->record.vm_id)
        return compare_numbers(x->record.vm_id, y->record.vm_id);
    if (x->record.kind != y->record.kind)
        return compare_numbers(x->record.kind, y->record.kind);
    return compare_places(x, y);
}

static bool is_of_one(const struct trace_entry *a, const struct trace_entry *b)
{
    return a->source == b->source && a->record.vm_id == b->record.vm_id;
}

/* The one of `count` arrivals that tells of operation `number`; NULL: it was written over.
 * Their numbers rise, and wrap; where they do not, nothing right is found, and no harm done. */
static const struct trace_record *find_arrival(const struct ref *arrivals, size_t count,
                                               uint32_t number)
{
    size_t low = 0, high = count;
    const struct trace_record *found;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (arrivals[middle].entry->record.number - arrivals[0].entry->record.number <=
            number - arrivals[0].entry->record.number)
            low = middle;
        else
            high = middle;
    }
    if (count == 0)
        return NULL;
    found = &arrivals[low].entry->record;
    return number - found->number < found->count ? found : NULL;
}

/* One after the other in a session, so that none begins before the last one has ended. */
static void add_operation(struct trace_story *story, const struct trace_entry *entry,
                          const struct trace_record *arrival, uint64_t last_ns)
{
    const struct trace_record *record = &entry->record;
    struct trace_operation operation = {.ended_ns = record->time_ns,
                                        .began_ns = record->time_ns - record->device_ns,
                                        .device_ns = record->device_ns,
                                        .vm_id = record->vm_id,
                                        .source = entry->source,
                                        .number = record->number,
                                        .opcode = record->what,
                                        .status = record->reason};

    if (operation.began_ns < last_ns)
        operation.began_ns = last_ns;
    operation.arrived_ns = arrival ? arrival->time_ns : operation.began_ns;
    if (operation.arrived_ns > operation.ended_ns)
        operation.arrived_ns = operation.ended_ns;
    if (operation.began_ns < operation.arrived_ns)
        operation.began_ns = operation.arrived_ns;
    story->operations[story->operation_count++] = operation;
}

/* Those of one file and VM; returns how many entries there are. */
static size_t add_operations(struct trace_story *story, const struct ref *entries, size_t count)
{
    size_t arrivals = 0, i;
    uint64_t last_ns = 0;

    while (arrivals < count && is_of_one(entries[0].entry, entries[arrivals].entry) &&
           entries[arrivals].entry->record.kind == TRACE_ARRIVE)
        arrivals++;
    for (i = arrivals; i < count && is_of_one(entries[0].entry, entries[i].entry); i++) {
        add_operation(story, entries[i].entry,
                      find_arrival(entries, arrivals, entries[i].entry->record.number), last_ns);
        last_ns = entries[i].entry->record.time_ns;
    }
    return i;
}

static void make_operations(struct trace_story *story, const struct trace_log *log)
{
    size_t count;
    struct ref *entries = pick(log, true, compare_operations, &count);

    story->operations = trace_grow(NULL, count, sizeof(*story->operations));
    for (size_t i = 0; i < count;)
        i += add_operations(story, entries + i, count - i);
    free(entries);
}

/* --- waits and grants ---------------------------------------------------------------------------
 */

static int compare_by_place(const void *a, const void *b)
{
    const struct trace_entry *x = ((const struct ref *)a)->entry;
    const struct trace_entry *y = ((const struct ref *)b)->entry;

    if (x->record.vm_id != y->record.vm_id)
        return compare_numbers(x->record.vm_id, y->record.vm_id);
    if (x->record.what != y->record.what)
        return compare_numbers(x->record.what, y->record.what);
    return compare_places(x, y);
}

static bool begins_wait(const struct trace_record *record)
{
    return (record->kind == TRACE_WAIT || record->kind == TRACE_RETURN) && record->count > 0;
}

static bool ends_wait(const struct trace_record *record)
{
    return record->kind == TRACE_GRANT || (record->kind == TRACE_WAIT && record->count == 0);
}

static bool begins_grant(const struct trace_record *record)
{
    return record->kind == TRACE_GRANT;
}

static bool ends_grant(const struct trace_record *record)
{
    return record->kind == TRACE_RETURN;
}

/* The spans of each VM's place on a device; what begins again meanwhile goes on. */
static struct trace_span *make_spans(const struct ref *entries, size_t count,
                                     bool (*begins)(const struct trace_record *),
                                     bool (*ends)(const struct trace_record *), size_t *ret_count)
{
    struct trace_span *spans = trace_grow(NULL, count, sizeof(*spans));
    size_t made = 0;
    bool open = false;

    for (size_t i = 0; i < count; i++) {
        const struct trace_record *record = &entries[i].entry->record;

        if (i > 0 && (record->vm_id != entries[i - 1].entry->record.vm_id ||
                      record->what != entries[i - 1].entry->record.what))
            open = false;
        if (open && ends(record)) {
            spans[made - 1].end = record;
            open = false;
        }
        if (!open && begins(record)) {
            spans[made++] = (struct trace_span){record, NULL};
            open = true;
        }
    }
    *ret_count = made;
    return spans;
}

static int compare_by_device(const void *a, const void *b)
{
    const struct trace_record *x = ((const struct trace_span *)a)->begin;
    const struct trace_record *y = ((const struct trace_span *)b)->begin;

    if (x->what != y->what)
        return compare_numbers(x->what, y->what);
    return x->time_ns != y->time_ns ? compare_numbers(x->time_ns, y->time_ns) : (x > y) - (x < y);
}

/* A device has one grant at a time: one whose return nobody wrote down, as the mediator was
 * killed, lasted until the next at most. */
static void bound_grants(struct trace_story *story)
{
    struct trace_span *grants = story->grants;

    if (story->grant_count > 1)
        qsort(grants, story->grant_count, sizeof(*grants), compare_by_device);
    for (size_t i = 1; i < story->grant_count; i++) {
        if (grants[i].begin->what == grants[i - 1].begin->what &&
            (!grants[i - 1].end || grants[i - 1].end->time_ns > grants[i].begin->time_ns))
            grants[i - 1].end = grants[i].begin;
    }
}

/* --- the whole -----------------------------------------------------------------------------------
 */

void trace_story_make(const struct trace_log *log, struct trace_story *ret_story)
{
    size_t count;
    struct ref *entries = pick(log, false, compare_by_place, &count);

    *ret_story = (struct trace_story){0};
    make_vms(ret_story, log);
    make_operations(ret_story, log);
    ret_story->waits = make_spans(entries, count, begins_wait, ends_wait, &ret_story->wait_count);
    ret_story->grants =
        make_spans(entries, count, begins_grant, ends_grant, &ret_story->grant_count);
    bound_grants(ret_story);
    free(entries);
}

void trace_story_clear(struct trace_story *story)
{
    free(story->vms);
    free(story->operations);
    free(story->waits);
    free(story->grants);
    *story = (struct trace_story){0};
}
