"""Small plots as SVG: a few panels side by side, medians on a line from zero, the spread as whiskers."""

from __future__ import annotations

import statistics
from html import escape
from typing import TYPE_CHECKING

from bench.report import number

if TYPE_CHECKING:
    from pathlib import Path

    from bench.report import Panel, Plot

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 200, 24, 58, 30
INK, QUIET, LINE = "#222", "#888", "#1f6feb"


def draw(plot: Plot, folder: Path) -> Path:
    """Write it; where to."""
    width = WIDTH * len(plot.panels)
    size = f'viewBox="0 0 {width} {HEIGHT}" width="{width}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 18, plot.title, size=13, anchor="start"),
    ]
    for number_, panel in enumerate(plot.panels):
        parts.append(f'<g transform="translate({number_ * WIDTH} 0)">')
        parts += _panel(panel, plot.places)
        parts.append("</g>")
    folder.mkdir(exist_ok=True)
    path = folder / f"{plot.name}.svg"
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
    return path


def _panel(panel: Panel, places: list[str]) -> list[str]:
    top = max(max(values) for values in panel.values) * 1.15 or 1
    wide = (WIDTH - 2 * LEFT) / len(places)
    floor = HEIGHT - BOTTOM

    def across(at: int) -> float:
        return round(LEFT + wide * (at + 0.5), 1)

    def up(value: float) -> float:
        return round(floor - (floor - TOP) * value / top, 1)

    middles = [statistics.median(values) for values in panel.values]
    line = " ".join(f"{across(at)},{up(middle)}" for at, middle in enumerate(middles))
    parts = [
        _text(LEFT, 38, panel.title, colour=QUIET, anchor="start"),
        f'<path d="M{LEFT} {floor}H{WIDTH - LEFT}" stroke="{QUIET}"/>',
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5"/>',
    ]
    for at, (place, middle, values) in enumerate(zip(places, middles, panel.values, strict=True)):
        x = across(at)
        parts += [
            f'<path d="M{x} {up(min(values))}V{up(max(values))}" stroke="{LINE}" stroke-width="4" opacity="0.4"/>',
            f'<circle cx="{x}" cy="{up(middle)}" r="3" fill="{LINE}"/>',
            _text(x, up(max(values)) - 7, number(middle)),
            _text(x, floor + 15, place, colour=QUIET),
        ]
    return parts


def _text(x: float, y: float, words: str, *, colour: str = INK, size: int = 11, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'
