"""How the U-Net's step and the decoder grow with the size of the picture and of the batch.

Each size is held against what its arithmetic predicts: the reference's seconds in the same round, times the
floating-point operations of the one over those of the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.files import written_whole
from ldm.plots import COLOURS, FAINT, PAGE, style
from ldm.study.bench.networks import CONTEXT, decoding, made_up, our_autoencoder, our_unet
from ldm.study.bench.rounds import Row, Work, alternate

WHATS = ("growth of the step", "growth of the decode")
# Batch and side of the latents; the reference comes first.
STEPS = ((2, 64), (2, 32), (2, 96), (2, 128), (1, 64), (4, 64), (8, 64))
DECODES = ((1, 64), (1, 32), (1, 128), (1, 256))
TURN = 15.0  # seconds at least that a size has in a round, as one takes a hundred times as long as another


def step_inputs(batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 4, side, side), timesteps (B,) and context (B, 77, 768) at random."""
    return torch.randn(batch, 4, side, side), torch.full((batch,), 501), torch.randn(batch, *CONTEXT)


def arithmetic(build: Callable[[], nn.Module], work: Callable[[Any], object]) -> int:
    """The floating-point operations of `work` on a network, counted on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        work(build())
    return counter.get_total_flops()


def step_arithmetic(batch: int, side: int) -> int:
    """That of a step on latents of that batch and side."""
    return arithmetic(our_unet, lambda unet: unet(*step_inputs(batch, side)))


def decode_arithmetic(batch: int, side: int) -> int:
    """That of a decode, in one piece."""
    return arithmetic(our_autoencoder, lambda made: made.decode(torch.randn(batch, 4, side, side)))


def grown(what: str, dtype: torch.dtype, flops: Sequence[int], seconds: dict[str, list[float]]) -> list[Row]:
    """Each size's rounds beside those predicted; `flops` and `seconds` are in the same order."""
    reference = next(iter(seconds.values()))
    return [
        Row(f"{what}, {size}", str(dtype).removeprefix("torch."), f"{count / 1e12:.2f} TFLOP", taken,
            [one * count / flops[0] for one in reference])
        for count, (size, taken) in zip(flops, seconds.items(), strict=True)
    ]  # fmt: skip


def steps(dtype: torch.dtype, device: torch.device, rounds: int) -> list[Row]:
    """A step of Stable Diffusion 1.4's U-Net with FreeU V1 at each batch and side."""
    unet: Any = made_up(our_unet, dtype, device)

    def work(batch: int, side: int) -> Work:
        x, t, context = step_inputs(batch, side)
        inputs = x.to(device, dtype), t.to(device), context.to(device, dtype)
        return lambda: unet(*inputs)

    works = {f"{batch} x {side}x{side}": work(batch, side) for batch, side in STEPS}
    flops = [step_arithmetic(batch, side) for batch, side in STEPS]
    return grown(WHATS[0], dtype, flops, alternate(works, rounds, device, least=TURN))


def decodes(dtype: torch.dtype, device: torch.device, rounds: int) -> list[Row]:
    """The decoder at each batch and side; in strips where pictures are, too."""
    autoencoder: Any = made_up(our_autoencoder, dtype, device)

    def work(batch: int, side: int) -> Work:
        return decoding(autoencoder, torch.randn(batch, 4, side, side).to(device, dtype))

    works = {f"{8 * side}x{8 * side}": work(batch, side) for batch, side in DECODES}
    flops = [decode_arithmetic(batch, side) for batch, side in DECODES]
    return grown(WHATS[1], dtype, flops, alternate(works, rounds, device, least=TURN))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Each size's time over that predicted, a panel for each network; left of the line it does better.

    The bar spans the middle eight tenths of the rounds, and beside it stand the seconds. The file is a PNG or
    a PDF by its ending. Raises InputError where the disk refuses it.
    """
    with style():
        figure = Figure(figsize=(PAGE, 2.8), layout="constrained")
        for axes, what in zip(figure.subplots(1, len(WHATS)), WHATS, strict=True):
            mine = [row for row in rows if row.what.startswith(what + ",")]
            kinds = list(dict.fromkeys(row.dtype for row in mine))
            sizes = list(dict.fromkeys(size_of(row) for row in mine))
            for row in mine:
                kind = kinds.index(row.dtype)
                y = sizes.index(size_of(row)) + 0.3 * (kind - (len(kinds) - 1) / 2)
                _, _, _, ms, middle, low, high = row.cells()
                axes.plot([low, high], [y, y], color=COLOURS[kind])
                axes.plot(middle, y, "os^"[kind], color=COLOURS[kind], markersize=4)
                axes.annotate(
                    f"{ms / 1000:.3g} s", (high, y), (4, -2), textcoords="offset points", fontsize=6
                )
            axes.axvline(1, color=FAINT, zorder=0)
            axes.set_yticks(range(len(sizes)), sizes)
            axes.invert_yaxis()
            axes.grid(visible=False)
            axes.margins(x=0.25)
            axes.set(title=what, xlabel="times as long as its arithmetic predicts")
        marks = [
            axes.plot([], [], "os^"[kind], color=COLOURS[kind], markersize=4, label=name)[0]
            for kind, name in enumerate(kinds)
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=len(kinds))
        with written_whole(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=200)


def size_of(row: Row) -> str:
    """The size that a row of the growth is of."""
    return row.what.partition(", ")[2]
