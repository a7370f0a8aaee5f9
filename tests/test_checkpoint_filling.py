"""Filling models with tensors by their keys, and naming what does not fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoint import build_on_meta, fill
from ldm.errors import InputError
from ldm.models.diffusion.ddpm import make_schedule
from ldm.modules import winograd_in_c
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder
from ldm.util import instantiate_from_config
from tests.checkpoints import CPU, Tiny

DATA = Path(__file__).parent / "data"
T = TypeVar("T")


class Skeleton(nn.Module):
    """A model that is nothing but its state dict."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for key, shape in shapes.items():
            *path, leaf = key.split(".")
            module: nn.Module = self
            for name in path:
                if name not in dict(module.named_children()):
                    module.add_module(name, nn.Module())
                module = module.get_submodule(name)
            module.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))


def on_meta(shapes: Mapping[str, tuple[int, ...]]) -> Skeleton:
    with torch.device("meta"):
        return Skeleton(shapes)


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def contract(version: int) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a Stable Diffusion that are not computed."""
    keys = json.loads((DATA / f"sd-v{version}-keys.json").read_text())
    return {key: tuple(shape) for key, shape in keys.items() if "." in key and "position_ids" not in key}


def meta_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_kernels_cast_some_at_a_time_are_the_kernels_cast_at_once(
    at_once: int, memory: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.checkpoint.AT_ONCE", at_once)
    monkeypatch.setattr(winograd_in_c, "LIBRARIES", {})  # which take kernels as they lie
    model, kernels = on_meta({"kernels": (7, 5, 3, 2)}), torch.randn(7, 5, 3, 2)
    fill(model, {"kernels": kernels.contiguous(memory_format=memory)}, torch.bfloat16, CPU)
    filled = model.get_parameter("kernels")
    assert torch.equal(filled, kernels.bfloat16())
    assert filled.is_contiguous(memory_format=torch.channels_last)


def test_building_on_meta_makes_shapes_only() -> None:
    model = build_on_meta(
        {"target": "torch.nn.Linear", "params": {"in_features": 10**6, "out_features": 10**6}}
    )
    assert model.weight.is_meta
    assert model.weight.shape == (10**6, 10**6)


@pytest.mark.parametrize("saved", [torch.float32, torch.float16])
@pytest.mark.parametrize("asked", [torch.float32, torch.float16, torch.bfloat16])
def test_a_filled_model_has_the_weights_in_the_asked_precision(
    saved: torch.dtype, asked: torch.dtype
) -> None:
    source = Tiny().to(saved)
    with torch.device("meta"):
        model = Tiny()
    fill(model, source.state_dict(), asked, CPU)
    for key, value in model.state_dict().items():
        expected = source.state_dict()[key]
        assert value.dtype == (asked if expected.is_floating_point() else expected.dtype)
        assert torch.equal(value, expected.to(value.dtype))
    assert model.out.weight.requires_grad
    assert isinstance(model.out.weight, nn.Parameter)


def test_what_a_module_computes_need_not_be_in_the_file_and_is_not_taken_from_it() -> None:
    class Scheduled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            with torch.device("cpu"):
                self.register_buffer("betas", torch.linspace(0, 1, 5))
                self.register_buffer("steps", torch.arange(5), persistent=False)

    for extra in ({}, {"betas": torch.zeros(5)}, {"betas": torch.zeros(7)}):
        with torch.device("meta"):
            model = Scheduled()
        fill(model, {"weight": torch.zeros(2), **extra}, torch.float16, CPU)
        assert torch.equal(model.betas, torch.linspace(0, 1, 5))
        assert torch.equal(model.steps, torch.arange(5))


def test_a_buffer_left_on_meta_is_named() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.arange(5), persistent=False)

    with torch.device("meta"):
        model = Forgetful()
    with pytest.raises(RuntimeError, match="steps"):
        fill(model, {}, torch.float32, CPU)


CLIP = "cond_stage_model.transformer."


@pytest.mark.parametrize("prefix", [CLIP, CLIP + "text_model."])
def test_clip_keys_are_found_with_and_without_their_prefix(prefix: str) -> None:
    leaves = ["embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.bias", "final_layer_norm.weight"]
    model = on_meta({f"{CLIP}text_model.{leaf}": (3,) for leaf in leaves})
    tensors = {f"{prefix}{leaf}": torch.randn(3) for leaf in leaves}
    fill(model, tensors, torch.float32, CPU)
    for leaf in leaves:
        assert torch.equal(model.state_dict()[f"{CLIP}text_model.{leaf}"], tensors[f"{prefix}{leaf}"])


@pytest.mark.parametrize("names", [{}, {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}])
def test_an_autoencoder_s_attention_is_found_as_converters_from_diffusers_leave_it(
    names: dict[str, str],
) -> None:
    ddconfig = {
        "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
        "num_res_blocks": 1, "attn_resolutions": [],
    }  # fmt: skip
    params = {"ddconfig": ddconfig, "embed_dim": 4}
    config = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}
    torch.manual_seed(0)
    whole = instantiate_from_config(config).state_dict()
    file = {}
    for key, tensor in whole.items():
        in_attention = ".mid.attn_1." in key
        for ours, theirs in names.items():
            key = key.replace(f".mid.attn_1.{ours}.", f".mid.attn_1.{theirs}.")
        file[key] = tensor[:, :, 0, 0] if in_attention and tensor.ndim == 4 else tensor
    assert sum(it.ndim == 2 for it in file.values()) == 8
    assert len(file.keys() - whole.keys()) == 4 * len(names)

    model = build_on_meta(config)
    fill(model, file, torch.float32, CPU)
    assert all(torch.equal(it, whole[key]) for key, it in model.state_dict().items())


def test_a_model_s_own_names_are_not_renamed() -> None:
    shapes = {f"{CLIP}encoder.weight": (3,)}
    model = on_meta(shapes)
    fill(model, zeros(shapes), torch.float32, CPU)


WRAPPINGS = {
    "DistributedDataParallel": lambda key: f"module.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "torch.compile of a part": lambda key: key.replace("unet.", "unet._orig_mod."),
    "both": lambda key: f"module._orig_mod.{key}",
    "both the other way": lambda key: f"_orig_mod.module.{key}",
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_names_that_a_wrapping_has_changed_are_found(wrapping: str) -> None:
    shapes = {
        "unet.0.weight": (3,),
        f"{CLIP}encoder.weight": (3,),
        f"{CLIP}text_model.final_layer_norm.bias": (3,),
    }
    model, tensors = on_meta(shapes), {key: torch.randn(3) for key in shapes}
    fill(model, {WRAPPINGS[wrapping](key): it for key, it in tensors.items()}, torch.float32, CPU)
    assert all(torch.equal(it, tensors[key]) for key, it in model.state_dict().items())


def test_a_name_of_the_model_s_own_that_looks_wrapped_is_not_changed() -> None:
    for shapes in ({"module.weight": (3,)}, {"unet._orig_mod.weight": (3,), "unet.weight": (3,)}):
        model, tensors = on_meta(shapes), {key: torch.randn(3) for key in shapes}
        fill(model, tensors, torch.float32, CPU)
        assert all(torch.equal(it, tensors[key]) for key, it in model.state_dict().items())


def averaging(use_ema: bool) -> tuple[Skeleton, dict[str, Tensor], dict[str, Tensor]]:
    """A model with the plain weights of a training and their averages, under the original's names."""
    names = {
        "model.diffusion_model.time_embed.0.weight": "model_ema.diffusion_modeltime_embed0weight",
        "model.diffusion_model.out.2.bias": "model_ema.diffusion_modelout2bias",
    }
    model = on_meta(dict.fromkeys([*names, "first_stage_model.quant_conv.bias"], (3,)))
    model.use_ema = use_ema  # type: ignore[assignment]
    plain = {key: torch.randn(3) for key in model.state_dict()}
    averages = {average: torch.randn(3) for average in names.values()}
    return model, plain, averages | {"model_ema.decay": torch.tensor(0.9999)}


