"""What a run of txt2img is asked for, checked before any model is read."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ldm.config.annotations import fits
from ldm.config.freeu import FREE_UNET, FREEU, unet_section
from ldm.device import DTYPES
from ldm.errors import InputError
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.txt2img.jobs import Job, check_number, plan, read_prompts
from ldm.txt2img.settings_grid import Axis, Cell, grid_jobs, parse_grid

DEFAULT_PROMPT = "a professional photograph of an astronaut riding a horse"
SIZES = {name: get_type_hints(Sampling)[name] for name in ("height", "width", "steps", "scale")}
KINDS = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Request:
    """The pictures to make, and how to sample them."""

    sampling: Sampling
    jobs: list[Job]
    axes: list[Axis]  # of a grid; without them jobs have no settings of their own
    texts: list[str]  # each that the text encoder has to read


def usual_settings(config: DictConfig) -> dict[str, Any]:
    """The `sampling:` section of a config: height, width, steps, scale and prompt. Raises InputError."""
    whole: Any = OmegaConf.to_container(config)
    usual = whole.get("sampling") or {}
    hints = SIZES | {"prompt": str}
    if not isinstance(usual, dict):
        raise InputError(f"The config's sampling section is {usual!r}; it may hold {', '.join(hints)}.")
    for name, value in usual.items():
        if name not in hints:
            raise InputError(f"The config's sampling section has {name!r}; it may hold {', '.join(hints)}.")
        if value == "???" or not fits(value, hints[name]):  # the former is what OmegaConf has left open
            raise InputError(f"The config's sampling.{name} is {value!r}: give {KINDS[hints[name]]}.")
    return usual


def usual_sampling(config: DictConfig, **given: Any) -> Sampling:
    """How a config's pictures are sampled, but for what is given and not None. Raises InputError."""
    usual = usual_settings(config)
    usual.pop("prompt", None)
    return Sampling(**usual | {name: value for name, value in given.items() if value is not None})


def freeu_of(config: DictConfig) -> FreeUSettings | None:
    """FreeU as a config has it. Raises InputError for values that mean nothing."""
    unet = unet_section(config)
    if unet.get("target") != FREE_UNET:
        return None
    params: Any = OmegaConf.to_container(unet.params)
    try:
        return FreeUSettings(**{name: params[name] for name in FREEU if params.get(name) is not None})
    except (TypeError, ValueError) as fault:
        raise InputError(f"The config's FreeU cannot be read: {fault}") from None


def check_arguments(arguments: Namespace) -> None:
    """Raises InputError where arguments of txt2img are out of their range or do not fit each other."""
    for name, least in {"n_samples": 1, "n_iter": 1, "repeat": 1, "n_rows": 0}.items():
        if getattr(arguments, name) < least:
            raise InputError(f"--{name} is {getattr(arguments, name)}: give {least} or more.")
    if arguments.repeat > 1 and arguments.from_file is None:
        raise InputError(
            f"--repeat is {arguments.repeat}, but there is no --from-file whose lines it repeats: "
            "give --n_samples for several pictures of a prompt."
        )
    if not 0 <= arguments.seed < 2**63:
        raise InputError(f"--seed is {arguments.seed}: give a whole number from 0 to 2**63 - 1.")
    if arguments.precision not in (*DTYPES, "auto", "autocast"):
        raise InputError(f"--precision is {arguments.precision!r}: give auto, {', '.join(DTYPES)}.")


def read_request(arguments: Namespace, config: DictConfig) -> Request:
    """What txt2img's parsed arguments and a config ask for. Raises InputError."""
    check_arguments(arguments)
    # What is not asked for comes from the config, then from what Stable Diffusion usually takes.
    given = {name: getattr(arguments, name) for name in (*SIZES, "sampler", "eta")}
    sampling = usual_sampling(config, **given)
    if arguments.from_file is None:
        default = usual_settings(config).get("prompt", DEFAULT_PROMPT)
        lines = [default if arguments.prompt is None else arguments.prompt]
        times = arguments.n_samples
    else:
        lines, times = read_prompts(arguments.from_file), arguments.repeat
    number = len(lines) * times * arguments.n_iter
    check_number(number)
    if arguments.seed + number > 2**63:
        raise InputError(
            f"--seed is {arguments.seed}: give one from which {number} pictures find seeds below 2**63."
        )
    prompts = [line for line in lines for _ in range(times)]
    texts = list(dict.fromkeys([*prompts, arguments.negative_prompt]))
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"The prompt {text!r} is not valid Unicode: give it in UTF-8.") from None
    if arguments.grid:
        return Request(
            sampling, *grid_of(arguments, prompts, Cell(arguments.seed, sampling, freeu_of(config))), texts
        )
    jobs = plan(prompts, arguments.n_iter, arguments.n_samples, arguments.seed, arguments.fixed_code)
    return Request(sampling, jobs, [], texts)


def check_latents(arguments: Namespace, model: LatentDiffusion) -> None:
    """Raises InputError where --C or --f, by which the original script sizes latents, are not the model's."""
    channels, f = model.channels, model.first_stage_model.downsampling
    if arguments.latent_channels not in (None, channels):
        given = f"--C is {arguments.latent_channels}"
        raise InputError(f"{given}, but the model's latents have {channels} channels: leave it out.")
    if arguments.downsampling not in (None, f):
        given = f"--f is {arguments.downsampling}"
        raise InputError(f"{given}, but a latent of the model stands for {f} pixels a side: leave it out.")


def grid_of(arguments: Namespace, prompts: list[str], plain: Cell) -> tuple[list[Job], list[Axis]]:
    """The pictures of a grid over `plain` settings, and its axes. Raises InputError."""
    for name, usual in {"from_file": None, "n_samples": 1, "n_iter": 1, "compare": False}.items():
        if getattr(arguments, name) != usual:
            flag = name.replace("from_file", "from-file")
            raise InputError(
                f"--grid draws one picture of one prompt in each cell: leave out --{flag}. Seeds can be one "
                "of its settings, as seed=1,2,3, and FreeU off is strength=0."
            )
    axes = parse_grid(arguments.grid, arguments.yes)
    return [*grid_jobs(axes, prompts[0], plain)], axes
