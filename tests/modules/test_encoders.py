"""The text encoders as configs name them: their keys, their layers and what they give for a text."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from ldm.errors import InputError
from ldm.modules.encoders.clip import ClipTextTower
from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.modules.encoders.open_clip_files import model_config
from ldm.modules.encoders.tokenizer import END, START, open_clip_ids, transformers_ids

DATA = Path(__file__).parents[1] / "data"
SMALL_ARCH = "ViT-S-32-alt"  # width 256, 10 layers


def on_meta(embedder, **params):
    with torch.device("meta"):
        return embedder(**params)


@pytest.fixture(scope="module")
def small_clip():
    """Builds a FrozenCLIPEmbedder with one and the same tower of width 64 in place of ViT-L/14's."""
    torch.manual_seed(0)
    tower = ClipTextTower(width=64, heads=4).eval().requires_grad_(False)

    def build(**params):
        embedder = on_meta(FrozenCLIPEmbedder, **params)
        embedder.transformer = nn.ModuleDict({"text_model": tower})
        return embedder

    return build


@pytest.fixture(scope="module")
def small_open_clip():
    torch.manual_seed(0)
    return FrozenOpenCLIPEmbedder(arch=SMALL_ARCH, layer="penultimate")


@pytest.mark.parametrize(
    ("embedder", "contract"),
    [(FrozenCLIPEmbedder, "sd-v1-keys.json"), (FrozenOpenCLIPEmbedder, "sd-v2-keys.json")],
)
def test_the_keys_and_shapes_are_those_of_the_checkpoints(embedder, contract):
    prefix = "cond_stage_model."
    keys = json.loads((DATA / contract).read_text())
    expected = {key.removeprefix(prefix): shape for key, shape in keys.items() if key.startswith(prefix)}
    assert {key: list(value.shape) for key, value in on_meta(embedder).state_dict().items()} == expected


@pytest.mark.parametrize("embedder", [FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder])
def test_a_model_built_on_meta_is_whole_once_its_parameters_are_filled(embedder):
    model = on_meta(embedder)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("embedder", [FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder])
@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_stops_gradients(embedder, freeze):
    model = on_meta(embedder, freeze=freeze, device="cpu", version="anything")
    assert all(parameter.requires_grad is not freeze for parameter in model.parameters())
    assert model.training is not freeze


def test_importing_building_and_tokenizing_import_no_other_library_s_models():
    program = """
import sys, torch
from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
with torch.device("meta"):
    embedders = FrozenCLIPEmbedder(), FrozenOpenCLIPEmbedder()
assert not {"ftfy", "regex"} & set(sys.modules), "the tokenizer is loaded before the first text"
for embedder in embedders:
    assert embedder.tokenize("a cat").shape == (1, 77)
print({"open_clip", "transformers", "torchvision", "timm", "diffusers"} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("set()\n", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_becomes_a_context_in_the_module_s_dtype(small_clip, small_open_clip, dtype):
    for embedder, width in ((small_clip(), 64), (small_open_clip, 256)):
        embedder = deepcopy(embedder).to(dtype)
        one = embedder("a cat")
        assert one.shape == (1, 77, width) and one.dtype == dtype and one.isfinite().all()
        two = embedder.encode(["a cat", "a dog"])
        assert two.shape == (2, 77, width)
        assert (two[0] - one[0]).abs().max() < 0.05 < (two[0] - two[1]).abs().max()


def test_open_clip_gives_what_the_original_encoder_computes(small_open_clip):
    """The steps of the original over OpenCLIP's own model: all blocks but the last, then the final norm."""
    texts = ["a photograph of an astronaut riding a horse", "", "word " * 100]
    theirs = open_clip.create_model(SMALL_ARCH, pretrained=None)
    del theirs.visual
    theirs.load_state_dict(small_open_clip.model.state_dict(), strict=True)

    with torch.no_grad():
        x = theirs.token_embedding(open_clip.tokenize(texts)) + theirs.positional_embedding
        for block in theirs.transformer.resblocks[:-1]:
            x = block(x, attn_mask=theirs.attn_mask)
        penultimate = theirs.ln_final(x)
        last = theirs.ln_final(theirs.transformer.resblocks[-1](x, attn_mask=theirs.attn_mask))

    torch.testing.assert_close(small_open_clip(texts), penultimate, rtol=0, atol=1e-5)
    embedder = FrozenOpenCLIPEmbedder(arch=SMALL_ARCH, layer="last")
    embedder.load_state_dict(small_open_clip.state_dict())
    torch.testing.assert_close(embedder(texts), last, rtol=0, atol=1e-5)


