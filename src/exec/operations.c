/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each operation does.
 *
 * Operations are begun in the order of their ring.  On a backend without streams of its
 * own each has ended when the next begins: that is one of the orders that streams and
 * events allow, since an operation can only wait for earlier ones; so streams and events
 * are names and times there, and a wait is over when it comes.
 *
 * Elsewhere an operation is put into its stream, or waits for one, and the next begins:
 *
 *   copy, set, launch     over when its stream has come so far
 *   sync                  over when what it names has come so far
 *   free, unload          begin when all before them has ended
 *   stream destroy        the name is free at once, the stream ends when it is empty
 *   event record, wait    over at once; what they put into the stream counts until it is reached
 *
 * A driver's queue has an end, behind which its caller waits.  So what is in it is counted, and a
 * copy that takes many calls is put piece by piece.
 *
 * Where a session has several devices, each has memory, a default stream and a state of the
 * backend of its own.  An operation is its descriptor's device's: the stream that it names
 * must have been made there.  Only a copy may go between two; an event may be waited for
 * everywhere, and what names a handle to end or ask it goes where that was made.
 *
 * The descriptor is a private copy, and has been checked.  What it points to in the slot
 * (names, parameters, commands, images) is copied once before it is looked at; bulk data is
 * not: a guest that changes it while it is copied gets what it asked for.
 */
#include "exec/device.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uthash.h>

enum handle_kind { HANDLE_STREAM = 1, HANDLE_EVENT = 2, HANDLE_MODULE = 3 };

/* Streams, events and modules have numbers of their own: the key holds both. */
struct handle {
    uint64_t key;
    unsigned device;            /* that it was made on */
    void *object;               /* the backend's, where it has such things */
    bool recorded;              /* event */
    uint64_t recorded_ns;       /* event, where the backend has none */
    struct device_wait reached; /* event: over when it is reached */
    enum vgpu_status error;     /* stream: of QUIET operations since its last sync */
    UT_hash_handle hh;
};

/* --- handles -------------------------------------------------------------------------- */

static struct handle *handle_find(struct device *device, enum handle_kind kind, uint32_t id)
{
    uint64_t key = (uint64_t)kind << 32 | id;
    struct handle *handle = device->recent[kind];

    /* Most operations are in one stream, and of one module. */
    if (handle && handle->key == key)
        return handle;
    HASH_FIND(hh, device->handles, &key, sizeof(key), handle);
    device->recent[kind] = handle;
    return handle;
}

static enum handle_kind kind_of(const struct handle *handle)
{
    return (enum handle_kind)(handle->key >> 32);
}

static void *state_of(const struct device *device, unsigned index)
{
    return device->parts[index].state;
}

static enum vgpu_status object_open(struct device *device, unsigned index, enum handle_kind kind,
                                    void **ret_object)
{
    if (kind == HANDLE_STREAM && device->ops->stream_open)
        return device->ops->stream_open(state_of(device, index), ret_object);
    if (kind == HANDLE_EVENT && device->ops->event_open)
        return device->ops->event_open(state_of(device, index), ret_object);
    return VGPU_OK;
}

/* Nothing is in flight that needs it. */
static void object_close(struct device *device, unsigned index, enum handle_kind kind, void *object)
{
    if (!object)
        return;
    if (kind == HANDLE_STREAM)
        device->ops->stream_close(state_of(device, index), object);
    else if (kind == HANDLE_EVENT)
        device->ops->event_close(state_of(device, index), object);
    else
        device->ops->module_unload(state_of(device, index), object);
}

static enum vgpu_status handle_add(struct device *device, unsigned index, enum handle_kind kind,
                                   uint32_t id, void *object)
{
    struct handle *handle = calloc(1, sizeof(*handle));

    if (!handle) {
        object_close(device, index, kind, object);
        return VGPU_TOO_MANY;
    }
    handle->key = (uint64_t)kind << 32 | id;
    handle->device = index;
    handle->object = object;
    HASH_ADD(hh, device->handles, key, sizeof(handle->key), handle);
    device->handle_count++;
    return VGPU_OK;
}

static enum vgpu_status handle_may_be_made(struct device *device, enum handle_kind kind,
                                           uint32_t id)
{
    if (handle_find(device, kind, id))
        return VGPU_HANDLE_EXISTS;
    return device->handle_count < DEVICE_HANDLES_MAX ? VGPU_OK : VGPU_TOO_MANY;
}

