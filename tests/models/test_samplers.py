from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from ldm.errors import InputError
from ldm.models.diffusion.ddim import DDIMSampler, ddim_step
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.schedule import levels, linear_betas
from tests.conftest import fill_by_name, golden, golden_parameters, relative_error, rnd

SAMPLERS = {"ddim": DDIMSampler, "plms": PLMSSampler, "dpm": DPMSolverSampler}
SHAPE = (4, 6, 5)

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


class Model:
    """Stable Diffusion's schedule around any function of (x, t, c); keeps what the function was given."""

    num_timesteps = 1000
    device = torch.device("cpu")

    def __init__(self, network, parameterization="eps"):
        self.network = network
        self.parameterization = parameterization
        self.alphas_cumprod = torch.cumprod(1 - linear_betas(1000, 0.00085, 0.012), 0).float()
        self.calls = []

    def apply_model(self, x, t, c):
        self.calls.append((x, t))
        return self.network(x, t, c)


class GaussianModel(Model):
    """The exact model of data drawn from N(mean, std²), with a mean for each channel; c moves the mean."""

    mean = torch.linspace(-1, 2, 4)[:, None, None]
    std = 0.5

    def __init__(self, parameterization="eps"):
        super().__init__(self.predict, parameterization)

    def alpha_sigma(self, t):
        log_alpha = np.interp(t, np.arange(1000), 0.5 * np.log(self.alphas_cumprod.double().numpy()))
        alpha = torch.as_tensor(np.exp(log_alpha)).float()[..., None, None, None]
        return alpha, (1 - alpha**2).sqrt()

    def predict(self, x, t, c):
        alpha, sigma = self.alpha_sigma(t.numpy())
        mean = self.mean if c is None else self.mean + c
        x0 = mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * mean)
        eps = (x - alpha * x0) / sigma
        return eps if self.parameterization == "eps" else alpha * eps - sigma * x0

    def exact(self, x, t):
        """Where the probability-flow ODE takes x from time t to 0: its quantiles never change."""
        alpha, sigma = self.alpha_sigma(t)
        quantile = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2).sqrt()
        alpha, sigma = self.alpha_sigma(0)
        return alpha * self.mean + quantile * (alpha**2 * self.std**2 + sigma**2).sqrt()


@pytest.fixture(scope="module")
def tiny_unet():
    """The goldens' network, with their weights by parameter name."""
    unet = fill_by_name(UNetModel(**golden_parameters("unet_tiny")))
    return lambda x, t, c: unet(x, t, context=c)


@pytest.mark.parametrize(
    ("parameterization", "seed", "run"),
    [
        *(("eps", 20, run) for run in ("ddim10", "ddim20", "plms10", "plms20", "dpm10", "dpm20")),
        *(("v", 21, run) for run in ("ddim10", "ddim20", "dpm10", "dpm20")),
    ],
)
def test_trajectories_are_the_originals(tiny_unet, parameterization, seed, run):
    samples, _ = SAMPLERS[run[:-2]](Model(tiny_unet, parameterization)).sample(
        int(run[-2:]),
        2,
        (4, 16, 16),
        rnd(seed + 100, 2, 11, 48),
        x_T=rnd(seed, 2, 4, 16, 16),
        unconditional_guidance_scale=7.5,
        unconditional_conditioning=rnd(seed + 200, 2, 11, 48),
    )
    assert relative_error(samples, golden(f"traj_{parameterization}")[run]) < 1e-3


def error(sampler, S):
    """How far S steps end from the exact solution of the ODE, on the Gaussian's model."""
    model, x_T = GaussianModel(), rnd(0, 2, *SHAPE)
    samples, _ = sampler(model).sample(S, 2, SHAPE, x_T=x_T)
    return relative_error(samples, model.exact(x_T, sampler(model).timesteps(S)[0]))


