"""Attention over the positions of a feature map: on itself and on a context."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.dot_product import attention
from ldm.modules.layers import Linear, is_its_weights
from ldm.modules.norm import GroupNorm
from ldm.modules.onednn import is_fast, product

TOKENS = 2048  # of a batch, that a CPU takes through the feed-forward network at a time


def repeated(x: Tensor, batch: int) -> Tensor:
    """x, (b, ...), one whole after the other as often as it takes to fill a batch: (batch, ...)."""
    return x if x.shape[0] == batch else torch.cat(batch // x.shape[0] * [x])


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        if not (is_its_weights(self.proj, Linear) and is_fast(x, self.proj.weight)):
            x, gate = self.proj(x).chunk(2, dim=-1)
            return x * F.gelu(gate)
        weights, biases = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        gate = product(x, weights[1], biases[1], gelu=True)
        return product(x, weights[0], biases[0]).mul_(gate)


class FeedForward(nn.Module):
    """The transformer's per-token network, four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.net.modules())
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if torch.is_grad_enabled() or x.device.type != "cpu" or hooked or traced:
            return self.net(x)
        # Some tokens at a time, so that what is inside stays in the processor's cache.
        return torch.cat([self.net(part) for part in x.flatten(0, 1).split(TOKENS)]).view(x.shape)


class CrossAttention(nn.Module):
    """Attention of tokens x on a context, or on themselves when there is none.

    `scaled_dot_product_attention` scales before it sums or accumulates in float32, so that SD2.1's large
    products do not overflow in half precision.
    """

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = Linear(query_dim, inner, bias=False)
        self.to_k = Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, query_dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            rearrange(t, "b n (heads d) -> b heads n d", heads=self.heads)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = attention(q, k, v)
        return self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised first and added to its input.

    Tokens x, (b, N, C), may meet the contexts of several batches, (k b, M, D), and come out as often. A layer
    that is given a context gets as many samples of both, as one that is put in its place expects.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int | None, disable_self_attn: bool):
        super().__init__()
        self.disable_self_attn = disable_self_attn
        self.attn1 = CrossAttention(dim, context_dim if disable_self_attn else None, heads, dim_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        batch = (x if context is None else context).shape[0]  # no len(), which fixes it in a graph
        if self.disable_self_attn:
            x = repeated(x, batch)
        x = x + self.attn1(self.norm1(x), context if self.disable_self_attn else None)
        x = repeated(x, batch)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a map, (B, C, H, W) to the same shape.

    A map comes out once for each of its contexts: (b, C, H, W) and (k b, M, D) to (k b, C, H, W).

    The projections in and out are 1x1 convolutions in SD1 and linear layers in SD2 (`use_linear`): the same
    values under other shapes.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int,
        context_dim: int | None,
        disable_self_attn: bool = False,
        use_linear: bool = False,
        norm_groups: int = 32,
    ):
        super().__init__()
        inner = heads * dim_head
        self.use_linear = use_linear
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner) if use_linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim, disable_self_attn)
            for _ in range(depth)
        )
        self.proj_out = Linear(inner, channels) if use_linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        if not self.use_linear:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)
        if not self.use_linear:
            h = self.proj_out(h)
        return repeated(x, h.shape[0]) + h


class AttentionBlock(nn.Module):
    """Self-attention alone over the positions of a map, for U-Nets without `use_spatial_transformer`."""

    def __init__(self, channels: int, heads: int, norm_groups: int = 32):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        h = self.qkv(self.norm(rearrange(x, "b c h w -> b c (h w)")))
        q, k, v = rearrange(h, "b (heads qkv d) n -> qkv b heads n d", heads=self.heads, qkv=3)
        h = attention(q, k, v)
        h = self.proj_out(rearrange(h, "b heads n d -> b (heads d) n"))
        return x + rearrange(h, "b c (h w) -> b c h w", h=height)