@pytest.mark.parametrize("wrapping", ["", "module."])
@pytest.mark.parametrize("alone", [False, True])
def test_averages_are_loaded_where_the_config_uses_them(alone: bool, wrapping: str) -> None:
    model, plain, averages = averaging(use_ema=True)
    left = without(plain, "model.") if alone else plain
    fill(model, {f"{wrapping}{key}": it for key, it in (left | averages).items()}, torch.float32, CPU)
    filled = model.state_dict()
    for name in ("diffusion_model.time_embed.0.weight", "diffusion_model.out.2.bias"):
        assert torch.equal(filled[f"model.{name}"], averages[f"model_ema.{name.replace('.', '')}"])
    assert torch.equal(
        filled["first_stage_model.quant_conv.bias"], plain["first_stage_model.quant_conv.bias"]
    )


def test_weights_without_an_average_are_loaded_plain_where_the_config_uses_averages() -> None:
    model, plain, averages = averaging(use_ema=True)
    fill(model, plain | without(averages, "model_ema.diffusion_modelout"), torch.float32, CPU)
    assert torch.equal(
        model.state_dict()["model.diffusion_model.out.2.bias"], plain["model.diffusion_model.out.2.bias"]
    )


def test_plain_weights_are_loaded_where_the_config_uses_no_averages() -> None:
    model, plain, averages = averaging(use_ema=False)
    fill(model, plain | averages, torch.float32, CPU)
    assert all(torch.equal(it, plain[key]) for key, it in model.state_dict().items())