@each_sampler
def test_the_originals_ways_to_make_a_sampler_make_the_same_one(sampler):
    x_T = rnd(0, 2, *SHAPE)
    expected, _ = sampler(GaussianModel()).sample(3, 2, SHAPE, x_T=x_T)
    cuda = torch.device("cuda")
    for words in ({"schedule": "linear"}, {"device": cuda}, {"schedule": "linear", "device": "cpu"}):
        assert torch.equal(sampler(GaussianModel(), **words).sample(3, 2, SHAPE, x_T=x_T)[0], expected)


@each_sampler
def test_many_steps_reach_the_exact_solution(sampler):
    assert error(sampler, 500) < 5e-3


def test_the_higher_orders_gain_more_from_more_steps():
    gain = {name: error(sampler, 100) / error(sampler, 500) for name, sampler in SAMPLERS.items()}
    assert 4 < gain["ddim"] < 6  # order 1 gains 5, order 2 gains 25
    assert gain["dpm"] > 10


def test_the_higher_orders_are_closer_in_few_steps():
    assert error(PLMSSampler, 14) < error(DDIMSampler, 14) / 5
    assert error(DPMSolverSampler, 14) < error(DDIMSampler, 14)


@pytest.mark.parametrize(("S", "order"), [(14, 1), (15, 2)])
def test_dpm_ends_with_a_step_of_order_1_in_fewer_than_15(S, order):
    model = GaussianModel()
    samples, _ = DPMSolverSampler(model).sample(S, 2, SHAPE, x_T=rnd(0, 2, *SHAPE))
    x, t = model.calls[-1]
    now, after = levels(model.alphas_cumprod, [t[0].item(), 0])
    first_order, _ = ddim_step(x, model.apply_model(x, t, None), now, after)
    assert (relative_error(samples, first_order) < 1e-5) == (order == 1)


def test_fresh_noise_keeps_the_distribution():
    samples, _ = DDIMSampler(GaussianModel()).sample(
        200, 1000, (4, 1, 1), eta=1.0, noise=partial(torch.randn, generator=torch.Generator().manual_seed(0))
    )
    assert torch.allclose(samples.mean(0), GaussianModel.mean, atol=0.06)
    assert torch.allclose(samples.std(0), torch.tensor(GaussianModel.std), rtol=0.1)


@each_sampler
@pytest.mark.parametrize("S", [1, 2, 3, 7, 20])
def test_a_v_model_of_the_same_data_gives_the_same_samples(sampler, S):
    eps, v = (
        sampler(GaussianModel(kind)).sample(S, 2, SHAPE, x_T=rnd(0, 2, *SHAPE))[0] for kind in ("eps", "v")
    )
    assert relative_error(v, eps) < 1e-4


def diffusers_scheduler(cls, **options):
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return cls(steps_offset=1, set_alpha_to_one=False, **schedule, **options)


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_ddim_with_fresh_noise_is_as_in_diffusers(parameterization):
    scheduler = diffusers_scheduler(
        DDIMScheduler,
        clip_sample=False,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[parameterization],
    )
    scheduler.set_timesteps(10)
    model = GaussianModel(parameterization)
    x = x_T = rnd(0, 2, *SHAPE)
    for i, t in enumerate(scheduler.timesteps):
        out = model.apply_model(x, t.expand(2), None)
        x = scheduler.step(out, t, x, eta=0.7, variance_noise=rnd(i + 1, 2, *SHAPE)).prev_sample

    seeds = count(1)
    samples, _ = DDIMSampler(model).sample(
        10, 2, SHAPE, x_T=x_T, eta=0.7, noise=lambda shape: rnd(next(seeds), *shape)
    )
    assert relative_error(samples, x) < 1e-4


@pytest.mark.parametrize("S", [2, 5, 20])
def test_plms_is_as_in_diffusers(S):
    scheduler = diffusers_scheduler(PNDMScheduler, skip_prk_steps=True)
    scheduler.set_timesteps(S)
    model = GaussianModel()
    x = x_T = rnd(0, 2, *SHAPE)
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.expand(2), None), t, x).prev_sample
    samples, _ = PLMSSampler(model).sample(S, 2, SHAPE, x_T=x_T)
    assert relative_error(samples, x) < 1e-4