static enum vgpu_status handle_create(struct device *device, unsigned index, enum handle_kind kind,
                                      uint32_t id)
{
    enum vgpu_status status = handle_may_be_made(device, kind, id);
    void *object = NULL;

    if (status == VGPU_OK)
        status = object_open(device, index, kind, &object);
    return status == VGPU_OK ? handle_add(device, index, kind, id, object) : status;
}

/* The name is free again; what stood behind it is the caller's. */
static enum vgpu_status handle_remove(struct device *device, enum handle_kind kind, uint32_t id,
                                      unsigned *ret_index, void **ret_object)
{
    struct handle *handle = handle_find(device, kind, id);

    if (!handle)
        return VGPU_BAD_HANDLE;
    *ret_index = handle->device;
    *ret_object = handle->object;
    device->recent[kind] = NULL;
    HASH_DEL(device->handles, handle); /* NOLINT: the analyzer is lost in the macro */
    free(handle);
    device->handle_count--;
    return VGPU_OK;
}

static void handles_clear(struct device *device)
{
    struct handle *handle, *next;

    memset(device->recent, 0, sizeof(device->recent));
    HASH_ITER (hh, device->handles, handle, next) {
        HASH_DEL(device->handles, handle); /* NOLINT: the analyzer is lost in the macro */
        object_close(device, handle->device, kind_of(handle), handle->object);
        free(handle);
    }
    device->handle_count = 0;
}

/* Stream 0 is NULL to backends. */
static void *stream_object(struct device *device, uint32_t stream)
{
    struct handle *handle = stream ? handle_find(device, HANDLE_STREAM, stream) : NULL;

    return handle ? handle->object : NULL;
}

/* What is in `stream` now has ended when *ret_wait is over. */
static enum vgpu_status begun(struct device *device, unsigned index, void *stream,
                              enum device_interest interest, struct device_wait *ret_wait)
{
    if (!device->ops->mark)
        return VGPU_OK;
    *ret_wait = (struct device_wait){.device = index, .stream = stream};
    device->ops->mark(state_of(device, index), interest, ret_wait);
    return DEVICE_BEGUN;
}

/* All that was begun on this device before has ended when *ret_wait is over. */
static enum vgpu_status wait_for_device(struct device *device, unsigned index,
                                        struct device_wait *ret_wait)
{
    if (!device->ops->mark)
        return VGPU_OK;
    *ret_wait = (struct device_wait){.device = index, .everything = true};
    device->ops->mark(state_of(device, index), DEVICE_SYNC, ret_wait);
    return DEVICE_BEGUN;
}

/* The same, on all of them. */
static enum vgpu_status wait_for_all(struct device *device, struct device_wait *ret_wait)
{
    enum vgpu_status status = VGPU_OK;

    for (unsigned index = 0; index < device->count; index++)
        status = wait_for_device(device, index, ret_wait); /* numbers rise over all devices */
    if (status == DEVICE_BEGUN)
        ret_wait->device = DEVICE_ALL;
    return status;
}

/* A loss anywhere goes before what is not ready elsewhere. */
static enum vgpu_status worse(enum vgpu_status a, enum vgpu_status b)
{
    return a == VGPU_OK || (a == VGPU_NOT_READY && b != VGPU_OK) ? b : a;
}

static enum vgpu_status poll_all(struct device *device, const struct device_wait *wait)
{
    enum vgpu_status status = VGPU_OK;

    for (unsigned index = 0; index < device->count; index++)
        status = worse(status, device->ops->reached(state_of(device, index), wait));
    return status;
}

enum vgpu_status device_poll(struct device *device, const struct device_wait *wait)
{
    if (!device->ops->reached)
        return VGPU_OK;
    return wait->device == DEVICE_ALL ? poll_all(device, wait)
                                      : device->ops->reached(state_of(device, wait->device), wait);
}

enum vgpu_status device_drained(struct device *device)
{
    enum vgpu_status status = VGPU_OK;

    for (unsigned index = 0; device->ops->drained && index < device->count; index++)
        status = worse(status, device->ops->drained(state_of(device, index)));
    return status;
}

void device_rest(struct device *device)
{
    for (unsigned index = 0; device->ops->rest && index < device->count; index++)
        device->ops->rest(state_of(device, index));
}

bool device_is_empty(const struct device *device)
{
    bool empty = device->ops->is_empty != NULL;

    for (unsigned index = 0; empty && index < device->count; index++)
        empty = device->ops->is_empty(state_of(device, index));
    return empty;
}

