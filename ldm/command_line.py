"""What the scripts' command lines share: the model's flags, and words that argparse cannot tell apart."""

import argparse
import difflib
import re
from collections.abc import Callable
from pathlib import Path

OVERRIDE = re.compile(r"[\w-]+[.\[].*=|checkpoint=")
LIKE = 0.77  # the likeness, 0 to 1, from which a flag is taken for another one misspelt
# What other programs call what txt2img has under another name.
ELSEWHERE = {
    "--batch-count": "--n_iter",
    "--batch-size": "--n_samples",
    "--cfg": "--scale",
    "--checkpoint": "--ckpt",
    "--fp16": "--precision fp16",
    "--gpus": "--devices",
    "--guidance-scale": "--scale",
    "--half": "--precision fp16",
    "--laion400m": "--config and --ckpt",
    "--model": "--ckpt and --config",
    "--no-grid": "--skip_grid",
    "--no-half": "--precision full",
    "--num-images": "--n_samples",
    "--num-images-per-prompt": "--n_samples",
    "--num-inference-steps": "--steps",
    "--output": "--outdir",
    "--sampling-method": "--sampler",
    "--sampling-steps": "--steps",
    "--scheduler": "--sampler",
    "--weights": "--ckpt",
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with the description as it is written; numbers and paths are named by what they are."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        names: dict[object, str] = {int: "N", float: "X", Path: "PATH"}
        return names.get(action.type) or super()._get_default_metavar_for_optional(action)


def add_model_flags(add: Callable[..., object]) -> None:
    """The flags of a model, to a parser or a group of its arguments by its `add_argument`."""
    add("--config", default="freeu_tiny.yaml", help="a file, here or in configs/ (default: embedded model)")
    add("--ckpt", help="weights, .safetensors or .ckpt, here or in checkpoints/ (default: the config's)")
    add("--download", action="store_true", help="fetch the config's checkpoint if it is not there")
    add("--trust-config", action="store_true", help="run code of other packages that the config names")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", choices=("auto", "full", "autocast", "fp16", "bf16"), default="auto",
        help="auto and autocast: what the device does fast and safely; full: float32")  # fmt: skip


def in_either_spelling(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words, with flags as the parser has them: given with - for _ or the reverse, whole or cut short.

    Ends the program, as argparse does, on a flag that is nearly one of these, or one of another program.
    """
    names = {name.replace("_", "-"): name for name in parser._option_string_actions}
    hints = names | ELSEWHERE
    words: list[str] = []
    for i, word in enumerate(argv):
        if word == "--":
            return words + argv[i:]
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            hyphened = flag.replace("_", "-")
            meant = next((names[name] for name in names if name.startswith(hyphened)), None)
            if meant is None and (near := difflib.get_close_matches(hyphened, hints, n=1, cutoff=LIKE)):
                parser.error(f"there is no {flag}: {hints[near[0]]} may be meant")
            flag = flag if meant is None else meant[: len(flag)]
        words.append(flag + equals + value)
    return words


def sort_out_overrides(arguments: argparse.Namespace, *lists: str) -> None:
    """Moves changes to the config from the options named in `lists` to `overrides`, where they belong.

    An option that takes several words takes those behind it too. A change to the config has a dot in its key,
    as sampling.height=256, and no setting has.
    """
    for name in lists:
        words = getattr(arguments, name) or []
        arguments.overrides = [*arguments.overrides, *(word for word in words if OVERRIDE.match(word))]
        if words:
            setattr(arguments, name, [word for word in words if not OVERRIDE.match(word)])
