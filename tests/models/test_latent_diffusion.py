"""The latent diffusion model: its schedule, its two parameterizations, and what reaches the networks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.generate import SAMPLERS
from ldm.models.diffusion.ddpm import LatentDiffusion, make_schedule
from tests.conftest import fill_by_name, golden, relative_error, rnd

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 2],
        "num_heads": 4,
    },
}
FREE = "ldm.modules.diffusionmodules.openaimodel.Free_UNetModel"
CROSS = {"use_spatial_transformer": True, "context_dim": 24}
FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "double_z": True,
            "z_channels": 4,
            "resolution": 32,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
        },
    },
}
COND_STAGE = {
    "target": "ldm.modules.encoders.words.WordEmbedder",
    "params": {"words": ["red", "circle"], "max_length": 6, "width": 24, "heads": 2, "layers": 1},
}
X, TIMES, CONTEXT = rnd(1, 2, 4, 8, 12), torch.tensor([981, 41]), rnd(2, 2, 5, 24)


def build(unet=CROSS, target=UNET["target"], cond_stage=COND_STAGE, **options):
    defaults = {"linear_start": 0.00085, "linear_end": 0.012, "scale_factor": 0.18215}
    defaults["conditioning_key"] = "crossattn"
    unet_config = {"target": target, "params": UNET["params"] | unet}
    return LatentDiffusion(unet_config, FIRST_STAGE, cond_stage, **defaults | options).eval()


@pytest.fixture(scope="module")
def model():
    """A small text-to-image model; the networks have weights, the schedule is Stable Diffusion's."""
    model = build()
    for part in (model.model, model.first_stage_model, model.cond_stage_model.transformer.encoder):
        fill_by_name(part)
    return model


def test_the_schedule_is_the_originals(model):
    np.testing.assert_allclose(model.alphas_cumprod, golden("schedule")["alphas_cumprod"], rtol=1e-6)


@pytest.mark.parametrize("timesteps", [200, 1000, 4000])
def test_free_us_stop_is_a_fraction_of_the_models_own_timesteps(timesteps):
    factors = {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2, "match": "resolution"}
    both = [
        build(CROSS | factors | more, FREE, timesteps=timesteps).model.diffusion_model
        for more in ({"stop": 0.5}, {"strength": 0.0})
    ]
    on, off = map(fill_by_name, both)
    for fraction, acts in ((0.9, True), (0.51, True), (0.49, False), (0.1, False)):
        t = torch.full((2,), int(fraction * timesteps))
        assert torch.equal(on(X, t, CONTEXT), off(X, t, CONTEXT)) != acts


def test_the_schedules_entries_belong_together(model):
    s = {name: value.double() for name, value in model.named_buffers() if "." not in name}
    a = s["alphas_cumprod"]
    expected = {
        "alphas_cumprod": (1 - s["betas"]).cumprod(0),
        "alphas_cumprod_prev": torch.cat([torch.ones(1), a[:-1]]),
        "sqrt_alphas_cumprod": a.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - a).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - a).log(),
        "sqrt_recip_alphas_cumprod": 1 / a.sqrt(),
        "sqrt_recipm1_alphas_cumprod": ((1 - a) / a).sqrt(),
    }
    for name, values in expected.items():
        assert torch.allclose(s[name], values, rtol=2e-4), name
    assert s["betas"][[0, -1]].tolist() == pytest.approx([0.00085, 0.012])


@pytest.mark.parametrize(
    ("start", "end", "timesteps", "said"),
    [
        (0.00085, 0.99, 1000, r"linear_end 0\.99 .*comes down to 0: lower"),
        (0.00085, 0.3, 1000, r"linear_end 0\.3 .*comes down to 0: lower"),
        (0.99, 0.00085, 1000, r"linear_start 0\.99, .*comes down to 0: lower"),
        (0.00085, 0.012, 100_000, r"timesteps 100000 .*comes down to 0: lower"),
        (1e-12, 0.02, 1000, "linear_start 1e-12, .*does not fall at each step: raise"),
        (1e-12, 1e-12, 1000, "linear_end 1e-12 .*does not fall at each step: raise"),
        (1e-4, 1e-9, 1000, "linear_end 1e-09 .*does not fall at each step: raise"),
    ],
)
def test_a_schedule_that_no_sampler_could_walk_down_is_refused(start, end, timesteps, said):
    with pytest.raises(InputError, match=said):
        make_schedule(timesteps, start, end)


class Still:
    """A model that never sees noise, of a schedule of its own."""

    parameterization, device = "eps", torch.device("cpu")

    def __init__(self, alphas_cumprod):
        self.alphas_cumprod, self.num_timesteps = alphas_cumprod, len(alphas_cumprod)

    def apply_model(self, x, t, c):
        return 0 * x