static enum vgpu_status *stream_error(struct device *device, unsigned index, uint32_t stream)
{
    struct handle *handle = stream ? handle_find(device, HANDLE_STREAM, stream) : NULL;

    if (stream == 0)
        return &device->parts[index].error;
    return handle ? &handle->error : NULL;
}

/* The descriptor may name a device, and a stream, that are not: somebody is to know. */
void device_note_error(struct device *device, const struct vgpu_descriptor *operation,
                       enum vgpu_status status)
{
    unsigned index = operation->device < device->count ? operation->device : 0;
    enum vgpu_status *own = stream_error(device, index, operation->stream);

    if (!own)
        own = &device->parts[index].error;
    /* NOLINTNEXTLINE: the analyzer is lost in the macro that looks for the stream */
    if (*own == VGPU_OK)
        *own = status;
}

static enum vgpu_status take_error(enum vgpu_status *error)
{
    enum vgpu_status status = *error;

    *error = VGPU_OK;
    return status;
}

/* Of what was made on this device. */
static enum vgpu_status take_all_errors(struct device *device, unsigned index)
{
    enum vgpu_status status = take_error(&device->parts[index].error);
    struct handle *handle, *next;

    HASH_ITER (hh, device->handles, handle, next) {
        enum vgpu_status one = handle->device == index ? take_error(&handle->error) : VGPU_OK;

        if (status == VGPU_OK)
            status = one;
    }
    return status;
}

/* --- streams ---------------------------------------------------------------------------- */

/* Stream 0 is that of `index`. */
static enum vgpu_status stream_sync(struct device *device, unsigned index, uint32_t stream,
                                    struct device_wait *ret_wait)
{
    const struct handle *handle = stream ? handle_find(device, HANDLE_STREAM, stream) : NULL;

    if (stream != 0 && !handle)
        return VGPU_BAD_HANDLE;
    if (begun(device, handle ? handle->device : index, handle ? handle->object : NULL, DEVICE_SYNC,
              ret_wait) == DEVICE_BEGUN)
        return DEVICE_BEGUN;
    return take_error(stream_error(device, index, stream));
}

static enum vgpu_status device_sync(struct device *device, unsigned index,
                                    struct device_wait *ret_wait)
{
    if (wait_for_device(device, index, ret_wait) == DEVICE_BEGUN)
        return DEVICE_BEGUN;
    return take_all_errors(device, index);
}

static enum vgpu_status stream_destroy(struct device *device, uint32_t stream,
                                       struct device_wait *ret_wait)
{
    void *object = NULL;
    unsigned index;
    enum vgpu_status status = handle_remove(device, HANDLE_STREAM, stream, &index, &object);

    if (status != VGPU_OK)
        return status;
    status = begun(device, index, object, DEVICE_ANSWER, ret_wait);
    ret_wait->object = object;
    return status;
}

/* It has come to its end, and so have the events that were recorded in it. */
static void stream_end(struct device *device, unsigned index, void *stream)
{
    struct handle *handle, *next;

    HASH_ITER (hh, device->handles, handle, next) {
        if (kind_of(handle) == HANDLE_EVENT && handle->reached.stream == stream)
            handle->reached = (struct device_wait){.stream = NULL};
    }
    object_close(device, index, HANDLE_STREAM, stream);
}

/* --- events ---------------------------------------------------------------------------- */

/* In a stream of its own device. */
static enum vgpu_status event_record(struct device *device, unsigned index, uint32_t stream,
                                     uint32_t event, struct device_wait *ret_wait)
{
    struct handle *handle = handle_find(device, HANDLE_EVENT, event);
    void *stream_at = stream_object(device, stream);
    enum vgpu_status status = VGPU_OK;

    if (!handle || handle->device != index)
        return VGPU_BAD_HANDLE;
    if (device->ops->event_record)
        status = device->ops->event_record(state_of(device, index), stream_at, handle->object);
    if (status != VGPU_OK)
        return status;
    handle->recorded = true;
    handle->recorded_ns = clock_monotonic_ns();
    if (begun(device, index, stream_at, DEVICE_ANSWER, &handle->reached) != DEVICE_BEGUN)
        return VGPU_OK;
    *ret_wait = handle->reached;
    handle->reached.calls = 0; /* who waits for it puts nothing */
    return DEVICE_PUT;
}

