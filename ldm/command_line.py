"""Words on the command line that argparse cannot tell apart."""

import argparse
import re

OVERRIDE = re.compile(r"[\w-]+[.\[].*=|checkpoint=")


def in_either_spelling(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words, with flags as the parser has them: given with - for _ or the reverse, whole or cut short."""
    names = {name.replace("_", "-"): name for name in parser._option_string_actions}
    words: list[str] = []
    for i, word in enumerate(argv):
        if word == "--":
            return words + argv[i:]
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            hyphened = flag.replace("_", "-")
            meant = next((names[name] for name in names if name.startswith(hyphened)), flag)
            flag = meant[: len(flag)]
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
