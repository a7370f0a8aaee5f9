"""What a config names, built."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from ldm.config.annotations import misfits
from ldm.config.freeu import FACTORS, FREE_UNET
from ldm.config.trust import refuse_foreign_class, refuse_foreign_name, trusting
from ldm.errors import InputError
from ldm.folders import CONFIGS


def get_class(target: str) -> type:
    """The class that a config's `target:` names. Raises InputError, also where only `trusting` would do."""
    module, _, name = str(target).rpartition(".")
    if module:
        refuse_foreign_name(str(target))
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as fault:
        if not f"{module}.".startswith(f"{fault.name}."):
            raise InputError(f"{target} needs the package {fault.name}, which is not installed.") from None
        found = None
    except (ImportError, AttributeError, ValueError):
        found = None
    if not isinstance(found, type):
        raise InputError(_no_class(target))
    refuse_foreign_class(str(target), found)
    return found


def _no_class(target: Any) -> str:
    """What a config's target lacks that leads to no class, and which classes there are where it leads."""
    module, _, _ = str(target).rpartition(".")
    if not str(target).startswith("ldm."):
        return f"The config's target {target!r} is no class; this project's begin with 'ldm.'."
    if module not in sys.modules:
        return f"This project has no module {module!r} for {target!r}; {CONFIGS} shows what it has."
    own = [
        name
        for name, it in vars(sys.modules[module]).items()
        if isinstance(it, type) and it.__module__ == module and not inspect.isabstract(it)
    ]
    there = f"{module} has {', '.join(own)}" if own else f"{CONFIGS} shows what it has"
    return f"This project has no class {target!r}; {there}."


def accepted_parameters(cls: type) -> set[str]:
    """The names that a class's constructor takes, those handed on to its parents by **kwargs included."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters
        names |= parameters.keys() - {"self", "args", "kwargs"}
        if "kwargs" not in parameters:
            break
    return names


def instantiate_from_config(config: Mapping[str, Any], trust_config: bool = False) -> Any:
    """An object of the class that `target` names, made with `params`. Raises InputError.

    Only networks of this project and of torch are built, here and in the sections below, unless
    `trust_config` says that any code the config names may run.
    """
    if not isinstance(config, Mapping) or "target" not in config:
        raise InputError(f"A section of the config has no `target:`; it is {str(config)[:99]}.")
    target, params = config["target"], config.get("params") or {}
    with trusting(trust_config):
        return _build(target, params)


def _build(target: str, params: Any) -> Any:
    """An object of the class that `target` names, made with `params`."""
    cls = get_class(target)
    if not isinstance(params, Mapping):
        raise InputError(f"The params of {target} are {params!r}; they have to be `key: value` lines.")
    if cls.__module__.startswith("ldm."):
        check_names(target, params, accepted_parameters(cls))
        for misfit in misfits(cls, params):
            raise InputError(f"{target}: {misfit}.")
    try:
        return cls(**params)
    except InputError:
        raise
    except ValueError as fault:
        raise InputError(f"{target.rpartition('.')[2]}: {fault}") from fault
    except (
        OmegaConfBaseException,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as fault:
        what = f"{type(fault).__name__}: {fault}".partition("\n")[0]
        raise InputError(f"{target} cannot be made with its params in the config. {what}") from fault


def check_names(target: str, params: Mapping[str, Any], accepted: set[str]) -> None:
    """Raises InputError, with what may have been meant, where a class does not take all of `params`."""
    unknown = sorted(str(name) for name in params if name not in accepted)
    if not unknown:
        return
    if set(unknown) & set(FACTORS):
        hint = f"FreeU's factors belong to {FREE_UNET}."
    elif near := difflib.get_close_matches(unknown[0], accepted, n=1):
        hint = f"Is {near[0]} meant?"
    else:
        hint = "Remove it from the config's params."
    raise InputError(f"{target} knows no parameter {', '.join(unknown)}. {hint}")
