"""The text towers against transformers' and OpenCLIP's own, with the same random weights."""

from copy import deepcopy

import pytest
import torch
from open_clip.model import CLIPTextCfg, _build_text_tower
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.modules.encoders.clip import ClipTextTower, OpenClipTextTower

SMALL = {"width": 64, "heads": 4, "layers": 3}
VOCABULARY = 1000


@pytest.fixture(params=[True, False], ids=["training", "inference"], autouse=True)
def gradients(request):
    """At inference a CPU takes the larger products by another library."""
    with torch.set_grad_enabled(request.param):
        yield


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (3, 77), generator=torch.Generator().manual_seed(1))


def randomize(module):
    """Fill every weight, biases and norms too, so that no part of the network is without effect."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if parameter.ndim == 0 else 0.2 * noise
    return module.eval().requires_grad_(False)


@pytest.fixture
def clip():
    return randomize(ClipTextTower(**SMALL, vocabulary=VOCABULARY))


@pytest.fixture
def transformers_clip(clip):
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_attention_heads=4,
        num_hidden_layers=3,
        hidden_act="quick_gelu",
    )
    theirs = CLIPTextModel(config).eval()
    weights = {name: value for name, value in clip.state_dict().items() if not name.endswith("position_ids")}
    # Older releases have their text tower one level down.
    getattr(theirs, "text_model", theirs).load_state_dict(weights, strict=True)
    return theirs


@pytest.fixture(params=[False, True], ids=["gelu", "quick_gelu"])
def open_clip_pair(request):
    quick_gelu = request.param
    ours = randomize(OpenClipTextTower(**SMALL, vocabulary=VOCABULARY, projection=32, quick_gelu=quick_gelu))
    theirs = _build_text_tower(32, CLIPTextCfg(**SMALL, vocab_size=VOCABULARY), quick_gelu).eval()
    weights = {name: value for name, value in ours.state_dict().items() if name != "logit_scale"}
    theirs.load_state_dict(weights, strict=True)
    return ours, theirs


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_clip_gives_the_states_of_transformers(clip, transformers_clip, tokens):
    theirs = transformers_clip(tokens, output_hidden_states=True)
    close(clip(tokens), theirs.last_hidden_state)
    for depth, state in enumerate(theirs.hidden_states):
        close(clip(tokens, depth), state)


def test_clip_gives_the_states_of_transformers_in_bfloat16(clip, transformers_clip, tokens):
    exact = clip(tokens)
    ours = clip.bfloat16()(tokens)
    theirs = transformers_clip.bfloat16()(tokens).last_hidden_state
    assert ours.dtype == torch.bfloat16
    error = (ours.float() - exact).abs().mean()
    assert error <= 1.2 * (theirs.float() - exact).abs().mean() < 0.05


def open_clip_states(theirs, tokens, blocks):
    """What OpenCLIP's parts give after some of its blocks, by the mask it builds itself."""
    x = theirs.token_embedding(tokens) + theirs.positional_embedding
    for block in theirs.transformer.resblocks[:blocks]:
        x = block(x, attn_mask=theirs.attn_mask)
    return theirs.ln_final(x)


def test_open_clip_gives_the_states_of_open_clip(open_clip_pair, tokens):
    ours, theirs = open_clip_pair
    close(ours(tokens), open_clip_states(theirs, tokens, blocks=3))
    close(ours(tokens, depth=-1), open_clip_states(theirs, tokens, blocks=2))


def test_open_clip_goes_on_to_the_text_features_of_open_clip(open_clip_pair, tokens):
    ours, theirs = open_clip_pair
    pooled = ours(tokens)[torch.arange(3), tokens.argmax(dim=1)] @ ours.text_projection
    close(pooled, theirs(tokens), tolerance=1e-4)


@pytest.mark.parametrize("tower", [ClipTextTower, OpenClipTextTower])
def test_no_token_sees_those_after_it(tower, tokens):
    tower = randomize(tower(**SMALL, vocabulary=VOCABULARY))
    changed = deepcopy(tokens)
    changed[:, 40:] = (changed[:, 40:] + 1) % VOCABULARY
    close(tower(tokens)[:, :40], tower(changed)[:, :40])
    assert (tower(tokens)[:, 40] - tower(changed)[:, 40]).abs().max() > 0.1


@pytest.mark.parametrize("tower", [ClipTextTower, OpenClipTextTower])
def test_fewer_tokens_than_positions_give_the_same_states(tower, tokens):
    tower = randomize(tower(**SMALL, vocabulary=VOCABULARY))
    close(tower(tokens[:, :20]), tower(tokens)[:, :20])
