/* SPDX-License-Identifier: Apache-2.0 */
/* What comes of a run: shares by window, Jain's index, what is left over at the end. */
#include "sim/private.h"

#include <stdlib.h>

static const char *const trace_names[SIM_PRIORITIES] = {"trace low", "trace medium", "trace high"};

struct sim_tally *result_load_tally(const struct run *run, const struct vm *vm)
{
    return &run->result->loads[vm->load].tally;
}

struct sim_tally *result_class_tally(const struct run *run, const struct vm *vm)
{
    return &run->result->classes[vm->priority];
}

/* --- begin ------------------------------------------------------------------------------- */

static void name_loads(struct run *run)
{
    const struct sim_scenario *scenario = run->scenario;
    struct sim_result *result = run->result;

    for (unsigned i = 0; i < scenario->load_count; i++) {
        text_copy(result->loads[i].name, SIM_NAME_BYTES, scenario->loads[i].name);
        result->loads[i].pool = scenario->loads[i].pool;
        result->loads[i].priority = scenario->loads[i].priority;
        result->loads[i].weight = scenario->loads[i].weight;
    }
    for (unsigned i = scenario->load_count; i < result->load_count; i++) {
        text_copy(result->loads[i].name, SIM_NAME_BYTES, trace_names[i - scenario->load_count]);
        result->loads[i].pool = '*';
        result->loads[i].priority = i - scenario->load_count;
    }
}

/* What it would get of its device if all there had work all the time. */
static double part(const struct run *run, const struct vm *vm)
{
    return (double)run_part(run, vm) / (double)vm->device->weights;
}

static void add_dues(struct run *run)
{
    unsigned used_devices = 0;

    for (uint32_t i = 0; i < run->vm_count; i++) {
        struct vm *vm = &run->vms[i];

        vm->device->weights += run_part(run, vm);
        run->result->loads[vm->load].vms++;
    }
    for (unsigned i = 0; i < run->device_count; i++)
        used_devices += run->devices[i].vms > 0;
    for (uint32_t i = 0; i < run->vm_count; i++)
        run->result->loads[run->vms[i].load].due_percent +=
            100 * part(run, &run->vms[i]) / used_devices;
}

void result_begin(struct run *run)
{
    struct sim_result *result = sim_allocate(1, sizeof(*result));

    run->result = result;
    result->settings = *run->settings;
    result->vms = run->vm_count;
    result->devices = run->device_count;
    result->duration_ns = run->end_ns;
    result->jain_window = 1;
    result->load_count = run->scenario->load_count;
    if (run->scenario->trace_vm_count > 0)
        result->load_count += SIM_PRIORITIES;
    result->loads = sim_allocate(result->load_count, sizeof(*result->loads));
    for (unsigned i = 0; i < result->load_count; i++)
        result->loads[i].window_shares =
            sim_allocate(run->settings->duration_ms / run->settings->window_ms + 1, sizeof(double));
    for (unsigned i = 0; i < SIM_PRIORITIES; i++)
        result->depths[i] = sim_allocate(SIM_SAMPLES, sizeof(double));
    name_loads(run);
    add_dues(run);
    run->next_window_ns = run->settings->window_ms * NS_PER_MS;
}

/* --- on the way -------------------------------------------------------------------------- */

void result_sample(struct run *run)
{
    uint64_t interval_ns = run->end_ns / SIM_SAMPLES;

    for (unsigned i = 0; i < SIM_PRIORITIES; i++) {
        run->result->depths[i][run->next_sample] = run->depth_sums[i] / (double)interval_ns;
        run->depth_sums[i] = 0;
    }
    run->result->sample_count = run->next_sample + 1;
}

struct sums {
    double sum, squares;
    uint64_t count;
};

static void sums_add(struct sums *sums, double value)
{
    sums->sum += value;
    sums->squares += value * value;
    sums->count++;
}

/* (sum)^2 / (n * sum of squares): 1 when all have the same, 1/n when one has all. */
static double jain(const struct sums *sums)
{
    if (sums->count == 0 || sums->squares <= 0)
        return 1;
    return sums->sum * sums->sum / ((double)sums->count * sums->squares);
}

