"""Training: all stages through the script, on a few small scenes."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.data.datasets import ScenePictures
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.generate import Sampling, generate
from ldm.image_io import read_picture
from ldm.models.autoencoder import AutoencoderKL
from ldm.training import DiffusionTraining, WordsTraining
from ldm.training.autoencoder import standardise
from ldm.training.diffusion import mostly_late
from ldm.training.losses import read_losses
from ldm.util import instantiate_from_config

SCRIPT = str(ROOT / "scripts" / "train.py")
main, train = (runpy.run_path(SCRIPT)[name] for name in ("main", "train"))

QUICK = [
    "checkpoint_every=1",
    "params.batch_size=2",
    "params.data.count=8",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
]
AUTOENCODER = [*QUICK, "params.data.side=64", "params.data.crop=32", "trainer.val_check_interval=2"]
DIFFUSION = [*QUICK, "params.side=64", "trainer.val_check_interval=2"]


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return instantiate_from_config(load_config("tiny.yaml").model.params.first_stage_config)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage was trained for a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    train("train/tiny_autoencoder.yaml", folder / "autoencoder", [*AUTOENCODER, "trainer.max_steps=4"])
    train("train/tiny_words.yaml", folder / "words", [*QUICK, "trainer.max_steps=2"])
    networks = [
        f"params.autoencoder={folder / 'autoencoder' / 'model.safetensors'}",
        f"params.text_encoder={folder / 'words' / 'model.safetensors'}",
        f"params.cache={folder / 'latents.npy'}",
    ]
    train("train/tiny.yaml", folder / "diffusion", [*DIFFUSION, *networks, "trainer.max_steps=2"])
    return folder


def test_every_stage_leaves_checkpoints_losses_and_weights(stages: Path) -> None:
    for stage in ("autoencoder", "words", "diffusion"):
        left = {path.name for path in (stages / stage).iterdir()}
        assert {"config.yaml", "last.ckpt", "metrics", "model.safetensors", "loss.png"} <= left
        assert read_picture(stages / stage / "loss.png").std() > 5
        logged = read_losses(stages / stage)
        assert logged and all(np.isfinite(loss) for loss in logged.values())


def test_what_makes_pictures_leaves_sheets_of_them(stages: Path) -> None:
    for stage in ("autoencoder", "diffusion"):
        assert [path.name for path in (stages / stage / "samples").iterdir()]


def test_the_model_holds_what_the_stages_before_it_trained(stages: Path) -> None:
    whole = load_file(stages / "diffusion" / "model.safetensors")
    for stage, part in (("autoencoder", "first_stage_model"), ("words", "cond_stage_model")):
        for name, weight in load_file(stages / stage / "model.safetensors").items():
            if weight.is_floating_point():
                assert torch.allclose(whole[f"{part}.{name}"].float(), weight, rtol=1e-3, atol=1e-6)


def test_the_exported_weights_draw_through_the_ordinary_path(stages: Path) -> None:
    model = load_model("tiny.yaml", ckpt=stages / "diffusion" / "model.safetensors", device="cpu")
    [picture] = generate(model, ["a red circle"], [0], Sampling(64, 64, steps=2))
    assert picture.shape == (64, 64, 3)


def test_what_a_run_goes_on_from_is_no_model_and_the_file_that_is_one_is_named(stages: Path) -> None:
    said = r"last\.ckpt does not fit .*: it is what a training goes on from: give its model\.safetensors"
    with pytest.raises(InputError, match=said):
        load_model("tiny.yaml", ckpt=stages / "diffusion" / "last.ckpt", device="cpu")


def test_a_run_whose_folder_holds_a_checkpoint_goes_on_from_it(tmp_path: Path) -> None:
    arguments = AUTOENCODER
    train("train/tiny_autoencoder.yaml", tmp_path, [*arguments, "trainer.max_steps=2"])
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 2
    train("train/tiny_autoencoder.yaml", tmp_path, [*arguments, "trainer.max_steps=3"])
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 3
    assert sorted(read_losses(tmp_path)) == [0, 1, 2]


def test_training_in_mixed_precision_moves_the_weights_nearly_as_in_float32(tmp_path: Path) -> None:
    def weights(name: str, *options: str) -> torch.Tensor:
        asked = [*QUICK, "trainer.max_steps=3", "ema_decay=0", *options]
        train("train/tiny_words.yaml", tmp_path / name, asked)
        left = load_file(tmp_path / name / "model.safetensors")
        return torch.cat([weight.flatten() for weight in left.values() if weight.is_floating_point()])

    begun = weights("begun", "params.lr=1e-12")
    plain = weights("plain", "params.lr=0.1")
    mixed = weights("mixed", "params.lr=0.1", "trainer.precision=bf16-mixed")
    assert 0 < (mixed - plain).norm() < 0.3 * (plain - begun).norm()


@pytest.mark.parametrize(
    ("own", "trainers", "kind"),
    [
        ("false", "32-true", torch.float32),
        ("false", "bf16-mixed", torch.bfloat16),
        ("true", "32-true", torch.bfloat16),
    ],
)
def test_the_u_net_learns_in_its_own_precision_or_in_the_trainers(
    stages: Path, tmp_path: Path, own: str, trainers: str, kind: torch.dtype
) -> None:
    seen = set()

    def see(layer: torch.nn.Module, _: object, made: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Conv2d):
            seen.add(made.dtype)

    given = f"params.weights={stages / 'diffusion' / 'model.safetensors'}"
    asked = [*DIFFUSION, given, f"params.cache={stages / 'latents.npy'}", "trainer.max_steps=1"]
    asked += [f"params.bfloat16={own}", f"trainer.precision={trainers}"]
    hook = torch.nn.modules.module.register_module_forward_hook(see)
    try:
        train("train/tiny.yaml", tmp_path, asked)
    finally:
        hook.remove()
    assert seen == {kind}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "begun, said",
    [
        (True, "stopped\nthe same command goes on from the last checkpoint"),
        (False, "stopped\nthere is no checkpoint yet; the same command begins anew"),
    ],
)
def test_a_training_that_is_stopped_says_how_to_go_on(
    begun: bool,
    said: str,
    number: signal.Signals,
    stages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    if begun:
        shutil.copytree(stages / "words", tmp_path, dirs_exist_ok=True)
    asked = ["--config", "train/tiny_words.yaml", "--outdir", str(tmp_path), *QUICK]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *asked])
    monkeypatch.setattr(WordsTraining, "training_step", lambda *_: signal.raise_signal(number))
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    # Where the tests run in the background the interrupt is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(SCRIPT, run_name="__main__")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert end.value.code == 128 + number
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, changes, said",
    [
        ("freeu_tiny.yaml", [], "describes no training: it has no target, params, seed"),
        (
            "train/tiny.yaml",
            ["params.autoencoder=runs/none"],
            "no weights runs/none.* params.autoencoder=FILE",
        ),
        ("train/tiny.yaml", ["params.weights=runs/none"], "no weights runs/none.* params.weights=FILE"),
        (
            "train/tiny_autoencoder.yaml",
            ["params.weights=runs/none"],
            "no weights runs/none.* params.weights=FILE",
        ),
        ("train/tiny_words.yaml", ["trainer.foo=1"], "Lightning refuses the `trainer.` options: .*'foo'"),
        ("train/tiny_words.yaml", ["trainer.accelerator=abacus"], "Lightning refuses .*abacus"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(
    config: str, changes: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--config", config, "--outdir", str(tmp_path / "run"), *changes]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(said, line)


def test_a_training_that_has_ended_leaves_its_weights_as_they_are(tmp_path: Path) -> None:
    weights, contents = tmp_path / "model.safetensors", []
    for _ in range(2):
        train("train/tiny_words.yaml", tmp_path, [*QUICK, "trainer.max_steps=2"])
        contents.append(weights.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("size, count", [(9, 8), (2, 0), (0, 8)])
def test_samples_that_fill_no_batch_are_refused_with_both_numbers(
    size: int, count: int, tmp_path: Path
) -> None:
    changes = [*QUICK, f"params.batch_size={size}", f"params.data.count={count}", "trainer.max_steps=1"]
    with pytest.raises(
        InputError, match=f"params.batch_size is {size} and params.data.count {count}, .*lower"
    ):
        train("train/tiny_words.yaml", tmp_path, changes)


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("train/tiny_words.yaml", tmp_path, [*QUICK, "trainer.max_steps=1"])
    before = (tmp_path / "last.ckpt").read_bytes()
    step = WordsTraining.training_step
    monkeypatch.setattr(WordsTraining, "training_step", lambda *given: step(*given) * np.inf)
    with pytest.raises(InputError, match=r"no longer a number at step 1: lower params\.lr"):
        train("train/tiny_words.yaml", tmp_path, [*QUICK, "trainer.max_steps=3"])
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_a_damaged_checkpoint_is_refused_and_the_config_stays(
    kept: int, stages: Path, tmp_path: Path
) -> None:
    whole = (stages / "words" / "last.ckpt").read_bytes()
    assert kept < len(whole)
    (tmp_path / "last.ckpt").write_bytes(whole[:kept])
    (tmp_path / "config.yaml").write_text("as it was")
    with pytest.raises(InputError, match=r"last\.ckpt.* Remove it .* another --outdir") as refused:
        train("train/tiny_words.yaml", tmp_path, [*QUICK, "trainer.max_steps=3"])
    assert "\n" not in str(refused.value)
    assert (tmp_path / "config.yaml").read_text() == "as it was"


@pytest.mark.parametrize(
    "change, said",
    [
        ("params.decoder_only=true", "params.decoder_only was null, not true"),
        ("params.weights=FILE", 'params.weights was null, not ".*model.safetensors"'),
        ("params.lr=0.25", "params.lr was 0.001, not 0.25"),
        ("ema_decay=0.5", "ema_decay was 0.99, not 0.5"),
    ],
)
def test_a_run_goes_on_with_no_other_settings_than_it_began_with(
    change: str, said: str, stages: Path
) -> None:
    folder = stages / "autoencoder"
    before = [(folder / name).read_bytes() for name in ("config.yaml", "last.ckpt")]
    asked = [*AUTOENCODER, "trainer.max_steps=6", change.replace("FILE", f"{folder / 'model.safetensors'}")]
    with pytest.raises(InputError, match=f"autoencoder holds .*: {said}. .* another --outdir, or the old"):
        train("train/tiny_autoencoder.yaml", folder, asked)
    assert [(folder / name).read_bytes() for name in ("config.yaml", "last.ckpt")] == before


def test_a_run_goes_on_with_other_options_of_the_trainer(stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages / "words", tmp_path, dirs_exist_ok=True)
    changed = ["checkpoint_every=7", "trainer.precision=bf16-mixed", "trainer.max_steps=3"]
    train("train/tiny_words.yaml", tmp_path, [*QUICK, *changed])
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 3


def test_a_damaged_config_beside_a_checkpoint_is_refused(stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages / "words", tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.yaml").write_bytes(b"")
    with pytest.raises(InputError, match=r"config.yaml is damaged\. Remove it to go on, or give another"):
        train("train/tiny_words.yaml", tmp_path, [*QUICK, "trainer.max_steps=3"])


def test_a_checkpoint_of_another_stage_is_refused_and_the_config_stays(stages: Path) -> None:
    config = stages / "words" / "config.yaml"
    before = config.read_bytes()
    with pytest.raises(InputError, match=r"last\.ckpt is of another stage .* Remove it"):
        train("train/judge.yaml", stages / "words", [*QUICK, "trainer.max_steps=3"])
    assert config.read_bytes() == before


def test_exported_weights_are_open_to_whom_the_other_files_are(stages: Path) -> None:
    for stage in ("autoencoder", "words", "diffusion"):
        assert len({(stages / stage / it).stat().st_mode for it in ("config.yaml", "model.safetensors")}) == 1


@pytest.mark.parametrize("change", ["params.batch_size=9", "params.data.count=0"])
def test_no_latents_are_made_of_samples_that_fill_no_batch(change: str, stages: Path, tmp_path: Path) -> None:
    given = f"params.weights={stages / 'diffusion' / 'model.safetensors'}"
    asked = [*DIFFUSION, given, f"params.cache={tmp_path / 'latents.npy'}", "trainer.max_steps=1", change]
    with pytest.raises(InputError, match="which fill no batch"):
        train("train/tiny.yaml", tmp_path / "run", asked)
    assert not (tmp_path / "latents.npy").exists()


def test_what_is_frozen_is_in_eval_mode_while_the_u_net_learns(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    modes = {}
    step = DiffusionTraining.training_step

    def look(self: DiffusionTraining, *given: object) -> torch.Tensor:
        for name, network in self.model.named_children():
            modes[name] = {module.training for module in network.modules()}
        return step(self, *given)

    monkeypatch.setattr(DiffusionTraining, "training_step", look)
    given = f"params.weights={stages / 'diffusion' / 'model.safetensors'}"
    asked = [*DIFFUSION, given, f"params.cache={stages / 'latents.npy'}", "trainer.max_steps=1"]
    train("train/tiny.yaml", tmp_path, asked)
    assert modes == {"model": {True}, "first_stage_model": {False}, "cond_stage_model": {False}}
    assert not [one for one in recwarn if "eval mode" in str(one.message)]


def test_rows_without_a_whole_loss_are_passed_over(tmp_path: Path) -> None:
    for version, text in {0: "step,psnr\n1,3.0\n", 1: "loss,step\n5.0,20\n4.0"}.items():
        folder = tmp_path / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    assert read_losses(tmp_path) == {20: 5.0}


def test_late_timesteps_come_as_often_as_kumaraswamy_has_them() -> None:
    times = mostly_late(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    for t in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        assert (times < t).float().mean().item() == pytest.approx(1 - (1 - t**2) ** 1.5, abs=0.004)
    assert mostly_late(torch.tensor(0.0)) == 0 and mostly_late(torch.tensor(1 - 2**-24)) < 1


def test_where_a_run_went_on_the_later_losses_count(tmp_path: Path) -> None:
    for version, text in {2: "loss,step\n3.0,20\n,25\n", 10: "loss,step\n5.0,20\n4.0,30\n"}.items():
        folder = tmp_path / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    assert read_losses(tmp_path) == {20: 5.0, 30: 4.0}


def test_the_exported_weights_are_the_averaged_ones(stages: Path) -> None:
    exported = load_file(stages / "diffusion" / "model.safetensors")
    checkpoint = torch.load(stages / "diffusion" / "last.ckpt", weights_only=False)
    name = "model.diffusion_model.out.2.weight"
    averaged = checkpoint["state_dict"][f"model.{name}"]
    assert torch.equal(exported[name], averaged.half())
    assert not torch.equal(averaged, checkpoint["current_model_state"][f"model.{name}"])


def test_a_trained_model_can_be_trained_further(stages: Path, tmp_path: Path) -> None:
    weights = stages / "diffusion" / "model.safetensors"
    arguments = [*DIFFUSION, f"params.weights={weights}", f"params.cache={stages / 'latents.npy'}"]
    train("train/tiny.yaml", tmp_path, [*arguments, "params.lr=0", "trainer.max_steps=1"])
    before, after = load_file(weights), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_decoder_trained_alone_leaves_the_latents_as_they_are(stages: Path, tmp_path: Path) -> None:
    weights = stages / "autoencoder" / "model.safetensors"
    further = [*AUTOENCODER, f"params.weights={weights}", "params.decoder_only=true", "trainer.max_steps=2"]
    train("train/tiny_autoencoder.yaml", tmp_path, further)
    before, after = load_file(weights), load_file(tmp_path / "model.safetensors")
    for name, weight in before.items():
        if name.startswith(("encoder.", "quant_conv.")):
            assert torch.equal(weight, after[name])
    assert not torch.allclose(before["decoder.conv_out.weight"], after["decoder.conv_out.weight"], rtol=1e-3)


def test_standardised_latents_have_mean_0_and_deviation_1_and_decode_alike(
    autoencoder: AutoencoderKL,
) -> None:
    pictures = ScenePictures(8, 64, seed=3)
    [batch] = DataLoader(pictures, 8)
    before = autoencoder.encode(batch)
    decoded = autoencoder.decode(before.mode())
    relative_spread = before.std / before.mean.std((0, 2, 3))[None, :, None, None]

    standardise(autoencoder, pictures)
    after = autoencoder.encode(batch)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(12), atol=1e-5)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(12), atol=1e-5)
    assert torch.allclose(after.std, relative_spread, rtol=1e-4)
    assert torch.allclose(autoencoder.decode(after.mode()), decoded, atol=1e-4)


def test_latents_are_standardised_without_dropout() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        params = load_config("tiny", ["model.params.first_stage_config.params.ddconfig.dropout=0.5"])
        network = instantiate_from_config(params.model.params.first_stage_config)
        torch.manual_seed(len(made))
        standardise(network, ScenePictures(2, 16, seed=3))
        made.append(network.quant_conv.weight)
    assert torch.equal(*made)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["words", "autoencoder", "diffusion"])
def test_two_processes_learn_what_one_does_at_the_same_global_batch(
    stage: str, stages: Path, tmp_path: Path
) -> None:
    config = {"diffusion": "tiny", "autoencoder": "tiny_autoencoder", "words": "tiny_words"}[stage]
    networks = {
        "diffusion": [
            *("params.side=64", "params.bfloat16=false", f"params.cache={tmp_path / 'latents.npy'}"),
            f"params.weights={stages / 'diffusion' / 'model.safetensors'}",
        ],
        "autoencoder": ["params.data.crop=32"],
        "words": [],
    }[stage]

    def trained(processes: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        outdir = tmp_path / str(processes)
        changes = [
            *(*QUICK, *networks, "trainer.max_steps=6", "params.lr=0.1", "params.data.count=10"),
            *(f"params.batch_size={4 // processes}", f"trainer.devices={processes}"),
        ]
        subprocess.run(
            [sys.executable, ROOT / "scripts" / "train.py", "--config", f"train/{config}.yaml",
             "--outdir", outdir, *changes],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
        )  # fmt: skip
        return list(read_losses(outdir).values()), load_file(outdir / "model.safetensors")

    (one, weights), (two, others) = trained(1), trained(2)
    assert len(one) == 6 and np.ptp(one) > 1e-2 * np.mean(one)  # three epochs, and something is learnt
    assert two == pytest.approx(one, rel=2e-4)
    for name, weight in weights.items():
        assert torch.allclose(weight.float(), others[name].float(), rtol=1e-2, atol=1e-3), name
