/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim/ - the scheduler of src/sched/ in simulated time.
 *
 *   scenario ──▶ loads ──▶ VMs ── sched_ready() ──▶ ┌───────┐
 *   or trace               ▲                        │ sched │ the mediator's very own code
 *                          │ answers                └───────┘
 *                          │              sched_next() │ ▲ sched_returned()
 *                          └───────── devices ◀────────┘ │
 *                                     (a model) ─────────┘
 *
 * The device is a model: it runs a grant's operations one after the other, each for its length,
 * and ends the grant as a session's worker does.  Everything else is what the mediator does.
 *
 * Deterministic: a scenario and a seed give the same result on any machine, byte for byte.  No
 * clock is read but for progress.  Memory that is not to be had ends the process.
 *
 *   struct sim_scenario *scenario = sim_scenario_new();
 *   sim_scenario_read(scenario, path, &error);
 *   struct sim_result *result = sim_run(scenario, &scenario->settings, NULL);
 *   sim_print(result, stdout);
 */
#ifndef VGPU_SIM_H
#define VGPU_SIM_H

#include "base/base.h"
#include "sched/sched.h"

#include <stdio.h>

#define SIM_VMS_MAX 10000u
#define SIM_DEVICES_MAX 1000u
#define SIM_LOADS_MAX 64u
#define SIM_POOLS_MAX 26u
#define SIM_VARIANTS_MAX 8u
#define SIM_PRIORITIES 3u
#define SIM_NAME_BYTES 48u

/* --- what is simulated (scenario.c) ------------------------------------------------------ */

/* The section [simulation]; vgpu-sim(1) says what each key means and accepts. */
struct sim_settings {
    struct sched_policy_config policy;
    enum sched_pools_mode pools;
    bool long_grants;
    uint32_t seed;
    uint32_t duration_ms; /* 0: not said yet */
    uint32_t window_ms;
    uint32_t grant_us, grant_ops, grant_inflight, grant_min_us;
    uint32_t protect_us, protect_inflight, protect_ms;
    uint32_t switch_us, switch_share_percent;
    uint32_t turn_us;
    uint32_t queue_max;
    uint32_t stall_per_million, stall_us;
    uint32_t misread_percent;
};

enum sim_arrivals { SIM_ARRIVALS_POISSON, SIM_ARRIVALS_BURSTS, SIM_ARRIVALS_CLOSED };
enum sim_sizes { SIM_SIZES_FIXED, SIM_SIZES_EXPONENTIAL, SIM_SIZES_PARETO };

/* A section [load NAME]: so many VMs that do the same. */
struct sim_load {
    char name[SIM_NAME_BYTES];
    char pool;
    uint32_t vms;
    uint32_t priority; /* 0 low, 1 medium, 2 high */
    uint32_t weight;
    enum sim_arrivals arrivals;
    uint32_t every_us; /* POISSON, BURSTS: mean time between two operations of a VM */
    uint32_t on_ms, off_ms;
    uint32_t depth, think_us; /* CLOSED */
    enum sim_sizes sizes;
    uint32_t job_us; /* mean; PARETO: the smallest */
    uint32_t job_max_us, shape_percent;
    uint32_t start_ms, stop_ms;
};

/* A section [pool X]: on which devices its VMs are, dealt out in turn, and how it is served. */
struct sim_pool {
    char name;
    uint32_t first_device, last_device;
    bool has_policy; /* else the settings' */
    struct sched_policy_config policy;
};

/* A line of a recorded trace: an operation arrives. */
struct sim_arrival {
    uint64_t time_us;
    uint32_t vm; /* index of trace_vms */
    uint32_t job_us;
};

struct sim_trace_vm {
    uint32_t id;
    char pool;
    uint8_t priority;
    uint16_t weight;
};

struct sim_variant {
    char label[SIM_NAME_BYTES];
    struct sim_settings settings;
};

struct sim_scenario {
    struct sim_settings settings;
    struct sim_pool pools[SIM_POOLS_MAX];
    unsigned pool_count;
    struct sim_load loads[SIM_LOADS_MAX];
    unsigned load_count;
    struct sim_variant variants[SIM_VARIANTS_MAX]; /* of --policy; none: settings alone */
    unsigned variant_count;
    struct sim_arrival *arrivals; /* of the trace, in order of time */
    size_t arrival_count;
    struct sim_trace_vm *trace_vms;
    size_t trace_vm_count;
};

/* With the settings' defaults, and nothing else. */
struct sim_scenario *sim_scenario_new(void);
void sim_scenario_free(struct sim_scenario *scenario);

/* Reads a scenario's file over what is there.  -1 with file, line, what was expected. */
int sim_scenario_read(struct sim_scenario *scenario, const char *path, struct vgpu_error *error);

/* `KEY=VALUE` of [simulation]. */
int sim_scenario_set(struct sim_scenario *scenario, const char *assignment,
                     struct vgpu_error *error);

