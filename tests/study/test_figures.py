"""All figures of the embedded model, small: every file, and the numbers in them against others' reckoning."""

import colorsys
import csv
import json
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.freeu import DecoderStage, FreeUSettings
from ldm.generate import Sampling, generate
from ldm.study.figures import FIGURES, features
from ldm.study.figures.figure import Material, Setup
from ldm.study.figures.measures import picture_curves
from ldm.study.figures.style import in_lines
from ldm.txt2img.jobs import Job
from tests.memory import LittleMemory
from tests.study.conftest import PIXELS, SMALL

# Distinct settings: off, on and b only; eight around one; three other choices of channels and version 2; the
# sweeps of b and s, b = 1.4 with s = 1 being in both.
VARIANTS = 3 + 8 + 4 + 4 + 4


@pytest.fixture(scope="module")
def study(figures_script, tiny_checkpoint: Path, tmp_path_factory) -> Path:
    """The folder that --all has filled, in float32 whatever this processor does fast."""
    folder = tmp_path_factory.mktemp("study")
    words = ["--ckpt", str(tiny_checkpoint), "--outdir", str(folder), *SMALL, *PIXELS]
    with torch.no_grad():
        assert figures_script.main(["--all", "--precision", "full", *words]) == 0
    return folder


def record(study: Path, number: int) -> dict:
    return json.loads((study / f"figure{number:02}.json").read_text())


def table(study: Path, number: int) -> list[dict[str, str]]:
    with (study / f"figure{number:02}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pictures(study: Path, number: int) -> dict[str, np.ndarray]:
    """Each variant's pictures (pairs, H, W, 3), sampled anew through the plain way from prompt to picture."""
    told = record(study, number)
    config = load_config("freeu_tiny.yaml", PIXELS)
    model = load_model(config, told["checkpoint"], "cpu", torch.float32)
    unet, sampling = model.model.diffusion_model, Sampling(**told["sampling"])
    prompts, seeds = zip(*((pair["prompt"], pair["seed"]) for pair in told["pairs"]), strict=True)
    made = {}
    for variant, factors in told["variants"].items():
        unet.freeu = unet.freeu.off() if factors is None else type(unet.freeu)(**factors)
        made[variant] = np.stack(generate(model, prompts, seeds, sampling))
    return made


def curve(picture: np.ndarray) -> np.ndarray:
    """Relative log amplitude in numpy, in double precision."""
    maps = picture.astype(float).transpose(2, 0, 1)
    log = np.log(np.abs(np.fft.fft2(maps)) + 1e-6).mean(0)
    diagonal = np.diagonal(log)[: (len(log) + 1) // 2]
    return diagonal - diagonal[0]


def test_every_figure_has_its_files_and_they_are_sound(study):
    assert sorted(FIGURES) == [3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 16, 17, 18]
    for number, figure in FIGURES.items():
        stem = study / f"figure{number:02}"
        with Image.open(stem.with_suffix(".png")) as image:
            image.load()
            assert 1400 < image.width < 1700  # seven inches
            assert np.asarray(image.convert("L")).std() > 5
        assert stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        told = record(study, number)
        assert told["figure"] == figure.label and told["sampling"]["steps"] == 3 and len(told["sha256"]) == 64
        assert len(told["pairs"]) == 2 and told["variants"]["off"] is None
        assert told["checks"]
        rows = table(study, number)
        assert rows and all(value != "" for row in rows for value in row.values())
    known = {"runs", "figures.html", "claims.md"}
    assert {path.name for path in study.iterdir() if not path.name.startswith("figure0")} >= known
    assert not list(study.rglob(".*"))


def test_runs_are_shared_between_figures(study):
    assert len(list((study / "runs").iterdir())) == 2 * VARIANTS


def test_a_record_names_what_was_changed_in_the_config(study):
    assert all(record(study, number)["overrides"] == PIXELS for number in FIGURES)


def test_the_precision_is_the_one_that_is_asked_for(figures):
    for precision, dtype in {"full": "float32", "bf16": "bfloat16"}.items():
        outcome = figures("--figure", "17", "--steps", "1", "--prompts", "1", "--precision", precision)
        assert outcome.code == 0 and f"64x64 pixels, {dtype}" in outcome.out
        assert record(outcome.folder, 17)["precision"] == dtype
    assert len(list((outcome.folder / "runs").iterdir())) == 2 * 5  # neither has taken the other's


@pytest.mark.parametrize("number", FIGURES)
def test_a_caption_names_the_version_that_is_drawn_whatever_the_config_has(number):
    figure, config = FIGURES[number], FreeUSettings(1.2, 1.4, 0.9, 0.2, version=2)
    drawn = figure.variants(Setup(config, (DecoderStage(8, 8, 1),))).values()
    of_its_own = any(freeu is not None and freeu.version == 1 for freeu in drawn)
    assert of_its_own == any(words in figure.caption for words in ("version 1", "versions 1"))


def test_claims_and_page_tell_every_check_as_the_figures_do(study):
    claims, page = (study / "claims.md").read_text(), (study / "figures.html").read_text()
    lines = [line.split(" | ") for line in claims.splitlines() if line.startswith("| ")][1:]
    checks = [
        (FIGURES[number].label, check) for number in FIGURES for check in record(study, number)["checks"]
    ]
    assert len(lines) == len(checks) and "over 2 pairs" in claims and "for these prompts" in claims
    for cells, (label, check) in zip(lines, checks, strict=True):
        assert len(cells) == 4
        assert cells[0] == f"| {label}" and cells[1] == check["claim"]
        assert cells[3].startswith(check["verdict"])
        agrees = check["low"] > 0, check["high"] <= 0
        assert check["verdict"] == {(1, 0): "holds", (0, 1): "does not hold", (0, 0): "undecided"}[agrees]
    for number, figure in FIGURES.items():
        assert f'src="figure{number:02}.png"' in page and escape(figure.title) in page
        for check in record(study, number)["checks"]:
            assert page.count(escape(check["claim"])) == 2
    assert "http" not in page


def test_figure_6_plots_the_spectra_of_pictures_made_anew(study):
    made = pictures(study, 6)
    curves = {variant: np.stack([curve(picture) for picture in them]) for variant, them in made.items()}
    rows = table(study, 6)
    assert {row["variant"] for row in rows} == {"off", "b = 0.6", "b = 0.8", "b = 1.2", "b = 1.4"}
    for variant, own in curves.items():
        mine = [row for row in rows if row["variant"] == variant]
        assert [float(row["frequency"]) for row in mine] == pytest.approx(2 * np.pi * np.arange(32) / 64)
        plotted = [float(row["relative_log_amplitude"]) for row in mine]
        away = [float(row["difference_from_off"]) for row in mine]
        # A pixel may round to another of 256 levels, which moves the least amplitudes.
        np.testing.assert_allclose(plotted, own.mean(0), atol=0.1)
        np.testing.assert_allclose(away, (own - curves["off"]).mean(0), atol=0.1)
    ends = {variant: own[:, 16:].mean(1) for variant, own in curves.items()}
    [check] = record(study, 6)["checks"]
    order = ["b = 0.6", "b = 0.8", "off", "b = 1.2", "b = 1.4"]
    falls = [(ends[a] - ends[b]).mean() for a, b in pairwise(order)]
    assert min(abs(check["mean"] - fall) for fall in falls) < 0.05


def test_figure_16_measures_saturation_as_python_does(study):
    made = pictures(study, 16)
    rows = table(study, 16)
    means = {}
    for variant, them in made.items():
        own = [
            np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.reshape(-1, 3)[::7] / 255])
            for picture in them
        ]
        told = [float(row["saturation"]) for row in rows if row["variant"] == variant]
        assert told == pytest.approx(own, abs=0.02)  # every seventh pixel
        means[variant] = np.mean(told)
    [check] = record(study, 16)["checks"]
    assert check["mean"] == pytest.approx(means["constant"] - means["structure"], abs=1e-9)


