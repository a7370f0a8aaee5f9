"""Says how a checkpoint and a model differ, and what the checkpoint seems to be instead."""

from collections.abc import Callable, Mapping
from typing import Final

from torch import Size, Tensor

PARTS: Final = {
    "U-Net": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text encoder": "cond_stage_model.",
    "other": "",
}

# What a file is that has any of such keys. LoRAs name the layers that they change, and come first.
ON_PIPELINES: Final = "give a whole model; on a diffusers pipeline FreeU goes together with it"
LORA: Final = ("lora_", "_lora.", ".lora.")
FOREIGN: Final = {
    LORA: f"a LoRA, which changes a model and is none: {ON_PIPELINES}",
    ("control_model.",): f"a ControlNet, which steers a model and is none: {ON_PIPELINES}",
    ("emb_params",): f"a textual inversion, words for a model and none: {ON_PIPELINES}",
    ("model.model.diffusion_model.",): "what a training goes on from: give its model.safetensors",
    ("down_blocks.",): "a U-Net in the layout of diffusers: give the single-file checkpoint instead",
    ("conditioner.embedders.",): "a Stable Diffusion XL, for which FreeU is in ldm.freeu.diffusers alone",
    ("joint_blocks.",): "a Stable Diffusion 3, a transformer, which has no skips for FreeU",
    ("double_blocks.",): "a Flux, a transformer, which has no skips for FreeU",
}

WHOLE: Final = "give a checkpoint of all three networks"
USES: Final = {5: "depth", 9: "inpainting"}  # of U-Nets that take so many channels

# Stable Diffusion by the width of the text it attends to.
FAMILIES: Final = {
    768: "Stable Diffusion 1 (--config freeu_sd14.yaml, freeu_sd15.yaml)",
    1024: "Stable Diffusion 2 (--config freeu_sd21.yaml, or for 512 pixels freeu_sd21_base.yaml)",
}

VAE: Final = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.", "first_stage_model.")
AVERAGES: Final = "model_ema."
AVERAGED_UNET: Final = "model_ema.diffusion_model"

State = Mapping[str, Tensor]


def misfit(slots: State, given: State) -> list[str]:
    """A line for each part of the model that differs: counts of each fault, and three keys as examples.

    `slots` is the model's state dict, where only tensors on meta have to be given.
    """
    faults = {
        "missing": [(key, "") for key, slot in slots.items() if slot.is_meta and key not in given],
        "unexpected": [(key, "") for key in given if key not in slots],
        "of another shape": [
            (key, f" {tuple(tensor.shape)}, not {tuple(slots[key].shape)}")
            for key, tensor in given.items()
            if key in slots and tensor.shape != slots[key].shape
        ],
        "in whole numbers": [(key, f" {_kind(given[key])}") for key in _whole(slots, given)],
    }
    lines = []
    for part in PARTS:
        counts = []
        for fault, keys in faults.items():
            examples = [f"{key[:80]!r}{shapes}" for key, shapes in keys if _part(key) == part]
            if examples:
                more = ", ..." if len(examples) > 3 else ""
                counts.append(f"{len(examples)} {fault} ({', '.join(examples[:3])}{more})")
        if counts:
            lines.append(f"{part}: {'; '.join(counts)}")
    return lines


def foreign(tensors: State) -> str:
    """What a file is that is nothing of the kind, when its keys give it away; else empty."""
    # Of the averages that its training kept some files have the counters left.
    rest = [key for key in tensors if not key.startswith(AVERAGES) or key.startswith(AVERAGED_UNET)]
    if rest and all(key.startswith(VAE) for key in rest):
        return f"it is an autoencoder (VAE) alone: {WHOLE}"
    for marks, nature in FOREIGN.items():
        if any(mark in key for key in tensors for mark in marks):
            if marks == LORA and "model.diffusion_model.input_blocks.0.0.weight" in tensors:
                return "it holds a LoRA beside its model: merge the two, or give the model alone"
            return f"it is {nature}"
    return ""


def likely_nature(slots: State, tensors: State) -> str:
    """What the model in the file seems to be instead, when its keys or shapes give it away; else empty."""
    if not tensors:
        return ": it holds no tensors"
    if _has(AVERAGED_UNET, tensors) and not _has(PARTS["U-Net"], tensors):
        return ": it holds only averaged (EMA) weights, under model_ema.*: add model.params.use_ema=true"
    if whole := _whole(slots, tensors):
        return f": it holds whole numbers ({_kind(tensors[whole[0]])}): give one in float16 or float32"

    if differing := _differing("attn2.to_k.weight", _inputs, slots, tensors):
        has, wants = differing
        return f": its U-Net is {_family(has)}, the config's {_family(wants)}"
    if differing := _differing("input_blocks.0.0.weight", _inputs, slots, tensors):
        has, wants = differing
        kind, remedy = "", ""
        if use := USES.get(has):
            kind, remedy = f" (for {use})", f"; on a diffusers pipeline FreeU is for {use} too"
        return f": its U-Net takes {has} channels{kind}, the config's {wants}{remedy}"
    if differing := _differing("proj_in.weight", len, slots, tensors):
        linear = str(differing[0] == 2).lower()
        return f": it needs use_linear_in_transformer: {linear} in unet_config.params"
    lacking = [part for part, prefix in PARTS.items() if _has(prefix, slots) and not _has(prefix, tensors)]
    return f": by latent diffusion's names it has no {', no '.join(lacking)}: {WHOLE}" if lacking else ""


def _has(prefix: str, state: State) -> bool:
    return any(key.startswith(prefix) for key in state)


def _whole(slots: State, given: State) -> list[str]:
    """The keys under which whole numbers are given for real ones."""
    return [
        key
        for key, tensor in given.items()
        if key in slots and slots[key].is_floating_point() and not tensor.is_floating_point()
    ]


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _differing(name: str, of: Callable[[Size], int], slots: State, tensors: State) -> tuple[int, int] | None:
    """What `of` gives of the shapes of the U-Net's first tensor so named, in the file and in the model.

    None where it is the same of all.
    """
    for key in slots:
        if key.startswith(PARTS["U-Net"]) and key.endswith(f".{name}") and key in tensors:
            has, wants = tensors[key].shape, slots[key].shape
            if min(len(has), len(wants)) > 1 and of(has) != of(wants):
                return of(has), of(wants)
    return None


def _inputs(shape: Size) -> int:
    """How many numbers, or channels, a layer's weight of this shape takes in."""
    return shape[1]


def _family(context_dim: int) -> str:
    return FAMILIES.get(context_dim, f"one for text of width {context_dim}")


def _part(key: str) -> str:
    return next(part for part, prefix in PARTS.items() if key.startswith(prefix))