def test_clip_s_layers_are_those_asked_for(small_clip):
    texts = ["a cat", "word " * 100]
    last = small_clip()(texts)
    tower = small_clip().transformer["text_model"]
    tokens = small_clip().tokenize(texts)

    pooled = small_clip(layer="pooled")(texts)
    assert tokens[0, 3] == tokens[1, 76] == END  # the first of each
    assert torch.equal(pooled, torch.stack([last[0, 3:4], last[1, 76:77]]))  # (2, 1, C)

    first, final = (small_clip(layer="hidden", layer_idx=index)(texts) for index in (0, 12))
    assert torch.equal(first, tower.embeddings(tokens))
    assert torch.equal(tower.final_layer_norm(final), last)
    for index in (-1, -2, -12, -13):
        negative = small_clip(layer="hidden", layer_idx=index)(texts)
        assert torch.equal(negative, small_clip(layer="hidden", layer_idx=13 + index)(texts))


@pytest.mark.parametrize(
    ("embedder", "tokens"),
    [
        (FrozenCLIPEmbedder, [START, *transformers_ids("a &amp; b"), END] + [END] * 70),
        (FrozenOpenCLIPEmbedder, [START, *open_clip_ids("a &amp; b"), END] + [0] * 72),
    ],
)
def test_each_encoder_has_the_tokens_of_its_own_kind(embedder, tokens):
    assert on_meta(embedder).tokenize("a &amp; b").tolist() == [tokens]


def test_a_long_prompt_s_end_is_reported(small_open_clip):
    for embedder in (on_meta(FrozenCLIPEmbedder), small_open_clip):
        assert embedder.truncated("a cat") == ""
        assert embedder.truncated("word " * 75 + "and a Lighthouse") == "and a lighthouse"


def test_max_length_is_the_number_of_tokens():
    assert on_meta(FrozenCLIPEmbedder, max_length=2).tokenize("a cat").tolist() == [[START, END]]
    assert on_meta(FrozenCLIPEmbedder, max_length=20).tokenize("a cat").shape == (1, 20)
    assert on_meta(FrozenCLIPEmbedder, max_length=500).tokenize("a cat").shape == (1, 77)
    assert on_meta(FrozenOpenCLIPEmbedder, arch="PE-Core-B-16").tokenize("a cat").shape == (1, 32)


def test_every_open_clip_arch_is_built_as_open_clip_has_it_or_refused():
    built = refused = 0
    for arch in open_clip.list_models():
        config = open_clip.get_model_config(arch)
        assert model_config(arch) == config
        try:
            model = on_meta(FrozenOpenCLIPEmbedder, arch=arch).model
        except InputError as error:
            assert arch in str(error)
            refused += 1
        else:
            assert model.token_embedding.weight.shape == (49408, config["text_cfg"]["width"])
            assert len(model.transformer.resblocks) == config["text_cfg"]["layers"]
            built += 1
    assert built > 80 and refused > 40


@pytest.mark.parametrize(
    ("embedder", "params", "said"),
    [
        (FrozenCLIPEmbedder, {"layer": "first"}, "'first'; it can be last, pooled or hidden"),
        (FrozenCLIPEmbedder, {"layer": "hidden"}, "layer_idx is None"),
        (FrozenCLIPEmbedder, {"layer": "hidden", "layer_idx": 13}, "layer_idx is 13; .*, -13 to 12"),
        (FrozenCLIPEmbedder, {"max_length": 1}, "FrozenCLIP.*: max_length is 1; it can be 2 to 77"),
        (FrozenOpenCLIPEmbedder, {"max_length": -1}, "FrozenOpenCLIP.*: max_length is -1; it can be 2 to"),
        (FrozenOpenCLIPEmbedder, {"layer": "pooled"}, "'pooled'; it can be last or penultimate"),
        (FrozenOpenCLIPEmbedder, {"arch": "ViT-H14"}, "'ViT-H14' is no OpenCLIP model. Near ones: ViT-H-14"),
        (FrozenOpenCLIPEmbedder, {"arch": "hf-hub:some/model"}, "is no OpenCLIP model"),
        (FrozenOpenCLIPEmbedder, {"arch": "ViT-B-16-SigLIP"}, "another text tower .*no_causal_mask"),
        (FrozenOpenCLIPEmbedder, {"arch": "roberta-ViT-B-32"}, "another text tower .*hf_model_name"),
    ],
)
def test_a_parameter_that_cannot_be_is_named_with_what_can(embedder, params, said):
    with pytest.raises(InputError, match=said):
        on_meta(embedder, **params)
