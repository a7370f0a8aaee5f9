"""What stands in a config for more than itself: YAML's aliases, and references to other values, `${...}`.

An alias to a list of aliases, or a reference to a text of references, doubles at every level, so that thirty
lines can stand for more than any memory holds. Here the size is told before anything is written out.
"""

import re
from collections.abc import Hashable, Iterator
from typing import Any, Final

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import InputError

LARGEST: Final = 1_000_000  # characters, of a config's text and of all that it stands for
EXPLODES: Final = "its references stand for more than any config holds"
MARK: Final = "⟦reference {}⟧"  # printable, so that it stands in the text of a section as it is
MARKS: Final = re.compile(r"⟦reference (\d{1,6})⟧")

NO_SECTION: Final = re.compile(r"node `([^`]+)` is not a container")  # OmegaConf's words


def check_yaml(text: str) -> None:
    """Raises InputError where a YAML text is too large for a config, as it is or with its aliases."""
    if len(text) > LARGEST:
        raise InputError(f"it is longer than {LARGEST:,} characters")
    if "*" not in text:
        return
    sizes: dict[Hashable, int] = {}

    def size(node: yaml.Node) -> int:
        if node not in sizes:
            sizes[node] = LARGEST + 1  # while it is inside itself
            match node:
                case yaml.ScalarNode():
                    sizes[node] = 1 + len(node.value)
                case yaml.SequenceNode():
                    sizes[node] = 1 + sum(map(size, node.value))
                case _:
                    sizes[node] = 1 + sum(size(key) + size(value) for key, value in node.value)
        return sizes[node]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and size(root) > LARGEST:
        raise InputError("its aliases stand for more than any config holds")


def resolve(config: DictConfig) -> None:
    """Puts what they refer to in the place of all references. Raises InputError with the key at fault."""
    places = list(_references(config, OmegaConf.to_container(config), ""))
    for i, (part, key, *_) in enumerate(places):
        part[key] = MARK.format(i)

    # Each reference alone, with marks in the place of all others: what it says, and which others it needs.
    said: list[str] = []
    total = 0
    for i, (part, key, text, name) in enumerate(places):
        part[key] = text
        try:
            value = part[key]
            # All others being marks, a section with a reference in it is one that this reference is in.
            inside = isinstance(value, DictConfig | ListConfig) and "${" in str(value)
            said.append(MARK.format(i) if inside else str(value))
        except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as fault:
            raise InputError(f"{name}: {' '.join(_reason(config, fault).split())}") from None
        part[key] = MARK.format(i)
        total += len(said[i])
        if total > LARGEST:
            raise InputError(EXPLODES)

    _check_sizes(said, [name for *_, name in places])
    for part, key, text, _ in places:
        part[key] = text
    OmegaConf.resolve(config)


def _reason(config: DictConfig, fault: Exception) -> str:
    """Why a reference says nothing while marks stand in the place of all others."""
    why = str(fault).partition("\n    full_key:")[0]
    passed = NO_SECTION.search(why)
    if passed and MARKS.search(str(OmegaConf.select(config, passed[1]))):
        return f"its way through {passed[1]} depends on another reference: write the name out"
    if MARKS.search(why):
        return "a reference whose name depends on another one: write the name out"
    return why


def _check_sizes(said: list[str], names: list[str]) -> None:
    """Raises InputError where references stand for too much, or for themselves.

    `said` has the text of each, with marks for the others that it needs.
    """
    sizes: dict[int, float] = {}

    def size(i: int) -> float:
        if i not in sizes:
            sizes[i] = float("inf")  # while it is inside itself
            needed = [int(other) for other in MARKS.findall(said[i])]
            sizes[i] = len(said[i]) + sum(size(other) for other in needed if other < len(said))
        return sizes[i]

    for i, name in enumerate(names):
        if size(i) == float("inf"):
            raise InputError(f"{name}: Recursive interpolation, it refers to itself")
    if sum(sizes.values()) > LARGEST:
        raise InputError(EXPLODES)


def _references(part: Any, raw: Any, name: str) -> Iterator[tuple[Any, Any, str, str]]:
    """Every reference in a part of a config: what it is in, its key there, its text, and its whole name."""
    for key in raw if isinstance(part, DictConfig) else range(len(raw)):
        inner = f"{name}[{key}]" if isinstance(part, ListConfig) else f"{name}.{key}".removeprefix(".")
        if OmegaConf.is_interpolation(part, key):
            yield part, key, raw[key], inner
        elif isinstance(raw[key], dict | list):
            yield from _references(part[key], raw[key], inner)
