"""The user study's kit: pairs of pictures without and with FreeU, a page to vote on them, and its key.

The page is made of what a voter may know, a list of `Shown`, and of nothing else: no key, seed or setting
reaches the functions that write it.
"""

import hashlib
import json
import secrets
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.random import default_rng
from tqdm import tqdm

from ldm.checkpoint import fingerprint
from ldm.config.reading import load_config
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError, warn
from ldm.files import write_text, written_whole
from ldm.generate import Sampling, check, generate
from ldm.image_io import Picture, data_uri, writable_folder
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.study.pairs import PAIRS, usual_prompts
from ldm.study.votes import KEY, SIDES, Side
from ldm.txt2img.caveats import warn_of_mix_up, warn_of_words
from ldm.txt2img.jobs import Job, check_number, read_prompts
from ldm.txt2img.prompted import load_prompted
from ldm.txt2img.request import usual_sampling

PAGE, KEY_FILE = "study.html", "key.json"
TEMPLATE: Final = Path(__file__).with_name("user_study.html")


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt from the same noise."""

    prompt: str
    seed: int
    plain: Picture
    freeu: Picture


@dataclass(frozen=True)
class Shown:
    """What a voter sees of a pair."""

    prompt: str
    left: Picture
    right: Picture


def make_study(arguments: Namespace) -> Path:
    """Draws the pairs, writes page and key into the folder `outdir`, and returns the page's path.

    Pair k takes prompt k, over again from the first where there are fewer, and the noise of `seed` + k.
    Without a `shuffle_seed` the sides are drawn by a lot that nobody can repeat without the key. Raises
    InputError, also where `outdir` holds another study's key, which its votes could not be counted without.
    """
    outdir, pairs, seed = arguments.outdir, arguments.pairs, arguments.seed
    if pairs is not None and pairs < 1:
        raise InputError(f"--pairs is {pairs}: give 1 or more.")
    for name, value in {"seed": seed, "shuffle-seed": arguments.shuffle_seed}.items():
        if value is not None and not 0 <= value < 2**62:
            raise InputError(f"--{name} is {value}: give a whole number from 0 to 2**62 - 1.")
    if (outdir / KEY_FILE).exists():
        raise InputError(f"{outdir} holds the key of another study: choose another --outdir.")
    texts = None if arguments.prompts is None else read_prompts(arguments.prompts)
    count = pairs or len(texts or range(PAIRS))
    check_number(2 * count)
    config = load_config(arguments.config)
    sampling = usual_sampling(config, steps=arguments.steps, scale=arguments.scale)

    device = pick_device(arguments.device)
    dtype = pick_dtype(device, arguments.precision)
    model = load_prompted(config, arguments.ckpt, device, dtype, arguments.download, arguments.trust_config)
    unet = model.model.diffusion_model
    if not isinstance(unet, Free_UNetModel) or not unet.hit_blocks():
        why = f" ({unet.describe()})" if isinstance(unet, Free_UNetModel) else ""
        raise InputError(
            f"{arguments.config} has no FreeU to compare with{why}: take one of the freeu_ configs."
        )
    check(sampling, model)
    warn_of_mix_up(model)
    writable_folder(outdir)

    encoder = model.cond_stage_model
    texts = texts or usual_prompts(encoder, None)
    jobs = [Job(texts[k % len(texts)], seed + k) for k in range(count)]
    warn_of_words(encoder, [job.prompt for job in jobs])
    drawn = list(tqdm(draw_pairs(model, jobs, sampling), total=count, unit="pair", disable=None))
    refuse_if_all_alike(drawn)
    settings = {
        "config": arguments.config,
        "ckpt": arguments.ckpt or config.checkpoint,
        "weights": fingerprint(model),
        "device": str(model.device),
        "precision": str(model.dtype).removeprefix("torch."),
        **asdict(sampling),
        "freeu": asdict(unet.freeu),
    }
    lot = secrets.randbits(62) if arguments.shuffle_seed is None else arguments.shuffle_seed
    return write_study(outdir, drawn, lot, settings)


def refuse_if_all_alike(pairs: Sequence[Pair]) -> None:
    """Raises InputError where FreeU changes no picture, and warns where it leaves some alike."""
    alike = sum(np.array_equal(pair.plain, pair.freeu) for pair in pairs)
    if alike == len(pairs):
        raise InputError(
            "FreeU changes no picture here, so there is nothing to vote on: see the config's start, stop and "
            "strength, and take more --steps."
        )
    if alike:
        warn(f"in {alike} of {len(pairs)} pairs FreeU changes nothing: voters cannot tell these apart")


def draw_pairs(model: LatentDiffusion, jobs: Sequence[Job], sampling: Sampling) -> Iterator[Pair]:
    """A pair for each job: FreeU off, then on."""
    unet: Any = model.model.diffusion_model
    on = unet.freeu
    for job in jobs:
        pictures = []
        for settings in (on.off(), on):
            with unet.under(settings):
                pictures += generate(model, [job.prompt], [job.seed], sampling)
        yield Pair(job.prompt, job.seed, *pictures)


def freeu_sides(count: int, shuffle_seed: int) -> list[Side]:
    """The side of FreeU's picture in each pair, by lot.

    Left and right come equally often, or one of them by lot once more, so that a voter's liking for a side
    favours nobody.
    """
    rng = default_rng(shuffle_seed)
    return [SIDES[i] for i in rng.permutation((np.arange(count) + rng.integers(2)) % 2)]


def blinded(pair: Pair, freeu: Side) -> Shown:
    """The pair with FreeU's picture on that side."""
    if freeu == "left":
        return Shown(pair.prompt, pair.freeu, pair.plain)
    return Shown(pair.prompt, pair.plain, pair.freeu)


def page_data(shown: Sequence[Shown]) -> dict[str, Any]:
    """All that the page knows. The study's name is a digest of what is shown, so it gives nothing away."""
    pairs = [{"prompt": it.prompt, "left": data_uri(it.left), "right": data_uri(it.right)} for it in shown]
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    height, width = shown[0].left.shape[:2]
    return {"study": digest[:16], "width": width, "height": height, "pairs": pairs}


def page(data: dict[str, Any]) -> str:
    """The voting page as one HTML file, with the data in its block of JSON."""
    block = json.dumps(data).replace("<", "\\u003c")  # so that no prompt can end the block
    return TEMPLATE.read_text(encoding="utf-8").replace("{{study}}", block, 1)


def write_study(folder: Path, pairs: Sequence[Pair], shuffle_seed: int, settings: dict[str, Any]) -> Path:
    """Writes page and key, both or neither, and returns the page's path. Raises InputError."""
    sides = freeu_sides(len(pairs), shuffle_seed)
    data = page_data([blinded(pair, side) for pair, side in zip(pairs, sides, strict=True)])
    key = {
        "kind": KEY,
        "study": data["study"],
        "shuffle_seed": shuffle_seed,
        "settings": settings,
        "pairs": [
            {"prompt": pair.prompt, "seed": pair.seed, "freeu": side}
            for pair, side in zip(pairs, sides, strict=True)
        ],
    }
    with written_whole(folder / KEY_FILE) as file:
        file.write((json.dumps(key, indent=1) + "\n").encode())
        file.flush()  # so that a full disk is known before the page is there
        write_text(folder / PAGE, page(data))
    return folder / PAGE