def test_figure_5_is_freeu_on_every_block_and_channel(study):
    told = record(study, 5)["variants"]
    assert len(told) == 9
    assert told["b = 1.4"]["channels"] == "all" and set(map(tuple, told["b = 1.4"]["stages"].values())) == {
        (1.4, 1.0)
    }
    made = pictures(study, 5)
    change = {
        factor: np.mean(
            [
                np.abs(made[f"{factor} = {v}"].astype(float) - made["off"]).mean((1, 2, 3))
                for v in (0.6, 0.8, 1.2, 1.4)
            ],
            axis=0,
        )
        for factor in "bs"
    }
    [check] = record(study, 5)["checks"]
    assert check["mean"] == pytest.approx((change["b"] - change["s"]).mean(), abs=0.05)


def test_figure_4_begins_with_the_noise_that_the_seed_gives(study):
    told = record(study, 4)
    noise = [torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(p["seed"])) for p in told["pairs"]]
    log = np.log(np.abs(np.fft.fft2(torch.stack(noise).double().numpy())) + 1e-6).mean(1)  # (pairs, 8, 8)
    diagonal = np.diagonal(log, axis1=1, axis2=2)[:, :4]
    own = (diagonal - diagonal[:, :1]).mean(0)
    first = [row for row in table(study, 4) if row["of"] == "latents" and row["after_steps"] == "0"]
    assert [float(row["relative_log_amplitude"]) for row in first] == pytest.approx(own, abs=1e-4)


