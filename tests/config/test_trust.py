"""What a config may build: this project's networks and torch's, and nothing else unless it is trusted."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.config.trust import ALLOWED, trusting
from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.image_io import read_record, save_png
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.util import get_class, instantiate_from_config

FOREIGN = [
    "os.mkdir",
    "os.system",
    "builtins.eval",
    "builtins.open",
    "pathlib.Path",
    "subprocess.Popen",
    "logging.FileHandler",
    "shelve.DbfilenameShelf",
    "torch.utils.tensorboard.SummaryWriter",
    "torch.hub.load",
    "torch.nnx.Thing",
    "pytorch_lightning.Trainer",
    "stranger.UNet",
    "ldmx.models.Model",
    # Names in a module of this project or of torch that lead out of it, or to what is no network.
    "ldm.config.reading.Path",
    "ldm.txt2img.jobs.Path",
    "ldm.models.diffusion.ddpm.Callable",
    "ldm.models.diffusion.ddpm.__class__",
    "ldm.modules.encoders.open_clip_files.Path",
    "ldm.txt2img.run.Run",
    "ldm.txt2img.manifest.Manifest",
    "ldm.study.runs.Runs",
    "ldm.study.figures.study.Study",
    "torch.nn.modules.module.OrderedDict",
    "torch.nn.parallel.DistributedDataParallel",
    "torch.nn.utils.prune.PruningContainer",
    "torch.nn.Parameter",
]
STRANGER = """
from pathlib import Path
Path({marker!r}).touch()
from ldm.modules.diffusionmodules.openaimodel import Free_UNetModel
from ldm.modules.encoders.words import WordEmbedder
class UNet(Free_UNetModel): pass
class Words(WordEmbedder): pass
"""
UNET_OF_STRANGER = "model.params.unet_config.target=stranger.UNet"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears when a package of somebody else is imported."""
    path = tmp_path / "imported"
    (tmp_path / "stranger.py").write_text(STRANGER.format(marker=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("stranger", None)


@pytest.mark.parametrize("target", FOREIGN)
def test_a_name_that_leads_elsewhere_is_neither_imported_nor_built(
    target: str, tiny_checkpoint: Path, marker: Path
) -> None:
    places = {
        "the model": ["model.target=" + target],
        "its U-Net": ["model.params.unet_config.target=" + target],
        "its text encoder": ["model.params.cond_stage_config={target: " + target + ", params: {}}"],
        "a reference": ["checkpoint={t: " + target + "}", "model.target=${checkpoint.t}"],
    }
    package, known = target.partition(".")[0], set(sys.modules)
    for overrides in places.values():
        with pytest.raises(InputError, match=r"not run: .*--trust-config \(trust_config=True\)") as refused:
            load_model("freeu_tiny.yaml", tiny_checkpoint, "cpu", overrides=overrides)
        assert repr(target) in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="--trust-config"):
        instantiate_from_config({"target": target})
    assert not marker.exists()
    assert package in ("ldm", "torch") or package in known or package not in sys.modules


def test_a_trusted_config_is_built_whole_and_trust_ends_with_the_call(
    tiny_checkpoint: Path, marker: Path
) -> None:
    model: Any = load_model(
        "freeu_tiny.yaml", tiny_checkpoint, "cpu", overrides=[UNET_OF_STRANGER], trust_config=True
    )
    assert isinstance(model.model.diffusion_model, Free_UNetModel)
    assert type(model.model.diffusion_model).__module__ == "stranger" and marker.exists()

    config = load_config("freeu_tiny.yaml", [UNET_OF_STRANGER]).model
    assert type(instantiate_from_config(config, trust_config=True).model.diffusion_model).__name__ == "UNet"
    with pytest.raises(InputError, match="--trust-config"):
        instantiate_from_config(config)
    with suppress(InputError):
        instantiate_from_config({"target": "collections.Counter", "params": 5}, trust_config=True)
    with pytest.raises(InputError, match="--trust-config"):
        get_class("collections.Counter")
    with trusting(True), trusting(False):  # what is built inside a trusted class is trusted too
        assert get_class("collections.Counter")


def test_sections_that_nothing_reads_may_name_anything(tiny_checkpoint: Path) -> None:
    overrides = [
        "model.params.scheduler_config={target: nowhere.Scheduler}",
        "model.params.first_stage_config.params.lossconfig={target: taming.modules.losses.Loss}",
    ]
    load_model("freeu_tiny.yaml", tiny_checkpoint, "cpu", overrides=overrides)


def buildable() -> dict[str, type]:
    """Every class that a config can have built untrusted, by its name."""
    found: dict[str, type] = {}
    for package in ("ldm.models", "ldm.modules", "ldm.training", "ldm.lr_scheduler", "torch.nn"):
        module = importlib.import_module(package)
        below = pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}.")
        for name in [package, *(info.name for info in below)]:
            with suppress(ImportError, OSError, AttributeError, RuntimeError):
                for it in vars(importlib.import_module(name)).values():
                    if isinstance(it, type) and f"{it.__module__}.".startswith(ALLOWED):
                        found[f"{it.__module__}.{it.__qualname__}"] = it
    return found


