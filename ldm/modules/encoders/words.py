"""The embedded model's text encoder: CLIP's text transformer, small, over a short list of whole words.

Other than CLIP's each word sees those behind it too: the circle of "a circle left of a star" has to know that
it stands left.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.modules.encoders.clip import ClipTextTower

PAD, START, END = 0, 1, 2


class WordEmbedder(nn.Module):
    """Prompts in a vocabulary of whole `words` to a context of (B, max_length, width).

    `synonyms` are other words for some of them. Words outside both are passed over; `unknown` names them.
    """

    def __init__(
        self,
        words: Sequence[str],
        max_length: int,
        width: int,
        heads: int,
        layers: int,
        synonyms: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.words = tuple(words)
        if odd := [word for word in (*self.words, *(synonyms or {})) if not isinstance(word, str)]:
            raise InputError(f"{odd[0]!r} is no word: put it in quotes, as YAML takes on and yes for values.")
        if heads < 1 or width % heads:
            raise InputError(
                f"heads is {heads} and width {width}: give a number of heads that divides the width."
            )
        self.ids = {word: i for i, word in enumerate(words, start=3)}
        self.ids |= {other: self.ids[word] for other, word in (synonyms or {}).items()}
        self.max_length = max_length
        self.transformer = ClipTextTower(
            width, heads, layers, vocabulary=3 + len(words), positions=max_length, causal=False
        )

    def forward(self, text: str | list[str]) -> Tensor:
        """The context of one text or several, (B, max_length, width)."""
        return self.transformer(self.tokenize(text).to(self.transformer.final_layer_norm.weight.device))

    def tokenize(self, text: str | list[str]) -> Tensor:
        """(B, max_length), int64: a start token, the known words that fit, an end token, padding."""
        texts = [text] if isinstance(text, str) else text
        tokens = torch.full((len(texts), self.max_length), PAD, device="cpu")
        for row, one in zip(tokens, texts, strict=True):
            known = [self.ids[word] for word in split(one) if word in self.ids]
            ids = [START, *known[: self.max_length - 2], END]
            row[: len(ids)] = torch.tensor(ids, device="cpu")
        return tokens

    def unknown(self, text: str) -> list[str]:
        """The words of a text that this model never learnt."""
        return [word for word in split(text) if word not in self.ids]

    def truncated(self, text: str) -> str:
        """The end of a text that has no room; empty when all of it has."""
        return " ".join([word for word in split(text) if word in self.ids][self.max_length - 2 :])


def split(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())
