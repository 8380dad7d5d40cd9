/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decision log, read while it is written.
 *
 * A copy is taken between two looks at the writer's position.  Record n stands until record
 * n + capacity is begun, which is as soon as the position is n + capacity: so of the copy those
 * count that are younger, by the second look, and were there at the first.  A position is a
 * worker's word: nothing is done with it but to choose among `capacity` places.
 */
#include "trace/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PRIORITY_MAX 2u
#define WEIGHT_MAX 1000u

const char *trace_kind_name(enum trace_kind kind)
{
    static const char *const names[TRACE_KINDS] = {"none",  "arrive", "complete", "wait",
                                                   "grant", "revoke", "return",   "switch"};

    return (unsigned)kind < TRACE_KINDS ? names[kind] : "unknown";
}

const char *trace_reason_name(enum trace_reason reason)
{
    static const char *const names[TRACE_REASONS] = {"", "others-wait", "own-waits", "stop",
                                                     "worker-ended"};

    return (unsigned)reason < TRACE_REASONS ? names[reason] : "unknown";
}

/* --- memory ------------------------------------------------------------------------------ */

/* As in the rest of a short command: without memory there is nothing to go on with. */
void *trace_grow(void *memory, size_t count, size_t bytes)
{
    void *grown = reallocarray(memory, count > 0 ? count : 1, bytes);

    if (!grown)
        abort();
    return grown;
}

void trace_log_clear(struct trace_log *log)
{
    free(log->sources);
    free(log->entries);
    *log = (struct trace_log){0};
}

/* --- one record -------------------------------------------------------------------------- */

static bool is_pool(uint8_t pool)
{
    return pool >= 'A' && pool <= 'Z';
}

static bool is_workers_kind(uint8_t kind)
{
    return kind == TRACE_ARRIVE || kind == TRACE_COMPLETE;
}

/* Whether somebody of this file could have written it.  A session's worker tells of operations
 * of its own VM, of the past. */
static bool record_makes_sense(const struct trace_record *record, uint32_t vm_id, uint64_t now_ns)
{
    bool operation = is_workers_kind(record->kind);

    if (record->kind == TRACE_NONE || record->kind >= TRACE_KINDS || record->time_ns > now_ns ||
        record->vm_id == 0 || record->priority > PRIORITY_MAX)
        return false;
    if (vm_id != 0 && (record->vm_id != vm_id || !operation))
        return false;
    if (!is_pool(record->pool) && (record->pool != 0 || !operation))
        return false;
    if (record->kind == TRACE_COMPLETE && record->device_ns > record->time_ns)
        return false;
    return operation || (record->reason < TRACE_REASONS && record->what < TRACE_DEVICES_MAX);
}

static bool is_wanted(const struct trace_record *record, const struct trace_filter *filter)
{
    return (filter->vm_id == 0 || record->vm_id == filter->vm_id) &&
           record->time_ns >= filter->since_ns;
}

/* --- one file ------------------------------------------------------------------------------ */

struct copy {
    struct trace_header header; /* the first look */
    uint64_t position;          /* the second */
    struct trace_record *records;
};

static int read_position(int fd, uint64_t *ret_position)
{
    return fd_pread_all(fd, ret_position, sizeof(*ret_position),
                        offsetof(struct trace_header, position));
}

static int copy_file(int fd, const char *path, struct copy *copy, struct vgpu_error *error)
{
    struct stat info;
    size_t bytes;

    if (fstat(fd, &info) < 0 || fd_pread_all(fd, &copy->header, sizeof(copy->header), 0) < 0)
        return error_set_errno(error, "cannot read trace '%s'", path);
    if (!S_ISREG(info.st_mode) || !trace_header_makes_sense(&copy->header, (uint64_t)info.st_size))
        return error_set(error, EINVAL, "'%s' is no trace of this release", path);
    bytes = copy->header.capacity * sizeof(*copy->records);
    copy->records = trace_grow(NULL, copy->header.capacity, sizeof(*copy->records));
    if (fd_pread_all(fd, copy->records, bytes, sizeof(copy->header)) == 0 &&
        read_position(fd, &copy->position) == 0)
        return 0;
    error_set_errno(error, "cannot read trace '%s'", path);
    free(copy->records);
    return -1;
}

static struct trace_owner owner_of(const struct trace_header *header, uint32_t vm_id)
{
    struct trace_owner owner = {.vm_id = vm_id, .weight = TRACE_WEIGHT_DEFAULT};

    if (header->weight >= 1 && header->weight <= WEIGHT_MAX)
        owner.weight = header->weight;
    if (is_pool(header->pool))
        owner.pool = (char)header->pool;
    if (header->priority <= PRIORITY_MAX)
        owner.priority = header->priority;
    return owner;
}

