"""The one model of a page: what it was loaded from, what it can do, and the pairs that it draws."""

import secrets
import threading
import time
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.config.freeu import FREEU, set_freeu
from ldm.device import PRECISIONS, pick_device, pick_dtype
from ldm.errors import InputError
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, check
from ldm.image_io import Picture, save_png, writable_folder
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.modules.encoders.words import WordEmbedder
from ldm.page.pair import Drawn, Progress, draw
from ldm.page.settings import Limits, Settings, freeu_by_name
from ldm.txt2img.caveats import too_few_steps, webui_syntax
from ldm.txt2img.prompted import load_prompted
from ldm.txt2img.recipe import Recipe
from ldm.txt2img.request import DEFAULT_PROMPT, usual_settings

KEPT_PLAIN = 64 << 20  # bytes of plain pictures that are not drawn again while only FreeU changes

SIDES = ("plain", "freeu")


@dataclass(frozen=True)
class Pair:
    """A pair on disk: its settings, the files by side, and how far it came.

    The sides in `ready` were drawn before, and are whole however few the steps.
    """

    settings: Settings
    files: dict[str, Path]
    steps: int
    total: int
    seconds: float
    ready: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether it was drawn to the end."""
        return self.steps == self.total


class Studio:
    """The page's model under its config, the folder of its pictures, and its limits.

    Everything here but `pairs` and what it calls may be used from any thread; those belong to the engine's.
    """

    def __init__(self, arguments: Namespace, config: DictConfig, limits: Limits):
        self.arguments, self.limits = arguments, limits
        usual = usual_settings(config)
        self.prompt: str = usual.pop("prompt", DEFAULT_PROMPT)
        self.usual = Sampling(**usual)

        # A plain config's U-Net is made one with FreeU that begins with every factor one.
        set_freeu(config, {})
        device = pick_device(arguments.device)
        dtype = pick_dtype(device, arguments.precision)
        self.precision = PRECISIONS[dtype]
        model = load_prompted(
            config, arguments.ckpt, device, dtype, arguments.download, arguments.trust_config
        )
        self.model = model
        self.unet: Any = model.model.diffusion_model
        if not isinstance(self.unet, Free_UNetModel):
            raise InputError(f"The page shows FreeU, but the config's U-Net is {type(self.unet).__name__}.")
        self.encoder: Any = model.cond_stage_model
        self.config_freeu: FreeUSettings = self.unet.freeu
        self.multiple: int = model.first_stage_model.downsampling * self.unet.downsampling
        if limits.side < self.multiple:
            raise InputError(
                f"--max-side is {limits.side}: give {self.multiple} or more, the least that the model draws."
            )
        check(self.usual, model)
        self.folder = writable_folder(arguments.outdir)
        self._plain: OrderedDict[tuple[Any, ...], Picture] = OrderedDict()

    @property
    def name(self) -> str:
        """What the model is called on the page."""
        return Path(self.arguments.config).stem

    @property
    def words(self) -> tuple[str, ...]:
        """All words that the model knows, where it knows only a few."""
        return self.encoder.words if isinstance(self.encoder, WordEmbedder) else ()

    def defaults(self) -> Settings:
        """The settings that the page begins with: the config's, as far as the limits allow them."""
        sampling, freeu = asdict(self.usual), freeu_by_name(self.config_freeu)
        usual = Settings(self.prompt, "", seed=42, n_samples=1, **sampling, **freeu)
        return usual.clipped(self.limits, self.multiple)[0]

    def freeu(self, settings: Settings) -> FreeUSettings:
        """FreeU as it acts under these settings. Raises InputError where it does not fit the model."""
        freeu = replace(settings.freeu, stages=self.config_freeu.stages)
        self.unet.factors_of(freeu)
        return freeu

    def check(self, settings: Settings) -> None:
        """Raises InputError where the settings ask for too much or for what does not work."""
        settings.within(self.limits)
        check(settings.sampling, self.model)
        self.freeu(settings)

    def notes(self, settings: Settings) -> list[str]:
        """What of the prompts and the factors will not work as one might think, a sentence each."""
        notes = []
        for text in (settings.prompt, settings.negative_prompt):
            if self.words and (unknown := [*dict.fromkeys(self.encoder.unknown(text))]):
                more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
                notes.append(f"This model does not know: {', '.join(unknown[:8])}{more}.")
            if cut := self.encoder.truncated(text):
                notes.append(f"The text is too long for the model, which leaves out: {cut[:200]}.")
        freeu = settings.freeu
        lines = chain(
            webui_syntax([settings.prompt, settings.negative_prompt]),
            too_few_steps(self.model, [settings.sampling]),
            freeu.outside_published_range(),
            freeu.of_the_other_version(),
        )
        return notes + [f"{line}." for line in lines]

    def pairs(self, settings: Settings, stopping: threading.Event) -> Iterator[Progress | Pair]:
        """Draws every pair of the settings; each comes as soon as it is on disk. Raises InputError."""
        for one in settings.each():
            for news in self._pair(one, stopping):
                yield news if isinstance(news, Progress) else self.keep(one, news)
            if stopping.is_set():
                return

    def _pair(self, one: Settings, stopping: threading.Event) -> Iterator[Progress | Drawn]:
        freeu = self.freeu(one)
        sides = {"plain": freeu.off(), "freeu": freeu}
        key = (one.prompt, one.negative_prompt, one.seed, one.sampling)
        plain = self._plain.get(key)
        ready: dict[str, Picture] = {}
        if plain is not None:
            self._plain.move_to_end(key)
            ready, sides = {"plain": plain}, {"freeu": freeu}
        for news in draw(
            self.model, one.prompt, one.negative_prompt, one.seed, one.sampling, sides, stopping
        ):
            if isinstance(news, Progress):
                yield replace(news, previews=ready | news.previews) if news.steps == 0 else news
            else:
                drawn = replace(news, pictures=ready | news.pictures, ready=frozenset(ready))
                if drawn.steps == drawn.total:
                    self._remember(key, drawn.pictures["plain"])
                yield drawn

    def _remember(self, key: tuple[Any, ...], plain: Picture) -> None:
        self._plain[key] = plain
        while sum(picture.nbytes for picture in self._plain.values()) > KEPT_PLAIN:
            self._plain.popitem(last=False)

    def keep(self, settings: Settings, drawn: Drawn) -> Pair:
        """Writes a pair's pictures, each with all that it depends on, into a folder of its own."""
        folder = self.new_folder()
        files = {}
        for side in SIDES:
            files[side] = folder / f"{side}-{settings.seed}.png"
            recipe = self.recipe(settings, side)
            record, parameters = asdict(recipe), recipe.parameters()
            if drawn.steps < drawn.total and side not in drawn.ready:
                record["stopped_after"] = drawn.steps
                parameters += f", Stopped after: {drawn.steps} of {drawn.total}"
            save_png(files[side], drawn.pictures[side], parameters, record)
        return Pair(settings, files, drawn.steps, drawn.total, drawn.seconds, drawn.ready)

    def new_folder(self) -> Path:
        """A folder for the pictures of one piece of work, under a name that nobody can guess."""
        return writable_folder(self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}")

    def recipe(self, settings: Settings, side: str) -> Recipe:
        """What txt2img needs to draw one side of a pair again, to the bit."""
        freeu = self.freeu(settings)
        acts = side == "freeu" and self.unet.hit_blocks(freeu)
        return Recipe(
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt,
            seed=settings.seed,
            config=self.arguments.config,
            ckpt=self.arguments.ckpt,
            precision=self.precision,
            overrides=self.arguments.overrides,
            freeu={name: getattr(freeu, name) for name in FREEU} if acts else None,
            compare=False,
            **asdict(settings.sampling),
        )
