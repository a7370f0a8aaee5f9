"""Trainings that are stopped, run out of disk or of numbers, or are asked for what they cannot do."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import save_file

from ldm.errors import InputError
from ldm.folders import CHECKPOINTS
from ldm.training import AutoencoderTraining, WordsTraining
from ldm.training.losses import read_losses
from ldm.training.stage import Stage, load_weights
from ldm.weights.reading import read_tensors
from tests.test_training import QUICK, main, train

WORDS = "train/tiny_words.yaml"
QUIET = [*QUICK, "checkpoint_every=100", "trainer.log_every_n_steps=4"]  # no checkpoints, few losses


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Gives something else than the loss from a step on; nothing else where that is None."""
    steps = {stage: stage.training_step for stage in (WordsTraining, AutoencoderTraining)}

    def change(first: int | None, other: Callable[[Any], Any], stage: type[Stage] = WordsTraining) -> None:
        def changed(self: Stage, *given: Any) -> Any:
            loss = steps[stage](self, *given)
            return loss if first is None or self.global_step < first else other(loss)

        monkeypatch.setattr(stage, "training_step", changed)

    return change


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a training of one step leaves."""
    folder = tmp_path_factory.mktemp("begun")
    train(WORDS, folder, [*QUICK, "trainer.max_steps=1"])
    return folder


def killed(_: Any) -> None:
    raise KeyboardInterrupt


def ends_alike(folder: Path) -> bool:
    """Whether the broken training's weights are those of the unbroken one."""
    one, other = ((folder / run / "model.safetensors").read_bytes() for run in ("unbroken", "broken"))
    return one == other


# Four batches are an epoch.
@pytest.mark.parametrize("every, breaks", [(1, [3]), (1, [4, 8]), (2, [3, 7, 8])])
def test_a_training_that_was_broken_ends_with_the_weights_of_an_unbroken_one(
    every: int, breaks: list[int], at_step: Callable, tmp_path: Path
) -> None:
    asked = [*QUICK, f"checkpoint_every={every}", "params.lr=0.5", "trainer.max_steps=10"]
    train(WORDS, tmp_path / "unbroken", asked)
    for last in breaks:
        at_step(last, killed)
        with pytest.raises(KeyboardInterrupt):
            train(WORDS, tmp_path / "broken", asked)
    at_step(None, killed)
    train(WORDS, tmp_path / "broken", asked)
    assert ends_alike(tmp_path)


def test_a_training_that_was_broken_twice_within_a_step_of_two_batches_ends_like_an_unbroken_one(
    at_step: Callable, tmp_path: Path
) -> None:
    asked = [*QUICK, "params.lr=0.5", "trainer.accumulate_grad_batches=2", "trainer.max_steps=3"]
    train(WORDS, tmp_path / "unbroken", asked)

    def killed_in_the_second_batch(loss: torch.Tensor) -> torch.Tensor | None:
        batches.append(loss)
        return loss if len(batches) == 1 else killed(loss)

    for _ in range(2):
        batches: list[torch.Tensor] = []
        at_step(1, killed_in_the_second_batch)
        with pytest.raises(KeyboardInterrupt):
            train(WORDS, tmp_path / "broken", asked)
    at_step(None, killed)
    train(WORDS, tmp_path / "broken", asked)
    assert ends_alike(tmp_path)


@pytest.mark.slow
def test_a_training_with_dropout_that_was_broken_ends_with_the_weights_of_an_unbroken_one(
    at_step: Callable, tmp_path: Path
) -> None:
    stage = "train/tiny_autoencoder.yaml"
    dropout = "model.params.first_stage_config.params.ddconfig.dropout=0.5"
    asked = [*QUICK, dropout, "params.data.side=16", "params.data.crop=8", "trainer.max_steps=2"]
    train(stage, tmp_path / "unbroken", asked)
    at_step(1, killed, AutoencoderTraining)
    with pytest.raises(KeyboardInterrupt):
        train(stage, tmp_path / "broken", asked)
    at_step(None, killed, AutoencoderTraining)
    train(stage, tmp_path / "broken", asked)
    assert ends_alike(tmp_path)


