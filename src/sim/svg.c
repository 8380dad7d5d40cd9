/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/svg.h"

#include <errno.h>

#define CLOSE_PX 0.3

int svg_open(struct svg *svg, const char *path, unsigned width, unsigned height,
             struct vgpu_error *error)
{
    *svg = (struct svg){.file = fopen(path, "we")};
    if (!svg->file)
        return error_set_errno(error, "cannot write '%s'", path);
    fprintf(svg->file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %u %u\" width=\"%u\" "
            "height=\"%u\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n",
            width, height, width, height);
    svg_rectangle(svg, 0, 0, width, height, "#fff");
    return 0;
}

int svg_close(struct svg *svg, const char *path, struct vgpu_error *error)
{
    bool failed;

    fputs("</svg>\n", svg->file);
    failed = ferror(svg->file) != 0;
    if (fclose(svg->file) != 0 || failed)
        return error_set_errno(error, "cannot write '%s'", path);
    return 0;
}

void svg_rectangle(struct svg *svg, double x, double y, double width, double height,
                   const char *fill)
{
    fprintf(svg->file, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
            x, y, width, height, fill);
}

void svg_straight(struct svg *svg, double x1, double y1, double x2, double y2, const char *colour)
{
    fprintf(svg->file, "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2,
            colour);
}

static void put_escaped(FILE *file, const char *text)
{
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", file);
        else if (*text == '&')
            fputs("&amp;", file);
        else
            fputc(*text, file);
    }
}

void svg_text(struct svg *svg, double x, double y, enum svg_anchor anchor, bool bold, bool turned,
              const char *text)
{
    static const char *const anchors[] = {"start", "middle", "end"};

    fprintf(svg->file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"", x, y, anchors[anchor]);
    if (bold)
        fputs(" font-weight=\"bold\"", svg->file);
    if (turned)
        fprintf(svg->file, " transform=\"rotate(-90 %.1f %.1f)\"", x, y);
    fputc('>', svg->file);
    put_escaped(svg->file, text);
    fputs("</text>\n", svg->file);
}

void svg_line_begin(struct svg *svg, const char *colour, const char *dashes, double width)
{
    svg->points = 0;
    fprintf(svg->file, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"%.1f\"", colour, width);
    if (dashes[0])
        fprintf(svg->file, " stroke-dasharray=\"%s\"", dashes);
    fputs(" d=\"", svg->file);
}

static bool is_close(double a, double b)
{
    return a - b < CLOSE_PX && b - a < CLOSE_PX;
}

void svg_line_point(struct svg *svg, double x, double y)
{
    if (svg->points > 0 && is_close(x, svg->x) && is_close(y, svg->y))
        return;
    fprintf(svg->file, "%c%.1f %.1f", svg->points++ == 0 ? 'M' : 'L', x, y);
    svg->x = x;
    svg->y = y;
}

void svg_line_end(struct svg *svg)
{
    fputs("\"/>\n", svg->file);
}
