"""FreeU on the command line: its flags, and what they make of a config. Imports no torch."""

import argparse
import re
from typing import TYPE_CHECKING

from ldm.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

SETTING = re.compile(r"model\.params\.unet_config\.params\.(\w+)")


def add_freeu_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("FreeU (default: the config's)").add_argument
    add("--b1", type=float, help="factor of the backbone at the first stage (1280 channels in SD)")
    add("--b2", type=float, help="factor of the backbone at the second stage (640 channels)")
    add("--s1", type=float, help="factor of the skip's low frequencies at the first stage")
    add("--s2", type=float, help="factor of the skip's low frequencies at the second stage")
    add("--freeu-version", type=int, choices=(1, 2), dest="version", help="2: structure-related factor")
    add("--strength", type=float, help="moves all factors from one, at 0, to their values, at 1")
    add("--start", type=float, help="where in the denoising run FreeU begins to act, 0 to 1")
    add("--stop", type=float, help="where FreeU ends")
    add("--ramp", type=float, help="over how much of the run it fades in and out")
    add("--threshold", type=int, help="half-width of the skip filter's window of frequencies")
    add("--channels", type=fraction_or_name, help="b scales: first, second, alternate, all, or a fraction")
    add("--match", help="stages by channels (as the paper) or by resolution (as diffusers)")
    add("--stage", nargs=3, type=float, action="append", dest="stages", metavar=("WIDTH", "B", "S"),
        help="b and s of any stage: 320 1.1 0.9")  # fmt: skip
    add("--no-freeu", action="store_true", help="the plain model")
    add("--compare", action="store_true", help="FreeU off and on from the same noise, in one picture")


def fraction_or_name(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text


def make_config(arguments: argparse.Namespace) -> "DictConfig":
    """The config that parsed arguments ask for. Raises InputError.

    FreeU as a picture records it (`recorded`) lies under what the command line itself overrides (`written`),
    and both under FreeU's flags. A plain picture stays one where neither of these two sets anything of FreeU.
    """
    from ldm.config.freeu import FREEU, remove_freeu, set_freeu
    from ldm.config.reading import load_config, resolved

    if arguments.compare and arguments.no_freeu:
        raise InputError("--compare draws without FreeU too: leave out --no-freeu.")
    config = load_config(arguments.config, arguments.overrides)
    factors = {name: value for name in FREEU if (value := getattr(arguments, name)) is not None}
    if arguments.stages:
        for width, *_ in arguments.stages:
            if not width.is_integer():
                raise InputError(f"--stage {width:g}: its width is a whole number of channels, such as 320.")
        factors["stages"] = {int(width): [b, s] for width, b, s in arguments.stages}
    was_plain = arguments.from_image is not None and not arguments.recorded
    overridden = any((key := SETTING.match(it)) and key[1] in FREEU for it in arguments.written)
    if arguments.no_freeu or (was_plain and not (factors or overridden)):
        remove_freeu(config)
    else:
        if arguments.recorded:
            if "${" in str(arguments.recorded):
                raise InputError(
                    f"The settings in {arguments.from_image} are damaged: freeu holds a reference, "
                    f"{arguments.recorded!r:.99}."
                )
            set_freeu(config, arguments.recorded)
            config = resolved(config, arguments.written)
        if factors:
            set_freeu(config, factors)
    if any(word.partition("=")[0] in FREEU for word in arguments.grid or []):
        set_freeu(config, {})  # so that a plain U-Net takes what the grid's cells have
    return config
