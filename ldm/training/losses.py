"""The losses of a run, drawn."""

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import median

WINDOW = 50  # logged losses that a point of the curve is the median of


def read_losses(folder: Path) -> dict[int, float]:
    """The logged losses of a run's folder by step; where it was stopped and went on, the later ones count.

    Rows without a loss, and what a stopped run left of its last row, are passed over.
    """
    losses: dict[int, float] = {}
    paths = folder.glob("metrics/version_*/metrics.csv")
    for path in sorted(paths, key=lambda path: int(path.parts[-2].removeprefix("version_"))):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    losses[int(row["step"])] = float(row["loss"])
    return dict(sorted(losses.items()))


def draw_losses(losses: Mapping[int, float], path: Path) -> None:
    """A plot of losses by step, each a dot, and the median of those around it. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    from ldm.files import written_whole
    from ldm.plots import COLOURS, FAINT, style

    steps, values = list(losses), list(losses.values())
    around = [median(values[max(0, i - WINDOW // 2) : i + WINDOW // 2 + 1]) for i in range(len(values))]
    with style():
        figure = Figure(figsize=(5, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, values, ".", color=FAINT, markersize=2)
        axes.plot(steps, around, color=COLOURS[0])
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        with written_whole(path) as file:
            figure.savefig(file, format="png", dpi=200)