# The time is up in the step of this number: within an epoch, at its end, and in the first half of a step.
@pytest.mark.parametrize("up, batches", [(1, 1), (3, 1), (2, 2)])
def test_a_training_whose_time_is_up_says_so_and_goes_on_to_the_end_of_an_unbroken_one(
    up: int,
    batches: int,
    at_step: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)

    def late(loss: torch.Tensor) -> torch.Tensor:
        clock.now = 60.0
        return loss

    asked = [*QUICK, "checkpoint_every=100", "params.lr=0.5", f"trainer.accumulate_grad_batches={batches}"]
    asked += ["trainer.max_steps=5"]
    train(WORDS, tmp_path / "unbroken", asked)
    at_step(up, late)
    train(WORDS, tmp_path / "broken", [*asked, "trainer.max_time=00:00:01:00"])
    said = f"unfinished, at step {up + 1} of 5; the same command with a longer trainer.max_time goes on"
    assert said in capsys.readouterr().out
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    assert torch.load(tmp_path / "broken" / "last.ckpt", weights_only=False)["global_step"] == up + 1
    train(WORDS, tmp_path / "broken", [*asked, "trainer.max_time=00:01:00:00"])
    assert ends_alike(tmp_path)
    assert read_losses(tmp_path / "unbroken") == read_losses(tmp_path / "broken")


def test_a_training_leaves_a_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    train(WORDS, tmp_path, [*QUICK, "checkpoint_every=2", "trainer.max_steps=3"])
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 3


def test_a_training_that_goes_on_within_an_epoch_is_not_warned_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for steps in (3, 5):
        train(WORDS, tmp_path, [*QUICK, f"trainer.max_steps={steps}"])
    assert not [one for one in recwarn if "resum" in str(one.message)]


def test_a_kill_leaves_a_whole_checkpoint_though_temporary_files_lie_on_another_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(WORDS, tmp_path, [*QUICK, "trainer.max_steps=1"])
    rename = os.rename

    def within_a_folder(source: str, target: str, **given: Any) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **given)

    def cut_off(source: str, target: str, **_: Any) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", within_a_folder)
    monkeypatch.setattr(shutil, "copyfile", cut_off)
    with contextlib.suppress(KeyboardInterrupt):
        train(WORDS, tmp_path, [*QUICK, "trainer.max_steps=2"])
    assert read_tensors(tmp_path / "last.ckpt")


# In the order in which a training of one step writes them.
@pytest.mark.parametrize(
    "before, name", enumerate(["config.yaml", "last.ckpt", "model.safetensors", "loss.png"])
)
def test_a_full_disk_ends_a_training_in_a_line_and_leaves_what_was_there(
    before: int, name: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    written = iter(range(4))

    def full(_: int) -> None:
        if next(written) == before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=rf"{name} cannot be written: No space left on device\."):
        train(WORDS, tmp_path, [*QUICK, "trainer.max_steps=2"])
    assert (tmp_path / name).read_bytes() == (begun / name).read_bytes()
    assert not list(tmp_path.glob(f".{name}*"))


def test_a_disk_that_is_too_full_for_losses_ends_a_training_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: CSVLogger) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(CSVLogger, "save", full)
    with pytest.raises(InputError, match=r"cannot be written: No space left on device\."):
        train(WORDS, tmp_path, [*QUICK, "trainer.max_steps=1"])


def test_checkpoint_every_null_keeps_a_checkpoint_of_the_end_alone(at_step: Callable, tmp_path: Path) -> None:
    asked = [*QUICK, "checkpoint_every=null", "trainer.max_steps=5"]
    at_step(4, killed)
    with pytest.raises(KeyboardInterrupt):
        train(WORDS, tmp_path, asked)
    assert not (tmp_path / "last.ckpt").exists()
    at_step(None, killed)
    train(WORDS, tmp_path, asked)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 5


def test_losses_are_looked_at_only_where_one_is_logged(at_step: Callable, tmp_path: Path) -> None:
    at_step(1, lambda loss: loss * torch.nan)
    with pytest.raises(InputError, match="no longer a number at step 4"):
        train(WORDS, tmp_path, [*QUIET, "trainer.max_steps=9"])


