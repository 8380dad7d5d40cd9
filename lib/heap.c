/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shares out a part of the slot.  The blocks stand in an array by offset, free
 * and used ones, without gaps; the first free one that is large enough is cut.
 *
 *   | used 64 | free 1024 | used 4096 | free ... |
 *
 * The array lies in private memory: what the host could write there must not
 * decide where the next block is.
 */
#include "private.h"

#include <stdlib.h>
#include <string.h>

int heap_open(struct heap *heap, uint64_t offset, uint64_t bytes)
{
    heap->room = 16;
    heap->blocks = malloc(heap->room * sizeof(*heap->blocks));
    if (!heap->blocks)
        return -1;
    heap->blocks[0] = (struct heap_block){.offset = offset, .bytes = bytes};
    heap->count = 1;
    return 0;
}

void heap_close(struct heap *heap)
{
    free(heap->blocks);
    *heap = (struct heap){0};
}

static bool insert_after(struct heap *heap, size_t index, const struct heap_block *block)
{
    if (heap->count == heap->room) {
        struct heap_block *more = realloc(heap->blocks, heap->room * 2 * sizeof(*more));

        if (!more)
            return false;
        heap->blocks = more;
        heap->room *= 2;
    }
    memmove(&heap->blocks[index + 2], &heap->blocks[index + 1],
            (heap->count - index - 1) * sizeof(*heap->blocks));
    heap->blocks[index + 1] = *block;
    heap->count++;
    return true;
}

static void remove_block(struct heap *heap, size_t index)
{
    heap->count--;
    memmove(&heap->blocks[index], &heap->blocks[index + 1],
            (heap->count - index) * sizeof(*heap->blocks));
}

uint64_t heap_take(struct heap *heap, uint64_t bytes)
{
    if (bytes == 0)
        bytes = 1;
    if (bytes > UINT64_MAX - HEAP_ALIGNMENT)
        return 0;
    bytes = (bytes + HEAP_ALIGNMENT - 1) / HEAP_ALIGNMENT * HEAP_ALIGNMENT;
    for (size_t i = 0; i < heap->count; i++) {
        struct heap_block *block = &heap->blocks[i];
        struct heap_block rest = {.offset = block->offset + bytes, .bytes = block->bytes - bytes};

        if (block->used || block->bytes < bytes)
            continue;
        if (rest.bytes > 0 && !insert_after(heap, i, &rest))
            return 0;
        block = &heap->blocks[i];
        block->bytes = bytes;
        block->used = true;
        return block->offset;
    }
    return 0;
}

static int compare_offset(const void *key, const void *element)
{
    uint64_t offset = *(const uint64_t *)key;
    const struct heap_block *block = element;

    return (offset > block->offset) - (offset < block->offset);
}

bool heap_give(struct heap *heap, uint64_t offset)
{
    struct heap_block *block =
        bsearch(&offset, heap->blocks, heap->count, sizeof(*block), compare_offset);
    size_t index;

    if (!block || !block->used)
        return false;
    index = (size_t)(block - heap->blocks);
    block->used = false;
    if (index + 1 < heap->count && !block[1].used) {
        block->bytes += block[1].bytes;
        remove_block(heap, index + 1);
    }
    if (index > 0 && !block[-1].used) {
        block[-1].bytes += block->bytes;
        remove_block(heap, index);
    }
    return true;
}

uint64_t heap_largest(const struct heap *heap)
{
    uint64_t largest = 0;

    for (size_t i = 0; i < heap->count; i++) {
        if (!heap->blocks[i].used && heap->blocks[i].bytes > largest)
            largest = heap->blocks[i].bytes;
    }
    return largest;
}
