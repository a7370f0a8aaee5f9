"""What every fuzzed test shares."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.harness import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder to run in, after one run in which all that is imported late has been imported."""
    sys.dont_write_bytecode = True
    place = tmp_path_factory.mktemp("fuzz")
    assert run(place, "--ckpt", str(tiny_checkpoint), *SMALL, imports=True).code == 0
    return place


SMALL = ("--H", "32", "--W", "32", "--steps", "1")
