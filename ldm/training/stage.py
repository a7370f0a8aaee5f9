"""What all stages of training share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.image_io import grid, save_png

SHOWN = 16  # pictures on a sheet of samples
SHOWN_SEED = 2**32  # of the scenes that are shown; training's seeds lie below


class Stage(pl.LightningModule):
    """The optimizer, the loader, and the weights written for inference at the end.

    The learning rate warms up over 200 steps, stays, and falls to zero over the last fifth of `max_steps`, so
    that a run can be lengthened at any time before that.
    """

    def __init__(self, lr: float, weight_decay: float, batch_size: int):
        super().__init__()
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay, fused=True
        )
        total = self.trainer.max_steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / 200, max(0.0, (total - step) / (0.2 * total)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, dataset: torch.utils.data.Dataset) -> DataLoader:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=1,
            persistent_workers=True,
        )

    def save_sheet(self, pictures: list[np.ndarray], columns: int) -> None:
        """Writes pictures into the run's folder under the step's number."""
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(exist_ok=True)
        save_png(folder / f"{self.global_step:06}.png", grid(pictures, columns))
