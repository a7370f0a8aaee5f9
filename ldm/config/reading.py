"""Configs from YAML files, with what is written over them."""

import copy
import difflib
import io
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.config.expansion import check_yaml, resolve
from ldm.errors import InputError
from ldm.folders import CONFIGS

# What OmegaConf and YAML raise for contents that they cannot take.
FAULTS = (
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
# Names parted by dots, places in lists in brackets, and a value, which may be empty.
OVERRIDE = re.compile(r"([\w-]+)(\.[\w-]+|\[-?\d+\])*=")


def find_config(name: str | Path) -> Path:
    """The config file of that path, or of that bare name in `configs/`; ".yaml" may be left out."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if os.path.isfile(path):  # noqa: PTH113, as Path.is_file fails on names that are too long
            return path
    known = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, known, n=3)
    there = f"Near it: {', '.join(near)}" if near else f"There are: {', '.join(known)}"
    raise InputError(f"There is no config {str(name)!r}, here or in {CONFIGS}.\n{there}.")


def load_config(name: str | Path, overrides: Iterable[str] = ()) -> DictConfig:
    """The config of a YAML file over that of its `base:`, with overrides put into it, resolved.

    A `base:` is looked for beside the file that names it, then as `find_config` does. Raises InputError.
    """
    path = find_config(name)
    return resolved(read_with_base(path), overrides, source=str(path))


def resolved(config: DictConfig, overrides: Iterable[str] = (), source: str = "The config") -> DictConfig:
    """A copy of a config with overrides (`a.b=1`, `a.b[0]=1`) put into it and its interpolations resolved.

    Raises InputError that names the override at fault, and the config by its `source`.
    """
    config, overrides = copy.deepcopy(config), list(overrides)
    for override in overrides:
        key = OVERRIDE.match(override)
        if key is None:
            raise InputError(
                f"{override!r} is no override key=value. What belongs to a flag goes behind it, in quotes, "
                "as a prompt behind txt2img.py's --prompt."
            )
        if key[1] not in {*config, "checkpoint", "sampling"}:
            raise InputError(
                f"{override!r}: the config has no {key[1]!r}, only {', '.join(map(str, config))}."
            )
        try:
            check_yaml(override.partition("=")[2])
            config.merge_with_dotlist([override])
        except FAULTS as fault:
            raise InputError(f"{source} with {override} cannot be resolved: {reason(fault)}.") from None
    try:
        resolve(config)
    except FAULTS as fault:
        changed = " ".join([source, "with", *overrides] if overrides else [source])
        raise InputError(f"{changed} cannot be resolved: {reason(fault)}.") from None
    return config


def read_with_base(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file over its `base:`, not yet resolved; `above` are the files that led to it."""
    if any(path.samefile(other) for other in above):
        ring = " -> ".join(other.name for other in (*above, path))
        raise InputError(f"{path} is its own `base:` ({ring}): take one of them out.")
    try:
        text = decode(path.read_bytes())
        check_yaml(text)
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except AssertionError:  # OmegaConf's, of a number in quotes and no more
        content = None
    except (*FAULTS, OSError) as fault:
        raise InputError(f"{path} is not a YAML config: {reason(fault)}.") from None
    # OmegaConf takes a bare text for a key without a value.
    if not isinstance(content, dict) or not any(content.values()):
        raise InputError(f"{path} is not a config: it has no `model:` section and describes no U-Net.")

    base = content.pop("base", None)
    config = OmegaConf.create(content)
    if not base:
        return config
    beside = path.parent / str(base)
    try:
        below = beside if os.path.isfile(beside) else find_config(str(base))  # noqa: PTH113, as above
    except InputError as fault:
        raise InputError(f"{path} names a `base:` that is not there. {fault}") from None
    whole = read_with_base(below, (*above, path))
    try:
        whole.merge_with(config)
    except FAULTS as fault:
        raise InputError(f"{path} does not fit its base {below}: {reason(fault)}.") from None
    return whole


def decode(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 where a mark says so, as Windows writes here and there."""
    return content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


def reason(fault: Exception) -> str:
    """What is wrong, in one line: the key where OmegaConf knows it, and the message without its appendix."""
    key = getattr(fault, "full_key", None)
    message = " ".join(str(fault).partition("\n    full_key:")[0].split())
    if "cannot start any token" in message:
        message += " (YAML is indented by spaces, never by tabs)"
    return f"{key}: {message}" if key else message
