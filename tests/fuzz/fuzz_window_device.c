/* SPDX-License-Identifier: Apache-2.0 */
/* See fuzz_window_device.h. */
#include "fuzz_window_device.h"

#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#define ALIVE 0x600du
#define LOST_ONE_IN 200u

/* A stream, an event or a module. */
struct object {
    LIST_ENTRY(object) link;
    uint32_t alive;
    const void *device;
    uint64_t last, done; /* of a stream: numbers of what was put into it */
};

struct fuzz_device {
    void *cpu;
    LIST_HEAD(, object) streams, others;
    struct object *first, *clear;
    enum vgpu_status lost;
};

static uint32_t order = 1;
static bool losses;
static uint64_t last_number; /* of what was put into a stream, on whichever device */

void fuzz_device_seed(uint32_t seed, bool may_be_lost)
{
    order = seed * 2654435761u + 1;
    losses = may_be_lost;
}

uint32_t fuzz_device_random(uint32_t bound)
{
    order = order * 1664525u + 1013904223u;
    return (order >> 8) % bound;
}

const struct device_memory *fuzz_device_memory(const void *state)
{
    return ((const struct fuzz_device *)state)->cpu;
}

/* --- objects --------------------------------------------------------------------------------- */

static struct object *object_new(const struct fuzz_device *device)
{
    struct object *object = calloc(1, sizeof(*object));

    if (!object)
        abort();
    object->alive = ALIVE;
    object->device = device;
    return object;
}

static void object_free(void *argument)
{
    struct object *object = argument;

    FUZZ_REQUIRE(object->alive == ALIVE);
    object->alive = 0;
    LIST_REMOVE(object, link);
    free(object);
}

static struct object *stream_new(struct fuzz_device *device)
{
    struct object *stream = object_new(device);

    stream->last = stream->done = last_number;
    LIST_INSERT_HEAD(&device->streams, stream, link);
    return stream;
}

static struct object *other_new(struct fuzz_device *device)
{
    struct object *object = object_new(device);

    LIST_INSERT_HEAD(&device->others, object, link);
    return object;
}

static struct object *stream_of(struct fuzz_device *device, void *stream)
{
    struct object *object = stream ? stream : device->first;

    FUZZ_REQUIRE(object->alive == ALIVE && object->device == device);
    return object;
}

static enum vgpu_status put(struct fuzz_device *device, void *stream, enum vgpu_status status)
{
    struct object *object = stream_of(device, stream);

    if (device->lost != VGPU_OK)
        return device->lost;
    if (status == VGPU_OK)
        object->last = ++last_number;
    return status;
}

/* --- life ---------------------------------------------------------------------------------------
 */

static int open_device(const struct device_config *config, void **ret_state,
                       struct device_place *ret_place, struct vgpu_error *error)
{
    struct fuzz_device *device = calloc(1, sizeof(*device));

    if (!device || cpu_device_ops.open(config, &device->cpu, ret_place, error) < 0)
        abort();
    LIST_INIT(&device->streams);
    LIST_INIT(&device->others);
    device->first = stream_new(device);
    device->clear = stream_new(device);
    *ret_state = device;
    return 0;
}

/* Also what was in flight, as the end of a process does. */
static void close_device(void *state)
{
    struct fuzz_device *device = state;

    while (!LIST_EMPTY(&device->streams))
        object_free(LIST_FIRST(&device->streams));
    while (!LIST_EMPTY(&device->others))
        object_free(LIST_FIRST(&device->others));
    cpu_device_ops.close(device->cpu);
    free(device);
}

static void free_all(void *state)
{
    cpu_device_ops.free_all(((struct fuzz_device *)state)->cpu);
}

/* --- work ---------------------------------------------------------------------------------------
 */

static enum vgpu_status alloc(void *state, uint64_t bytes, uint64_t *ret_address,
                              struct device_wait *ret_wait)
{
    struct fuzz_device *device = state;
    enum vgpu_status status = cpu_device_ops.alloc(device->cpu, bytes, ret_address, ret_wait);

    if (status != VGPU_OK || fuzz_device_random(2))
        return status;
    put(device, device->clear, VGPU_OK);
    *ret_wait = (struct device_wait){.stream = device->clear, .number = device->clear->last};
    return DEVICE_BEGUN;
}

static enum vgpu_status free_one(void *state, uint64_t address)
{
    return cpu_device_ops.free(((struct fuzz_device *)state)->cpu, address);
}

static enum vgpu_status set(void *state, void *stream, uint64_t address, uint32_t value,
                            uint32_t width, uint64_t count)
{
    struct fuzz_device *device = state;

    return put(device, stream, cpu_device_ops.set(device->cpu, NULL, address, value, width, count));
}

static enum vgpu_status copy_in(void *state, void *stream, uint64_t target, const void *source,
                                uint64_t bytes)
{
    struct fuzz_device *device = state;

    return put(device, stream, cpu_device_ops.copy_in(device->cpu, NULL, target, source, bytes));
}

static enum vgpu_status copy_out(void *state, void *stream, void *target, uint64_t source,
                                 uint64_t bytes)
{
    struct fuzz_device *device = state;

    return put(device, stream, cpu_device_ops.copy_out(device->cpu, NULL, target, source, bytes));
}

