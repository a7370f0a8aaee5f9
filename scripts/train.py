"""Trains a stage of the embedded model with Lightning.

    python scripts/train.py --config configs/train/tiny_autoencoder.yaml --outdir runs/autoencoder
    python scripts/train.py --config configs/train/tiny_words.yaml --outdir runs/words
    python scripts/train.py --config configs/train/tiny.yaml --outdir runs/diffusion

The folder gets a checkpoint (last.ckpt), the losses as CSV, sample pictures and, at the end, the weights for
inference (model.safetensors) and, where matplotlib is installed, the losses as a curve. A run whose folder
holds a checkpoint goes on from it, and ends as if it had never been stopped; but for `checkpoint_every` and
`trainer.*` no setting may change. Trailing arguments change the config:
`checkpoint_every=100` renews the checkpoint every 100 steps, `checkpoint_every=null` only at the end.
`trainer.*` are Lightning's own options: `trainer.devices=8 trainer.num_nodes=2` trains on two machines of
eight GPUs, `trainer.precision=bf16-mixed` in mixed precision.
"""

import argparse
import errno
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback, WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ldm.command_line import Help
from ldm.config.annotations import misfits
from ldm.config.reading import load_config
from ldm.errors import InputError, exit_code, stop_when_asked
from ldm.files import write_text
from ldm.image_io import writable_folder
from ldm.training.checkpoints import OfWholeSteps, WholeCheckpoints, check_checkpoint, check_settings
from ldm.training.losses import draw_losses, read_losses
from ldm.training.options import check_options
from ldm.training.stage import Stage
from ldm.util import instantiate_from_config

NEEDED = ("target", "params", "seed", "ema_decay", "checkpoint_every", "trainer")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # in all of which the weights themselves are in float32


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--config", required=True, help="what to train, a file of configs/train")
    parser.add_argument("--outdir", type=Path, required=True, help="where everything goes")
    parser.add_argument(
        "--trust-config", action="store_true", help="run code of other packages that the config names"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser.parse_intermixed_args(argv)


def train(config_name: str, outdir: Path, overrides: list[str], trust_config: bool = False) -> None:
    config = load_config(config_name, overrides)
    absent = [key for key in NEEDED if key not in config]
    if absent:
        raise InputError(
            f"{config_name} describes no training: it has no {', '.join(absent)}. Take one of configs/train."
        )
    settings: Any = OmegaConf.to_container(config)
    check_options(settings)
    writable_folder(outdir)
    pl.seed_everything(config.seed, workers=True)
    last = outdir / "last.ckpt"
    # Of torch's two averages the one that leaves frozen weights as they are, to the last bit.
    averaging = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    trainer = make_trainer(config, outdir, averaging)
    module = instantiate_from_config(settings, trust_config)
    if not isinstance(module, Stage):
        raise InputError(f"{config.target} is no stage of a training: take one that configs/train names.")
    if last.is_file():
        check_checkpoint(last, module)
        check_settings(outdir / "config.yaml", settings)
    fit(trainer, module, outdir)

    # Lightning leaves this out where the checkpoint was at the last step already.
    averaging.on_train_end(trainer, module)
    if not trainer.is_global_zero:
        return
    if trainer.global_step < trainer.max_steps:
        print(
            f"unfinished, at step {trainer.global_step} of {trainer.max_steps}; the same command with a "
            "longer trainer.max_time goes on"
        )
        return
    module.export(outdir / "model.safetensors")
    if find_spec("matplotlib"):
        draw_losses(read_losses(outdir), outdir / "loss.png")


def fit(trainer: pl.Trainer, module: Stage, outdir: Path) -> None:
    """Trains, from the folder's checkpoint where there is one. Raises InputError on what is refused."""
    # Lightning does not know that the stages' loaders go on within an epoch, nor that what is frozen does so.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
    last = outdir / "last.ckpt"
    try:
        trainer.fit(module, ckpt_path=last if last.is_file() else None)
    except SystemExit as end:
        # Lightning ends the process with 1 on Ctrl-C; the script has a word to say, and a code of its own.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    except MisconfigurationException as fault:
        raise refusal(fault) from None
    except OSError as fault:
        if fault.errno != errno.ENOSPC:
            raise
        raise InputError(f"{outdir} cannot be written: {fault.strerror}.") from None


def make_trainer(config: DictConfig, outdir: Path, averaging: WeightAveraging) -> pl.Trainer:
    """Lightning's trainer with the options of the config. Raises InputError on those that it refuses."""
    settings: Any = OmegaConf.to_container(config)
    logger = CSVLogger(outdir, name="metrics")  # a new file each time, so that no loss is lost
    keep_config = rank_zero_only(lambda: write_text(outdir / "config.yaml", OmegaConf.to_yaml(config)))
    callbacks = [
        OfWholeSteps(
            outdir,
            filename="last",
            every_n_train_steps=config.checkpoint_every or settings["trainer"].get("max_steps"),
            enable_version_counter=False,
        ),
        averaging,
        # Late, so that what is refused leaves the config of the run before it.
        LambdaCallback(on_train_start=lambda *_: keep_config()),
    ]
    fixed = {
        "max_epochs": -1,
        "default_root_dir": outdir,
        "logger": logger,
        "callbacks": callbacks,
        "plugins": [WholeCheckpoints()],
        "use_distributed_sampler": False,  # the stages' loaders know of all processes
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
    }
    if taken := sorted(fixed.keys() & settings["trainer"].keys()):
        raise InputError(
            f"trainer.{taken[0]} is set by the script itself: leave it out. A training is as long as "
            "trainer.max_steps says, and trainer.val_check_interval says how often it is looked at."
        )
    for misfit in misfits(pl.Trainer, settings["trainer"]):
        raise InputError(f"trainer.{misfit}.")
    try:
        trainer = pl.Trainer(**({"gradient_clip_val": 1.0} | settings["trainer"] | fixed))
    except (TypeError, ValueError, MisconfigurationException) as fault:
        raise refusal(fault) from None
    if trainer.precision not in PRECISIONS:
        raise InputError(f"trainer.precision is {trainer.precision}: give {', '.join(PRECISIONS)}.")
    return trainer


def refusal(fault: Exception) -> InputError:
    return InputError(f"Lightning refuses the `trainer.` options: {' '.join(str(fault).split())}")


def main(argv: list[str]) -> int:
    asked = parse_arguments(argv)
    code = exit_code(
        lambda: train(asked.config, asked.outdir, asked.overrides, asked.trust_config), "stopped"
    )
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print(
            "the same command goes on from the last checkpoint"
            if (asked.outdir / "last.ckpt").is_file()
            else "there is no checkpoint yet; the same command begins anew",
            file=sys.stderr,
        )
    return code


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