@pytest.mark.filterwarnings("error")
@given(
    start=st.floats(-9, -0.01).map(lambda exponent: 10**exponent),
    end=st.floats(-9, -0.01).map(lambda exponent: 10**exponent),
    timesteps=st.sampled_from([1, 2, 7, 30, 1000]),
    share=st.floats(0, 1),
)
def test_every_schedule_that_is_taken_each_sampler_walks_down(start, end, timesteps, share):
    try:
        model = Still(make_schedule(timesteps, start, end)["alphas_cumprod"])
    except InputError:
        return
    for sampler in SAMPLERS.values():
        S = max(1, round(share * min(timesteps, 30)))
        z, _ = sampler(model).sample(S, 1, (1, 2, 2), eta=sampler.max_eta, noise=torch.ones, verbose=False)
        assert z.isfinite().all()


def test_the_posterior_is_the_product_of_its_two_gaussians(model):
    # x_{t-1} is drawn around sqrt(a_{t-1}) x_0 and, given it, x_t around sqrt(1 - beta_t) x_{t-1}.
    s = {name: value.double()[1:] for name, value in model.named_buffers() if "." not in name}
    beta, a_prev = s["betas"], s["alphas_cumprod_prev"]
    variance = 1 / ((1 - beta) / beta + 1 / (1 - a_prev))
    assert torch.allclose(s["posterior_variance"], variance, rtol=1e-3)
    assert torch.allclose(s["posterior_mean_coef1"], variance * a_prev.sqrt() / (1 - a_prev), rtol=1e-3)
    assert torch.allclose(s["posterior_mean_coef2"], variance * (1 - beta).sqrt() / beta, rtol=1e-3)

    clipped = model.posterior_log_variance_clipped
    assert torch.allclose(clipped[1:].double(), variance.log(), atol=1e-3)
    assert clipped[0] == clipped[1]
    assert model.posterior_variance[0] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_schedule_stays_in_float32_whatever_the_weights(model, dtype):
    cast = copy.deepcopy(model).to(dtype)
    assert cast.dtype == dtype
    for name, values in model.named_buffers():
        if "." not in name:
            assert getattr(cast, name).dtype == torch.float32, name
            assert torch.equal(getattr(cast, name), values), name
    assert torch.equal(torch.nn.ModuleList([copy.deepcopy(model)]).half()[0].betas, model.betas)


@given(
    t=st.lists(st.integers(0, 999), min_size=2, max_size=2),
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(0.01, 100),
)
def test_noise_and_velocity_say_the_same(model, t, seed, size):
    t, x_0, eps = torch.tensor(t), size * rnd(seed, 2, 4, 3, 5).double(), rnd(seed + 1, 2, 4, 3, 5).double()
    x_t, v = model.q_sample(x_0, t, eps), model.get_v(x_0, eps, t)

    # Latents and noise come back, and x_t and v are one rotation of them.
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * (1 + size)}
    assert torch.allclose(model.predict_eps_from_z_and_v(x_t, t, v), eps, **tolerance)
    assert torch.allclose(model.predict_start_from_z_and_v(x_t, t, v), x_0, **tolerance)
    assert torch.allclose(x_t**2 + v**2, x_0**2 + eps**2, rtol=1e-5)


def test_q_sample_by_hand(model):
    x_t = model.q_sample(torch.ones(2, 4, 1, 1), TIMES, torch.full((2, 4, 1, 1), 2.0))
    for sample, t in zip(x_t, TIMES.tolist(), strict=True):
        a = golden("schedule")["alphas_cumprod"][t]
        assert sample.flatten().tolist() == pytest.approx(4 * [a**0.5 + 2 * (1 - a) ** 0.5])


def test_q_sample_draws_noise_of_its_own(model):
    torch.manual_seed(0)
    drawn = model.q_sample(X, TIMES)
    torch.manual_seed(0)
    assert torch.equal(drawn, model.q_sample(X, TIMES, torch.randn(X.shape)))


@pytest.mark.parametrize(
    "conditioning",
    [CONTEXT, [CONTEXT], [CONTEXT[:, :2], CONTEXT[:, 2:]], {"c_crossattn": [CONTEXT]}],
    ids=["tensor", "list", "list of two", "dict"],
)
def test_the_text_reaches_the_unet_in_every_form(model, conditioning):
    expected = model.model.diffusion_model(X, TIMES, context=CONTEXT)
    assert torch.equal(model.apply_model(X, TIMES, conditioning), expected)
    assert torch.equal(model.apply_model(X, TIMES, cond=conditioning), expected)  # as k-diffusion asks
    assert relative_error(model.apply_model(X, TIMES, 2 * CONTEXT), expected) > 1e-3


def test_a_picture_beside_the_latents_is_concatenated():
    picture = rnd(3, 2, 1, 8, 12)
    model = build({"in_channels": 5}, conditioning_key="concat")
    fill_by_name(model.model)
    expected = model.model.diffusion_model(torch.cat([X, picture], dim=1), TIMES)
    for conditioning in (picture, [picture], {"c_concat": [picture]}):
        assert torch.equal(model.apply_model(X, TIMES, conditioning), expected)


def test_a_picture_and_a_text_together():
    picture = rnd(3, 2, 1, 8, 12)
    model = build(CROSS | {"in_channels": 5}, conditioning_key="hybrid")
    fill_by_name(model.model)
    out = model.apply_model(X, TIMES, {"c_concat": [picture], "c_crossattn": [CONTEXT]})
    assert torch.equal(out, model.model.diffusion_model(torch.cat([X, picture], dim=1), TIMES, CONTEXT))


