"""The U-Net of latent diffusion, and the same with FreeU in its decoder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config.neutral import takes_only
from ldm.errors import InputError, refusing
from ldm.freeu import TRAINING_STEPS, Channels, DecoderStage, FreeUSettings, Match, free_u
from ldm.freeu.native import is_plain
from ldm.modules.attention import AttentionBlock, SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    norm_and_silu,
)
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.modules.layers import Conv3x3, Upsample, is_called_as_made


class UNetModel(nn.Module):
    """The denoising U-Net, x_t to epsilon or v; parameters and names are those of latent-diffusion configs.

    `attention_resolutions` counts down-sampling factors. Heads are `num_heads` (SD1) or of
    `num_head_channels` each (SD2). `image_size`, `use_checkpoint`, `use_fp16`, `use_bf16` and `legacy` change
    nothing at inference and are accepted so that existing configs load; the precision is chosen when a
    checkpoint is loaded. `norm_groups` is for narrow networks: groups of one or two channels would normalise
    flat colours away. Parameters after `norm_groups` are the original's, accepted where they change nothing.

    `decoder_stages` lists what each output block concatenates.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: int | str | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        use_bf16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        legacy: bool = True,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
        use_linear_in_transformer: bool = False,
        adm_in_channels: int | None = None,
        norm_groups: int = 32,
        dims: int = 2,
        conv_resample: bool = True,
        num_heads_upsample: int = -1,
        use_new_attention_order: bool = False,
        n_embed: int | None = None,
    ):
        super().__init__()
        takes_only(self, 2, dims=dims)
        takes_only(self, None, n_embed=n_embed)
        if not resblock_updown:
            takes_only(self, True, conv_resample=conv_resample)
        if not use_spatial_transformer:
            takes_only(self, False, use_new_attention_order=use_new_attention_order)
            if num_head_channels == -1 and num_heads_upsample != num_heads:
                takes_only(self, -1, num_heads_upsample=num_heads_upsample)
        if num_heads == -1 and num_head_channels == -1:
            raise InputError("The U-Net needs num_heads or num_head_channels.")
        if use_spatial_transformer and context_dim is None:
            raise InputError(
                "use_spatial_transformer needs context_dim, the width of the text encoder's output."
            )
        levels = len(channel_mult)
        res_blocks = [num_res_blocks] * levels if isinstance(num_res_blocks, int) else list(num_res_blocks)
        attention_blocks = num_attention_blocks or [n + 1 for n in res_blocks]
        no_self_attention = disable_self_attentions or [False] * levels
        time_dim = 4 * model_channels
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.downsampling = 2 ** (levels - 1)

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        )
        if num_classes is not None:
            self.label_emb = make_label_embedding(num_classes, adm_in_channels, time_dim)

        def res_block(channels: int, out: int, resize: float = 1) -> ResBlock:
            return ResBlock(channels, time_dim, dropout, out, use_scale_shift_norm, norm_groups, resize)

        def attention(channels: int, disable_self_attn: bool) -> nn.Module:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            if heads < 1 or channels % heads:
                raise InputError(f"{channels} channels do not divide into {heads} heads: change num_heads.")
            if not use_spatial_transformer:
                return AttentionBlock(channels, heads, norm_groups)
            return SpatialTransformer(
                channels,
                heads,
                channels // heads,
                transformer_depth,
                context_dim,
                disable_self_attn=disable_self_attn,
                use_linear=use_linear_in_transformer,
                norm_groups=norm_groups,
            )

        # The encoder: every output is kept as a skip for the decoder.
        ch = model_channels
        blocks = [TimestepEmbedSequential(Conv3x3(in_channels, ch))]
        skip_widths = [ch]
        for level, mult in enumerate(channel_mult):
            for i in range(res_blocks[level]):
                layers: list[nn.Module] = [res_block(ch, mult * model_channels)]
                ch = mult * model_channels
                if 2**level in attention_resolutions and i < attention_blocks[level]:
                    layers.append(attention(ch, no_self_attention[level]))
                blocks.append(TimestepEmbedSequential(*layers))
                skip_widths.append(ch)
            if level + 1 < levels:
                down = res_block(ch, ch, resize=0.5) if resblock_updown else Downsample(ch)
                blocks.append(TimestepEmbedSequential(down))
                skip_widths.append(ch)
        self.input_blocks = nn.ModuleList(blocks)

        self.middle_block = TimestepEmbedSequential(
            res_block(ch, ch), attention(ch, disable_middle_self_attn), res_block(ch, ch)
        )

        # The decoder: each block takes what came before it together with the encoder's newest unused skip.
        blocks, stages = [], []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(res_blocks[level] + 1):
                stage = DecoderStage(ch, skip_widths.pop(), 2**level)
                layers = [res_block(ch + stage.skip_width, mult * model_channels)]
                ch = mult * model_channels
                if 2**level in attention_resolutions and i < attention_blocks[level]:
                    layers.append(attention(ch, no_self_attention[level]))
                if level > 0 and i == res_blocks[level]:
                    layers.append(res_block(ch, ch, resize=2) if resblock_updown else Upsample(ch))
                blocks.append(TimestepEmbedSequential(*layers))
                stages.append(stage)
        self.output_blocks = nn.ModuleList(blocks)
        self.decoder_stages = tuple(stages)

        self.out = nn.Sequential(*norm_and_silu(norm_groups, ch), Conv3x3(ch, out_channels))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        first: Any = self.time_embed[0]  # replicas of DataParallel list no parameters
        return first.weight.dtype

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """The embedding of timesteps (B,) and of labels y, if the model has them: (B, 4 model_channels)."""
        emb = timestep_embedding(timesteps, self.model_channels).to(self.dtype)
        emb = self.time_embed(emb)
        return emb if self.num_classes is None else emb + self.label_emb(y)

    def encode(self, x: Tensor, emb: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The encoder's last map and all its maps in order, the skips.

        Guidance asks for the same latents under two contexts: the block that first meets these is given one
        half, up to there the same as the other, and gives out both, unless somebody sees what its layers get.
        """
        twice = context is not None and is_twice(x) and is_twice(emb)
        h, skips = x, []
        for block in self.input_blocks:
            if twice and any(isinstance(layer, SpatialTransformer) for layer in block.children()):
                h, twice = h[: len(h) // 2] if is_twice(h) and is_left_alone(block) else h, False
            h = block(h, emb[: h.shape[0]], context)
            skips.append(h)
        return h, skips

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The output for x_t, (B, in_channels, H, W), at timesteps (B,), given context (B, N, context_dim).

        H and W are multiples of `downsampling`. Returns (B, out_channels, H, W).
        """
        emb = self.embed(timesteps, y)
        h, skips = self.encode(x, emb, context)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)