static enum vgpu_status copy(void *state, void *stream, uint64_t target, uint64_t source,
                             uint64_t bytes)
{
    struct fuzz_device *device = state;

    return put(device, stream, cpu_device_ops.copy(device->cpu, NULL, target, source, bytes));
}

static enum vgpu_status copy_across(void *state, void *stream, void *target_state, uint64_t target,
                                    void *source_state, uint64_t source, uint64_t bytes)
{
    struct fuzz_device *device = state, *to = target_state, *from = source_state;

    FUZZ_REQUIRE(to != from && (device == to || device == from));
    return put(
        device, stream,
        cpu_device_ops.copy_across(device->cpu, NULL, to->cpu, target, from->cpu, source, bytes));
}

static bool has(void *state, uint64_t address, uint64_t bytes)
{
    return cpu_device_ops.has(((struct fuzz_device *)state)->cpu, address, bytes);
}

static enum vgpu_status launch(void *state, void *stream, const struct device_launch *request)
{
    struct fuzz_device *device = state;
    const struct object *module = request->module;

    FUZZ_REQUIRE(!module || (module->alive == ALIVE && module->device == device));
    if (module || strcmp(request->name, "spin_us") == 0)
        return put(device, stream, VGPU_OK);
    return put(device, stream, cpu_device_ops.launch(device->cpu, NULL, request));
}

static enum vgpu_status query(void *state, uint32_t attribute, uint64_t *ret_value)
{
    return cpu_device_ops.query(((struct fuzz_device *)state)->cpu, attribute, ret_value);
}

/* --- how far it has come ------------------------------------------------------------------------
 */

static enum vgpu_status progress(struct fuzz_device *device, struct object *stream, uint64_t number)
{
    FUZZ_REQUIRE(stream->alive == ALIVE);
    if (device->lost == VGPU_OK && losses && fuzz_device_random(LOST_ONE_IN) == 0)
        device->lost = fuzz_device_random(2) ? VGPU_DEVICE_LOST : VGPU_KERNEL_FAULT;
    if (device->lost != VGPU_OK)
        return device->lost;
    if (stream->done < number && stream->done < stream->last && fuzz_device_random(4) == 0)
        stream->done += 1 + fuzz_device_random((uint32_t)(stream->last - stream->done));
    return stream->done >= number || stream->done >= stream->last ? VGPU_OK : VGPU_NOT_READY;
}

static enum vgpu_status all_progress(struct fuzz_device *device, uint64_t number)
{
    enum vgpu_status status = VGPU_OK;
    struct object *stream;

    LIST_FOREACH (stream, &device->streams, link) {
        if (status == VGPU_OK)
            status = progress(device, stream, number);
    }
    return status;
}

static void mark(void *state, enum device_interest interest, struct device_wait *wait)
{
    (void)interest;
    wait->number = wait->everything ? last_number : stream_of(state, wait->stream)->last;
}

static enum vgpu_status reached(void *state, const struct device_wait *wait)
{
    struct fuzz_device *device = state;

    return wait->everything ? all_progress(device, wait->number)
                            : progress(device, stream_of(device, wait->stream), wait->number);
}

static enum vgpu_status drained(void *state)
{
    return all_progress(state, UINT64_MAX);
}

/* --- what has handles
 * ----------------------------------------------------------------------------- */

static enum vgpu_status module_load(void *state, const void *image, uint64_t bytes,
                                    void **ret_module)
{
    if (bytes > 0 && *(const uint8_t *)image == 0xff)
        return VGPU_BAD_IMAGE;
    *ret_module = other_new(state);
    return VGPU_OK;
}

static enum vgpu_status stream_open(void *state, void **ret_stream)
{
    *ret_stream = stream_new(state);
    return VGPU_OK;
}

static enum vgpu_status event_open(void *state, void **ret_event)
{
    *ret_event = other_new(state);
    return VGPU_OK;
}

static void close_object(void *state, void *object)
{
    FUZZ_REQUIRE(((struct object *)object)->device == state);
    object_free(object);
}

static enum vgpu_status event_record(void *state, void *stream, void *event)
{
    FUZZ_REQUIRE(((struct object *)event)->alive == ALIVE);
    FUZZ_REQUIRE(((struct object *)event)->device == state);
    return put(state, stream, VGPU_OK);
}

static enum vgpu_status event_wait(void *state, void *stream, void *event)
{
    FUZZ_REQUIRE(((struct object *)event)->alive == ALIVE);
    return put(state, stream, VGPU_OK);
}

static enum vgpu_status event_elapsed(void *state, void *from, void *to, uint64_t *ret_ns)
{
    FUZZ_REQUIRE(((struct object *)from)->alive == ALIVE && ((struct object *)to)->alive == ALIVE);
    FUZZ_REQUIRE(((struct object *)from)->device == state &&
                 ((struct object *)to)->device == state);
    *ret_ns = 1;
    return VGPU_OK;
}

const struct device_ops fuzz_device_ops = {
    .open = open_device,
    .close = close_device,
    .free_all = free_all,
    .alloc = alloc,
    .free = free_one,
    .set = set,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .copy = copy,
    .copy_across = copy_across,
    .has = has,
    .launch = launch,
    .query = query,
    .module_load = module_load,
    .module_unload = close_object,
    .mark = mark,
    .reached = reached,
    .drained = drained,
    .stream_open = stream_open,
    .stream_close = close_object,
    .event_open = event_open,
    .event_close = close_object,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_elapsed = event_elapsed,
};
