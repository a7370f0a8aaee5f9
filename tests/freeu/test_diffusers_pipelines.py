"""FreeU in diffusers' pipelines, built small and run as they are."""

import copy
import pickle
import warnings
from weakref import ref

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    CMStochasticIterativeScheduler,
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UniPCMultistepScheduler,
)
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ldm.freeu import FreeUSettings
from ldm.freeu.diffusers import disable, enable
from tests.conftest import fill_by_name, relative_error, rnd
from tests.freeu import unets

STEPS = 4
FACTORS = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
TEXT = {
    "prompt_embeds": rnd(2, 1, 5, 8),
    "negative_prompt_embeds": rnd(3, 1, 5, 8),
    "guidance_scale": 2.0,
}
POOLED = {"pooled_prompt_embeds": rnd(4, 1, 8), "negative_pooled_prompt_embeds": rnd(5, 1, 8)}
NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
NO_TEXT_XL = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
SIZE = {"height": 128, "width": 128}
IMAGE = rnd(6, 1, 3, 128, 128).sigmoid()


def autoencoder():
    """Eight times smaller, as all of Stable Diffusion's."""
    blocks = {"down_block_types": 4 * ["DownEncoderBlock2D"], "up_block_types": 4 * ["UpDecoderBlock2D"]}
    return fill_by_name(AutoencoderKL(block_out_channels=4 * [4], norm_num_groups=2, **blocks))


def ddim():
    """As in Stable Diffusion's configs."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def sd(pipeline, unet, **parts):
    return pipeline(vae=autoencoder(), unet=unet, scheduler=ddim(), **NO_TEXT, **NO_CHECKER, **parts)


def stable_diffusion_1():
    return sd(StableDiffusionPipeline, unets.sd1()), TEXT | SIZE


def stable_diffusion_2():
    return sd(StableDiffusionPipeline, unets.sd2()), TEXT | SIZE


def image_to_image():
    return sd(StableDiffusionImg2ImgPipeline, unets.conditional()), TEXT | {"image": IMAGE, "strength": 1.0}


def inpainting():
    pipe = sd(StableDiffusionInpaintPipeline, unets.conditional(in_channels=9))
    return pipe, TEXT | SIZE | {"image": IMAGE, "mask_image": (IMAGE[:, :1] > 0.5).float()}


def depth():
    unet = unets.conditional(in_channels=5)
    parts = {"depth_estimator": None, "feature_extractor": None}
    pipe = StableDiffusionDepth2ImgPipeline(
        vae=autoencoder(), unet=unet, scheduler=ddim(), **NO_TEXT, **parts
    )
    return pipe, TEXT | {"image": IMAGE, "depth_map": IMAGE[:, 0], "strength": 1.0}


def controlnet():
    unet = unets.conditional()
    control = fill_by_name(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8)))
    return sd(StableDiffusionControlNetPipeline, unet, controlnet=control), TEXT | {"image": IMAGE}


def latent_consistency():
    pipe = LatentConsistencyModelPipeline(
        vae=autoencoder(),
        unet=unets.conditional(time_cond_proj_dim=8),
        scheduler=LCMScheduler(),
        **NO_TEXT,
        **NO_CHECKER,
    )
    return pipe, {"prompt_embeds": TEXT["prompt_embeds"]} | SIZE


def sdxl():
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(), unet=unets.sdxl(), scheduler=EulerDiscreteScheduler(), **NO_TEXT_XL
    )
    return pipe, TEXT | POOLED | SIZE


def sdxl_refiner():
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=autoencoder(),
        unet=unets.refiner(),
        scheduler=EulerDiscreteScheduler(),
        requires_aesthetics_score=True,
        **NO_TEXT_XL,
    )
    return pipe, TEXT | POOLED | {"image": IMAGE, "strength": 1.0}


def text_to_video():
    pipe = TextToVideoSDPipeline(vae=autoencoder(), unet=unets.text_to_video(), scheduler=ddim(), **NO_TEXT)
    return pipe, TEXT | SIZE | {"num_frames": unets.FRAMES}


def animate_diff():
    pipe = AnimateDiffPipeline(
        vae=autoencoder(),
        unet=unets.conditional(),
        motion_adapter=unets.motion_adapter(),
        scheduler=ddim(),
        **NO_TEXT,
    )
    return pipe, TEXT | SIZE | {"num_frames": unets.FRAMES}


def stable_video_diffusion():
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=2
    )
    pipe = StableVideoDiffusionPipeline(
        vae=fill_by_name(
            AutoencoderKLTemporalDecoder(
                block_out_channels=4 * [32], down_block_types=4 * ["DownEncoderBlock2D"], layers_per_block=1
            )
        ),
        image_encoder=CLIPVisionModelWithProjection(vision),
        unet=unets.stable_video(),
        scheduler=EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.002, sigma_max=700.0),
        feature_extractor=CLIPImageProcessor(),
    )
    return pipe, SIZE | {"image": to_pil_image(IMAGE[0]), "num_frames": unets.FRAMES}


def unconditional():
    return DDPMPipeline(unets.plain(), DDPMScheduler()), {"output_type": "np"}


BUILD = {
    build.__name__: build
    for build in (
        stable_diffusion_1,
        stable_diffusion_2,
        image_to_image,
        inpainting,
        depth,
        controlnet,
        latent_consistency,
        sdxl,
        sdxl_refiner,
        text_to_video,
        animate_diff,
        stable_video_diffusion,
        unconditional,
    )
}


def sampler(pipe, arguments):
    """A function that runs a pipeline from the same noise."""
    pipe.set_progress_bar_config(disable=True)

    def sample(**more):
        given = {"output_type": "latent", "num_inference_steps": STEPS, "return_dict": False}
        generator = torch.Generator().manual_seed(1)
        return torch.as_tensor(pipe(generator=generator, **(given | arguments | more))[0])

    return sample


@pytest.fixture(scope="module", params=BUILD)
def pipeline(request):
    """A pipeline, a function that runs it, and what that gives without FreeU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, arguments = BUILD[request.param]()
    sample = sampler(pipe, arguments)
    with torch.no_grad():
        return pipe, sample, sample()


