"""The paper's figures, from any model this project loads, with its claims checked.

    python scripts/figures.py --all
    python scripts/figures.py --figure 3 4 7 --config freeu_sd21.yaml

Each figure becomes a PNG and a PDF, with its numbers as CSV and its settings and checks as JSON; figures.html
shows all of them. What was sampled is kept in runs/, so that a run that was stopped goes on where it was.
Trailing arguments change the config: sampling.height=256
"""

import argparse
import sys
from pathlib import Path

from ldm.command_line import Help, add_model_flags, sort_out_overrides
from ldm.errors import exit_code, needing, stop_when_asked


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s (--all | --figure N ...) [further options] [key=value ...]",
        description=__doc__,
        formatter_class=Help,
    )
    add = parser.add_argument
    add("--all", action="store_true", help="every figure there is")
    add("--figure", nargs="+", default=[], metavar="N", help="by their numbers in the paper (CVPR)")
    add_model_flags(add)
    add("--prompts", metavar="FILE or N", help="a file with a prompt per line, or how many of the "
        "defaults: captions for the embedded model, the paper's prompts for other models")  # fmt: skip
    add("--seeds", type=int, help="seeds per prompt (default: fewest for 16 pairs)")
    add("--steps", type=int, help="denoising steps, DDIM (default: config's or 50)")
    add("--outdir", type=Path, default=Path("outputs/figures"), help="(default: %(default)s)")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    arguments = parser.parse_intermixed_args(argv)
    sort_out_overrides(arguments, "figure")
    if arguments.all == bool(arguments.figure):
        parser.error("give --all, or --figure with one or more numbers")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    # What takes long to import comes after what answers at once.
    with needing(["matplotlib"], 'Figures are drawn with matplotlib: pip install -e ".[figures]"'):
        from ldm.study.figures import FIGURES, find_figures
    figures = list(FIGURES.values()) if arguments.all else find_figures(arguments.figure)

    from ldm.study.figures.study import Study

    print(Study(figures, arguments).draw(), end="")
    print(f"{arguments.outdir / 'figures.html'} shows the figures")


def main(argv: list[str]) -> int:
    return exit_code(lambda: run(parse_arguments(argv)), "stopped; the same command goes on from here")


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
