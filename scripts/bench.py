"""What FreeU and the networks under it cost, beside the other implementations that are installed.

    python scripts/bench.py --quick
    python scripts/bench.py --subject filters step decode --rounds 7 --json bench.json

Ratios are taken within a round, in which all take turns. On a GPU, times are those between events in its
stream.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ldm.command_line import Help
from ldm.errors import InputError, exit_code, needing, stop_when_asked

if TYPE_CHECKING:
    from ldm.study.bench.rounds import Row

SUBJECTS = ("filters", "freeu", "step", "decode", "picture", "start", "growth")
USUAL, QUICK = SUBJECTS[:5], ("filters", "step")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--quick | --subject SUBJECT ...] [further options]",
        description=__doc__,
        formatter_class=Help,
    )
    add = parser.add_argument
    add("--subject", nargs="+", choices=SUBJECTS, metavar="SUBJECT",
        help="filters alone, freeu on against off, a U-Net's step, decode, the embedded model's picture, the "
        "start on Stable Diffusion's weights, growth with size (default: the first five)")  # fmt: skip
    add("--rounds", type=int, help="of each subject (default: 5; with --quick, 2)")
    add("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), metavar="DTYPE",
        help="float32, bfloat16, float16 (default: first two; --quick: the device's)")  # fmt: skip
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--compile", action="store_true", help="compiled networks too, which takes minutes")
    add("--files", type=Path, help="keeps the start's weights, 9 GB (default: deleted)")
    add("--quick", action="store_true", help="in a minute: the filters, and a step on small latents")
    add("--plot", type=Path, metavar="FILE", help="draws the growth to a PNG or a PDF")
    add("--json", type=Path, metavar="FILE", help="saves machine and every round")
    return parser


def rows_of(arguments: argparse.Namespace) -> Iterator["Row"]:
    import torch

    from ldm.device import pick_device, pick_dtype
    from ldm.study.bench import filters, networks, start

    device, rounds, side = pick_device(arguments.device), arguments.rounds, 32 if arguments.quick else 64
    usual = [pick_dtype(device)] if arguments.quick else [torch.float32, torch.bfloat16]
    if "start" in arguments.subject and device.type != "cpu":
        raise InputError("--subject start is measured on a CPU alone: give --device cpu.")
    kinds = [getattr(torch, name) for name in arguments.dtype or ()] or usual
    for subject in arguments.subject:
        if subject == "picture":
            with TemporaryDirectory() as folder:
                yield from start.embedded_picture(Path(folder), rounds, arguments.device)
            continue
        if subject == "start":
            with TemporaryDirectory() as folder:
                for dtype in kinds:  # on the same weights
                    yield from start.cold_start(dtype, arguments.files or Path(folder), rounds)
            continue
        for dtype in kinds:
            match subject:
                case "filters":
                    yield from filters.measure(dtype, device, 4 * rounds)
                case "freeu":
                    yield from networks.overhead(dtype, device, rounds)
                case "step":
                    yield from networks.step(dtype, device, rounds, side, compiled=arguments.compile)
                case "decode":
                    yield from networks.decode(dtype, device, rounds)
                case "growth":
                    growth = import_growth()
                    yield from growth.steps(dtype, device, rounds)
                    yield from growth.decodes(dtype, device, rounds)


def import_growth() -> ModuleType:
    """The growth's module. Raises InputError where matplotlib is not there."""
    with needing(["matplotlib"], 'The growth is drawn with matplotlib: pip install -e ".[figures]"'):
        from ldm.study.bench import growth
    return growth


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what would else be found out after all the rounds."""
    from ldm.image_io import writable_folder

    if arguments.rounds < 1:
        raise InputError(f"--rounds is {arguments.rounds}: give a whole number from 1 up.")
    if "growth" in arguments.subject:
        import_growth()
    elif arguments.plot:
        raise InputError("--plot draws the growth: add --subject growth.")
    if arguments.plot and arguments.plot.suffix.lower() not in (".png", ".pdf"):
        raise InputError(f"--plot is {arguments.plot}: give a name that ends in .png or .pdf.")
    if arguments.files:
        writable_folder(arguments.files)
    for path in filter(None, (arguments.plot, arguments.json)):
        writable_folder(path.parent)
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file.")


def run(arguments: argparse.Namespace) -> None:
    from ldm.device import pick_device
    from ldm.study.bench.rounds import machine

    if arguments.quick and arguments.subject:
        raise InputError("--quick measures the filters and a step: leave out --subject or --quick.")
    arguments.subject = arguments.subject or (QUICK if arguments.quick else USUAL)
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 5
    check(arguments)
    facts = machine(pick_device(arguments.device))
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    found: list[Row] = []
    for row in rows_of(arguments):
        found.append(row)
        save(arguments.json, facts, found)  # at once, as what comes next may fail or be stopped
        what, dtype, contender, ms, middle, low, high = row.cells()
        peak = "" if row.peak is None else f", peak {row.peak / 1e9:.2f} GB"
        print(
            f"{what:32} {dtype:9} {contender:25} "
            f"{ms:10.1f} ms {middle:7.2f} times ({low:.2f} to {high:.2f}){peak}"
        )
    if arguments.plot:
        growth = import_growth()
        growth.draw([row for row in found if row.what.startswith(growth.WHATS)], arguments.plot)
    save(arguments.json, facts, found)  # of no row too


def save(path: Path | None, facts: dict[str, Any], found: list["Row"]) -> None:
    """Writes the machine and what is measured of it as JSON, where a path was given. Raises InputError."""
    from ldm.files import write_text

    if path is not None:
        write_text(path, json.dumps({"machine": facts, "rows": [vars(row) for row in found]}, indent=1))


def main(argv: list[str]) -> int:
    return exit_code(lambda: run(make_parser().parse_args(argv)), "stopped")


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
