"""The checkpoints of a training: written whole, and looked at before it goes on."""

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from ldm.checkpoint import read_tensors
from ldm.errors import InputError
from ldm.image_io import written_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that take the place of those before them only when all of them is on disk.

    Lightning moves a file out of TMPDIR. Where that is another disk the move is a copy, and a training killed
    meanwhile has lost both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes `path`. Raises InputError where the disk refuses it."""
        # Into memory first, as torch makes a fault of its own out of a full disk's.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as file:
            file.write(content.getbuffer())


def check_checkpoint(path: Path, module: pl.LightningModule) -> None:
    """Raises InputError where a training of this module cannot go on from a checkpoint."""
    remedy = "Remove it to begin anew, or give another --outdir."
    try:
        held = read_tensors(path)
    except InputError:
        raise InputError(f"{path} is damaged, and no training can go on from it. {remedy}") from None
    shapes = {name: tensor.shape for name, tensor in held.items()}
    if shapes != {name: tensor.shape for name, tensor in module.state_dict().items()}:
        raise InputError(f"{path} is of another stage or model than the config describes. {remedy}")
