"""Relative log amplitude and the band split: against the literal procedure, and where the answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.freeu.spectrum import band_split, diagonal_frequencies, high_end, relative_log_amplitude, square
from tests.conftest import rnd

SIDES = st.integers(1, 24)


def literal_curve(x):
    """Park and Kim's procedure step by step: shift, average, take the diagonal from the centre."""
    features = x.double().numpy()
    n = features.shape[-1]
    log = np.log(np.abs(np.fft.fft2(features)) + 1e-6)
    shifted = np.fft.fftshift(log, axes=(-2, -1)).mean((0, 1))  # (N, N)
    outward = np.array([shifted[i, i] for i in range(n // 2, n)])
    return outward - outward[0]


@pytest.mark.parametrize("side", [1, 2, 5, 16, 33])
def test_the_mean_curve_is_the_literal_procedures(side):
    x = rnd(side, 3, 4, side, side)
    np.testing.assert_allclose(relative_log_amplitude(x).mean(0), literal_curve(x), atol=1e-4)


def test_white_noise_is_flat_near_035():
    curve = relative_log_amplitude(rnd(1, 8, 64, 64, 64)).mean(0)
    assert curve[0] == 0
    assert (curve[1:] - math.log(2) / 2).abs().max() < 0.12
    assert abs(curve[1:].mean() - 0.35) < 0.05


def one_over_f(side, seed):
    """Noise whose amplitude falls as one over the frequency; the mean has the lowest one's."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    f[0, 0] = 1 / side
    spectrum = np.fft.fft2(rnd(seed, 256, side, side).numpy()) / f
    return torch.from_numpy(np.fft.ifft2(spectrum).real)[None]


def test_a_field_of_one_over_f_ends_near_minus_35():
    curve = relative_log_amplitude(one_over_f(64, 2))[0]
    assert abs(curve[-1] + 3.5) < 0.2
    assert curve[1] > curve[4] > curve[16] > curve[31]


def test_curves_rise_with_the_share_of_noise():
    field = one_over_f(32, 3).float()
    field, noise = field / field.std(), rnd(4, 1, 256, 32, 32)
    ends = [
        high_end(relative_log_amplitude((1 - a) * field + a * noise), 32).item()
        for a in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    assert ends == sorted(ends) and ends[-1] - ends[0] > 2


def test_a_wave_stands_out_at_its_own_frequency_by_the_analytic_amount():
    side, k, mean = 32, 5, 2.0
    position = torch.arange(side)
    wave = torch.cos(2 * math.pi * k * (position[:, None] + position) / side)
    curve = relative_log_amplitude((mean + wave)[None, None])[0]
    frequencies = diagonal_frequencies(side)
    assert frequencies[k] == pytest.approx(2 * math.pi * k / side)
    assert curve[k].item() == pytest.approx(math.log(0.5 / mean), abs=1e-3)  # half on either side of zero
    assert torch.cat([curve[1:k], curve[k + 1 :]]).max() < -10


@given(height=SIDES, width=SIDES)
@settings(max_examples=30)
def test_maps_that_are_not_square_count_as_their_middle_square(height, width):
    x, n = rnd(5, 2, 3, height, width), min(height, width)
    curve = relative_log_amplitude(x)
    assert curve.shape == (2, (n + 1) // 2) and diagonal_frequencies(n).shape == curve.shape[1:]
    top, left = (height - n) // 2, (width - n) // 2
    middle = x[:, :, top : top + n, left : left + n]
    assert torch.equal(square(x), middle) and torch.equal(curve, relative_log_amplitude(middle))


def test_samples_are_measured_apart():
    x = rnd(6, 3, 4, 8, 8)
    each = torch.cat([relative_log_amplitude(one[None]) for one in x])
    assert torch.allclose(relative_log_amplitude(x), each, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    x = (200 * rnd(7, 2, 4, 64, 64)).to(dtype)  # a float16 transform would overflow
    assert torch.equal(relative_log_amplitude(x), relative_log_amplitude(x.float()))
    low, high = band_split(x)
    assert low.dtype == high.dtype == torch.float32 and torch.equal(low, band_split(x.float())[0])


def test_only_maps_with_sample_and_channel_are_taken():
    with pytest.raises(ValueError, match=r"\(B, C, H, W\) here, not \(4, 8, 8\)"):
        relative_log_amplitude(rnd(8, 4, 8, 8))


@given(height=SIDES, width=SIDES, radius=st.floats(0, 0.8))
@settings(max_examples=60)
def test_the_bands_share_a_maps_power_between_them(height, width, radius):
    x = rnd(9, 2, height, width)
    low, high = band_split(x, radius)
    assert torch.allclose(low + high, x, atol=1e-5)
    power = [band.double().square().sum() for band in (low, high, x)]
    assert power[0] + power[1] == pytest.approx(power[2].item(), rel=1e-5)  # Parseval: no term in both


@pytest.mark.parametrize(("k", "down", "band"), [
    (0, 0, 0), (3, 0, 0), (4, 0, 1), (16, 0, 1), (0, 2, 0), (0, 3, 1), (3, 1, 1), (2, 1, 0),
])  # fmt: skip
def test_waves_go_whole_into_the_band_of_their_frequency(k, down, band):
    phase = k * torch.arange(32) / 32 + down * torch.arange(20)[:, None] / 20  # in cycles
    x = torch.cos(2 * math.pi * phase)
    bands = band_split(x)
    assert torch.allclose(bands[band], x, atol=1e-5) and bands[1 - band].abs().max() < 1e-5


@pytest.mark.parametrize("side", range(10, 130, 10))
def test_the_wave_at_the_radius_itself_is_low_at_every_size(side):
    x = torch.cos(2 * math.pi * (side // 10) * torch.arange(side) / side).expand(side, side)
    assert torch.allclose(band_split(x, radius=0.1)[0], x, atol=1e-5)


def test_a_map_without_high_frequencies_has_a_curve_of_numbers():
    flat = relative_log_amplitude(torch.full((1, 3, 8, 8), 2.0))[0]  # whose one amplitude is 2 * 64
    assert flat.tolist() == pytest.approx([0, *3 * [math.log(1e-6 / 128)]], abs=1e-3)


def test_the_high_end_is_the_mean_from_half_of_pi_up():
    curve = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    assert high_end(curve, 8).tolist() == [3.0]
    for side in range(3, 130):
        counted = [k for k in range((side + 1) // 2) if 4 * k >= side]
        mean = high_end(torch.arange((side + 1) // 2).float(), side).item()
        assert mean == pytest.approx(sum(counted) / len(counted))
    assert high_end(torch.zeros(1, 1), 2).isnan()
