"""What the Inception network of the Fréchet inception distance sees of pictures, by torch-fidelity."""

import io
from collections.abc import Iterable
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.errors import InputError
from ldm.image_io import Picture
from ldm.study.pictures import Numbers
from ldm.weights.reading import read_tensors

AT_ONCE = 16  # pictures
FEATURES = "2048"  # torch-fidelity's name of the last pooled layer, as wide


class Inception:
    """The network on a device, with weights from a file. Raises InputError where it holds others."""

    def __init__(self, path: Path, device: torch.device):
        if not path.is_file():
            raise InputError(
                f"There is no file of Inception weights {path}. torch-fidelity's releases on GitHub "
                "have them, as weights-inception-2015-12-05-6726825d.pth."
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise InputError('Inception is run by torch-fidelity: pip install -e ".[fid]"') from None

        # torch-fidelity would unpickle the file, and so run what is in it. It gets the tensors alone.
        tensors = io.BytesIO()
        torch.save(read_tensors(path), tensors)
        tensors.seek(0)
        try:
            network: Any = FeatureExtractorInceptionV3("inception", [FEATURES], tensors)
        except RuntimeError:
            raise InputError(
                f"{path} holds no Inception weights for FID: they are torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth."
            ) from None
        self.network = network.to(device)
        self.path, self.device = path, device

    @torch.no_grad()
    def embed(self, pictures: Iterable[Picture]) -> Numbers:
        """The features of pictures (H, W, 3): (N, 2048). Raises InputError where they are not finite."""
        features = []
        for _, alike in groupby(pictures, key=np.shape):
            while some := [*islice(alike, AT_ONCE)]:
                batch = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2)  # (n, 3, H, W)
                features.append(self.network(batch.to(self.device))[0].cpu())  # (n, 2048)
        found = torch.cat(features).numpy()
        if not np.isfinite(found).all():
            raise InputError(
                f"What Inception sees with {self.path} is not finite: its weights are damaged. Fetch them "
                "again."
            )
        return found
