"""Whether FreeU helps a model: its settings against the plain model, on the same prompts and the same noise.

    python scripts/evaluate.py
    python scripts/evaluate.py --config freeu_sd21.yaml --settings V2 b1=1.2,b2=1.3,s1=0.9,s2=0.4,version=2

Every difference has a 95 % interval, at the same guidance scale and at a matched one. A table
goes to the terminal, every picture's numbers to evaluation.csv, settings and results to evaluation.json, a
few pictures to evaluation.png. What was sampled is kept in runs/ and guidance.json, so that a run that was
stopped goes on where it was. Trailing arguments change the config: sampling.height=256
"""

import argparse
import sys
from pathlib import Path

from ldm.command_line import Help, sort_out_overrides
from ldm.errors import exit_code, stop_when_asked


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    from ldm.study.evaluation.arguments import add_measures, add_model, add_sampling

    parser = argparse.ArgumentParser(
        usage="%(prog)s [--settings SETTING ...] [--config CONFIG] [further options] [key=value ...]",
        description=__doc__,
        formatter_class=Help,
    )
    add = parser.add_argument_group("what").add_argument
    add("--settings", nargs="+", metavar="SETTING", help="FreeU's, to compare with off: V1, V2 (published "
        "factors), config, or b1=1.2,s1=0.9,version=2, factors left out being one "
        "(default: V1, V2 and the config's)")  # fmt: skip
    add("--prompts", metavar="FILE or N", help="a file with a prompt per line, or how many of the "
        "defaults: 64 captions for the embedded model, the paper's 8 prompts for other models")  # fmt: skip
    add("--held-out", action="store_true",
        help="captions of shape and colour pairs that training never showed (embedded model)")  # fmt: skip
    add("--unseen-by", type=Path, metavar="FILE", help="the search.json of a search, whose prompts and noise "
        "are left out")  # fmt: skip
    add("--seeds", type=int, default=2, help="pictures of each prompt (default 2)")
    add_measures(parser, "all that can be had")
    add_model(parser)
    add_sampling(parser, "outputs/evaluation")
    arguments = parser.parse_intermixed_args(argv)
    sort_out_overrides(arguments, "settings", "metrics")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    # What takes long to import comes after what answers at once.
    from ldm.study.evaluation.evaluation import read_evaluation
    from ldm.study.evaluation.report import table, write

    evaluation = read_evaluation(arguments)
    results, ratios = evaluation.run()
    print(table(results, ratios, evaluation.facts))
    files = write(evaluation, results, ratios)
    print(f"Every number and a few pictures are in {', '.join(map(str, files))}")


def main(argv: list[str]) -> int:
    return exit_code(lambda: run(parse_arguments(argv)), "stopped; the same command goes on from here")


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
