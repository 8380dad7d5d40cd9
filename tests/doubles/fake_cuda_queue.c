/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events, copies: work for the device's thread, which does it in its order. */
#include "fake_cuda.h"

#include <stdlib.h>
#include <string.h>

struct CUevent_st {
    struct fake_object object;
    unsigned flags;
    uint64_t number; /* of the work that records it, 0: never recorded */
    uint64_t time_ns;
};

/* --- the device's thread
 * --------------------------------------------------------------------------------- */

/* `earlier` must have ended before `work` begins. */
static bool is_before(const struct fake_work *earlier, const struct fake_work *work)
{
    if (earlier->stream == work->stream)
        return true;
    return (earlier->stream == 0 || work->stream == 0) && !earlier->non_blocking &&
           !work->non_blocking;
}

static bool has_ended(const struct fake_device *device, uint64_t number)
{
    const struct fake_work *work;

    TAILQ_FOREACH (work, &device->works, link) {
        if (work->number >= number)
            return work->number > number;
    }
    return true;
}

static bool may_begin(struct fake_device *device, const struct fake_work *work)
{
    const struct fake_work *earlier;

    if (work->awaits && !has_ended(work->awaits_on, work->awaits))
        return false;
    TAILQ_FOREACH (earlier, &device->works, link) {
        if (earlier == work)
            return !work->running;
        if (is_before(earlier, work))
            return false;
    }
    return false;
}

/* NULL: nothing can be begun now. */
static struct fake_work *find_work(struct fake_device *device)
{
    struct fake_work *work;

    TAILQ_FOREACH (work, &device->works, link) {
        if (may_begin(device, work))
            return work;
    }
    return NULL;
}

static void finish(struct fake_device *device, struct fake_work *work)
{
    if (work->result != CUDA_SUCCESS)
        work->context->fault = work->result;
    if (work->event && fake_object_is(KIND_EVENT, work->event) &&
        work->event->number == work->number)
        work->event->time_ns = fake_now_ns();
    device->queued--;
    TAILQ_REMOVE(&device->works, work, link);
    pthread_cond_broadcast(&fake_changed);
    free(work->staged);
    free(work);
}

static void trace(const char *word)
{
    if (fake_orders()->trace)
        fake_note(word);
}

/* With the lock, which is free while it runs. */
static void run_work(struct fake_device *device, struct fake_work *work)
{
    work->running = true;
    if (work->context->fault == CUDA_SUCCESS && work->run) {
        trace("begin");
        pthread_mutex_unlock(&fake_lock);
        fake_sleep_ns(work->busy_ns);
        work->run(work);
        pthread_mutex_lock(&fake_lock);
        trace("end");
    }
    finish(device, work);
}

static void *run_device(void *argument)
{
    struct fake_device *device = argument;

    pthread_mutex_lock(&fake_lock);
    for (;;) {
        struct fake_work *work = find_work(device);

        if (work)
            run_work(device, work);
        else
            pthread_cond_wait(&fake_changed, &fake_lock);
    }
    return NULL;
}

static void start(struct fake_device *device)
{
    pthread_t thread;

    if (device->started)
        return;
    device->started = true;
    for (unsigned i = 0; i < fake_orders()->engines; i++) {
        if (pthread_create(&thread, NULL, run_device, device) != 0)
            abort();
        pthread_detach(thread);
    }
}

/* --- submitting and waiting
 * -------------------------------------------------------------------------------- */

struct fake_work *fake_work_new(const char *function, void (*run)(struct fake_work *work))
{
    struct fake_work *work = calloc(1, sizeof(*work));

    if (!work)
        abort();
    work->run = fake_is_ordered(RULE_SKIP, function) ? NULL : run;
    work->context = fake_current();
    work->busy_ns = fake_busy_ns(function);
    return work;
}

/* With the lock: NULL is the context's default stream; NULL also for none of its. */
static cuda_stream stream_of(cuda_stream stream)
{
    if (!stream)
        return fake_current()->default_stream;
    if (!fake_object_is(KIND_STREAM, stream) || stream->object.context != fake_current())
        return NULL;
    return stream;
}

cuda_result fake_submit(cuda_stream handle, struct fake_work *work)
{
    struct fake_device *device = fake_current()->device;
    cuda_stream stream = stream_of(handle);

    if (!stream) {
        free(work->staged);
        free(work);
        return CUDA_INVALID_HANDLE;
    }
    while (device->queued >= fake_orders()->queue_depth)
        pthread_cond_wait(&fake_changed, &fake_lock);
    device->queued++;
    work->number = ++device->submitted;
    work->stream = stream->id;
    work->non_blocking = stream->non_blocking;
    stream->last = work->number;
    if (work->event)
        work->event->number = work->number;
    TAILQ_INSERT_TAIL(&device->works, work, link);
    if (fake_orders()->engines == 0) {
        run_work(device, work);
        return CUDA_SUCCESS;
    }
    start(device);
    pthread_cond_broadcast(&fake_changed);
    return CUDA_SUCCESS;
}

