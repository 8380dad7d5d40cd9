/* SPDX-License-Identifier: Apache-2.0 */
/* sim/svg.h - a picture as SVG, written as it is drawn.  Pixels; y grows downwards. */
#ifndef VGPU_SIM_SVG_H
#define VGPU_SIM_SVG_H

#include "base/base.h"

#include <stdio.h>

struct svg {
    FILE *file;
    unsigned points; /* of the line that is drawn */
    double x, y;     /* its last point */
};

enum svg_anchor { SVG_START, SVG_MIDDLE, SVG_END };

/* -1: the file cannot be written. */
int svg_open(struct svg *svg, const char *path, unsigned width, unsigned height,
             struct vgpu_error *error);
int svg_close(struct svg *svg, const char *path, struct vgpu_error *error);

void svg_rectangle(struct svg *svg, double x, double y, double width, double height,
                   const char *fill);
void svg_straight(struct svg *svg, double x1, double y1, double x2, double y2, const char *colour);

/* Markup in `text` is escaped.  `turned`: from below to above. */
void svg_text(struct svg *svg, double x, double y, enum svg_anchor anchor, bool bold, bool turned,
              const char *text);

/* A line of many points; those that nobody could tell from the last are left out.  `dashes` as SVG
 * has them, "" for none. */
void svg_line_begin(struct svg *svg, const char *colour, const char *dashes, double width);
void svg_line_point(struct svg *svg, double x, double y);
void svg_line_end(struct svg *svg);

#endif /* VGPU_SIM_SVG_H */