static enum vgpu_status event_reached(struct device *device, const struct handle *event)
{
    return event->recorded ? device_poll(device, &event->reached) : VGPU_OK;
}

static enum vgpu_status event_query(struct device *device, uint32_t event)
{
    const struct handle *handle = handle_find(device, HANDLE_EVENT, event);

    return handle ? event_reached(device, handle) : VGPU_BAD_HANDLE;
}

static enum vgpu_status event_elapsed(struct device *device, uint32_t earlier, uint32_t later,
                                      uint64_t *ret_ns)
{
    const struct handle *from = handle_find(device, HANDLE_EVENT, earlier);
    const struct handle *to = handle_find(device, HANDLE_EVENT, later);
    enum vgpu_status status;

    if (!from || !to || from->device != to->device)
        return VGPU_BAD_HANDLE;
    if (!from->recorded || !to->recorded)
        return VGPU_NOT_READY;
    status = worse(event_reached(device, from), event_reached(device, to));
    if (status != VGPU_OK)
        return status;
    if (device->ops->event_elapsed)
        return device->ops->event_elapsed(state_of(device, from->device), from->object, to->object,
                                          ret_ns);
    *ret_ns = to->recorded_ns > from->recorded_ns ? to->recorded_ns - from->recorded_ns : 0;
    return VGPU_OK;
}

static enum vgpu_status event_sync(struct device *device, uint32_t event,
                                   struct device_wait *ret_wait)
{
    const struct handle *handle = handle_find(device, HANDLE_EVENT, event);

    if (!handle)
        return VGPU_BAD_HANDLE;
    if (!handle->recorded || !device->ops->mark)
        return VGPU_OK;
    *ret_wait = handle->reached;
    return DEVICE_BEGUN;
}

/* For an event of any device. */
static enum vgpu_status stream_wait(struct device *device, unsigned index, uint32_t stream,
                                    uint32_t event, struct device_wait *ret_wait)
{
    const struct handle *handle = handle_find(device, HANDLE_EVENT, event);
    void *stream_at = stream_object(device, stream);
    enum vgpu_status status;

    if (!handle)
        return VGPU_BAD_HANDLE;
    if (!handle->recorded || !device->ops->event_wait)
        return VGPU_OK; /* what was recorded has been reached */
    status = device->ops->event_wait(state_of(device, index), stream_at, handle->object);
    if (status == VGPU_OK &&
        begun(device, index, stream_at, DEVICE_QUIET, ret_wait) == DEVICE_BEGUN)
        return DEVICE_PUT;
    return status;
}

static enum vgpu_status event_destroy(struct device *device, uint32_t event)
{
    void *object = NULL;
    unsigned index;
    enum vgpu_status status = handle_remove(device, HANDLE_EVENT, event, &index, &object);

    if (status == VGPU_OK)
        object_close(device, index, HANDLE_EVENT, object);
    return status;
}

/* --- modules ---------------------------------------------------------------------------- */

static enum vgpu_status module_part(struct device *device, const struct vgpu_descriptor *operation)
{
    uint32_t id = operation->module.handle;
    enum vgpu_status status;

    if (!device->ops->module_load)
        return VGPU_NOT_SUPPORTED;
    status = handle_may_be_made(device, HANDLE_MODULE, id);
    if (status != VGPU_OK)
        return status;
    return images_add(&device->images, id, device->slot + operation->module.image_offset,
                      operation->module.image_bytes, operation->module.part_at,
                      operation->module.whole_bytes);
}

/* A private copy, the caller's to images_free(): of what is in the slot, or came in parts. */
static enum vgpu_status take_image(struct device *device, const struct vgpu_descriptor *operation,
                                   uint8_t **ret_image)
{
    uint64_t bytes = operation->module.image_bytes;

    if (operation->module.image_offset == 0)
        return images_take(&device->images, operation->module.handle, bytes, ret_image);
    images_drop(&device->images, operation->module.handle);
    return images_copy(&device->images, device->slot + operation->module.image_offset, bytes,
                       ret_image);
}

static enum vgpu_status module_load(struct device *device, const struct vgpu_descriptor *operation)
{
    uint32_t id = operation->module.handle;
    uint64_t bytes = operation->module.image_bytes;
    enum vgpu_status status;
    uint8_t *image;
    void *module;

