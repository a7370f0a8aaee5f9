"""Configs of the originals: what they spell out though it is usual, and what this project has not."""

import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.checkpoint import build_on_meta
from ldm.config.freeu import UNET
from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.util import get_class

PARAMS = "model.params"
UNET_PARAMS = f"{PARAMS}.unet_config.params"
AUTOENCODER = f"{PARAMS}.first_stage_config.params"
DDCONFIG = f"{AUTOENCODER}.ddconfig"

# The values that the originals' constructors have, and others that come to the same here.
USUAL: dict[str, dict[str, list[Any]]] = {
    PARAMS: {
        "beta_schedule": ["linear"], "loss_type": ["l2", "l1"], "ckpt_path": [None],
        "ignore_keys": [[], ["model_ema"]], "load_only_unet": [False, True], "clip_denoised": [True, False],
        "cosine_s": [8e-3], "given_betas": [None], "original_elbo_weight": [0, 0.5], "v_posterior": [0.0],
        "l_simple_weight": [1.0, 0], "use_positional_encodings": [False], "learn_logvar": [False, True],
        "logvar_init": [0.0], "make_it_fit": [False, True], "ucg_training": [None, {"txt": {"p": 0.1}}],
        "reset_ema": [False, True], "reset_num_ema_updates": [False, True], "concat_mode": [True, False],
        "cond_stage_forward": [None], "scale_by_std": [False], "force_null_conditioning": [False],
    },
    UNET_PARAMS: {
        "dims": [2], "conv_resample": [True], "num_heads_upsample": [-1, 4],
        "use_new_attention_order": [False, True], "n_embed": [None],
    },
    AUTOENCODER: {
        "ckpt_path": [None], "ignore_keys": [[], ["loss"]], "image_key": ["image", "jpg"],
        "colorize_nlabels": [None], "ema_decay": [None, 0.999], "learn_logvar": [False, True],
    },
    DDCONFIG: {
        "resamp_with_conv": [True], "tanh_out": [False], "give_pre_end": [False], "use_linear_attn": [False],
    },
}  # fmt: skip

# Each with words of the answer.
OTHERS: dict[str, dict[Any, str]] = {
    f"{PARAMS}.beta_schedule": {"cosine": "beta_schedule is 'cosine'.*`beta_schedule: linear`"},
    f"{PARAMS}.given_betas": {(0.1, 0.2): r"given_betas is \[0.1, 0.2\].*`given_betas: null`"},
    f"{PARAMS}.v_posterior": {0.5: "v_posterior is 0.5.*`v_posterior: 0.0`"},
    f"{PARAMS}.cond_stage_forward": {"encode_with": "cond_stage_forward is 'encode_with'.*: null`"},
    f"{PARAMS}.ckpt_path": {"model.ckpt": "ckpt_path is 'model.ckpt'.*`ckpt_path: null`.*--ckpt"},
    f"{PARAMS}.scale_by_std": {True: "scale_by_std is True.*`scale_by_std: false`.*scale_factor"},
    f"{UNET_PARAMS}.dims": {3: "dims is 3.*`dims: 2`"},
    f"{UNET_PARAMS}.conv_resample": {False: "conv_resample is False.*`conv_resample: true`"},
    f"{UNET_PARAMS}.n_embed": {1024: "n_embed is 1024.*`n_embed: null`"},
    f"{AUTOENCODER}.ckpt_path": {"kl-f8.ckpt": "ckpt_path is 'kl-f8.ckpt'.*`ckpt_path: null`.*--ckpt"},
    f"{DDCONFIG}.resamp_with_conv": {False: "resamp_with_conv is False.*`resamp_with_conv: true`"},
    f"{DDCONFIG}.tanh_out": {True: "tanh_out is True.*`tanh_out: false`"},
    f"{DDCONFIG}.give_pre_end": {True: "give_pre_end is True"},
    f"{DDCONFIG}.use_linear_attn": {True: "use_linear_attn is True"},
}


def built(changes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights' shapes of the embedded model with these changes to its config."""
    config = load_config("freeu_tiny.yaml")
    for key, value in changes.items():
        OmegaConf.update(config, key, list(value) if isinstance(value, tuple) else value)
    return {name: tuple(it.shape) for name, it in build_on_meta(config.model).state_dict().items()}


def test_what_the_originals_spell_out_changes_nothing() -> None:
    expected = built({})
    most = max(len(values) for section in USUAL.values() for values in section.values())
    for i in range(most):
        changes = {
            f"{part}.{name}": values[min(i, len(values) - 1)]
            for part, section in USUAL.items()
            for name, values in section.items()
        }
        assert built(changes) == expected


@pytest.mark.parametrize("key", OTHERS)
def test_what_would_compute_otherwise_is_refused_with_the_value_to_write(key: str) -> None:
    for value, said in OTHERS[key].items():
        with pytest.raises(InputError, match=said) as refused:
            built({key: value})
        assert "\n" not in str(refused.value)


ATTENTION = {
    "use_spatial_transformer": False, "num_heads": 4, "num_head_channels": -1, "context_dim": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_heads_upsample": 8}, "num_heads_upsample is 8.*`num_heads_upsample: -1`"),
        ({"use_new_attention_order": True}, "use_new_attention_order is True.*: false`"),
    ],
)
def test_what_plain_attention_does_otherwise_is_refused_where_there_is_some(
    change: dict[str, Any], said: str
) -> None:
    params = load_config("tiny.yaml").model.params.unet_config.params
    with pytest.raises(InputError, match=said):
        get_class(UNET)(**{**params, **ATTENTION, **change})


def test_many_heads_on_the_way_up_are_those_of_the_whole_where_they_are_as_many() -> None:
    params = load_config("tiny.yaml").model.params.unet_config.params
    get_class(UNET)(**{**params, **ATTENTION, "num_heads_upsample": 4})


def test_convolutions_that_blocks_resize_without_need_not_be() -> None:
    params = load_config("tiny.yaml").model.params.unet_config.params
    get_class(UNET)(**{**params, "resblock_updown": True, "conv_resample": False})


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("ldm.modules.encoders.modules.BERTEmbedder",
         "This project has no class 'ldm.modules.encoders.modules.BERTEmbedder'; "
         "ldm.modules.encoders.modules has FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder."),
        ("ldm.models.autoencoder.VQModelInterface",
         "This project has no class 'ldm.models.autoencoder.VQModelInterface'; "
         "ldm.models.autoencoder has AutoencoderKL."),
        ("ldm.models.diffusion.ddpm.LatentUpscaleDiffusion",
         "This project has no class 'ldm.models.diffusion.ddpm.LatentUpscaleDiffusion'; "
         "ldm.models.diffusion.ddpm has DiffusionWrapper, LatentDiffusion."),
        ("ldm.models.diffusion.ddpm.make_schedule", "no class 'ldm.models.diffusion.ddpm.make_schedule'"),
        ("ldm.modules.image_degradation.Blur", "This project has no module 'ldm.modules.image_degradation'"),
    ],
)  # fmt: skip
def test_a_class_that_this_project_has_not_is_answered_with_those_it_has(target: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        get_class(target)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_package_that_a_class_needs_and_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ldm.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(InputError, match="DiffusionTraining needs the package pytorch_lightning,"):
        get_class("ldm.training.DiffusionTraining")
