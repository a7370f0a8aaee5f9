"""The text encoders of Stable Diffusion, under the names that configs give in `cond_stage_config`."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.modules.encoders.clip import ClipTextTower, OpenClipTextTower
from ldm.modules.encoders.open_clip_files import model_config
from ldm.modules.encoders.tokenizer import END, ClipTokenizer, open_clip_ids, transformers_ids


class FrozenTextEmbedder(nn.Module, ABC):
    """Text to a context for cross-attention; a subclass says how tokens are embedded."""

    def __init__(self, tokenizer: ClipTokenizer) -> None:
        super().__init__()
        if tokenizer.length < 2:
            raise InputError(f"{type(self).__name__}: max_length is {tokenizer.length}; it can be 2 to 77.")
        self.tokenizer = tokenizer

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens (B, L), int64, as (B, L, C)."""

    def forward(self, text: str | list[str]) -> Tensor:
        """The context (B, L, C) of one text or several, in the module's dtype and on its device."""
        device = next(self.parameters()).device
        return self.embed(self.tokenize(text).to(device))

    def encode(self, text: str | list[str]) -> Tensor:
        """The same as calling the module."""
        return self(text)

    def tokenize(self, text: str | list[str]) -> Tensor:
        """The tokens (B, L), int64, on the CPU."""
        return self.tokenizer(text)

    def truncated(self, text: str) -> str:
        """The end of a text that has no room among the L tokens; empty when all of it has."""
        return self.tokenizer.truncated(text)


class FrozenCLIPEmbedder(FrozenTextEmbedder):
    """The text tower of CLIP ViT-L/14, which SD 1.x is conditioned on.

    `version` and `device` are accepted and change nothing: the weights come with the checkpoint, and the
    device is the one that the parameters are on.

    Args:
        max_length: tokens of a text, start and end included; 77 at most.
        freeze: no gradients.
        layer: "last", the last hidden state after the final norm; "pooled", the same of the end token alone,
            (B, 1, C); "hidden", the state number `layer_idx`, before the final norm.
        layer_idx: for "hidden": 0 is the embedding, 12 or -1 the last layer's output.

    Raises:
        InputError: there is no such `layer` or `layer_idx`, or no room for start and end.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cuda",
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        layer_idx: int | None = None,
    ) -> None:
        super().__init__(ClipTokenizer(transformers_ids, padding=END, length=min(max_length, 77)))
        self.transformer = nn.ModuleDict({"text_model": ClipTextTower()})
        self.layer = layer
        self.depth = self._depth(layer, layer_idx)
        if freeze:
            self.eval().requires_grad_(False)

    @staticmethod
    def _depth(layer: str, layer_idx: int | None) -> int | None:
        if layer in ("last", "pooled"):
            return None
        if layer != "hidden":
            raise InputError(f"FrozenCLIPEmbedder: layer is {layer!r}; it can be last, pooled or hidden.")
        states = 13  # what goes into the 12 layers, and what comes out of each
        if layer_idx is None or not -states <= layer_idx < states:
            raise InputError(f"FrozenCLIPEmbedder: layer_idx is {layer_idx}; for layer hidden, -13 to 12.")
        return layer_idx % states

    def embed(self, tokens: Tensor) -> Tensor:
        z = self.transformer["text_model"](tokens, self.depth)  # (B, L, C)
        if self.layer == "pooled":
            end = (tokens == END).int().argmax(dim=1)  # the first END; those after it are padding
            z = z[torch.arange(len(z), device=z.device), end, None]  # (B, 1, C)
        return z


class FrozenOpenCLIPEmbedder(FrozenTextEmbedder):
    """The text tower of an OpenCLIP model, ViT-H/14 in SD 2.x, without its image tower.

    `version` and `device` are accepted and change nothing: the weights come with the checkpoint, and the
    device is the one that the parameters are on.

    Args:
        arch: a model that OpenCLIP has a config for, with CLIP's own kind of text tower.
        max_length: tokens of a text, start and end included; at most as many as the tower has positions, 77.
        freeze: no gradients.
        layer: "last" or "penultimate", the block whose output is taken; the final norm follows either.

    Raises:
        InputError: there is no such `arch` or `layer`, the arch's text tower is of another kind, or there is
            no room for start and end.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str = "laion2b_s32b_b79k",
        device: str | torch.device = "cuda",
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
    ) -> None:
        depths = {"last": None, "penultimate": -1}
        if layer not in depths:
            raise InputError(f"FrozenOpenCLIPEmbedder: layer is {layer!r}; it can be last or penultimate.")
        config = model_config(arch)
        text = config["text_cfg"]
        sizes = ("width", "heads", "layers", "vocab_size", "context_length")
        if other := ", ".join(key for key in text if text[key] and key not in sizes):
            raise InputError(f"FrozenOpenCLIPEmbedder: {arch} has another text tower than CLIP's ({other}).")

        length = min(max_length, text["context_length"])
        super().__init__(ClipTokenizer(open_clip_ids, padding=0, length=length))
        self.depth = depths[layer]
        self.model = OpenClipTextTower(
            width=text["width"],
            heads=text["heads"],
            layers=text["layers"],
            vocabulary=text["vocab_size"],
            positions=text["context_length"],
            projection=config["embed_dim"],
            quick_gelu=config.get("quick_gelu", False),
        )
        if freeze:
            self.eval().requires_grad_(False)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, self.depth)

    @property
    def unread(self) -> dict[str, str]:
        """How the names of weights begin that no context depends on, and why; some checkpoints lack them."""
        unread = dict.fromkeys(
            ("model.text_projection", "model.logit_scale"), "for comparing a text with a picture"
        )
        if self.depth is not None:
            last = len(self.model.transformer.resblocks) - 1
            unread[f"model.transformer.resblocks.{last}."] = "comes after the penultimate block"
        return unread