    if (!device->ops->module_load)
        return VGPU_NOT_SUPPORTED;
    status = handle_may_be_made(device, HANDLE_MODULE, id);
    if (status == VGPU_OK)
        status = take_image(device, operation, &image);
    if (status != VGPU_OK)
        return status;
    status = device->ops->module_load(state_of(device, operation->device), image, bytes, &module);
    images_free(&device->images, image, bytes);
    return status == VGPU_OK ? handle_add(device, operation->device, HANDLE_MODULE, id, module)
                             : status;
}

static enum vgpu_status module_unload(struct device *device, uint32_t id,
                                      struct device_wait *ret_wait)
{
    void *object = NULL;
    unsigned index;
    enum vgpu_status status;

    if (!device->ops->module_load)
        return VGPU_NOT_SUPPORTED;
    if (images_drop(&device->images, id))
        return VGPU_OK; /* it was not a module yet */
    status = handle_remove(device, HANDLE_MODULE, id, &index, &object);
    if (status != VGPU_OK)
        return status;
    status = wait_for_device(device, index, ret_wait);
    ret_wait->object = object;
    return status;
}

static enum device_interest interest_in(const struct vgpu_descriptor *operation)
{
    return operation->flags & VGPU_FLAG_QUIET ? DEVICE_QUIET : DEVICE_ANSWER;
}

/* --- text, launch, query ------------------------------------------------------------------- */

static enum vgpu_status text(struct device *device, const struct vgpu_descriptor *operation,
                             uint64_t *ret_bytes)
{
    struct protocol_response response;
    char command[VGPU_TEXT_MAX_BYTES + 1];
    uint32_t bytes = operation->text.command_bytes;
    size_t length;

    memcpy(command, device->slot + operation->text.command_offset, bytes);
    command[bytes] = '\0';
    if (bytes > VGPU_COMMAND_MAX_BYTES || strlen(command) != bytes)
        return VGPU_INVALID;
    if (device->backend->choose)
        device->backend->choose(operation->device);
    exec_run_command(device->backend, command, &response);
    length = strlen(response.message);
    if (length > operation->text.answer_bytes)
        length = operation->text.answer_bytes;
    memcpy(device->slot + operation->text.answer_offset, response.message, length);
    *ret_bytes = length;
    return response.success ? VGPU_OK : VGPU_COMMAND_FAILED;
}

#define COPIED_AT_ONCE 16u

/* As memcpy(), for what is nearly always short: no call.  Reads and writes up to whole
 * COPIED_AT_ONCE. */
static inline void copy_short(void *target, const uint8_t *source, uint32_t bytes)
{
    for (uint32_t at = 0; at < bytes; at += COPIED_AT_ONCE) {
        memcpy((uint8_t *)target + at, source + at, COPIED_AT_ONCE);
        __asm__ volatile("" ::: "memory"); /* else the compiler makes it one memcpy() */
    }
}

_Static_assert(VGPU_PARAMETERS_MAX_BYTES % COPIED_AT_ONCE == 0 &&
                   VGPU_NAME_MAX_BYTES % COPIED_AT_ONCE == 0,
               "the copies have room for whole ones; in the slot the heap is behind the arena");

/* A private copy, with zeros behind it. */
static inline void copy_name(char name[DEVICE_NAME_BYTES], const uint8_t *source, uint32_t bytes)
{
    copy_short(name, source, bytes);
    memset(name + bytes, 0, sizeof(uint64_t));
}

static __attribute__((noinline)) enum vgpu_status
launch(struct device *device, const struct vgpu_descriptor *operation, struct device_wait *ret_wait)
{
    uint64_t parameters[VGPU_PARAMETERS_MAX_BYTES / sizeof(uint64_t)];
    char name[DEVICE_NAME_BYTES];
    uint32_t name_bytes = operation->launch.name_bytes;
    uint32_t parameters_bytes = operation->launch.parameters_bytes;
    void *stream = stream_object(device, operation->stream);
    struct device_launch request = {.name = name,
                                    .parameters = parameters,
                                    .count = parameters_bytes / (uint32_t)sizeof(uint64_t),
                                    .shared_bytes = operation->launch.shared_bytes,
                                    .grid = operation->launch.grid,
                                    .block = operation->launch.block};
    enum vgpu_status status;

    if (operation->launch.module != 0 && !device->ops->module_load)
        return VGPU_NOT_SUPPORTED;
    if (operation->launch.module != 0) {
        const struct handle *module = handle_find(device, HANDLE_MODULE, operation->launch.module);

        if (!module || module->device != operation->device)
            return VGPU_BAD_HANDLE;
        request.module = module->object;
    }
    copy_name(name, device->slot + operation->launch.name_offset, name_bytes);
    copy_short(parameters, device->slot + operation->launch.parameters_offset, parameters_bytes);
    status = device->ops->launch(state_of(device, operation->device), stream, &request);
    return status == VGPU_OK
               ? begun(device, operation->device, stream, interest_in(operation), ret_wait)
               : status;
}

