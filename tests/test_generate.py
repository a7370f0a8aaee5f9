"""Prompts to pictures: what noise each starts from, how guidance is applied, what is refused and why."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ldm.checkpoint import build_on_meta
from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.generate import (
    LARGEST,
    SAMPLERS,
    Sampling,
    check,
    decode,
    denoise,
    generate,
    read_seed,
    seeded_noise,
)
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.parameterization import predicts
from ldm.strips import decode_in_strips
from ldm.util import instantiate_from_config

SMALL = Sampling(height=32, width=64, steps=4, scale=5.0)
PROMPTS = ["a small blue star", "a large red ring", "a green heart on a white background"]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return instantiate_from_config(load_config("freeu_tiny.yaml").model).eval()


def latents(model: LatentDiffusion, prompts: list[str], seeds: list[int], sampling: Sampling) -> Tensor:
    *_, last = denoise(model, prompts, [""] * len(prompts), seeds, sampling)
    return last.x


def test_noise_is_drawn_for_each_picture_from_its_own_seed() -> None:
    noise = seeded_noise([7, 3])
    first, second = noise((2, 4, 8, 6)), noise((2, 4, 8, 6))
    for row, seed in enumerate([7, 3]):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(first[row], torch.randn(4, 8, 6, generator=generator))
        assert torch.equal(second[row], torch.randn(4, 8, 6, generator=generator))


def test_the_global_generator_is_neither_read_nor_moved(model: LatentDiffusion) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = generate(model, PROMPTS[:1], [5], replace(SMALL, eta=1.0))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert np.array_equal(one, generate(model, PROMPTS[:1], [5], replace(SMALL, eta=1.0)))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_batch_s_latents_are_those_of_its_pictures_alone(model: LatentDiffusion, eta: float) -> None:
    sampling = replace(SMALL, eta=eta)
    together = latents(model, PROMPTS, [42, 43, 44], sampling)
    for row, prompt in enumerate(PROMPTS):
        alone = latents(model, [prompt], [42 + row], sampling)
        assert torch.allclose(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_a_model_draws_where_it_is_whatever_the_default_device(model: LatentDiffusion) -> None:
    how = replace(SMALL, eta=0.5)
    expected = generate(model, PROMPTS[:1], [5], how)
    with torch.device("meta"):
        assert np.array_equal(generate(model, PROMPTS[:1], [5], how), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_means_one_picture_whatever_the_default_dtype(
    sampler: str, dtype: torch.dtype, model: LatentDiffusion
) -> None:
    how = replace(SMALL, sampler=sampler, eta=SAMPLERS[sampler].max_eta / 2)
    expected = generate(model, PROMPTS[:1], [5], how)
    torch.set_default_dtype(dtype)
    try:
        assert np.array_equal(generate(model, PROMPTS[:1], [5], how), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_denoising_is_guided_ddim(model: LatentDiffusion) -> None:
    """DDIM's eq. 12 and classifier-free guidance, written out once more for a v-model."""
    x = torch.randn(1, model.channels, 4, 8, generator=torch.Generator().manual_seed(9))
    without, given = (model.get_learned_conditioning([text]) for text in ("red", PROMPTS[0]))
    a = model.alphas_cumprod.double()
    for t, after in [(751, 501), (501, 251), (251, 1), (1, 0)]:
        v, guide = (model.apply_model(x, torch.tensor([t]), c).double() for c in (without, given))
        v = v + SMALL.scale * (guide - v)
        x0 = a[t].sqrt() * x - (1 - a[t]).sqrt() * v
        eps = a[t].sqrt() * v + (1 - a[t]).sqrt() * x
        x = (a[after].sqrt() * x0 + (1 - a[after]).sqrt() * eps).float()
    *_, last = denoise(model, PROMPTS[:1], ["red"], [9], SMALL)
    assert (last.x - x).abs().max() / x.abs().max() < 1e-4


