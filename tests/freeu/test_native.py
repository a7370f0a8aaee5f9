"""The libraries of C: that they are built, when they are taken, and the filter against the transform."""

import subprocess
from pathlib import Path
from shutil import copytree, ignore_patterns, which
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from ldm.device import has_amx
from ldm.freeu import filter_in_c, fourier_filter, free_u, native
from ldm.modules import norm, tiles
from tests.conftest import on_threads, rnd

FILTER = Path(native.__file__).with_name("filter.c")
AVX2, AVX512 = ["-march=x86-64-v3", "-DLANES=8"], ["-march=x86-64-v4", "-DLANES=16"]
MODULES = Path(norm.__file__).parent
BFLOAT16 = [*AVX512, "-mavx512bf16", "-DBFLOAT16"]
LIBRARIES = [
    ("ldm.freeu", FILTER, "", []),
    ("ldm.modules", MODULES / "norm.c", "", []),
    ("ldm.modules", MODULES / "tiles.c", "", ["-march=sapphirerapids"]),
    ("ldm.modules", MODULES / "vectors.c", "avx2", AVX2),
    ("ldm.modules", MODULES / "vectors.c", "avx512", AVX512),
    ("ldm.modules", MODULES / "vectors.c", "avx512_bf16", BFLOAT16),
    ("ldm.modules", MODULES / "winograd.c", "avx2", AVX2),
    ("ldm.modules", MODULES / "winograd.c", "avx512", AVX512),
    ("ldm.modules", MODULES / "winograd.c", "avx512_bf16", BFLOAT16),
]
with_filter = pytest.mark.skipif(
    filter_in_c.LIBRARY is None, reason="no C compiler was there at the installation"
)
FORMATS = (torch.contiguous_format, torch.channels_last)


