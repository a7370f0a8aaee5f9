"""Runs that are made once, kept and found again."""

import csv
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.checkpoint import load_model
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.freeu import FreeUSettings
from ldm.freeu.spectrum import relative_log_amplitude
from ldm.generate import Sampling, denoise, generate
from ldm.study.record import recorded
from ldm.study.runs import Run, Runs
from ldm.study.watch import positions
from ldm.txt2img.jobs import Job
from tests.study.conftest import PIXELS, SMALL
from tests.waiting import wait_until

PAIRS = (Job("a red star", 1), Job("a blue ring on a green background", 2))
SAMPLING = Sampling(64, 64, steps=4, scale=5.0)
FREEU = FreeUSettings(1.2, 1.4, 0.9, 0.2)


def nothing():
    pass


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model("freeu_tiny.yaml", tiny_checkpoint, "cpu", torch.float32)


@pytest.fixture
def runs(model, tmp_path):
    return Runs(model, tmp_path, "a model")


def made(runs, *wanted):
    for batch in runs.batches(wanted):
        runs.make(batch, nothing)
    return [runs.read(run) for run in wanted]


@pytest.mark.parametrize("freeu", [None, FREEU])
@pytest.mark.parametrize("watched", [False, True])
def test_a_runs_picture_is_that_of_generate(runs, model, freeu, watched):
    kept = made(runs, *(Run(pair, freeu, SAMPLING, watched) for pair in PAIRS))
    unet = model.model.diffusion_model
    unet.freeu = freeu or unet.freeu.off()
    for one, pair in zip(kept, PAIRS, strict=True):
        [picture] = generate(model, [pair.prompt], [pair.seed], SAMPLING)
        assert one["latents"].shape == (12, 8, 8)
        # Sampled in one batch, a pixel may round otherwise.
        assert np.abs(one["picture"].astype(int) - picture).max() <= 1


