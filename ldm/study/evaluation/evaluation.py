"""An evaluation: FreeU's settings against the plain model, on the same prompts and the same noise."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from ldm.config.reading import load_config
from ldm.errors import NoNumbers
from ldm.freeu import FreeUSettings
from ldm.generate import total_steps
from ldm.study.claims import CONFIDENCE
from ldm.study.evaluation import bootstrap
from ldm.study.evaluation.asked import Asked, plan, plan_unseen, read_seen
from ldm.study.evaluation.bootstrap import Estimate, Spread, Statistic, compare, resamples, spread
from ldm.study.evaluation.frechet import FEW, WIDE
from ldm.study.evaluation.guidance import RATIOS, guidance_ratios, read_ratios, write_ratios
from ldm.study.evaluation.measures import Meter, check_names, choose
from ldm.study.evaluation.settings import read_settings
from ldm.study.evaluation.subject import Subject, checkpoint_name, weights_of
from ldm.study.pictures import Pictures
from ldm.study.runs import Run
from ldm.txt2img.caveats import warn_of_words
from ldm.txt2img.jobs import Job

PROBES = 16  # prompts over which a setting's ratio of guidance is measured, with one seed each
SHOWN = 3  # prompts in the picture


@dataclass(frozen=True)
class Variant:
    """A setting at a scale of guidance; `freeu` is None for the plain model."""

    setting: str
    freeu: FreeUSettings | None
    scale: float
    matched: bool  # whether the scale is that at which it guides as far as the plain model

    @property
    def label(self) -> str:
        return f"{self.setting} matched" if self.matched else self.setting


@dataclass(frozen=True)
class Result:
    """What came out for a variant: its measures, and by how much they differ from those of FreeU off."""

    variant: Variant
    statistics: dict[str, Statistic]
    estimates: dict[str, Estimate]
    shown: Pictures  # of the first prompts with their first seeds, (n, H, W, 3)


class Evaluation:
    """Settings to compare on a model that takes them; `matched` where guidance is matched too."""

    def __init__(
        self,
        subject: Subject,
        settings: dict[str, FreeUSettings],
        asked: Asked,
        meter: Meter,
        matched: bool = True,
    ):
        self.subject, self.settings, self.asked, self.meter = subject, settings, asked, meter
        self.matched = matched
        self.facts: dict[str, Any] = {
            **subject.facts,
            "prompts": asked.prompts,
            "held_out": meter.held_out,
            "seeds_each": len(asked.pairs[0]),
            "true_renders": meter.renders or None,
            "bootstrap": {
                "draws": bootstrap.DRAWS,
                f"draws_of_over_{WIDE}_features": FEW,
                "seed": bootstrap.SEED,
                "confidence": CONFIDENCE,
                "resampled": "prompts",
            },
        }

    def run(self) -> tuple[list[Result], dict[str, float]]:
        """What came out, FreeU off first, and of each setting how many times it guides as far as without.

        Raises NoNumbers, with the setting, where pictures are none.
        """
        ratios = self.ratios()
        variants = self.variants(ratios)
        runs = [run for variant in variants for run in self.runs_of(variant)]
        with tqdm(total=self.subject.work(runs), desc="pictures", unit="step", disable=None) as bar:
            for variant in variants:
                try:
                    self.subject.draw(self.runs_of(variant), bar.update)
                except NoNumbers as fault:
                    raise NoNumbers(f"{variant.label}, guidance {variant.scale:g}: {fault}") from None
        counts = resamples(len(self.asked.pairs))
        results: list[Result] = []
        off: dict[str, Spread] = {}
        for variant in tqdm(variants, "measuring", unit="setting", disable=None):
            statistics, shown = self.measure(variant)
            spreads = {name: spread(statistic, counts) for name, statistic in statistics.items()}
            off = off or spreads
            estimates = {name: compare(spreads[name], off[name]) for name in spreads}
            results.append(Result(variant, statistics, estimates, shown))
        return results, ratios

    def measure(self, variant: Variant) -> tuple[dict[str, Statistic], Pictures]:
        """A variant's measures, and what is shown of it. Its other pictures are held no longer than that."""
        pictures = self.subject.pictures(self.asked, self.runs_of(variant))
        shown = pictures[:SHOWN, 0].copy()  # a view would keep all of the variant's pictures
        return self.meter.measure(pictures, self.asked), shown

    def ratios(self) -> dict[str, float]:
        """The ratio of guidance of each setting, rounded; none where nothing is guided or to be matched.

        What was measured is kept in a file. Raises InputError where that is damaged.
        """
        if self.subject.sampling.scale == 1 or not self.matched:
            return {}
        probes = [pairs[0] for pairs in self.asked.pairs[:PROBES]]
        names = {name: self.ratio_name(freeu, probes) for name, freeu in self.settings.items()}
        path = self.subject.folder / RATIOS
        kept = read_ratios(path)
        lacking = {names[name]: freeu for name, freeu in self.settings.items() if names[name] not in kept}
        if lacking:
            ratios = self.measure_ratios(list(lacking.values()), probes)
            kept |= {name: round(ratio, 3) for name, ratio in zip(lacking, ratios, strict=True)}
            write_ratios(path, kept)
        return {name: kept[names[name]] for name in self.settings}

    def ratio_name(self, freeu: FreeUSettings, probes: Sequence[Job]) -> str:
        """What a setting's ratio is kept under: a hash of all that decides it."""
        asked = [asdict(pair) for pair in probes]
        decisive = [self.subject.identity, asdict(self.subject.sampling), asked, asdict(freeu)]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:24]

    def measure_ratios(self, settings: Sequence[FreeUSettings], probes: list[Job]) -> list[float]:
        """The ratios of guidance of settings over these prompts and seeds."""
        model, sampling = self.subject.model, self.subject.sampling
        batches = self.subject.runs.split(probes, sampling)
        total = len(batches) * total_steps(model, sampling)
        with tqdm(total=total, desc="guidance", unit="step", disable=None) as bar:
            return guidance_ratios(model, batches, sampling, settings, bar.update)

    def variants(self, ratios: dict[str, float]) -> list[Variant]:
        """FreeU off, then each setting at the same guidance and, where it guides, at the matched one."""
        scale = self.subject.sampling.scale
        variants = [Variant("off", None, scale, matched=False)]
        for name, freeu in self.settings.items():
            variants.append(Variant(name, freeu, scale, matched=False))
            if ratios.get(name, 0) > 0:
                variants.append(Variant(name, freeu, round(scale / ratios[name], 3), matched=True))
        return variants

    def runs_of(self, variant: Variant) -> list[Run]:
        """The runs that a variant's pictures come from, prompt after prompt."""
        return self.subject.runs_of(self.asked, variant.freeu, scale=variant.scale)


def read_evaluation(arguments: Namespace) -> Evaluation:
    """The evaluation that parsed arguments ask for. Raises InputError where they do not fit each other."""
    config = load_config(arguments.config, arguments.overrides)
    settings = read_settings(arguments.settings, config, checkpoint_name(arguments, config))
    weights, names = weights_of(arguments), arguments.metrics or []
    check_names(names, weights)
    seen = None if arguments.unseen_by is None else read_seen(arguments.unseen_by)
    subject = Subject(arguments, config)
    subject.fit(settings)
    given = arguments.prompts, arguments.held_out, arguments.seeds, subject.model.cond_stage_model
    asked = plan(*given) if seen is None else plan_unseen(*given, seen)
    warn_of_words(subject.model.cond_stage_model, asked.prompts)
    metrics = choose(names, asked, subject.side, weights)
    return Evaluation(
        subject, settings, asked, Meter(metrics, arguments.held_out, weights, subject.model.device)
    )