def test_weights_that_a_loss_which_is_no_number_got_into_are_not_exported(
    at_step: Callable, tmp_path: Path
) -> None:
    at_step(1, lambda loss: loss * torch.nan)
    with pytest.raises(InputError, match="no longer a number at step 2"):
        train(WORDS, tmp_path, [*QUIET, "trainer.max_steps=3"])
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_the_last_step_makes_no_numbers_of_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights are no longer numbers, as in \S+: lower params\.lr"):
        train(WORDS, tmp_path, [*QUICK, "params.lr=1e300", "trainer.max_steps=1"])
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_a_loss_which_is_no_number_got_into_draw_no_sheet(
    at_step: Callable, tmp_path: Path
) -> None:
    at_step(1, lambda loss: loss * torch.nan, AutoencoderTraining)
    asked = [*QUIET, "params.data.crop=8", "trainer.val_check_interval=2", "trainer.max_steps=9"]
    with pytest.raises(InputError, match="no longer a number at step 1"):
        train("train/tiny_autoencoder.yaml", tmp_path, asked)
    assert not (tmp_path / "samples").exists()


def test_a_checkpoint_holds_no_weights_of_a_loss_that_is_no_number_in_part_of_a_step(
    at_step: Callable, tmp_path: Path
) -> None:
    losses = iter([1.0, 1.0, torch.nan])
    at_step(0, lambda loss: loss * next(losses, 1.0))
    asked = [*QUIET, "checkpoint_every=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=9"]
    with pytest.raises(InputError, match="no longer a number at step 1"):
        train(WORDS, tmp_path, asked)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize(
    "stage, change, said",
    [
        ("tiny_words", "seed=abc", "seed is 'abc': give a whole number from 0"),
        ("tiny_words", "seed=-1", "seed is -1: give a whole number from 0"),
        ("tiny_words", "ema_decay=abc", "ema_decay is 'abc': give a number from 0 to below 1"),
        ("tiny_words", "ema_decay=1", "ema_decay is 1: give a number from 0 to below 1"),
        ("tiny_words", "checkpoint_every=-1", "checkpoint_every is -1: give a whole number of steps"),
        ("tiny_words", "checkpoint_every=abc", "checkpoint_every is 'abc': give a whole number of steps"),
        ("tiny_words", "checkpoint_every=0", "checkpoint_every is 0: .* null for a checkpoint at the end"),
        ("tiny_words", "params=3", "params is 3: give `key: value` lines"),
        ("tiny_words", "params.lr=-1", "params.lr is -1: give a number, 0 or more"),
        ("tiny_words", "params.data=3", "params.data is 3: give `key: value` lines"),
        ("tiny_words", "params.data.count=-1", "params.data.count is -1: give a whole number of scenes"),
        ("tiny_words", "params.data.seed=abc", "params.data.seed is 'abc': give a whole number"),
        ("tiny_words", "params.data.seed=0", "params.data.seed is 0: give a whole number from 1"),
        ("tiny_words", "params.data.foo=1", "unexpected keyword argument 'foo'"),
        ("tiny_words", "trainer=3", "trainer is 3: give `key: value` lines"),
        ("tiny_words", "trainer.max_steps=0", "trainer.max_steps is 0: give a whole number, 1 or more"),
        ("tiny_words", "trainer.max_steps=-1", "trainer.max_steps is -1: give a whole number, 1 or more"),
        ("tiny_words", "trainer.log_every_n_steps=abc", "log_every_n_steps is 'abc': give a whole number"),
        ("tiny_words", "trainer.accumulate_grad_batches=0", "accumulate_grad_batches is 0: give a whole"),
        ("tiny_words", "trainer.limit_train_batches=0", "limit_train_batches is 0: give a number of batches"),
        ("tiny_words", "trainer.overfit_batches=1", "overfit_batches is 1: give 0, and a small params"),
        ("tiny_words", "trainer.val_check_interval=0", "val_check_interval is 0: give a number of batches"),
        ("tiny_words", "trainer.val_check_interval=0.5", "val_check_interval is 0.5: .* 1 or more, or days"),
        ("tiny_words", "trainer.max_time=5", "max_time is 5: give days, .* such as 00:12:00:00"),
        ("tiny_words", "trainer.max_epochs=2", "max_epochs is set by the script .* trainer.max_steps"),
        ("tiny_words", "trainer.logger=false", "trainer.logger is set by the script itself: leave it out"),
        (
            "tiny_words",
            "model.params.cond_stage_config.params.max_length=8",
            "max_length is 8: give 19 or more, as captions have up to 17 words",
        ),
        (
            "tiny_words",
            "model.params.cond_stage_config.params.words[12]=amber",
            "does not know orange, which captions have: add what is missing to its words or",
        ),
        (
            "tiny_words",
            "model.params.cond_stage_config.params.heads=3",
            "heads is 3 and width 128: give a number of heads that divides the width",
        ),
        ("tiny_words", "trainer.detect_anomaly=abc", "trainer.detect_anomaly is 'abc', which is no bool"),
        ("tiny_words", "target=torch.nn.Identity", "torch.nn.Identity is no stage of a training"),
        ("judge", "params.data.side=3", "unexpected keyword argument 'side'"),
        (
            "tiny_autoencoder",
            "params.data.crop=33",
            "crop is 33 and params.data.side 128: give multiples of 8",
        ),
        ("tiny_autoencoder", "params.data.crop=256", "crop is 256 .* no larger than the side"),
        ("tiny_autoencoder", "params.data.crop=0", "crop is 0: give a whole number of pixels, .* or null"),
        ("tiny_autoencoder", "params.data.side=abc", "side is 'abc': give a whole number of pixels"),
        ("tiny", "params.side=65", "65 pixels is no multiple of 32"),
        ("tiny", "params.data.side=64", "multiple values for keyword argument 'side'"),
        ("tiny", "params.data.unconditional=2", "unconditional is 2: give a number from 0 to 1"),
        (
            "tiny",
            f"params.weights={CHECKPOINTS / 'judge.safetensors'}",
            "judge.safetensors does not hold all weights of the config's LatentDiffusion, .* "
            "params.weights=FILE",
        ),
        (
            "tiny",
            f"params.autoencoder={CHECKPOINTS / 'judge.safetensors'}",
            r"all weights of the config's AutoencoderKL, such as .* \(.*\): .* params.autoencoder=FILE",
        ),
        ("tiny_words", "trainer.precision=16-true", "trainer.precision is 16-true: give 32-true, 16-mix"),
    ],
)
def test_options_that_no_training_can_have_are_refused_in_a_line_before_anything_is_written(
    stage: str, change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("as it was")
    asked = ["--config", f"train/{stage}.yaml", "--outdir", str(tmp_path), *QUICK]
    assert main([*asked, "trainer.max_steps=1", change]) == 2
    [*_, line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(said, line)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "as it was"


def test_weights_that_hold_more_than_the_network_that_they_are_to_be_are_refused(tmp_path: Path) -> None:
    given, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_file(given.state_dict() | {"more": torch.zeros(1)}, tmp_path / "more.safetensors")
    said = r"more.safetensors holds more than the config's Linear, such as more: .* params.autoencoder=FILE"
    with pytest.raises(InputError, match=said):
        load_weights(network, str(tmp_path / "more.safetensors"), "autoencoder")
    load_weights(network, str(tmp_path / "more.safetensors"), "weights", strict=False)
    assert torch.equal(network.weight, given.weight) and torch.equal(network.bias, given.bias)


def test_samples_that_fill_no_batch_leave_the_config_of_the_run_before(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("as it was")
    with pytest.raises(InputError, match=r"params\.batch_size is 9"):
        train(WORDS, tmp_path, [*QUICK, "params.batch_size=9", "trainer.max_steps=1"])
    assert (tmp_path / "config.yaml").read_text() == "as it was"


@pytest.mark.parametrize(
    "stage, change, said",
    [
        ("tiny_words", "trainer.limit_train_batches=0.01", r"Try at least `limit_train_batches=0\.25`"),
        ("tiny_autoencoder", "trainer.limit_val_batches=0.01", r"Try at least `limit_val_batches=1\.0`"),
    ],
)
def test_shares_that_are_no_batch_are_refused_in_a_line_and_leave_the_config_of_the_run_before(
    stage: str, change: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("as it was")
    with pytest.raises(InputError, match=f"Lightning refuses the `trainer.` options: .*{said}$"):
        train(f"train/{stage}.yaml", tmp_path, [*QUICK, "trainer.max_steps=1", change])
    assert (tmp_path / "config.yaml").read_text() == "as it was"
