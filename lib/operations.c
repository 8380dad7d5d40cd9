/* SPDX-License-Identifier: Apache-2.0 */
/* Operations of one descriptor, submitted and waited for. */
#include "private.h"

#include <stdio.h>

int vgpu_ping(struct vgpu_session *session, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_PING};

    return submit_and_wait(session, &descriptor, "ping", NULL, problem);
}

int vgpu_query(struct vgpu_session *session, uint32_t attribute, uint64_t *ret_value,
               struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_QUERY,
                                               .query.attribute = attribute};

    return submit_and_wait(session, &descriptor, "query", ret_value, problem);
}

/* --- memory --------------------------------------------------------------------------- */

int vgpu_memory_alloc(struct vgpu_session *session, uint64_t bytes, uint64_t *ret_address,
                      struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_ALLOC, .alloc.bytes = bytes};
    char what[64];

    snprintf(what, sizeof(what), "allocation of %llu bytes", (unsigned long long)bytes);
    return submit_and_wait(session, &descriptor, what, ret_address, problem);
}

int vgpu_memory_free(struct vgpu_session *session, uint64_t address, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_FREE, .free.address = address};

    return submit_and_wait(session, &descriptor, "free", NULL, problem);
}

int vgpu_memory_set(struct vgpu_session *session, uint64_t address, uint32_t value, uint32_t width,
                    uint64_t count, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {
        .opcode = VGPU_OP_SET,
        .set = {.address = address, .count = count, .value = value, .width = width}};

    return submit_and_wait(session, &descriptor, "set", NULL, problem);
}

int vgpu_copy(struct vgpu_session *session, uint64_t target, uint64_t source, uint64_t bytes,
              struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {
        .opcode = VGPU_OP_COPY, .copy = {.target = target, .source = source, .bytes = bytes}};

    return submit_and_wait(session, &descriptor, "copy", NULL, problem);
}

/* --- several devices ---------------------------------------------------------------------- */

int vgpu_device_count(struct vgpu_session *session, uint32_t *ret_count,
                      struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_QUERY,
                                               .query.attribute = VGPU_QUERY_DEVICES};
    uint32_t current = session->device;
    uint64_t count;
    int result;

    session->device = 0; /* which is there in any case */
    result = submit_and_wait(session, &descriptor, "query", &count, problem);
    session->device = (uint8_t)current;
    if (result == 0)
        *ret_count = (uint32_t)count;
    return result;
}

int vgpu_device_set(struct vgpu_session *session, uint32_t device, struct vgpu_problem *problem)
{
    if (!session_usable(session))
        return session_refuse(session, problem);
    if (device >= VGPU_SESSION_DEVICES_MAX)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "a session has at most %u devices, from 0: %u is none of them",
                           VGPU_SESSION_DEVICES_MAX, device);
    session->device = (uint8_t)device;
    return 0;
}

uint32_t vgpu_device(const struct vgpu_session *session)
{
    return session->device;
}

/* --- streams, events, modules: one handle ------------------------------------------------ */

static int object(struct vgpu_session *session, uint16_t opcode, const char *what, uint32_t handle,
                  struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = opcode, .object.handle = handle};
    char text[64];

    snprintf(text, sizeof(text), "%s %u", what, handle);
    return submit_and_wait(session, &descriptor, text, NULL, problem);
}

/* Asynchronous ones: what goes wrong is told by the next synchronisation. */
static int in_stream(struct vgpu_session *session, uint16_t opcode, uint32_t stream,
                     uint32_t handle, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = opcode,
                                               .flags = VGPU_FLAG_QUIET,
                                               .device = session->device,
                                               .stream = stream,
                                               .object.handle = handle};

    return vgpu_submit(session, &descriptor, NULL, NULL, NULL, problem);
}

int vgpu_stream_create(struct vgpu_session *session, uint32_t stream, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_STREAM_CREATE, "creation of stream", stream, problem);
}

int vgpu_stream_destroy(struct vgpu_session *session, uint32_t stream, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_STREAM_DESTROY, "destruction of stream", stream, problem);
}

int vgpu_stream_sync(struct vgpu_session *session, uint32_t stream, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_STREAM_SYNC, "synchronisation of stream", stream, problem);
}

int vgpu_stream_wait(struct vgpu_session *session, uint32_t stream, uint32_t event,
                     struct vgpu_problem *problem)
{
    return in_stream(session, VGPU_OP_STREAM_WAIT, stream, event, problem);
}

int vgpu_event_create(struct vgpu_session *session, uint32_t event, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_EVENT_CREATE, "creation of event", event, problem);
}

int vgpu_event_destroy(struct vgpu_session *session, uint32_t event, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_EVENT_DESTROY, "destruction of event", event, problem);
}

int vgpu_event_record(struct vgpu_session *session, uint32_t stream, uint32_t event,
                      struct vgpu_problem *problem)
{
    return in_stream(session, VGPU_OP_EVENT_RECORD, stream, event, problem);
}

int vgpu_event_sync(struct vgpu_session *session, uint32_t event, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_EVENT_SYNC, "synchronisation of event", event, problem);
}

int vgpu_event_elapsed_ns(struct vgpu_session *session, uint32_t earlier, uint32_t later,
                          uint64_t *ret_ns, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_EVENT_ELAPSED,
                                               .object = {.handle = earlier, .other = later}};
    char what[64];

    snprintf(what, sizeof(what), "time between events %u and %u", earlier, later);
    return submit_and_wait(session, &descriptor, what, ret_ns, problem);
}

int vgpu_device_sync(struct vgpu_session *session, struct vgpu_problem *problem)
{
    const struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_DEVICE_SYNC};

    return submit_and_wait(session, &descriptor, "synchronisation of the device", NULL, problem);
}

int vgpu_module_unload(struct vgpu_session *session, uint32_t module, struct vgpu_problem *problem)
{
    return object(session, VGPU_OP_MODULE_UNLOAD, "unloading of module", module, problem);
}