/* A VM that never had an operation wants nothing. */
static bool counts(const struct vm *vm)
{
    return vm->used_ns > 0 || vm->job_count > 0;
}

static double by_weight(const struct run *run, const struct vm *vm, uint64_t used_ns)
{
    return (double)used_ns / (double)run->end_ns / part(run, vm);
}

static void window_shares(struct run *run, uint64_t sum_ns, const uint64_t *used_ns)
{
    struct sim_result *result = run->result;

    for (unsigned i = 0; i < result->load_count; i++) {
        struct sim_load_result *load = &result->loads[i];
        double share = sum_ns > 0 ? 100 * (double)used_ns[i] / (double)sum_ns : 0;
        double error =
            share > load->due_percent ? share - load->due_percent : load->due_percent - share;

        load->window_shares[result->window_count] = share;
        load->error_percent = error > load->error_percent ? error : load->error_percent;
    }
    result->window_count++;
}

void result_window(struct run *run)
{
    uint64_t *used_ns = sim_allocate(run->result->load_count, sizeof(*used_ns)), sum_ns = 0;
    struct sums sums = {0};

    for (unsigned i = 0; i < run->device_count; i++)
        device_charge(&run->devices[i]);
    for (uint32_t i = 0; i < run->vm_count; i++) {
        struct vm *vm = &run->vms[i];

        used_ns[vm->load] += vm->window_ns;
        sum_ns += vm->window_ns;
        if (counts(vm))
            sums_add(&sums, by_weight(run, vm, vm->window_ns));
        vm->window_ns = 0;
    }
    window_shares(run, sum_ns, used_ns);
    if (jain(&sums) < run->result->jain_window)
        run->result->jain_window = jain(&sums);
    free(used_ns);
}

/* --- end --------------------------------------------------------------------------------- */

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Who was never served waited longest of all. */
static void count_left(struct run *run, struct vm *vm)
{
    struct sim_tally *tallies[] = {result_load_tally(run, vm), result_class_tally(run, vm)};
    size_t begun = vm->device->holder == vm && vm->device->runs ? 1 : 0;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(tallies); i++) {
        struct sim_tally *tally = tallies[i];

        tally->left += vm->job_count;
        tally->used_ns += vm->used_ns;
        if (vm->job_count > begun)
            tally->longest_wait_ns =
                most(tally->longest_wait_ns, run->now_ns - vm_job(vm, begun)->arrival_ns);
        if (vm->waiting)
            tally->longest_turn_ns =
                most(tally->longest_turn_ns, run->now_ns - vm->waiting_since_ns);
    }
}

static void add_shares(struct run *run)
{
    struct sums sums = {0};

    for (uint32_t i = 0; i < run->vm_count; i++) {
        if (counts(&run->vms[i]))
            sums_add(&sums, by_weight(run, &run->vms[i], run->vms[i].used_ns));
    }
    run->result->jain = jain(&sums);
    for (unsigned i = 0; i < run->result->load_count && run->result->busy_ns > 0; i++)
        run->result->loads[i].share_percent =
            100 * (double)run->result->loads[i].tally.used_ns / (double)run->result->busy_ns;
}

void result_finish(struct run *run)
{
    for (unsigned i = 0; i < run->device_count; i++) {
        struct device *device = &run->devices[i];

        device_charge(device);
        if (device->idle_since_ns != UINT64_MAX)
            run->result->idle_with_work_ns += run->now_ns - device->idle_since_ns;
    }
    for (uint32_t i = 0; i < run->vm_count; i++)
        count_left(run, &run->vms[i]);
    add_shares(run);
}

void sim_result_free(struct sim_result *result)
{
    if (!result)
        return;
    for (unsigned i = 0; i < SIM_PRIORITIES; i++) {
        free(result->classes[i].total);
        free(result->depths[i]);
    }
    for (unsigned i = 0; i < result->load_count; i++) {
        free(result->loads[i].tally.total);
        free(result->loads[i].window_shares);
    }
    free(result->loads);
    free(result);
}
