"""Studies made up of noise, and what stands in a page."""

import base64
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from ldm.study.user_study import Pair

SECRET_SEED = 902_571_833
SETTINGS = {"config": "freeu_tiny.yaml", "freeu": {"b1": 1.1}}


class PageParser(HTMLParser):
    """What stands in a page: its tags with their attributes, and the text of its scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.setdefault(self.tags[-1][1].get("id"), data)


def data_of(text: str) -> dict[str, Any]:
    """The page's block of data, as a browser finds it."""
    return json.loads(PageParser(text).scripts["study"])


def png_of(uri: str) -> bytes:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return base64.b64decode(content, validate=True)


def some_pairs(count: int, prompt: str = "a red star") -> list[Pair]:
    rng = np.random.default_rng(count)
    pictures = rng.integers(256, size=(count, 2, 8, 12, 3), dtype=np.uint8)
    return [Pair(f"{prompt} {k}", 3000 + k, *two) for k, two in enumerate(pictures)]
