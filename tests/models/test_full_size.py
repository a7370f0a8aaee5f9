"""Stable Diffusion at full size, built without weights: every name and shape its checkpoints have."""

import json

import pytest

from ldm.checkpoint import build_on_meta
from ldm.config.reading import load_config
from tests.conftest import DATA

each_config = pytest.mark.parametrize(
    ("config", "release"), [("v1-inference", "sd-v1"), ("v2-inference", "sd-v2"), ("v2-inference-v", "sd-v2")]
)


@each_config
def test_keys_and_shapes_are_those_of_the_checkpoints(config, release):
    expected = json.loads((DATA / f"{release}-keys.json").read_text())
    model = build_on_meta(load_config(config).model)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert found == expected
