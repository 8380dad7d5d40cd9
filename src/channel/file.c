/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file channel, seen from the mediator: a thread with a queue into it and
 * a queue out of it.  All file I/O happens in that thread (file_loop.c), so a
 * share that hangs stops this channel and nothing else.
 */
#include "channel/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

STAILQ_HEAD(order_queue, file_order);
STAILQ_HEAD(report_queue, file_report);

struct file_channel {
    struct channel base;
    struct file_channel_config config; /* deep copy */
    struct file_loop loop;
    struct channel_events events;
    uv_thread_t thread;
    bool running;
    uv_async_t reported; /* on the mediator's loop */
    uv_mutex_t lock;     /* the two queues */
    struct order_queue orders;
    struct report_queue reports;
    struct report_queue unflushed; /* the channel's thread's own */
};

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (!memory) {
        log_error("file channel: out of memory");
        abort(); /* an answer that cannot be queued must not be dropped */
    }
    return memory;
}

/* --- on the channel's thread -------------------------------------------------------- */

static void push_report(const struct file_report *report, void *context)
{
    struct file_channel *channel = context;
    struct file_report *copy = allocate(sizeof(*copy));

    *copy = *report;
    STAILQ_INSERT_TAIL(&channel->unflushed, copy, link);
}

static void flush_reports(void *context)
{
    struct file_channel *channel = context;

    if (STAILQ_EMPTY(&channel->unflushed))
        return;
    uv_mutex_lock(&channel->lock);
    STAILQ_CONCAT(&channel->reports, &channel->unflushed);
    uv_mutex_unlock(&channel->lock);
    uv_async_send(&channel->reported);
}

static struct file_order *pop_order(void *context)
{
    struct file_channel *channel = context;
    struct file_order *order;

    uv_mutex_lock(&channel->lock);
    order = STAILQ_FIRST(&channel->orders);
    if (order)
        STAILQ_REMOVE_HEAD(&channel->orders, link);
    uv_mutex_unlock(&channel->lock);
    return order;
}

static void run_thread(void *context)
{
    struct file_channel *channel = context;

    file_loop_run(&channel->loop);
}

/* --- on the mediator's thread --------------------------------------------------------- */

static struct file_report *pop_report(struct file_channel *channel)
{
    struct file_report *report;

    uv_mutex_lock(&channel->lock);
    report = STAILQ_FIRST(&channel->reports);
    if (report)
        STAILQ_REMOVE_HEAD(&channel->reports, link);
    uv_mutex_unlock(&channel->lock);
    return report;
}

static void on_reported_closed(uv_handle_t *handle)
{
    struct file_channel *channel = handle->data;

    channel->events.stopped(channel->events.context);
}

static void finish_thread(struct file_channel *channel)
{
    uv_thread_join(&channel->thread);
    channel->running = false;
    uv_close((uv_handle_t *)&channel->reported, on_reported_closed);
}

static void handle_report(struct file_channel *channel, const struct file_report *report)
{
    const struct channel_events *events = &channel->events;

    switch (report->type) {
    case FILE_REPORT_REQUEST:
        events->request(&report->request, events->context);
        break;
    case FILE_REPORT_ANSWERED:
        events->answered(report->request.vm_id, report->request.sequence, report->line,
                         report->withheld, events->context);
        break;
    case FILE_REPORT_REFUSED:
        events->refused(report->request.vm_id, report->line, events->context);
        break;
    case FILE_REPORT_RECOVERED:
        events->recovered(events->context);
        break;
    case FILE_REPORT_SYNCED:
        events->synced(report->request.sequence, events->context);
        break;
    case FILE_REPORT_STOPPED:
        finish_thread(channel);
        break;
    }
}

static void on_reported(uv_async_t *reported)
{
    struct file_channel *channel = reported->data;
    struct file_report *report;

    while ((report = pop_report(channel))) {
        handle_report(channel, report);
        free(report);
    }
}

static void push_order(struct file_channel *channel, struct file_order *order)
{
    uv_mutex_lock(&channel->lock);
    STAILQ_INSERT_TAIL(&channel->orders, order, link);
    uv_mutex_unlock(&channel->lock);
    file_loop_wake(&channel->loop);
}

static int start(struct channel *base, uv_loop_t *uv, const struct channel_events *events,
                 struct vgpu_error *error)
{
    struct file_channel *channel = (struct file_channel *)base;
    int failure;