/* The numbers of the records that can be believed: from *ret_first up to the first look. */
static uint64_t count_whole(const struct copy *copy, uint64_t *ret_first)
{
    uint64_t capacity = copy->header.capacity, end = copy->header.position;
    uint64_t first = copy->position >= capacity ? copy->position - capacity + 1 : 0;

    if (copy->position < end || first >= end)
        return 0; /* a writer that counts backwards is none, and one may be so quick */
    *ret_first = first;
    return end - first;
}

static void add_entry(struct trace_log *log, const struct trace_record *record, uint32_t source)
{
    uint32_t order = (uint32_t)log->entry_count++;

    log->entries[order] = (struct trace_entry){*record, source, order};
}

static void add_records(struct trace_log *log, const struct copy *copy, uint32_t vm_id,
                        const struct trace_filter *filter)
{
    uint32_t index = (uint32_t)log->source_count - 1;
    struct trace_source *source = &log->sources[index];
    uint64_t now_ns = clock_monotonic_ns(), first = 0, count = count_whole(copy, &first);

    log->entries = trace_grow(log->entries, log->entry_count + count, sizeof(*log->entries));
    source->lost = first;
    for (uint64_t i = first; i < first + count; i++) {
        const struct trace_record *record = &copy->records[i & (copy->header.capacity - 1)];

        if (!record_makes_sense(record, vm_id, now_ns))
            source->rejected++;
        else if (is_wanted(record, filter))
            add_entry(log, record, index);
    }
}

int trace_read_file(struct trace_log *log, const char *path, uint32_t vm_id,
                    const struct trace_filter *filter, struct vgpu_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), result;
    struct copy copy;

    if (fd < 0)
        return error_set_errno(error, "cannot open trace '%s'", path);
    result = copy_file(fd, path, &copy, error);
    fd_close(&fd);
    if (result < 0)
        return -1;
    log->sources = trace_grow(log->sources, log->source_count + 1, sizeof(*log->sources));
    log->sources[log->source_count++] =
        (struct trace_source){.owner = owner_of(&copy.header, vm_id)};
    add_records(log, &copy, vm_id, filter);
    free(copy.records);
    return 0;
}

/* --- all of them ----------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b)
{
    const struct trace_entry *x = a, *y = b;

    if (x->record.time_ns != y->record.time_ns)
        return x->record.time_ns < y->record.time_ns ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

void trace_sort(struct trace_log *log)
{
    if (log->entry_count > 1)
        qsort(log->entries, log->entry_count, sizeof(*log->entries), compare_entries);
}

/* The VM of "vm7-1f3c-0.trace"; 0: it is no session's. */
static uint32_t vm_of_name(const char *name)
{
    unsigned long long inode;
    unsigned vm_id, slot;
    int end = 0;

    /* NOLINTNEXTLINE(cert-err34-c): a name that is not ours names no VM */
    if (sscanf(name, "vm%u-%llx-%u.trace%n", &vm_id, &inode, &slot, &end) != 3 || end == 0 ||
        name[end] != '\0')
        return 0;
    return vm_id;
}

static void read_session(struct trace_log *log, const char *directory, const char *name,
                         const struct trace_filter *filter)
{
    uint32_t vm_id = vm_of_name(name);
    char path[PATH_MAX + NAME_MAX + 2];
    struct vgpu_error error;

    if (vm_id == 0 || (filter->vm_id != 0 && filter->vm_id != vm_id))
        return;
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    if (trace_read_file(log, path, vm_id, filter, &error) < 0 && error.code != ENOENT)
        log_warning("%s", error.message);
}

int trace_read_directory(struct trace_log *log, const char *run_dir,
                         const struct trace_filter *filter, struct vgpu_error *error)
{
    char directory[PATH_MAX], path[PATH_MAX + 32];
    struct dirent *entry;
    DIR *files;

    snprintf(directory, sizeof(directory), "%.*s/" TRACE_DIRECTORY, PATH_MAX - 16, run_dir);
    files = opendir(directory);
    if (!files)
        return error_set_errno(error, "cannot read the trace directory '%s'", directory);
    snprintf(path, sizeof(path), "%s/" TRACE_MEDIATOR_FILE, directory);
    if (trace_read_file(log, path, 0, filter, error) < 0) {
        if (error->code == ENOENT) {
            closedir(files);
            return -1;
        }
        log_warning("%s", error->message); /* what the sessions say is a part of it too */
    }
    while ((entry = readdir(files)))
        read_session(log, directory, entry->d_name, filter);
    closedir(files);
    trace_sort(log);
    return 0;
}