@each_sampler
def test_a_picture_does_not_depend_on_its_batch(sampler):
    def sample(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise(shape):
            return torch.stack([torch.randn(shape[1:], generator=g) for g in generators])

        return sampler(GaussianModel()).sample(10, len(seeds), SHAPE, eta=sampler.max_eta, noise=noise)[0]

    assert torch.equal(sample([5, 6, 7])[1], sample([6])[0])


@each_sampler
@pytest.mark.parametrize(
    ("scale", "unconditional", "factor"), [(1.0, True, 1), (7.5, False, 1), (7.5, True, 2), (0.0, True, 2)]
)
def test_the_unconditional_half_is_run_only_where_it_counts(sampler, scale, unconditional, factor):
    model = GaussianModel()
    sampler(model).sample(
        4,
        3,
        SHAPE,
        torch.ones(3, 1, 1, 1),
        unconditional_guidance_scale=scale,
        unconditional_conditioning=torch.zeros(3, 1, 1, 1) if unconditional else None,
    )
    assert {(len(x), len(t)) for x, t in model.calls} == {(3 * factor, 3 * factor)}


def hybrid(c):
    return {"c_concat": [c / 3], "c_crossattn": [c / 3, c / 3]}


@each_sampler
@pytest.mark.parametrize("wrap", [torch.clone, hybrid])
def test_guidance_extrapolates_from_unconditional_to_conditional(sampler, wrap):
    # The Gaussian's noise estimate is linear in its mean, so that guidance by 3 triples what c moves it by.
    gaussian = GaussianModel()

    def network(x, t, c):
        return gaussian.predict(x, t, sum(c["c_concat"] + c["c_crossattn"]) if wrap is hybrid else c)

    c, u, x_T = rnd(1, 2, 1, 1, 1), rnd(2, 2, 1, 1, 1), rnd(3, 2, *SHAPE)
    guided, _ = sampler(Model(network)).sample(
        10, 2, SHAPE, wrap(c), x_T=x_T, unconditional_guidance_scale=3.0, unconditional_conditioning=wrap(u)
    )
    plain, _ = sampler(Model(network)).sample(10, 2, SHAPE, wrap(u + 3 * (c - u)), x_T=x_T)
    assert relative_error(guided, plain) < 1e-4


@each_sampler
@pytest.mark.parametrize(
    ("rows", "without", "told"),
    [
        (1, 1, "^conditioning is for 1 samples, but 2 are drawn: give one for each"),
        (3, 1, "^conditioning is for 3 samples"),  # four together, as two samples guided
        (2, 1, "^unconditional_conditioning is for 1 samples, but 2"),
    ],
)
@pytest.mark.parametrize("wrap", [torch.clone, hybrid])
def test_a_guided_conditioning_for_another_number_of_samples_is_refused(sampler, wrap, rows, without, told):
    model = GaussianModel()
    with pytest.raises(InputError, match=told):
        sampler(model).sample(
            4,
            2,
            SHAPE,
            wrap(rnd(1, rows, 1, 1, 1)),
            unconditional_guidance_scale=3.0,
            unconditional_conditioning=wrap(rnd(2, without, 1, 1, 1)),
        )
    assert not model.calls


@each_sampler
def test_steps_come_one_by_one(sampler):
    model = GaussianModel()
    steps = sampler(model).steps(20, rnd(0, 2, *SHAPE))
    assert not model.calls

    taken = list(steps)
    assert [step.index for step in taken] == list(range(20))
    assert {step.total for step in taken} == {20}
    times = [step.t for step in taken]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert all(step.x.shape == step.pred_x0.shape == (2, *SHAPE) for step in taken)

    samples, _ = sampler(model).sample(20, 2, SHAPE, x_T=rnd(0, 2, *SHAPE))
    assert torch.equal(taken[-1].x, samples)


@each_sampler
def test_sampling_builds_no_graph_and_leaves_the_callers_gradients_on(sampler):
    weight = torch.ones((), requires_grad=True)
    with torch.enable_grad():
        for step in sampler(Model(lambda x, t, c: weight * x)).steps(4, rnd(0, 1, *SHAPE)):
            assert torch.is_grad_enabled()
            assert not step.x.requires_grad


@each_sampler
def test_callbacks_and_intermediates_are_the_originals(sampler, capfd):
    heard, seen = [], []
    x_T = rnd(0, 2, *SHAPE)
    samples, kept = sampler(GaussianModel()).sample(
        10,
        2,
        SHAPE,
        x_T=x_T,
        log_every_t=4,
        callback=heard.append,
        img_callback=lambda pred_x0, i: seen.append((i, pred_x0)),
    )
    assert heard == [i for i, _ in seen] == list(range(10))
    assert torch.equal(kept["x_inter"][0], x_T)
    assert torch.equal(kept["x_inter"][-1], samples)

    # Counted down from 9 to 0, steps 9 (the first), 8, 4 and 0 are kept.
    for pred_x0, i in zip(kept["pred_x0"][1:], [0, 1, 5, 9], strict=True):
        assert torch.equal(pred_x0, seen[i][1])
    assert capfd.readouterr().err == ""  # no bar where there is no terminal


@each_sampler
def test_a_half_precision_network_is_sampled_in_float32(sampler):
    def sample(read):
        model = Model(lambda x, t, c: read(gaussian.predict(x, t, c).half()))
        samples, _ = sampler(model).sample(
            20,
            2,
            SHAPE,
            torch.ones(2, 1, 1, 1),
            x_T=rnd(0, 2, *SHAPE).half(),
            unconditional_guidance_scale=7.5,
            unconditional_conditioning=torch.zeros(2, 1, 1, 1),
        )
        assert {x.dtype for x, _ in model.calls} == {samples.dtype} == {torch.float32}
        return samples

    gaussian = GaussianModel()
    assert torch.equal(sample(torch.Tensor.half), sample(torch.Tensor.float))


def test_ddim_asks_at_whole_and_dpm_solver_at_fractional_times():
    def asked(sampler):
        model = GaussianModel()
        sampler(model).sample(4, 1, SHAPE)
        return torch.stack([t[0] for _, t in model.calls])

    assert torch.equal(asked(DDIMSampler), torch.tensor([751, 501, 251, 1]))
    assert torch.equal(asked(PLMSSampler), torch.tensor([751, 501, 501, 251, 1]))
    assert torch.equal(asked(DPMSolverSampler), torch.tensor([999, 749.25, 499.5, 249.75]))


@each_sampler
@pytest.mark.parametrize("S", [1, 2, 3, 999, 1000])
def test_every_number_of_steps_gives_numbers(sampler, S):
    samples, _ = sampler(GaussianModel()).sample(S, 1, SHAPE, x_T=rnd(0, 1, *SHAPE))
    assert samples.isfinite().all()


@each_sampler
@pytest.mark.parametrize("S", [0, -5, 1001])
def test_a_number_of_steps_out_of_range_is_refused_before_the_first(sampler, S):
    with pytest.raises(InputError, match=f"{S} .*1 to 1000"):
        sampler(GaussianModel()).steps(S, rnd(0, 1, *SHAPE))


@pytest.mark.parametrize(
    ("sampler", "eta"),
    [
        (DDIMSampler, 1.5),
        (DDIMSampler, -0.1),
        (DDIMSampler, float("nan")),
        (PLMSSampler, 0.5),
        (DPMSolverSampler, 1.0),
    ],
)
def test_an_eta_the_method_has_no_place_for_is_refused(sampler, eta):
    with pytest.raises(InputError, match=f"eta is {eta}.*{sampler.__name__}"):
        sampler(GaussianModel()).sample(10, 1, SHAPE, eta=eta)


KNOWN = torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0]]).expand(6, 5)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_inpainting_by_ddim_lays_the_noised_known_part_in_before_each_step(tiny_unet, eta):
    mask, x0, x, context = (
        rnd(7, 2, 1, 16, 16) > 0,
        rnd(1, 2, 4, 16, 16),
        rnd(2, 2, 4, 16, 16),
        rnd(3, 2, 11, 48),
    )
    model = Model(tiny_unet)

    def draws():
        return partial(torch.randn, generator=torch.Generator().manual_seed(0))

    samples, _ = DDIMSampler(model).sample(
        5, 2, (4, 16, 16), context, x_T=x, mask=mask, x0=x0, eta=eta, noise=draws()
    )

    noise, a, inside = draws(), model.alphas_cumprod.double(), mask.double()
    with torch.no_grad():
        for now, after in [(801, 601), (601, 401), (401, 201), (201, 1), (1, 0)]:
            known = a[now].sqrt() * x0 + (1 - a[now]).sqrt() * noise(x.shape)
            x = inside * known + (1 - inside) * x
            eps = tiny_unet(x.float(), torch.tensor([now, now]), context)
            pred_x0 = (x - (1 - a[now]).sqrt() * eps) / a[now].sqrt()
            variance = eta**2 * (1 - a[after]) / (1 - a[now]) * (1 - a[now] / a[after])
            x = a[after].sqrt() * pred_x0 + (1 - a[after] - variance).sqrt() * eps
            x = x + variance.sqrt() * noise(x.shape) if eta else x
    assert relative_error(samples, x) < 1e-4


