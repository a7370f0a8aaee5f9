"""Pictures from prompts, with FreeU.

    python scripts/txt2img.py --prompt "a small blue star above a large red ring"
    python scripts/txt2img.py --config freeu_sd21.yaml --prompt "a squirrel eating a burger" --compare

Trailing arguments change the config: model.params.unet_config.params.threshold=2
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from ldm.command_line import Help, add_model_flags, in_either_spelling, sort_out_overrides
from ldm.errors import InputError, exit_code, stop_when_asked
from ldm.memory import lasting
from ldm.txt2img.freeu_flags import add_freeu_flags, make_config


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--prompt PROMPT] [--config CONFIG] [further options] [key=value ...]",
        description=__doc__,
        formatter_class=Help,
    )
    group = parser.add_argument_group("what")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    either("--prompt", help="what to draw (default: the config's)")
    either("--from-file", type=Path, help="a file with a prompt per line")
    add("--negative-prompt", default="", help="what to avoid")
    add("--from-image", type=Path, help="repeat a PNG of this script; other flags change it")
    add("--seed", type=int, default=42, help="of the first picture; each next adds 1 (default 42)")
    add("--n_samples", type=int, default=1, help="pictures of --prompt; a GPU makes so many at once, "
        "also of --from-file (default 1)")  # fmt: skip
    add("--n_iter", type=int, default=1, help="passes over the prompts")
    add("--repeat", type=int, default=1, help="repeats of each line of --from-file")
    add("--grid", nargs="+", metavar="SETTING", help="a labelled sheet over one to three settings: "
        "b1=1.0:1.4:5 s1=0.2,0.6,1.0 (FreeU's, seed, steps, scale, sampler, eta)")  # fmt: skip
    add("--yes", action="store_true", help="draw a --grid of more than 400 pictures")
    add("--fixed_code", action="store_true", help="start every batch from the same noise")

    add = parser.add_argument_group("model").add_argument
    add_model_flags(add)
    add("--devices", type=int, default=1, help="GPUs of this machine to share the pictures among (default 1)")
    add("--compile", action="store_true", help="compile the U-Net's blocks, for GPUs: the first picture "
        "takes a minute longer, later runs some seconds")  # fmt: skip
    add("--bf16", action="store_true", help="overrides --precision with bf16")
    add("--C", type=int, dest="latent_channels", help="latent channels; must match the model")
    add("--f", type=int, dest="downsampling", help="downsampling factor; must match the model")
    add("--torchscript", "--ipex", action="store_true", help="accepted without effect")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")

    group = parser.add_argument_group("sampling")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    add("--steps", "--ddim_steps", type=int, help="denoising steps (default: config's or 50)")
    either("--sampler", type=str.lower, choices=("ddim", "plms", "dpm"), default="ddim")
    either("--plms", action="store_const", const="plms", dest="sampler", help="--sampler plms")
    either("--dpm", "--dpm_solver", action="store_const", const="dpm", dest="sampler", help="--sampler dpm")
    add("--ddim_eta", type=float, default=0.0, dest="eta", help="0 is deterministic DDIM, 1 is DDPM")
    add("--scale", type=float, help="guidance scale; 1 is off, twice as fast (default: config's or 7.5)")
    add("--H", "--height", type=int, dest="height", help="in pixels (default: the config's or 512)")
    add("--W", "--width", type=int, dest="width", help="in pixels (default: the config's or 512)")

    add_freeu_flags(parser)

    add = parser.add_argument_group("output").add_argument
    add("--outdir", type=Path, default=Path("outputs/txt2img-samples"), help="(default: %(default)s)")
    add("--skip_grid", action="store_true", help="no sheet of all pictures")
    add("--skip_save", action="store_true", help="no single pictures")
    add("--resume", action="store_true", help="finish an interrupted run of the same command")
    add("--n_rows", type=int, default=0, help="pictures in a row of the sheet (default: n_samples)")
    add("--print-config", action="store_true", help="print the full config as YAML and exit")
    return parser


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The arguments; under what is written out lie the settings of a picture given by --from-image."""
    parser = make_parser()
    argv = in_either_spelling(argv, parser)
    arguments = parser.parse_intermixed_args(argv)
    sort_out_overrides(arguments, "grid")
    recorded, written = None, arguments.overrides
    if arguments.from_image is not None:
        from ldm.config.reading import find_config
        from ldm.txt2img.gallery import read_layout
        from ldm.txt2img.grid_sheets import read_grid
        from ldm.txt2img.recipe import read_recipe

        path = arguments.from_image
        recipe = dict(vars(read_recipe(path)), grid=read_grid(path))
        if not (arguments.grid or arguments.from_file):
            recipe |= read_layout(path)
        if arguments.from_file or arguments.compare or (arguments.n_samples, arguments.n_iter) != (1, 1):
            recipe["grid"] = None  # which none of these goes together with
        recorded, under = recipe.pop("freeu"), recipe.pop("overrides")
        if arguments.grid or arguments.no_freeu:
            recipe["compare"] = False  # which neither goes together with
        parser.set_defaults(**recipe)
        arguments = parser.parse_intermixed_args(argv)
        sort_out_overrides(arguments, "grid")
        arguments.overrides = under + written
        if arguments.config == recipe["config"]:
            try:
                find_config(arguments.config)
            except InputError as fault:
                raise InputError(f"{path} names a config, and --config takes another. {fault}") from None

    arguments.recorded, arguments.written = recorded, written
    if arguments.bf16:
        arguments.precision = "bf16"
    return arguments


def run(arguments: argparse.Namespace) -> None:
    # What takes long to import comes after what answers at once.
    from omegaconf import OmegaConf

    from ldm.weights.cast_ahead import cast_ahead
    from ldm.weights.read_ahead import read_ahead

    config = make_config(arguments)
    if arguments.print_config:
        print(OmegaConf.to_yaml(config), end="")
        return

    checkpoint = arguments.ckpt or config.get("checkpoint")
    if arguments.devices == 1:
        cast_ahead(checkpoint, arguments.device, arguments.precision)
    read_ahead(checkpoint)
    with lasting():
        from ldm.txt2img.processes import in_processes
        from ldm.txt2img.run import draw

    in_processes(partial(draw, arguments, config), arguments.devices, arguments.device)


def main(argv: list[str]) -> int:
    return exit_code(
        lambda: run(parse_arguments(argv)), "stopped; every finished picture is kept, --resume makes the rest"
    )


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
