"""Configs: how they are found, laid over each other and built, and which ones ship."""

import json
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import build_on_meta
from ldm.config.freeu import FREE_UNET, FREEU, UNET, remove_freeu, set_freeu
from ldm.config.reading import find_config, load_config
from ldm.errors import InputError
from ldm.folders import CONFIGS
from ldm.freeu import PRESETS
from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.util import accepted_parameters, get_class, instantiate_from_config

STOCK = json.loads((Path(__file__).parents[1] / "data" / "sd-configs.json").read_text())
FACTORS = ("b1", "b2", "s1", "s2")

# What the authors publish (diffusers' old documentation for version 1 of SD1.5), and on which model.
PUBLISHED = {
    "freeu_sd14": ("v1-inference", (1.2, 1.4, 0.9, 0.2), 1, "sd-v1-4.ckpt"),
    "freeu_sd15": ("v1-inference", (1.2, 1.4, 0.9, 0.2), 1, "v1-5-pruned-emaonly.safetensors"),
    "freeu_sd21": ("v2-inference-v", (1.1, 1.2, 0.9, 0.2), 1, "v2-1_768-ema-pruned.safetensors"),
    "freeu_sd21_base": ("v2-inference", (1.1, 1.2, 0.9, 0.2), 1, "v2-1_512-ema-pruned.safetensors"),
    "freeu_v2_sd14": ("v1-inference", (1.3, 1.4, 0.9, 0.2), 2, "sd-v1-4.ckpt"),
    "freeu_v2_sd15": ("v1-inference", (1.5, 1.6, 0.9, 0.2), 2, "v1-5-pruned-emaonly.safetensors"),
    "freeu_v2_sd21": ("v2-inference-v", (1.4, 1.6, 0.9, 0.2), 2, "v2-1_768-ema-pruned.safetensors"),
    "freeu_v2_sd21_base": ("v2-inference", (1.4, 1.6, 0.9, 0.2), 2, "v2-1_512-ema-pruned.safetensors"),
}

