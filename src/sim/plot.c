/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three pictures of one or several runs, a panel a run, all panels with the same axes:
 *
 *   latency.svg   what share of a class' operations was done within which time; both axes
 *                 logarithmic, so that the last per mille can be seen
 *   shares.svg    each load's share of the device time by window; dashed: what its weight says
 *   depth.svg     operations that wait, by class
 */
#include "sim/private.h"
#include "sim/svg.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define COLUMNS 2u
#define PANEL_WIDTH 420.0
#define PANEL_HEIGHT 240.0
#define LEFT 64.0
#define TOP 24.0 /* the panel's title */
#define GAP_BELOW 52.0
#define GAP_RIGHT 26.0
#define LEGEND_HEIGHT 30.0
#define LEGEND_STEP 20.0
#define LETTER_PX 7.0
#define COLOURS 8u
#define NINES_MAX 4.0

/* Okabe and Ito's, which are told apart by people who see colours differently. */
static const char *const colours[COLOURS] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                             "#e69f00", "#56b4e9", "#000000", "#8a7a00"};
static const char *const dashes[] = {"", "7 3", "2 3"};

/* Orange stands for high, and green for low. */
static const unsigned class_colours[SIM_PRIORITIES] = {2, 0, 1};
static const char *const class_names[SIM_PRIORITIES] = {"low", "medium", "high"};

struct axis {
    const char *title;
    double most; /* what is shown: 0 to this */
    double step; /* of the marks */
    const char *(*mark)(double value, char *text, size_t bytes);
};

struct picture {
    struct svg svg;
    struct sim_result *const *results;
    unsigned count;
    struct axis x, y;
    double least_x;            /* what stands at the left */
    double origin_x, origin_y; /* the panel's lower left corner */
};

/* --- marks ------------------------------------------------------------------------------- */

static const char *mark_number(double value, char *text, size_t bytes)
{
    snprintf(text, bytes, "%.6g", value);
    return text;
}

static const char *mark_decade(double value, char *text, size_t bytes)
{
    snprintf(text, bytes, "%.6g", draw_exp(value * draw_ln(10)));
    return text;
}

static const char *mark_nines(double value, char *text, size_t bytes)
{
    static const char *const marks[] = {"0", "90", "99", "99.9", "99.99"};

    (void)bytes;
    (void)text;
    return marks[(unsigned)value];
}

/* 1, 2 or 5 times a power of ten, four to ten of them up to `most`. */
static double good_step(double most)
{
    static const double factors[] = {1, 2, 5};
    double power = 1e-3;
    unsigned i = 0;

    while (most / (factors[i] * power) > 10) {
        i = (i + 1) % VGPU_ARRAY_LENGTH(factors);
        power *= i == 0 ? 10 : 1;
    }
    return factors[i] * power;
}

static double log_10(double value)
{
    return draw_ln(value) / draw_ln(10);
}

/* --- a panel ----------------------------------------------------------------------------- */

static double at_x(const struct picture *picture, double value)
{
    return picture->origin_x +
           (value - picture->least_x) / (picture->x.most - picture->least_x) * PANEL_WIDTH;
}

static double at_y(const struct picture *picture, double value)
{
    double part = value / picture->y.most;

    return picture->origin_y - (part < 1 ? part : 1) * PANEL_HEIGHT;
}

static void draw_x_marks(struct picture *picture)
{
    const struct axis *axis = &picture->x;
    char text[32];

    for (unsigned i = 0; picture->least_x + i * axis->step <= axis->most + axis->step / 100; i++) {
        double value = picture->least_x + i * axis->step, x = at_x(picture, value);

        svg_straight(&picture->svg, x, picture->origin_y, x, picture->origin_y - PANEL_HEIGHT,
                     "#ddd");
        svg_text(&picture->svg, x, picture->origin_y + 16, SVG_MIDDLE, false, false,
                 axis->mark(value, text, sizeof(text)));
    }
}

static void draw_y_marks(struct picture *picture)
{
    const struct axis *axis = &picture->y;
    char text[32];

    for (unsigned i = 0; i * axis->step <= axis->most + axis->step / 100; i++) {
        double value = i * axis->step, y = at_y(picture, value);

        svg_straight(&picture->svg, picture->origin_x, y, picture->origin_x + PANEL_WIDTH, y,
                     "#ddd");
        svg_text(&picture->svg, picture->origin_x - 6, y + 4, SVG_END, false, false,
                 axis->mark(value, text, sizeof(text)));
    }
}

static void draw_frame(struct picture *picture, const char *title)
{
    double x = picture->origin_x, y = picture->origin_y;

    draw_x_marks(picture);
    draw_y_marks(picture);
    svg_straight(&picture->svg, x, y, x + PANEL_WIDTH, y, "#222");
    svg_straight(&picture->svg, x, y, x, y - PANEL_HEIGHT, "#222");
    svg_text(&picture->svg, x + PANEL_WIDTH / 2, y - PANEL_HEIGHT - 8, SVG_MIDDLE, true, false,
             title);
    svg_text(&picture->svg, x + PANEL_WIDTH / 2, y + 34, SVG_MIDDLE, false, false,
             picture->x.title);
    svg_text(&picture->svg, x - 46, y - PANEL_HEIGHT / 2, SVG_MIDDLE, false, true,
             picture->y.title);
}

