"""What a training's config says, looked at before anything is written."""

from collections.abc import Callable, Mapping
from functools import reduce
from types import UnionType
from typing import Any

from ldm.config.annotations import fits
from ldm.errors import InputError

# By the option's place in the config: its type, which of those values are allowed, and what to give.
LINES = (dict, lambda _: True, "`key: value` lines")
SEED = (int, lambda seed: 0 <= seed < 2**32, "a whole number from 0 to 4294967295")
SIDE = (int, lambda pixels: pixels >= 1, "a whole number of pixels, 1 or more")
TIME = "days, hours, minutes and seconds, such as 00:12:00:00"
STEPS = (int, lambda steps: steps >= 1, "a whole number, 1 or more")
OPTIONS: Mapping[str, tuple[type | UnionType, Callable[[Any], bool], str]] = {
    "seed": SEED,
    "ema_decay": (float, lambda decay: 0 <= decay < 1, "a number from 0 to below 1"),
    "checkpoint_every": (
        int | None,
        lambda steps: steps is None or steps >= 1,
        "a whole number of steps, 1 or more, or null for a checkpoint at the end alone",
    ),
    "params": LINES,
    "params.lr": (float, lambda rate: rate >= 0, "a number, 0 or more"),
    "params.data": LINES,
    "params.data.count": (int, lambda count: count >= 0, "a whole number of scenes"),
    "params.data.seed": (int, lambda seed: 1 <= seed < 2**32, "a whole number from 1 to 4294967295"),
    "params.data.side": SIDE,
    "params.data.crop": (int | None, lambda pixels: pixels is None or pixels >= 1, f"{SIDE[2]}, or null"),
    "params.data.unconditional": (float, lambda share: 0 <= share <= 1, "a number from 0 to 1"),
    "trainer": LINES,
    "trainer.max_steps": STEPS,
    "trainer.log_every_n_steps": STEPS,
    "trainer.accumulate_grad_batches": STEPS,
    "trainer.limit_train_batches": (
        int | float | None,
        lambda batches: batches != 0,
        "a number of batches, 1 or more, or a share of an epoch",
    ),
    "trainer.overfit_batches": (
        int | float,
        lambda batches: batches == 0,
        "0, and a small params.data.count, as Lightning would take other loaders than the stages'",
    ),
    "trainer.val_check_interval": (
        int | str | dict | None,
        lambda interval: not isinstance(interval, int) or interval >= 1,
        f"a number of batches, 1 or more, or {TIME}",
    ),
    "trainer.max_time": (str | dict | None, lambda _: True, TIME),
}


def check_options(settings: Mapping[str, Any]) -> None:
    """Raises InputError on an option of a training that is of another type or out of its range."""
    for name, (kind, allowed, remedy) in OPTIONS.items():
        *above, key = name.split(".")
        section = reduce(lambda section, part: section.get(part, {}), above, settings)
        if key in section and not (fits(section[key], kind) and allowed(section[key])):
            raise InputError(f"{name} is {section[key]!r:.99}: give {remedy}.")
