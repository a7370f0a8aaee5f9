"""What all samplers share: guidance, the loop over steps, and the call that scripts know."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.config.neutral import takes_only
from ldm.errors import InputError
from ldm.modules.diffusionmodules.schedule import Level, levels

Noise = Callable[[Sequence[int]], Tensor]
Denoiser = Callable[[Tensor, Level], Tensor]
Hold = Callable[[Tensor, Level], Tensor]  # puts into x at a level what is known of it


class DiffusionModel(Protocol):
    """What a sampler asks of a model."""

    num_timesteps: int
    parameterization: str  # "eps" or "v"
    alphas_cumprod: Tensor  # (num_timesteps,)

    @property
    def device(self) -> Any: ...

    def apply_model(self, x: Tensor, t: Tensor, c: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """Where a sampler stands after one step."""

    index: int  # from 0 to total - 1
    total: int
    t: float  # the noise level left, in training steps
    x: Tensor  # the latents now, (b, c, h, w) in float32
    pred_x0: Tensor  # what the network takes for the noise-free latents, (b, c, h, w)


def hold_nothing(x: Tensor, now: Level) -> Tensor:
    """All of x is drawn."""
    return x


def holding(mask: Tensor, x0: Tensor | None, x_T: Tensor, noise: Noise) -> Hold:
    """Holds latents like x_T, (b, c, h, w), to x0 where the mask is 1, as noisy as the level is.

    Raises InputError where x0 is missing, or one of the two does not expand to the latents' shape.
    """
    if x0 is None:
        raise InputError("There is a mask, but no x0: give the latents that are known where the mask is 1.")
    for name, given in {"mask": mask, "x0": x0}.items():
        try:
            given.expand(*x_T.shape)
        except RuntimeError:
            raise InputError(
                f"{name} is {tuple(given.shape)}, which does not fit latents of {tuple(x_T.shape)}: "
                "give it at the latents' size."
            ) from None
    mask, x0 = mask.to(x_T), x0.to(x_T)

    def hold(x: Tensor, now: Level) -> Tensor:
        return torch.lerp(x, now.alpha * x0 + now.sigma * noise(x.shape).to(x), mask)

    return hold


class Sampler(ABC):
    """Turns noise into latents with a trained model.

    A subclass says which noise levels it visits and how it gets from one to the next, all in float32 whatever
    the network runs in. `schedule` and `device` are accepted, as scripts of the originals' give them, and
    change nothing: both are the model's.
    """

    max_eta = 0.0  # how much fresh noise the method allows

    def __init__(self, model: DiffusionModel, schedule: str = "linear", device: Any = None) -> None:
        self.model = model

    @abstractmethod
    def timesteps(self, S: int) -> list[float]:
        """The times at which the network is asked, in training steps, from noise to picture.

        Raises InputError where S is not between 1 and the number of training steps.
        """

    @abstractmethod
    def solve(
        self, eps: Denoiser, x: Tensor, path: list[Level], eta: float, noise: Noise, hold: Hold
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Walks x from level to level of the path; yields (x, pred_x0) after each step.

        What `eps` is asked about has been through `hold` at that level, and the step starts from there.
        """

    def steps(
        self,
        S: int,
        x_T: Tensor,
        conditioning: Any = None,
        *,
        eta: float = 0.0,
        noise: Noise = torch.randn,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
    ) -> Iterator[Step]:
        """Samples from the noise x_T (b, c, h, w), step by step, so that the caller owns bars and previews.

        `noise(shape)` draws the fresh noise that eta > 0 and a mask ask for. Guidance needs a scale other
        than 1 and an unconditional conditioning; without it the network runs on half the batch.

        To inpaint, give latents x0 and a mask that is 1 where they are known and 0 where they are drawn, both
        of a shape that expands to that of x_T. Each time the network is asked, x0 with fresh noise stands
        where it is known. The last step is the network's own: lay the known picture over what comes out.
        Without a mask x0 counts for nothing.

        Raises InputError where S or eta is out of the method's range, where mask and x0 do not fit, and where
        a guided conditioning is not for as many samples as x_T.
        """
        eps = self.guided(
            conditioning, unconditional_conditioning, unconditional_guidance_scale, count=len(x_T)
        )
        x = x_T.to(self.model.device, torch.float32)
        hold = hold_nothing if mask is None else holding(mask, x0, x, noise)
        return self.walk(self.timesteps(S), x, eps, eta, noise, hold)

    @torch.no_grad()
    def walk(
        self,
        times: Sequence[float],
        x: Tensor,
        eps: Denoiser,
        eta: float = 0.0,
        noise: Noise = torch.randn,
        hold: Hold = hold_nothing,
    ) -> Iterator[Step]:
        """The steps from x through `times` and down to time 0, the cleanest the network was trained on."""
        if not 0 <= eta <= self.max_eta:
            takes = f"0 to {self.max_eta:g}" if self.max_eta else "none: give 0, or sample with DDIM"
            raise InputError(f"eta is {eta}, but {type(self).__name__} takes {takes}.")
        path = levels(self.model.alphas_cumprod, [*times, 0])
        states = self.solve(eps, x.to(self.model.device, torch.float32), path, eta, noise, hold)
        for index, (latents, pred_x0) in enumerate(states):
            yield Step(index, len(times), path[index + 1].t, latents, pred_x0)

    def guided(self, conditioning: Any, unconditional: Any, scale: float, count: int) -> Denoiser:
        """What noise the model sees in x at a level, with classifier-free guidance (arXiv 2207.12598)."""
        guide = scale != 1 and unconditional is not None
        if guide:
            check_rows("conditioning", conditioning, count)
            check_rows("unconditional_conditioning", unconditional, count)
        c = join(unconditional, conditioning) if guide else conditioning

        def eps(x: Tensor, now: Level) -> Tensor:
            batch = torch.cat([x, x]) if guide else x  # (2b, c, h, w)
            kind = torch.float32 if isinstance(now.t, float) else torch.int64
            t = torch.full((len(batch),), now.t, dtype=kind, device=x.device)
            out = self.model.apply_model(batch, t, c).float()
            if guide:
                without, given = out.chunk(2)  # (b, c, h, w) each
                out = without + scale * (given - without)
            # A v-model predicts v = alpha eps - sigma x_0 (arXiv 2202.00512, appendix D).
            return now.alpha * out + now.sigma * x if self.model.parameterization == "v" else out

        return eps

    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        *,
        callback: Callable[[int], object] | None = None,
        img_callback: Callable[[Tensor, int], object] | None = None,
        eta: float = 0.0,
        x_T: Tensor | None = None,
        noise: Noise = torch.randn,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        verbose: bool = True,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        quantize_x0: bool = False,
        normals_sequence: Any = None,
        score_corrector: Any = None,
        corrector_kwargs: Any = None,
        dynamic_threshold: Any = None,
        ucg_schedule: Any = None,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Samples latents (batch_size, *shape), shape being (c, h, w); the other arguments as in `steps`.

        `callback(i)` and `img_callback(pred_x0, i)` hear of each step; verbose shows a bar on a terminal.
        Beside the latents comes {"x_inter": [...], "pred_x0": [...]}: both begin with the noise, then hold
        the first step, the last, and every `log_every_t`-th counted from the last. Parameters after `verbose`
        are accepted, as scripts of the originals' name them, and may have these values alone.
        """
        takes_only(self, 1.0, temperature=temperature)
        takes_only(self, 0.0, noise_dropout=noise_dropout)
        takes_only(self, False, quantize_x0=quantize_x0)
        takes_only(self, None, score_corrector=score_corrector, corrector_kwargs=corrector_kwargs)
        takes_only(self, None, dynamic_threshold=dynamic_threshold, ucg_schedule=ucg_schedule)
        takes_only(self, None, normals_sequence=normals_sequence)
        x = noise((batch_size, *shape)) if x_T is None else x_T
        x = x.to(self.model.device, torch.float32)
        kept: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}
        steps = self.steps(
            S,
            x,
            conditioning,
            eta=eta,
            noise=noise,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            mask=mask,
            x0=x0,
        )
        total = len(self.timesteps(S))
        for step in tqdm(steps, type(self).__name__, total, disable=None if verbose else True):
            x = step.x
            if callback:
                callback(step.index)
            if img_callback:
                img_callback(step.pred_x0, step.index)
            left = step.total - step.index - 1
            if step.index == 0 or left % log_every_t == 0:
                kept["x_inter"].append(step.x)
                kept["pred_x0"].append(step.pred_x0)
        return x, kept


def check_rows(name: str, c: Any, count: int) -> None:
    """Raises InputError where a conditioning of a form that `join` takes has another number of rows."""
    if isinstance(c, Tensor):
        if len(c) != count:
            raise InputError(f"{name} is for {len(c)} samples, but {count} are drawn: give one for each.")
    elif isinstance(c, dict | list | tuple):
        for part in c.values() if isinstance(c, dict) else c:
            check_rows(name, part, count)


def join(first: Any, second: Any) -> Any:
    """Two conditionings as one batch: tensors, or lists and dicts of them as in hybrid conditioning."""
    if isinstance(second, dict):
        return {key: join(first[key], second[key]) for key in second}
    if isinstance(second, list | tuple):
        return [join(a, b) for a, b in zip(first, second, strict=True)]
    return torch.cat([first, second])
