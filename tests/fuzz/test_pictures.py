"""Pictures fed to --from-image: any settings, any text, any bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.image_io import read_record
from tests.fuzz.conftest import SMALL
from tests.fuzz.harness import FLOATS, INTEGERS, TEXTS, cases, run

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
UNET = "model.params.unet_config.target"
OVERRIDE = st.sampled_from(
    ["model.target=os.mkdir", "model.params.channels=7", "sampling.prompt=${oc.env:HOME}", "base=x"]
) | st.sampled_from(["model=1", "checkpoint=../../x", f"{UNET}=ldm.study.runs.Runs", "model.params={a:*b}"])


@pytest.fixture(scope="module")
def whole(folder: Path, tiny_checkpoint: Path) -> tuple[dict[str, Any], bytes]:
    """A true picture: its settings, and its bytes."""
    [picture] = run(folder, "--ckpt", str(tiny_checkpoint), *SMALL).pictures
    return read_record(picture), picture.read_bytes()


def repeat(folder: Path, record: Any, text: str | None = None) -> None:
    info = PngInfo()
    info.add_text("freeu", json.dumps(record) if text is None else text)
    path = folder / "given.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, pnginfo=info)
    run(folder, "--from-image", str(path))


@cases(0.07)
@given(data=st.data())
def test_any_settings_in_a_picture_are_repeated_or_refused(
    folder: Path, whole: tuple[dict[str, Any], bytes], data: st.DataObject
) -> None:
    record = json.loads(json.dumps(whole[0]))
    for name in data.draw(
        st.lists(st.sampled_from([*record, "outdir", "trust_config"]), min_size=1, max_size=3)
    ):
        value = data.draw(st.lists(OVERRIDE | TEXTS, max_size=2) if name == "overrides" else JSON)
        heavy = name in ("height", "width", "steps") and type(value) is int and 3 < value < 2**31
        if name == "freeu" and isinstance(record.get("freeu"), dict) and data.draw(st.booleans()):
            record["freeu"][data.draw(st.sampled_from([*record["freeu"], "b1"]) | TEXTS)] = value
        elif data.draw(st.booleans()) and name in record:
            del record[name]
        elif not heavy:
            record[name] = value
    repeat(folder, record)


@cases(0.02)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | JSON.map(json.dumps))
def test_any_text_in_a_picture_is_repeated_or_refused(folder: Path, text: str) -> None:
    repeat(folder, None, text)


@cases(0.03)
@given(
    start=st.integers(0, 4000), end=st.integers(0, 60), new=st.binary(max_size=20), bytes_only=st.booleans()
)
def test_a_damaged_picture_is_repeated_or_refused(
    folder: Path, whole: tuple[dict[str, Any], bytes], start: int, end: int, new: bytes, bytes_only: bool
) -> None:
    path, content = folder / "given.png", whole[1]
    path.write_bytes(new if bytes_only else content[:start] + new + content[start + end :])
    run(folder, "--from-image", str(path))
