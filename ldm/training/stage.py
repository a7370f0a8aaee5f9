"""What all stages of training share."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.random import default_rng
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ldm.errors import InputError
from ldm.files import written_whole
from ldm.image_io import grid, save_png
from ldm.weights.reading import read_tensors

SHOWN = 16  # pictures on a sheet of samples
# Of the scenes that are shown. numpy takes it for 0 and 1, so training's seeds are 1 and more, below it.
SHOWN_SEED = 2**32


def load_weights(network: nn.Module, path: str, option: str, strict: bool = True) -> None:
    """Gives a network the weights of a file, which the config names in `params.<option>`.

    Raises InputError where there are none, or those of another network. Unless `strict`, what the network
    computes by itself may be missing, and there may be more.
    """
    if not Path(path).is_file():
        raise InputError(
            f"There are no weights {path}. Run first what makes them (checkpoints/README.md has the order), "
            f"or name others: params.{option}=FILE."
        )
    given = read_tensors(path)
    wanted = network.state_dict() if strict else dict(network.named_parameters())
    for name, weight in wanted.items():
        if name not in given or given[name].shape != weight.shape:
            raise InputError(
                f"{path} does not hold all weights of the config's {type(network).__name__}, such as {name} "
                f"{tuple(weight.shape)}: name others with params.{option}=FILE."
            )
    if strict and (foreign := given.keys() - wanted.keys()):
        raise InputError(
            f"{path} holds more than the config's {type(network).__name__}, such as {min(foreign)}: name "
            f"others with params.{option}=FILE."
        )
    network.load_state_dict(given, strict=strict)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes weights for inference. Raises InputError where some are no numbers or the disk refuses them."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(
                f"The weights are no longer numbers, as in {name}: lower params.lr and give another --outdir."
            )
    content = save({name: weight.contiguous() for name, weight in weights.items()})
    with written_whole(path) as file:
        file.write(content)


class Shuffled(DistributedSampler):
    """The samples of an epoch in random order, as (epoch, index), dealt out to all processes in turn.

    So a batch of all processes together holds what one process alone would have in it. An epoch begins behind
    as many batches of `batch_size` as were `taken` when it is asked for, so that a broken training goes on.
    """

    def __init__(self, dataset: Dataset, batch_size: int, taken: Callable[[], int], **options: Any):
        super().__init__(dataset, **options)
        self.batch_size, self.taken = batch_size, taken

    def __iter__(self) -> Iterator[Any]:
        # Lightning's count of epochs is too low after a training went on from an epoch's last batch.
        epoch, before = divmod(self.taken(), self.num_samples // self.batch_size)
        self.set_epoch(epoch)
        return ((epoch, index) for index in islice(super().__iter__(), before * self.batch_size, None))


class Seeded(Dataset):
    """A dataset in whose samples chance follows seed, epoch and index; before each stands a seed for more."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Any]:
        own, further = default_rng((self.seed, *key)).integers(2**62, size=2).tolist()
        torch.manual_seed(own)
        return further, self.dataset[key[1]]

    def __len__(self) -> int:
        return len(self.dataset)


class Stage(pl.LightningModule):
    """The optimizer, the loader, and the weights written for inference at the end.

    Batches are pairs of seeds (B,) and samples. Several processes learn what one would from all their batches
    together, up to rounding and dropout.

    The learning rate warms up over 200 steps, stays, and falls to zero over the last fifth of `max_steps`, so
    that a run can be lengthened at any time before that.
    """

    def __init__(self, lr: float, weight_decay: float, batch_size: int):
        super().__init__()
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.step, self.losses = 0, torch.zeros(())  # the losses' sum is no number when one of them is none
        self.seed, self.saved = torch.initial_seed(), 0

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        # In mixed precision a fused step would scale the gradients itself, after they were to be clipped.
        fused = None if "mixed" in self.trainer.precision else True
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay, fused=fused
        )
        total = self.trainer.max_steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / 200, max(0.0, (total - step) / (0.2 * total)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, path: Path) -> None:
        """Writes the weights for inference."""
        raise NotImplementedError(f"{type(self).__name__} does not say which weights it leaves")

    def on_train_batch_start(self, batch: Any, _: int) -> None:
        """Seeds dropout's chance, so that a training that goes on has what it would have had."""
        torch.manual_seed(batch[0][0].item())

    def on_before_backward(self, loss: Tensor) -> None:
        """Keeps the loss for `check_losses`, which need not look at each."""
        self.step, self.losses = self.global_step, self.losses + loss.detach()

    def check_losses(self) -> None:
        """Ends the training where a loss was no number, before its weights are put to use."""
        if not self.everywhere(self.losses).isfinite():
            raise InputError(
                f"The loss is no longer a number at step {self.step}: lower params.lr and give "
                "another --outdir, as a checkpoint keeps the learning rate that it was made with."
            )

    def on_train_batch_end(self, *_: Any) -> None:
        trainer: Any = self.trainer
        if self.step % trainer.log_every_n_steps == 0:
            self.check_losses()
        # Where the time is up a training ends with a whole step, from which it can go on.
        trainer.should_stop = trainer.should_stop and self.global_step > self.step
        ends = trainer.should_stop or self.global_step == trainer.max_steps
        if ends and self.saved < self.global_step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")

    def on_validation_start(self) -> None:
        self.check_losses()

    def on_save_checkpoint(self, _: dict[str, Any]) -> None:
        self.check_losses()
        self.saved = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["global_step"]

    def on_train_end(self) -> None:
        self.check_losses()

    def check_batches(self, count: int) -> None:
        """Raises InputError where so many samples do not fill a batch in each process."""
        processes = self.trainer.world_size
        if not 1 <= self.batch_size <= count // processes:
            raise InputError(
                f"params.batch_size is {self.batch_size} and params.data.count {count}, which fill no "
                f"batch in each process (there are {processes}): lower params.batch_size, to 1 or more, or "
                "raise params.data.count."
            )

    def loader(self, dataset: Dataset) -> DataLoader:
        """The batches of this process. Raises InputError where the samples do not fill one."""
        trainer, seeded = self.trainer, Seeded(dataset, self.seed)
        self.check_batches(len(seeded))
        sampler = Shuffled(
            seeded,
            self.batch_size,
            taken=lambda: trainer.fit_loop.total_batch_idx + 1,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            seed=self.seed,
            drop_last=True,
        )
        return DataLoader(
            seeded,
            self.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=1,
            persistent_workers=True,
        )

    def everywhere(self, count: Tensor) -> Tensor:
        """The mean of a number over all processes.

        Sums over one process's batch that are divided by it have as their mean, and so has the gradient, the
        mean over the batches of all.
        """
        gathered: Any = self.all_gather(count.detach())
        return gathered.float().mean()

    def save_sheet(self, pictures: list[np.ndarray], columns: int) -> None:
        """Writes pictures into the run's folder under the step's number."""
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(exist_ok=True)
        save_png(folder / f"{self.global_step:06}.png", grid(pictures, columns))