def test_averages_alone_are_refused_with_the_remedy_where_the_config_uses_none() -> None:
    model, plain, averages = averaging(use_ema=False)
    with pytest.raises(InputError, match=r"only averaged \(EMA\) .*: add model\.params\.use_ema=true\n"):
        fill(model, without(plain, "model.") | averages, torch.float32, CPU)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_in_the_place_of_weights_are_refused(kind: torch.dtype) -> None:
    name, unet = str(kind).removeprefix("torch."), "model.diffusion_model."
    model = on_meta({f"{unet}a": (2,), f"{unet}b": (2,), "scale": (1,)})
    tensors = zeros({f"{unet}a": (2,), f"{unet}b": (2,), "scale": (1,)})
    with pytest.raises(InputError) as refused:
        fill(model, tensors | {f"{unet}b": torch.ones(2).to(kind)}, torch.float32, CPU)
    assert str(refused.value) == (
        f"does not fit the config: it holds whole numbers ({name}): give one in float16 or float32\n"
        f"  U-Net: 1 in whole numbers ('{unet}b' {name})"
    )


def test_counts_may_come_in_any_type() -> None:
    counts = {key: torch.arange(3) for key in ("int64", "float16", "int32")}
    for kind, count in counts.items():
        with torch.device("meta"):
            model = nn.Module()
            model.register_buffer("position_ids", torch.zeros(3, dtype=torch.int64))
        fill(model, {"position_ids": count.to(getattr(torch, kind))}, torch.float16, CPU)
        assert torch.equal(model.position_ids, torch.arange(3))


class Noisy(nn.Module):
    """A model with a noise schedule and nothing else."""

    def __init__(
        self, timesteps: int = 1000, linear_start: float = 0.00085, linear_end: float = 0.012
    ) -> None:
        super().__init__()
        for name, values in make_schedule(timesteps, linear_start, linear_end).items():
            self.register_buffer(name, values)