def test_figure_7_shows_each_resolution_that_has_high_frequencies(study):
    rows = table(study, 7)
    assert {row["maps"] for row in rows} == {"8×8", "4×4"}  # 2x2 has none
    assert {row["feature"] for row in rows} == {"backbone", "skip", "fused"}
    assert {row["moment"] for row in rows} == {"early", "middle", "late"}
    assert all(float(row["relative_log_amplitude"]) == 0 for row in rows if float(row["frequency"]) == 0)


def test_how_bright_a_picture_is_does_not_change_its_curve():
    half = np.random.default_rng(0).integers(40, 88, (1, 16, 16, 3), np.uint8)
    bright = 2 * half  # its mean is middle grey, 127
    [curve_of_bright, curve_of_dark] = picture_curves(np.concatenate([bright, half]))
    assert curve_of_dark == pytest.approx(curve_of_bright, abs=1e-3)
    # No frequency of what is nowhere below zero is stronger than its mean.
    assert max(curve_of_bright) == 0


def test_figure_14_takes_maps_that_differ_in_scale_alone_for_equally_structured():
    off = np.random.default_rng(0).standard_normal((8, 4, 4)).astype(np.float32)
    on = 3 * off[::-1]  # the same maps, scaled up and in another order of channels
    picture = np.zeros((16, 16, 3), np.uint8)
    kept = {side: [{"features.1": maps, "picture": picture}] for side, maps in {"off": off, "on": on}.items()}
    material = Material([Job("a star", 1)], (DecoderStage(8, 8, 1),), kept)
    [row] = FIGURES[14].draw(material).rows
    assert row["share_on"] == pytest.approx(row["share_off"], rel=1e-6)


@pytest.mark.parametrize("prompt", ["price $1_$", r"a sign: $\foo$", "from $5 to $6", r"\$x$", "a star"])
def test_dollars_in_a_prompt_are_drawn_as_they_are(prompt):
    def drawn(text: str, **how: bool) -> np.ndarray:
        sheet = Figure(figsize=(2, 1))
        sheet.text(0.1, 0.5, text, **how)
        canvas = FigureCanvasAgg(sheet)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())

    assert (drawn(in_lines(prompt)) == drawn(prompt, parse_math=False)).all()


def test_components_are_fitted_for_the_pairs_that_are_shown(monkeypatch):
    maps = np.random.default_rng(0).standard_normal((2, 6, 8, 4, 4)).astype(np.float32)
    picture = np.zeros((16, 16, 3), np.uint8)
    kept = {
        side: [{"features.1": one, "picture": picture} for one in them]
        for side, them in zip(("off", "on"), maps, strict=True)
    }
    fitted = []
    monkeypatch.setattr(
        features, "joint_components", lambda sides: fitted.append(sides) or [side.mean(0) for side in sides]
    )
    drawing = FIGURES[14].draw(Material([Job("a star", k) for k in range(6)], (DecoderStage(8, 8, 1),), kept))
    assert len(drawing.rows) == 6 and len(fitted) == 2
    assert all((sides == maps[:, p]).all() for p, sides in enumerate(fitted))


@pytest.mark.parametrize("number", [3, 4, 13, 17])
def test_figures_of_large_pictures_take_them_pair_by_pair(number):
    """Sixteen pairs of Stable Diffusion's size would take gigabytes at once."""
    rng = np.random.default_rng(0)
    many = rng.integers(0, 256, (4, 2, 64, 64, 3), np.uint8)  # (pairs, P, H, W, 3)
    latents = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    each = [
        {"positions": np.arange(2), "x_t": latents, "pictures_t": one, "pictures_0": one, "picture": one[-1]}
        for one in many
    ]
    figure, stages = FIGURES[number], (DecoderStage(8, 8, 1),)
    variants = figure.variants(Setup(FreeUSettings(1.2, 1.4, 0.9, 0.2), stages))
    material = Material([Job("a star", k) for k in range(4)], stages, dict.fromkeys(variants, each))
    with LittleMemory(many[0].size):
        figure.draw(material)


@pytest.mark.slow
def test_a_plain_config_without_guidance_draws_pictures_that_are_not_square(figures):
    plain = ["--config", "tiny.yaml", "sampling.scale=1.0", "sampling.width=96"]
    outcome = figures("--figure", "4", "7", "14", *plain)
    assert outcome.code == 0, outcome.err
    assert "Spectra are of the middle square" in outcome.out
    told = record(outcome.folder, 14)
    assert told["freeu"]["b1"] == 1.2 and told["freeu"]["s2"] == 0.2  # SD1.4's, as the config has none
    assert {row["maps"] for row in table(outcome.folder, 7)} == {"8×12", "4×6"}
    assert len({row["frequency"] for row in table(outcome.folder, 4) if row["of"] == "latents"}) == 4
