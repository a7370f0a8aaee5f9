"""The paper's user study on any model: a blinded page to vote on, and the count of the votes.

    python scripts/user_study.py make
    python scripts/user_study.py tally outputs/user-study/key.json votes-*.json

study.html goes to the voters; it works offline and sends nothing, and at the end saves a file for the voter
to return. key.json says which pictures are FreeU's: keep it to yourself.
"""

import argparse
import sys
from pathlib import Path

from ldm.command_line import Help, add_model_flags
from ldm.errors import exit_code, stop_when_asked


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(dest="command", required=True)

    about = "pairs of pictures, plain and with FreeU from the same noise, as a page to vote on"
    add = commands.add_parser("make", help=about, description=about, formatter_class=Help).add_argument
    add_model_flags(add)
    add("--prompts", type=Path, metavar="FILE", help="a prompt per line (default: captions for the embedded "
        "model; the paper's prompts for other models)")  # fmt: skip
    add("--pairs", type=int, help="how many (default: one for each prompt in FILE, else 16)")
    add("--seed", type=int, default=42, help="of the first pair's noise; the others count on (default 42)")
    add("--shuffle-seed", type=int, help="for left or right (default: random)")
    add("--steps", type=int, help="denoising steps (default: config's or 50)")
    add("--scale", type=float, help="guidance scale; 1 is off (default: config's or 7.5)")
    add("--outdir", type=Path, default=Path("outputs/user-study"), help="(default: %(default)s)")

    about = "the share of votes for FreeU, as a table, tally.csv and tally.json"
    add = commands.add_parser("tally", help=about, description=about, formatter_class=Help).add_argument
    add("key", type=Path, metavar="KEY", help="the study's key.json")
    add("votes", type=Path, nargs="+", metavar="VOTES", help="the voters' files")
    add("--outdir", type=Path, help="(default: the key's folder)")
    return parser.parse_args(argv)


def make(arguments: argparse.Namespace) -> None:
    # What takes long to import comes after what answers at once.
    from ldm.study.user_study import KEY_FILE, make_study

    page = make_study(arguments)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB) is for the voters")
    print(f"{page.with_name(KEY_FILE)} says which pictures are FreeU's: keep it to yourself")


def tally(arguments: argparse.Namespace) -> None:
    from ldm.image_io import writable_folder
    from ldm.study.votes import read_ballots, read_key, save_tally, table
    from ldm.study.votes import tally as count

    key = read_key(arguments.key)
    rows = count(key, read_ballots(arguments.votes, key))
    files = save_tally(writable_folder(arguments.outdir or arguments.key.parent), rows)
    print(table(rows))
    print(f"\n{' and '.join(map(str, files))} hold these numbers")


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    command = make if arguments.command == "make" else tally
    return exit_code(lambda: command(arguments), "stopped; nothing was written")


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