def test_a_watched_run_keeps_the_latents_between_noise_and_picture(runs, model):
    [kept] = made(runs, Run(PAIRS[0], None, SAMPLING, watched=True))
    unet = model.model.diffusion_model
    unet.freeu = unet.freeu.off()
    steps = list(denoise(model, [PAIRS[0].prompt], [""], [PAIRS[0].seed], SAMPLING))
    noise = torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(PAIRS[0].seed))
    x_t = [noise, *(step.x[0] for step in steps)]
    assert kept["positions"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(kept["x_t"], torch.stack(x_t), atol=1e-4)
    x_0 = [*(step.pred_x0[0] for step in steps), steps[-1].x[0]]
    np.testing.assert_allclose(kept["x_0"], torch.stack(x_0), atol=1e-4)
    assert np.array_equal(kept["pictures_t"][-1], kept["picture"])
    assert kept["pictures_0"].shape == (5, 64, 64, 3)


def test_a_watched_runs_curves_are_those_of_the_features(runs, model):
    kept = made(runs, *(Run(pair, FREEU, SAMPLING, watched=True) for pair in PAIRS))
    unet = model.model.diffusion_model
    unet.freeu = FREEU
    told = []
    steps = denoise(model, [pair.prompt for pair in PAIRS], ["", ""], [1, 2], SAMPLING)
    with recorded(unet, lambda one: told.append(replace(one, after=one.before)), guided=True):
        list(steps)
    blocks = len(unet.decoder_stages)
    late = {one.index: one for one in told[3 * blocks :]}
    for b, one in enumerate(kept):
        for i, stage in enumerate(unet.decoder_stages):
            x = late[i].before.x[b : b + 1]
            curve = relative_log_amplitude(x)[0]
            np.testing.assert_allclose(one[f"curve.x.before.late.{i}"], curve, atol=1e-3)
            np.testing.assert_allclose(one[f"mean.late.{i}"], x[0].mean(0), atol=1e-4)
            if stage.downsampling not in {later.downsampling for later in unet.decoder_stages[i + 1 :]}:
                np.testing.assert_allclose(one[f"features.{stage.downsampling}"], x[0], rtol=2e-3, atol=1e-3)
        # FreeU lowers the skips' lowest frequencies, and so lifts the others against them.
        assert one["curve.h.after.late.4"][-1] > one["curve.h.before.late.4"][-1]


@pytest.mark.parametrize("total", [1, 3, 9, 10, 50, 51])
def test_about_ten_positions_go_from_the_noise_to_the_picture(total):
    kept = positions(total)
    assert kept[0] == 0 and kept[-1] == total and len(kept) == min(10, total + 1)


def test_what_is_there_is_not_made_again(runs):
    wanted = [Run(pair, freeu, SAMPLING, False) for pair in PAIRS for freeu in (None, FREEU)]
    assert sorted(map(len, runs.batches(wanted))) == [2, 2]  # pairs of one kind are sampled together
    runs.make(runs.batches(wanted)[0], nothing)
    [rest] = runs.batches(wanted)
    runs.make(rest, nothing)
    assert runs.batches([*wanted, *wanted]) == []


def test_a_watched_run_serves_where_only_its_picture_is_needed(runs):
    plain, watched = (Run(PAIRS[0], None, SAMPLING, watched) for watched in (False, True))
    assert runs.batches([plain, watched]) == [[watched]]
    made(runs, watched)
    assert runs.batches([plain]) == [] and "picture" in runs.read(plain)


def test_all_that_decides_a_run_decides_its_file(runs, model, tmp_path):
    run = Run(PAIRS[0], FREEU, SAMPLING, False)
    others = [
        replace(run, pair=PAIRS[1]),
        replace(run, pair=Job(PAIRS[0].prompt, 3)),
        replace(run, freeu=None),
        replace(run, freeu=replace(FREEU, channels="all")),
        replace(run, freeu=replace(FREEU, stages={64: (1.2, 0.9)})),
        replace(run, sampling=replace(SAMPLING, steps=5)),
        replace(run, sampling=replace(SAMPLING, scale=4.0)),
        replace(run, watched=True),
    ]
    paths = {runs.path(one) for one in [run, *others]} | {Runs(model, tmp_path, "another").path(run)}
    assert len(paths) == len(others) + 2
    assert runs.path(replace(run)) == runs.path(run)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_damaged_file_is_named_with_the_remedy(runs, content):
    run = Run(PAIRS[0], None, SAMPLING, False)
    runs.path(run).write_bytes(content)
    with pytest.raises(InputError, match=rf"{runs.path(run).name} cannot be read .*remove it"):
        runs.read(run)


def test_a_file_with_any_bit_flipped_gives_what_was_kept_or_the_remedy(runs):
    run = Run(PAIRS[0], None, SAMPLING, False)
    kept = {"latents": np.arange(2.0), "picture": np.arange(3, dtype=np.uint8)}
    np.savez(runs.path(run), **kept)
    whole = runs.path(run).read_bytes()
    refused = 0
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        runs.path(run).write_bytes(damaged)
        try:
            read = runs.read(run)
        except InputError as fault:
            refused += 1
            assert "cannot be read" in str(fault) and "remove it" in str(fault)
        else:
            assert {name: (it.dtype, it.tolist()) for name, it in read.items()} == {
                name: (it.dtype, it.tolist()) for name, it in kept.items()
            }
    assert refused > 4 * len(whole)


def test_a_file_that_lacks_an_array_is_damaged(runs):
    run = Run(PAIRS[0], None, SAMPLING, watched=True)
    [kept] = made(runs, run)
    with np.load(runs.path(run)) as arrays:
        assert set(arrays) == set(kept)
    for lost in kept:
        rest = {name: array for name, array in kept.items() if name != lost}
        np.savez(runs.path(run), **rest)
        with pytest.raises(InputError, match=rf"cannot be read .*{lost}.*remove it"):
            runs.read(run)


def test_factors_that_meet_no_block_are_refused_plainly(runs):
    with pytest.raises(InputError, match="stages name"):
        made(runs, Run(PAIRS[0], replace(FREEU, stages={999: (1.2, 0.9)}), SAMPLING, False))


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_where_it_was(tiny_checkpoint, tmp_path):
    words = ["--figure", "17", "--ckpt", tiny_checkpoint, "--outdir", tmp_path, *SMALL, *PIXELS]
    words[words.index("--steps") + 1] = "8"
    command = [sys.executable, ROOT / "scripts" / "figures.py", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background the interrupt is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    folder = tmp_path / "runs"
    wait_until(lambda: list(folder.glob("*.npz")), 300, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "goes on from here" in said
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert 0 < len(before) < 10 and not list(tmp_path.glob("figure17*"))

    subprocess.run(command, check=True, capture_output=True)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(after) == 10 and before.items() <= after.items()
    with Path(tmp_path / "figure17.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 10
