"""Configs: any YAML, and the embedded model's with anything in it changed."""

import random
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ldm.config.reading import load_config
from tests.fuzz.conftest import SMALL
from tests.fuzz.harness import FLOATS, INTEGERS, TEXTS, cases, run

NAMES = st.sampled_from(
    [
        "model",
        "target",
        "params",
        "base",
        "checkpoint",
        "sampling",
        "unet_config",
        "prompt",
        "steps",
        "b1",
        "<<",
    ]
)
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES | TEXTS | INTEGERS, inner, max_size=3)
        | st.fixed_dictionaries(
            {"target": st.sampled_from(["torch.nn.Identity", "os.mkdir"]), "params": inner}
        )
    ),
    max_leaves=5,
)
WHOLE: Any = OmegaConf.to_container(load_config("freeu_tiny.yaml"))


def parts(content: Any) -> list[tuple[Any, Any]]:
    """Every place in nested dicts and lists: what it is in, and its key there."""
    keys = (
        list(content)
        if isinstance(content, dict)
        else range(len(content))
        if isinstance(content, list)
        else []
    )
    return [place for key in keys for place in [(content, key), *parts(content[key])]]


@st.composite
def changed(draw: st.DrawFn) -> str:
    """The embedded model's config with up to three values changed, taken out or put in."""
    content = yaml.safe_load(yaml.safe_dump(WHOLE))
    for _ in range(draw(st.integers(1, 3))):
        places = parts(content)
        if not places:
            break
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["change", "change", "take out", "put in"]))
        if what == "take out":
            del inside[key]
        elif what == "put in" and isinstance(inside, dict):
            inside[draw(NAMES | TEXTS)] = draw(VALUES)
        else:
            inside[key] = draw(VALUES)
    return yaml.dump(content, allow_unicode=draw(st.booleans()))


def tried(folder: Path, content: bytes, tiny_checkpoint: Path, *argv: str) -> None:
    path = folder / "fuzzed.yaml"
    path.write_bytes(content)
    run(folder, "--config", str(path), "--ckpt", str(tiny_checkpoint), *SMALL, *argv)


@cases(0.25)
@given(text=changed())
def test_a_changed_config_draws_or_is_refused(folder: Path, tiny_checkpoint: Path, text: str) -> None:
    tried(folder, text.encode("utf-8", "surrogatepass"), tiny_checkpoint)


@cases(0.1)
@given(content=VALUES, tags=st.booleans())
def test_any_yaml_is_refused_or_draws(folder: Path, tiny_checkpoint: Path, content: Any, tags: bool) -> None:
    text = yaml.dump(content, default_style='"' if tags else None)
    tried(folder, text.encode("utf-8", "surrogatepass"), tiny_checkpoint, "--print-config")
    tried(folder, text.encode("utf-8", "surrogatepass"), tiny_checkpoint)


WORDS = """{ } [ ] &a *a : - ? << !!set !!float !!int !!bool | > # % --- ... !!binary !!timestamp ${ 0x 1e ~
!!python/name:os.system model base"""
SYNTAX = st.sampled_from([*WORDS.split(), "\n", "\n  ", "\t", "\0", ": ", "- "])


@cases(0.1)
@given(content=st.binary(max_size=60) | st.lists(SYNTAX | st.text(max_size=3), max_size=30).map("".join)
       .map(lambda text: text.encode("utf-8", "surrogatepass")))  # fmt: skip
def test_any_bytes_are_refused_or_draw(folder: Path, tiny_checkpoint: Path, content: bytes) -> None:
    tried(folder, content, tiny_checkpoint, "--print-config")


@cases(0.1)
@given(data=st.data())
def test_a_shipped_config_with_bytes_changed_is_refused_or_read(
    folder: Path, tiny_checkpoint: Path, data: st.DataObject
) -> None:
    content = bytearray(yaml.safe_dump(WHOLE).encode())
    chance = random.Random(data.draw(st.integers(0, 2**64)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = chance.randrange(len(content))
        content[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
    tried(folder, bytes(content), tiny_checkpoint, "--print-config")
