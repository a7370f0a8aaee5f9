import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from ldm.study.pictures import clipped_shares, diversities, energies, saturations
from tests.memory import LittleMemory

N = 64


def wave(down: int, across: int, height: float) -> np.ndarray:
    """A grey wave of so many cycles a picture, (N, N, 3), around nothing."""
    y, x = np.mgrid[:N, :N] / N
    return np.repeat((height * np.cos(2 * np.pi * (down * y + across * x)))[..., None], 3, axis=-1)


def as_bytes(picture: np.ndarray) -> np.ndarray:
    return (picture + 128).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("down", "across", "share"),
    [(3, 0, 0), (0, 15, 0), (0, 17, 1), (31, 0, 1), (11, 11, 0), (12, 12, 1)],
)
def test_a_wave_has_all_of_its_energy_on_one_side_of_half_pi(down: int, across: int, share: float) -> None:
    # N / 4 = 16 cycles are 0.5 pi a pixel; (11, 11) lies at 15.6 and (12, 12) at 17.
    assert energies(as_bytes(wave(down, across, 100))) == pytest.approx(share, abs=1e-3)


@given(st.floats(10, 60), st.floats(10, 60))
def test_two_waves_share_the_energy_by_the_squares_of_their_heights(low: float, high: float) -> None:
    picture = as_bytes(wave(2, 5, low) + wave(20, 9, high))
    assert energies(picture) == pytest.approx(high**2 / (low**2 + high**2), abs=5e-3)


def test_a_picture_of_one_colour_has_no_energy() -> None:
    assert energies(np.full((2, 8, 8, 3), 77, np.uint8)).tolist() == [0, 0]


def test_white_noise_has_the_energy_of_the_spectrum_s_share() -> None:
    noise = default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert energies(noise) == pytest.approx(1 - np.pi * 0.25**2, abs=0.01)


def test_saturation_is_the_mean_over_pixels_by_hand() -> None:
    red, grey, black, pale = (200, 0, 0), (90, 90, 90), (0, 0, 0), (200, 150, 100)
    picture = np.array([[red, grey], [black, pale]], np.uint8)
    assert saturations(picture) == pytest.approx((1 + 0 + 0 + 0.5) / 4)


@pytest.mark.parametrize("measure", [saturations, diversities, energies])
def test_pictures_become_numbers_one_at_a_time(measure) -> None:
    pictures = default_rng(0).integers(0, 256, (4, 4, 128, 128, 3)).astype(np.uint8)
    with LittleMemory(2 * pictures[0, 0].size):
        measure(pictures)
    tracemalloc.start()  # which sees numpy's memory and not torch's
    measure(pictures)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < pictures.nbytes


def test_a_pixel_is_clipped_where_one_of_its_colours_is() -> None:
    picture = np.array([[(255, 9, 9), (1, 2, 3)], [(0, 0, 0), (254, 1, 255)]], np.uint8)
    assert clipped_shares(np.stack([picture, picture // 2 + 1])).tolist() == [0.75, 0]


def test_diversity_is_the_mean_distance_to_the_others_of_the_prompt() -> None:
    greys = [[100, 130, 100], [7, 7, 7]]
    pictures = np.stack([[np.full((32, 32, 3), grey, np.uint8) for grey in row] for row in greys])
    assert diversities(pictures).tolist() == [[15, 30, 15], [0, 0, 0]]


def test_diversity_looks_at_thumbnails_and_not_at_fine_detail() -> None:
    fine = np.indices((32, 32)).sum(0) % 2
    boards = (np.stack([fine, 1 - fine]) * 100 + 50).astype(np.uint8)  # (2, 32, 32)
    assert diversities(np.repeat(boards[None, ..., None], 3, axis=-1)).tolist() == [[0, 0]]


def test_one_picture_of_a_prompt_has_no_diversity() -> None:
    assert np.isnan(diversities(np.zeros((3, 1, 16, 16, 3), np.uint8))).all()