# A config as the original repository's users have it; `{unet}` and `{factors}` are where FreeU goes in.
STRANGERS = """
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 64
    channels: 4
    cond_stage_trainable: false   # Note: different from the one we trained before
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    scheduler_config: # 10000 warmup steps
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params:
        warm_up_steps: [ 10000 ]
        cycle_lengths: [ 10000000000000 ] # incredibly large number to prevent corner cases
        f_start: [ 1.e-6 ]
        f_max: [ 1. ]
        f_min: [ 1. ]
    unet_config:
      target: {unet}
      params:{factors}
        image_size: 32 # unused
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [ 4, 2, 1 ]
        num_res_blocks: 2
        channel_mult: [ 1, 2, 4, 4 ]
        num_heads: 8
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: 768
        use_checkpoint: True
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult:
          - 1
          - 2
          - 4
          - 4
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 4
    train:
      target: ldm.data.nowhere.NeverWritten
      params: {{size: 512}}
lightning:
  callbacks:
    image_logger: {{target: main.ImageLogger, params: {{batch_frequency: 5000}}}}
  trainer: {{benchmark: True}}
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_its_model_with_the_published_factors_and_nothing_else(name: str) -> None:
    base, factors, version, checkpoint = PUBLISHED[name]
    preset, stock = load_config(f"{name}.yaml"), load_config(f"{base}.yaml")
    unet = preset.model.params.unet_config
    assert unet.target == FREE_UNET
    assert tuple(unet.params[key] for key in FACTORS) == factors
    assert unet.params.get("version", 1) == version
    assert preset.checkpoint == checkpoint
    known = PRESETS[name.removeprefix("freeu_").removeprefix("v2_").removesuffix("_base"), version]
    assert tuple(getattr(known, key) for key in FACTORS) == factors

    remove_freeu(preset)
    assert {**preset, "checkpoint": ""} == {**stock, "checkpoint": ""}


@pytest.mark.parametrize(
    ("name", "stock"), [("v1-inference", "sd-v1"), ("v2-inference", "sd-v2"), ("v2-inference-v", "sd-v2-v")]
)
def test_the_stock_configs_hold_the_stock_values(name: str, stock: str) -> None:
    config = load_config(name)
    values = STOCK[stock]
    parts = STOCK[values.get("same as", stock)] | {"LatentDiffusion": {}}
    diffusion = STOCK[values.get("same as", stock)]["LatentDiffusion"] | values["LatentDiffusion"]
    params = OmegaConf.to_container(config.model.params)
    assert isinstance(params, dict)
    assert params.pop("unet_config") == {"target": UNET, "params": parts["UNetModel"]}
    assert params.pop("first_stage_config")["params"] == parts["AutoencoderKL"]
    assert params.pop("cond_stage_config") == parts["cond_stage"]
    assert params == diffusion
    assert config.sampling.height == config.sampling.width == values["usual_size"]
    assert config.checkpoint in values["checkpoints"]


def test_every_shipped_config_builds() -> None:
    for path in sorted(CONFIGS.glob("*.yaml")):
        model = build_on_meta(load_config(path.name).model)
        assert model.model.diffusion_model.decoder_stages, path


def test_a_stranger_s_config_takes_freeu_with_nothing_changed_but_target_and_factors(tmp_path: Path) -> None:
    values = {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    factors = "".join(f"\n        {key}: {value}" for key, value in values.items())
    plain = written(tmp_path / "plain.yaml", STRANGERS.format(unet=UNET, factors=""))
    freeu = written(tmp_path / "freeu.yaml", STRANGERS.format(unet=FREE_UNET, factors=factors))
    before, after = build_on_meta(load_config(plain).model), build_on_meta(load_config(freeu).model)
    shapes = {key: value.shape for key, value in before.state_dict().items()}
    assert {key: value.shape for key, value in after.state_dict().items()} == shapes
    hit = after.model.diffusion_model.hit_blocks()
    assert hit == dict.fromkeys(range(7), (1.2, 0.9)) | dict.fromkeys(range(7, 10), (1.4, 0.2))


def test_a_bare_name_is_found_in_configs_and_a_path_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("freeu_sd21.yaml") == find_config("freeu_sd21") == CONFIGS / "freeu_sd21.yaml"
    here = written(tmp_path / "freeu_sd21.yaml", "model: {}")
    assert find_config("freeu_sd21.yaml").resolve() == here


@pytest.mark.parametrize("name", ["freeu_sd12.yaml", "configs/freeu_sd21.yml", "x" * 5000, "", "a\0b"])
def test_a_config_that_is_not_there_is_answered_with_near_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"(Near it|There are): .*freeu_sd\d\d.*\.yaml"):
        find_config(name)


def test_a_base_lies_under_a_config_and_overrides_on_top(tmp_path: Path) -> None:
    written(tmp_path / "bottom.yaml", "model: {a: 1, b: [1, 2], half: '${model.size}'}\nsampling: {steps: 9}")
    written(tmp_path / "middle.yaml", "base: bottom.yaml\nmodel: {b: [3], c: '${sampling.steps}'}")
    top = written(tmp_path / "top.yaml", "base: middle.yaml\nmodel: {size: 7}")
    config = load_config(top, ["sampling.steps=4", "model.d.e=x", "checkpoint=w.ckpt"])
    assert config == {
        "model": {"a": 1, "b": [3], "half": 7, "c": 4, "size": 7, "d": {"e": "x"}},
        "sampling": {"steps": 4},
        "checkpoint": "w.ckpt",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1,", "not a YAML config"),
        ("\tmodel: 1", "not a YAML config: .*by spaces, never by tabs"),
        ("- a list", "no `model:` section"),
        ("just words", "describes no U-Net"),
        ("'0'", "describes no U-Net"),
        ("'- a'", "describes no U-Net"),
        ("", "describes no U-Net"),
        ("base: self.yaml", "its own `base:`"),
        ("base: nowhere.yaml", "no config 'nowhere.yaml'"),
        ("base: [1, 2]", "no config"),
        ("model: {params: '${nothing.here}'}", "cannot be resolved.*nothing"),
        ("model: '${'", "not a YAML config|cannot be resolved"),
    ],
)
def test_a_file_that_is_no_config_is_named_in_one_message(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "self.yaml", text)
    with pytest.raises(InputError, match=message) as caught:
        set_freeu(load_config(path), {})
    assert "\n" not in re.split("\n(?:Near it|There are)", str(caught.value))[0]


def test_bytes_that_are_no_text_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(InputError, match="not a YAML config"):
        load_config(path)


@pytest.mark.parametrize(
    "override", ["a cat on a mat", "modle.params.channels=4", "=1", "..=1", "model.params=[1", "model=${"]
)
def test_an_override_that_changes_nothing_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=r"no override|has no|cannot be resolved"):
        load_config("tiny.yaml", [override])


def test_words_at_a_loss_are_told_where_words_go_in_any_script() -> None:
    with pytest.raises(
        InputError, match=r"goes behind it, in quotes, as a prompt behind txt2img.py's --prompt"
    ):
        load_config("tiny.yaml", ["a cat on a mat"])


def test_freeu_is_put_in_and_taken_out_again() -> None:
    plain, config = load_config("tiny.yaml"), load_config("tiny.yaml")
    set_freeu(config, {"b1": 1.3, "version": 2})
    params = config.model.params.unet_config.params
    assert config.model.params.unet_config.target == FREE_UNET
    assert [params[key] for key in (*FACTORS, "version")] == [1.3, 1, 1, 1, 2]
    set_freeu(config, {"s2": 0.5})
    assert (params.b1, config.model.params.unet_config.params.s2) == (1.3, 0.5)
    remove_freeu(config)
    assert config == plain


def test_stages_are_whole_numbers_however_their_keys_are_written() -> None:
    config = load_config("freeu_tiny.yaml", ["model.params.unet_config.params.stages.32=[1.2, 0.8]"])
    for stages in ({"64": [1.1, 0.9]}, {64: [1.3, 0.7]}, {"32": [1.4, 0.6]}):
        set_freeu(config, {"stages": stages})
    assert config.model.params.unet_config.params.stages == {32: [1.4, 0.6], 64: [1.3, 0.7]}


def test_what_is_left_open_stays_open_in_a_plain_model() -> None:
    config = load_config("freeu_tiny.yaml", ["model.params.unet_config.params.dropout=???"])
    remove_freeu(config)
    unet = config.model.params.unet_config
    assert unet.target == UNET and OmegaConf.is_missing(unet.params, "dropout")
    assert not set(FREEU) & set(unet.params)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.target=ldm.models.diffusion.ddpm.LatentDifusion"], "no class '.*LatentDifusion'"),
        (["model.target=nowhere.Model"], "nowhere.Model"),
        (["model.target=Model"], "'Model' is no class"),
        (["model.target=7"], "7 is no class"),
        (["model.target=ldm.models.diffusion.ddpm.make_schedule"], "no class"),
        (["model.params.unet_config.params.treshold=2"], "no parameter treshold. Is threshold meant"),
        (["model.params.unet_config.params.zzz=2"], "no parameter zzz. Remove it"),
        (["model.params.unet_config.target=" + UNET], f"no parameter b1, b2, s1, s2. .* {FREE_UNET}"),
        (["model.params.unet_config.params.num_head_channels=0"], "UNetModel cannot be made"),
        (["model.params.unet_config.params.channel_mult=3"], "UNetModel cannot be made"),
        (["model.params.unet_config.params.model_channels=-32"], "UNetModel"),
        (["model.params.unet_config.params.b1=null"], "b1 is None"),
        (["model.params.unet_config.params.s2=.nan"], "s2 is nan"),
        (["model.params.unet_config.params.match=stage"], "match is 'stage'"),
        (["model.params.unet_config.params.version=3"], "version is 3"),
        (["model.params.unet_config=5"], "no `target:`"),
        (["model.params=5"], "params of .*LatentDiffusion are 5"),
        (["model=5"], "no `target:`"),
        (["model.params.parameterization=w"], "parameterization 'w'"),
    ],
)  # fmt: skip
def test_what_a_config_names_wrongly_is_named_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_on_meta(load_config("freeu_tiny.yaml", overrides).model)
    assert "\n" not in str(caught.value)


def test_freeu_s_settings_are_the_parameters_that_the_plain_model_lacks() -> None:
    of_freeu = accepted_parameters(get_class(FREE_UNET)) - accepted_parameters(get_class(UNET))
    assert of_freeu == set(FREEU)


def test_what_is_missing_in_a_config_is_named() -> None:
    config = load_config("freeu_tiny.yaml")
    del config.model.params.unet_config.params["s1"]
    with pytest.raises(InputError, match=r"Free_UNetModel.*'s1'"):
        build_on_meta(config.model)
    config = load_config("freeu_tiny.yaml")
    del config.model.params.first_stage_config.params.ddconfig["out_ch"]
    with pytest.raises(InputError, match=r"AutoencoderKL cannot be made.*'out_ch'"):
        build_on_meta(config.model)


def test_networks_of_torch_are_built_too() -> None:
    config = {"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3}}
    assert instantiate_from_config(config).weight.shape == (3, 2)
    assert isinstance(instantiate_from_config({"target": "torch.nn.Identity"}), torch.nn.Identity)
    with pytest.raises(InputError, match="Linear cannot be made"):
        instantiate_from_config({"target": "torch.nn.Linear", "params": {"in": 2}})


def test_the_linear_schedule_of_the_original_by_hand() -> None:
    schedule = LambdaLinearScheduler(
        warm_up_steps=[4, 2], f_min=[0.1, 0.0], f_max=[1.0, 0.5], f_start=[0.2, 0.1], cycle_lengths=[10, 5]
    )
    table = {
        0: 0.2, 1: 0.4, 3: 0.8,  # up from 0.2 to 1 in four steps
        4: 0.64, 5: 0.55, 9: 0.19, 10: 0.1,  # on the line from 1 at the beginning to 0.1 at step 10
        11: 0.3, 12: 0.3, 14: 0.1, 15: 0.0,  # the second cycle: up from 0.1, then down from 0.5 to 0
        16: 0.0, 1000: 0.0,
    }  # fmt: skip
    assert {n: schedule(n) for n in table} == pytest.approx(table)


def test_the_schedule_that_stable_diffusion_names_warms_up_and_stays() -> None:
    config = OmegaConf.create(STRANGERS.format(unet=UNET, factors="")).model.params.scheduler_config
    schedule = instantiate_from_config(config)
    assert [schedule(n) for n in (0, 5000, 10_000, 10**9)] == pytest.approx([1e-6, 0.5000005, 1, 1])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    assert rates.get_last_lr() == pytest.approx([2e-6])


def test_a_schedule_of_uneven_lists_is_refused() -> None:
    with pytest.raises(InputError, match="lists of one length"):
        LambdaLinearScheduler([1], [0.0], [1.0], [0.0, 0.0], [10])
