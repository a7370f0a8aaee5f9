"""Parameters of the original code's that this project knows one value of."""

import json
from typing import Any, Final

from ldm.errors import InputError

WEIGHTS: Final = "weights come with the checkpoint, --ckpt on the command line"


def takes_only(owner: object, neutral: Any, remedy: str = "", **given: Any) -> None:
    """Raises InputError where a parameter `given` to the owner is not `neutral`."""
    for name, value in given.items():
        if value != neutral:
            written = json.dumps(neutral).strip('"')
            raise InputError(
                f"{type(owner).__name__}: {name} is {value!r:.99}, and this project takes only "
                f"`{name}: {written}`{remedy and f': {remedy}'}."
            )