cuda_result fake_wait(cuda_context context, uint64_t number)
{
    const struct fake_work *oldest;

    while ((oldest = TAILQ_FIRST(&context->device->works)) && oldest->number <= number)
        pthread_cond_wait(&fake_changed, &fake_lock);
    return context->fault;
}

/* This work alone, and so what its stream had before it. */
static cuda_result wait_for(cuda_context context, uint64_t number)
{
    while (!has_ended(context->device, number))
        pthread_cond_wait(&fake_changed, &fake_lock);
    return context->fault;
}

static cuda_result query(cuda_context context, uint64_t number)
{
    if (context->fault != CUDA_SUCCESS)
        return context->fault;
    return has_ended(context->device, number) ? CUDA_SUCCESS : CUDA_NOT_READY;
}

/* --- streams
 * --------------------------------------------------------------------------------------------------
 */

cuda_result cuStreamCreate(cuda_stream *stream, unsigned flags)
{
    static uint64_t last_id;
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    if (flags > CUDA_STREAM_NON_BLOCKING)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    *stream = fake_object_new(KIND_STREAM, fake_current(), sizeof(**stream));
    (*stream)->id = ++last_id;
    (*stream)->non_blocking = flags == CUDA_STREAM_NON_BLOCKING;
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

/* What is in it still runs. */
cuda_result cuStreamDestroy_v2(cuda_stream stream)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!stream || !stream_of(stream))
        result = CUDA_INVALID_HANDLE;
    else
        fake_object_free(stream);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