    channel->events = *events;
    channel->loop.report = push_report;
    channel->loop.flush = flush_reports;
    channel->loop.next_order = pop_order;
    channel->loop.context = channel;
    if (file_loop_prepare(&channel->loop, &channel->config, error) < 0)
        return -1;
    uv_async_init(uv, &channel->reported, on_reported);
    channel->reported.data = channel;
    failure = uv_thread_create(&channel->thread, run_thread, channel);
    if (failure < 0)
        return error_set(error, -failure, "cannot start the file channel's thread: %s",
                         uv_strerror(failure));
    channel->running = true;
    return 0;
}

static void answer(struct channel *base, uint32_t vm_id, uint64_t sequence,
                   const struct protocol_response *response)
{
    struct file_order *order = allocate(sizeof(*order));

    order->type = FILE_ORDER_ANSWER;
    order->vm_id = vm_id;
    order->sequence = sequence;
    order->response = *response;
    push_order((struct file_channel *)base, order);
}

static void set_vm(struct channel *base, const struct file_channel_vm *vm, bool registered)
{
    struct file_order *order = allocate(sizeof(*order));

    order->type = FILE_ORDER_SET_VM;
    order->vm = *vm;
    order->registered = registered;
    push_order((struct file_channel *)base, order);
}

static void set_pools(struct channel *base, const char *pools)
{
    struct file_order *order = allocate(sizeof(*order));

    order->type = FILE_ORDER_SET_POOLS;
    text_copy(order->pools, sizeof(order->pools), pools);
    push_order((struct file_channel *)base, order);
}

static void sync_orders(struct channel *base, uint64_t token)
{
    struct file_order *order = allocate(sizeof(*order));

    order->type = FILE_ORDER_SYNC;
    order->sequence = token;
    push_order((struct file_channel *)base, order);
}

static void stop(struct channel *base, bool cleanup)
{
    struct file_order *order = allocate(sizeof(*order));

    order->type = FILE_ORDER_STOP;
    order->cleanup = cleanup;
    push_order((struct file_channel *)base, order);
}

static void free_config(struct file_channel_config *config)
{
    free((void *)config->share);
    free((void *)config->state_dir);
    free((void *)config->pools);
    free((void *)config->vms);
}

static void destroy(struct channel *base)
{
    struct file_channel *channel = (struct file_channel *)base;
    struct file_report *report;
    struct file_order *order;

    while ((order = pop_order(channel)))
        free(order);
    while ((report = pop_report(channel)))
        free(report);
    file_loop_free(&channel->loop);
    uv_mutex_destroy(&channel->lock);
    free_config(&channel->config);
    free(channel);
}

static const struct channel_ops file_channel_ops = {
    .name = "file",
    .start = start,
    .answer = answer,
    .set_vm = set_vm,
    .set_pools = set_pools,
    .sync = sync_orders,
    .stop = stop,
    .free = destroy,
};

int file_channel_new(const struct file_channel_config *config, struct channel **ret_channel,
                     struct vgpu_error *error)
{
    struct file_channel *channel = calloc(1, sizeof(*channel));
    size_t vms_bytes = config->vm_count * sizeof(*config->vms);

    if (!channel)
        return error_set(error, ENOMEM, "no memory for the file channel");
    channel->base.ops = &file_channel_ops;
    channel->config = *config;
    channel->config.share = strdup(config->share);
    channel->config.state_dir = strdup(config->state_dir);
    channel->config.pools = strdup(config->pools);
    channel->config.vms = malloc(vms_bytes + 1);
    channel->loop.share_fd = channel->loop.state_fd = -1;
    uv_loop_init(&channel->loop.loop); /* here, so that it can be freed unstarted */
    STAILQ_INIT(&channel->orders);
    STAILQ_INIT(&channel->reports);
    STAILQ_INIT(&channel->unflushed);
    uv_mutex_init(&channel->lock);
    if (!channel->config.share || !channel->config.state_dir || !channel->config.pools ||
        !channel->config.vms) {
        destroy(&channel->base);
        return error_set(error, ENOMEM, "no memory for the file channel");
    }
    memcpy((void *)channel->config.vms, config->vms, vms_bytes);
    *ret_channel = &channel->base;
    return 0;
}
