"""FID, with Inception weights drawn by lot, against torchmetrics' own."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm.errors import InputError
from ldm.study.evaluation import measures
from ldm.study.evaluation.asked import Asked
from ldm.study.evaluation.inception import AT_ONCE, Inception
from ldm.study.evaluation.measures import Meter, Weights, choose, read_pictures
from ldm.txt2img.jobs import Job
from tests.conftest import relative_error

CPU = torch.device("cpu")
PICTURES = default_rng(0).integers(0, 256, (4, 50, 70, 3)).astype(np.uint8)
TRUE = default_rng(3).integers(100, 256, (5, 40, 40, 3)).astype(np.uint8)
ASKED = Asked([[Job("a cat", 0), Job("a cat", 1)], [Job("a cab", 2), Job("a cab", 3)]], scenes=None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like that of torch-fidelity, with other numbers in it."""
    torch.manual_seed(0)
    with (
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
        patch.object(torch, "load", lambda *_, **__: {}),
    ):
        network = FeatureExtractorInceptionV3("inception", ["2048"], "nowhere")
    torch.save(network.state_dict(), path := tmp_path_factory.mktemp("inception") / "weights.pth")
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    for i, picture in enumerate(TRUE):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    return tmp_path


def channels_first(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def test_what_inception_sees_is_what_torchmetrics_sees(weights: Path) -> None:
    # Its antialiasing when it makes pictures larger is none of FID's definition.
    theirs = FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(weights), antialias=False
    )
    expected = theirs.inception(channels_first(PICTURES))
    assert relative_error(torch.from_numpy(Inception(weights, CPU).embed(list(PICTURES))), expected) < 1e-4


@pytest.mark.slow
def test_fid_is_that_of_torchmetrics(weights: Path, reference: Path) -> None:
    meter = Meter(["fid"], False, Weights(inception=weights, reference=reference), CPU)
    found = meter.measure(PICTURES.reshape(2, 2, *PICTURES.shape[1:]), ASKED)["fid"]

    theirs = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights))
    theirs.set_dtype(torch.float64)
    theirs.update(channels_first(TRUE), real=True)
    theirs.update(channels_first(PICTURES), real=False)
    expected = theirs.compute().item()
    assert expected > 0 and found.at(np.ones((1, 2), int))[0] == pytest.approx(expected, rel=1e-3)


def test_pictures_of_several_sizes_keep_their_places(weights: Path) -> None:
    inception = Inception(weights, CPU)
    mixed = [PICTURES[0], TRUE[0], TRUE[1], PICTURES[1]]
    alone = np.concatenate([inception.embed([picture]) for picture in mixed])
    np.testing.assert_allclose(inception.embed(mixed), alone, rtol=1e-3)
    assert alone.shape == (4, 2048) and len({row.tobytes() for row in alone}) == 4


def test_of_many_pictures_no_more_are_read_than_the_network_takes_at_once(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(2 * AT_ONCE + 1):
        Image.fromarray(TRUE[0]).save(tmp_path / f"{i}.png")
    read: list[Path] = []
    monkeypatch.setattr(measures, "read_picture", lambda path: read.append(path) or TRUE[0])
    inception, ahead = Inception(weights, CPU), []

    def see(batch: Tensor) -> tuple[Tensor]:
        ahead.append(len(read))
        return (torch.zeros(len(batch), 2048),)

    inception.network = see
    assert inception.embed(read_pictures(tmp_path)).shape == (2 * AT_ONCE + 1, 2048)
    assert ahead == [AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE + 1]


def test_nothing_in_the_file_of_weights_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "it ran",)

    torch.save({"fc.bias": Bomb()}, path := tmp_path / "weights.pth")
    with pytest.raises(InputError):
        Inception(path, CPU)
    assert not (tmp_path / "it ran").exists()


def test_what_is_no_inception_is_an_error_that_names_the_right_file(tmp_path: Path) -> None:
    save_file({"fc.bias": torch.ones(3)}, path := tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"holds no Inception weights for FID: they are torch-fidelity's"):
        Inception(path, CPU)


def test_weights_that_are_no_numbers_are_an_error_that_names_the_file(weights: Path) -> None:
    inception = Inception(weights, CPU)
    inception.network = lambda batch: (torch.full((len(batch), 2048), torch.nan),)
    with pytest.raises(InputError, match=f"with {weights} is not finite: its weights are damaged"):
        inception.embed(PICTURES)


def test_how_many_true_renders_fid_compares_with_is_known(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(pictures: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack([picture.mean((0, 1)) for picture in pictures])

    monkeypatch.setattr(measures, "Inception", lambda *_: SimpleNamespace(embed=embed))
    monkeypatch.setattr(measures, "RENDERS", 3)
    weights = Weights(inception=Path("weights"))
    assert Meter(["fid"], False, weights, CPU).renders == 3
    assert Meter(["fid"], False, replace(weights, reference=reference), CPU).renders == 0


def test_without_true_pictures_there_is_no_fid(weights: Path) -> None:
    with pytest.raises(InputError, match=r"--metrics fid: .*; give --reference"):
        choose(["fid"], ASKED, (50, 70), Weights(inception=weights))
