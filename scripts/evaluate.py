"""Whether FreeU helps a model: its settings against the plain model, on the same prompts and the same noise.

    python scripts/evaluate.py
    python scripts/evaluate.py --config freeu_sd21.yaml --settings V2 b1=1.2,b2=1.3,s1=0.9,s2=0.4,version=2

Every difference comes with a 95 % interval, at the same guidance and where both guide equally far. A table
goes to the terminal, every picture's numbers to evaluation.csv, settings and results to evaluation.json, a
few pictures to evaluation.png. What was sampled is kept in runs/, so that a run that was stopped goes on
where it was. Leading arguments change the config: sampling.height=256
"""

import argparse
import sys
from pathlib import Path


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [key=value ...] [--settings SETTING ...] [--config CONFIG] [further options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what").add_argument
    add("--settings", nargs="+", metavar="SETTING", help="of FreeU, to compare with off: V1 and V2 (the "
        "published factors), config, or values as b1=1.2,s1=0.9,version=2, the others being one "
        "(default: V1, V2 and the config's)")  # fmt: skip
    add("--prompts", metavar="FILE or N", help="a file with a prompt a line, or how many of the usual ones: "
        "captions that the small model knows (64 by default), the paper's 8 prompts for others")  # fmt: skip
    add("--held-out", action="store_true",
        help="captions of shape and colour pairs that training never showed (small model)")  # fmt: skip
    add("--seeds", type=int, default=2, metavar="N", help="pictures of each prompt (default 2)")

    add = parser.add_argument_group("measures").add_argument
    add("--metrics", nargs="+", metavar="NAME", help="energy, saturation, clipped, diversity; of the small "
        "model number, shape, colour, texture, relation, background, frechet; with weights clip, aesthetic, "
        "frechet (default: all that can be had)")  # fmt: skip
    add("--clip", type=Path, metavar="FOLDER", help="a CLIP model as transformers saves it")
    add("--aesthetic", type=Path, metavar="FILE", help="LAION's aesthetic weights, for CLIP ViT-L/14")
    add("--reference", type=Path, metavar="FOLDER",
        help="true pictures, for the Frechet distance in CLIP's embeddings")  # fmt: skip

    add = parser.add_argument_group("model").add_argument
    add("--config", default="freeu_tiny.yaml", help="a file, here or in configs/ (default: the small model)")
    add("--ckpt", help="weights, .safetensors or .ckpt, here or in checkpoints/ (default: the config's)")
    add("--download", action="store_true", help="fetch the config's checkpoint if it is not there")
    add("--trust-config", action="store_true", help="run code of other packages that the config names")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", choices=("auto", "full", "fp16", "bf16"), default="auto",
        help="auto: what the device does fast and safely; full: float32")  # fmt: skip
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")

    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=int, help="of denoising (default: the config's or 50)")
    add("--sampler", choices=("ddim", "plms", "dpm"), default="ddim")
    add("--scale", type=float, help="of guidance; 1 is none (default: the config's or 7.5)")
    add("--outdir", type=Path, default=Path("outputs/evaluation"), help="(default: %(default)s)")
    return parser.parse_intermixed_args(argv)


def run(arguments: argparse.Namespace) -> None:
    # What takes long to import comes after what answers at once.
    from ldm.study.evaluation.evaluation import Evaluation
    from ldm.study.evaluation.report import table, write

    evaluation = Evaluation(arguments)
    results, ratios = evaluation.run()
    print(table(results, ratios, evaluation.facts))
    files = write(evaluation, results, ratios)
    print(f"Every number and a few pictures are in {', '.join(map(str, files))}")


def main(argv: list[str]) -> int:
    from ldm.errors import exit_code

    return exit_code(lambda: run(parse_arguments(argv)), "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
