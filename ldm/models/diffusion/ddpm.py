"""Latent diffusion: a U-Net, an autoencoder and a text encoder under one schedule of noise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config.neutral import WEIGHTS, takes_only
from ldm.errors import InputError
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.schedule import linear_betas
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import instantiate_from_config

MOST_TIMESTEPS = 100_000
SCALE = "take scale_factor out of the checkpoint and write it into the config"


class DiffusionWrapper(nn.Module):
    """Hands a conditioning to the U-Net in the way that `conditioning_key` names."""

    def __init__(self, unet_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in (None, "crossattn", "concat", "hybrid", "adm"):
            raise InputError(
                f"conditioning_key {conditioning_key!r} is not one of crossattn, concat, hybrid, adm."
            )
        self.diffusion_model = instantiate_from_config(unet_config)
        self.conditioning_key = conditioning_key

    def forward(self, x: Tensor, t: Tensor, c: Any) -> Tensor:
        if not isinstance(c, dict):
            parts = c if isinstance(c, list | tuple) else [c]
            c = {"c_concat" if self.conditioning_key == "concat" else "c_crossattn": parts}
        if self.conditioning_key in ("concat", "hybrid"):
            x = torch.cat([x, *(part.to(x.dtype) for part in c["c_concat"])], dim=1)  # (B, C + C', H, W)
        if self.conditioning_key in ("crossattn", "hybrid"):
            context = torch.cat(list(c["c_crossattn"]), dim=1)  # (B, tokens, context_dim)
            return self.diffusion_model(x, t, context=context.to(x.dtype))
        if self.conditioning_key == "adm":
            y = c["c_crossattn"][0]  # numbers of classes, (B,), or vectors
            return self.diffusion_model(x, t, y=y.to(x.dtype) if y.is_floating_point() else y)
        return self.diffusion_model(x, t)


class LatentDiffusion(nn.Module):
    """A trained diffusion model on latents; parameters and names are those of latent-diffusion configs.

    `parameterization` says what the U-Net predicts: the noise ("eps") or the velocity ("v", arXiv
    2202.00512). Parameters after `parameterization` belong to the original's training and are accepted so
    that its configs load; the last six would change what is computed, and may have these values alone.
    As in the original, a model that is given no `conditioning_key` has concat, or crossattn where
    `concat_mode` is false; an unconditional one has none, unless `force_null_conditioning` says otherwise.
    EMA weights are not kept apart: with `use_ema` loading puts a checkpoint's averages (model_ema.*), where
    it has any, in the place of the plain ones.
    """

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str,
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        scale_factor: float = 1.0,
        conditioning_key: str | None = None,
        channels: int = 4,
        image_size: int = 64,
        parameterization: str = "eps",
        num_timesteps_cond: int | None = None,
        log_every_t: int = 100,
        first_stage_key: str = "image",
        cond_stage_key: str = "caption",
        cond_stage_trainable: bool = False,
        monitor: str | None = None,
        use_ema: bool = True,
        scheduler_config: Mapping[str, Any] | None = None,
        loss_type: str = "l2",
        original_elbo_weight: float = 0.0,
        l_simple_weight: float = 1.0,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        ucg_training: Mapping[str, Any] | None = None,
        clip_denoised: bool = True,
        cosine_s: float = 8e-3,
        concat_mode: bool = True,
        use_positional_encodings: bool = False,
        force_null_conditioning: bool = False,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        make_it_fit: bool = False,
        reset_ema: bool = False,
        reset_num_ema_updates: bool = False,
        beta_schedule: str = "linear",
        given_betas: Sequence[float] | None = None,
        v_posterior: float = 0.0,
        cond_stage_forward: str | None = None,
        scale_by_std: bool = False,
        ckpt_path: str | None = None,
    ):
        super().__init__()
        takes_only(self, "linear", beta_schedule=beta_schedule)
        takes_only(self, 0.0, v_posterior=v_posterior)
        takes_only(self, None, given_betas=given_betas, cond_stage_forward=cond_stage_forward)
        takes_only(self, False, SCALE, scale_by_std=scale_by_std)
        takes_only(self, None, WEIGHTS, ckpt_path=ckpt_path)
        if parameterization not in ("eps", "v"):
            raise InputError(f"parameterization {parameterization!r} is not known: give 'eps' or 'v'.")
        self.parameterization = parameterization
        self.use_ema = use_ema
        self.num_timesteps = timesteps
        self.scale_factor = scale_factor
        self.channels = channels
        self.image_size = image_size
        self.alphas_cumprod: Tensor
        self.sqrt_alphas_cumprod: Tensor
        self.sqrt_one_minus_alphas_cumprod: Tensor
        self._schedule = make_schedule(timesteps, linear_start, linear_end)
        for name, values in self._schedule.items():
            self.register_buffer(name, values)
        if conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        if cond_stage_config == "__is_unconditional__" and not force_null_conditioning:
            conditioning_key = None
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.model.diffusion_model.training_steps = timesteps  # FreeU's start and stop are fractions of them
        self.first_stage_model: AutoencoderKL = instantiate_from_config(first_stage_config)
        # Unconditional models have a word where others have a text encoder.
        self.cond_stage_model: nn.Module = nn.Identity()
        if not isinstance(cond_stage_config, str):
            self.cond_stage_model = instantiate_from_config(cond_stage_config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LatentDiffusion":
        # The schedule follows the weights to their device but never to half precision.
        super()._apply(fn, recurse)
        for name, values in self._schedule.items():
            setattr(self, name, values.to(self.device))
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which the networks compute."""
        return next(self.model.parameters()).dtype

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """For scripts that sample under it: it swaps nothing, as loading has put the averages in place."""
        yield

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The U-Net's output for latents, (B, C, h, w), at timesteps t, (B,), under a conditioning.

        The names are the original's: samplers of k-diffusion give `cond=`.
        """
        return self.model(x_noisy.to(self.dtype), t, cond)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t: the latents x_start, (B, C, h, w), with the noise of timesteps t, (B,)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        alpha, sigma = self._alpha_sigma(t, x_start)
        return alpha * x_start + sigma * noise

    def get_v(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity that a v-model learns: alpha noise - sigma x."""
        alpha, sigma = self._alpha_sigma(t, x)
        return alpha * noise - sigma * x

    def predict_eps_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """The noise in x_t given the velocity."""
        alpha, sigma = self._alpha_sigma(t, x_t)
        return alpha * v + sigma * x_t

    def predict_start_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """The noise-free latents given the velocity."""
        alpha, sigma = self._alpha_sigma(t, x_t)
        return alpha * x_t - sigma * v

    def _alpha_sigma(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.sqrt_alphas_cumprod[t], self.sqrt_one_minus_alphas_cumprod[t]
        return alpha.to(x)[:, None, None, None], sigma.to(x)[:, None, None, None]

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """The context of a list of prompts: (B, tokens, context_dim)."""
        return self.cond_stage_model(c)

    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution:
        """The posterior over latents of pictures x in [-1, 1], (B, 3, H, W)."""
        return self.first_stage_model.encode(x.to(self.dtype))

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """Latents at the scale the U-Net was trained on, (B, C, h, w)."""
        z = posterior.sample() if isinstance(posterior, DiagonalGaussianDistribution) else posterior
        return self.scale_factor * z

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Pictures, near [-1, 1], of latents z, (B, C, h, w) to (B, 3, H, W)."""
        return self.first_stage_model.decode(z.to(self.dtype) / self.scale_factor)


def make_schedule(timesteps: int, linear_start: float, linear_end: float) -> dict[str, Tensor]:
    """The noise schedule under the names that checkpoints have, (T,) each, in float32 from float64.

    On the CPU whatever the default device, so that a model built on meta has it too. Raises InputError where
    a number is out of range, and where alphas_cumprod does not fall at each step, from below 1 to above 0:
    samplers divide by it and by its differences.
    """
    if not 1 <= timesteps <= MOST_TIMESTEPS:
        raise InputError(f"timesteps is {timesteps}: give a whole number from 1 to {MOST_TIMESTEPS}.")
    for name, beta in {"linear_start": linear_start, "linear_end": linear_end}.items():
        if not 0 < beta < 1:
            raise InputError(f"{name} is {beta}: give a number between 0 and 1.")
    with torch.device("cpu"):
        betas = linear_betas(timesteps, linear_start, linear_end)
        alphas = 1.0 - betas
        a = alphas.cumprod(0)
        a_prev = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
        variance = betas * (1 - a_prev) / (1 - a)
        # The first variance is zero; its logarithm is taken of the second.
        clipped = torch.cat([variance[1:2], variance[1:]])
        values = {
            "betas": betas,
            "alphas_cumprod": a,
            "alphas_cumprod_prev": a_prev,
            "sqrt_alphas_cumprod": a.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - a).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - a).log(),
            "sqrt_recip_alphas_cumprod": a.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / a - 1).sqrt(),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": clipped.log(),
            "posterior_mean_coef1": betas * a_prev.sqrt() / (1 - a),
            "posterior_mean_coef2": (1 - a_prev) * alphas.sqrt() / (1 - a),
        }
        schedule = {name: value.float() for name, value in values.items()}
        a = schedule["alphas_cumprod"]
        if not (torch.cat([torch.ones(1), a, torch.zeros(1)]).diff() < 0).all():
            too_much = "comes down to 0: lower one of the three"
            too_little = "does not fall at each step: raise linear_start or linear_end"
            raise InputError(
                f"With linear_start {linear_start}, linear_end {linear_end} and timesteps {timesteps} "
                f"alphas_cumprod in float32 {too_little if a[-1] > 0 else too_much}."
            )
        return schedule
