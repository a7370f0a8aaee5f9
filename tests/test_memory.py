"""What a process keeps of its memory, and what it gives back."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.memory import MOST_KEPT, forget, lasting
from ldm.weights.reading import read_tensors

# Takes and frees as much as a step of a large network does, some times over, and tells for how many bytes the
# system had to give new pages each time.
ROUNDS = """
import resource
import torch
from ldm import load_model
load_model("freeu_tiny.yaml", device="cpu")
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(6 * 2**20) for _ in range(8)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del maps
    print((after - before) * resource.getpagesize())
"""


def test_what_was_copied_out_of_a_mapped_file_is_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    state = {name: torch.randn(3 * 2**18 + 5) for name in "abc"}
    save_file(state, path)
    mapped = read_tensors(path)
    for name, tensor in mapped.items():
        assert torch.equal(tensor, state[name])
        forget(tensor)
    assert all(torch.equal(tensor, state[name]) for name, tensor in mapped.items())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told what to keep")
def test_a_loaded_model_has_the_memory_of_its_maps_kept_for_the_next_step() -> None:
    size = 8 * 6 * 2**20 * 4
    assert size < MOST_KEPT
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    new = [int(line) for line in done.stdout.split()]
    # A few maps may come to lie elsewhere than the round before, until all have found their places.
    assert sum(new[1:]) < size / 2
    assert min(new) < size / 100


def test_garbage_is_not_looked_for_among_what_lasts_and_is_afterwards() -> None:
    before = gc.get_freeze_count()
    try:
        with pytest.raises(RuntimeError, match="an import failed"), lasting():
            assert not gc.isenabled()
            made: list[list[int]] = [[] for _ in range(1000)]
            raise RuntimeError("an import failed")
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + 1000
        assert not any(it is made for it in gc.get_objects())
    finally:
        gc.unfreeze()
