"""A search: trials of FreeU's settings on the same prompts and noise, and the best checked on fresh ones."""

import hashlib
import json
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from ldm.config.reading import find_config, load_config, read_with_base
from ldm.errors import InputError, NoNumbers
from ldm.freeu import NEUTRAL, FreeUSettings
from ldm.generate import total_steps
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.schedule import check_steps
from ldm.study.evaluation.asked import plan_apart
from ldm.study.evaluation.bootstrap import Estimate, Mean, compare, resamples, spread
from ldm.study.evaluation.evaluation import Evaluation, Result
from ldm.study.evaluation.measures import Meter, choose
from ldm.study.evaluation.settings import read_settings
from ldm.study.evaluation.subject import Subject, checkpoint_name, weights_of
from ldm.study.search.goals import Goal, read_goals, usual_goals
from ldm.study.search.space import read_space
from ldm.study.search.trials import NAME, Trials
from ldm.txt2img.caveats import warn_of_words
from ldm.txt2img.request import freeu_of
from ldm.wording import counted

CAPTIONS = (32, 96)  # of the embedded model, for the search and for the check of what it finds
WAIT = 2.0  # seconds between two looks at trials that run elsewhere
FOUND = "found"
PRESET = "found.yaml"  # in the search's folder


@dataclass(frozen=True)
class Outcome:
    """What a search came to: its trials, the best of them, and how that did on fresh prompts and noise."""

    trials: list[FrozenTrial]  # complete, in order
    front: list[int]  # numbers of those that no other is better than in every goal
    best: FrozenTrial  # of those with FreeU
    found: FreeUSettings
    results: list[Result]  # FreeU off first, then what was found, then published factors
    against: dict[str, dict[str, Estimate]]  # what was found less each other, by its name and the metric
    left_out: Sequence[str] = ()  # what came to no numbers on the fresh prompts

    def gain_over(self, name: str, goals: Sequence[Goal]) -> str:
        """What every goal says of what was found against another, or "mixed" where they do not agree."""
        verdicts = {goal.verdict(self.against[name][goal.metric]) for goal in goals}
        return verdicts.pop() if len(verdicts) == 1 else "mixed"