/* `NAME,KEY=VALUE,...` as a section [load NAME]; `X,KEY=VALUE` as [pool X]. */
int sim_scenario_load(struct sim_scenario *scenario, const char *text, struct vgpu_error *error);
int sim_scenario_pool(struct sim_scenario *scenario, const char *text, struct vgpu_error *error);

/* `POLICY[:KEY=VALUE]...` separated by commas: the runs to compare, each from the settings as
 * they are now. */
int sim_scenario_compare(struct sim_scenario *scenario, const char *list, struct vgpu_error *error);

/* Adds what is missing (a pool A on device 0) and judges the whole.  To be called last. */
int sim_scenario_finish(struct sim_scenario *scenario, struct vgpu_error *error);

/* --- recorded loads (trace.c) ------------------------------------------------------------ */

/* Reads a trace in vgpu-sim(1)'s CSV: its operations arrive beside those of the loads. */
int sim_trace_read(struct sim_scenario *scenario, const char *path, struct vgpu_error *error);

/* --- the run (run.c, device.c) ----------------------------------------------------------- */

/* Told of what happens, while it does; each may be NULL.  For tests, progress and traces. */
struct sim_observer {
    void (*progress)(uint64_t now_ns, uint64_t duration_ns, uint64_t events, void *context);
    void (*arrived)(uint64_t now_ns, uint32_t vm_id, char pool, unsigned priority, uint32_t weight,
                    uint64_t job_us, void *context);
    void (*granted)(uint64_t now_ns, unsigned device, uint32_t vm_id, unsigned priority,
                    uint64_t waited_ns, void *context);
    void (*completed)(uint64_t now_ns, unsigned device, uint32_t vm_id, void *context);
    void *context;
};

/* --- results (result.c) ------------------------------------------------------------------ */

struct sim_latency; /* how often each duration came; within 0.8 % */

/* Made with the first one; free(3) it. */
void sim_latency_add(struct sim_latency **latency, uint64_t value_ns);

/* The value that `per_mille` of all do not exceed; 0 when there is none. */
uint64_t sim_latency_at(const struct sim_latency *latency, unsigned per_mille);
uint64_t sim_latency_max(const struct sim_latency *latency);
uint64_t sim_latency_count(const struct sim_latency *latency);

/* Calls `point` for each duration that came, with how many were at most as long. */
void sim_latency_each(const struct sim_latency *latency,
                      void (*point)(uint64_t value_ns, uint64_t count, void *context),
                      void *context);

/* Of the VMs of a priority, or of a load. */
struct sim_tally {
    struct sim_latency *total; /* from arrival to completion; NULL: none completed */
    uint64_t accepted, completed, refused, left;
    uint64_t longest_wait_ns; /* of an operation for its beginning, also of those left */
    uint64_t longest_turn_ns; /* of a VM with work for its grant, also of those that wait */
    uint64_t used_ns;         /* device time */
};

struct sim_load_result {
    char name[SIM_NAME_BYTES];
    char pool;
    unsigned priority;
    uint32_t weight, vms;
    struct sim_tally tally;
    double share_percent, due_percent; /* of the device time used; what its weight says */
    double error_percent;              /* largest |share - due| of a whole window, in points */
    double *window_shares;             /* `window_count` of them, 0 to 100 */
};

struct sim_result {
    char label[SIM_NAME_BYTES];
    struct sim_settings settings;
    uint32_t vms, devices, waiting_max; /* `waiting_max`: VMs, on one device */
    struct sim_tally classes[SIM_PRIORITIES];
    struct sim_load_result *loads;
    unsigned load_count;
    uint64_t duration_ns, busy_ns, switch_ns;
    uint64_t idle_with_work_ns;            /* a device had no grant out although a VM waited: 0 */
    uint64_t grants, switches, inversions; /* `inversions`: a higher class waited */
    uint64_t longest_grant_ns; /* with the switch before, while others waited for its end */
    uint64_t events;
    double jain, jain_window; /* of device time by weight: all in all, and in the worst window */
    unsigned window_count;
    unsigned sample_count;          /* of the depths, evenly over the duration */
    double *depths[SIM_PRIORITIES]; /* operations that wait, the mean since the sample before */
};

/* Simulates the scenario under these settings.  Never NULL. */
struct sim_result *sim_run(const struct sim_scenario *scenario, const struct sim_settings *settings,
                           const struct sim_observer *observer);
void sim_result_free(struct sim_result *result);

/* --- for people and programs (report.c, plot.c) ------------------------------------------ */

void sim_print(const struct sim_result *result, FILE *file);

/* All runs in three tables: by class, by load, and what is true of all. */
void sim_print_brief(struct sim_result *const results[], unsigned count, FILE *file);
void sim_print_json(struct sim_result *const results[], unsigned count, FILE *file);

/* Writes latency.svg, shares.svg and depth.svg into a directory that exists, a panel a result. */
int sim_plot(struct sim_result *const results[], unsigned count, const char *directory,
             struct vgpu_error *error);

#endif /* VGPU_SIM_H */