@pytest.mark.parametrize("version", [1, 2])
def test_a_pipeline_with_free_u_is_the_published_one(pipeline, version):
    pipe, sample, without = pipeline
    with unets.published_free_u(pipe.unet, FreeUSettings(**FACTORS, version=version)):
        expected = sample()
    with enable(pipe, version=version, **FACTORS):
        out = sample()
    assert relative_error(out, expected) < 1e-4
    assert relative_error(out, without) > 1e-3


def test_a_pipeline_is_its_old_self_afterwards(pipeline):
    pipe, sample, without = pipeline
    enable(pipe, "sd21", version=2, start=0.25)
    assert not torch.equal(sample(), without)
    disable(pipe)
    assert torch.equal(sample(), without)


@pytest.mark.parametrize("acting", [1, 3])
def test_a_stop_counts_the_steps_of_the_pipelines_run(pipeline, acting):
    pipe, sample, _ = pipeline
    with enable(pipe, **FACTORS, stop=acting / STEPS):
        out = sample()
    expected, seen = with_free_u_in_the_first_steps(acting, pipe, sample)
    assert seen == STEPS
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_a_run_that_begins_with_a_picture_counts_the_steps_that_it_takes(scheduler):
    pipe, arguments = image_to_image()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    sample = sampler(pipe, arguments | {"strength": 0.5, "num_inference_steps": 8})
    with enable(pipe, **FACTORS, stop=0.2):
        out = sample()
    expected, seen = with_free_u_in_the_first_steps(1, pipe, sample)
    assert seen in (4, 5)  # of the 8, and PNDM's one more
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("before", [0, 2, 8, 20])
def test_a_pipeline_of_the_same_parts_counts_its_own_steps(scheduler, before):
    pipe, arguments = stable_diffusion_1()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    sample = sampler(other, TEXT | {"image": IMAGE, "strength": 0.5, "num_inference_steps": 8})
    with enable(pipe, **FACTORS, stop=0.5):
        if before:
            sampler(pipe, arguments)(num_inference_steps=before)
        out = sample()
    expected, seen = with_free_u_in_the_first_steps(2, pipe, sample)
    assert seen == 4
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_a_run_that_leaves_its_end_to_a_refiner_counts_all_steps(scheduler):
    pipe, arguments = sdxl()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    sample = sampler(pipe, arguments | {"num_inference_steps": 10, "denoising_end": 0.8})
    with enable(pipe, **FACTORS, stop=0.2):
        out = sample()
    expected, seen = with_free_u_in_the_first_steps(2, pipe, sample)
    assert seen == 8
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_panorama_whose_parts_copy_the_scheduler_counts_the_steps_of_its_run(scheduler):
    pipe = sd(StableDiffusionPanoramaPipeline, unets.conditional())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    sample = sampler(pipe, TEXT | {"height": 64, "width": 576})  # in two parts
    with enable(pipe, **FACTORS, stop=0.5):
        sampler(from_pipe(pipe), TEXT | {"image": IMAGE, "strength": 0.3, "num_inference_steps": 10})()
        out = sample()
    expected, seen = with_free_u_in_the_first_steps(2, pipe, sample)
    assert seen == STEPS
    assert relative_error(out, expected) < 1e-5


