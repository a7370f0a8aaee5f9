"""The text encoder's stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.data.captions import FACTS, NO_FACT, WORDS, SceneCaptions
from ldm.errors import InputError
from ldm.modules.encoders.words import WordEmbedder
from ldm.training.stage import Stage, write_weights
from ldm.util import instantiate_from_config


class WordsTraining(Stage):
    """Each word's context has to tell all that the caption says of its thing.

    So every word of "a red circle left of a star" knows that the circle is red and that it stands left, and
    the U-Net need not find out which word goes with which. `data` goes to `SceneCaptions`.
    """

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], batch_size: int, lr: float):
        super().__init__(lr, weight_decay=0.01, batch_size=batch_size)
        self.model: WordEmbedder = instantiate_from_config(model)
        # Where a word is passed over, those behind it would be told of other things than their own.
        if unknown := self.model.unknown(" ".join(WORDS)):
            raise InputError(
                f"The text encoder does not know {', '.join(unknown)}, which captions have: add what is "
                "missing to its words or its synonyms."
            )
        self.captions = SceneCaptions(length=self.model.max_length, **data)
        self.answers = torch.nn.Linear(model["params"]["width"], sum(FACTS))

    def training_step(self, batch: tuple[Tensor, tuple[list[str], Tensor]], _: int) -> Tensor:
        _seeds, (captions, facts) = batch  # facts (B, L, 4)
        told = facts[..., 0] != NO_FACT  # the places of words
        answers = self.answers(self.model(captions)[told]).split(FACTS, dim=-1)  # 4 of (words, one of FACTS)
        pairs = list(zip(answers, facts[told].unbind(-1), strict=True))
        words = self.everywhere(told.sum())
        loss = sum(F.cross_entropy(answer, fact, reduction="sum") for answer, fact in pairs) / words
        right = sum((answer.argmax(-1) == fact).sum() for answer, fact in pairs) / (len(FACTS) * words)
        self.log_dict({"loss": loss, "right": right}, prog_bar=True, sync_dist=True)
        return loss

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.captions)

    def export(self, path: Path) -> None:
        """Writes the text encoder's weights."""
        write_weights(path, self.model.state_dict())
