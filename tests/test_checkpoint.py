"""Reading checkpoints, naming their faults, and filling models with them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint import build_on_meta, fill, find_checkpoint, forget, load_model, read_tensors
from ldm.device import pick_device, pick_dtype
from ldm.errors import InputError
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

CPU = torch.device("cpu")
DATA = Path(__file__).parent / "data"
LINEAR = {"target": "torch.nn.Linear", "params": {"in_features": 6, "out_features": 4}}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)
        self.tied = self.out


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


def lightning_checkpoint(model: nn.Module) -> dict[str, object]:
    """What Lightning saves: the state dict among much else, objects of its own and of others included."""
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": model.state_dict(),
        "callbacks": {ModelCheckpoint: ModelCheckpoint(monitor="val/loss"), "path": Path("last.ckpt")},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.StepLR(optimizer, 1000).state_dict()],
        "hyper_parameters": OmegaConf.create({"unet_config": {"channels": [1, 2, 4]}}),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_every_value_is_that_of_the_format_s_own_reader(
    layout: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Tiny().to(dtype)
    path = tmp_path / "misnamed.bin"
    if layout == "safetensors":
        save_file({key: value.clone() for key, value in model.state_dict().items()}, path)
        expected = model.state_dict()
    else:
        torch.save(lightning_checkpoint(model), path, _use_new_zipfile_serialization=layout == "zip")
        expected = torch.load(path, weights_only=False)["state_dict"]

    tensors = read_tensors(path)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        assert tensors[key].stride() == value.stride()
        assert tensors[key].data_ptr() % value.itemsize == 0
        assert torch.equal(tensors[key], value)


def test_safetensors_is_known_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    first_bytes = set()
    for spaces in range(0, 256 * 8, 8):
        save_file({"w": torch.ones(2)}, tmp_path / "a.ckpt", metadata={"note": "x" * spaces})
        first_bytes.add((tmp_path / "a.ckpt").read_bytes()[0])
        assert torch.equal(read_tensors(tmp_path / "a.ckpt")["w"], torch.ones(2))
    assert {0x80, ord("P"), ord(" ")} <= first_bytes


def test_types_without_a_storage_class_and_parameters_are_read(tmp_path: Path) -> None:
    state = {
        "eighth": torch.randn(9).to(torch.float8_e4m3fn),
        "parameter": nn.Parameter(torch.randn(3)),
        "transposed": torch.randn(3, 5).T,
        "scalar": torch.tensor(0.18215),
        "empty": torch.empty(0, 5),
        "truth": torch.tensor([True, False]),
    }
    torch.save(state, tmp_path / "a.pt")
    tensors = read_tensors(tmp_path / "a.pt")
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert (tensors[key].dtype, tensors[key].shape) == (value.dtype, value.shape)
        assert torch.equal(tensors[key].float(), value.float())


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_writing_to_a_tensor_changes_no_file(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=layout == "zip")
    before = path.read_bytes()
    read_tensors(path)["w"].zero_()
    assert path.read_bytes() == before


OTHERS = {
    "empty": (b"", "empty"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n",
        "Git LFS pointer",
    ),
    "HTML": (b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in", "web page"),
    "text": ("Zugang für Mitglieder\r\n".encode() * 40, "text"),
    "JSON": (b'{"error": "Repository not found"}', "text"),
    "zeros": (bytes(4096), "neither safetensors nor"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither safetensors nor"),
    "zip cut off": (b"PK\x03\x04" + bytes(200), "cut off"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_checkpoint_is_called_by_its_name(kind: str, tmp_path: Path) -> None:
    content, name = OTHERS[kind]
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=name) as refused:
        read_tensors(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_folder_and_a_whole_module_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        read_tensors(tmp_path)
    torch.save(Tiny(), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="no state dict"):
        read_tensors(tmp_path / "whole.pt")


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


def test_a_model_s_own_names_are_not_renamed() -> None:
    shapes = {f"{CLIP}encoder.weight": (3,)}
    model = on_meta(shapes)
    fill(model, zeros(shapes), torch.float32, CPU)


def test_harmless_keys_are_dropped_unless_the_model_has_them() -> None:
    harmless = [
        "model_ema.diffusion_modeltime_embed0weight", "model_ema.decay", "betas", "alphas_cumprod_prev",
        "logvar", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1", "log_one_minus_alphas_cumprod",
        "loss.discriminator.main.0.weight", "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids", "cond_stage_model.model.attn_mask",
        "cond_stage_model.model.visual.conv1.weight", "cond_stage_model.model.logit_scale",
        "cond_stage_model.model.text_projection",
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


def without(tensors: Mapping[str, Tensor], *parts: str) -> dict[str, Tensor]:
    left = {key: tensor for key, tensor in tensors.items() if not key.startswith(parts)}
    assert len(left) < len(tensors)
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
        "use_linear_in_transformer: true": linear,
        r"only averaged .EMA. weights": {
            f"model_ema.{key.replace('.', '')}": shape for key, shape in unet.items()
        },
        "layout of diffusers": {"unet.down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "Stable Diffusion XL": {"conditioner.embedders.0.transformer.weight": (2, 2)},
        "LoRA": {"lora_unet_up_blocks_0.lora_down.weight": (4, 320)},
    }
    for message, found in mistakes.items():
        with pytest.raises(InputError, match=message):
            fill(on_meta(shapes), meta_tensors(found), torch.float32, CPU)


def test_a_model_is_loaded_from_a_config_and_a_path(tmp_path: Path) -> None:
    source = nn.Linear(6, 4)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "linear.ckpt")
    config = OmegaConf.create({"model": LINEAR})
    model = load_model(config, tmp_path / "linear.ckpt", device="cpu", dtype=torch.float32)
    assert not model.training
    assert torch.equal(model.weight, source.weight)

    with pytest.raises(InputError, match=r"linear\.ckpt does not fit the config"):
        load_model(config, tmp_path / "linear.ckpt", "cpu", overrides=["model.params.in_features=7"])


def test_a_config_s_own_checkpoint_is_looked_up_in_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.checkpoint.CHECKPOINTS", tmp_path)
    source = nn.Linear(6, 4)
    save_file(source.state_dict(), tmp_path / "linear.safetensors")
    (tmp_path / "linear.yaml").write_text(
        OmegaConf.to_yaml({"model": LINEAR, "checkpoint": "linear.safetensors"})
    )
    model = load_model(str(tmp_path / "linear.yaml"), device="cpu", dtype=torch.float16)
    assert torch.equal(model.weight, source.weight.half())
    assert find_checkpoint("linear.safetensors") == tmp_path / "linear.safetensors"


def test_a_checkpoint_that_is_not_there_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.checkpoint.CHECKPOINTS", tmp_path)
    with pytest.raises(InputError, match="names no checkpoint"):
        load_model(OmegaConf.create({"model": LINEAR}))
    with pytest.raises(InputError, match="no `model:` section"):
        load_model(OmegaConf.create({"data": LINEAR}))
    with pytest.raises(
        InputError, match=r"(?s)CompVis/stable-diffusion-v-1-4-original.*fe4efff1.*--download"
    ) as refused:
        find_checkpoint("sd-v1-4.ckpt")
    assert str(tmp_path / "sd-v1-4.ckpt") in str(refused.value)
    with pytest.raises(InputError, match=f"{tmp_path / 'mine.ckpt'}.*v1-5-pruned-emaonly.safetensors"):
        find_checkpoint(tmp_path / "mine.ckpt")
    with pytest.raises(InputError, match="cannot be downloaded"):
        find_checkpoint("mine.ckpt", download=True)
    with pytest.raises(InputError, match="no checkpoint"):
        find_checkpoint("x" * 5000)


def test_devices_and_precisions_are_chosen_and_checked() -> None:
    assert pick_device("cpu") == CPU
    assert pick_dtype(pick_device("auto")).is_floating_point
    assert pick_dtype(torch.device("mps")) == torch.float16
    with pytest.raises(InputError, match="'gpu'"):
        pick_device("gpu")


def test_a_device_that_is_missing_is_said() -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(InputError, match=missing):
        pick_device(missing)


# Fills a model from a file of 200 MB and prints by how many bytes memory grew: at its peak, and of memory of
# its own.
MEASURE = """
import sys
from pathlib import Path
import torch
from ldm.checkpoint import build_on_meta, fill, read_tensors

