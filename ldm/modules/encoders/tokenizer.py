"""Text to CLIP's token ids, as transformers' tokenizer gives them (SD 1.x) or OpenCLIP's (SD 2.x).

Both use the same byte pairs and differ in what they do to a text before:
- OpenCLIP repairs broken encodings with ftfy, which also straightens curly quotes and full-width letters, and
  reads HTML entities ("&amp;" is "&"). transformers does neither; it composes accents (NFC).
- Both write everything in lower case, but OpenCLIP has a final form for the sigma that ends a Greek word.
- A special token spelt out in a text is <start_of_text> or <end_of_text> to OpenCLIP, <|startoftext|> or
  <|endoftext|> to transformers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.modules.encoders.open_clip_files import simple_tokenizer

START, END = 49406, 49407
SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}


# The vocabulary takes a fifth of a second to read: at the first text, and not when a model is built.
@cache
def _open_clip_tokenizer() -> Any:
    return simple_tokenizer()


@cache
def _transformers_tokenizer() -> Any:
    import regex

    tokenizer = simple_tokenizer()
    tokenizer.clean_fn = lambda text: "".join(letter.lower() for letter in normalize("NFC", text))
    tokenizer.pat = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    return tokenizer


def open_clip_ids(text: str) -> list[int]:
    """The ids of a text's tokens, without start and end, as OpenCLIP's SimpleTokenizer (3.x) gives them."""
    return _open_clip_tokenizer().encode(text)


def transformers_ids(text: str) -> list[int]:
    """The ids of a text's tokens, without start and end, as transformers' CLIPTokenizer (5.x) gives them."""
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text):
        ids += [SPECIAL[part]] if part in SPECIAL else _transformers_tokenizer().encode(part)
    return ids


@dataclass(frozen=True)
class ClipTokenizer:
    """A text as `length` tokens: START, the text's own, END, then `padding`. A longer text is cut before END.

    `encode` gives the text's own: `transformers_ids` or `open_clip_ids`.
    """

    encode: Callable[[str], list[int]]
    padding: int
    length: int = 77

    def __call__(self, text: str | list[str]) -> Tensor:
        """The tokens (B, length) of one text or several, int64, on the CPU; InputError if not Unicode."""
        texts = [text] if isinstance(text, str) else text
        tokens = torch.full((len(texts), self.length), self.padding, dtype=torch.int64, device="cpu")
        for row, one in zip(tokens, texts, strict=True):
            ids = [START, *self._ids(one)[: self.length - 2], END]
            row[: len(ids)] = torch.tensor(ids, device="cpu")
        return tokens

    def truncated(self, text: str) -> str:
        """The end of a text that has no room, as its tokens spell it: lower case, words and signs apart."""
        return _open_clip_tokenizer().decode(self._ids(text)[self.length - 2 :]).strip()

    def _ids(self, text: str) -> list[int]:
        # A terminal that is not in UTF-8 hands bytes over as lone surrogates, which no tokenizer can spell.
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"This prompt is not valid Unicode: {text!r}. Give it in UTF-8.")
        return self.encode(text)
