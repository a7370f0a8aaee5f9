"""What a search leaves: its outcome in words, a preset, and every trial as a table, JSON and a picture."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import DictConfig, OmegaConf

from ldm.config.freeu import FACTORS, FREE_UNET, FREEU
from ldm.config.reading import find_config
from ldm.files import write_table, write_text
from ldm.folders import CONFIGS
from ldm.study.evaluation.measures import MEASURES
from ldm.study.evaluation.report import WIDTH, difference, digits, number, summary
from ldm.study.evaluation.settings import in_words
from ldm.study.search.goals import Goal, Verdict
from ldm.study.search.plot import save_plot
from ldm.study.search.search import FOUND, PRESET, Outcome, Search, called
from ldm.study.search.trials import NAME
from ldm.weights.place import find_checkpoint
from ldm.wording import counted

RECORD = "search.json"


def as_text(search: Search, outcome: Outcome) -> str:
    """The outcome in 100 columns: the trials worth naming, the check of what was found and what it says."""
    facts, prompts, fresh = search.check.facts, search.asked.prompts, search.check.asked.prompts
    seeds = len(search.asked.pairs[0])
    goals = " and ".join(f"{goal.metric} ({goal.better} is better)" for goal in search.goals)
    head = (
        f"Tried {counted(len(outcome.trials), 'setting')} of FreeU, over {search.space}, for {goals}, on "
        f"{Path(facts['checkpoint']).name}: each on the same {counted(len(prompts), 'prompt')} x "
        f"{counted(seeds, 'seed')}, in {counted(search.steps, facts['sampling']['sampler'] + ' step')} at "
        f"guidance {facts['sampling']['scale']:g}."
    )
    check = (
        f"What was found, on {counted(len(fresh), 'prompt')} x {seeds} that the search did not see, with "
        f"fresh noise, in {counted(facts['sampling']['steps'], 'step')}. Behind each value is its difference "
        f"to off with the 95 % interval ({facts['bootstrap']['draws']} bootstrap draws of the prompts), and "
        "a star where that leaves out zero."
    )
    lines = [*textwrap.wrap(head, WIDTH), "", *trial_lines(search, outcome), "", *textwrap.wrap(check, WIDTH)]
    return "\n".join(
        [*lines, "", *check_lines(search, outcome), "", *textwrap.wrap(verdict(search, outcome), WIDTH)]
    )


def trial_lines(search: Search, outcome: Outcome) -> list[str]:
    """What was found, the rest of the front where there are several goals, and the trials with a name."""
    several = len(search.goals) > 1
    worth = [
        trial
        for trial in outcome.trials
        if NAME in trial.user_attrs
        or trial.number == outcome.best.number
        or (several and trial.number in outcome.front)
    ]
    worth.sort(key=lambda trial: trial.number != outcome.best.number)
    lines = ["trial" + "".join(f"{goal.metric:>12}" for goal in search.goals)]
    for trial in worth:
        values = "".join(
            f"{number(value, MEASURES[goal.metric], places(goal, outcome)):>12}"
            for goal, value in zip(search.goals, trial.values, strict=True)
        )
        names = [FOUND] * (trial.number == outcome.best.number) + [trial.user_attrs.get(NAME, "")]
        name = ", ".join(filter(None, names)) or "front"
        lines.append(
            f"{trial.number:>5}{values}  {name:<14}{in_words(search.space.settings(trial.params))}".rstrip()
        )
    return lines


def check_lines(search: Search, outcome: Outcome) -> list[str]:
    """A line for FreeU off, for what was found and for published factors, with every goal in columns."""
    off, *others = outcome.results
    lines = [f"{'':10}" + "".join(f"{MEASURES[goal.metric].title:<34}" for goal in search.goals)]
    for result in (off, *others):
        cells = []
        for goal in search.goals:
            measure, decimals = MEASURES[goal.metric], places(goal, outcome)
            estimate = result.estimates[goal.metric]
            apart = "" if result is off else difference(estimate, measure, decimals)
            cells.append(f"{number(estimate.value, measure, decimals):>7}  {apart:<25}")
        lines.append(f"{result.variant.setting:<10}{''.join(cells)}")
    return [line.rstrip() for line in lines]


def verdict(search: Search, outcome: Outcome) -> str:
    """What the check says: how what was found compares with off, and how with published factors."""
    said = {
        "better": "What was found beats FreeU off beyond the noise",
        "worse": "What was found is worse than FreeU off beyond the noise",
        "mixed": f"Against FreeU off what was found is {by_goal(search, outcome, 'off')}",
        "undecided": "What was found does not beat FreeU off beyond the noise",
    }
    sentences = [f"{said[outcome.gain_over('off', search.goals)]}: {differences(search, outcome, 'off')}."]
    relations = {
        "better": "better than",
        "undecided": "not told apart from",
        "worse": "worse than",
    }
    others = {name: outcome.gain_over(name, search.goals) for name in outcome.against if name != "off"}
    for gain, relation in relations.items():
        names = [name for name in others if others[name] == gain]
        them = "; ".join(f"{called(name)}, {differences(search, outcome, name)}" for name in names)
        if names:
            sentences.append(f"It is {relation} {them}.")
    for name in others:
        if others[name] == "mixed":
            them = f"{by_goal(search, outcome, name)}: {differences(search, outcome, name)}"
            sentences.append(f"Against {called(name)} it is {them}.")
    if outcome.left_out:
        sentences.append(f"The check came to no numbers with {' and '.join(outcome.left_out)}.")
    return " ".join(sentences)


def by_goal(search: Search, outcome: Outcome, name: str) -> str:
    """In which goals what was found is better than another, in which worse and in which undecided."""
    told = []
    for verdict in get_args(Verdict):
        estimates = outcome.against[name]
        goals = [goal.metric for goal in search.goals if goal.verdict(estimates[goal.metric]) == verdict]
        if goals:
            told.append(f"{verdict} in {' and '.join(goals)}")
    return ", ".join(told)


def differences(search: Search, outcome: Outcome, name: str) -> str:
    """By how much what was found differs from another in every goal, with the intervals."""
    told = []
    for goal in search.goals:
        estimate = outcome.against[name][goal.metric]
        told.append(f"{goal.metric} {difference(estimate, MEASURES[goal.metric], places(goal, outcome))}")
    return ", ".join(told)


def places(goal: Goal, outcome: Outcome) -> int:
    return digits(goal.metric, outcome.results)


def write(search: Search, outcome: Outcome) -> list[Path]:
    """Writes preset, CSV, JSON and plot into the search's folder; their paths, in this order."""
    folder = search.subject.folder
    files = [folder / name for name in (PRESET, "search.csv", RECORD, "search.png")]
    config, table, told, plot = files
    write_text(config, preset(search, outcome))
    write_table(table, trial_rows(search, outcome))
    write_text(told, json.dumps(record(search, outcome), indent=1) + "\n")
    save_plot(plot, search.space, search.goals, outcome)
    return files