typedef void panel_function(struct picture *picture, const struct sim_result *result);

static int draw_picture(struct picture *picture, const char *directory, const char *name,
                        void (*legend)(struct picture *picture), panel_function *panel,
                        struct vgpu_error *error)
{
    unsigned columns = picture->count > 1 ? COLUMNS : 1;
    unsigned rows = (picture->count + columns - 1) / columns;
    double width = LEFT + PANEL_WIDTH + GAP_RIGHT, height = TOP + PANEL_HEIGHT + GAP_BELOW;
    char path[PATH_MAX];

    if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path))
        return error_set(error, ENAMETOOLONG, "'%s' is too long for a name", directory);
    if (svg_open(&picture->svg, path, (unsigned)(columns * width),
                 (unsigned)(rows * height + LEGEND_HEIGHT), error) < 0)
        return -1;
    legend(picture);
    for (unsigned i = 0; i < picture->count; i++) {
        unsigned row = i / columns, column = i % columns;

        picture->origin_x = column * width + LEFT;
        picture->origin_y = LEGEND_HEIGHT + row * height + TOP + PANEL_HEIGHT;
        draw_frame(picture, picture->results[i]->label);
        panel(picture, picture->results[i]);
    }
    return svg_close(&picture->svg, path, error);
}

/* --- legends ----------------------------------------------------------------------------- */

static double legend_entry(struct picture *picture, double x, const char *colour, const char *dash,
                           const char *text)
{
    double y = LEGEND_HEIGHT / 2 + 4;

    svg_line_begin(&picture->svg, colour, dash, 2.5);
    svg_line_point(&picture->svg, x, y - 4);
    svg_line_point(&picture->svg, x + 22, y - 4);
    svg_line_end(&picture->svg);
    svg_text(&picture->svg, x + 28, y, SVG_START, false, false, text);
    return x + 28 + LEGEND_STEP + LETTER_PX * (double)strlen(text);
}

static bool class_came(const struct picture *picture, unsigned class)
{
    for (unsigned i = 0; i < picture->count; i++) {
        if (picture->results[i]->classes[class].accepted > 0)
            return true;
    }
    return false;
}

static void class_legend(struct picture *picture)
{
    double x = LEFT;

    for (unsigned i = SIM_PRIORITIES; i-- > 0;) {
        if (class_came(picture, i))
            x = legend_entry(picture, x, colours[class_colours[i]], "", class_names[i]);
    }
}

static const char *dash_of(unsigned load)
{
    return dashes[load / COLOURS % VGPU_ARRAY_LENGTH(dashes)];
}

static void load_legend(struct picture *picture)
{
    const struct sim_result *result = picture->results[0];
    double x = LEFT;

    for (unsigned i = 0; i < result->load_count; i++) {
        if (result->loads[i].vms > 0)
            x = legend_entry(picture, x, colours[i % COLOURS], dash_of(i), result->loads[i].name);
    }
}

/* --- latency ----------------------------------------------------------------------------- */

struct curve {
    struct picture *picture;
    uint64_t all;
};

static double log_ms(uint64_t value_ns)
{
    return log_10((double)(value_ns > 0 ? value_ns : 1) / NS_PER_MS);
}

static void latency_point(uint64_t value_ns, uint64_t count, void *context)
{
    struct curve *curve = context;
    double nines;

    /* The last one of all has no place on this axis. */
    if (count == curve->all)
        return;
    nines = -log_10((double)(curve->all - count) / (double)curve->all);
    /* What lies outside says nothing that can be read. */
    if (nines <= NINES_MAX && log_ms(value_ns) >= curve->picture->least_x)
        svg_line_point(&curve->picture->svg, at_x(curve->picture, log_ms(value_ns)),
                       at_y(curve->picture, nines));
}

static void latency_panel(struct picture *picture, const struct sim_result *result)
{
    for (unsigned i = 0; i < SIM_PRIORITIES; i++) {
        struct curve curve = {.picture = picture,
                              .all = sim_latency_count(result->classes[i].total)};

        if (curve.all == 0)
            continue;
        svg_line_begin(&picture->svg, colours[class_colours[i]], "", 1.8);
        sim_latency_each(result->classes[i].total, latency_point, &curve);
        svg_line_end(&picture->svg);
    }
}

static double floor_of(double value)
{
    double whole = (double)(int)value;

    return whole > value ? whole - 1 : whole;
}

static int plot_latency(struct sim_result *const results[], unsigned count, const char *directory,
                        struct vgpu_error *error)
{
    struct picture picture = {
        .results = results,
        .count = count,
        .x = {.title = "time from arrival to completion, ms", .step = 1, .mark = mark_decade},
        .y = {.title = "operations done, %", .most = NINES_MAX, .step = 1, .mark = mark_nines}};
    uint64_t least = UINT64_MAX, most = 0;

