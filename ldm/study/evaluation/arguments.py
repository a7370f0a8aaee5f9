"""The words on the command line that evaluate.py and search.py share."""

import argparse
from pathlib import Path

from ldm.command_line import add_model_flags


def add_measures(parser: argparse.ArgumentParser, usual: str) -> None:
    """Which measures are taken, `usual` being the default, and the weights that some of them need."""
    add = parser.add_argument_group("measures").add_argument
    add("--metrics", nargs="+", metavar="NAME", help="energy, saturation, clipped, diversity; embedded "
        "model: number, shape, colour, texture, relation, background, alignment (these six together), "
        f"frechet; with weights: clip, aesthetic, frechet, fid (default: {usual})")  # fmt: skip
    add("--clip", type=Path, metavar="FOLDER", help="a CLIP model as transformers saves it")
    add("--aesthetic", type=Path, metavar="FILE", help="LAION's aesthetic weights, for CLIP ViT-L/14")
    add("--inception", type=Path, metavar="FILE", help="the Inception weights of FID, torch-fidelity's")
    add("--reference", type=Path, metavar="FOLDER",
        help="true pictures, for FID and for the Frechet distance in CLIP's embeddings")  # fmt: skip


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model is measured."""
    add = parser.add_argument_group("model").add_argument
    add_model_flags(add)
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")


def add_sampling(parser: argparse.ArgumentParser, folder: str) -> None:
    """How pictures are made, and where they go."""
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=int, help="denoising steps (default: config's or 50)")
    add("--sampler", choices=("ddim", "plms", "dpm"), default="ddim")
    add("--scale", type=float, help="guidance scale; 1 is off (default: config's or 7.5)")
    add("--outdir", type=Path, default=Path(folder), help="(default: %(default)s)")