def preset(search: Search, outcome: Outcome) -> str:
    """A config for `--config`: what the search was given, with its steps, its guidance and what it found."""
    facts = search.subject.facts
    path = find_config(facts["config"])
    content: dict[str, Any] = {"base": path.name if path.parent == CONFIGS else str(path.resolve())}
    changes = [as_tried(search.config, override) for override in facts["overrides"]]
    if search.checkpoint is not None or any("checkpoint" in change for change in changes):
        changes.append({"checkpoint": str(find_checkpoint(facts["checkpoint"]).resolve())})
    names = [name for name in FREEU if name in FACTORS or name in search.space.searched]
    unet = {
        "target": FREE_UNET,
        "params": {name: getattr(outcome.found, name) for name in names},
    }
    sampling = {name: facts["sampling"][name] for name in ("steps", "scale")}
    found = {"sampling": sampling, "model": {"params": {"unet_config": unet}}}
    merged = OmegaConf.merge(content, *changes, found)
    comment = (
        f"FreeU found by scripts/search.py, the best of {counted(len(outcome.trials), 'trial')} at guidance "
        f"{facts['sampling']['scale']:g}. {verdict(search, outcome)} evaluate.py judges it on prompts and "
        f"noise that the search did not see with --unseen-by and the {RECORD} beside this file."
    )
    head = "".join(
        f"{line}\n" for line in textwrap.wrap(comment, WIDTH, initial_indent="# ", subsequent_indent="# ")
    )
    return head + yaml.safe_dump(OmegaConf.to_container(merged), sort_keys=False)


def as_tried(config: DictConfig, override: str) -> dict[Any, Any]:
    """What an override makes of the config, for a preset, which replaces lists of its base as a whole."""
    keys: list[Any] = []
    value: Any = config
    for word in re.findall(r"[\w-]+", override.partition("=")[0]):
        if isinstance(value, DictConfig):
            keys.append(next(key for key in value if str(key) == word))
            value = value[keys[-1]]
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    for key in reversed(keys):
        value = {key: value}
    return value


def trial_rows(search: Search, outcome: Outcome) -> list[dict[str, Any]]:
    """A row for each trial: its settings and its values, shares as shares of one."""
    rows = []
    for trial in outcome.trials:
        freeu = search.space.settings(trial.params)
        named = {"name": trial.user_attrs.get(NAME, ""), "front": int(trial.number in outcome.front)}
        settings = {name: getattr(freeu, name) for name in search.space.searched}
        values = {goal.metric: value for goal, value in zip(search.goals, trial.values, strict=True)}
        rows.append({"trial": trial.number, **named, **settings, **values})
    return rows


def record(search: Search, outcome: Outcome) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "search": search.settings(),
        "prompts": search.asked.prompts,
        "seeds_each": len(search.asked.pairs[0]),
        "storage": str(search.trials.path),
        "trials": len(outcome.trials),
        "front": outcome.front,
        "best": outcome.best.number,
        "beats_off": outcome.gain_over("off", search.goals) == "better",
        "verdict": verdict(search, outcome),
        "check": summary(outcome.results, {}, search.check.facts),
    }
