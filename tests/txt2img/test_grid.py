"""`--grid` of scripts/txt2img.py, and what its words mean."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.checkpoint import load_model
from ldm.errors import InputError
from ldm.freeu import FreeUSettings
from ldm.generate import Sampling, generate
from ldm.txt2img.painter import Painter
from ldm.txt2img.settings_grid import Axis, Cell, count_cells, grid_jobs, parse_axis, parse_grid
from tests.conftest import Outcome

PLAIN = Cell(42, Sampling(64, 64, steps=2, scale=3.0), FreeUSettings(1.1, 1.2, 0.9, 0.6))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def record(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info["freeu"])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("b1=1.0:1.4:5", (1.0, 1.1, 1.2, 1.3, 1.4)),
        ("s1=0.2,0.6,1.0", (0.2, 0.6, 1.0)),
        ("s2=1:0:3", (1, 0.5, 0)),
        ("seed=1:9:3", (1, 5, 9)),
        ("steps=10,20", (10, 20)),
        ("channels=first,0.25", ("first", 0.25)),
        ("sampler=ddim,dpm", ("ddim", "dpm")),
        ("strength=0.5", (0.5,)),
    ],
)
def test_an_axis_is_a_range_or_a_list(text: str, values: tuple) -> None:
    axis = parse_axis(text)
    assert axis.values == values
    assert [type(value) for value in axis.values] == [type(value) for value in values]
    assert parse_axis(str(axis)) == axis


@given(first=st.floats(0, 2), last=st.floats(0, 2), count=st.integers(2, 50))
def test_a_range_goes_evenly_from_its_first_to_its_last_value(first: float, last: float, count: int) -> None:
    try:
        axis = parse_axis(f"b1={first}:{last}:{count}")
    except InputError:
        assert abs(last - first) < 1e-8 * count  # too close for so many different values
        return
    np.testing.assert_allclose(axis.values, np.linspace(first, last, count), atol=1e-9)
    assert parse_axis(str(axis)) == axis


def test_cells_go_from_left_to_right_then_down_then_to_the_next_sheet() -> None:
    axes = parse_grid(["b1=1,1.2", "s1=0.2,0.6,1", "seed=7,8"])
    jobs = [*grid_jobs(axes, "a red star", PLAIN)]
    assert len(jobs) == count_cells(axes) == 12
    assert [(job.cell.freeu.b1, job.cell.freeu.s1, job.seed) for job in jobs] == [
        (b1, s1, seed) for seed in (7, 8) for s1 in (0.2, 0.6, 1) for b1 in (1, 1.2)
    ]
    assert {job.cell.freeu.b2 for job in jobs} == {1.2}
    assert {(job.prompt, job.cell.sampling) for job in jobs} == {("a red star", PLAIN.sampling)}


def test_a_grid_is_a_picture_a_cell_each_the_same_to_the_bit_as_when_it_is_drawn_alone(
    txt2img: Callable[..., Outcome],
) -> None:
    prompt = ("--prompt", "a red star", "--seed", 5)
    done = txt2img(*prompt, "--grid", "b1=1.0:1.4:3", "s1=0.2,1.0")
    assert done.code == 0, done.err
    pictures = done.pictures()
    assert len(pictures) == 6
    for k, (s1, b1) in enumerate((s1, b1) for s1 in (0.2, 1.0) for b1 in (1.0, 1.2, 1.4)):
        alone = txt2img(*prompt, "--b1", b1, "--s1", s1).pictures()[0]
        assert np.array_equal(pixels(pictures[k]), pixels(alone))
        assert record(pictures[k]) == record(alone)
        again = txt2img("--from-image", pictures[k], defaults=["--device", "cpu"]).pictures()[0]
        assert again.read_bytes() == pictures[k].read_bytes()
    assert len({path.read_bytes() for path in pictures}) == 6

    # On the sheet all of them stand, enlarged, in two rows.
    [sheet] = done.folder.glob("grid-*.png")
    shown = pixels(sheet)
    for path in pictures:
        big = pixels(path).repeat(12, axis=0).repeat(12, axis=1)
        corners = np.argwhere((shown == big[0, 0]).all(-1))
        assert any(np.array_equal(shown[y : y + 384, x : x + 384], big) for y, x in corners)


def test_a_sheet_makes_its_grid_again(txt2img: Callable[..., Outcome]) -> None:
    first = txt2img("--prompt", "a red star", "--s2", 0.3, "--grid", "b1=1:1.2:2", "seed=3,4", "steps=1,2")
    assert first.code == 0, first.err
    sheets = sorted(first.folder.glob("grid-*.png"))
    assert len(sheets) == 2 and len(first.pictures()) == 8
    assert record(sheets[1])["grid"] == ["b1=1.0,1.2", "seed=3,4", "steps=2"]
    again = txt2img("--from-image", sheets[1], defaults=["--device", "cpu"])
    assert again.code == 0, again.err
    [sheet] = again.folder.glob("grid-*.png")
    assert np.array_equal(pixels(sheet), pixels(sheets[1]))
    assert [p.read_bytes() for p in again.pictures()] == [p.read_bytes() for p in first.pictures()[4:]]


@pytest.mark.parametrize(
    ("argv", "first_is_plain"),
    [
        (["--config", "tiny.yaml", "--freeu-version", 2, "--grid", "b1=1,1.6"], True),
        (["--strength", 0, "--grid", "strength=0,0.5,1"], True),
        (["--b1", 1, "--b2", 1, "--s1", 1, "--s2", 1, "--stop", 0.5, "--grid", "s2=0.2", "seed=3,4"], False),
    ],
)
def test_a_sheet_keeps_freeu_where_it_changes_nothing_but_for_the_axes(
    argv: list, first_is_plain: bool, txt2img: Callable[..., Outcome]
) -> None:
    first = txt2img(*argv)
    assert first.code == 0, first.err
    [sheet], pictures = first.folder.glob("grid-*.png"), first.pictures()
    assert (record(pictures[0])["freeu"] is None) == first_is_plain  # a picture says what acts in it
    again = txt2img("--from-image", sheet, defaults=["--device", "cpu"])
    assert again.code == 0, again.err
    assert [p.read_bytes() for p in again.pictures()] == [p.read_bytes() for p in pictures]
    [other] = again.folder.glob("grid-*.png")
    assert other.read_bytes() == sheet.read_bytes()


def test_a_grid_over_freeu_takes_a_plain_model_and_starts_from_ones(txt2img: Callable[..., Outcome]) -> None:
    done = txt2img("--config", "tiny.yaml", "--grid", "b2=1,1.3")
    assert done.code == 0, done.err
    off, on = done.pictures()
    assert np.array_equal(pixels(off), pixels(txt2img("--no-freeu").pictures()[0]))
    ones = ("--b1", 1, "--s1", 1, "--s2", 1)
    assert np.array_equal(pixels(on), pixels(txt2img("--b2", 1.3, *ones).pictures()[0]))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config", "tiny.yaml", "--grid", "b1=1,1.4"], "FreeU is as each cell of the grid says"),
        (["--grid", "seed=1,2", "b1=1,1.2"], "FreeU is as each cell of the grid says"),
        (["--grid", "seed=1,2"], "FreeU V1: "),
        (["--no-freeu", "--grid", "seed=1,2"], "FreeU is off"),
    ],
)
def test_what_is_said_of_freeu_is_true_of_each_cell(
    argv: list[str], said: str, txt2img: Callable[..., Outcome]
) -> None:
    assert said in txt2img(*argv).out.splitlines()[0]


@pytest.mark.parametrize("flags", [["--n_samples", 2], ["--n_iter", 2], ["--compare"]], ids=str)
def test_several_pictures_from_a_sheet_are_of_what_its_cells_share(
    flags: list, txt2img: Callable[..., Outcome]
) -> None:
    made = ["--seed", 5, "--b2", 1.3]
    sheet = txt2img(*made, "--grid", "s2=0.2,0.6").folder / "grid-0000.png"
    varied = txt2img("--from-image", sheet, *flags, defaults=["--device", "cpu"])
    assert varied.code == 0, varied.err
    afresh = txt2img(*made, *flags)
    assert [it.read_bytes() for it in varied.pictures()] == [it.read_bytes() for it in afresh.pictures()]


def test_a_file_of_prompts_is_drawn_as_what_a_sheet_s_cells_share(
    prompts: Path, txt2img: Callable[..., Outcome]
) -> None:
    sheet = txt2img("--b2", 1.3, "--grid", "s2=0.2,0.6").folder / "grid-0000.png"
    varied = txt2img("--from-image", sheet, "--from-file", prompts, defaults=["--device", "cpu"])
    assert varied.code == 0, varied.err
    afresh = txt2img("--b2", 1.3, "--from-file", prompts)
    assert [it.read_bytes() for it in varied.pictures()] == [it.read_bytes() for it in afresh.pictures()]


def test_a_grid_without_single_pictures_and_one_that_goes_on(txt2img: Callable[..., Outcome]) -> None:
    argv = ("--grid", "strength=0:1:3", "model.params.unet_config.params.threshold=2")
    only = txt2img(*argv, "--skip_save")
    assert only.code == 0 and not only.pictures()
    whole = txt2img(*argv)
    [sheet], [single] = whole.folder.glob("grid-*"), only.folder.glob("grid-*")
    assert np.array_equal(pixels(sheet), pixels(single))
    before = {path: path.read_bytes() for path in (*whole.pictures(), sheet)}
    for path in (whole.pictures()[1], sheet):
        path.unlink()
    assert txt2img(*argv, "--resume", into=whole.folder).code == 0
    assert {path: path.read_bytes() for path in before} == before
    other = txt2img("--grid", "strength=0:1:4", argv[-1], "--resume", into=whole.folder)
    assert other.code == 2 and "another --outdir" in other.err


@pytest.mark.parametrize("schedule", [{}, {"start": 0.3, "stop": 0.8, "ramp": 0.2}])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cells_of_one_batch_have_each_its_own_factors(
    scale: float, schedule: dict, tiny_checkpoint: Path
) -> None:
    model = load_model("freeu_tiny.yaml", tiny_checkpoint, "cpu", torch.float32)
    plain = Cell(1, Sampling(64, 64, steps=4, scale=scale), FreeUSettings(1.1, 1.2, 0.9, 0.6, **schedule))
    axes = parse_grid(["b1=0.8,1.4", "version=1,2", "strength=1,0"])
    jobs = [*grid_jobs(axes, "a large red star", plain)]
    painter = Painter(model, plain.sampling)
    painter.at_once = 8
    together = np.stack([*painter.paint(jobs)]).astype(int)
    assert not model.model.diffusion_model._forward_pre_hooks
    for job, picture in zip(jobs, together, strict=True):
        model.model.diffusion_model.freeu = job.cell.freeu
        [alone] = generate(model, [job.prompt], [job.seed], plain.sampling)
        assert np.abs(picture - alone.astype(int)).max() <= 2  # as far as batches round otherwise
    assert np.abs(together[0] - together[1]).max() > 20


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--grid", "b7=1,2"], "there is no setting 'b7', but b1, b2"),
        (["--grid", "prompt=a,b"], "there is no setting 'prompt'"),
        (["--grid", "b1"], "has no values: give them as b1=1.0:1.4:5 or b1=1,1.2"),
        (["--grid", "b1="], "has no values"),
        (["--grid", "b1=1:1.4"], "no range: give FIRST:LAST:COUNT"),
        (["--grid", "b1=1:x:3"], "no range: give FIRST:LAST:COUNT"),
        (["--grid", "b1=1:inf:3"], "no range"),
        (["--grid", "b1=1:2:1"], "COUNT is 1: give a whole number from 2"),
        (["--grid", "b1=1:2:1000000000"], "COUNT is 1000000000"),
        (["--grid", "b1=1,,2"], "a comma too many"),
        (["--grid", "b1=1,1.0"], "the same value twice"),
        (["--grid", "b1=1,2", "b1=3"], "has b1 twice"),
        (["--grid", "b1=1", "b2=1", "s1=1", "s2=1"], "has 4 settings: give 1 to 3"),
        (["--grid", "b1=-1,1"], "FreeU's b1 is -1"),
        (["--grid", "b1=nan"], "FreeU's b1 is nan"),
        (["--grid", "version=1,3"], "FreeU's version is 3"),
        (["--grid", "start=0.2,0.9", "stop=0.5"], "start, 0.9, is after its stop, 0.5"),
        (["--grid", "steps=0,5"], "steps are 0"),
        (["--grid", "steps=1:4:3"], "steps are 2.5"),
        (["--grid", "steps=5,2000"], "2000"),
        (["--grid", "seed=-1"], "seed is -1"),
        (["--grid", "sampler=euler"], "no sampler 'euler'"),
        (["--grid", "scale=high"], "scale is 'high'"),
        (["--grid", "scale=nan"], "scale is nan"),
        (["--grid", "eta=0,0.5", "--sampler", "dpm"], "eta is 0.5"),
        (["--grid", "b1=1:2:21", "s1=0:1:20"], "420 pictures, more than 400: give --yes"),
        (["--grid", "seed=1:1000:1000", "s1=0:1:1000", "--yes"], "100000 are the most"),
        (["--grid", "b1=1,2", "--compare"], "leave out --compare"),
        (["--grid", "b1=1,2", "--n_samples", "2"], "leave out --n_samples"),
        (["--grid", "b1=1,2", "--from-file", "prompts.txt"], "prompts.txt"),
    ],
)  # fmt: skip
def test_a_grid_that_makes_no_sense_is_one_clear_line(
    argv: list[str], told: str, txt2img: Callable[..., Outcome]
) -> None:
    done = txt2img(*argv)
    assert done.code == 2, done.out
    assert done.err.startswith("error: ") and done.err.count("\n") <= 2
    assert told in done.err
    assert not done.pictures()


def test_more_than_400_pictures_are_drawn_when_they_are_meant() -> None:
    words = ["b1=1:2:21", "s1=0:1:20"]
    with pytest.raises(InputError, match="--yes"):
        parse_grid(words)
    assert [len(axis.values) for axis in parse_grid(words, sure=True)] == [21, 20]


def test_labels_name_each_value() -> None:
    assert Axis("b1", (1.0, 1.05, 0.0001)).labels == ["b1 = 1", "b1 = 1.05", "b1 = 0.0001"]
    assert Axis("channels", ("first", 0.25)).labels == ["channels = first", "channels = 0.25"]
