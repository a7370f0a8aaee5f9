"""What an evaluation leaves: a table for the terminal, the numbers as CSV and JSON, and a few pictures."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.files import write_table, write_text
from ldm.image_io import save_png
from ldm.study.evaluation.asked import Asked
from ldm.study.evaluation.bootstrap import DRAWS, Estimate, Mean
from ldm.study.evaluation.evaluation import SHOWN, Evaluation, Result
from ldm.study.evaluation.measures import MEASURES, Measure
from ldm.study.evaluation.settings import in_words
from ldm.txt2img.sheets import Words, labelled
from ldm.wording import counted

WIDTH = 100  # columns of the terminal


def table(results: Sequence[Result], ratios: dict[str, float], facts: dict[str, Any]) -> str:
    """The results in 100 columns: for each setting its values, and its differences to FreeU off."""
    off, *others = results
    lines = [*headline(facts)]
    for name in dict.fromkeys(result.variant.setting for result in others):
        of_setting = [result for result in others if result.variant.setting == name]
        freeu = of_setting[0].variant.freeu
        assert freeu is not None  # as only off has none
        ratio = f" It guides {ratios[name]:g} times as far as the plain model." if name in ratios else ""
        lines += ["", *textwrap.wrap(f"{name}: {in_words(freeu)}.{ratio}", WIDTH)]
        heads = [
            f"    guidance {it.variant.scale:g}{', matched' if it.variant.matched else ''}".ljust(34)
            for it in of_setting
        ]
        lines.append(f"{'':22}{'off':>7}{''.join(heads)}".rstrip())
        for measure in off.estimates:
            lines.append(row(measure, [off, *of_setting], digits(measure, results)))
    return "\n".join([*lines, "", *legend(results, ratios, facts), ""])


def headline(facts: dict[str, Any]) -> list[str]:
    """What was compared, and how."""
    sampling, seeds, prompts = facts["sampling"], facts["seeds_each"], len(facts["prompts"])
    held_out = " of pairs that training never showed" if facts["held_out"] else ""
    boot = facts["bootstrap"]
    return textwrap.wrap(
        f"FreeU against the plain model on {Path(facts['checkpoint']).name}: {counted(prompts, 'prompt')}"
        f"{held_out} x {counted(seeds, 'seed')}, {steps_of(sampling)}, {facts['precision']} on "
        f"{facts['device']}. Behind each value is its difference to off, from the same noise, with its 95 % "
        f"interval ({boot['draws']} bootstrap draws of the prompts, seed {boot['seed']}).",
        WIDTH,
    )


def steps_of(sampling: dict[str, Any]) -> str:
    """As 50 ddim steps."""
    return counted(sampling["steps"], f"{sampling['sampler']} step")


def row(name: str, results: Sequence[Result], decimals: int) -> str:
    """A measure's line: off, then each variant's value and difference."""
    off, *others = (result.estimates[name] for result in results)
    measure = MEASURES[name]
    cells = [
        f"{number(it.value, measure, decimals):>8}  {difference(it, measure, decimals):<24}" for it in others
    ]
    return f"{measure.title:<22}{number(off.value, measure, decimals):>7}{''.join(cells)}".rstrip()


def number(value: float, measure: Measure, decimals: int, sign: str = "") -> str:
    """A number in the measure's unit, or a dash for what there is none of."""
    scaled = 100 * value if measure.percent else value
    return format(scaled, f"{sign}.{decimals}f") if math.isfinite(scaled) else "-"


def difference(estimate: Estimate, measure: Measure, decimals: int) -> str:
    """As +1.2 [-0.3, +2.6], with a star where the interval leaves out zero."""
    mean, low, high = (
        number(value, measure, decimals, "+") for value in (estimate.difference, estimate.low, estimate.high)
    )
    return f"{mean} [{low}, {high}]{'*' if estimate.leaves_out_zero else ''}"


def digits(name: str, results: Sequence[Result]) -> int:
    """How many decimals a measure has: its own, or 1 to 3 that show three figures of the largest value."""
    if (own := MEASURES[name].decimals) is not None:
        return own
    values = [result.estimates[name].value * (100 if MEASURES[name].percent else 1) for result in results]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(3, max(1, 2 - math.floor(math.log10(largest)))) if largest > 0 else 1