@pytest.mark.parametrize(("scale", "batch"), [(5.0, 4), (0.0, 4), (1.0, 2), (1, 2)])
def test_guidance_of_one_skips_the_unconditional_half(
    scale: float, batch: int, model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, texts = [], []
    apply_model, embed = model.apply_model, model.get_learned_conditioning
    monkeypatch.setattr(model, "apply_model", lambda x, t, c: batches.append(len(x)) or apply_model(x, t, c))
    monkeypatch.setattr(model, "get_learned_conditioning", lambda c: texts.append(c) or embed(c))
    generate(model, PROMPTS[:2], [1, 2], replace(SMALL, scale=scale))
    assert batches == [batch] * 4
    assert texts == ([PROMPTS[:2]] if batch == 2 else [PROMPTS[:2], ["", ""]])


def test_each_step_is_heard_of(model: LatentDiffusion) -> None:
    heard: list[tuple[int, int]] = []
    generate(model, PROMPTS[:1], [1], SMALL, on_step=lambda step: heard.append((step.index, step.total)))
    assert heard == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_are_bytes_of_the_size_asked_for(sampler: str, model: LatentDiffusion) -> None:
    pictures = generate(model, PROMPTS[:2], [1, 2], replace(SMALL, sampler=sampler))
    assert [(one.shape, one.dtype) for one in pictures] == [((32, 64, 3), np.uint8)] * 2
    assert all(one.std() > 1 for one in pictures)
    assert not np.array_equal(*pictures)


def test_decoding_rounds_to_bytes_and_clips(model: LatentDiffusion) -> None:
    latent = 3 * torch.randn(2, model.channels, 4, 8, generator=torch.Generator().manual_seed(3))
    for picture, pixels in zip(decode(model, latent), model.decode_first_stage(latent), strict=True):
        wanted = np.clip(np.rint(127.5 * (pixels.permute(1, 2, 0).double().numpy() + 1)), 0, 255)
        assert np.abs(picture - wanted).max() <= 1
        assert (picture == wanted).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "height of 100 pixels is no multiple of 32 .*: take 96"),
        ({"width": 31}, "width of 31 .* take 32"),
        ({"width": 0}, "width of 0 .* take 32"),
        ({"height": -64}, "height of -64 .* take 32"),
        ({"height": 10**30}, f"height of 10+ .* take {LARGEST}"),
        ({"steps": 0}, "0 sampling steps"),
        ({"steps": -1}, "-1 sampling steps"),
        ({"steps": 1001}, "1001 sampling steps .* 1 to 1000"),
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": math.inf}, "scale is inf"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": -0.1}, "eta is -0.1"),
        ({"eta": math.nan}, "eta is nan"),
        ({"sampler": "plms", "eta": 0.5}, "eta is 0.5"),
        ({"sampler": ["ddim"]}, r"no sampler \['ddim'\]: take one of"),
        ({"steps": 2.0}, "steps is 2.0: give a whole number"),
        ({"steps": "2"}, "steps is '2': give a whole number"),
        ({"steps": None}, "steps is None: give a whole number"),
        ({"steps": True}, "steps is True: give a whole number"),
        ({"height": 64.0}, "height is 64.0: give a whole number"),
        ({"width": "64"}, "width is '64': give a whole number"),
        ({"scale": "7"}, "scale is '7': give a finite number"),
        ({"scale": True}, "scale is True: give a finite number"),
        ({"scale": 10**400}, "scale is 10+: give a finite number"),
        ({"eta": None}, "eta is None: give a finite number"),
        ({"sampler": "euler"}, "no sampler 'euler': take one of ddim, plms, dpm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    change: dict[str, float], message: str, model: LatentDiffusion
) -> None:
    with pytest.raises(InputError, match=message):
        check(replace(SMALL, **change), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "a red star"}, "prompts is the text 'a red star': give a list"),
        ({"negative_prompts": "blur"}, "negative_prompts is the text 'blur'"),
        ({"prompts": []}, "There are 0 prompts, 1 seeds and 0 negative prompts"),
        ({"seeds": [1, 2]}, "There are 1 prompts, 2 seeds and 1 negative"),
        ({"negative_prompts": ["", ""]}, "1 seeds and 2 negative prompts"),
        ({"seeds": 42}, "seeds is 42: give a list of seeds"),
        ({"seeds": [1.5]}, "The seed is 1.5: give a whole number"),
        ({"seeds": [2**64]}, r"The seed is 18446744073709551616: .* from -2\*\*63 to 2\*\*64 - 1"),
        ({"seeds": [-(2**63) - 1]}, "The seed is -9223372036854775809: give a whole number from"),
        ({"prompts": [None]}, "prompts holds None, which is no text: give texts"),
        ({"prompts": [b"star"]}, "prompts holds b'star', which is no text"),
        ({"negative_prompts": [7]}, "negative_prompts holds 7, which is no text"),
        ({"sampling": replace(SMALL, height=100)}, "height of 100"),
    ],
)
def test_pictures_that_cannot_be_are_refused_before_any_work(
    change: dict, message: str, model: LatentDiffusion
) -> None:
    asked = {"prompts": ["a red star"], "seeds": [1], "sampling": SMALL} | change
    with pytest.raises(InputError, match=message):
        generate(model, **asked)


def test_a_seed_may_be_numpys(model: LatentDiffusion) -> None:
    pictures = [generate(model, PROMPTS[:1], seeds, SMALL)[0] for seeds in ([5], np.arange(5, 6))]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_every_seed_that_torch_takes_is_taken(seed: int) -> None:
    assert torch.Generator().manual_seed(read_seed(seed)).initial_seed() == seed % 2**64


def test_settings_and_prompts_may_be_numpys(model: LatentDiffusion) -> None:
    whole, real = np.array([32, 64, 4], np.uint16), np.array([5.0, 0.0], np.float32)
    numpys = Sampling(*whole, real[0], np.str_("ddim"), real[1])
    asked = [(PROMPTS[:1], SMALL), (np.array(PROMPTS[:1]), numpys)]
    assert np.array_equal(*[generate(model, prompts, [5], sampling) for prompts, sampling in asked])


