"""CLIP's text transformer, under the two sets of names that Stable Diffusion checkpoints use.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020): a
pre-norm transformer in which each token sees itself and those before it. `ClipTextTower` has the names of
transformers' CLIP (SD 1.x), `OpenClipTextTower` those of OpenCLIP (SD 2.x). Apart from the names they differ
in the activation and in which of their states they return.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.layers import Linear
from ldm.modules.onednn import is_fast, product


def initial(*shape: int, bound: float) -> nn.Parameter:
    """Random weights to train from. Uniform: a normal on meta makes torch import its compiler, a second."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def embedding(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding.from_pretrained(initial(rows, width, bound=0.04), freeze=False)


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def token_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    """Multi-head attention of each token to all, or only to itself and those before it.

    q, k, v and the result are (B, L, C).
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, C / heads)
    x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return x.transpose(1, 2).flatten(2)  # (B, L, C)


class ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(token_attention(q, k, v, self.heads, self.causal))


class ClipLayer(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = ClipAttention(width, heads, causal)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=Linear(width, 4 * width),
                activation=QuickGELU(),
                fc2=Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipEncoder(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(width, heads, causal) for _ in range(layers))

    def forward(self, x: Tensor, depth: int | None) -> Tensor:
        for layer in self.layers[:depth]:
            x = layer(x)
        return x


class ClipEmbeddings(nn.Module):
    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.token_embedding = embedding(vocabulary, width)
        self.position_embedding = embedding(positions, width)
        # Most checkpoints hold these numbers, and nothing reads them. They are real even in a model built on
        # meta, since the other checkpoints would leave them unfilled.
        self.register_buffer("position_ids", torch.arange(positions, device="cpu")[None])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]  # (B, L, C)


class ClipTextTower(nn.Module):
    """The text model of transformers' CLIP. The sizes left out are those of ViT-L/14, which SD 1.x uses.

    With `causal` false each token sees all the others, which CLIP's do not.
    """

    def __init__(
        self,
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        vocabulary: int = 49408,
        positions: int = 77,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(vocabulary, positions, width)
        self.encoder = ClipEncoder(width, heads, layers, causal)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, depth: int | None = None) -> Tensor:
        """Embed tokens (B, L), int64, as (B, L, C): after layers[:depth], or after all and the final norm."""
        x = self.encoder(self.embeddings(tokens), depth)
        return self.final_layer_norm(x) if depth is None else x


class OpenClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = initial(3 * width, width, bound=width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        linear = product if is_fast(x, self.in_proj_weight) else F.linear
        q, k, v = linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(token_attention(q, k, v, self.heads, causal=True))


class OpenClipBlock(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = OpenClipAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=Linear(width, 4 * width),
                activation=activation,
                c_proj=Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenClipTransformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(OpenClipBlock(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, depth: int | None) -> Tensor:
        for block in self.resblocks[:depth]:
            x = block(x)
        return x


class OpenClipTextTower(nn.Module):
    """The text half of OpenCLIP's `CLIP`. The sizes left out are those of ViT-H/14, which SD 2.x uses."""

    def __init__(
        self,
        width: int = 1024,
        heads: int = 16,
        layers: int = 24,
        vocabulary: int = 49408,
        positions: int = 77,
        projection: int = 1024,
        quick_gelu: bool = False,
    ) -> None:
        super().__init__()
        self.token_embedding = embedding(vocabulary, width)
        self.positional_embedding = initial(positions, width, bound=0.02)
        self.transformer = OpenClipTransformer(width, heads, layers, QuickGELU() if quick_gelu else nn.GELU())
        self.ln_final = nn.LayerNorm(width)
        # The way into the space shared with images: checkpoints hold it, a context does not go through it.
        self.text_projection = initial(width, projection, bound=width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, tokens: Tensor, depth: int | None = None) -> Tensor:
        """Embed tokens (B, L), int64, as (B, L, C): after blocks[:depth] (None: all) and the final norm."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]  # (B, L, C)
        return self.ln_final(self.transformer(x, depth))
