"""What every test shares: the recipe of the goldens' inputs and weights, one thread, scripts to run."""

import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint import load_model
from ldm.config.reading import load_config
from ldm.folders import CHECKPOINTS, ROOT
from ldm.txt2img.gallery import PlainSheets
from ldm.util import instantiate_from_config

torch.set_num_threads(1)

# Hypothesis's examples have no deadline: on a busy machine a first call may take any time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

DATA = Path(__file__).parent / "data"


def rnd(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, as the goldens' inputs were drawn."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, np.float32))


def fill_by_name(module: nn.Module) -> nn.Module:
    """Gives every weight the values that its name stands for, as the goldens' networks had them."""
    weights = {}
    for name, p in module.state_dict().items():
        a = rnd(zlib.crc32(name.encode()), *p.shape)
        if p.ndim >= 2:
            a = a * (1 / np.prod(p.shape[1:])) ** 0.5
        elif name.endswith(".weight"):
            a = 1 + 0.1 * a
        else:
            a = 0.05 * a
        weights[name] = a
    module.load_state_dict(weights)
    return module.eval()


def relative_error(out: Tensor, reference: np.ndarray | Tensor) -> float:
    """The largest difference over the largest value."""
    reference = torch.as_tensor(reference)
    return ((out - reference).abs().max() / reference.abs().max()).item()


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"{name}.npz"))


def golden_parameters(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """So many threads inside, for examples of hypothesis, which share what a fixture would restore."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's weights; random ones of their shapes where they have not been trained yet."""
    trained = CHECKPOINTS / "tiny.safetensors"
    if trained.is_file():
        return trained
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = instantiate_from_config(load_config("tiny.yaml").model)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_file({name: p.detach().half().contiguous() for name, p in model.named_parameters()}, path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What a run of a script came to."""

    code: int
    out: str
    err: str
    folder: Path

    def pictures(self) -> list[Path]:
        """The single pictures and comparisons, in order of their numbers."""
        return sorted(self.folder.glob("*/*.png"))


SMALL = ["--H", "32", "--W", "32", "--steps", "2", "--device", "cpu", "--precision", "full"]


@pytest.fixture
def txt2img(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs scripts/txt2img.py on the embedded model, in few steps on small pictures unless told otherwise.

    Every run has a folder of its own, or the one named by `into`.
    """
    spec = importlib.util.spec_from_file_location("txt2img", ROOT / "scripts" / "txt2img.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    count = 0

    def run(*argv: object, into: Path | None = None, defaults: list[str] | None = None) -> Outcome:
        nonlocal count
        count += 1
        folder = into or tmp_path / f"run{count}"
        small = ["--ckpt", tiny_checkpoint, *SMALL] if defaults is None else defaults
        capsys.readouterr()
        try:
            code = script.main([str(word) for word in ("--outdir", folder, *small, *argv)])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr(), folder)

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red star\na blue ring\na green heart\n\na cross above a diamond\na yellow square\n")
    return path


@pytest.fixture
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainSheets, "size", 4)


@pytest.fixture
def loaded_once(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the many runs of a test the time to read the same weights."""
    model = load_model("freeu_tiny", tiny_checkpoint, "cpu", torch.float32)
    monkeypatch.setattr("ldm.txt2img.run.load_prompted", lambda *_, **__: model)