def test_a_compiled_unet_draws_in_the_place_of_the_plain_one(model: LatentDiffusion) -> None:
    expected = generate(model, PROMPTS[:1], [5], SMALL)
    compiled = copy.deepcopy(model)
    compiled.model.diffusion_model = torch.compile(compiled.model.diffusion_model, backend="eager")
    with torch.compiler.set_stance("force_eager"):  # compiling itself takes a minute
        assert np.array_equal(generate(compiled, PROMPTS[:1], [5], SMALL), expected)


def test_a_model_that_draws_no_prompts_is_refused(model: LatentDiffusion) -> None:
    keyless = build_on_meta(load_config("tiny", ["model.params.conditioning_key=null"]).model)
    for other, said in (
        (model.first_stage_model, "The model is a AutoencoderKL: .* has to be a LatentDiffusion"),
        (keyless, "conditioning_key is 'concat', .* has to say `conditioning_key: crossattn`"),
    ):
        with pytest.raises(InputError, match=said):
            generate(other, PROMPTS[:1], [1], SMALL)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 999, 1000])
def test_every_number_of_steps_up_to_the_model_s_is_taken(steps: int, model: LatentDiffusion) -> None:
    check(replace(SMALL, steps=steps), model)


def test_the_largest_side_is_taken(model: LatentDiffusion) -> None:
    check(Sampling(LARGEST, LARGEST), model)


def test_whoever_records_gradients_draws_the_same_and_nothing_is_kept_for_them(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.strips.strips_pay", lambda *_: False)  # so that pictures are decoded whole, too
    expected = generate(model, PROMPTS[:1], [5], SMALL)
    kept: list[torch.Size] = []
    with torch.enable_grad(), saved_tensors_hooks(lambda it: kept.append(it.shape), lambda _: None):
        assert next(model.parameters()).requires_grad
        assert np.array_equal(generate(model, PROMPTS[:1], [5], SMALL), expected)
        decode_in_strips(model.first_stage_model, torch.zeros(1, model.channels, 4, 4))
        predicts(model)
    assert not kept


def test_stable_diffusion_takes_multiples_of_64_not_only_squares() -> None:
    model = build_on_meta(load_config("v1-inference").model)
    check(Sampling(512, 768), model)
    check(Sampling(64, 1088), model)
    with pytest.raises(InputError, match=r"width of 680 .* 64 .* take 704"):
        check(Sampling(512, 680), model)


def test_what_made_numbers_overflow_is_named() -> None:
    sick = instantiate_from_config(load_config("freeu_tiny.yaml").model).eval()
    bias = sick.model.diffusion_model.out[2].bias
    healthy = bias.clone()

    def drawn(**change: float) -> None:
        generate(sick, PROMPTS[:1], [1], replace(SMALL, **change))

    # NaN is in the file; infinity in half precision may be a number too large for it.
    bias[0] = math.nan
    for model in (sick.float(), sick.half(), sick.bfloat16()):
        with pytest.raises(InputError, match=r"after step 1 of 4: .*damaged, its model\.diff.*out\.2\.bias"):
            generate(model, PROMPTS[:1], [1], SMALL)
    sick.float().model.diffusion_model.out[2].bias[0] = 1e5
    with pytest.raises(InputError, match=r"out\.2\.bias is too large for float16; try --precision full"):
        generate(sick.half(), PROMPTS[:1], [1], SMALL)

    sick.float().model.diffusion_model.out[2].bias.copy_(healthy)
    with pytest.raises(InputError, match=r"after step \d of 4: too strong a --scale or FreeU"):
        drawn(scale=1e38)
    with pytest.raises(InputError, match=r"after step \d of 4: too large for bfloat16; try --precision full"):
        generate(sick.bfloat16(), PROMPTS[:1], [1], replace(SMALL, scale=1e38))
    sick.float().first_stage_model.decoder.conv_out.weight[0, 0, 0, 0] = math.inf
    damaged = r"decoded picture .* damaged, its first_stage_model.decoder.conv_out.weight"
    with pytest.raises(InputError, match=damaged):
        drawn()
    sick.cond_stage_model.transformer.final_layer_norm.bias[3] = math.inf
    damaged = r"answer to 'a small blue star' .* damaged, its cond_.*final_layer_norm.bias"
    with pytest.raises(InputError, match=damaged):
        drawn()


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_word_without_numbers_stops_the_prompts_that_have_it(scale: float) -> None:
    model = instantiate_from_config(load_config("tiny.yaml").model).eval()
    words = model.cond_stage_model
    table = next(p for name, p in words.named_parameters() if name.endswith("token_embedding.weight"))
    table[words.ids["star"]] = math.nan
    sampling = replace(SMALL, scale=scale, steps=1)
    generate(model, [PROMPTS[1]], [1], sampling)
    with pytest.raises(InputError, match=r"answer to 'a small blue star' .*token_embedding.weight"):
        generate(model, [PROMPTS[1], PROMPTS[0]], [1, 2], sampling)
    if scale != 1:
        with pytest.raises(InputError, match="answer to 'no star'"):
            generate(model, [PROMPTS[1]], [1], sampling, negative_prompts=["no star"])