class Search:
    """A search under parsed arguments. Raises InputError where they do not fit each other."""

    def __init__(self, arguments: Namespace):
        self.config = load_config(arguments.config, arguments.overrides)
        spare_config(arguments.config, arguments.outdir / PRESET)
        own = freeu_of(self.config)
        self.space = read_space(arguments.space, own or NEUTRAL)
        published = read_settings(None, self.config, checkpoint_name(arguments, self.config))
        weights = weights_of(arguments)
        goals = read_goals(arguments.metrics or [], weights)
        for name, least in {"trials": 1, "pictures": 1, "seed": 0}.items():
            if (value := getattr(arguments, name)) is not None and value < least:
                raise InputError(f"--{name} is {value}: give {least} or more.")

        self.subject = Subject(arguments, self.config)
        encoder = self.subject.model.cond_stage_model
        self.checkpoint: str | None = arguments.ckpt
        self.goals = goals or usual_goals(encoder, weights)
        self.named = {"off": self.space.base.off(), **published}
        self.subject.fit(self.named)
        if matches := self.space.searched.get("match"):  # which stages there are depends on it
            self.subject.fit(
                {f"--space match={it}": self.space.settings({"match": it}) for it in matches.ends}
            )
        self.asked, fresh = plan_apart(
            arguments.prompts, arguments.fresh_prompts, arguments.seeds, encoder, CAPTIONS
        )
        warn_of_words(encoder, [*self.asked.prompts, *fresh.prompts])
        metrics = [goal.metric for goal in self.goals]
        for asked in (self.asked, fresh):
            choose(metrics, asked, self.subject.side, weights)
        self.steps = search_steps(arguments.search_steps, self.subject.sampling.steps, self.subject.model)
        self.meter = Meter(metrics, False, weights, self.subject.model.device)
        self.wanted = self.baselines()
        self.check = Evaluation(
            self.subject, {FOUND: self.space.base, **published}, fresh, self.meter, matched=False
        )
        self.budget = self.affordable(arguments.trials, arguments.pictures)
        self.trials = Trials(
            arguments.storage or self.subject.folder / "search.db",
            self.settings(),
            [goal.direction for goal in self.goals],
            arguments.seed,
            flag="--storage" if arguments.storage else "--outdir or --storage",
        )

    def baselines(self) -> dict[str, dict[str, Any]]:
        """What is tried first, by name: FreeU off and the published factors, where the space has them."""
        wanted: dict[str, dict[str, Any]] = {}
        for name, freeu in self.named.items():
            params = self.space.params_of(freeu)
            if params is not None and params not in wanted.values():
                wanted[name] = params
        return wanted

    def affordable(self, trials: int, pictures: int | None) -> int:
        """How many trials there are to be. Raises InputError where that is too few."""
        each = sum(map(len, self.asked.pairs))
        checked = (1 + len(self.check.settings)) * sum(map(len, self.check.asked.pairs))
        least = len(self.wanted) + 1
        if pictures is not None:
            trials = min(trials, (pictures - checked) // each)
        if trials < least:
            raise InputError(
                f"That makes {counted(max(trials, 0), 'trial')}: give --trials {least} or more, and "
                f"--pictures {least * each + checked} or more, as a trial takes {each} and the last check "
                f"{checked}."
            )
        return trials

    def settings(self) -> dict[str, Any]:
        """What decides the value of a trial: all processes that share a storage have to agree on it."""
        facts = self.subject.facts
        asked = json.dumps([asdict(pair) for pairs in self.asked.pairs for pair in pairs])
        described = self.subject.identity.partition(" " + facts["weights"])[0]
        return {
            "weights": facts["weights"],
            "model": digest(described),
            "freeu": asdict(self.space.base),
            "space": str(self.space),
            "metrics": " ".join(map(str, self.goals)),
            "sampling": facts["sampling"] | {"steps": self.steps},
            "prompts": f"{len(self.asked.pairs)} of sha256 {digest(asked)}",
            "paths": {name: path and Path(path).name for name, path in facts["paths"].items()},
        }

    def run(self) -> Outcome:
        """Makes trials, beside those of other processes, until the budget is spent, and checks the best."""
        runs = self.subject.runs_of(self.asked, None, steps=self.steps)
        batches = self.subject.runs.split(runs, runs[0].sampling)
        each = len(batches) * total_steps(self.subject.model, runs[0].sampling)
        with tqdm(total=self.budget * each, desc="trials", unit="step", disable=None) as bar:
            while True:
                begun = self.trials.begun()
                running = sum(trial.state == TrialState.RUNNING for trial in begun)
                bar.n = (len(begun) - running) * each
                bar.refresh()
                if len(begun) < self.budget:
                    self.make_trial(bar.update)
                elif running:
                    bar.set_description("waiting for trials that run elsewhere")
                    time.sleep(WAIT)
                else:
                    break
        return self.outcome()

    def make_trial(self, on_step: Callable[[], object]) -> None:
        """Samples the pictures of one more trial and measures them."""
        trial = self.trials.next(self.space, self.wanted)
        name = trial.user_attrs.get(NAME)
        label = f"trial {trial.number}{f' ({name})' if name else ''}"

        def stepped() -> None:
            on_step()
            self.trials.hear(trial)

        try:
            values = self.values(self.space.settings(trial.params), stepped)
        except NoNumbers as fault:
            self.trials.fail(trial)
            tqdm.write(f"{label} counts as failed: {fault}", file=sys.stderr)
            return
        except BaseException:
            self.trials.give_up(trial)
            raise
        self.trials.finish(trial, values)
        told = ", ".join(f"{g.metric} {v:.4g}" for g, v in zip(self.goals, values, strict=True))
        tqdm.write(f"{label}: {told}", file=sys.stderr)

    def values(self, freeu: FreeUSettings, on_step: Callable[[], object]) -> list[float]:
        """What the goals' measures say of the pictures with these settings.

        Raises NoNumbers where one of them says nothing, and InputError where none ever will.
        """
        runs = self.subject.runs_of(self.asked, freeu, steps=self.steps)
        self.subject.draw(runs, on_step)
        measured = self.meter.measure(self.subject.pictures(self.asked, runs), self.asked)
        once = np.ones((1, len(self.asked.pairs)), np.int64)
        values = []
        for metric in (goal.metric for goal in self.goals):
            statistic = measured[metric]
            if isinstance(statistic, Mean) and not statistic.weights.any():
                raise InputError(f"--metrics {metric}: these prompts ask for nothing that it tells.")
            values.append(float(statistic.at(once)[0]))
            if not math.isfinite(values[-1]):
                raise NoNumbers(f"Its {metric} is no number.")
        return values

    def outcome(self) -> Outcome:
        """The best trial, held against FreeU off and published factors on fresh prompts and noise."""
        trials = self.trials.complete()
        tried = [trial for trial in trials if self.acts(trial)]
        left_out: list[str] = []
        while tried:
            best = self.best(tried)
            found = self.space.settings(best.params)
            if self.draw_check(f"trial {best.number}", found):
                break
            left_out.append(f"trial {best.number}")
            tried = [trial for trial in tried if trial.params != best.params]
        else:
            metrics = " and ".join(goal.metric for goal in self.goals)
            raise InputError(
                f"No trial with FreeU has a value in {metrics}: search in another --outdir, by other "
                "--metrics or over another --space."
            )
        # What failed on the search's prompts would fail on these too.
        failed = {"off", *(trial.user_attrs.get(NAME) for trial in self.trials.failed())}
        self.check.settings = {FOUND: found}
        for name, freeu in self.named.items():
            if name in failed or freeu == found:
                continue
            if self.draw_check(called(name), freeu):
                self.check.settings[name] = freeu
            else:
                left_out.append(called(name))
        results, _ = self.check.run()

        off, ours, *compared = results
        counts = resamples(len(self.check.asked.pairs))
        spreads = {name: spread(statistic, counts) for name, statistic in ours.statistics.items()}
        against = {}
        for other in (off, *compared):
            against[other.variant.setting] = {
                name: compare(it, spread(other.statistics[name], counts)) for name, it in spreads.items()
            }
        front = sorted(trial.number for trial in self.trials.front())
        return Outcome(trials, front, best, found, results, against, left_out)

    def acts(self, trial: FrozenTrial) -> bool:
        """Whether FreeU changes any block in a trial, as it does not in "off" or with a strength of zero."""
        return bool(self.subject.unet.hit_blocks(self.space.settings(trial.params)))

    def draw_check(self, name: str, freeu: FreeUSettings) -> bool:
        """Samples the check's pictures with these settings; says whether they came to numbers."""
        runs = self.subject.runs_of(self.check.asked, freeu)
        work = self.subject.work(runs)
        try:
            with tqdm(total=work, desc=f"check of {name}", unit="step", disable=None) as bar:
                self.subject.draw(runs, bar.update)
        except NoNumbers as fault:
            tqdm.write(f"{name} is left out of the check: {fault}", file=sys.stderr)
            return False
        return True

    def best(self, trials: Sequence[FrozenTrial]) -> FrozenTrial:
        """The best in the goal; with several the one whose ranks in them have the smallest sum."""
        gains = np.array(
            [
                [goal.gain(value) for goal, value in zip(self.goals, trial.values, strict=True)]
                for trial in trials
            ]
        )
        ranks = (gains[None] > gains[:, None]).sum(1)  # how many are better, for each trial and goal
        return trials[int(ranks.sum(1).argmin())]


def spare_config(name: str, preset: Path) -> None:
    """Raises InputError where writing the preset would destroy the search's config, or a base of that."""
    if not os.path.exists(preset):  # noqa: PTH110, as Path.exists fails on names that are too long
        return
    try:
        read_with_base(find_config(name), above=(preset,))
    except InputError:
        raise InputError(
            f"{preset} is what this search starts from and would write over: give another --outdir."
        ) from None


def search_steps(asked: int | None, steps: int, model: LatentDiffusion) -> int:
    """How many steps trials take: half of the usual ones, unless told otherwise. Raises InputError."""
    if asked is None:
        return max(1, steps // 2)
    check_steps(asked, model.num_timesteps)
    return asked


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def called(name: str) -> str:
    """A setting's name in a sentence."""
    return "the config's factors" if name == "config" else f"published {name}"
