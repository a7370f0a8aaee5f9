"""A network's answers tell whether it predicts noise or velocity; where they do not, nothing is said."""

import math
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, generate
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.parameterization import mix_up, noise_and_answer, predicts
from ldm.util import instantiate_from_config
from tests.conftest import fill_by_name

Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)
KINDS = ("eps", "v")


class Ideal(nn.Module):
    """The best possible network for latents that are normal around a pattern, in closed form."""

    in_channels, downsampling = 4, 4

    def __init__(self, model: LatentDiffusion, kind: str, mean: float, deviation: float):
        super().__init__()
        self.kind, self.deviation = kind, deviation
        self.pattern = mean * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        self.alpha, self.sigma = model.sqrt_alphas_cumprod, model.sqrt_one_minus_alphas_cumprod
        self.weight = nn.Parameter(torch.zeros(()))  # for the model to know its precision by

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha, sigma = (it[t][:, None, None, None] for it in (self.alpha, self.sigma))
        gain = self.deviation**2 * alpha / (self.deviation**2 * alpha**2 + sigma**2)
        x_0 = self.pattern + gain * (x - alpha * self.pattern)
        eps = (x - alpha * x_0) / sigma
        return eps if self.kind == "eps" else alpha * eps - sigma * x_0


def diffusion(start: float = 0.00085, end: float = 0.012, timesteps: int = 1000) -> LatentDiffusion:
    """A small model with Stable Diffusion's schedule unless told otherwise, with random weights."""
    config = load_config("tiny.yaml").model
    config.params.update({"linear_start": start, "linear_end": end, "timesteps": timesteps})
    return instantiate_from_config(config).eval()


prepared = cache(diffusion)


def ideal(kind: str, mean: float, deviation: float, *schedule: float) -> LatentDiffusion:
    """A model that has this ideal network for its U-Net; the one before is given up."""
    model = prepared(*schedule)
    model.channels = 4
    model.model.diffusion_model = Ideal(model, kind, mean, deviation)
    return model


@pytest.fixture(scope="module")
def embedded(tiny_checkpoint: Path) -> LatentDiffusion:
    return load_model("freeu_tiny.yaml", tiny_checkpoint, "cpu", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_embedded_model_is_known_for_the_v_model_it_is(dtype: torch.dtype, tiny_checkpoint: Path) -> None:
    assert predicts(load_model("tiny.yaml", tiny_checkpoint, "cpu", dtype)) == "v"


@pytest.mark.parametrize("kind", KINDS)
def test_an_ideal_network_is_known_for_what_it_is(kind: str) -> None:
    assert predicts(ideal(kind, 0.2, 0.2)) == kind
    assert predicts(ideal(kind, 0.2, 0.2, 0.0001, 0.02)) == kind
    # A schedule that ends while the picture is still there gives nothing to tell them apart by.
    assert predicts(ideal(kind, 0.2, 0.2, 0.00085, 0.012, 100)) is None


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), mean=st.floats(0, 3), deviation=st.floats(0, 2))
def test_no_ideal_network_is_taken_for_the_other_kind(kind: str, mean: float, deviation: float) -> None:
    assert predicts(ideal(kind, mean, deviation)) in (kind, None)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_said_of_networks_that_learnt_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    model = diffusion()
    for _ in range(2):
        model.parameterization = KINDS[seed % 2]
        assert predicts(model) is None and mix_up(model) is None
        fill_by_name(model)
    model.model.diffusion_model.out[2].weight.zero_()
    assert predicts(model) is None
    model.model.diffusion_model.out[2].bias.fill_(math.nan)
    assert predicts(model) is None


def test_a_model_of_another_conditioning_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    inpainting = ideal("eps", 0.2, 0.2)
    assert predicts(inpainting) == "eps"
    monkeypatch.setattr(inpainting, "apply_model", lambda *_: pytest.fail("it is asked"))
    inpainting.model.diffusion_model.in_channels = 9
    assert predicts(inpainting) is None
    inpainting.model.diffusion_model.in_channels = 4
    monkeypatch.setattr(inpainting.model, "conditioning_key", "hybrid")
    assert predicts(inpainting) is None


def test_asking_leaves_freeu_and_the_generator_as_they_were(embedded: LatentDiffusion) -> None:
    unet = embedded.model.diffusion_model
    before, state = unet.freeu, torch.random.get_rng_state()
    assert predicts(embedded) == "v"
    assert unet.freeu == before and unet.hit_blocks()
    assert torch.equal(state, torch.random.get_rng_state())


def test_freeu_has_no_say_in_what_the_network_answers(embedded: LatentDiffusion) -> None:
    unet = embedded.model.diffusion_model
    _, plain = noise_and_answer(embedded, 999)
    with unet.under(FreeUSettings(3.0, 3.0, 0.0, 2.0)):
        assert torch.equal(noise_and_answer(embedded, 999)[1], plain)


def test_a_mix_up_is_said_with_the_remedy_and_drawn(txt2img: Run) -> None:
    outcome = txt2img("model.params.parameterization=eps")
    assert outcome.code == 0 and len(outcome.pictures()) == 1
    [line] = outcome.err.splitlines()
    assert line.startswith("warning: the checkpoint is of a model that predicts the velocity (v), the con")
    assert "model.params.parameterization=v" in line and "freeu_sd21.yaml" in line
    assert txt2img().err == ""


MIXED_UP = """
base: freeu_tiny.yaml
model: {params: {parameterization: eps}}
sampling: {height: 32, width: 32, steps: 1}
"""
COMMANDS = {
    "evaluate": ["--prompts", "1", "--seeds", "2", "--settings", "V1", "--metrics", "saturation"],
    "figures": ["--prompts", "1", "--seeds", "2", "--figure", "13"],
    "user_study": ["make", "--pairs", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_study_says_a_mix_up_before_it_draws(
    name: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mixed.yaml"
    config.write_text(MIXED_UP)
    argv = ["--config", str(config), "--ckpt", str(tiny_checkpoint), "--outdir", str(tmp_path / "out")]
    main = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
    assert main([*COMMANDS[name], *argv, "--device", "cpu"]) == 0
    assert "predicts the velocity (v), the config takes it for the noise (eps)" in capsys.readouterr().err


def test_the_other_mix_up_names_the_other_config() -> None:
    model = ideal("eps", 0.2, 0.2)
    model.parameterization = "v"
    said = mix_up(model)
    assert said is not None and "predicts the noise (eps), the config takes it for the velocity (v)" in said
    assert "parameterization=eps" in said and "freeu_sd21_base.yaml" in said
    model.parameterization = "eps"
    assert mix_up(model) is None


def test_numbers_that_overflow_after_a_mix_up_are_put_down_to_it(embedded: LatentDiffusion) -> None:
    small = Sampling(32, 32, steps=2, scale=1e38)
    with pytest.raises(InputError, match=r"after step \d of 2: too strong a --scale or FreeU factor\.$"):
        generate(embedded, ["a red star"], [1], small)
    embedded.parameterization = "eps"
    try:
        with pytest.raises(InputError, match=r"after step \d of 2: .* add model\.params\.parameterization=v"):
            generate(embedded, ["a red star"], [1], small)
    finally:
        embedded.parameterization = "v"
