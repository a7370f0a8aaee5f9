"""scripts/user_study.py on the embedded model, small."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ldm.folders import CONFIGS, ROOT

SCRIPT = ROOT / "scripts" / "user_study.py"


@dataclass(frozen=True)
class Outcome:
    """What a run of the script came to."""

    code: int | str | None
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("user_study", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs scripts/user_study.py."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        try:
            code = script.main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def make(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> Run:
    """Runs `make` on the embedded model with small pictures and few steps."""
    config = tmp_path / "small.yaml"
    size = "sampling: {height: 32, width: 32, scale: 3.0}"
    config.write_text(f"base: {CONFIGS / 'freeu_tiny.yaml'}\n{size}\n")

    def make(*argv: object) -> Outcome:
        small = ["--config", config, "--ckpt", tiny_checkpoint, "--steps", 2, "--device", "cpu"]
        return run("make", *small, *argv)

    return make


def fault(outcome: Outcome) -> str:
    """What was said, once it is seen to be one plain line and exit code 2."""
    assert outcome.code == 2 and outcome.out == "", outcome
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line
