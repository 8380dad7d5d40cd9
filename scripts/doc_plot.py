# SPDX-License-Identifier: Apache-2.0
"""Curves over one quantity, as text and as SVG: panels beside each other that share the axis below.

The colours, letters and sizes are those of vgpu-sim's plots (src/sim/plot.c), so that the
documents' pictures look alike.
"""

import collections
import math
from xml.sax.saxutils import escape

PANEL_WIDTH, PANEL_HEIGHT = 420, 240
LEFT, TOP, BELOW, RIGHT = 64, 24, 52, 26
LEGEND_STEP, LEGEND_TOP, LETTER_PX = 18, 20, 6.5
# Okabe and Ito's, which are told apart by people who see colours differently.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


# command: what was run; xs: the values of x_title; panels: [(title, is its axis logarithmic,
# {name: a value for each of xs})]
Curves = collections.namedtuple("Curves", "command x_title xs panels")


def shown(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def tables(curves):
    """A table a panel, its title above it."""
    made = []
    for title, _, series in curves.panels:
        rows = [[curves.x_title, *series]]
        rows += [[shown(x), *(shown(values[index]) for values in series.values())]
                 for index, x in enumerate(curves.xs)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        made.append(title + "\n" + "".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) + "\n"
            for row in rows))
    return "\n".join(made)


class Axis:
    """From values to places between 0 and 1, and the marks that stand there.

    On a logarithmic axis 0 stands a decade before the least of the others."""

    def __init__(self, values, logarithmic):
        self.logarithmic = logarithmic
        if logarithmic:
            above = [value for value in values if value > 0] or [1]
            least = math.floor(math.log10(min(above)) + 1e-9)
            self.most = max(math.ceil(math.log10(max(above)) - 1e-9), least + 1)
            self.marks = [10.0 ** power for power in range(least, self.most + 1)]
            self.least = least
            if min(values) <= 0:
                self.least -= 1
                self.marks.insert(0, 0)
        else:
            step = good_step(max(values) or 1)
            count = math.ceil(max(values) / step - 1e-9) or 1
            self.least, self.most = 0, count * step
            self.marks = [index * step for index in range(count + 1)]

    def place(self, value):
        if self.logarithmic:
            value = math.log10(value) if value > 0 else self.least
        return (value - self.least) / (self.most - self.least)


def good_step(most):
    """1, 2 or 5 times a power of ten, at most six of them up to `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(factor * power for factor in (0.2, 0.5, 1, 2) if most <= 6 * factor * power)


def text(x, y, words, anchor="middle", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(words)}</text>\n'


def straight(x1, y1, x2, y2, colour):
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>\n'


def curve(points, colour):
    path = "".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}"
                   for index, (x, y) in enumerate(points))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>\n'
                   for x, y in points)
    return f'<path fill="none" stroke="{colour}" stroke-width="1.8" d="{path}"/>\n{dots}'


def marks(x_axis, y_axis, x, y):
    """Grid and numbers of the panel whose lower left corner is at x, y."""
    made = ""
    for mark in x_axis.marks:
        at = x + x_axis.place(mark) * PANEL_WIDTH
        made += straight(at, y, at, y - PANEL_HEIGHT, "#ddd") + text(at, y + 16, f"{mark:.6g}")
    for mark in y_axis.marks:
        at = y - y_axis.place(mark) * PANEL_HEIGHT
        made += straight(x, at, x + PANEL_WIDTH, at, "#ddd") + \
            text(x - 6, at + 4, f"{mark:.6g}", "end")
    return made


def legend(names, x, y):
    made = ""
    for index, name in enumerate(names):
        at = y + index * LEGEND_STEP
        made += f'<path stroke="{COLOURS[index]}" stroke-width="2.5" d="M{x} {at - 4}L{x + 22} ' \
            f'{at - 4}"/>\n' + text(x + 28, at, name, "start")
    return made


def panel(x_title, xs, title, logarithmic, series, x, y):
    x_axis = Axis(xs, True)
    y_axis = Axis([value for values in series.values() for value in values], logarithmic)
    made = marks(x_axis, y_axis, x, y)
    made += straight(x, y, x + PANEL_WIDTH, y, "#222") + straight(x, y, x, y - PANEL_HEIGHT, "#222")
    made += text(x + PANEL_WIDTH / 2, y + 34, x_title)
    made += text(x - 46, y - PANEL_HEIGHT / 2, title,
                 extra=f' transform="rotate(-90 {x - 46:.1f} {y - PANEL_HEIGHT / 2:.1f})"')
    for index, values in enumerate(series.values()):
        made += curve([(x + x_axis.place(at) * PANEL_WIDTH, y - y_axis.place(value) * PANEL_HEIGHT)
                       for at, value in zip(xs, values)], COLOURS[index])
    return made


def picture(curves):
    """The file's text."""
    panels = curves.panels
    legend_height = LEGEND_TOP + LEGEND_STEP * max(len(series) for _, _, series in panels)
    width = (LEFT + PANEL_WIDTH + RIGHT) * len(panels)
    height = legend_height + TOP + PANEL_HEIGHT + BELOW
    made = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" '
            f'fill="#222">\n<rect x="0" y="0" width="{width}" height="{height}" fill="#fff"/>\n')
    for index, (title, logarithmic, series) in enumerate(panels):
        x = index * (LEFT + PANEL_WIDTH + RIGHT) + LEFT
        made += legend(series, x, LEGEND_TOP)
        made += panel(curves.x_title, curves.xs, title, logarithmic, series, x,
                      legend_height + TOP + PANEL_HEIGHT)
    return made + "</svg>\n"