@pytest.mark.parametrize("S", [2, 5])
def test_inpainting_by_plms_is_as_with_diffusers_scheduler(S):
    scheduler = diffusers_scheduler(PNDMScheduler, skip_prk_steps=True)
    scheduler.set_timesteps(S)
    model, x0, x_T = GaussianModel(), rnd(1, 2, *SHAPE), rnd(0, 2, *SHAPE)
    x, seeds = x_T, count(1)
    for t in scheduler.timesteps:  # the first estimate asks twice, and is one of its timesteps more
        x = KNOWN * scheduler.add_noise(x0, rnd(next(seeds), 2, *SHAPE), t[None]) + (1 - KNOWN) * x
        x = scheduler.step(model.apply_model(x, t.expand(2), None), t, x).prev_sample
    seeds = count(1)
    samples, _ = PLMSSampler(model).sample(
        S, 2, SHAPE, x_T=x_T, mask=KNOWN, x0=x0, noise=lambda shape: rnd(next(seeds), *shape)
    )
    assert relative_error(samples, x) < 1e-4


@each_sampler
def test_the_known_part_is_as_noisy_as_the_schedule_whenever_the_network_is_asked(sampler):
    x0, drawn, gaussian = rnd(1, 2, *SHAPE), [], GaussianModel()

    def noise(shape):
        drawn.append(rnd(len(drawn) + 10, *shape))
        return drawn[-1]

    def network(x, t, c):  # knows x0, so that it sees all noise
        alpha, sigma = gaussian.alpha_sigma(t.numpy())
        return (x - alpha * x0[0]) / sigma

    # Half precision and a single picture for the batch, as scripts have them.
    mask, known = torch.ones(1, 1, 6, 5).half(), x0[:1].double()
    model = Model(network)
    samples, _ = sampler(model).sample(5, 2, SHAPE, x_T=rnd(0, 2, *SHAPE), mask=mask, x0=known, noise=noise)
    assert len(drawn) == len(model.calls) == (6 if sampler is PLMSSampler else 5)
    for (x, t), z in zip(model.calls, drawn, strict=True):
        alpha, sigma = gaussian.alpha_sigma(t.numpy())
        assert torch.allclose(x, alpha * x0[0] + sigma * z, atol=1e-5)

    # The last step goes on from there, unless it also looks back on the noise of earlier ones.
    if sampler is not PLMSSampler:
        alpha, sigma = gaussian.alpha_sigma(0)
        assert torch.allclose(samples, alpha * x0[0] + sigma * drawn[-1], atol=1e-5)


