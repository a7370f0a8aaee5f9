"""Whether values out of JSON and YAML are of the types that code is annotated with."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import GenericAlias, NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

SCALARS = (int, float, bool, str, NoneType)


def fits(value: Any, hint: type | UnionType | GenericAlias) -> bool:
    """Whether a value out of JSON or YAML is of an annotated type; a whole number will do for a float."""
    if isinstance(hint, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(one, *get_args(hint)) for one in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(fits(one, get_args(hint)[1]) for one in value.values())
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is hint


def misfits(cls: type, params: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the plain numbers, truth values and texts that a class's constructor is given."""
    for parent in cls.__mro__:
        if not inspect.isfunction(vars(parent).get("__init__")):
            continue
        for name, hint in get_type_hints(vars(parent)["__init__"]).items():
            kinds = get_args(hint) if isinstance(hint, UnionType) else [hint]
            if all(kind in SCALARS for kind in kinds) and name in params and not fits(params[name], hint):
                kind = "finite number" if hint is float else getattr(hint, "__name__", hint)
                yield f"{name} is {params[name]!r:.99}, which is no {kind}"
