"""Words on the command line that argparse cannot tell apart."""

import argparse
import re

OVERRIDE = re.compile(r"[\w-]+[.\[].*=|checkpoint=")


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