def factor_of_freeu(name: str) -> property:
    """One of the factors in a `Free_UNetModel`'s settings as an attribute of its own."""

    def get(unet: "Free_UNetModel") -> float:
        return getattr(unet.freeu, name)

    def put(unet: "Free_UNetModel", value: Any) -> None:
        unet.freeu = replace(unet.freeu, **{name: value})

    return property(get, put)


class Free_UNetModel(UNetModel):
    """A `UNetModel` with FreeU at each decoder concatenation; loads the same checkpoints.

    b1 to s2 and version to stages are those of `FreeUSettings`, everything else is `UNetModel`'s. `freeu`
    holds the settings and may be set at any time; so may b1, b2, s1 and s2 alone, as in the original. How far
    a sample is into its run is told from its timestep, of as many as the training had.
    """

    training_steps = TRAINING_STEPS
    b1, b2, s1, s2 = map(factor_of_freeu, ("b1", "b2", "s1", "s2"))

    def __init__(
        self,
        b1: float,
        b2: float,
        s1: float,
        s2: float,
        *args: Any,
        version: int = 1,
        threshold: int = 1,
        match: Match = "channels",
        strength: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
        ramp: float = 0.0,
        channels: Channels | float = "first",
        stages: Mapping[int, tuple[float, float]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.freeu = FreeUSettings(
            b1, b2, s1, s2, version, threshold, match, strength, start, stop, ramp, channels, stages or {}
        )

    @property
    def freeu(self) -> FreeUSettings:
        return self._freeu

    @freeu.setter
    def freeu(self, settings: FreeUSettings) -> None:
        self.factors = self.factors_of(settings)
        self._freeu = settings

    def factors_of(self, settings: FreeUSettings) -> list[tuple[float, float]]:
        """b and s of each output block under these settings. Raises InputError where they do not fit."""
        with refusing():
            return settings.factors(self.decoder_stages, self.model_channels)

    @contextmanager
    def under(self, settings: FreeUSettings) -> Iterator[None]:
        """Within it FreeU has these settings, afterwards those of before."""
        usual = self.freeu
        self.freeu = settings
        try:
            yield
        finally:
            self.freeu = usual

    def hit_blocks(self, settings: FreeUSettings | None = None) -> dict[int, tuple[float, float]]:
        """The output blocks that FreeU changes, each with its b and s; under other settings where given."""
        settings = self.freeu if settings is None else settings
        hit = {i: pair for i, pair in enumerate(self.factors_of(settings)) if pair != (1, 1)}
        return {} if settings.never_acts() else hit

    def describe(self) -> str:
        """One line for people: the version, each pair of factors, the output blocks it meets, and when."""
        freeu = self.freeu
        if freeu.never_acts():
            return f"FreeU is off: it stops where it starts, at {freeu.start:g} of the run"
        blocks: dict[tuple[float, float], list[str]] = {}
        for i, pair in self.hit_blocks().items():
            blocks.setdefault(pair, []).append(str(i))
        parts = [f"b {b:g}, s {s:g} on output blocks {' '.join(where)}" for (b, s), where in blocks.items()]
        if not parts:
            return "FreeU is off: every factor is one"
        when = "" if freeu.acts_throughout() else f"; from {freeu.start:g} to {freeu.stop:g} of the run"
        return f"FreeU V{freeu.version}: {'; '.join(parts)}{when}"

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """As `UNetModel.forward`, with the decoder's inputs re-weighted."""
        how = self.freeu
        weight = None
        if not how.acts_throughout():
            run = torch.arange(self.training_steps, device=timesteps.device)
            weight = how.weight(timesteps, run)  # (B,)
        emb = self.embed(timesteps, y)
        h, skips = self.encode(x, emb, context)
        h = self.middle_block(h, emb, context)
        for block, (b, s) in zip(self.output_blocks, self.factors, strict=True):
            fused = torch.cat([h, skips.pop()], dim=1)
            fused = free_u(fused, h.shape[1], b, s, how.version, how.threshold, weight, how.channels)
            h = block(fused, emb, context)
        return self.out(h)


def is_twice(x: Tensor) -> bool:
    """Whether the second half of a batch repeats the first.

    Asked on a CPU alone: elsewhere the answer would have to be waited for. Where gradients are recorded each
    half has its own.
    """
    if not is_plain(x) or len(x) % 2:
        return False
    first, second = x.chunk(2)
    return torch.equal(first, second)


def is_left_alone(block: nn.Module) -> bool:
    """Whether all layers of a block are called as they were made: no hooks, no other function in place.

    What listens to the whole block's output alone hears of all samples anyway.
    """
    if block._forward_pre_hooks or "forward" in block.__dict__:
        return False
    return all(is_called_as_made(layer) for layer in block.modules() if layer is not block)


def make_label_embedding(num_classes: int | str, adm_in_channels: int | None, dim: int) -> nn.Module:
    """The embedding of labels: a table, or layers on a number ("continuous") or a vector ("sequential")."""
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, dim)
    if num_classes == "continuous":
        return nn.Linear(1, dim)
    if num_classes == "sequential" and adm_in_channels is not None:
        return nn.Sequential(nn.Sequential(nn.Linear(adm_in_channels, dim), nn.SiLU(), nn.Linear(dim, dim)))
    raise InputError(
        f"num_classes is {num_classes!r}: give a number, 'continuous', or 'sequential' with adm_in_channels."
    )