def derivative(function, x, along):
    """The function's derivative at x, by dual numbers."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, along))).tangent


def low_frequencies(x):
    """What the filter at threshold 1 keeps of a window of ones, by the transform in float64."""
    spectrum = torch.fft.fft2(x.double())
    rows, columns = (torch.zeros(n, dtype=torch.bool) for n in x.shape[2:])
    rows[[0, -1]] = columns[[0, -1]] = True
    return torch.fft.ifft2(spectrum * (rows[:, None] & columns)).real


@pytest.mark.parametrize(
    ("package", "source", "form", "flags"), LIBRARIES, ids=lambda it: getattr(it, "name", str(it))
)
def test_the_installation_built_each_library_that_a_compiler_here_can(package, source, form, flags, tmp_path):
    made = tmp_path / "library.so"
    compiler = which("cc") or "false"
    command = [compiler, "-O1", "-fopenmp", "-shared", "-fPIC", *flags, source, "-o", made, "-lm"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no compiler for it")
    assert native.built(source, package, form), f"{source.name} has changed: install the package once more"
    assert native.load(source, package, form)


@pytest.mark.parametrize("changed", ["modules/lanes.h", "freeu/numbers.h", "the source itself"])
def test_a_library_of_another_source_is_not_taken(changed, tmp_path):
    ldm = MODULES.parent
    needs_it = {"modules/lanes.h": ["vectors.c", "winograd.c"], "freeu/numbers.h": ["filter.c", "norm.c"]}
    for package, source, form, _ in LIBRARIES:
        without = ignore_patterns("*.so", "*.py", "__*")
        copy = copytree(ldm, tmp_path / f"{source.stem}_{form}", ignore=without)
        other = copy / source.relative_to(ldm)
        before = native.built(source, package, form)
        assert native.built(other, package, form) == before
        file = copy / changed if changed in needs_it else other
        file.write_bytes(file.read_bytes() + b"\n")
        taken = source.name not in needs_it.get(changed, source.name)
        assert native.built(other, package, form) == (before if taken else None)
        assert taken or native.load(other, package, form) is None


def test_a_library_that_cannot_be_loaded_is_not_taken(monkeypatch, tmp_path):
    broken = tmp_path / "library.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "built", lambda *_: str(broken))
    assert native.load(FILTER, "ldm.freeu") is None


def test_tiles_are_loaded_only_where_the_processor_has_them():
    assert tiles.LIBRARY is None or has_amx()


@with_filter
@settings(max_examples=100)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 127, 128, 129, 300]),
    height=st.integers(3, 20),
    width=st.sampled_from([3, 4, 7, 8, 16, 31, 32, 64]),
    skipped=st.integers(0, 3),
    memory=st.sampled_from(FORMATS),
    kind=st.sampled_from([torch.float32, torch.bfloat16]),
    gains=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    threads=st.integers(1, 4),
)
def test_the_filter_is_the_transform(batch, channels, height, width, skipped, memory, kind, gains, threads):
    whole = rnd(height * width, batch, skipped + channels, height, width).to(kind).to(memory_format=memory)
    gain = torch.tensor(gains[:batch])[:, None, None]
    before = whole.clone()
    x = whole[:, skipped:]
    expected = x.double() + gain[..., None] * low_frequencies(x)
    with on_threads(threads):
        assert filter_in_c.has_filter(x)
        filter_in_c.add_low_frequencies(x, gain)
    # Rounded once at the end, to 24 or 8 binary digits.
    assert ((x.double() - expected).abs() <= expected.abs() * 2.0**-8 * (kind != torch.float32) + 4e-6).all()
    assert torch.equal(whole[:, :skipped], before[:, :skipped])


@with_filter
@pytest.mark.parametrize("memory", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_channel(number, kind, memory):
    x = rnd(1, 2, 130, 8, 8).to(kind).to(memory_format=memory)
    x[1, 129, 3, 4] = number
    out = fourier_filter(x, 1, 0.5)
    assert not out[1, 129].isfinite().any()
    out[1, 129] = 0
    assert out.isfinite().all()


@with_filter
@pytest.mark.parametrize("memory", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("bits", [0x7F81, 0x7FC0, 0x7FFF, 0xFF81, 0xFFFF], ids=hex)
def test_what_is_no_number_in_bfloat16_is_none_whatever_its_bits(bits, memory):
    x = rnd(3, 1, 5, 8, 8).bfloat16().contiguous(memory_format=memory)
    x[0, 3, 2, 1] = torch.tensor(bits).to(torch.uint16).view(torch.bfloat16)
    assert x[0, 3, 2, 1].isnan()
    out = fourier_filter(x, 1, 0.5)
    assert out[0, 3].isnan().all() and out[0, [0, 1, 2, 4]].isfinite().all()


@with_filter
def test_it_is_taken_on_plain_maps_and_nothing_else(monkeypatch):
    called = Mock(wraps=filter_in_c.add_low_frequencies)
    monkeypatch.setattr(filter_in_c, "add_low_frequencies", called)
    x = rnd(1, 2, 6, 8, 8)
    for taken in (x, x.bfloat16(), x.to(memory_format=torch.channels_last), x[:, 2:], x[1:]):
        fourier_filter(taken, 1, 0.5)
    free_u(x.clone(), 2, 1.2, 0.5)
    assert called.call_count == 6
    wide = torch.zeros(1, 1, 3, 2 * filter_in_c.WIDEST)
    for other in (x.double(), x.half(), x.mT, x[..., 1:], x[:, :, ::2], x.to("meta"), x[:, :, :2], wide):
        fourier_filter(other, 1, 0.5)
    fourier_filter(x, 2, 0.5)
    assert called.call_count == 6


@with_filter
def test_whoever_records_what_is_computed_meets_torchs_operations():
    x = rnd(1, 2, 6, 8, 8)
    expected = x + 0.5 * low_frequencies(x) - low_frequencies(x)  # s is 0.5
    with torch.enable_grad():
        assert fourier_filter(x.clone().requires_grad_(), 1, 0.5).grad_fn is not None
        weight = torch.ones(2, requires_grad=True)
        assert free_u(x, 2, 1.0, 0.5, weight=weight).grad_fn is not None
    for made in (
        torch.jit.trace(lambda x: fourier_filter(x, 1, 0.5), x, check_trace=False)(x),
        torch.vmap(lambda x: fourier_filter(x[None], 1, 0.5)[0])(x),
        torch.func.jvp(lambda x: fourier_filter(x, 1, 0.5), (x,), (x,))[1],
        derivative(lambda x: fourier_filter(x, 1, 0.5), x, x),
        torch.compile(lambda x: fourier_filter(x, 1, 0.5), backend="eager", fullgraph=True)(x),
    ):
        assert (made - expected).abs().max() < 4e-6
