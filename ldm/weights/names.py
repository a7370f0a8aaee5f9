"""The names of a checkpoint's tensors, under which the model has them or does not need them."""

import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

# Some releases of transformers leave a level out of the names of CLIP's text tower; the model has it.
SHORT_CLIP_KEY: Final = re.compile(r"^cond_stage_model\.transformer\.(?=embeddings|encoder|final_layer_norm)")
FULL_CLIP_KEY: Final = "cond_stage_model.transformer.text_model."
# Converters from diffusers leave its names in the autoencoder's attention, and matrices for kernels of 1x1.
DIFFUSERS_ATTENTION: Final = re.compile(r"(?<=\.mid\.attn_1\.)to_(q|k|v|out\.0)(?=\.)")
KERNELS_OF_ATTENTION: Final = re.compile(r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
COMPILED: Final = re.compile(r"_orig_mod\.?")  # what torch.compile adds to names; averages have no dots

# Keys that a file may have though the model has no use for them, and why it has none.
HARMLESS: Final = {
    r"(first_stage_model\.)?model_ema\..*": "averaged weights, of use to `use_ema` alone",
    r"(first_stage_model\.)?loss\..*": "the autoencoder's training loss and its discriminator",
    r"betas|logvar|lvlb_weights|(alphas|sqrt|log_one_minus|posterior)_\w+": "the schedule, of the config",
    r"denoiser\..*|v_pred|ztsnr": "the schedule, as other programs keep it",
    r"embedding_manager\..*": "what training by textual inversion keeps beside the model",
    r"cond_stage_model\..*\bposition_ids": "0 to 76",
    r"cond_stage_model\..*\battn_mask": "the causal mask, computed",
    r"cond_stage_model\.model\.visual\..*": "the image tower, which no prompt passes through",
    r"cond_stage_model\.((model|transformer)\.)?(text_projection(\.weight)?|logit_scale)": "for comparisons",
}
HARMLESS_KEY: Final = re.compile("|".join(f"(?:{pattern})" for pattern in HARMLESS))

# How the keys begin of words that a textual inversion made.
NEW_WORD: Final = "embedding_manager.string_to_param_dict."


def renamed(tensors: Mapping[str, Tensor], slots: Mapping[str, Tensor], averaged: bool) -> dict[str, Tensor]:
    """A file's tensors under the model's names for them; if `averaged`, averages replace what they are of."""
    # DistributedDataParallel puts the whole model under one name.
    wrapped = all(COMPILED.sub("", key).startswith("module.") and key not in slots for key in tensors)
    named = {_model_key(key, slots, wrapped): tensor for key, tensor in tensors.items()}
    if averaged:
        for key in slots:
            average = f"model_ema.{key.removeprefix('model.').replace('.', '')}"
            if key.startswith("model.") and average in named:
                named[key] = named[average]
    return named


def _model_key(key: str, slots: Mapping[str, Tensor], wrapped: bool) -> str:
    """A checkpoint's key under the model's name for it."""
    if key not in slots:
        key = COMPILED.sub("", key).removeprefix("module." if wrapped else "")
    if key in slots:
        return key
    key = SHORT_CLIP_KEY.sub(FULL_CLIP_KEY, key)
    return DIFFUSERS_ATTENTION.sub(lambda found: found[1].replace("out.0", "proj_out"), key)


def as_kernels(key: str, tensor: Tensor) -> Tensor:
    """The tensor under a model's key, with matrices of the autoencoder's attention as kernels of 1x1."""
    is_matrix = tensor.ndim == 2 and KERNELS_OF_ATTENTION.fullmatch(key)
    return tensor[:, :, None, None] if is_matrix else tensor


def is_needless(key: str, slots: Mapping[str, Tensor]) -> bool:
    """Whether the key is a harmless one that the model has no place for, or has computed by itself."""
    return bool(HARMLESS_KEY.fullmatch(key)) and not (key in slots and slots[key].is_meta)