def test_nothing_that_a_config_can_build_writes_a_file_or_starts_a_program(tmp_path: Path) -> None:
    """Every class, with a path, the name of a program, a number or a section for each of its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = buildable()
    assert {"torch.nn.modules.linear.Linear", "ldm.training.diffusion.DiffusionTraining"} < classes.keys()
    assert len(classes) > 200
    path = tmp_path / "made"
    section = OmegaConf.create({"target": "torch.nn.Identity", "outdir": str(path), "params": {}})
    values = [str(path), f"touch {path}", 1, 2, section, [str(path)], [1, 2]]

    pid = os.fork()
    if not pid:
        done: list[str] = []
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
        starts = (
            "subprocess.",
            "os.",
            "pty.",
            "shutil.",
            "socket.",
            "ctypes.dlopen",
            "tempfile.",
            "webbrowser.",
        )
        harmless = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")

        def hear(event: str, arguments: tuple) -> None:
            wrote = event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
            if wrote or (event.startswith(starts) and event not in harmless):
                done.append(f"{name}: {event} {arguments}")

        name = ""
        sys.addaudithook(hear)
        for name, cls in classes.items():
            with suppress(ValueError, TypeError):
                names = list(inspect.signature(cls.__init__).parameters)[1:]
                for value in values:
                    with torch.device("meta"), suppress(Exception):
                        params = {one: value for one in names if one not in ("args", "kwargs")}
                        instantiate_from_config({"target": name, "params": params})
        heard, count = "\n".join(done), len(done)
        os.write(2, heard.encode())
        os._exit(bool(count))
    assert os.waitpid(pid, 0)[1] == 0
    assert list(tmp_path.iterdir()) == []


def script(name: str) -> Callable[[list[str]], int]:
    """The main function of a script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


UNET_CONFIG = """
base: freeu_tiny.yaml
model: {params: {unet_config: {target: stranger.UNet}}}
sampling: {height: 32, width: 32}
"""
WORDS_CONFIG = """
base: train/tiny_words.yaml
params: {model: {target: stranger.Words}, batch_size: 2, data: {count: 4}}
trainer: {max_steps: 1, accelerator: cpu}
checkpoint_every: 1
"""
QUICK = ["--steps", "1", "--device", "cpu"]
COMMANDS = {
    "txt2img": QUICK,
    "evaluate": [*QUICK, "--prompts", "1", "--seeds", "2", "--settings", "V1"],
    "figures": [*QUICK, "--prompts", "1", "--seeds", "2", "--figure", "13"],
    "user_study": ["make", *QUICK, "--pairs", "1"],
    "train": [],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_script_names_the_flag_and_goes_on_with_it(
    name: str, marker: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, config = script(name), tmp_path / "mine.yaml"
    config.write_text(WORDS_CONFIG if name == "train" else UNET_CONFIG)
    argv = [*COMMANDS[name], "--config", str(config), "--outdir", str(tmp_path / "out")]
    argv += [] if name == "train" else ["--ckpt", str(tiny_checkpoint)]
    assert main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: The config's target 'stranger.") and "add --trust-config" in line
    assert not marker.exists()

    with torch.enable_grad():
        assert main([*argv, "--trust-config"]) == 0
    assert marker.exists()


def test_a_picture_brings_no_trust_along(txt2img: Callable[..., Any], marker: Path, tmp_path: Path) -> None:
    made = txt2img()
    path = tmp_path / "a.png"
    record = read_record(made.pictures()[0]) | {"overrides": [UNET_OF_STRANGER], "trust_config": True}
    save_png(path, np.zeros((8, 8, 3), np.uint8), record=record)
    refused = txt2img("--from-image", path, defaults=["--device", "cpu"])
    assert refused.code == 2 and "--trust-config" in refused.err and not marker.exists()
    assert txt2img("--from-image", path, "--trust-config", defaults=["--device", "cpu"]).code == 0
    assert marker.exists()
