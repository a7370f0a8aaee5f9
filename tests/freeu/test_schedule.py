"""Strength and the schedule over the denoising run, against plain loops over the samples."""

import pytest
import torch

from ldm.freeu import FreeUSettings, free_u
from ldm.freeu.settings import DecoderStage
from tests.conftest import relative_error, rnd

FACTORS = (1.3, 1.4, 0.9, 0.2)


def plain_weight(step, steps, start, stop, ramp):
    """The weight of one step, read off the definition."""
    fraction = step / steps
    if start <= fraction < stop:
        return 1.0
    distance = start - fraction if fraction < start else fraction - stop
    return max(0.0, 1 - distance / ramp) if ramp else 0.0


@pytest.mark.parametrize("start", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("stop", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("ramp", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_weight_of_each_step(start, stop, ramp, steps):
    settings = FreeUSettings(*FACTORS, start=start, stop=stop, ramp=ramp)
    run = torch.linspace(999, 1, steps)
    expected = torch.tensor([plain_weight(i, steps, start, stop, ramp) for i in range(steps)])
    assert torch.allclose(settings.weight(run, run), expected, atol=1e-6)
    if settings.acts_throughout():
        assert (expected == 1).all()
    if settings.never_acts():
        assert (expected == 0).all()


def test_timesteps_between_and_beyond_those_of_the_run():
    run = torch.tensor([800, 600, 400, 200])
    t = torch.tensor([999, 800, 700, 600, 100])
    weight = FreeUSettings(*FACTORS, start=0.25, stop=0.5).weight(t, run)
    assert weight.tolist() == [0, 0, 1, 1, 0]
    assert FreeUSettings(*FACTORS, start=0.5).weight(t, run).tolist() == [0, 0, 0, 0, 1]
    # A run that begins below all of its timesteps begins there nevertheless.
    assert FreeUSettings(*FACTORS, stop=0.5).weight(t[-1:], run, begin=t[-1]).tolist() == [1]


def test_over_all_training_steps_a_fraction_is_of_the_timesteps():
    run = torch.arange(1000).flip(0)
    weight = FreeUSettings(*FACTORS, start=0.1, stop=0.75).weight(run, run)
    assert run[weight == 1].tolist() == list(range(899, 249, -1))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("threshold", [1, 2])
def test_each_sample_has_the_factors_of_its_weight(version, memory, threshold):
    fused, weight = rnd(1, 4, 14, 6, 5).to(memory_format=memory), torch.tensor([0.0, 0.3, 1.0, 0.75])
    alone = [
        free_u(sample.clone(), 8, 1 + w * (1.3 - 1), 1 + w * (0.4 - 1), version, threshold)
        for sample, w in zip(fused.split(1), weight.tolist(), strict=True)
    ]
    out = free_u(fused.clone(), 8, 1.3, 0.4, version, threshold, weight)
    assert torch.equal(out[0], fused[0])
    assert relative_error(out, torch.cat(alone)) < 1e-6


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_moves_all_factors_from_one(strength):
    stages = [DecoderStage(4, 4, 2), DecoderStage(2, 2, 1)]
    pairs = FreeUSettings(*FACTORS, strength=strength).factors(stages, 1)
    lerped = [1 + strength * (factor - 1) for factor in (1.3, 0.9, 1.4, 0.2)]
    assert [factor for pair in pairs for factor in pair] == pytest.approx(lerped)
    if strength == 0:
        assert pairs == [(1, 1), (1, 1)]
    if strength == 1:
        assert pairs == [(1.3, 0.9), (1.4, 0.2)]


def test_nothing_is_overwritten_while_autograd_records():
    fused = rnd(2, 1, 14, 6, 5)
    before = fused.clone()
    with torch.enable_grad():
        out = free_u(fused, 8, 1.3, 0.4)
    assert torch.equal(fused, before)
    assert torch.equal(free_u(fused, 8, 1.3, 0.4), out)


@pytest.mark.parametrize("name", ["strength", "start", "stop", "ramp"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_a_value_that_means_nothing_is_named(name, value):
    with pytest.raises(ValueError, match=f"FreeU's {name} is {value!r}: give a number from 0 to 1"):
        FreeUSettings(*FACTORS, **{name: value})
