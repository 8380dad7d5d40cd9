/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels/ - the product's own kernels: their PTX, and how each is launched.
 *
 *   vgpu_kernels.cu ──scripts/kernels──▶ vgpu_kernels.ptx ──embed.py──▶ kernels_ptx[]
 *
 * A launch of a kernel by a guest goes so:
 *
 *   entry = kernels_find(name)                  NULL or not for_guests: no such kernel
 *   entry->parameter_count                      what else was given is wrong
 *   number_max, kernels_elements(), apart       numbers and ranges: checked by the caller
 *   entry->block, kernels_grid()                the guest's own grid and block do not matter
 *
 * Parameters are 64-bit words, one each.  In the kernel a KERNELS_WORD and a KERNELS_FLOAT
 * have 32 bits: the low half of their word; give cuLaunchKernel() a pointer to each word.
 * No kernel takes dynamic shared memory, but for fill_shared and probe_shared: their third
 * parameter's words, 4 bytes each.  A count of 0 is nothing to do, and may be launched.
 *
 * reduce_sum writes one double a block.  Launched with the one block that kernels_grid()
 * gives, sum[0] is the sum, and nothing else is needed.  To use the whole device for a
 * long one, two launches in the same stream do:
 *
 *   reduce_sum       grid of b blocks, b up to KERNELS_PARTIALS_MAX; its `sum` is scratch
 *                    memory of b doubles that belongs to that stream
 *   reduce_partials  sum, the scratch memory, b; one block
 *
 * The same launch always gives the same bits; another grid may round otherwise.
 *
 * fill_shared and fill_local leave a pattern behind, probe_shared and probe_local look for it
 * in memory that they have not written; each adds how many words to its counter, a 64-bit
 * word that the caller has set to 0.
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* PTX text with a NUL behind it, which is not counted.  For devices of compute capability
 * 7.5 and up, and drivers of CUDA 11.0 and up. */
extern const char kernels_ptx[];
extern const size_t kernels_ptx_bytes;

#define KERNELS_PARAMETERS_MAX 4u
#define KERNELS_COUNT_MAX (1ull << 40) /* elements behind one address */
#define KERNELS_LOCAL_WORDS 1024u      /* 32-bit words a thread that fill_local writes */
#define KERNELS_PARTIALS_MAX 1024u     /* blocks of a reduce_sum with scratch memory */

enum kernels_parameter_kind {
    KERNELS_ADDRESS = 1, /* of device memory */
    KERNELS_NUMBER,      /* all 64 bits count */
    KERNELS_WORD,        /* the low 32 bits count */
    KERNELS_FLOAT,       /* the low 32 bits are one */
};

struct kernels_parameter {
    enum kernels_parameter_kind kind;
    uint32_t element_bytes; /* ADDRESS: also its alignment; 4 or 8 */
    uint8_t count_index;    /* ADDRESS: the parameter that says how many elements ... */
    uint8_t count_power;    /* ... 0: always one; 1: as many; 2: that many times that many */
    bool written;           /* ADDRESS: else only read */
    bool apart;             /* ADDRESS: overlaps no other range of the launch */
    uint64_t number_max;    /* NUMBER: larger ones are invalid; UINT64_MAX: none is */
};

/* How many blocks a launch has: see kernels_grid(). */
enum kernels_grid_rule {
    KERNELS_GRID_ELEMENTS, /* enough for count_index' elements, or for the device */
    KERNELS_GRID_ONE,      /* one block */
    KERNELS_GRID_TILES,    /* one a 32 x 32 tile of an n x n matrix */
    KERNELS_GRID_DEVICE,   /* every multiprocessor's threads, or its shared memory, once */
};

struct kernels_entry {
    const char *name;
    bool for_guests; /* vgpu_launch() may name it; else the host's own */
    uint32_t parameter_count;
    struct kernels_parameter parameters[KERNELS_PARAMETERS_MAX];
    enum kernels_grid_rule grid_rule;
    uint8_t count_index;            /* GRID_ELEMENTS, GRID_TILES: the parameter that counts */
    uint32_t multiprocessor_blocks; /* GRID_ELEMENTS: at most, GRID_DEVICE: exactly, on each */
    uint32_t block[3];              /* threads */
};

/* All kernels of kernels_ptx, in its order. */
extern const struct kernels_entry kernels_table[];
extern const size_t kernels_count;

/* NULL: there is no kernel of this name. */
const struct kernels_entry *kernels_find(const char *name);

/* How many elements lie behind address `index` of a launch with these words (as many as
 * entry->parameter_count).  UINT64_MAX: more than KERNELS_COUNT_MAX, so no range at all. */
uint64_t kernels_elements(const struct kernels_entry *entry, uint32_t index,
                          const uint64_t *parameters);

/* The grid of a launch with these words on a device with `multiprocessors` (1 or more) of
 * them.  Numbers up to number_max; each of ret_grid is at least 1 and fits every device. */
void kernels_grid(const struct kernels_entry *entry, const uint64_t *parameters,
                  uint32_t multiprocessors, uint32_t ret_grid[3]);

#endif /* KERNELS_KERNELS_H */
