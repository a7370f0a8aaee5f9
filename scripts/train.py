"""Trains a stage of the embedded model with Lightning.

    python scripts/train.py --config configs/train/tiny_autoencoder.yaml --outdir runs/autoencoder
    python scripts/train.py --config configs/train/tiny_words.yaml --outdir runs/words
    python scripts/train.py --config configs/train/tiny.yaml --outdir runs/diffusion

The folder gets checkpoints, the losses as CSV, sample pictures and, at the end, the weights for inference
(model.safetensors) and, where matplotlib is installed, the losses as a curve. A run whose folder holds a
checkpoint goes on from it. Trailing arguments change the config; `trainer.*` are Lightning's own options:
`trainer.devices=8 trainer.num_nodes=2` trains on two machines of eight GPUs.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from ldm.errors import exit_code
from ldm.training.losses import draw_losses, read_losses
from ldm.util import instantiate_from_config, load_config


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="what to train, a file of configs/train")
    parser.add_argument("--outdir", type=Path, required=True, help="where everything goes")
    parser.add_argument(
        "--trust-config", action="store_true", help="run code of other packages that the config names"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser.parse_intermixed_args(argv)


def train(config_name: str, outdir: Path, overrides: list[str], trust_config: bool = False) -> None:
    config = load_config(config_name, overrides)
    outdir.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(config.seed, workers=True)
    last = outdir / "last.ckpt"
    settings: Any = OmegaConf.to_container(config.trainer)
    trainer = pl.Trainer(
        max_epochs=-1,
        default_root_dir=outdir,
        logger=CSVLogger(outdir, name="metrics"),  # a new file each time, so that no loss is lost
        callbacks=[
            ModelCheckpoint(
                outdir,
                filename="last",
                every_n_train_steps=config.checkpoint_every,
                enable_version_counter=False,
            ),
            EMAWeightAveraging(decay=config.ema_decay),
        ],
        use_distributed_sampler=False,  # the stages' loaders know of all processes
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **settings,
    )
    if trainer.is_global_zero:
        OmegaConf.save(config, outdir / "config.yaml")
    module = instantiate_from_config(
        {"target": config.target, "params": OmegaConf.to_container(config.params)}, trust_config
    )
    trainer.fit(module, ckpt_path=last if last.is_file() else None)

    # The averaged weights are the module's own once training has ended.
    if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
        module.export(outdir / "model.safetensors")
        if find_spec("matplotlib"):
            draw_losses(read_losses(outdir), outdir / "loss.png")


def main(argv: list[str]) -> int:
    asked = parse_arguments(argv)
    return exit_code(
        lambda: train(asked.config, asked.outdir, asked.overrides, asked.trust_config),
        "stopped; the same command goes on from the last checkpoint",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
