"""Whose code a config may have run.

A `target:` names a class, and to import a module and build a class is to run code. So a config builds the
networks of this project and of torch, whose constructors make layers and write nothing, and classes of other
packages only where whoever loads it says that the config is trusted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from ldm.errors import InputError

ALLOWED: Final = ("ldm.models.", "ldm.modules.", "ldm.training.", "ldm.lr_scheduler.", "torch.nn.modules.")
IMPORTED: Final = ("ldm.", "torch.nn.")  # what may be imported to see whether a name leads to one of those

_trusting: ContextVar[bool] = ContextVar("trusting", default=False)


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Inside, classes of every package may be built, where `trust` is true; else nothing changes."""
    token = _trusting.set(trust or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def refuse_foreign_name(target: str) -> None:
    """Raises InputError where a target's module is not to be imported."""
    if not (_trusting.get() or target.startswith(IMPORTED)):
        raise _refusal(target)


def refuse_foreign_class(target: str, cls: type) -> None:
    """Raises InputError where the class that a target led to is not to be built."""
    if not (_trusting.get() or f"{cls.__module__}.".startswith(ALLOWED)):
        raise _refusal(target)


def _refusal(target: str) -> InputError:
    return InputError(
        f"The config's target {target[:99]!r} is not one of this project's networks or torch's, and is not "
        "run: if you trust its author as you would a program's, add --trust-config (trust_config=True)."
    )
