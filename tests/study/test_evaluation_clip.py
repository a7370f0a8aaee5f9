"""CLIP's scores, with a small CLIP model of random weights that transformers itself saves."""

from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ldm.errors import InputError
from ldm.study.evaluation.asked import Asked
from ldm.study.evaluation.clip import AT_ONCE, AestheticHead, Clip, clip_scores
from ldm.study.evaluation.measures import Meter, Weights
from ldm.txt2img.jobs import Job
from tests.study.test_evaluation_frechet import by_definition

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a bad cab", "cab " * 40, ""]
PICTURES = default_rng(0).integers(0, 256, (4, 50, 70, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of two narrow layers and a vocabulary of a few letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = ["a", "b", "c", "d", "t"]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    narrow = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 12,
    }
    text = {"vocab_size": len(tokens), "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config=narrow | text,
        vision_config=narrow | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_the_score_is_a_hundred_times_the_cosine_of_each_picture_with_its_prompt(folder: Path) -> None:
    images, texts = Clip(folder, CPU).embed(PICTURES, PROMPTS)

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    for i, prompt in enumerate(PROMPTS):
        pixels = processor(images=Image.fromarray(PICTURES[i]), return_tensors="pt")
        tokens = processor(text=prompt, return_tensors="pt", truncation=True, max_length=20)
        image = model.get_image_features(**pixels).pooler_output
        text = model.get_text_features(**tokens).pooler_output
        expected = 100 * torch.cosine_similarity(image, text).item()
        assert clip_scores(images, texts)[i] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_folder_in_half_precision_scores_as_its_weights_in_full_do(
    half: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    halved = CLIPModel.from_pretrained(folder).to(half)
    halved.save_pretrained(tmp_path)
    CLIPProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    halved.float().save_pretrained(full := tmp_path / "full")
    CLIPProcessor.from_pretrained(folder).save_pretrained(full)
    found, expected = (clip_scores(*Clip(path, CPU).embed(PICTURES, PROMPTS)) for path in (tmp_path, full))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pictures_are_taken_one_batch_after_the_other(folder: Path) -> None:
    clip, taken, ahead = Clip(folder, CPU), [], []
    clip.model.register_forward_pre_hook(lambda *_: ahead.append(len(taken)))
    pictures = (taken.append(i) or PICTURES[i % 4] for i in range(AT_ONCE + 4))
    images, _ = clip.embed(pictures, repeat(""))
    assert ahead == [AT_ONCE, AT_ONCE + 4]
    np.testing.assert_allclose(images[-4:], clip.embed(PICTURES, [""] * 4)[0], atol=1e-6)


@pytest.mark.parametrize("widths", [(12, 1), (12, 8, 4, 1)])
def test_the_aesthetic_score_is_that_of_linear_layers_in_a_row(widths: tuple, tmp_path: Path) -> None:
    layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    state = layers.state_dict()
    if len(widths) == 2:
        state = {name.removeprefix("0."): value for name, value in state.items()}
        torch.save(state, path := tmp_path / "linear.pth")
    else:
        save_file(
            {f"layers.{name}": value for name, value in state.items()}, path := tmp_path / "mlp.safetensors"
        )
    embeddings = default_rng(1).standard_normal((5, 12)).astype(np.float32)
    expected = layers(torch.from_numpy(embeddings))[:, 0]
    np.testing.assert_allclose(AestheticHead(path).scores(embeddings), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"read CLIP embeddings of 12 numbers, the model of --clip gives 5"):
        AestheticHead(path).scores(embeddings[:, :5])


def test_a_file_that_holds_something_else_is_no_aesthetic_predictor(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a.0.weight": torch.ones(4, 12), "a.1.weight": torch.ones(2, 4)}, path)
    with pytest.raises(InputError, match="holds no aesthetic predictor"):
        AestheticHead(path)


def test_a_meter_scores_each_picture_with_its_own_prompt_and_the_set_against_true_pictures(
    folder: Path, tmp_path: Path
) -> None:
    true = default_rng(3).integers(0, 256, (6, 40, 40, 3)).astype(np.uint8)
    for i, picture in enumerate(true):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    asked = Asked([[Job("a cat", 0), Job("a cat", 1)], [Job("a cab", 2), Job("a cab", 3)]], scenes=None)
    meter = Meter(["frechet", "clip"], False, Weights(clip=folder, reference=tmp_path), CPU)
    statistics = meter.measure(PICTURES.reshape(2, 2, *PICTURES.shape[1:]), asked)

    images, texts = meter.clip.embed(PICTURES, ["a cat", "a cat", "a cab", "a cab"])
    assert statistics["clip"].values.ravel() == pytest.approx(clip_scores(images, texts))
    reference, _ = meter.clip.embed(true, [""] * 6)
    once = np.ones((1, 2), int)
    assert statistics["frechet"].at(once)[0] == pytest.approx(by_definition(images, reference), abs=1e-5)


@pytest.mark.parametrize("part", ["visual_projection", "text_projection"])
def test_a_clip_with_weights_that_are_no_numbers_is_an_error_that_names_its_folder(
    folder: Path, part: str
) -> None:
    clip = Clip(folder, CPU)
    with torch.no_grad():
        getattr(clip.model, part).weight.fill_(torch.nan)
    with pytest.raises(InputError, match=f"embeddings of the CLIP model in {folder} are not finite"):
        clip.embed(PICTURES, PROMPTS)


def test_a_damaged_clip_is_an_error_that_names_its_folder(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"The CLIP model in {tmp_path} cannot be read"):
        Clip(tmp_path, CPU)
