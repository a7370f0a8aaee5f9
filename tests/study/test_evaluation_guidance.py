"""How far a setting guides: on a network where it is known, and on the embedded model against a slow loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoint import load_model
from ldm.errors import InputError
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, denoise, seeded_noise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.study.evaluation.guidance import guidance_ratios
from ldm.txt2img.jobs import Job

SAMPLING = Sampling(height=32, width=32, steps=4, scale=4.0)
PAIRS = [Job("a small red circle", 1), Job("a large blue star on a white background", 2)]
V1, V2 = FreeUSettings(1.3, 1.4, 0.9, 0.2), FreeUSettings(1.3, 1.4, 0.9, 0.2, version=2)


class Answering(nn.Module):
    """A network whose answer to the caption is b1 times as long as without FreeU, beside another part."""

    def __init__(self) -> None:
        super().__init__()
        self.freeu, self.beside = V1, nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        answer = context.mean((1, 2))[:, None, None, None]  # (2B, 1, 1, 1)
        return self.freeu.b1 * answer + self.freeu.s1 * self.beside * x


@pytest.fixture
def model(tiny_checkpoint: Path) -> LatentDiffusion:
    return load_model("freeu_tiny.yaml", tiny_checkpoint, "cpu", torch.float32)


def test_the_ratio_is_that_by_which_the_answer_to_the_caption_is_longer(model: LatentDiffusion) -> None:
    model.model.diffusion_model = Answering()
    settings = [replace(V1, b1=b, s1=s) for b, s in ((1.0, 0.3), (1.25, 1.0), (0.5, 2.0))]
    ratios = guidance_ratios(model, [PAIRS], SAMPLING, settings)
    assert ratios == pytest.approx([1.0, 1.25, 0.5], rel=1e-5)


def test_on_the_embedded_model_it_is_that_of_a_slow_loop_along_the_plain_trajectory(
    model: LatentDiffusion,
) -> None:
    unet = model.model.diffusion_model
    unet.freeu = V1.off()
    reach = {"off": 0.0, "V1": 0.0, "V2": 0.0}
    for pair in PAIRS:
        given, without = (model.get_learned_conditioning([text]) for text in (pair.prompt, ""))
        x, t = seeded_noise([pair.seed])((1, model.channels, 4, 4)), 751.0
        for step in denoise(model, [pair.prompt], [""], [pair.seed], SAMPLING):
            for name, freeu in {"off": V1.off(), "V1": V1, "V2": V2}.items():
                unet.freeu = freeu
                answers = [model.apply_model(x, torch.tensor([t]), c) for c in (given, without)]
                reach[name] += (answers[0] - answers[1]).norm().item()
            unet.freeu = V1.off()
            x, t = step.x, step.t
    ratios = guidance_ratios(model, [PAIRS[:1], PAIRS[1:]], SAMPLING, [V1, V2, replace(V1, strength=0.0)])
    assert ratios == pytest.approx([reach["V1"] / reach["off"], reach["V2"] / reach["off"], 1.0], rel=1e-4)
    assert ratios[0] != pytest.approx(1, rel=1e-3)


def test_afterwards_the_model_is_the_plain_one_without_a_hook(model: LatentDiffusion) -> None:
    unet = model.model.diffusion_model
    guidance_ratios(model, [PAIRS], SAMPLING, [V1])
    assert not unet.hit_blocks()
    assert not unet._forward_hooks


def test_prompts_that_say_nothing_to_the_model_are_an_error(model: LatentDiffusion) -> None:
    with pytest.raises(InputError, match="knows none of their words"):
        guidance_ratios(model, [[Job("zeppelin", 1)]], SAMPLING, [V1])
