/* SPDX-License-Identifier: Apache-2.0 */
/* A run's result as tables for people and as JSON for programs. */
#include "sim/private.h"

#include <jansson.h>
#include <string.h>

static const char *const class_names[SIM_PRIORITIES] = {"low", "medium", "high"};
static const unsigned per_milles[] = {500, 950, 990, 999};

static double ms(uint64_t ns)
{
    return (double)ns / NS_PER_MS;
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole > 0 ? 100 * (double)part / (double)whole : 0;
}

static uint64_t device_time_ns(const struct sim_result *result)
{
    return result->duration_ns * result->devices;
}

/* --- tables ------------------------------------------------------------------------------ */

static void print_head(const struct sim_result *result, FILE *file)
{
    const struct sim_settings *settings = &result->settings;

    fprintf(file, "== %s: %u VMs, %u device%s, %.3f s, seed %u; grants %u us, switch %u us\n\n",
            result->label[0] ? result->label : sched_policy_name(settings->policy.type),
            result->vms, result->devices, result->devices == 1 ? "" : "s",
            (double)result->duration_ns / NS_PER_S, settings->seed, settings->grant_us,
            settings->switch_us);
}

static void print_latencies(const struct sim_tally *tally, FILE *file)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(per_milles); i++)
        fprintf(file, " %9.3f", ms(sim_latency_at(tally->total, per_milles[i])));
    fprintf(file, " %9.3f", ms(sim_latency_max(tally->total)));
}

