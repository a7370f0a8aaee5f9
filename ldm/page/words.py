"""What the page says to its visitors: on faults, on their place in the queue, on settings."""

import logging
from collections.abc import Sequence
from html import escape

from ldm.device import is_out_of_memory
from ldm.errors import InputError

log = logging.getLogger(__name__)


def sentence(fault: Exception) -> str:
    """What a visitor is told of a fault; what is nobody's fault goes into the server's log."""
    if isinstance(fault, InputError):
        return str(fault)
    if is_out_of_memory(fault):
        return "There is not enough memory for this: take a smaller picture."
    log.error("a visitor's work failed", exc_info=fault)
    return "Something went wrong here, and the server's log says what. Please try again."


def lines(texts: Sequence[str], kind: str) -> str:
    """Sentences, `told` or a `fault`."""
    role = "alert" if kind == "fault" else "status"
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in texts)
    return f'<div class="lines {kind}" role="{role}">{paragraphs}</div>'


def place(ahead: int) -> str:
    """A visitor's place in the queue, in words."""
    others = "one other's work is" if ahead == 1 else f"the work of {ahead} others is"
    return f"You are number {ahead + 1} in line: {others} done before yours."
