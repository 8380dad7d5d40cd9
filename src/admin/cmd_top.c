/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin top: VMs at work, as it happens.
 *
 *   status ─▶ sample ─ wait ─ status ─▶ sample ─▶ differences: operations a second,
 *                                                  share of the devices' time
 *
 * Each sample is a connection of its own, so a mediator that is restarted costs one
 * line that says so, and the next sample goes on.  On a terminal by ncurses; --once
 * and --json take two samples and print one table.
 */
#include "admin/commands.h"
#include "admin/live_view.h"

#include <curses.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { KEY_ONCE = 0x10000, KEY_INTERVAL };

#define LINE_BYTES 256

static const struct argp_option options[] = {
    {"once", KEY_ONCE, NULL, 0, "Print one table and end: for scripts", 1},
    {"interval", KEY_INTERVAL, "MS", 0, "Between two looks (default 1000)", 1},
    {0},
};

struct input {
    struct admin *admin;
    bool once;
    uint64_t interval_ms;
};

/* One VM between two samples. */
struct row {
    uint32_t vm_id;
    const char *name, *pool, *state; /* of the newer sample */
    unsigned priority;
    uint64_t depth, rate, p50_us, p99_us, refusals;
    unsigned share_percent; /* of the time that passed */
    bool running;
};

struct sample {
    json_t *status; /* NULL: the mediator was not there */
    uint64_t taken_ns;
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;