@pytest.mark.parametrize(
    ("timesteps", "kind"),
    [(1000, torch.float32), (1000, torch.float16), (500, torch.float32), (2, torch.float32)],
)
def test_another_noise_schedule_in_the_file_is_told_with_the_remedy(
    timesteps: int, kind: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    its = {key: values.to(kind) for key, values in Noisy(timesteps, 0.0015, 0.0195).state_dict().items()}
    model = Noisy()
    fill(model, its, torch.float32, CPU)
    assert torch.equal(model.alphas_cumprod, Noisy().alphas_cumprod)
    told = capsys.readouterr().err
    said, _, remedy = told.rpartition("add ")
    start, end = (float(its["betas"][k]) for k in (0, -1))
    assert said == (
        f"warning: the checkpoint's noise schedule has {timesteps} betas from {start:g} to {end:g}, "
        "the config's 1000 from 0.00085 to 0.012: "
    )
    parameters = dict(entry.removeprefix("model.params.").split("=") for entry in remedy.split())
    numbers = {
        name: int(value) if name == "timesteps" else float(value) for name, value in parameters.items()
    }
    fill(Noisy(**numbers), its, torch.float32, CPU)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_of_the_same_noise_schedule_nothing_is_said_whatever_the_precision(
    kind: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    its = {key: values.to(kind) for key, values in Noisy().state_dict().items()}
    fill(Noisy(), its, torch.float32, CPU)
    assert capsys.readouterr() == ("", "")


def cosine() -> Tensor:
    t = torch.arange(1, 1001) / 1001
    return (t * torch.pi / 2).cos() ** 2


def down_to_zero() -> Tensor:
    root = make_schedule(1000, 0.00085, 0.012)["alphas_cumprod"].sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"alphas_cumprod": cosine()},
            "the config's 1000 from 0.00085 to 0.012: the config's schedule is taken\n",
        ),
        (
            {"alphas_cumprod": down_to_zero()},
            "zero terminal SNR, which is not supported: the config's schedule is taken\n",
        ),
        (
            {"ztsnr": torch.ones(())},
            "zero terminal SNR, which is not supported: the config's schedule is taken\n",
        ),
    ],
    ids=["cosine", "down to zero", "ztsnr"],
)
def test_a_noise_schedule_that_no_config_makes_is_told(
    given: dict[str, Tensor], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(Noisy(), given, torch.float32, CPU)
    err = capsys.readouterr().err
    assert err.endswith(told) and err.count("\n") == 1


@pytest.mark.parametrize(
    "numbers",
    [torch.randn(1000), torch.zeros(1000), torch.full((1000,), torch.nan), torch.ones(10, 100),
     torch.ones(()), torch.ones(0), torch.arange(1000), torch.full((1000,), torch.inf)],
    ids=["random", "zeros", "nan", "two dimensions", "one", "none", "whole", "infinite"],
)  # fmt: skip
def test_of_numbers_that_are_no_noise_schedule_nothing_is_said(
    numbers: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(Noisy(), {"alphas_cumprod": numbers, "betas": numbers}, torch.float32, CPU)
    assert capsys.readouterr() == ("", "")


def test_harmless_keys_are_dropped_unless_the_model_has_them() -> None:
    harmless = [
        "model_ema.diffusion_modeltime_embed0weight", "model_ema.decay", "betas", "alphas_cumprod_prev",
        "logvar", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1", "log_one_minus_alphas_cumprod",
        "loss.discriminator.main.0.weight", "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids", "cond_stage_model.model.attn_mask",
        "cond_stage_model.model.visual.conv1.weight", "cond_stage_model.model.logit_scale",
        "cond_stage_model.model.text_projection", "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_projection.weight", "cond_stage_model.text_projection",
        "first_stage_model.model_ema.decay", "lvlb_weights", "denoiser.sigmas", "v_pred", "ztsnr",
        "embedding_manager.embedder.transformer.text_model.final_layer_norm.bias",
    ]  # fmt: skip
    fill(on_meta({"weight": (2,)}), zeros(dict.fromkeys(["weight", *harmless], (2,))), torch.float32, CPU)

    projecting = on_meta({"cond_stage_model.model.text_projection": (2,)})
    fill(projecting, {"cond_stage_model.model.text_projection": torch.ones(2)}, torch.float32, CPU)
    assert torch.equal(projecting.state_dict()["cond_stage_model.model.text_projection"], torch.ones(2))
    projecting = on_meta({"cond_stage_model.model.text_projection": (2,)})
    with pytest.raises(InputError, match="text encoder: 1 missing"):
        fill(projecting, {}, torch.float32, CPU)
    for key in ["embeddings.weight", "model.betas", "cond_stage_model.model.visual_weight", "lossy.weight"]:
        with pytest.raises(InputError, match="1 unexpected"):
            fill(on_meta({}), zeros({key: (2,)}), torch.float32, CPU)


def test_words_of_a_textual_inversion_that_are_not_taken_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {f"embedding_manager.string_to_param_dict.{word}": (1, 768) for word in ("*", "@")}
    fill(on_meta({"weight": (2,)}), zeros(kept | {"weight": (2,)}), torch.float32, CPU)
    assert capsys.readouterr().err == (
        "warning: the checkpoint's words of a textual inversion are not taken: '*', '@'\n"
    )


class Conditioned(nn.Module):
    """A text tower of OpenCLIP's, width 256 and 10 blocks, under the name that checkpoints give it."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.cond_stage_model = FrozenOpenCLIPEmbedder(arch="ViT-S-32-alt", layer=layer)


def filled(layer: str, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Conditioned:
    with torch.device("meta"):
        model = Conditioned(layer)
    fill(model, tensors, dtype, CPU)
    return model


TEXT = "cond_stage_model.model."
LAST_BLOCK = f"{TEXT}transformer.resblocks.9."


def without(state: Mapping[str, T], *parts: str) -> dict[str, T]:
    left = {key: it for key, it in state.items() if not key.startswith(parts)}
    assert len(left) < len(state)
    return left


def test_what_a_text_encoder_never_reads_may_be_missing() -> None:
    torch.manual_seed(0)
    whole = Conditioned("penultimate").state_dict()
    lacking = without(whole, f"{TEXT}text_projection", f"{TEXT}logit_scale", LAST_BLOCK)
    model = filled("penultimate", lacking)
    assert torch.equal(
        model.cond_stage_model("a red circle"), filled("penultimate", whole).cond_stage_model("a red circle")
    )
    assert {key: it.shape for key, it in model.state_dict().items()} == {
        key: it.shape for key, it in whole.items()
    }

    half = filled("penultimate", lacking, torch.float16).state_dict()
    assert {it.dtype for it in half.values()} == {torch.float16}
    assert not any(half[key].any() for key in whole.keys() - lacking.keys())


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("logit_scale", torch.tensor(1)),  # as trainings on diffusers make it up
        ("logit_scale", torch.ones(1)),
        ("text_projection", torch.ones(4, 4)),
    ],
)
def test_what_a_text_encoder_never_reads_may_be_of_any_kind_and_shape(name: str, odd: Tensor) -> None:
    torch.manual_seed(0)
    whole = Conditioned("penultimate").state_dict()
    model = filled("penultimate", whole | {TEXT + name: odd})
    assert torch.equal(
        model.cond_stage_model("a red circle"), filled("penultimate", whole).cond_stage_model("a red circle")
    )
    assert {key: (it.shape, it.dtype) for key, it in model.state_dict().items()} == {
        key: (it.shape, it.dtype) for key, it in whole.items()
    }


def test_what_a_text_encoder_reads_may_not_be_missing() -> None:
    torch.manual_seed(0)
    whole = Conditioned("last").state_dict()
    filled("last", without(whole, f"{TEXT}text_projection", f"{TEXT}logit_scale"))
    for layer, part, count in [
        ("last", LAST_BLOCK, 12),
        ("penultimate", f"{TEXT}transformer.resblocks.8.", 12),
        ("penultimate", f"{TEXT}ln_final.bias", 1),
    ]:
        with pytest.raises(InputError, match=f"text encoder: {count} missing"):
            filled(layer, without(whole, part))


def test_all_that_does_not_fit_is_listed_part_by_part() -> None:
    unet, vae = "model.diffusion_model.", "first_stage_model."
    model = on_meta({f"{unet}{i}.weight": (2, 3) for i in range(5)} | {f"{vae}a.weight": (4,), "scale": ()})
    tensors = zeros(
        {f"{unet}0.weight": (2, 3), f"{unet}1.weight": (3, 2), f"{vae}a.weight": (4,), f"{vae}b": (1,)}
    )
    with pytest.raises(InputError) as refused:
        fill(model, tensors, torch.float32, CPU)
    title, unet_line, vae_line, other_line = str(refused.value).splitlines()
    assert "does not fit" in title
    assert "U-Net: 3 missing ('model.diffusion_model.2.weight', " in unet_line
    assert "1 of another shape ('model.diffusion_model.1.weight' (3, 2), not (2, 3))" in unet_line
    assert vae_line.strip() == "autoencoder: 1 unexpected ('first_stage_model.b')"
    assert other_line.strip() == "other: 1 missing ('scale')"


def test_keys_of_a_hostile_file_cannot_fill_or_steer_the_terminal() -> None:
    tensors = zeros({"\x1b[2J" + "x" * 10_000 + str(i): (1,) for i in range(50)})
    with pytest.raises(InputError, match="50 unexpected") as refused:
        fill(on_meta({}), tensors, torch.float32, CPU)
    assert len(str(refused.value)) < 500
    assert "\x1b" not in str(refused.value)


def test_a_file_without_tensors_is_called_that_and_no_autoencoder() -> None:
    with pytest.raises(InputError, match=r"^does not fit the config: it holds no tensors\n"):
        fill(on_meta(contract(1)), {}, torch.float32, CPU)


@pytest.mark.parametrize(("file", "config"), [(1, 2), (2, 1)])
def test_the_other_stable_diffusion_is_recognised(file: int, config: int) -> None:
    with pytest.raises(
        InputError, match=f"U-Net is Stable Diffusion {file} .*the config's Stable Diffusion {config} "
    ):
        fill(on_meta(contract(config)), meta_tensors(contract(file)), torch.float32, CPU)


def test_other_likely_mistakes_are_recognised() -> None:
    shapes = contract(1)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    linear = {key: shape[:2] if ".proj_in.weight" in key else shape for key, shape in shapes.items()}
    unet = {key.removeprefix("model."): shape for key, shape in shapes.items() if key.startswith("model.")}
    mistakes = {
        "takes 9 channels .for inpainting., the config's 4": shapes | {first: (320, 9, 3, 3)},
        "takes 5 channels .for depth., the config's 4; on a diffusers pip": shapes | {first: (320, 5, 3, 3)},
        "use_linear_in_transformer: true": linear,
        r"only averaged .EMA. weights": {
            f"model_ema.{key.replace('.', '')}": shape for key, shape in unet.items()
        },
        "layout of diffusers": {"unet.down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "Stable Diffusion XL": {"conditioner.embedders.0.transformer.weight": (2, 2)},
        "Stable Diffusion 3, a transformer": {
            "model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.bias": (2,)
        },
        "Flux, a transformer": {"double_blocks.0.img_attn.proj.bias": (2,)},
        ".VAE. alone": {"encoder.conv_in.bias": (128,), "post_quant_conv.bias": (4,)},
        "LoRA": {"lora_unet_up_blocks_0.lora_down.weight": (4, 320)},
    }
    for message, found in mistakes.items():
        with pytest.raises(InputError, match=message):
            fill(on_meta(shapes), meta_tensors(found), torch.float32, CPU)


def refusal(config: Mapping[str, tuple[int, ...]], file: Mapping[str, tuple[int, ...]]) -> str:
    with pytest.raises(InputError) as refused:
        fill(on_meta(config), meta_tensors(file), torch.float32, CPU)
    return str(refused.value).partition("\n")[0]


def test_a_model_that_holds_a_lora_too_is_not_taken_for_a_lora() -> None:
    shapes, lora = contract(1), {"lora_unet_up_blocks_0.lora_down.weight": (4, 320)}
    said = "does not fit the config: it holds a LoRA beside its model: merge the two, or give the model alone"
    assert refusal(shapes, shapes | lora) == said
    # As peft leaves a model that is trained, its layers within layers.
    layer = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q."
    trained = without(shapes, layer) | {f"{layer}base_layer.weight": (320, 320)}
    assert refusal(shapes, trained | {f"{layer}lora_A.default.weight": (4, 320)}) == said


def test_a_u_net_is_not_said_to_differ_in_what_is_alike() -> None:
    shapes = contract(2)
    widths = {320: 256, 640: 512, 1280: 1024}
    narrow = {
        key: tuple(widths.get(n, n) for n in shape) if "diffusion_model" in key else shape
        for key, shape in shapes.items()
    }
    assert refusal(shapes, narrow) == "does not fit the config"
    upscaler = narrow | {"model.diffusion_model.input_blocks.0.0.weight": (256, 7, 3, 3)}
    assert refusal(shapes, upscaler) == "does not fit the config: its U-Net takes 7 channels, the config's 4"


def test_counters_of_averages_are_not_taken_for_averages() -> None:
    counters: dict[str, tuple[int, ...]] = {"model_ema.decay": (), "model_ema.num_updates": ()}
    assert "an autoencoder (VAE) alone" in refusal(contract(1), counters | {"decoder.conv_in.bias": (512,)})
    assert "use_ema" not in refusal(contract(1), counters)


def test_networks_that_a_file_lacks_are_named_with_the_remedy() -> None:
    shapes = contract(1)
    text = {key.removeprefix("cond_stage_model.transformer."): shape for key, shape in shapes.items()}
    for file, lacking in [
        (without(shapes, "first_stage_model."), "no autoencoder"),
        (without(shapes, "first_stage_model.", "cond_stage_model."), "no autoencoder, no text encoder"),
        (without(text, "model.", "first_stage_model."), "no U-Net, no autoencoder, no text encoder"),
    ]:
        assert refusal(shapes, file) == (
            f"does not fit the config: by latent diffusion's names it has {lacking}: "
            "give a checkpoint of all three networks"
        )
