"""What this project takes from open_clip, without importing it.

`import open_clip` brings in torchvision, timm and every image tower, which takes longer than all else that a
run imports. Its tokenizer is one file that needs none of them, and its model configs are plain JSON.
"""

import json
from copy import copy
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ldm.errors import InputError


def _folder() -> Path:
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise InputError("The text encoder needs open_clip for its vocabulary: pip install open-clip-torch")
    return Path(spec.origin).parent


def model_config(arch: str) -> dict[str, Any]:
    """The config of an OpenCLIP model, as `open_clip.get_model_config` has it; InputError if it has none."""
    folder = _folder() / "model_configs"
    known = {path.stem: path for path in folder.glob("*.json")}
    if arch not in known:
        near = ", ".join(get_close_matches(arch, known)) or "ViT-H-14, ViT-L-14"
        raise InputError(f"arch {arch!r} is no OpenCLIP model. Near ones: {near}")
    return json.loads(known[arch].read_text(encoding="utf-8"))


@cache
def _tokenizer_module() -> Any:
    # Under its own name, so that an import relative to its package would still work, only slower.
    spec = spec_from_file_location("open_clip.tokenizer", _folder() / "tokenizer.py")
    assert spec is not None and spec.loader is not None  # it names a .py file
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simple_tokenizer() -> Any:
    """A new `open_clip.tokenizer.SimpleTokenizer`: CLIP's byte pairs with OpenCLIP's cleaning of text."""
    module = _tokenizer_module()
    # The module has read the vocabulary for one of its own already, which takes a fifth of a second.
    return copy(vars(module).get("_tokenizer") or module.SimpleTokenizer())
