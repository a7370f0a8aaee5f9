"""Command lines of the studies: evaluations, searches and figures with any values of their flags."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.harness import COUNTS, FLOATS, TEXTS, cases, run

SMALL = ["sampling.height=64", "sampling.width=64", "--steps=1", "--prompts=2"]
FEWEST = {
    "evaluate": [*SMALL, "--seeds=1", "--settings=V1", "--metrics=energy"],
    "search": [*SMALL, "--fresh-prompts=2", "--trials=4", "--metrics=saturation:lower"],
    "figures": [*SMALL, "--seeds=1", "--figure=3"],
}
FACTORS = st.builds(
    "{}={}".format, st.sampled_from(["b1", "s2", "version", "stop", "channels"]), FLOATS | TEXTS
)
RANGES = st.builds("{}={}:{}".format, st.sampled_from(["b1", "s2", "version", "stop"]), FLOATS, FLOATS)
METRICS = ["energy", "saturation", "diversity", "alignment", "frechet:lower", "clip", "fid", "energy:x"]

NO_COUNTS = TEXTS.filter(lambda text: not text.isdecimal())

# Of trials and figures small numbers alone, as the others are honest work or are none.
VALUES = {
    **dict.fromkeys(["--prompts", "--fresh-prompts"], COUNTS | NO_COUNTS),
    **dict.fromkeys(["--seeds", "--steps", "--search-steps", "--pictures"], COUNTS | FLOATS),
    **dict.fromkeys(["--trials", "--figure"], st.integers(-1, 4) | FLOATS),
    **dict.fromkeys(["--clip", "--aesthetic", "--inception", "--reference", "--unseen-by", "--ckpt"], TEXTS),
    "--settings": st.sampled_from(["V1", "V2", "config", "off"]) | FACTORS | TEXTS,
    "--space": RANGES | FACTORS | TEXTS,
    "--metrics": st.sampled_from(METRICS) | TEXTS,
    "--scale": FLOATS,
    "--seed": COUNTS,  # which where there is no such flag is short for --seeds
}


@st.composite
def flags(draw: st.DrawFn) -> str:
    """A flag of one of the studies with a value."""
    name = draw(st.sampled_from(sorted(VALUES)))
    return f"{name}={draw(VALUES[name])}"


@pytest.mark.parametrize("name", FEWEST)
@cases(0.05)
@given(given=st.lists(flags(), min_size=1, max_size=3))
def test_any_flags_of_a_study_are_followed_or_refused(
    name: str, studied: None, folder: Path, tiny_checkpoint: Path, given: list[str]
) -> None:
    run(folder, "--ckpt", str(tiny_checkpoint), *FEWEST[name], *given, name=name)


@pytest.fixture(scope="module")
def studied(folder: Path, tiny_checkpoint: Path) -> None:
    """Each study was made once, and so all that they import late has been imported."""
    for name, few in FEWEST.items():
        assert run(folder, "--ckpt", str(tiny_checkpoint), *few, name=name, imports=True).code == 0