static enum vgpu_status query(const struct device *device, unsigned index, uint32_t attribute,
                              uint64_t *ret_value)
{
    switch (attribute) {
    case VGPU_QUERY_OPERATION_LIMIT_MS:
        *ret_value = device->operation_limit_ms;
        return VGPU_OK;
    case VGPU_QUERY_DEVICES:
        *ret_value = device->count;
        return VGPU_OK;
    default:
        return device->ops->query(state_of(device, index), attribute, ret_value);
    }
}

/* --- memory -------------------------------------------------------------------------------- */

/* Which device has this range; device->count: none has. */
static unsigned owner_of(const struct device *device, uint64_t address, uint64_t bytes)
{
    unsigned index = 0;

    while (index < device->count && !device->ops->has(state_of(device, index), address, bytes))
        index++;
    return index;
}

/* On one device, or between the descriptor's and another one. */
static enum vgpu_status copy(struct device *device, void *stream,
                             const struct vgpu_descriptor *operation)
{
    uint64_t target = operation->copy.target, source = operation->copy.source;
    uint64_t bytes = operation->copy.bytes;
    void *state = state_of(device, operation->device);
    unsigned to, from;

    if (device->count == 1 || !device->ops->has)
        return device->ops->copy(state, stream, target, source, bytes);
    to = owner_of(device, target, bytes);
    from = owner_of(device, source, bytes);
    if (to == device->count || from == device->count ||
        (to != operation->device && from != operation->device))
        return VGPU_BAD_ADDRESS;
    if (to == from)
        return device->ops->copy(state, stream, target, source, bytes);
    return device->ops->copy_across(state, stream, state_of(device, to), target,
                                    state_of(device, from), source, bytes);
}

static enum vgpu_status run_copy(struct device *device, void *stream,
                                 const struct vgpu_descriptor *operation)
{
    uint64_t target = operation->copy.target, source = operation->copy.source;
    uint64_t bytes = operation->copy.bytes;
    void *state = state_of(device, operation->device);

    if (operation->opcode == VGPU_OP_COPY_IN)
        return device->ops->copy_in(state, stream, target, device->slot + source, bytes);
    if (operation->opcode == VGPU_OP_COPY_OUT)
        return device->ops->copy_out(state, stream, device->slot + target, source, bytes);
    return copy(device, stream, operation);
}

static uint64_t copy_most(struct device *device, const struct vgpu_descriptor *operation)
{
    const uint64_t bytes = operation->copy.bytes;

    return device->ops->copy_most
               ? device->ops->copy_most(state_of(device, operation->device), operation->opcode,
                                        operation->copy.target, operation->copy.source, bytes)
               : bytes;
}

/* A copy of its own: of ranges that overlap no piece is written over before it is read. */
static struct vgpu_descriptor piece_of(const struct vgpu_descriptor *operation, uint64_t done_bytes,
                                       uint64_t piece_bytes)
{
    bool backwards =
        operation->opcode == VGPU_OP_COPY && operation->copy.target > operation->copy.source;
    uint64_t at = backwards ? operation->copy.bytes - done_bytes - piece_bytes : done_bytes;
    struct vgpu_descriptor piece = *operation;

    piece.copy.target += at;
    piece.copy.source += at;
    piece.copy.bytes = piece_bytes;
    return piece;
}

/* Puts what may be put now, behind the first so many bytes. */
static enum vgpu_status put_copy(struct device *device, const struct vgpu_descriptor *operation,
                                 uint64_t done_bytes, struct device_wait *ret_wait)
{
    void *stream = stream_object(device, operation->stream);
    uint64_t most = copy_most(device, operation), left = operation->copy.bytes - done_bytes;
    const uint64_t piece_bytes = left < most ? left : most;
    const struct vgpu_descriptor piece = piece_of(operation, done_bytes, piece_bytes);
    enum vgpu_status status = run_copy(device, stream, &piece);

    if (status == VGPU_OK)
        status = begun(device, operation->device, stream, interest_in(operation), ret_wait);
    ret_wait->left_bytes = left - piece_bytes;
    return status;
}

