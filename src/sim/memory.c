/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/private.h"

#include <stdlib.h>
#include <string.h>

#define ROOM_FIRST 16u

static void *fail_without(void *memory, size_t bytes)
{
    if (!memory && bytes > 0) {
        fprintf(stderr, "vgpu-sim: out of memory: %zu bytes are not to be had\n", bytes);
        abort();
    }
    return memory;
}

void *sim_allocate(size_t count, size_t bytes)
{
    return fail_without(calloc(count, bytes), count * bytes);
}

void *sim_grow(void *array, size_t count, size_t *room, size_t element_bytes)
{
    size_t wanted = *room > 0 ? *room : ROOM_FIRST;

    if (count <= *room)
        return array;
    while (wanted < count)
        wanted *= 2;
    *room = wanted;
    return fail_without(reallocarray(array, wanted, element_bytes), wanted * element_bytes);
}
