/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host in the test's own process: speaks the link on a socket, and plays the
 * worker on the slot that it was given.  A test says how it behaves:
 *
 *   by itself  a thread takes operations and answers them, as a good host does
 *   by hand    nothing is taken until the test calls lib_host_run(); then what is
 *              published, rung and answered is exactly known
 *
 * Its faults are switches: fields of struct lib_host that a test may set.
 */
#ifndef VGPU_TESTS_LIB_HOST_H
#define VGPU_TESTS_LIB_HOST_H

#include "unit.h"

#include "vgpu/link.h"

#include <pthread.h>

#define LIB_HOST_DEVICE_BASE 0x100000000ull
#define LIB_HOST_DEVICE_BYTES (8u << 20)

struct lib_host {
    char *directory;
    char path[108];
    int listener;
    int stop_fd;
    pthread_t thread;
    pthread_mutex_t lock; /* the rings, and everything below */

    /* switches; set before lib_host_open() */
    bool by_hand;
    uint32_t first_index;  /* where the rings' counters start */
    uint32_t window_bytes; /* as HELLO said */
    int refuse_hello;      /* errno value: REFUSED */
    int refuse_open;       /* errno value: STATE REFUSED */
    bool is_silent;        /* accepts, says nothing */

    /* while it runs; under the lock */
    bool forgets;           /* says CLOSED of a slot that HELLO calls open */
    uint32_t answers_with;  /* status of all operations */
    bool answers_backwards; /* what one look finds, last first */
    bool is_mute;           /* publishes without raising the interrupt */
    int link;               /* -1: none */
    int window_fd, interrupt_fd, lifeline_fd, doorbell_fd;
    struct vgpu_slot_guest *guest;
    struct vgpu_slot_host *host;
    struct vgpu_descriptor *descriptors;
    struct vgpu_completion *completions;
    uint8_t *slot;
    uint64_t slot_bytes;
    uint32_t sq_head, cq_tail;
    uint8_t *device;
    uint64_t allocated;

    /* what was seen */
    unsigned hellos, opens, closes;
    uint32_t open_slots; /* of the last HELLO */
    uint64_t operations, doorbells, interrupts;
    uint64_t launches;
    uint64_t launch_errors; /* parameters that were not what their name says */
    struct vgpu_descriptor last_launch;
    uint8_t last_parameters[VGPU_PARAMETERS_MAX_BYTES];
};

/* Reads and sets a field while the thread runs. */
#define LIB_HOST_GET(of, field)                                                                    \
    ({                                                                                             \
        pthread_mutex_lock(&(of)->lock);                                                           \
        __typeof__((of)->field) value_ = (of)->field;                                              \
        pthread_mutex_unlock(&(of)->lock);                                                         \
        value_;                                                                                    \
    })
#define LIB_HOST_SET(of, field, value)                                                             \
    ({                                                                                             \
        pthread_mutex_lock(&(of)->lock);                                                           \
        (of)->field = (value);                                                                     \
        pthread_mutex_unlock(&(of)->lock);                                                         \
    })

void lib_host_open(struct lib_host *host);
void lib_host_close(struct lib_host *host);

/* By hand: takes and answers up to `most` operations; returns how many. */
unsigned lib_host_run(struct lib_host *host, unsigned most);

/* Raises the interrupt, as if a completion asked for it. */
void lib_host_interrupt(struct lib_host *host);

/* Hangs up, and does not listen until lib_host_return(). */
void lib_host_leave(struct lib_host *host);
void lib_host_return(struct lib_host *host);

/* Says STATE of slot 0. */
void lib_host_say(struct lib_host *host, uint32_t state);

#endif