def memory():
    # Of this process alone; getrusage would count what its parent had.
    status = Path("/proc/self/status").read_text()
    return [int(status.partition(name)[2].split()[0]) << 10 for name in ("VmHWM:", "RssAnon:")]

layer = {"target": "torch.nn.Linear", "params": {"in_features": 2500, "out_features": 2500}}
torch.ones(4_000_000).to(torch.bfloat16).float().sum()
before = memory()
with torch.device("meta"):
    model = torch.nn.Sequential(*(build_on_meta(layer) for _ in range(8)))
fill(model, read_tensors(sys.argv[1]), getattr(torch, sys.argv[2]), torch.device("cpu"))
for parameter in model.parameters():
    parameter.detach().sum()
print(*(now - then for now, then in zip(memory(), before)))
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heavy")
    state = nn.Sequential(*(nn.Linear(2500, 2500) for _ in range(8))).state_dict()
    torch.save({"state_dict": state}, folder / "heavy.ckpt")
    save_file(state, folder / "heavy.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "dtype", "peak", "own"),
    [
        # Unchanged weights are the file's own pages.
        ("heavy.ckpt", "float32", 1.3, 0.1),
        ("heavy.safetensors", "float32", 1.3, 0.1),
        # Cast weights are half as large, beside pages of the file that the system can drop.
        ("heavy.ckpt", "bfloat16", 1.8, 0.6),
    ],
)
def test_filling_makes_no_second_copy_in_memory(
    name: str, dtype: str, peak: float, own: float, heavy: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(heavy / name), dtype],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak_grown, own_grown = map(int, done.stdout.split())
    size = (heavy / name).stat().st_size
    assert 0.4 < peak_grown / size < peak
    assert own_grown / size < own


def test_what_was_copied_out_of_a_mapped_file_is_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    state = {name: torch.randn(3 * 2**18 + 5) for name in "abc"}
    save_file(state, path)
    mapped = read_tensors(path)
    for name, tensor in mapped.items():
        assert torch.equal(tensor, state[name])
        forget(tensor)
    assert all(torch.equal(tensor, state[name]) for name, tensor in mapped.items())


def test_weights_of_maps_lie_channels_last(tiny_checkpoint: Path) -> None:
    model = load_model("tiny.yaml", tiny_checkpoint, "cpu", torch.float32)
    maps = [weight for weight in model.parameters() if weight.ndim == 4]
    assert maps and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in maps)
