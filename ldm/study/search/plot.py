"""What a search tried, as a picture: each goal over the trials and over each setting."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from ldm.files import written_whole
from ldm.plots import COLOURS, INK, PAGE, SEQUENCE, new_sheet, style
from ldm.study.evaluation.measures import MEASURES
from ldm.study.search.goals import Goal
from ldm.study.search.search import FOUND, Outcome, called
from ldm.study.search.space import Choice, Range, Space
from ldm.study.search.trials import NAME
from ldm.txt2img.settings_grid import shown

COLUMNS = 5  # panels beside each other
LETTERS = 90  # of values that stand beside each other under a row of panels
MARKERS = "sD^vP"  # of trials with a name


def draw_trials(space: Space, goals: Sequence[Goal], outcome: Outcome) -> Figure:
    """A panel of every goal over the trials and over each setting, and of two goals against each other."""
    names = list(space.searched)
    columns = min(COLUMNS, 1 + len(names))
    rows = math.ceil((1 + len(names)) / columns)
    pairs = len(goals) > 1
    sheet = new_sheet(PAGE, 1.55 * (rows * len(goals) + 1.4 * pairs) + 0.3)
    heights = [1.0] * rows * len(goals) + [1.4] * pairs
    grid = sheet.add_gridspec(len(heights), columns, height_ratios=heights)
    for g, goal in enumerate(goals):
        first: Axes | None = None
        for i, name in enumerate(["trial", *names]):
            axes = sheet.add_subplot(grid[g * rows + i // columns, i % columns], sharey=first)
            first = first or axes
            draw_panel(axes, name, space, goal, g, outcome)
            if i % columns == 0:
                axes.set_ylabel(title(goal))
            else:
                axes.tick_params(labelleft=False)
    if pairs:
        draw_front(sheet.add_subplot(grid[-1, :]), goals, outcome)
    handles, labels = sheet.axes[0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside upper center", ncols=min(7, len(labels)))
    return sheet


def draw_panel(axes: Axes, name: str, space: Space, goal: Goal, g: int, outcome: Outcome) -> None:
    """One goal over the trials' order or over one setting."""
    kind = space.searched.get(name)

    def place(trial: FrozenTrial) -> float:
        if kind is None:
            return trial.number
        value = trial.params[name]
        return kind.values.index(value) if isinstance(kind, Choice) else value

    values = scaled(goal, [trial.values[g] for trial in outcome.trials])
    draw_points(axes, [place(trial) for trial in outcome.trials], values, outcome)
    if kind is None:
        best = (np.maximum if goal.better == "higher" else np.minimum).accumulate(values)
        order = [trial.number for trial in outcome.trials]
        axes.step(order, best, where="post", color=INK, linewidth=0.8, label="best so far")
    elif isinstance(kind, Range):
        beside = 0.04 * (kind.high - kind.low)
        axes.set_xlim(kind.low - beside, kind.high + beside)
    else:
        labels = [shown(value) for value in kind.values]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        grid = axes.get_gridspec()
        if grid is not None and len("".join(labels)) > LETTERS // grid.ncols:
            axes.tick_params(axis="x", labelrotation=90)
    for trial, value in zip(outcome.trials, values, strict=True):
        if trial.user_attrs.get(NAME) == "off":
            axes.axhline(value, color=COLOURS[1], linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
    axes.set_xlabel(name)


def draw_points(axes: Axes, x: Sequence[float], y: Any, outcome: Outcome) -> None:
    """A dot for each trial, the darker the later; those with names and the one found stand out."""
    order = np.linspace(0, 1, len(x))
    axes.scatter(x, y, c=order, cmap=SEQUENCE, s=9, linewidths=0, label="trials, late ones dark", zorder=2)
    named = [(i, name) for i, it in enumerate(outcome.trials) if (name := it.user_attrs.get(NAME))]
    for (i, name), marker in zip(named, MARKERS, strict=False):
        label = "FreeU off" if name == "off" else called(name)
        axes.scatter(x[i], y[i], color=COLOURS[1], marker=marker, s=16, linewidths=0, label=label, zorder=3)
    i = [trial.number for trial in outcome.trials].index(outcome.best.number)
    axes.scatter(
        x[i], y[i], facecolors="none", edgecolors=COLOURS[0], s=48, linewidths=1.2, label=FOUND, zorder=4
    )


def draw_front(axes: Axes, goals: Sequence[Goal], outcome: Outcome) -> None:
    """The first two goals against each other, and the line of trials that no other is better than in both."""
    x, y = (scaled(goal, [trial.values[g] for trial in outcome.trials]) for g, goal in enumerate(goals[:2]))
    draw_points(axes, x, y, outcome)
    front = [i for i, trial in enumerate(outcome.trials) if trial.number in outcome.front]
    front.sort(key=lambda i: x[i])
    if len(goals) == 2:
        axes.plot(x[front], y[front], color=INK, linewidth=0.8, zorder=1)
    axes.set_xlabel(title(goals[0]))
    axes.set_ylabel(title(goals[1]))


def scaled(goal: Goal, values: Sequence[float]) -> Any:
    return np.array(values) * (100 if MEASURES[goal.metric].percent else 1)


def title(goal: Goal) -> str:
    return f"{MEASURES[goal.metric].title}\n({goal.better} is better)"


def save_plot(path: Path, space: Space, goals: Sequence[Goal], outcome: Outcome) -> None:
    """Writes the picture as a PNG."""
    with style(), written_whole(path) as file:
        draw_trials(space, goals, outcome).savefig(file, format="png")