@each_sampler
def test_a_mask_changes_no_bit_where_it_is_0(sampler):
    # This network looks at each value alone: what is known cannot show in the rest.
    model, x_T, x0 = GaussianModel(), rnd(0, 2, *SHAPE), rnd(1, 2, *SHAPE)
    plain, _ = sampler(model).sample(20, 2, SHAPE, x_T=x_T, x0=x0)
    untouched, _ = sampler(model).sample(20, 2, SHAPE, x_T=x_T, mask=torch.zeros(6, 5), x0=x0)
    assert torch.equal(untouched, plain)
    inpainted, kept = sampler(model).sample(20, 2, SHAPE, x_T=x_T, mask=KNOWN.ceil(), x0=x0)
    assert torch.equal(inpainted[..., 3:], plain[..., 3:])
    assert (inpainted[..., :3] != plain[..., :3]).all()
    assert torch.equal(kept["x_inter"][0], x_T)


@each_sampler
def test_what_is_known_shows_in_what_is_drawn(sampler):
    # Data of one random number for all pixels: where half of them are known, the rest must be alike.
    gaussian = GaussianModel()

    def network(x, t, c):
        alpha, sigma = gaussian.alpha_sigma(t.numpy())
        level = x.mean((1, 2, 3), keepdim=True) / alpha  # the noise hardly counts in a mean of many
        return (x - alpha * level) / sigma

    x0 = torch.full((1, 4, 32, 32), 3.0)
    mask = torch.zeros(32, 32)
    mask[:, :24] = 1
    z, _ = sampler(Model(network)).sample(50, 1, (4, 32, 32), x_T=rnd(0, 1, 4, 32, 32), mask=mask, x0=x0)
    assert (z[..., 24:] - 3).abs().max() < 0.3


