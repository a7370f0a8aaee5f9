"""A run of txt2img: which pictures to make from which prompts, and the files that come of it."""

import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from ldm.checkpoint import load_model
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError
from ldm.generate import SAMPLERS, Sampling, check, generate
from ldm.image_io import Picture, grid, next_number, save_png, side_by_side, writable_folder
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.modules.encoders.words import WordEmbedder
from ldm.recipe import Recipe, fits
from ldm.util import FREEU

DEFAULT_PROMPT = "a professional photograph of an astronaut riding a horse"
DTYPES = {"full": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHEET = 64  # pictures on one sheet; the rest go on to the next
SIZES = {name: get_type_hints(Sampling)[name] for name in ("height", "width", "steps", "scale")}


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    prompt: str
    seed: int


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one a line, blank lines left out. Raises InputError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as fault:
        raise InputError(f"The prompt file {path} cannot be read: {fault.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The prompt file {path} is not UTF-8 text: save it as UTF-8.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"There is no prompt in {path}: write one a line.")
    return prompts


def plan(prompts: list[str], n_iter: int, n_samples: int, seed: int, fixed_code: bool) -> list[Job]:
    """The pictures of a run: all prompts in order, `n_iter` times over.

    Picture k takes the seed `seed + k`, or with `fixed_code` its place among `n_samples` instead of k.
    """
    jobs: list[Job] = []
    for _ in range(n_iter):
        for i, prompt in enumerate(prompts):
            jobs.append(Job(prompt, seed + (i % n_samples if fixed_code else len(jobs))))
    return jobs


def usual_settings(config: DictConfig) -> dict[str, Any]:
    """The `sampling:` section of a config: height, width, steps, scale and prompt. Raises InputError."""
    usual = config.get("sampling") or {}
    hints = SIZES | {"prompt": str}
    if not isinstance(usual, DictConfig | dict):
        raise InputError(f"The config's sampling section is {usual!r}; it may hold {', '.join(hints)}.")
    for name, value in usual.items():
        if name not in hints:
            raise InputError(f"The config's sampling section has {name!r}; it may hold {', '.join(hints)}.")
        if not fits(value, hints[name]):
            raise InputError(f"The config's sampling.{name} is {value!r}: give a {hints[name].__name__}.")
    return dict(usual)


class Run:
    """A run of txt2img under its parsed arguments and its config."""

    def __init__(self, arguments: Namespace, config: DictConfig):
        self.arguments = arguments
        for name, least in {"n_samples": 1, "n_iter": 1, "repeat": 1, "n_rows": 0}.items():
            if getattr(arguments, name) < least:
                raise InputError(f"--{name} is {getattr(arguments, name)}: give {least} or more.")
        if not 0 <= arguments.seed < 2**63:
            raise InputError(f"--seed is {arguments.seed}: give a whole number from 0 to 2**63 - 1.")

        # What is not asked for comes from the config, then from what Stable Diffusion usually takes.
        usual = usual_settings(config)
        default_prompt = usual.pop("prompt", DEFAULT_PROMPT)
        asked = {name: value for name in SIZES if (value := getattr(arguments, name)) is not None}
        self.sampling = Sampling(**(usual | asked), sampler=arguments.sampler, eta=arguments.eta)
        if arguments.from_file is None:
            prompt = default_prompt if arguments.prompt is None else arguments.prompt
            prompts = [prompt] * arguments.n_samples
        else:
            prompts = [p for p in read_prompts(arguments.from_file) for _ in range(arguments.repeat)]
        self.jobs = plan(prompts, arguments.n_iter, arguments.n_samples, arguments.seed, arguments.fixed_code)
        texts = list(dict.fromkeys([*prompts, arguments.negative_prompt]))
        for text in texts:
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError(f"The prompt {text!r} is not valid Unicode: give it in UTF-8.")

        if arguments.precision not in (*DTYPES, "auto", "autocast"):
            raise InputError(f"--precision is {arguments.precision!r}: give auto, {', '.join(DTYPES)}.")
        device = pick_device(arguments.device)
        dtype = DTYPES.get(arguments.precision) or pick_dtype(device)
        self.precision = {dtype: name for name, dtype in DTYPES.items()}[dtype]
        model = load_model(config, arguments.ckpt, device, dtype, download=arguments.download)
        if not isinstance(model, LatentDiffusion) or isinstance(model.cond_stage_model, torch.nn.Identity):
            raise InputError("The config's model draws no prompts; its target has to be LatentDiffusion.")
        self.model, self.encoder = model, model.cond_stage_model
        self.unet = model.model.diffusion_model
        if arguments.compare and self.freeu is None:
            raise InputError("--compare needs FreeU: take a freeu_ config, or give --b1, --b2, --s1, --s2.")
        check(self.sampling, model)

        # Alone each picture comes out the same to the bit, whatever the batch; a GPU is faster with more.
        self.at_once = 1 if device.type == "cpu" else arguments.n_samples
        self.folder = writable_folder(arguments.outdir)
        if not arguments.skip_save:
            self.folder = writable_folder(self.folder / ("comparisons" if arguments.compare else "samples"))
        self.warn(texts)

    @property
    def freeu(self) -> dict[str, Any] | None:
        """FreeU's settings, None where it changes nothing."""
        active = isinstance(self.unet, Free_UNetModel) and self.unet.hit_blocks()
        return {name: getattr(self.unet.freeu, name) for name in FREEU} if active else None

    def warn(self, texts: list[str]) -> None:
        """Says what of the prompts and factors will not work as one might think."""
        encoder: Any = self.encoder
        for text in texts:
            if cut := encoder.truncated(text):
                say(f"warning: the prompt is too long for the text encoder, which leaves out: {cut}")
        if isinstance(encoder, WordEmbedder):
            unknown = dict.fromkeys(word for text in texts for word in encoder.unknown(text))
            if unknown:
                say(
                    f"warning: this small model does not know {', '.join(unknown)}; it knows "
                    f"{' '.join(encoder.words)}. For all else there is Stable Diffusion: "
                    "python scripts/txt2img.py --config freeu_sd21.yaml --prompt ..."
                )
        if self.freeu:
            for line in self.unet.freeu.outside_published_range():
                say(f"warning: {line}")

    def draw(self) -> None:
        """Makes every picture and writes it as soon as it is done."""
        arguments, total = self.arguments, len(self.jobs)
        print(self.unet.describe() if self.freeu else "FreeU is off")
        sheet: list[Picture] = []
        # Bars show on a terminal only.
        with tqdm(total=total, unit="picture", disable=None) as bar:
            for start in range(0, total, self.at_once):
                jobs = self.jobs[start : start + self.at_once]
                for job, picture in zip(jobs, self.pictures(jobs), strict=True):
                    if not arguments.skip_save:
                        self.save(job, picture)
                    sheet.append(picture)
                    bar.update()
                    if len(sheet) == SHEET:
                        self.save_sheet(sheet)
                        sheet = []
        self.save_sheet(sheet)
        kept = "not kept" if arguments.skip_save and arguments.skip_grid else f"in {arguments.outdir}"
        print(f"{total} {'picture' if total == 1 else 'pictures'} {kept}")

    def pictures(self, jobs: list[Job]) -> Iterator[Picture]:
        """The pictures of these jobs, or the comparisons of FreeU off and on."""
        on = self.generate(jobs)
        if not self.arguments.compare:
            yield from on
            return
        settings = self.unet.freeu
        self.unet.freeu = settings.off()
        off = self.generate(jobs)
        self.unet.freeu = settings
        b, s = f"{settings.b1:g}, {settings.b2:g}", f"{settings.s1:g}, {settings.s2:g}"
        labels = ["FreeU off", f"FreeU V{settings.version}: b {b}; s {s}"]
        for job, before, after in zip(jobs, off, on, strict=True):
            yield side_by_side([before, after], labels, f"{job.prompt} (seed {job.seed})")

    def generate(self, jobs: list[Job]) -> list[Picture]:
        """The pictures of these jobs, made at once."""
        sampler = SAMPLERS[self.sampling.sampler](self.model)
        total = len(sampler.timesteps(self.sampling.steps))
        with tqdm(total=total, unit="step", leave=False, disable=None) as bar:
            return generate(
                self.model,
                [job.prompt for job in jobs],
                [job.seed for job in jobs],
                self.sampling,
                [self.arguments.negative_prompt] * len(jobs),
                on_step=lambda _: bar.update(),
            )

    def save(self, job: Job, picture: Picture) -> None:
        """Writes a picture, under the next number, with all that it depends on."""
        arguments = self.arguments
        recipe = Recipe(
            prompt=job.prompt,
            negative_prompt=arguments.negative_prompt,
            seed=job.seed,
            config=arguments.config,
            ckpt=arguments.ckpt,
            precision=self.precision,
            overrides=arguments.overrides,
            freeu=self.freeu,
            compare=arguments.compare,
            **asdict(self.sampling),
        )
        recipe.save(self.folder / f"{next_number(self.folder):05}.png", picture)

    def save_sheet(self, pictures: list[Picture]) -> None:
        """All pictures together, where there is more than one or no other copy."""
        arguments, count = self.arguments, len(pictures)
        if arguments.skip_grid or count < (1 if arguments.skip_save else 2):
            return
        usual = arguments.n_samples if arguments.n_samples > 1 else math.ceil(math.sqrt(count))
        path = arguments.outdir / f"grid-{next_number(arguments.outdir, 'grid-'):04}.png"
        save_png(path, grid(pictures, arguments.n_rows or usual))


def say(line: str) -> None:
    """To the terminal, beside the progress bars."""
    tqdm.write(line, file=sys.stderr)
