import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.modules.diffusionmodules.schedule import ddim_noise, ddim_timesteps, levels, linear_betas

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "schedule.npz")
BETAS = linear_betas(1000, 0.00085, 0.012)
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, 0)


def test_betas_are_linear_in_their_square_root_in_float64():
    assert BETAS.dtype == torch.float64
    assert BETAS[[0, -1]].tolist() == pytest.approx([0.00085, 0.012], rel=1e-12)
    steps = BETAS.sqrt().diff()
    assert torch.allclose(steps, steps[0].expand(999), rtol=1e-9)


def test_stable_diffusions_schedule_is_the_originals():
    np.testing.assert_allclose(ALPHAS_CUMPROD, GOLDEN["alphas_cumprod"], rtol=1e-6)


@pytest.mark.parametrize("S", [10, 20, 50])
@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_parameters_are_the_originals(S, eta):
    times = ddim_timesteps(S, 1000)
    assert times == GOLDEN[f"s{S}_timesteps"].tolist()

    path = levels(ALPHAS_CUMPROD, [0, *times])
    alphas = [level.alpha**2 for level in path]
    np.testing.assert_allclose(alphas[1:], GOLDEN[f"s{S}_alphas"], rtol=1e-6)
    np.testing.assert_allclose(alphas[:-1], GOLDEN[f"s{S}_alphas_prev"], rtol=1e-6)

    sigmas = [ddim_noise(now, after, eta) for after, now in pairwise(path)]
    np.testing.assert_allclose(sigmas, GOLDEN[f"s{S}_eta{eta}_sigmas"], rtol=1e-5)


@given(st.integers(1, 1000).flatmap(lambda T: st.tuples(st.integers(1, T), st.just(T))))
def test_ddim_visits_the_originals_steps_and_never_leaves_the_table(S_and_T):
    S, T = S_and_T
    original = np.arange(0, T, T // S) + 1
    times = ddim_timesteps(S, T)
    assert len(times) == len(original) >= S
    assert times == np.where(original < T, original, T - 1).tolist()
    assert times == sorted(times)


@pytest.mark.parametrize("S", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_named(S):
    with pytest.raises(InputError, match=rf"{S} sampling steps.* 1 to 1000"):
        ddim_timesteps(S, 1000)


class OnMPS(torch.Tensor):
    """Numbers as on a device without float64."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_levels_are_the_same_from_a_device_without_float64():
    alphas = ALPHAS_CUMPROD.float()
    assert levels(alphas.as_subclass(OnMPS), [0, 500.5, 999]) == levels(alphas, [0, 500.5, 999])


@given(st.floats(0, 999))
def test_between_training_steps_log_alpha_is_linear_in_time(t):
    low = min(int(t), 998)
    below, level, above = levels(ALPHAS_CUMPROD, [low, t, low + 1])
    expected = (low + 1 - t) * math.log(below.alpha) + (t - low) * math.log(above.alpha)
    assert math.log(level.alpha) == pytest.approx(expected, rel=1e-9)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-12)
    assert below.log_snr >= level.log_snr >= above.log_snr
