"""FreeU's operator against the published Fourier transform and against loops over pixels."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.freeu import backbone_factor, filter_in_c, fourier_filter, free_u, scale_backbone
from tests.conftest import golden, relative_error, rnd

FORMATS = (torch.contiguous_format, torch.channels_last)
each_format = pytest.mark.parametrize("memory", FORMATS, ids=["contiguous", "channels_last"])
each_version = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture(scope="module", autouse=True, params=["C", "torch"])
def _computed_by(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(filter_in_c, "LIBRARY", None)
        elif filter_in_c.LIBRARY is None:
            pytest.skip("no C compiler was there at the installation")
        yield


def published_filter(x, threshold, scale):
    """The filter as published: a window of the shifted spectrum is scaled and the real part kept."""
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    rows, columns = (slice(max(0, n // 2 - threshold), n // 2 + threshold) for n in (height, width))
    spectrum[..., rows, columns] *= scale
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real


def scaled_pixel_by_pixel(h, b, version):
    """The first half of the channels times alpha, one number after the other."""
    out = h.clone()
    for sample, result in zip(h, out, strict=True):
        channels, height, width = sample.shape
        mean = [[sum(sample[:, i, j].tolist()) / channels for j in range(width)] for i in range(height)]
        low, high = min(map(min, mean)), max(map(max, mean))
        for c, i, j in itertools.product(range(channels // 2), range(height), range(width)):
            alpha = b if version == 1 else (b - 1) * (mean[i][j] - low) / (high - low) + 1
            result[c, i, j] *= alpha
    return out


def wave(height, width, k, j):
    """A real wave of k periods down and j across, at some phase."""
    y, x = torch.arange(height).double() / height, torch.arange(width).double() / width
    return torch.cos(2 * math.pi * (k * y[:, None] + j * x[None]) + 0.7)[None, None]


def test_threshold_and_scale_are_one_by_default():
    x = rnd(16, 1, 2, 8, 9)
    assert torch.equal(fourier_filter(x, scale=0.5), fourier_filter(x, 1, 0.5))
    assert torch.equal(fourier_filter(x), x)


@pytest.mark.parametrize("name", golden("fourier_filter"))
def test_the_filter_gives_the_originals_values(name):
    which, threshold, scale = name.split("_")
    x = {"odd": rnd(5, 2, 3, 9, 15), "even": rnd(6, 1, 2, 16, 24)}[which]
    out = fourier_filter(x, int(threshold[1:]), float(scale[1:]))
    assert relative_error(out, golden("fourier_filter")[name]) < 1e-6


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    threshold=st.integers(1, 12),
    scale=st.floats(-2, 2),
    channels=st.integers(1, 3),
    memory=st.sampled_from(FORMATS),
)
def test_the_filter_is_the_published_one_at_every_size(height, width, threshold, scale, channels, memory):
    x = rnd(height * width, 2, channels, height, width).to(memory_format=memory)
    exact = published_filter(x.double(), threshold, scale)
    assert (fourier_filter(x.double(), threshold, scale) - exact).abs().max() < 1e-12
    assert (fourier_filter(x, threshold, scale) - exact).abs().max() < 1e-5


@each_format
@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_filter_is_the_published_one_at_any_number_of_threads(count, memory, threads):
    torch.set_num_threads(count)
    for size in ((6, 8), (5, 7)):
        whole = rnd(11, 3, 20, *size).to(memory_format=memory)
        exact = published_filter(whole.double()[:, 8:], 1, 0.2)
        assert (fourier_filter(whole[:, 8:], 1, 0.2) - exact).abs().max() < 1e-5
        assert (free_u(whole, 8, 1.0, 0.2)[:, 8:] - exact).abs().max() < 1e-5


@pytest.mark.parametrize("s", [0.2, 1.7, 0.0, 0])
@pytest.mark.parametrize("size", [(8, 8), (5, 12), (7, 9)])
def test_gains_at_single_frequencies(size, s):
    halfway = (1 + s) / 2
    at_threshold_1 = {
        (0, 0): s,
        **dict.fromkeys([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)], halfway),
        **dict.fromkeys([(1, -1), (-1, 1), (2, 0), (0, 2), (2, 1)], 1.0),
    }
    at_threshold_2 = {(0, 0): s, (1, 1): s, (1, -1): s, (2, 0): halfway, (2, 2): halfway, (2, -2): 1.0}
    for threshold, gains in ((1, at_threshold_1), (2, at_threshold_2)):
        for (k, j), gain in gains.items():
            x = wave(*size, k, j)
            assert torch.allclose(fourier_filter(x, threshold, s), gain * x, atol=1e-12), (threshold, k, j)


@pytest.mark.parametrize(
    ("size", "rank"), [((4, 4), 7), ((5, 9), 7), ((8, 12), 7), ((2, 2), 4), ((1, 6), 3), ((1, 1), 1)]
)
def test_the_filter_changes_seven_dimensions_and_fewer_on_the_smallest_maps(size, rank):
    pixels = math.prod(size)
    units = torch.eye(pixels, dtype=torch.float64).view(1, pixels, *size)
    change = (fourier_filter(units, 1, 0.0) - units).view(pixels, pixels)
    assert torch.linalg.matrix_rank(change) == rank


def test_a_scale_of_one_returns_the_same_bits():
    x = rnd(1, 2, 3, 7, 6)
    assert fourier_filter(x, 1, 1.0) is x
    assert torch.equal(fourier_filter(x, 3, 1), x)


@each_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 1), (5, 12), (7, 9), (17, 13), (32, 32)])
def test_half_precision_is_within_its_rounding(size, dtype, memory):
    fused = (rnd(3, 2, 12, *size) + 2).to(dtype).to(memory_format=memory)
    exact = free_u(fused.float(), 8, 1.4, 0.2, threshold=2)
    out = free_u(fused, 8, 1.4, 0.2, threshold=2)
    assert out.dtype == dtype
    assert relative_error(out.float(), exact) < 4 * torch.finfo(dtype).eps


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_of_no_samples_stays_one(dtype, memory):
    x = torch.empty(0, 4, 8, 6, dtype=dtype).contiguous(memory_format=memory)
    assert fourier_filter(x, 1, 0.5).shape == x.shape


def test_half_precision_does_not_overflow_on_large_maps():
    x = torch.full((1, 1, 96, 96), 500.0, dtype=torch.float16)
    assert relative_error(fourier_filter(x, 1, 0.2).float(), torch.full_like(x, 100.0).float()) < 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_structure_factor_in_half_precision_is_rounded_once(dtype):
    h = (rnd(18, 2, 64, 6, 5) + 2).to(dtype)
    factor = backbone_factor(h, 1.4, version=2)
    assert factor.dtype == dtype
    assert (
        relative_error(factor.double(), backbone_factor(h.double(), 1.4, version=2)) < torch.finfo(dtype).eps
    )


@each_version
def test_the_backbone_is_scaled_as_pixel_by_pixel(version):
    h = rnd(7, 2, 6, 3, 5)
    assert relative_error(scale_backbone(h, 1.4, version), scaled_pixel_by_pixel(h, 1.4, version)) < 1e-6


@each_format
@each_version
@pytest.mark.parametrize("threshold", [1, 2])
def test_one_weight_is_that_of_all_samples(threshold, version, memory):
    fused = rnd(14, 3, 12, 6, 5).to(memory_format=memory)
    one, each = (
        free_u(fused.clone(), 8, 1.4, 0.2, version, threshold, weight)
        for weight in (torch.full((1,), 0.3), torch.full((3,), 0.3))
    )
    assert torch.equal(one, each)


@each_format
@each_version
@pytest.mark.parametrize("threshold", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_float32_move_the_factors_of_maps_in_half_precision(dtype, threshold, version, memory):
    fused = (rnd(17, 2, 12, 6, 5) + 2).to(dtype).to(memory_format=memory)
    weight = torch.tensor([0.25, 1.0])
    exact = free_u(fused.double(), 8, 1.4, 0.2, version, threshold, weight)
    out = free_u(fused, 8, 1.4, 0.2, version, threshold, weight)
    assert out.dtype == dtype
    assert relative_error(out.double(), exact) < 4 * torch.finfo(dtype).eps


def test_an_odd_number_of_channels_leaves_the_larger_half_alone():
    assert scale_backbone(torch.ones(1, 5, 1, 1), 2.0).flatten().tolist() == [2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("channels", "scaled"),
    [
        ("first", [0, 1, 2]),
        ("second", [3, 4, 5, 6]),
        ("alternate", [0, 2, 4, 6]),
        ("all", range(7)),
        (0.3, [0, 1]),
        (0.4, [0, 1, 2]),
        (0, []),
        (1.0, range(7)),
    ],
)
@each_version
def test_the_chosen_channels_are_scaled_and_no_others(version, channels, scaled):
    fused = rnd(9, 2, 12, 4, 3)
    expected = fused.clone()
    for c in scaled:
        expected[:, c] *= backbone_factor(fused[:, :7], 1.5, version)[:, 0] if version == 2 else 1.5
    assert relative_error(scale_backbone(fused[:, :7], 1.5, version, channels), expected[:, :7]) < 1e-6
    assert relative_error(free_u(fused, 7, 1.5, 1.0, version, channels=channels), expected) < 1e-6


def test_the_structure_factor_of_a_small_map():
    h = torch.tensor([[0.0, 4.0], [2.0, 1.0]]).expand(1, 2, 2, 2) + torch.tensor([-3.0, 3.0]).view(1, 2, 1, 1)
    factor = backbone_factor(h, 1.4, version=2)
    assert torch.allclose(factor, torch.tensor([[[[1.0, 1.4], [1.2, 1.1]]]]))


def test_the_structure_factor_of_a_flat_map_is_one():
    assert torch.equal(backbone_factor(torch.full((2, 3, 4, 5), 7.0), 1.4, 2), torch.ones(2, 1, 4, 5))
    assert torch.equal(scale_backbone(rnd(1, 1, 4, 1, 1), 1.4, 2), rnd(1, 1, 4, 1, 1))


def test_the_structure_factor_is_each_samples_own():
    h = rnd(4, 3, 8, 4, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1)
    alone = [backbone_factor(sample, 1.6, 2) for sample in h.split(1)]
    assert torch.equal(backbone_factor(h, 1.6, 2), torch.cat(alone))
    assert all(f.min() == 1 and f.max() == pytest.approx(1.6) for f in alone)


@each_format
@each_version
def test_a_concatenation_is_overwritten_where_it_lies(version, memory):
    fused = rnd(8, 2, 14, 6, 5).to(memory_format=memory)
    before, strides, address = fused.clone(), fused.stride(), fused.data_ptr()
    out = free_u(fused, 8, 1.3, 0.4, version, threshold=1)

    assert (out.data_ptr(), out.stride()) == (address, strides)
    assert relative_error(out[:, :8], scaled_pixel_by_pixel(before[:, :8], 1.3, version)) < 1e-6
    assert relative_error(out[:, 8:], published_filter(before[:, 8:], 1, 0.4)) < 1e-6


@each_format
@each_version
def test_where_autograd_needs_the_values_nothing_is_overwritten(version, memory):
    fused = rnd(9, 2, 14, 6, 5).to(memory_format=memory)
    in_place = free_u(fused.clone(memory_format=torch.preserve_format), 8, 1.3, 0.4, version)
    with torch.enable_grad():
        leaf = fused.clone().requires_grad_()
        out = free_u(leaf, 8, 1.3, 0.4, version)
    assert torch.equal(leaf, fused)
    assert relative_error(out.detach(), in_place) < 1e-6
    assert out.stride() == fused.stride()


@each_version
def test_a_view_with_gaps_is_left_alone_and_answered_rightly(version):
    whole = rnd(10, 2, 14, 9, 8)
    before, cropped = whole.clone(), whole[..., 1:7, 2:7]
    out = free_u(cropped, 8, 1.3, 0.4, version)
    assert relative_error(out, free_u(cropped.contiguous(), 8, 1.3, 0.4, version)) < 1e-6
    assert torch.equal(whole, before)


@each_version
def test_factors_of_one_leave_the_bits_alone(version):
    fused = rnd(11, 2, 14, 6, 5)
    assert torch.equal(free_u(fused.clone(), 8, 1.0, 1.0, version), fused)
    assert torch.equal(free_u(fused.clone(), 8, 1.3, 1.0, version)[:, 8:], fused[:, 8:])
    assert torch.equal(free_u(fused.clone(), 8, 1.0, 0.4, version)[:, :8], fused[:, :8])


@each_version
def test_gradients_are_those_of_finite_differences(version):
    with torch.enable_grad():
        fused = rnd(12, 2, 7, 3, 4).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: free_u(x, 4, 1.4, 0.2, version), fused)


def test_what_inference_mode_cached_serves_autograd_afterwards():
    with torch.inference_mode():
        fourier_filter(rnd(13, 1, 1, 11, 19), 1, 0.5)
    with torch.enable_grad():
        x = rnd(13, 1, 1, 11, 19).requires_grad_()
        fourier_filter(x, 1, 0.5).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 0.5), atol=1e-5)  # of the sum only DC is left


def test_a_size_that_was_planned_without_numbers_is_filtered_with_them():
    x = rnd(14, 1, 1, 13, 17)
    with FakeTensorMode() as mode:
        fourier_filter(mode.from_tensor(x), 1, 0.5)
    assert relative_error(fourier_filter(x, 1, 0.5), published_filter(x, 1, 0.5)) < 1e-6


@each_format
@each_version
@pytest.mark.parametrize("threshold", [1, 2])
def test_autocast_rounds_no_maps_in_float32(memory, version, threshold):
    fused = rnd(15, 2, 14, 6, 5).contiguous(memory_format=memory)
    expected = free_u(fused.clone(), 8, 1.3, 0.4, version, threshold)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(free_u(fused, 8, 1.3, 0.4, version, threshold), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("threshold", [1, 3])
def test_traced_at_one_size_it_filters_maps_of_others(threshold):
    traced = torch.jit.trace(lambda x: fourier_filter(x, threshold, 0.2), rnd(1, 2, 3, 16, 16))
    for size in ((32, 32), (32, 48)):
        x = rnd(2, 2, 3, *size)
        assert relative_error(traced(x), fourier_filter(x, threshold, 0.2)) < 1e-5
