"""CLIP on pictures and prompts, from a folder of transformers' files, and what is scored with it.

torchmetrics has a CLIP score too, but takes no local folder and fails with transformers 5.
"""

import re
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ldm.errors import InputError
from ldm.image_io import Picture
from ldm.study.pictures import Numbers
from ldm.weights.reading import read_tensors

AT_ONCE = 16  # pictures


class Clip:
    """A CLIP model on a device. Raises InputError where its folder does not hold one."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder = folder
        self.model, self.processor = read_clip(folder)
        # In half precision, as in some folders, scores are off by up to a quarter of a point.
        self.model.float().to(device).eval()

    @torch.no_grad()
    def embed(self, pictures: Iterable[Picture], prompts: Iterable[str]) -> tuple[Numbers, Numbers]:
        """The embeddings of pictures (N, F), each with a prompt, and of these, (N, F), all of length one.

        Raises InputError where they are not finite.
        """
        both: list[tuple[Tensor, Tensor]] = []
        pairs = zip(pictures, prompts, strict=False)
        while some := [*islice(pairs, AT_ONCE)]:
            inputs = self.processor(
                images=[np.array(picture) for picture, _ in some],
                text=[prompt for _, prompt in some],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
            )
            out = self.model(**inputs.to(self.model.device))
            both.append((out.image_embeds.cpu(), out.text_embeds.cpu()))
        images, texts = (torch.cat(parts).numpy() for parts in zip(*both, strict=True))
        if not np.isfinite(images).all() or not np.isfinite(texts).all():
            raise InputError(
                f"The embeddings of the CLIP model in {self.folder} are not finite: its weights are damaged. "
                "Fetch them again."
            )
        return images, texts


def read_clip(folder: Path) -> tuple[Any, Any]:
    """The model and its processor in a folder. Raises InputError where there is none, or a damaged one."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"There is no CLIP model in {folder}: it has no config.json. --clip takes a folder as "
            "transformers saves it, such as a copy of openai/clip-vit-large-patch14."
        )
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise InputError('CLIP is run by transformers: pip install -e ".[diffusers]"') from None
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        return model, CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as fault:
        reason = str(fault).strip().partition("\n")[0]
        raise InputError(f"The CLIP model in {folder} cannot be read: {reason}") from None


def clip_scores(images: Numbers, texts: Numbers) -> Numbers:
    """The CLIP score of pictures, (N,): 100 times the cosine of embeddings, (N, F) of length one."""
    return 100 * (images * texts).sum(-1)


class AestheticHead:
    """LAION's predictors of how much people like a picture, 1 to 10, from its CLIP ViT-L/14 embedding.

    Both of them, the linear one and that in five layers, are linear layers one after the other, with nothing
    between them. Raises InputError where the file holds other than that, down to one number.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise InputError(f"There is no file of aesthetic weights {path}.")
        tensors = read_tensors(path)

        def number(name: str) -> int:
            found = re.search(r"\d+", name)
            return int(found[0]) if found else 0

        names = sorted((name for name in tensors if name.endswith("weight")), key=number)
        self.layers = [
            (tensors[name].double().numpy(), tensors.get(name[:-6] + "bias", torch.zeros(1)).double().numpy())
            for name in names
        ]
        widths = [weight.shape for weight, _ in self.layers]
        fits = all(len(shape) == 2 for shape in widths) and all(a[0] == b[1] for a, b in pairwise(widths))
        if not widths or not fits or widths[-1][0] != 1:
            raise InputError(
                f"{path} holds no aesthetic predictor: its layers do not lead to one number, as LAION's do."
            )

    def scores(self, images: Numbers) -> Numbers:
        """The score of embeddings (N, F) of length one: (N,). Raises InputError for another CLIP's."""
        if images.shape[-1] != (wanted := self.layers[0][0].shape[1]):
            raise InputError(
                f"The aesthetic weights read CLIP embeddings of {wanted} numbers, the model of --clip gives "
                f"{images.shape[-1]}: they go with ViT-L/14, which gives 768."
            )
        x = images.astype(np.float64)
        for weight, bias in self.layers:
            x = x @ weight.T + bias
        return x[:, 0]