@each_sampler
@pytest.mark.parametrize(
    ("mask", "x0", "told"),
    [
        ((6, 5), None, "There is a mask, but no x0: give the latents"),
        (
            (2, 1, 48, 40),
            (2, *SHAPE),
            r"mask is \(2, 1, 48, 40\), which does not fit latents of \(2, 4, 6, 5\)",
        ),
        ((6, 5), (3, *SHAPE), r"x0 is \(3, 4, 6, 5\), which does not fit latents of \(2, 4, 6, 5\)"),
        ((1, 2, 4, 6, 5), (2, *SHAPE), "mask is .* give it at the latents' size"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_the_first_step(sampler, mask, x0, told):
    model = GaussianModel()
    with pytest.raises(InputError, match=told):
        sampler(model).sample(5, 2, SHAPE, mask=torch.ones(mask), x0=None if x0 is None else torch.ones(x0))
    assert not model.calls


@each_sampler
def test_what_the_originals_sample_takes_besides_is_taken_where_it_changes_nothing(sampler):
    x_T = rnd(0, 1, *SHAPE)
    expected, _ = sampler(GaussianModel()).sample(3, 1, SHAPE, x_T=x_T)
    samples, _ = sampler(GaussianModel()).sample(
        S=3,
        batch_size=1,
        shape=SHAPE,
        conditioning=None,
        callback=None,
        normals_sequence=None,
        img_callback=None,
        quantize_x0=False,
        eta=0.0,
        mask=None,
        x0=None,
        temperature=1.0,
        noise_dropout=0.0,
        score_corrector=None,
        corrector_kwargs=None,
        verbose=False,
        x_T=x_T,
        log_every_t=100,
        unconditional_guidance_scale=1.0,
        unconditional_conditioning=None,
        dynamic_threshold=None,
        ucg_schedule=None,
    )
    assert torch.equal(samples, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.5),
        ("noise_dropout", 0.1),
        ("quantize_x0", True),
        ("normals_sequence", [0]),
        ("score_corrector", torch.nn.Identity()),
        ("corrector_kwargs", {"a": 1}),
        ("dynamic_threshold", 0.99),
        ("ucg_schedule", [1.0, 2.0]),
    ],
)
def test_what_would_change_the_originals_samples_is_refused(name, value):
    with pytest.raises(InputError, match=rf"^DDIMSampler: {name} is .*takes only `{name}: "):
        DDIMSampler(GaussianModel()).sample(2, 1, SHAPE, **{name: value})


def test_image_to_image_scripts_find_what_they_call():
    model, sampler = GaussianModel(), DDIMSampler(GaussianModel())
    sampler.make_schedule(ddim_num_steps=20, ddim_eta=0.0, verbose=False)

    x0, z = rnd(0, 2, *SHAPE), rnd(1, 2, *SHAPE)
    low, high = levels(model.alphas_cumprod, [sampler.ddim_timesteps[3], sampler.ddim_timesteps[12]])
    noised = sampler.stochastic_encode(x0, torch.tensor([3, 12]), noise=z)
    assert torch.allclose(noised[0], low.alpha * x0[0] + low.sigma * z[0], atol=1e-6)
    assert torch.allclose(noised[1], high.alpha * x0[1] + high.sigma * z[1], atol=1e-6)

    sampler.make_schedule(20)  # without fresh noise, unless told otherwise
    samples, _ = sampler.sample(20, 2, SHAPE, x_T=z)
    heard = []
    assert torch.equal(sampler.decode(z, None, 20, callback=heard.append), samples)
    assert heard == list(range(20))
    assert relative_error(sampler.decode(z, None, 13), model.exact(z, sampler.ddim_timesteps[12])) < 0.1
    asked = [int(t[0]) for _, t in sampler.model.calls[-13:]]
    assert asked == sampler.ddim_timesteps[12::-1] and len(sampler.model.calls) == 20 + 20 + 13


def test_image_to_image_is_guided_and_has_its_schedules_fresh_noise():
    sampler, z = DDIMSampler(GaussianModel()), rnd(1, 2, *SHAPE)
    c, u = rnd(2, 2, 1, 1, 1), rnd(3, 2, 1, 1, 1)
    guided = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": u}
    sampler.make_schedule(10, ddim_eta=0.7)
    torch.manual_seed(0)
    decoded = sampler.decode(z, c, 10, **guided)
    torch.manual_seed(0)
    assert torch.equal(decoded, sampler.sample(10, 2, SHAPE, c, x_T=z, eta=0.7, **guided)[0])


def test_pictures_are_encoded_with_normal_noise_where_none_is_given():
    model, sampler = GaussianModel(), DDIMSampler(GaussianModel())
    sampler.make_schedule(20)
    [level] = levels(model.alphas_cumprod, [sampler.ddim_timesteps[12]])
    x0 = rnd(0, 2, 4, 50, 50)
    z = (sampler.stochastic_encode(x0, torch.tensor([12, 12])) - level.alpha * x0) / level.sigma
    assert z.mean().abs() < 0.05 and (z.std() - 1).abs() < 0.05


def test_image_to_image_takes_the_originals_arguments_in_their_order():
    sampler, x0, z = DDIMSampler(GaussianModel()), rnd(0, 1, *SHAPE), rnd(1, 1, *SHAPE)
    sampler.make_schedule(10, "uniform", 0.5, False)
    assert sampler.ddim_eta == 0.5
    sampler.make_schedule(ddim_num_steps=10, ddim_discretize="uniform", ddim_eta=0.0, verbose=False)
    t = torch.tensor([4])
    assert torch.equal(sampler.stochastic_encode(x0, t, False, z), sampler.stochastic_encode(x0, t, noise=z))
    heard = []
    decoded = sampler.decode(z, None, 4, 1.0, None, False, heard.append)
    assert torch.equal(decoded, sampler.decode(z, None, 4, use_original_steps=False)) and len(heard) == 4

    for refused, told in [
        (lambda: sampler.make_schedule(10, ddim_discretize="quad"), "ddim_discretize is 'quad'"),
        (lambda: sampler.stochastic_encode(x0, t, True), "use_original_steps is True.*q_sample"),
        (lambda: sampler.decode(z, None, 4, use_original_steps=True), "use_original_steps is True"),
    ]:
        with pytest.raises(InputError, match=told):
            refused()


@pytest.mark.parametrize("step", [10, -1])
def test_a_step_that_make_schedule_did_not_fix_is_refused(step):
    sampler = DDIMSampler(GaussianModel())
    sampler.make_schedule(10)
    with pytest.raises(
        InputError, match=f"t holds {step}, .* fixed 10 steps: give 0 to 9, .*strength below 1"
    ):
        sampler.stochastic_encode(rnd(0, 2, *SHAPE), torch.tensor([3, step]))