def legend(results: Sequence[Result], ratios: dict[str, float], facts: dict[str, Any]) -> list[str]:
    """What the table's signs mean."""
    lines = ["* the interval leaves out zero, as one in about twenty does by chance alone."]
    for better in ("higher", "lower"):
        if names := [name for name in results[0].estimates if MEASURES[name].better == better]:
            lines.append(f"Better {better}: {', '.join(names)}.")
    if not {"frechet", "fid"}.isdisjoint(results[0].estimates):
        lines.append(
            "A Frechet distance of few pictures is too large. Its differences are freed of what resamples "
            "show of that; from fewer pictures than features they are not, and have no interval."
        )
    if few := [name for name, one in results[0].statistics.items() if 0 < one.draws < DRAWS]:
        draws = results[0].statistics[few[0]].draws
        lines.append(f"Of {' and '.join(few)} there are {draws} draws, as each takes seconds.")
    if alone := [name for name, one in results[0].statistics.items() if one.prompts == 1]:
        lines.append(
            f"From one prompt alone nothing follows for others: there is no interval of {', '.join(alone)}."
        )
    if ratios:
        lines.append(
            "FreeU changes how far the caption guides: with it the network's answer to the caption moves so "
            "many times as far as without, at the same latents. Matched, the scale is divided by that."
        )
    elif facts["sampling"]["scale"] == 1:
        lines.append("Sampling is not guided at scale 1, so there is no guidance to match.")
    return [part for line in lines for part in textwrap.wrap(line, WIDTH)]


def write(evaluation: Evaluation, results: Sequence[Result], ratios: dict[str, float]) -> list[Path]:
    """Writes CSV, JSON and the picture into the evaluation's folder, and returns their paths."""
    folder, asked = evaluation.subject.folder, evaluation.asked
    table, record, sheet = (folder / f"evaluation.{kind}" for kind in ("csv", "json", "png"))
    write_table(table, lines_of(results, asked))
    write_text(record, json.dumps(summary(results, ratios, evaluation.facts), indent=1) + "\n")
    labels = [result.variant.label for result in results]
    rows = [[result.shown[i] for result in results] for i in range(len(results[0].shown))]
    sampling = evaluation.facts["sampling"]
    words = Words(small_print=[steps_of(sampling), f"guidance {sampling['scale']:g}"])
    save_png(sheet, labelled(rows, [labels], asked.prompts[:SHOWN], words))
    return [table, record, sheet]


def lines_of(results: Sequence[Result], asked: Asked) -> list[dict[str, Any]]:
    """A line for each picture, with what it has in each measure that single pictures have.

    A measure that counts things or relations is the share that is right, and `_asked` says of how many. Blank
    is what was not asked for.
    """
    lines: list[dict[str, Any]] = []
    for result in results:
        variant = result.variant
        for p, pairs in enumerate(asked.pairs):
            for s, pair in enumerate(pairs):
                line: dict[str, Any] = {
                    "setting": variant.setting,
                    "matched": int(variant.matched),
                    "guidance": variant.scale,
                    "prompt": pair.prompt,
                    "seed": pair.seed,
                }
                for name, one in result.statistics.items():
                    if isinstance(one, Mean):
                        value, weight = float(one.values[p, s]), float(one.weights[p, s])
                        line[name] = value if math.isfinite(value) else None
                        if (one.weights != 1).any():
                            line[f"{name}_asked"] = int(weight)
                lines.append(line)
    return lines


def summary(results: Sequence[Result], ratios: dict[str, float], facts: dict[str, Any]) -> dict[str, Any]:
    """All settings and all numbers, shares as shares of one; None for a number that there is not."""
    variants = []
    for result in results:
        variant = result.variant
        measures = {
            name: {key: value if math.isfinite(value) else None for key, value in asdict(one).items()}
            for name, one in result.estimates.items()
        }
        if variant.freeu is None:
            measures = {name: {"value": one["value"]} for name, one in measures.items()}
        variants.append(
            {
                "setting": variant.setting,
                "matched": variant.matched,
                "guidance": variant.scale,
                "guidance_ratio": ratios.get(variant.setting),
                "freeu": None if variant.freeu is None else asdict(variant.freeu),
                "measures": measures,
            }
        )
    return {**facts, "variants": variants}
