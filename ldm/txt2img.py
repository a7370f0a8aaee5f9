"""A run of txt2img: its settings, its pictures, and the files that come of it."""

import hashlib
import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ldm.checkpoint import fingerprint, load_model
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError
from ldm.generate import SAMPLERS, Sampling, check, generate
from ldm.image_io import Picture, grid, read_picture, save_png, side_by_side, writable_folder
from ldm.jobs import Job, plan, read_prompts
from ldm.manifest import Manifest
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.modules.encoders.words import WordEmbedder
from ldm.parameterization import mix_up
from ldm.recipe import Recipe, fits
from ldm.util import FREEU

DEFAULT_PROMPT = "a professional photograph of an astronaut riding a horse"
DTYPES = {"full": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHEET = 64  # pictures on one sheet; the rest go on to the next
NAMED = 10  # prompts or words that a warning names; the rest it counts
SIZES = {name: get_type_hints(Sampling)[name] for name in ("height", "width", "steps", "scale")}


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
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InputError(f"The prompt {text!r} is not valid Unicode: give it in UTF-8.") from None

        if arguments.precision not in (*DTYPES, "auto", "autocast"):
            raise InputError(f"--precision is {arguments.precision!r}: give auto, {', '.join(DTYPES)}.")
        device = pick_device(arguments.device)
        dtype = DTYPES.get(arguments.precision) or pick_dtype(device)
        self.precision = {dtype: name for name, dtype in DTYPES.items()}[dtype]
        model = load_model(
            config,
            arguments.ckpt,
            device,
            dtype,
            download=arguments.download,
            trust_config=arguments.trust_config,
        )
        if not isinstance(model, LatentDiffusion) or isinstance(model.cond_stage_model, torch.nn.Identity):
            raise InputError("The config's model draws no prompts; its target has to be LatentDiffusion.")
        self.model, self.encoder = model, model.cond_stage_model
        self.unet = model.model.diffusion_model
        if arguments.compare and self.freeu is None:
            raise InputError("--compare needs FreeU: take a freeu_ config, or give --b1, --b2, --s1, --s2.")
        check(self.sampling, model)

        # Alone each picture comes out the same to the bit, whatever the batch; a GPU is faster with more.
        self.at_once = 1 if device.type == "cpu" else arguments.n_samples
        folder = "comparisons" if arguments.compare else "samples"
        self.outdir = writable_folder(arguments.outdir)
        if not arguments.skip_save:
            writable_folder(self.outdir / folder)

        self.manifest = Manifest(self.outdir)
        settings = self.settings(config)
        broken = self.manifest.resume(settings) if arguments.resume else None
        self.resumed = broken is not None
        pictures = 0 if arguments.skip_save else len(self.jobs)
        self.files = broken or self.manifest.begin(folder, pictures, len(self.sheets()), settings)
        self.warn(texts)

    def settings(self, config: DictConfig) -> dict[str, Any]:
        """All that the bytes of a run's files depend on: by this a broken run is known again."""
        arguments = self.arguments
        prompts = [job.prompt for job in self.jobs]
        digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        several = f"{len(prompts)} prompts of sha256 {digest[:16]}"
        layout = ("n_samples", "n_rows", "fixed_code", "skip_save", "skip_grid")
        return {
            "pictures": len(prompts),
            **asdict(self.recipe(self.jobs[0])),
            "prompt": several if len(set(prompts)) > 1 else prompts[0],
            **{name: getattr(arguments, name) for name in layout},
            "device": self.model.device.type,
            "weights": fingerprint(self.model),
            "model": OmegaConf.to_container(config.model),
        }

    @property
    def freeu(self) -> dict[str, Any] | None:
        """FreeU's settings, None where it changes nothing."""
        active = isinstance(self.unet, Free_UNetModel) and self.unet.hit_blocks()
        return {name: getattr(self.unet.freeu, name) for name in FREEU} if active else None

    def warn(self, texts: list[str]) -> None:
        """Says what of the model, the prompts and the factors will not work as one might think."""
        if wrong := mix_up(self.model):
            say(f"warning: {wrong}")
        encoder: Any = self.encoder
        cut = [end for text in texts if (end := encoder.truncated(text))]
        for end in cut[:NAMED]:
            say(f"warning: the prompt is too long for the text encoder, which leaves out: {end}")
        if len(cut) > NAMED:
            say(f"warning: {len(cut) - NAMED} more prompts are too long")
        if isinstance(encoder, WordEmbedder):
            unknown = [*dict.fromkeys(word for text in texts for word in encoder.unknown(text))]
            if unknown:
                more = f" and {len(unknown) - NAMED} more words" if len(unknown) > NAMED else ""
                say(
                    f"warning: this small model does not know {', '.join(unknown[:NAMED])}{more}; it knows "
                    f"{' '.join(encoder.words)}. For all else there is Stable Diffusion: "
                    "python scripts/txt2img.py --config freeu_sd21.yaml --prompt ..."
                )
        if self.freeu:
            for line in self.unet.freeu.outside_published_range():
                say(f"warning: {line}")

    def sheets(self) -> dict[int, range]:
        """Which pictures stand on each sheet; a single picture needs none where it is saved anyway."""
        arguments, total = self.arguments, len(self.jobs)
        if arguments.skip_grid:
            return {}
        shares = [range(start, min(start + SHEET, total)) for start in range(0, total, SHEET)]
        return {i: share for i, share in enumerate(shares) if arguments.skip_save or len(share) > 1}

    def missing(self, sheets: dict[int, range]) -> set[int]:
        """Which pictures have to be drawn, when these sheets have to be made."""
        arguments, total = self.arguments, len(self.jobs)
        if not self.resumed:
            return set(range(total))
        if not arguments.skip_save:
            return {k for k in range(total) if not self.is_there(k)}
        return {k for share in sheets.values() for k in share}

    def is_there(self, k: int) -> bool:
        """Whether picture k is on disk. Raises InputError where something else is in its place."""
        name = self.files.picture(k)
        path = self.outdir / name
        if name in self.manifest.known:
            return self.manifest.holds(name)
        if not path.exists():
            return False

        # A run killed between a picture and its line leaves the picture, which says what it is.
        if not self.recipe(self.jobs[k]).made(path):
            raise InputError(f"{path} is in the place of a picture of this run and is none: move it away.")
        self.write_down(k)
        return True

    def draw(self) -> None:
        """Makes every picture that is not there yet, and writes it as soon as it is done."""
        arguments, total = self.arguments, len(self.jobs)
        holds, files = self.manifest.holds, self.files
        sheets = {i: share for i, share in self.sheets().items() if not holds(files.sheet(i))}
        missing = self.missing(sheets)
        there = total - len(missing)
        print(self.unet.describe() if self.freeu else "FreeU is off")
        if self.resumed:
            print(f"{there} of {total} pictures are there already")

        sheet: list[Picture] = []
        # Bars show on a terminal only.
        with tqdm(total=total, initial=there, unit="picture", disable=None) as bar:
            for start in range(0, total, self.at_once):
                # Where one of a batch is missing all are drawn: in other company it might differ by a bit.
                batch = range(start, min(start + self.at_once, total))
                drawn: dict[int, Picture] = {}
                if not missing.isdisjoint(batch):
                    drawn = dict(zip(batch, self.pictures([self.jobs[k] for k in batch]), strict=True))
                for k in batch:
                    if k in missing:
                        self.save(k, drawn[k])
                        bar.update()
                    if share := sheets.get(k // SHEET):
                        sheet.append(drawn[k] if k in drawn else read_picture(self.outdir / files.picture(k)))
                        if len(sheet) == len(share):
                            self.save_sheet(k // SHEET, sheet)
                            sheet = []
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

    def recipe(self, job: Job) -> Recipe:
        """All that a picture depends on."""
        arguments = self.arguments
        return Recipe(
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

    def save(self, k: int, picture: Picture) -> None:
        """Writes picture k with all that it depends on."""
        if not self.arguments.skip_save:
            self.recipe(self.jobs[k]).save(self.outdir / self.files.picture(k), picture)
            self.write_down(k)

    def write_down(self, k: int) -> None:
        """Notes in the manifest that picture k is on disk."""
        self.manifest.add(self.files.picture(k), **asdict(self.jobs[k]))

    def save_sheet(self, i: int, pictures: list[Picture]) -> None:
        """Writes sheet i, which shows these pictures together."""
        arguments = self.arguments
        usual = arguments.n_samples if arguments.n_samples > 1 else math.ceil(math.sqrt(len(pictures)))
        save_png(self.outdir / self.files.sheet(i), grid(pictures, arguments.n_rows or usual))
        self.manifest.add(self.files.sheet(i))


def say(line: str) -> None:
    """To the terminal, beside the progress bars."""
    tqdm.write(line, file=sys.stderr)
