"""FreeU's factors for a model: trials on the same prompts and noise, by Optuna, and a check of the best.

    python scripts/search.py
    python scripts/search.py --space b1 b2 s1 s2 stop=0.4:1 --metrics alignment frechet
    python scripts/search.py --config freeu_sd21.yaml --clip clip-vit-large-patch14 --prompts prompts.txt

The first trials are FreeU off and the published factors. The best is checked on prompts and noise that the
search did not see: found.yaml is a preset for --config, and says whether it beats FreeU off beyond the noise.
search.png shows what was tried. Stopped, the same command goes on where it was; several of them, on several
machines, share the work through one --storage. Trailing arguments change the config: sampling.height=256
"""

import argparse
import shlex
import sys
from pathlib import Path, PurePath

from ldm.command_line import Help, sort_out_overrides
from ldm.errors import exit_code, needing, stop_when_asked


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    from ldm.study.evaluation.arguments import add_measures, add_model, add_sampling

    parser = argparse.ArgumentParser(
        usage="%(prog)s [--space SETTING ...] [--config CONFIG] [further options] [key=value ...]",
        description=__doc__,
        formatter_class=Help,
    )
    add = parser.add_argument_group("what").add_argument
    add("--space", nargs="+", metavar="SETTING", help="what is searched, as b1=1:1.4, version=1,2 or stop; "
        "the rest is as in the config (default: b1 b2 s1 s2)")  # fmt: skip
    add("--trials", type=int, default=40, help="trials over all processes (default 40)")
    add("--pictures", type=int, help="most pictures, the check included")
    add("--prompts", metavar="FILE or N", help="a file with a prompt per line, or how many of the "
        "defaults: 32 captions for the embedded model, the paper's 8 prompts for other models")  # fmt: skip
    add("--fresh-prompts", metavar="FILE or N", help="for the check (default: 96 captions, or every second "
        "one of --prompts)")  # fmt: skip
    add("--seeds", type=int, default=1, help="pictures of each prompt (default 1)")
    add("--search-steps", type=int, help="denoising steps, trials (default: half of --steps)")
    add("--storage", type=Path, metavar="FILE", help="an SQLite database, or for several machines a journal "
        "that ends in .log (default: search.db in --outdir)")  # fmt: skip
    add("--seed", type=int, default=0, help="of what is tried (default 0)")
    add_measures(parser, "alignment for the embedded model, clip for others; NAME:higher or NAME:lower tells "
        "which way is better")  # fmt: skip
    add_model(parser)
    add_sampling(parser, "outputs/search")
    arguments = parser.parse_intermixed_args(argv)
    sort_out_overrides(arguments, "space", "metrics")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    # What takes long to import comes after what answers at once.
    with needing(("optuna", "matplotlib"), 'Searches are made with Optuna: pip install -e ".[search]"'):
        from ldm.study.search.report import as_text, write
        from ldm.study.search.search import Search

    search = Search(arguments)
    outcome = search.run()
    print(as_text(search, outcome))
    preset, *others = write(search, outcome)
    print(f"\n{preset} is the preset; {', '.join(path.name for path in others)} beside it tell the rest")
    print("At matched guidance too, on prompts and noise that the search did not see:")
    print(advised(arguments, preset))


def advised(arguments: argparse.Namespace, preset: Path) -> str:
    """The command that evaluates a preset, with what the search was told and configs have no place for."""
    from ldm.study.search.report import RECORD

    words: list[str | PurePath] = ["--config", preset, "--unseen-by", preset.with_name(RECORD)]
    for name in ("sampler", "device", "precision", "clip", "aesthetic", "inception", "reference"):
        if (value := getattr(arguments, name)) not in (None, "auto"):
            words += [f"--{name}", value]
    words += ["--trust-config"] * arguments.trust_config
    prompts = arguments.fresh_prompts or arguments.prompts
    if prompts is not None and not prompts.isdecimal():
        words += ["--prompts", Path(prompts)]
    # With slashes, as quotes around what has none mean nothing to the older of Windows' shells.
    command = [word.as_posix() if isinstance(word, PurePath) else word for word in words]
    return f"python scripts/evaluate.py {shlex.join(command)}"


def main(argv: list[str]) -> int:
    return exit_code(lambda: run(parse_arguments(argv)), "stopped; the same command goes on from here")


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
