"""Command lines: flags with any values, changes to the config, sizes and factors."""

import argparse
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.harness import COUNTS, FLOATS, INTEGERS, TEXTS, cases, run, script

# A download would reach for the network, other folders are for the user to choose, and several processes are
# tested elsewhere.
LEFT_OUT = {"--outdir", "--download", "--devices", "--device", "--help"}
FLAGS = [
    it
    for it in script().make_parser()._actions
    if it.option_strings and not LEFT_OUT & set(it.option_strings)
]
SIZES = st.sampled_from([-(2**70), -32, -1, 0, 1, 31, 32, 33, 48, 64, 16385, 16416, 2**31, 2**63, 2**70])
UNET = "model.params.unet_config.params"
CHANGED = [
    "model",
    "model[0]",
    "model.target",
    "model.params.timesteps",
    "model.params.channels",
    "checkpoint",
]
CHANGED += ["sampling", "sampling.prompt", f"{UNET}.b1", f"{UNET}.stages", "x"]
OVERRIDES = st.builds("{}={}".format, st.sampled_from(CHANGED), INTEGERS | FLOATS | TEXTS)


@st.composite
def words(draw: st.DrawFn) -> list[str]:
    """A flag and its values, or a word that is none."""
    flag: argparse.Action = draw(st.sampled_from(FLAGS))
    name = draw(st.sampled_from(flag.option_strings))
    if flag.nargs == 0:
        return [name]
    if name in ("--H", "--height", "--W", "--width"):
        value = SIZES
    elif name in ("--n_samples", "--n_iter", "--repeat", "--steps", "--ddim_steps"):
        value = COUNTS
    elif flag.choices and draw(st.booleans()):
        value = st.sampled_from(list(flag.choices))
    else:
        value = INTEGERS | FLOATS | TEXTS
    count = flag.nargs if isinstance(flag.nargs, int) else 1
    values = [str(draw(value)) for _ in range(count)]
    return [f"{name}={values[0]}"] if count == 1 and draw(st.booleans()) else [name, *values]


@cases(0.1)
@given(lines=st.lists(words() | OVERRIDES.map(lambda it: [it]) | TEXTS.map(lambda it: [it]), max_size=4))
def test_any_command_line_draws_or_is_refused(
    folder: Path, tiny_checkpoint: Path, lines: list[list[str]]
) -> None:
    small = ["--ckpt", str(tiny_checkpoint), "--H", "32", "--W", "32", "--steps", "1"]
    run(folder, *small, *(word for line in lines for word in line if not word.startswith("--o")))


@cases(0.05)
@given(
    sizes=st.tuples(SIZES, SIZES),
    steps=st.sampled_from([-1, 0, 1, 2, 3, 1001, 2**70]),
    scale=FLOATS,
    sampler=st.sampled_from(["ddim", "plms", "dpm"]),
    eta=FLOATS,
    factors=st.dictionaries(
        st.sampled_from(
            ["--b1", "--b2", "--s1", "--s2", "--strength", "--start", "--stop", "--ramp", "--channels"]
        ),
        FLOATS,
    ),
    version=st.sampled_from(["1", "2"]),
    threshold=INTEGERS,
    stage=st.none() | st.tuples(FLOATS | INTEGERS, FLOATS, FLOATS),
)
def test_any_sizes_and_factors_draw_or_are_refused(
    folder: Path, tiny_checkpoint: Path, sizes, steps, scale, sampler, eta, factors, version, threshold, stage
) -> None:  # fmt: skip
    argv = [
        f"--H={sizes[0]}",
        f"--W={sizes[1]}",
        f"--steps={steps}",
        f"--scale={scale}",
        f"--sampler={sampler}",
    ]
    argv += [f"--ddim_eta={eta}", f"--freeu-version={version}", f"--threshold={threshold}"]
    argv += [f"{name}={value}" for name, value in factors.items()]
    argv += ["--stage", *(f" {value}" for value in stage)] if stage else []
    run(folder, "--ckpt", str(tiny_checkpoint), *argv)