static void print_classes(const struct sim_result *result, FILE *file)
{
    fprintf(file, "%-8s %9s %8s %8s %9s %9s %9s %9s %9s %9s %9s\n", "class", "completed", "refused",
            "left", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms", "wait ms", "turn ms");
    for (unsigned i = SIM_PRIORITIES; i-- > 0;) {
        const struct sim_tally *tally = &result->classes[i];

        if (tally->accepted + tally->refused == 0)
            continue;
        fprintf(file, "%-8s %9llu %8llu %8llu", class_names[i],
                (unsigned long long)tally->completed, (unsigned long long)tally->refused,
                (unsigned long long)tally->left);
        print_latencies(tally, file);
        fprintf(file, " %9.3f %9.3f\n", ms(tally->longest_wait_ns), ms(tally->longest_turn_ns));
    }
}

static void print_loads(const struct sim_result *result, FILE *file)
{
    fprintf(file, "\n%-16s %-6s %6s %6s %9s %8s %8s %8s %9s %9s\n", "load", "class", "weight",
            "VMs", "completed", "share %", "due %", "error", "p50 ms", "p99 ms");
    for (unsigned i = 0; i < result->load_count; i++) {
        const struct sim_load_result *load = &result->loads[i];

        if (load->vms == 0)
            continue;
        fprintf(file, "%-16s %-6s %6u %6u %9llu %8.2f %8.2f %8.2f %9.3f %9.3f\n", load->name,
                class_names[load->priority], load->weight, load->vms,
                (unsigned long long)load->tally.completed, load->share_percent, load->due_percent,
                load->error_percent, ms(sim_latency_at(load->tally.total, 500)),
                ms(sim_latency_at(load->tally.total, 990)));
    }
}

static void print_totals(const struct sim_result *result, FILE *file)
{
    fprintf(file, "\nutilisation       %.2f %%, and %.2f %% for switches and turns\n",
            percent(result->busy_ns, device_time_ns(result)),
            percent(result->switch_ns, device_time_ns(result)));
    fprintf(file, "grants            %llu, switches %llu, longest grant %.3f ms\n",
            (unsigned long long)result->grants, (unsigned long long)result->switches,
            ms(result->longest_grant_ns));
    fprintf(file, "inversions        %llu grants while a higher class waited\n",
            (unsigned long long)result->inversions);
    fprintf(file, "idle with work    %.3f ms\n", ms(result->idle_with_work_ns));
    fprintf(file, "Jain index        %.4f by weight, %.4f in the worst window of %u ms\n",
            result->jain, result->jain_window, result->settings.window_ms);
    fprintf(file, "VMs that waited   %u at most on a device\n", result->waiting_max);
    fprintf(file, "events            %llu\n", (unsigned long long)result->events);
}

void sim_print(const struct sim_result *result, FILE *file)
{
    print_head(result, file);
    print_classes(result, file);
    print_loads(result, file);
    print_totals(result, file);
}

/* --- several runs beside each other ------------------------------------------------------ */

static int label_width(struct sim_result *const results[], unsigned count)
{
    size_t width = strlen("policy");

    for (unsigned i = 0; i < count; i++)
        width = strlen(results[i]->label) > width ? strlen(results[i]->label) : width;
    return (int)width;
}

static void brief_classes(struct sim_result *const results[], unsigned count, FILE *file)
{
    int width = label_width(results, count);

    fprintf(file, "%-8s %-*s %9s %9s %9s %9s %9s %9s %9s\n", "class", width, "policy", "completed",
            "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms", "turn ms");
    for (unsigned class = SIM_PRIORITIES; class -- > 0;) {
        for (unsigned i = 0; i < count; i++) {
            const struct sim_tally *tally = &results[i]->classes[class];

            if (tally->accepted == 0)
                continue;
            fprintf(file, "%-8s %-*s %9llu", class_names[class], width, results[i]->label,
                    (unsigned long long)tally->completed);
            print_latencies(tally, file);
            fprintf(file, " %9.3f\n", ms(tally->longest_turn_ns));
        }
    }
}

static void brief_load(const struct sim_result *result, unsigned number, int width, FILE *file)
{
    const struct sim_load_result *load = &result->loads[number];

    fprintf(file, "%-16s %-*s %6u %8.2f %8.2f %8.2f %9.3f %9.3f\n", load->name, width,
            result->label, load->weight, load->share_percent, load->due_percent,
            load->error_percent, ms(sim_latency_at(load->tally.total, 500)),
            ms(sim_latency_at(load->tally.total, 990)));
}

static void brief_loads(struct sim_result *const results[], unsigned count, FILE *file)
{
    int width = label_width(results, count);

    fprintf(file, "\n%-16s %-*s %6s %8s %8s %8s %9s %9s\n", "load", width, "policy", "weight",
            "share %", "due %", "error", "p50 ms", "p99 ms");
    for (unsigned number = 0; number < results[0]->load_count; number++) {
        for (unsigned i = 0; i < count && results[i]->loads[number].vms > 0; i++)
            brief_load(results[i], number, width, file);
    }
}

static void brief_totals(struct sim_result *const results[], unsigned count, FILE *file)
{
    int width = label_width(results, count);

    fprintf(file, "\n%-*s %6s %8s %9s %9s %10s %9s %9s\n", width, "policy", "busy %", "switch %",
            "grants", "switches", "inversions", "grant ms", "Jain");
    for (unsigned i = 0; i < count; i++) {
        const struct sim_result *result = results[i];

        fprintf(file, "%-*s %6.2f %8.2f %9llu %9llu %10llu %9.3f %9.4f\n", width, result->label,
                percent(result->busy_ns, device_time_ns(result)),
                percent(result->switch_ns, device_time_ns(result)),
                (unsigned long long)result->grants, (unsigned long long)result->switches,
                (unsigned long long)result->inversions, ms(result->longest_grant_ns), result->jain);
    }
}

void sim_print_brief(struct sim_result *const results[], unsigned count, FILE *file)
{
    brief_classes(results, count, file);
    brief_loads(results, count, file);
    brief_totals(results, count, file);
}

/* --- JSON -------------------------------------------------------------------------------- */

static void put_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void put_us(json_t *object, const char *key, uint64_t ns)
{
    put_number(object, key, ns / NS_PER_US);
}

/* Six digits: what differs behind them is no result. */
static json_t *real(double value)
{
    return json_real((double)(int64_t)(value * 1e6 + (value < 0 ? -0.5 : 0.5)) / 1e6);
}

static void put_tally(json_t *object, const struct sim_tally *tally)
{
    put_number(object, "accepted", tally->accepted);
    put_number(object, "completed", tally->completed);
    put_number(object, "refused", tally->refused);
    put_number(object, "left", tally->left);
    put_us(object, "used_us", tally->used_ns);
    put_us(object, "p50_us", sim_latency_at(tally->total, 500));
    put_us(object, "p95_us", sim_latency_at(tally->total, 950));
    put_us(object, "p99_us", sim_latency_at(tally->total, 990));
    put_us(object, "p999_us", sim_latency_at(tally->total, 999));
    put_us(object, "max_us", sim_latency_max(tally->total));
    put_us(object, "longest_wait_us", tally->longest_wait_ns);
    put_us(object, "longest_turn_us", tally->longest_turn_ns);
}

static json_t *classes_json(const struct sim_result *result)
{
    json_t *classes = json_object();

    for (unsigned i = 0; i < SIM_PRIORITIES; i++) {
        json_t *class = json_object();

        put_tally(class, &result->classes[i]);
        json_object_set_new(classes, class_names[i], class);
    }
    return classes;
}

static json_t *load_json(const struct sim_result *result, const struct sim_load_result *load)
{
    const char pool[2] = {load->pool, '\0'};
    json_t *object = json_object(), *shares = json_array();

    json_object_set_new(object, "name", json_string(load->name));
    json_object_set_new(object, "pool", json_string(pool));
    put_number(object, "priority", load->priority);
    put_number(object, "weight", load->weight);
    put_number(object, "vms", load->vms);
    put_tally(object, &load->tally);
    json_object_set_new(object, "share_percent", real(load->share_percent));
    json_object_set_new(object, "due_percent", real(load->due_percent));
    json_object_set_new(object, "error_percent", real(load->error_percent));
    for (unsigned i = 0; i < result->window_count; i++)
        json_array_append_new(shares, real(load->window_shares[i]));
    json_object_set_new(object, "window_share_percent", shares);
    return object;
}

static json_t *loads_json(const struct sim_result *result)
{
    json_t *loads = json_array();

    for (unsigned i = 0; i < result->load_count; i++) {
        if (result->loads[i].vms > 0)
            json_array_append_new(loads, load_json(result, &result->loads[i]));
    }
    return loads;
}

static json_t *run_json(const struct sim_result *result)
{
    json_t *run = json_object();

    json_object_set_new(run, "label", json_string(result->label));
    json_object_set_new(run, "policy",
                        json_string(sched_policy_name(result->settings.policy.type)));
    put_number(run, "seed", result->settings.seed);
    put_number(run, "vms", result->vms);
    put_number(run, "devices", result->devices);
    put_us(run, "duration_us", result->duration_ns);
    json_object_set_new(run, "utilisation_percent",
                        real(percent(result->busy_ns, device_time_ns(result))));
    json_object_set_new(run, "switch_percent",
                        real(percent(result->switch_ns, device_time_ns(result))));
    put_number(run, "grants", result->grants);
    put_number(run, "switches", result->switches);
    put_number(run, "inversions", result->inversions);
    put_us(run, "longest_grant_us", result->longest_grant_ns);
    put_us(run, "idle_with_work_us", result->idle_with_work_ns);
    put_number(run, "waiting_max", result->waiting_max);
    put_number(run, "events", result->events);
    json_object_set_new(run, "jain", real(result->jain));
    json_object_set_new(run, "jain_window", real(result->jain_window));
    json_object_set_new(run, "classes", classes_json(result));
    json_object_set_new(run, "loads", loads_json(result));
    return run;
}

void sim_print_json(struct sim_result *const results[], unsigned count, FILE *file)
{
    json_t *object = json_object(), *runs = json_array();

    json_object_set_new(object, "program", json_string("vgpu-sim"));
    json_object_set_new(object, "version", json_string(VGPU_PACKAGE_VERSION));
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(runs, run_json(results[i]));
    json_object_set_new(object, "runs", runs);
    json_dumpf(object, file, JSON_COMPACT | JSON_REAL_PRECISION(10));
    fputc('\n', file);
    json_decref(object);
}