    for (unsigned i = 0; i < count; i++) {
        for (unsigned class = 0; class < SIM_PRIORITIES; class ++) {
            const struct sim_latency *latency = results[i]->classes[class].total;

            if (sim_latency_count(latency) == 0)
                continue;
            least = sim_latency_at(latency, 1) < least ? sim_latency_at(latency, 1) : least;
            most = sim_latency_max(latency) > most ? sim_latency_max(latency) : most;
        }
    }
    picture.least_x = most > 0 ? floor_of(log_ms(least)) : -1;
    picture.x.most = most > 0 ? floor_of(log_ms(most)) + 1 : 0;
    return draw_picture(&picture, directory, "latency.svg", class_legend, latency_panel, error);
}

/* --- shares ------------------------------------------------------------------------------ */

static void draw_due(struct picture *picture, const struct sim_load_result *load,
                     const char *colour)
{
    svg_line_begin(&picture->svg, colour, "3 4", 1);
    svg_line_point(&picture->svg, at_x(picture, 0), at_y(picture, load->due_percent));
    svg_line_point(&picture->svg, at_x(picture, picture->x.most), at_y(picture, load->due_percent));
    svg_line_end(&picture->svg);
}

/* A window's share stands over the whole window. */
static void shares_panel(struct picture *picture, const struct sim_result *result)
{
    double window_s = (double)result->settings.window_ms / MS_PER_S;

    for (unsigned i = 0; i < result->load_count; i++) {
        const struct sim_load_result *load = &result->loads[i];

        if (load->vms == 0)
            continue;
        draw_due(picture, load, colours[i % COLOURS]);
        svg_line_begin(&picture->svg, colours[i % COLOURS], dash_of(i), 1.8);
        for (unsigned window = 0; window < result->window_count; window++) {
            double y = at_y(picture, load->window_shares[window]);

            svg_line_point(&picture->svg, at_x(picture, window * window_s), y);
            svg_line_point(&picture->svg, at_x(picture, (window + 1) * window_s), y);
        }
        svg_line_end(&picture->svg);
    }
}

static struct axis time_axis(const struct sim_result *result)
{
    double most = (double)result->duration_ns / NS_PER_S;

    return (struct axis){
        .title = "time, s", .most = most, .step = good_step(most), .mark = mark_number};
}

static int plot_shares(struct sim_result *const results[], unsigned count, const char *directory,
                       struct vgpu_error *error)
{
    struct picture picture = {
        .results = results,
        .count = count,
        .x = time_axis(results[0]),
        .y = {.title = "share of device time, %", .most = 100, .step = 20, .mark = mark_number}};

    return draw_picture(&picture, directory, "shares.svg", load_legend, shares_panel, error);
}

/* --- depth ------------------------------------------------------------------------------- */

/* A decade for each power of ten from 0.1, and below it straight down to nothing. */
static double depth_height(double depth)
{
    return depth > 0.1 ? 2 + log_10(depth) : 10 * depth;
}

static const char *mark_depth(double value, char *text, size_t bytes)
{
    if (value < 1)
        return "0";
    return mark_decade(value - 2, text, bytes);
}

static void depth_panel(struct picture *picture, const struct sim_result *result)
{
    double step_s = (double)result->duration_ns / NS_PER_S / SIM_SAMPLES;

    for (unsigned class = 0; class < SIM_PRIORITIES; class ++) {
        if (result->classes[class].accepted == 0)
            continue;
        svg_line_begin(&picture->svg, colours[class_colours[class]], "", 1.4);
        for (unsigned i = 0; i < result->sample_count; i++)
            svg_line_point(&picture->svg, at_x(picture, (i + 1) * step_s),
                           at_y(picture, depth_height(result->depths[class][i])));
        svg_line_end(&picture->svg);
    }
}

static double depth_max(const struct sim_result *result)
{
    double most = 0;

    for (unsigned class = 0; class < SIM_PRIORITIES; class ++) {
        for (unsigned i = 0; i < result->sample_count; i++) {
            if (result->depths[class][i] > most)
                most = result->depths[class][i];
        }
    }
    return most;
}

static int plot_depth(struct sim_result *const results[], unsigned count, const char *directory,
                      struct vgpu_error *error)
{
    struct picture picture = {
        .results = results,
        .count = count,
        .x = time_axis(results[0]),
        .y = {.title = "operations that wait", .step = 1, .mark = mark_depth}};
    double most = 1;

    for (unsigned i = 0; i < count; i++)
        most = depth_max(results[i]) > most ? depth_max(results[i]) : most;
    picture.y.most = floor_of(depth_height(most)) + 1;
    return draw_picture(&picture, directory, "depth.svg", class_legend, depth_panel, error);
}

int sim_plot(struct sim_result *const results[], unsigned count, const char *directory,
             struct vgpu_error *error)
{
    if (plot_latency(results, count, directory, error) < 0 ||
        plot_shares(results, count, directory, error) < 0 ||
        plot_depth(results, count, directory, error) < 0)
        return -1;
    return 0;
}
