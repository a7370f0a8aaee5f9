"""Small drawings as SVG, in the colours of the page, so that they follow light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

# From dark to light, even in lightness, for maps: ink, lake, paper.
SHADES = np.array([(22, 21, 19), (28, 116, 113), (118, 203, 195), (251, 250, 247)], np.float64)


def shaded(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values (H, W) from `low` to `high` as colours (H, W, 3)."""
    unit = np.clip((values.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1) * (len(SHADES) - 1)
    stops = np.arange(len(SHADES))
    return np.stack([np.interp(unit, stops, SHADES[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def curves(
    lines: Mapping[str, NDArray[Any]],
    x: NDArray[Any],
    title: str,
    x_label: str,
    y_label: str,
    ticks: Mapping[float, str],
    span: tuple[float, float] | None = None,
) -> str:
    """Curves over a common axis, each with its name and its own dashes; `ticks` name places on the axis.

    The other axis goes from the lowest to the highest value, or over `span`.
    """
    width, height, left, right, top, bottom = 340, 230, 44, 8, 28, 38
    values = np.concatenate([*lines.values()])
    low, high = span or (float(values.min()), float(values.max()))
    margin = 0.06 * max(high - low, 1e-3)
    low, high = low - margin, high + margin

    def place(at: float, value: float) -> tuple[float, float]:
        across = left + (at - x[0]) / max(float(x[-1] - x[0]), 1e-12) * (width - left - right)
        return across, top + (high - value) / (high - low) * (height - top - bottom)

    marks = []
    for value in even_ticks(low, high):
        _, down = place(float(x[0]), value)
        marks.append(f'<path class="rule" d="M{left} {down:.1f}H{width - right}"/>')
        marks.append(text(left - 5, down + 3.5, f"{value:g}".replace("-", "−"), "end"))
    for at, name in ticks.items():
        if x[0] <= at <= x[-1]:
            across, _ = place(at, low)
            marks.append(text(across, height - bottom + 14, name))
    paths = []
    for i, (name, line) in enumerate(lines.items()):
        pairs = (place(float(at), float(value)) for at, value in zip(x, line, strict=True))
        points = " ".join(f"{across:.1f},{down:.1f}" for across, down in pairs)
        paths.append(
            f'<polyline class="line line{i}" points="{points}"><title>{escape(name)}</title></polyline>'
        )
    keys = "".join(
        '<span class="key"><svg viewBox="0 0 24 4" aria-hidden="true">'
        f'<path class="line line{i}" d="M0 2H24"/></svg>{escape(name)}</span>'
        for i, name in enumerate(lines)
    )
    names = text((left + width - right) / 2, height - 6, x_label) + text(4, 14, y_label, "start")
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption><p class="keys">{keys}</p>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(marks + paths)}{names}</svg></figure>"
    )


def text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def even_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, about five."""
    span = max(high - low, 1e-9)
    unit = 10.0 ** np.floor(np.log10(span / 5))
    step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= 5)
    first = int(np.ceil(low / step))
    return [round(k * step, 10) for k in range(first, int(np.floor(high / step)) + 1)]


def cells(values: NDArray[Any], row_names: Sequence[str], column_names: Sequence[str], title: str) -> str:
    """A small table of numbers from 0 to about 1.5 (H, W) as shaded cells."""
    side, left, top = 40, 30, 22
    rows, columns = values.shape
    width, height = left + columns * side + 2, top + rows * side + 2
    parts = []
    for c, name in enumerate(column_names):
        parts.append(text(left + (c + 0.5) * side, top - 7, name))
    for r, name in enumerate(row_names):
        parts.append(text(left - 6, top + (r + 0.5) * side + 4, name, "end"))
        for c in range(columns):
            value = float(values[r, c])
            change = min(abs(value - 1), 1.0)
            kind = "less" if value < 1 else "more"
            parts.append(
                f'<rect class="{kind}" x="{left + c * side}" y="{top + r * side}" width="{side - 2}" '
                f'height="{side - 2}" rx="3" style="--change: {change:.3f}"/>'
                f"{text(left + (c + 0.5) * side - 1, top + (r + 0.5) * side + 3, f'{value:.2f}')}"
            )
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" style="max-width: {width}px" role="img" '
        f'aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