def test_conditioning_of_any_kind_is_cast_to_the_precision_of_the_latents():
    picture, vector = rnd(3, 2, 1, 8, 12), rnd(4, 2, 6)
    both = build(CROSS | {"in_channels": 5}, conditioning_key="hybrid")
    by_vector = build({"num_classes": "sequential", "adm_in_channels": 6}, conditioning_key="adm")
    for model, conditioning in (
        (both, {"c_concat": [picture], "c_crossattn": [CONTEXT]}),
        (by_vector, vector),
    ):
        fill_by_name(model.model)
        exact = model.apply_model(X, TIMES, conditioning)
        rounded = model.bfloat16().apply_model(X.bfloat16(), TIMES, conditioning)
        assert rounded.dtype == torch.bfloat16
        assert relative_error(rounded.float(), exact) < 0.05


def test_class_labels_and_no_conditioning_at_all():
    labels = torch.tensor([1, 4])
    by_class = build({"num_classes": 5}, conditioning_key="adm")
    free = build({}, cond_stage="__is_unconditional__", conditioning_key=None)
    for model in (by_class, free):
        fill_by_name(model.model)
    assert torch.equal(
        by_class.apply_model(X, TIMES, labels), by_class.model.diffusion_model(X, TIMES, y=labels)
    )
    assert torch.equal(free.apply_model(X, TIMES, None), free.model.diffusion_model(X, TIMES))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "concat"),
        ({"concat_mode": True}, "concat"),
        ({"concat_mode": False}, "crossattn"),
        ({"concat_mode": True, "conditioning_key": "crossattn"}, "crossattn"),
        ({"cond_stage": "__is_first_stage__"}, "concat"),
        ({"cond_stage": "__is_unconditional__"}, None),
        ({"cond_stage": "__is_unconditional__", "concat_mode": False}, None),
        ({"cond_stage": "__is_unconditional__", "conditioning_key": "crossattn"}, None),
        ({"cond_stage": "__is_unconditional__", "force_null_conditioning": True}, "concat"),
    ],
)
def test_a_conditioning_key_that_is_not_given_is_the_originals(given, key):
    assert build(**{"conditioning_key": None} | given).model.conditioning_key == key


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_configs_without_a_conditioning_key_are_sampled(sampler):
    schedule = {"linear_start": 0.0015, "linear_end": 0.0155}
    free = LatentDiffusion(UNET, FIRST_STAGE, "__is_unconditional__", concat_mode=False, **schedule).eval()
    wide = UNET | {"params": UNET["params"] | {"in_channels": 7}}
    beside = LatentDiffusion(wide, FIRST_STAGE, {"target": "torch.nn.Identity"}, **schedule).eval()
    for model, conditioning in ((free, None), (beside, rnd(3, 2, 3, 8, 12))):
        z, _ = SAMPLERS[sampler](model).sample(2, 2, (4, 8, 12), conditioning, verbose=False)
        assert z.isfinite().all()


@pytest.mark.parametrize(("name", "value"), [("parameterization", "x0"), ("conditioning_key", "crossatn")])
def test_an_unknown_choice_is_named(name, value):
    with pytest.raises(InputError, match=f"{name} '{value}'"):
        build(**{name: value})


def test_latents_and_pictures_are_cast_to_the_weights_precision(model):
    half = copy.deepcopy(model).bfloat16()
    out = half.apply_model(X, TIMES, CONTEXT.bfloat16())
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), model.apply_model(X, TIMES, CONTEXT)) < 0.05
    assert half.decode_first_stage(X).dtype == torch.bfloat16
    assert half.encode_first_stage(rnd(4, 1, 3, 16, 24)).mean.dtype == torch.bfloat16
    assert half.get_learned_conditioning(["red"]).dtype == torch.bfloat16


def test_the_first_stage_is_scaled_both_ways(model):
    posterior = model.encode_first_stage(rnd(4, 1, 3, 16, 24))
    z = model.get_first_stage_encoding(posterior.mode())
    assert torch.allclose(z, 0.18215 * posterior.mean)
    assert relative_error(model.decode_first_stage(z), model.first_stage_model.decode(posterior.mean)) < 1e-5
    torch.manual_seed(0)
    drawn = model.get_first_stage_encoding(posterior)
    assert torch.equal(drawn, 0.18215 * posterior.sample(torch.Generator().manual_seed(0)))


def test_prompts_become_a_context_and_the_ema_scope_changes_nothing(model):
    with model.ema_scope("Plotting"):
        context = model.get_learned_conditioning(["red circle", ""])
    assert context.shape == (2, 6, 24)
    assert torch.equal(context, model.cond_stage_model(["red circle", ""]))


def test_an_unconditional_model_has_no_text_encoder():
    model = LatentDiffusion(UNET, FIRST_STAGE, "__is_unconditional__", conditioning_key=None)
    assert not [name for name in model.state_dict() if name.startswith("cond_stage_model")]