    switch (key) {
    case KEY_ONCE:
        input->once = true;
        return 0;
    case KEY_INTERVAL:
        return text_parse_u64(value, 100, 60000, &input->interval_ms)
                   ? 0
                   : admin_usage(input->admin,
                                 "--interval: expected a whole number from 100 to 60000, not '%s'",
                                 value);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

/* --- samples ----------------------------------------------------------------------------- */

static int take_sample(struct admin *admin, struct sample *ret_sample, struct vgpu_error *error)
{
    *ret_sample = (struct sample){.taken_ns = clock_monotonic_ns()};
    return live_status(admin, &ret_sample->status, error);
}

/* They are in order of their numbers. */
static const json_t *find_vm(const struct sample *sample, uint64_t vm_id)
{
    const json_t *vms = json_object_get(sample->status, "vms");
    size_t begin = 0, end = json_array_size(vms);

    while (begin < end) {
        size_t middle = begin + (end - begin) / 2;
        const json_t *vm = json_array_get(vms, middle);

        if (view_number(vm, "vm_id") == vm_id)
            return vm;
        if (view_number(vm, "vm_id") < vm_id)
            begin = middle + 1;
        else
            end = middle;
    }
    return NULL;
}

/* Another process began to count anew. */
static bool is_comparable(const struct sample *before, const struct sample *now)
{
    return before->status && now->status &&
           view_number(json_object_get(before->status, "mediator"), "pid") ==
               view_number(json_object_get(now->status, "mediator"), "pid");
}

static uint64_t grown(const json_t *before, const json_t *now, const char *key)
{
    uint64_t old = before ? view_number(before, key) : view_number(now, key);
    uint64_t new = view_number(now, key);

    return new > old ? new - old : 0;
}

static struct row make_row(const json_t *vm, const json_t *before, uint64_t passed_ns)
{
    const json_t *times = view_times(vm);
    struct row row = {.vm_id = (uint32_t)view_number(vm, "vm_id"),
                      .name = view_text(vm, "name"),
                      .pool = view_text(vm, "pool"),
                      .state = view_text(vm, "state"),
                      .priority = (unsigned)view_number(vm, "priority"),
                      .depth = view_number(vm, "depth"),
                      .p50_us = view_number(times, "p50_us"),
                      .p99_us = view_number(times, "p99_us"),
                      .refusals = view_number(vm, "refusals"),
                      .running = view_flag(vm, "running")};
    uint64_t passed_us = passed_ns / NS_PER_US;

    if (passed_us > 0) {
        row.rate = grown(before, vm, "operations") * 1000000 / passed_us;
        row.share_percent = (unsigned)(grown(before, vm, "device_us") * 100 / passed_us);
    }
    return row;
}

static int compare_rows(const void *left, const void *right)
{
    const struct row *a = left, *b = right;

    if (a->share_percent != b->share_percent)
        return a->share_percent > b->share_percent ? -1 : 1;
    if (a->rate != b->rate)
        return a->rate > b->rate ? -1 : 1;
    return a->vm_id < b->vm_id ? -1 : a->vm_id > b->vm_id;
}

/* Rows in order of device time; the caller frees them.  They point into `now`. */
static struct row *make_rows(const struct sample *before, const struct sample *now,
                             size_t *ret_count)
{
    const json_t *vms = json_object_get(now->status, "vms"), *vm;
    struct row *rows = calloc(json_array_size(vms) + 1, sizeof(*rows));
    bool comparable = is_comparable(before, now);
    size_t i;

    if (!rows)
        abort();
    json_array_foreach(vms, i, vm)
    {
        const json_t *old = comparable ? find_vm(before, view_number(vm, "vm_id")) : NULL;

        rows[i] = make_row(vm, old, comparable ? now->taken_ns - before->taken_ns : 0);
    }
    qsort(rows, json_array_size(vms), sizeof(*rows), compare_rows);
    *ret_count = json_array_size(vms);
    return rows;
}

/* --- lines ------------------------------------------------------------------------------- */

static void header_line(char text[LINE_BYTES])
{
    snprintf(text, LINE_BYTES, "%8s  %-16s  %-4s  %-8s  %-11s  %7s  %-4s  %9s  %5s  %9s  %9s  %8s",
             "VM", "NAME", "POOL", "PRIORITY", "STATE", "QUEUE", "RUNS", "OPS/S", "TIME", "P50",
             "P99", "REFUSED");
}

static void row_line(const struct row *row, char text[LINE_BYTES])
{
    char p50[VIEW_TEXT_BYTES], p99[VIEW_TEXT_BYTES];

    view_duration(row->p50_us, p50);
    view_duration(row->p99_us, p99);
    snprintf(text, LINE_BYTES,
             "%8u  %-16.16s  %-4s  %-8s  %-11.11s  %7llu  %-4s  %9llu  %4u%%  %9s  %9s  %8llu",
             row->vm_id, row->name[0] ? row->name : "-", row->pool, output_priority(row->priority),
             row->state, (unsigned long long)row->depth, row->running ? "yes" : "no",
             (unsigned long long)row->rate, row->share_percent, p50[0] ? p50 : "-",
             p99[0] ? p99 : "-", (unsigned long long)row->refusals);
}

static json_t *row_json(const struct row *row)
{
    return json_pack("{s:I, s:s, s:s, s:s, s:s, s:I, s:b, s:I, s:i, s:I, s:I, s:I}", "vm_id",
                     (json_int_t)row->vm_id, "name", row->name, "pool", row->pool, "priority",
                     output_priority(row->priority), "state", row->state, "depth",
                     (json_int_t)row->depth, "running", row->running, "rate", (json_int_t)row->rate,
                     "share_percent", (int)row->share_percent, "p50_us", (json_int_t)row->p50_us,
                     "p99_us", (json_int_t)row->p99_us, "refusals", (json_int_t)row->refusals);
}

/* --- once ---------------------------------------------------------------------------------- */

static void print_once(struct admin *admin, const struct sample *before, const struct sample *now)
{
    json_t *list = json_array();
    char text[LINE_BYTES];
    struct row *rows;
    size_t count;

    rows = make_rows(before, now, &count);
    if (!admin->json) {
        header_line(text);
        puts(text);
    }
    for (size_t i = 0; i < count; i++) {
        row_line(&rows[i], text);
        if (!admin->json)
            puts(text);
        json_array_append_new(list, row_json(&rows[i]));
    }
    free(rows);
    if (admin->json)
        output_json(json_pack("{s:I, s:o}", "interval_ms",
                              (json_int_t)((now->taken_ns - before->taken_ns) / NS_PER_MS), "vms",
                              list));
    else
        json_decref(list);
}

static int run_once(struct admin *admin, uint64_t interval_ms)
{
    const struct timespec pause = {.tv_sec = (time_t)(interval_ms / MS_PER_S),
                                   .tv_nsec = (long)(interval_ms % MS_PER_S * NS_PER_MS)};
    struct sample before, now;
    struct vgpu_error error;

    if (take_sample(admin, &before, &error) < 0)
        return admin_fail(admin, &error);
    nanosleep(&pause, NULL);
    if (take_sample(admin, &now, &error) < 0) {
        json_decref(before.status);
        return admin_fail(admin, &error);
    }
    print_once(admin, &before, &now);
    json_decref(before.status);
    json_decref(now.status);
    return ADMIN_OK;
}

/* --- on a terminal ------------------------------------------------------------------------- */

static void draw_line(int line, const char *text)
{
    if (line < LINES)
        mvaddnstr(line, 0, text, COLS);
}

static void draw(const struct sample *before, const struct sample *now, const char *trouble)
{
    char text[VGPU_ERROR_BYTES + 64];
    struct row *rows;
    size_t count;

    erase();
    if (!now->status) {
        draw_line(0, "vgpu-admin top: waiting for the mediator (q ends)");
        draw_line(2, trouble);
        refresh();
        return;
    }
    rows = make_rows(before, now, &count);
    snprintf(text, sizeof(text), "vgpu-mediator, process %llu: %zu VMs (q ends)",
             (unsigned long long)view_number(json_object_get(now->status, "mediator"), "pid"),
             count);
    draw_line(0, text);
    header_line(text);
    attron(A_REVERSE);
    draw_line(2, text);
    attroff(A_REVERSE);
    for (size_t i = 0; i < count && (int)i + 3 < LINES; i++) {
        row_line(&rows[i], text);
        draw_line((int)i + 3, text);
    }
    free(rows);
    refresh();
}

/* Looks and draws until a person types q. */
static void watch(struct admin *admin, uint64_t interval_ms)
{
    struct sample before = {0}, now;
    struct vgpu_error error = {.message = ""};
    int key = ERR;

    timeout((int)interval_ms);
    while (key != 'q' && key != 'Q' && key != 3) {
        take_sample(admin, &now, &error);
        draw(&before, &now, error.message);
        json_decref(before.status);
        before = now;
        key = getch();
    }
    json_decref(before.status);
}

static int run_terminal(struct admin *admin, uint64_t interval_ms)
{
    const char *name = getenv("TERM");
    struct vgpu_error error;
    SCREEN *screen;

    screen =
        isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && name ? newterm(name, stdout, stdin) : NULL;
    if (!screen) {
        error_fill(
            &error, ENOTTY,
            "top draws on a terminal, and here is none that it knows: use --once, or --json");
        return admin_fail(admin, &error);
    }
    cbreak();
    noecho();
    curs_set(0);
    watch(admin, interval_ms);
    endwin();
    delscreen(screen);
    return ADMIN_OK;
}

int cmd_top(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin, .interval_ms = 1000};
    int result = admin_parse(admin, &argp, argc, argv, &input);

    if (result)
        return result;
    if (input.once || admin->json)
        return run_once(admin, input.interval_ms);
    return run_terminal(admin, input.interval_ms);
}
