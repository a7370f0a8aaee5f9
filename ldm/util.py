"""Configs: reading them and building what they name."""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
CHECKPOINTS = ROOT / "checkpoints"
UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
FREE_UNET = "ldm.modules.diffusionmodules.openaimodel.Free_UNetModel"


def find_config(name: str | Path) -> Path:
    """The config file of that path or, for a bare name, of that name in `configs/`; ".yaml" may be left out."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.name for path in CONFIGS.glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.4) or known
    raise InputError(f"There is no config {str(name)!r}, here or in {CONFIGS}.\nNear it: {', '.join(near)}.")


def load_config(name: str | Path, overrides: Iterable[str] = ()) -> DictConfig:
    """The resolved config of a YAML file, its `base:` file under it and dotlist overrides ("a.b=1") on top of it.

    A `base:` is looked for beside the file that names it, then as `find_config` does.
    """
    path = find_config(name)
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as fault:
        where = str(fault).replace("\n", " ")
        raise InputError(f"{path} is not a YAML config: {where}") from None
    if not isinstance(config, DictConfig):
        raise InputError(f"{path} is not a config: it holds no `model:` section.")
    if base := config.pop("base", None):
        beside = path.parent / str(base)
        config = OmegaConf.merge(load_config(beside if beside.is_file() else base), config)
    try:
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
        OmegaConf.resolve(config)
    except (OmegaConfBaseException, YAMLError) as fault:
        where = str(fault).splitlines()[0]
        raise InputError(f"{path} with {list(overrides)} cannot be resolved: {where}") from None
    assert isinstance(config, DictConfig)
    return config


def set_freeu(config: DictConfig, settings: Mapping[str, Any]) -> None:
    """Puts FreeU's `settings` (b1, b2, s1, s2, version, ...) into a model config, on top of those it has.

    A plain U-Net becomes a `Free_UNetModel`; factors that neither names are one.
    """
    unet = config.model.params.unet_config
    if unet.target == UNET:
        unet.target = FREE_UNET
        unet.params = OmegaConf.merge({"b1": 1.0, "b2": 1.0, "s1": 1.0, "s2": 1.0}, unet.params)
    unet.params = OmegaConf.merge(unet.params, settings)


def get_class(target: str) -> type:
    """The class that a config's `target:` names."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise InputError(
            f"The config's target {target!r} cannot be imported; this project's classes begin with 'ldm.'."
        ) from None


def accepted_parameters(cls: type) -> set[str]:
    """The names that a class's constructor takes, those handed on to its parents by **kwargs included."""
    names: set[str] = set()
    for parent in cls.__mro__:
        parameters = inspect.signature(parent.__init__).parameters
        names |= parameters.keys() - {"self", "args", "kwargs"}
        if "kwargs" not in parameters:
            break
    return names


def instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """An object of the class that `target` names, made with `params`."""
    if "target" not in config:
        raise InputError(f"A section of the config has no `target:`; its keys are {', '.join(map(str, config))}.")
    target, params = config["target"], config.get("params") or {}
    cls = get_class(target)
    if cls.__module__.startswith("ldm."):
        unknown = sorted(params.keys() - accepted_parameters(cls))
        if unknown:
            hint = (
                f" FreeU's factors belong to {FREE_UNET}."
                if {"b1", "b2", "s1", "s2"} & set(unknown)
                else " Remove it from the config's params."
            )
            raise InputError(f"{target} knows no parameter {', '.join(unknown)}.{hint}")
    try:
        return cls(**params)
    except TypeError as fault:
        raise InputError(f"{target}: {fault}. Check its params in the config.") from fault
    except InputError:
        raise
    except ValueError as fault:
        raise InputError(f"{target}: {fault}") from fault
