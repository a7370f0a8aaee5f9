"""What the page says FreeU does, against the operator and the U-Net themselves."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.freeu import fourier_filter
from ldm.page.explain import filter_gain, markup
from ldm.page.settings import Settings
from ldm.page.studio import Studio


@pytest.fixture
def first(studio: Studio) -> Settings:
    return studio.defaults()


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (9, 7), (2, 2), (1, 5)])
@pytest.mark.parametrize("threshold", [1, 2, 10])
def test_the_gain_is_what_the_filter_does_to_every_wave(height: int, width: int, threshold: int):
    gain = filter_gain(height, width, threshold, 0.3)
    i, j = torch.arange(height).double()[:, None], torch.arange(width).double()[None]
    for u in range(height):
        for v in range(width):
            wave = torch.cos(2 * torch.pi * (u * i / height + v * j / width))[None, None]
            filtered = fourier_filter(wave, threshold, 0.3)
            torch.testing.assert_close(filtered, gain[u, v] * wave, atol=1e-9, rtol=0)


def test_the_gains_of_the_published_filter_are_known_by_hand():
    gain = filter_gain(16, 16, 1, 0.2)
    assert gain[0, 0] == pytest.approx(0.2)
    for u, v in [(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, -1)]:
        assert gain[u, v] == pytest.approx(0.6)
    assert np.isclose(gain, 1).sum() == 256 - 7


def rows(html: str) -> list[list[str]]:
    body = re.search(r"<tbody>(.*)</tbody>", html, re.S)[1]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", body)]


def test_the_table_names_the_blocks_that_freeu_meets(studio: Studio, first: Settings):
    table = rows(markup(studio, first))
    assert [row[:2] for row in table][:4] == [["0", "4×4"], ["1", "4×4"], ["2", "8×8"], ["3", "8×8"]]
    # The embedded model's backbone has 128 channels in its first six blocks and 64 in the others.
    assert [row[3:] for row in table] == 6 * [["1.1", "0.9"]] + 2 * [["1.2", "0.6"]]
    by_resolution = rows(markup(studio, replace(first, match="resolution")))
    first_two, middle = 2 * [["1.1", "0.9"]], 3 * [["1.2", "0.6"]]
    assert [row[3:] for row in by_resolution] == first_two + middle + 3 * [["–", "–"]]


def test_no_strength_means_no_block(studio: Studio, first: Settings):
    for never in (replace(first, strength=0.0), replace(first, start=0.5, stop=0.5)):
        assert "FreeU meets 0 of 8 decoder blocks" in markup(studio, never)


def test_the_timeline_is_the_weight_of_freeu(studio: Studio, first: Settings):
    html = markup(studio, replace(first, start=0.25, stop=0.75))
    points = re.search(r'<polyline[^>]*points="([^"]*)"', html)[1].split()
    down = np.array([float(point.split(",")[1]) for point in points])
    on = down == down.min()
    assert on.mean() == pytest.approx(0.5, abs=0.02)
    assert not on[:24].any() and on[26:74].all() and not on[76:].any()
