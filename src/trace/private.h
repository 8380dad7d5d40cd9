/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of trace/ share. */
#ifndef VGPU_TRACE_PRIVATE_H
#define VGPU_TRACE_PRIVATE_H

#include "trace/trace.h"

#define TRACE_MAGIC 0x43525456u /* "VTRC" in memory */
#define TRACE_VERSION 1u        /* raise it with each change of the layout */

/* The header is ours, and of a file of this size. */
bool trace_header_makes_sense(const struct trace_header *header, uint64_t file_bytes);

static inline uint64_t trace_file_bytes(uint64_t capacity)
{
    return sizeof(struct trace_header) + capacity * sizeof(struct trace_record);
}

/* --- what the records say together (story.c) ------------------------------------------------ */

/* A VM, as the newest record says. */
struct trace_vm {
    uint32_t vm_id;
    uint32_t weight;
    char pool;
    uint8_t priority;
};

/* An operation with all that is known of it. */
struct trace_operation {
    uint64_t arrived_ns, began_ns, ended_ns; /* in this order */
    uint64_t device_ns;
    uint32_t vm_id;
    uint32_t source;
    uint32_t number;
    uint16_t opcode;
    uint8_t status;
};

/* Something of a VM or a device that lasted. */
struct trace_span {
    const struct trace_record *begin;
    const struct trace_record *end; /* NULL: it had not ended */
};

struct trace_story {
    struct trace_vm *vms; /* by vm_id */
    size_t vm_count;
    struct trace_operation *operations; /* by source and VM, then in the order of their ends */
    size_t operation_count;
    struct trace_span *waits; /* from WAIT (or a RETURN that left some) to GRANT */
    size_t wait_count;
    struct trace_span *grants; /* by device: from GRANT to RETURN, or the next GRANT */
    size_t grant_count;
};

/* Fills it from a sorted log, which must live as long. */
void trace_story_make(const struct trace_log *log, struct trace_story *ret_story);
void trace_story_clear(struct trace_story *story);

/* NULL: the log does not know it. */
const struct trace_vm *trace_story_vm(const struct trace_story *story, uint32_t vm_id);

/* As realloc(3) of count * bytes, which may be 0; without memory the process ends. */
void *trace_grow(void *memory, size_t count, size_t bytes) __attribute__((returns_nonnull));

#endif /* VGPU_TRACE_PRIVATE_H */
