"""Line charts as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

Points = Sequence[tuple[float, float, float, float]]
"""x, and y with its lower and upper end."""
WIDTH: Final = 640
HEIGHT: Final = 260
LEFT: Final = 52
RIGHT: Final = 12
TOP: Final = 14
BOTTOM: Final = 40


def line_chart(
    lines: Mapping[str, Points], *, x_label: str, y_label: str, level: float | None = None
) -> str:
    """Return a chart as an ``<svg>`` element.

    A line has the class ``s0``, ``s1`` … in the order of ``lines``; the range of a point is a bar.

    Args:
        lines: points by name, ascending in x.
        x_label: what the horizontal axis shows.
        y_label: what the vertical axis shows, from 0.
        level: a dashed horizontal line.

    >>> line_chart({"a": [(1, 2, 1, 3), (2, 4, 3, 5)]}, x_label="x", y_label="y")[:4]
    '<svg'
    """
    every = [point for points in lines.values() for point in points]
    left, right = min(p[0] for p in every), max(p[0] for p in every)
    if left == right:
        left, right = left - 0.5, right + 0.5
    ticks = _ticks(max([p[3] for p in every] + [level or 0.0]))
    top = ticks[-1]

    def x(value: float) -> float:
        return round(LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by '
        f'{escape(x_label)}">'
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y(tick) + 4}">{tick:g}</text>')
    parts += [
        f'<text class="mid" x="{x(tick)}" y="{HEIGHT - 22}">{tick:g}</text>'
        for tick in sorted({p[0] for p in every})
    ]
    parts.append(f'<text class="mid" x="{WIDTH / 2}" y="{HEIGHT - 5}">{escape(x_label)}</text>')
    if level is not None:
        parts.append(f'<path class="level" d="M{LEFT} {y(level)}H{WIDTH - RIGHT}"/>')
    for number, (name, points) in enumerate(lines.items()):
        path = "L".join(f"{x(p[0])} {y(p[1])}" for p in points)
        parts.append(f'<g class="s{number}"><title>{escape(name)}</title><path d="M{path}"/>')
        shift = 3 * (number - (len(lines) - 1) / 2)
        for at, middle, low, high in points:
            place = x(at) + shift
            parts.append(f'<path class="range" d="M{place} {y(low)}V{y(high)}"/>')
            parts.append(f'<circle cx="{x(at)}" cy="{y(middle)}" r="3"/>')
        parts.append("</g>")
    parts.append("</svg>")
    return "".join(parts)


def legend(names: Sequence[str]) -> str:
    """Return the legend of a chart with these lines."""
    items = "".join(
        f'<li class="s{number}"><i></i>{escape(name)}</li>' for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _ticks(largest: float) -> list[float]:
    """Return about five round values from 0 to ``largest`` or a little above.

    >>> _ticks(7.3)
    [0, 2, 4, 6, 8]
    """
    if not largest > 0:
        return [0, 1]
    power = 10 ** math.floor(math.log10(largest / 4))
    step = next(k * power for k in (1, 2, 5, 10) if k * power * 5 >= largest)
    count = math.ceil(largest / step - 1e-9)
    return [round(step * k, 10) for k in range(count + 1)]
