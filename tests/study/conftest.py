"""Studies by scripts/figures.py on the embedded model, small."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.folders import ROOT
from tests.conftest import Outcome

SMALL = ["--steps", "3", "--prompts", "2", "--seeds", "1", "--device", "cpu"]
PIXELS = ["sampling.height=64", "sampling.width=64"]


@pytest.fixture(scope="session")
def figures_script():
    """scripts/figures.py as a module."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def figures(
    figures_script, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs scripts/figures.py on the embedded model, in few steps on small pictures unless told otherwise."""

    def run(*argv: object, into: Path = tmp_path / "figures") -> Outcome:
        capsys.readouterr()
        words = ["--ckpt", tiny_checkpoint, "--outdir", into, *SMALL, *PIXELS, *argv]
        try:
            code = figures_script.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr(), into)

    return run