/* What a piece would find only when others have been copied. */
static bool has_ranges(struct device *device, const struct vgpu_descriptor *operation)
{
    void *state = state_of(device, operation->device);
    uint64_t bytes = operation->copy.bytes;

    return (operation->opcode == VGPU_OP_COPY_OUT ||
            device->ops->has(state, operation->copy.target, bytes)) &&
           (operation->opcode == VGPU_OP_COPY_IN ||
            device->ops->has(state, operation->copy.source, bytes));
}

static enum vgpu_status begin_copy(struct device *device, const struct vgpu_descriptor *operation,
                                   struct device_wait *ret_wait)
{
    uint64_t bytes = operation->copy.bytes;

    if (bytes == 0)
        return begun(device, operation->device, stream_object(device, operation->stream),
                     interest_in(operation), ret_wait);
    if (copy_most(device, operation) < bytes && !has_ranges(device, operation))
        return VGPU_BAD_ADDRESS;
    return put_copy(device, operation, 0, ret_wait);
}

enum vgpu_status device_go_on(struct device *device, const struct vgpu_descriptor *operation,
                              struct device_wait *wait)
{
    return put_copy(device, operation, operation->copy.bytes - wait->left_bytes, wait);
}

/* On whichever device it is: addresses are one's only. */
static enum vgpu_status free_now(struct device *device, uint64_t address)
{
    enum vgpu_status status = VGPU_BAD_ADDRESS;

    for (unsigned index = 0; status == VGPU_BAD_ADDRESS && index < device->count; index++)
        status = device->ops->free(state_of(device, index), address);
    return status;
}

/* Also what another device copies from or to it has ended. */
static enum vgpu_status free_memory(struct device *device, uint64_t address,
                                    struct device_wait *ret_wait)
{
    if (wait_for_all(device, ret_wait) != DEVICE_BEGUN)
        return free_now(device, address);
    return DEVICE_BEGUN;
}

/* --- all ----------------------------------------------------------------------------------- */

static enum vgpu_status run_memory(struct device *device, const struct vgpu_descriptor *operation,
                                   uint64_t *ret_result, struct device_wait *ret_wait)
{
    void *stream = stream_object(device, operation->stream);
    void *state = state_of(device, operation->device);
    enum vgpu_status status;

    if (operation->opcode == VGPU_OP_ALLOC) {
        status = device->ops->alloc(state, operation->alloc.bytes, ret_result, ret_wait);
        ret_wait->device = operation->device;
        return status;
    }
    if (operation->opcode == VGPU_OP_FREE)
        return free_memory(device, operation->free.address, ret_wait);
    if (operation->opcode != VGPU_OP_SET)
        return begin_copy(device, operation, ret_wait);
    status = device->ops->set(state, stream, operation->set.address, operation->set.value,
                              operation->set.width, operation->set.count);
    return status == VGPU_OK
               ? begun(device, operation->device, stream, interest_in(operation), ret_wait)
               : status;
}

static enum vgpu_status run_event(struct device *device, const struct vgpu_descriptor *operation,
                                  uint64_t *ret_result, struct device_wait *ret_wait)
{
    uint32_t id = operation->object.handle;

    switch (operation->opcode) {
    case VGPU_OP_EVENT_CREATE:
        return handle_create(device, operation->device, HANDLE_EVENT, id);
    case VGPU_OP_EVENT_DESTROY:
        return event_destroy(device, id);
    case VGPU_OP_EVENT_RECORD:
        return event_record(device, operation->device, operation->stream, id, ret_wait);
    case VGPU_OP_EVENT_ELAPSED:
        return event_elapsed(device, id, operation->object.other, ret_result);
    case VGPU_OP_EVENT_SYNC:
        return event_sync(device, id, ret_wait);
    default:
        return event_query(device, id);
    }
}

static enum vgpu_status run_object(struct device *device, const struct vgpu_descriptor *operation,
                                   uint64_t *ret_result, struct device_wait *ret_wait)
{
    uint32_t id = operation->object.handle;

    switch (operation->opcode) {
    case VGPU_OP_STREAM_CREATE:
        return handle_create(device, operation->device, HANDLE_STREAM, id);
    case VGPU_OP_STREAM_DESTROY:
        return stream_destroy(device, id, ret_wait);
    case VGPU_OP_STREAM_SYNC:
        return stream_sync(device, operation->device, id, ret_wait);
    case VGPU_OP_STREAM_WAIT:
        return stream_wait(device, operation->device, operation->stream, id, ret_wait);
    case VGPU_OP_DEVICE_SYNC:
        return device_sync(device, operation->device, ret_wait);
    default:
        return run_event(device, operation, ret_result, ret_wait);
    }
}

