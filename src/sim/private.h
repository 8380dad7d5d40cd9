/* SPDX-License-Identifier: Apache-2.0 */
/* sim/private.h - what the files of the simulator share. */
#ifndef VGPU_SIM_PRIVATE_H
#define VGPU_SIM_PRIVATE_H

#include "sim/sim.h"

/* --- memory (memory.c): what is not to be had ends the process --------------------------- */

void *sim_allocate(size_t count, size_t bytes); /* zeroed; free(3) */

/* Room for `count` elements at least; at most doubles.  Returns where the array is now. */
void *sim_grow(void *array, size_t count, size_t *room, size_t element_bytes);

/* --- files (scenario.c) ------------------------------------------------------------------ */

/* A file's first line without the byte-order mark (UTF-8) that some editors write. */
char *sim_behind_mark(char *line);

/* --- random numbers (draw.c) ------------------------------------------------------------- */

struct draw {
    uint64_t state;
};

/* Streams of one seed have nothing to do with each other. */
void draw_seed(struct draw *draw, uint64_t seed, uint64_t stream);
uint64_t draw_bits(struct draw *draw);
uint64_t draw_below(struct draw *draw, uint64_t limit); /* limit >= 1 */
uint64_t draw_exponential(struct draw *draw, uint64_t mean);

/* Bounded Pareto: least <= value <= most. */
uint64_t draw_pareto(struct draw *draw, uint64_t least, uint64_t most, double shape);
double draw_ln(double x);
double draw_exp(double x);

/* --- what is to happen (events.c) -------------------------------------------------------- */

/* Of those of one instant the first of these come first, so that a trace that was recorded is
 * replayed as it was. */
enum event_type {
    EVENT_ARRIVAL, /* an operation of VM `index` */
    EVENT_TRACE,   /* the trace's next operation */
    EVENT_BEGIN,   /* device `index`: the grant's VM is on the device */
    EVENT_END,     /* device `index`: the operation that runs has ended */
};

struct event {
    uint64_t time_ns;
    uint64_t order; /* of one instant: the type, then a number that rises */
    uint32_t index;
};

#define EVENT_TYPE_SHIFT 56u

struct events {
    struct event *heap;
    size_t count, room;
    uint64_t last_number;
};

void events_add(struct events *events, uint64_t time_ns, enum event_type type, uint32_t index);

/* The earliest; false: there is none. */
bool events_take(struct events *events, struct event *ret_event);
enum event_type event_type(const struct event *event);
void events_clear(struct events *events);

/* --- the run (run.c: VMs and time; device.c: grants) ------------------------------------- */

struct job {
    uint64_t arrival_ns;
    uint64_t length_ns;
};

struct device;

struct vm {
    uint32_t id;
    unsigned load; /* index of the result's loads */
    uint32_t index;
    uint32_t weight;
    uint8_t priority;
    char pool;
    const struct sim_load *source; /* NULL: of the trace */
    struct sched_vm *place;
    struct device *device;
    struct draw draw, stalls; /* of its load, whatever the others do; of its stalls */
    struct job *jobs;         /* a ring: the first `flying` have been begun */
    size_t job_room, job_first, job_count;
    bool waiting;
    uint64_t waiting_since_ns;
    uint64_t burst_end_ns;
    uint64_t pace_ns;            /* how long an operation lasts, about */
    uint64_t used_ns, window_ns; /* device time: in all, in this window */
};

struct device {
    struct run *run;
    struct sched *sched;
    unsigned index, slot; /* of all; of its sched's */
    struct vm *holder, *last;
    struct sched_grant grant;
    bool is_long, draining, beginning, runs;
    uint32_t begun, flying; /* operations of this grant: in all, not yet ended */
    uint64_t granted_ns, used_ns, charged_ns;
    uint32_t vms, waiting[SIM_PRIORITIES];
    uint64_t wanted_ns;     /* since when others wait, without a break */
    uint64_t idle_since_ns; /* with a VM that waits; UINT64_MAX: not so */
    uint64_t weights;       /* of its VMs */
    struct draw draw;
};

struct run {
    const struct sim_scenario *scenario;
    const struct sim_settings *settings;
    const struct sim_observer *observer;
    struct sim_result *result;
    struct sched **scheds; /* one for SCHED_DEVICES_MAX devices each */
    unsigned sched_count;
    struct device *devices;
    unsigned device_count;
    struct vm *vms;
    uint32_t vm_count;
    struct events events;
    uint64_t now_ns, end_ns, next_window_ns;
    unsigned next_sample;
    size_t next_arrival;               /* of the trace */
    uint32_t depths[SIM_PRIORITIES];   /* operations that wait ... */
    double depth_sums[SIM_PRIORITIES]; /* ... times ns, since the last sample */
};

/* device.c */
struct job *vm_job(struct vm *vm, size_t number);

/* The VM has one operation more. */
void device_arrived(struct device *device, struct vm *vm);
void device_begin(struct device *device);
void device_end(struct device *device);

/* Charges what has been used until now, so that a window can be closed. */
void device_charge(struct device *device);

/* run.c: its weight times that of its class in its pool. */
uint64_t run_part(const struct run *run, const struct vm *vm);

/* run.c: the operation at the head of the VM's ring is complete. */
void run_completed(struct run *run, struct device *device, struct vm *vm);

/* result.c */
void result_begin(struct run *run);
void result_window(struct run *run);
void result_sample(struct run *run);
void result_finish(struct run *run);

/* The VM's tallies: of its load and of its class. */
struct sim_tally *result_load_tally(const struct run *run, const struct vm *vm);
struct sim_tally *result_class_tally(const struct run *run, const struct vm *vm);

#define SIM_SAMPLES 200u

#endif /* VGPU_SIM_PRIVATE_H */
