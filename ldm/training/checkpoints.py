"""The checkpoints of a training: written whole, and looked at before it goes on."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from ldm.config.reading import load_config
from ldm.errors import InputError
from ldm.files import written_whole
from ldm.weights.reading import read_tensors

# What all parts of a run have in common; `trainer` and `checkpoint_every` may change between them.
LASTING = ("target", "params", "seed", "ema_decay")


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


class OfWholeSteps(ModelCheckpoint):
    """Checkpoints every so many steps, none of them in the midst of a step of several batches.

    Lightning's own makes one there where a training has just gone on, and the gradients so far are not in it.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *given: Any) -> None:
        if module.saved < trainer.global_step:
            super().on_train_batch_end(trainer, module, *given)


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


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError where a run's config, in the file `path`, has other settings than are asked for now.

    A checkpoint keeps some of them, such as the learning rate, whatever the config says.
    """
    if not path.is_file():
        return
    try:
        begun: Any = OmegaConf.to_container(load_config(path))
    except InputError:
        raise InputError(f"{path} is damaged. Remove it to go on, or give another --outdir.") from None
    was, now = (dict(leaves({key: it.get(key) for key in LASTING})) for it in (begun, settings))
    differing = [
        f"{key} was {json.dumps(was.get(key)):.99}, not {json.dumps(now.get(key)):.99}"
        for key in was | now
        if was.get(key) != now.get(key)
    ]
    if differing:
        raise InputError(
            f"{path.parent} holds a run with other settings: {'; '.join(differing)}. Give another --outdir, "
            "or the old values to go on with it."
        )


def leaves(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config's section, each with its place, such as params.data.count."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