/* It was made on this device. */
static bool stream_is_on(struct device *device, unsigned index, uint32_t stream)
{
    const struct handle *handle = stream ? handle_find(device, HANDLE_STREAM, stream) : NULL;

    return stream == 0 || (handle && handle->device == index);
}

static __attribute__((noinline)) enum vgpu_status run_other(struct device *device,
                                                            const struct vgpu_descriptor *operation,
                                                            uint64_t *ret_result,
                                                            struct device_wait *ret_wait)
{
    switch (operation->opcode) {
    case VGPU_OP_PING:
        return VGPU_OK;
    case VGPU_OP_TEXT:
        return text(device, operation, ret_result);
    case VGPU_OP_QUERY:
        return query(device, operation->device, operation->query.attribute, ret_result);
    case VGPU_OP_ALLOC ... VGPU_OP_COPY:
        return run_memory(device, operation, ret_result, ret_wait);
    case VGPU_OP_STREAM_CREATE ... VGPU_OP_DEVICE_SYNC:
        return run_object(device, operation, ret_result, ret_wait);
    case VGPU_OP_MODULE_LOAD:
        return module_load(device, operation);
    case VGPU_OP_MODULE_PART:
        return module_part(device, operation);
    case VGPU_OP_MODULE_UNLOAD:
        return module_unload(device, operation->module.handle, ret_wait);
    default:
        return VGPU_BAD_OPCODE;
    }
}

enum vgpu_status device_run(struct device *device, const struct vgpu_descriptor *operation,
                            uint64_t *ret_result, struct device_wait *ret_wait)
{
    *ret_result = 0;
    *ret_wait = (struct device_wait){.stream = NULL};
    if (!stream_is_on(device, operation->device, operation->stream))
        return VGPU_BAD_HANDLE;
    if (operation->opcode == VGPU_OP_LAUNCH) /* most are */
        return launch(device, operation, ret_wait);
    return run_other(device, operation, ret_result, ret_wait);
}

enum vgpu_status device_finish(struct device *device, const struct vgpu_descriptor *operation,
                               const struct device_wait *wait)
{
    enum vgpu_status *error;

    switch (operation->opcode) {
    case VGPU_OP_FREE:
        return free_now(device, operation->free.address);
    case VGPU_OP_STREAM_DESTROY:
        stream_end(device, wait->device, wait->object);
        return VGPU_OK;
    case VGPU_OP_MODULE_UNLOAD:
        object_close(device, wait->device, HANDLE_MODULE, wait->object);
        return VGPU_OK;
    case VGPU_OP_STREAM_SYNC:
        error = stream_error(device, operation->device, operation->object.handle);
        return error ? take_error(error) : VGPU_OK;
    case VGPU_OP_DEVICE_SYNC:
        return take_all_errors(device, operation->device);
    default:
        return VGPU_OK;
    }
}

int device_open(struct device *device, const struct exec_backend *backend,
                const struct device_config *config, unsigned count, uint32_t operation_limit_ms,
                struct vgpu_error *error)
{
    struct device_config one = *config;

    *device = (struct device){.backend = backend,
                              .slot = config->slot,
                              .slot_bytes = config->slot_bytes,
                              .operation_limit_ms = operation_limit_ms,
                              .ops = backend->device,
                              .images = {.share = config->share}};
    for (; device->count < count; device->count++) {
        one.index = device->count;
        if (device->ops->open(&one, &device->parts[one.index].state, &device->place, error) < 0) {
            device_close(device);
            return -1;
        }
    }
    if (count > 1) /* each has a place of its own */
        device->place.base = device->place.bytes = 0;
    return 0;
}

void device_reset(struct device *device)
{
    handles_clear(device);
    images_clear(&device->images);
    for (unsigned index = 0; index < device->count; index++) {
        device->ops->free_all(state_of(device, index));
        device->parts[index].error = VGPU_OK;
    }
}

void device_close(struct device *device)
{
    handles_clear(device);
    images_clear(&device->images);
    while (device->count > 0)
        device->ops->close(state_of(device, --device->count));
}