def from_pipe(pipe):
    return StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)


@pytest.mark.parametrize("other", [from_pipe, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_run_by_another_pipelines_scheduler_is_told_once(other):
    pipe, _ = image_to_image()
    arguments = TEXT | {"image": IMAGE, "num_inference_steps": 6, "strength": 0.5}
    enable(pipe, **FACTORS, stop=0.5)
    sampler(pipe, arguments)()
    other = other(pipe)
    other.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    sample = sampler(other, arguments)
    with pytest.warns(UserWarning, match="without timestep 500: call enable on the pipeline that") as told:
        sample()
    assert len([it for it in told if "FreeU" in str(it.message)]) == 1
    enable(other, **FACTORS, stop=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "FreeU")
        out = sample()
    expected, _ = with_free_u_in_the_first_steps(2, other, sample)
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize(
    "scheduler",
    [
        *(HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler, PNDMScheduler),
        *(EDMEulerScheduler, CMStochasticIterativeScheduler, IPNDMScheduler, UniPCMultistepScheduler),
    ],
)
def test_a_run_by_the_pipelines_own_scheduler_is_not_told_of(scheduler):
    pipe, arguments = stable_diffusion_1()
    pipe.scheduler = scheduler()
    with warnings.catch_warnings(), enable(pipe, **FACTORS, stop=0.5):
        warnings.filterwarnings("error", "FreeU")
        sampler(pipe, arguments)()


def test_a_unet_alone_tells_of_timesteps_that_no_training_has():
    unet = unets.stable_video()
    for t in (-1.5, 1000):
        with enable(unet, **FACTORS, stop=0.5), pytest.warns(UserWarning, match=f"without timestep {t:g}:"):
            unets.run(unet, unets.inputs(unet), t=t)
    with enable(unet, **FACTORS, stop=0.5), warnings.catch_warnings():
        warnings.filterwarnings("error", "FreeU")
        unets.run(unet, unets.inputs(unet), t=998.6)  # which rounds to one that it has


def test_a_loop_from_the_middle_and_then_a_whole_one_have_their_own_beginnings():
    pipe, _ = stable_diffusion_1()
    given = unets.inputs(pipe.unet)
    pipe.scheduler.set_timesteps(4)
    times = pipe.scheduler.timesteps
    without = [unets.run(pipe.unet, given, t) for t in times]
    with enable(pipe, **FACTORS, stop=0.5):
        for first in (2, 0):
            acts = [
                not torch.equal(unets.run(pipe.unet, given, times[i]), without[i]) for i in range(first, 4)
            ]
            assert sum(acts) == len(acts) / 2 and acts[0]


def test_a_with_ends_in_the_unet_where_it_began():
    pipe, _ = stable_diffusion_1()
    with enable(pipe, **FACTORS):
        unet, pipe.unet = pipe.unet, None
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_a_unet_with_a_schedule_carries_no_pipeline_along():
    pipe, _ = stable_diffusion_1()
    enable(pipe, **FACTORS, stop=0.5)
    unet, parts = pipe.unet, ref(pipe.vae)
    del pipe
    assert parts() is None
    disable(unet)


def with_free_u_in_the_first_steps(acting, pipe, sample):
    """What a pipeline gives whose FreeU is disabled after as many steps as `acting`, and how many it took."""
    seen = set()

    def disable_in_time(unet, args, kwargs):
        seen.add(float(kwargs["timestep"] if "timestep" in kwargs else args[1]))
        if len(seen) > acting:
            disable(pipe)

    enable(pipe, **FACTORS)
    stopper = pipe.unet.register_forward_pre_hook(disable_in_time, with_kwargs=True)
    expected = sample()
    stopper.remove()
    return expected, len(seen)


def test_pipelines_without_a_unet_are_told_why():
    transformer = DiTTransformer2DModel(2, 4, 4, num_layers=1, sample_size=8, norm_num_groups=4)
    pipe = DiTPipeline(transformer, autoencoder(), ddim())
    with pytest.raises(ValueError, match="DiTPipeline: it denoises with a transformer"):
        enable(pipe, "sd14")
    pipe, _ = image_to_image()
    pipe.unet = None
    told = r"StableDiffusionImg2ImgPipeline: it has no U-Net called unet\. Where it has one by another name"
    with pytest.raises(ValueError, match=told):
        enable(pipe, "sd14")