static cuda_result ask_stream(const char *function, cuda_stream handle,
                              cuda_result (*ask)(cuda_context context, uint64_t number))
{
    cuda_result result = fake_enter(function, NEEDS_CONTEXT);
    cuda_stream stream;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    stream = stream_of(handle);
    result = stream ? ask(fake_current(), stream->last) : CUDA_INVALID_HANDLE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuStreamQuery(cuda_stream stream)
{
    return ask_stream(__func__, stream, query);
}

cuda_result cuStreamSynchronize(cuda_stream stream)
{
    return ask_stream(__func__, stream, wait_for);
}

/* --- events
 * ------------------------------------------------------------------------------------------------------
 */

cuda_result cuEventCreate(cuda_event *event, unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    *event = fake_object_new(KIND_EVENT, fake_current(), sizeof(**event));
    (*event)->flags = flags;
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

cuda_result cuEventDestroy_v2(cuda_event event)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (fake_object_is(KIND_EVENT, event))
        fake_object_free(event);
    else
        result = CUDA_INVALID_HANDLE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* The work of recording is done when it is reached. */
static void do_nothing(struct fake_work *work)
{
    (void)work;
}

cuda_result cuEventRecord(cuda_event event, cuda_stream stream)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_work *work;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!fake_object_is(KIND_EVENT, event) || event->object.context != fake_current()) {
        result = CUDA_INVALID_HANDLE;
    } else {
        work = fake_work_new(__func__, do_nothing);
        work->event = event;
        result = fake_submit(stream, work);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

static cuda_result ask_event(const char *function, cuda_event event,
                             cuda_result (*ask)(cuda_context context, uint64_t number))
{
    cuda_result result = fake_enter(function, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = fake_object_is(KIND_EVENT, event) ? ask(event->object.context, event->number)
                                               : CUDA_INVALID_HANDLE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuEventQuery(cuda_event event)
{
    return ask_event(__func__, event, query);
}

cuda_result cuEventSynchronize(cuda_event event)
{
    return ask_event(__func__, event, wait_for);
}

static bool is_timed(cuda_event event)
{
    return fake_object_is(KIND_EVENT, event) && event->number &&
           !(event->flags & CUDA_EVENT_DISABLE_TIMING);
}

cuda_result cuEventElapsedTime(float *ms, cuda_event start_event, cuda_event end)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    uint64_t last;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!is_timed(start_event) || !is_timed(end)) {
        result = CUDA_INVALID_HANDLE;
    } else {
        last = start_event->number > end->number ? start_event->number : end->number;
        result = query(end->object.context, last);
        if (result == CUDA_SUCCESS)
            *ms = (float)((double)((int64_t)(end->time_ns - start_event->time_ns)) / 1e6);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuStreamWaitEvent(cuda_stream stream, cuda_event event, unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_work *work;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (flags) {
        result = CUDA_INVALID_VALUE;
    } else if (!fake_object_is(KIND_EVENT, event)) {
        result = CUDA_INVALID_HANDLE;
    } else {
        work = fake_work_new(__func__, do_nothing);
        work->awaits = event->number;
        work->awaits_on = event->object.context->device;
        result = fake_submit(stream, work);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* --- functions of the host's
 * ----------------------------------------------------------------------------------------
 */

static void run_function(struct fake_work *work)
{
    work->function(work->argument);
}

cuda_result cuLaunchHostFunc(cuda_stream stream, cuda_host_function function, void *argument)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_work *work;

    if (result != CUDA_SUCCESS)
        return result;
    if (!function)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    work = fake_work_new(__func__, run_function);
    work->function = function;
    work->argument = argument;
    result = fake_submit(stream, work);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* --- copies
 * ---------------------------------------------------------------------------------------------------------
 */

static void run_copy(struct fake_work *work)
{
    memmove(work->target, work->source, work->count);
}

static cuda_result submit_copy(const char *function, void *target, const void *source, size_t bytes,
                               cuda_stream stream)
{
    struct fake_work *work;

    if (!target || !source)
        return CUDA_INVALID_VALUE;
    work = fake_work_new(function, run_copy);
    work->target = target;
    work->source = source;
    work->count = bytes;
    return fake_submit(stream, work);
}

/* Memory that the device does not know is read before the call returns. */
cuda_result cuMemcpyHtoDAsync_v2(cuda_pointer target, const void *source, size_t bytes,
                                 cuda_stream stream)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_work *work;
    void *at;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    at = fake_memory_at(fake_current(), target, bytes);
    if (!at || fake_is_registered(source, bytes)) {
        result = submit_copy(__func__, at, source, bytes, stream);
    } else {
        work = fake_work_new(__func__, run_copy);
        work->staged = malloc(bytes ? bytes : 1);
        if (!work->staged)
            abort();
        memcpy(work->staged, source, bytes);
        work->target = at;
        work->source = work->staged;
        work->count = bytes;
        result = fake_submit(stream, work);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* Memory that the device does not know is written before the call returns. */
cuda_result cuMemcpyDtoHAsync_v2(void *target, cuda_pointer source, size_t bytes,
                                 cuda_stream stream)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result =
        submit_copy(__func__, target, fake_memory_at(fake_current(), source, bytes), bytes, stream);
    if (result == CUDA_SUCCESS && !fake_is_registered(target, bytes))
        result = wait_for(fake_current(), fake_current()->device->submitted);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuMemcpyDtoDAsync_v2(cuda_pointer target, cuda_pointer source, size_t bytes,
                                 cuda_stream stream)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = submit_copy(__func__, fake_memory_at(fake_current(), target, bytes),
                         fake_memory_at(fake_current(), source, bytes), bytes, stream);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuMemcpyPeerAsync(cuda_pointer target, cuda_context target_context, cuda_pointer source,
                              cuda_context source_context, size_t bytes, cuda_stream stream)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!fake_object_is(KIND_CONTEXT, target_context) ||
        !fake_object_is(KIND_CONTEXT, source_context))
        result = CUDA_INVALID_CONTEXT;
    else
        result = submit_copy(__func__, fake_memory_at(target_context, target, bytes),
                             fake_memory_at(source_context, source, bytes), bytes, stream);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* --- values
 * ------------------------------------------------------------------------------------------------------------
 */

static void run_set(struct fake_work *work)
{
    if (work->width == 1) {
        memset(work->target, (int)work->value, work->count);
        return;
    }
    for (size_t i = 0; i < work->count; i++)
        memcpy((uint8_t *)work->target + i * work->width, &work->value, work->width);
}

static cuda_result set(const char *function, cuda_pointer target, uint64_t value, size_t width,
                       size_t count, cuda_stream stream)
{
    cuda_result result = fake_enter(function, NEEDS_CONTEXT);
    struct fake_work *work;
    size_t bytes;
    void *at;

    if (result != CUDA_SUCCESS)
        return result;
    if (__builtin_mul_overflow(count, width, &bytes) || target % width != 0)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    at = fake_memory_at(fake_current(), target, bytes);
    if (!at) {
        result = CUDA_INVALID_VALUE;
    } else {
        work = fake_work_new(function, run_set);
        work->target = at;
        work->value = value;
        work->width = width;
        work->count = count;
        result = fake_submit(stream, work);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuMemsetD8Async(cuda_pointer target, unsigned char value, size_t count,
                            cuda_stream stream)
{
    return set(__func__, target, value, sizeof(value), count, stream);
}

cuda_result cuMemsetD16Async(cuda_pointer target, unsigned short value, size_t count,
                             cuda_stream stream)
{
    return set(__func__, target, value, sizeof(value), count, stream);
}

cuda_result cuMemsetD32Async(cuda_pointer target, unsigned value, size_t count, cuda_stream stream)
{
    return set(__func__, target, value, sizeof(value), count, stream);
}

static void run_write(struct fake_work *work)
{
    __atomic_store_n((uint32_t *)work->target, (uint32_t)work->value, __ATOMIC_RELEASE);
}

cuda_result cuStreamWriteValue32_v2(cuda_stream stream, cuda_pointer address, uint32_t value,
                                    unsigned flags)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_work *work;
    void *at;

    if (result != CUDA_SUCCESS)
        return result;
    if (flags > CUDA_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER || address % sizeof(value) != 0)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    at = fake_memory_at(fake_current(), address, sizeof(value));
    if (!at) {
        result = CUDA_INVALID_VALUE;
    } else {
        work = fake_work_new(__func__, run_write);
        work->target = at;
        work->value = value;
        if (fake_orders()->forge)
            run_write(work);
        result = fake_submit(stream, work);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}
