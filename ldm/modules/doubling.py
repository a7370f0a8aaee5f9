"""A map doubled by nearest neighbour and convolved, with a quarter of the convolution's multiplications.

Along one axis a kernel (a, b, c) makes two numbers of each that goes in, a x[i-1] + (b + c) x[i] and
(a + b) x[i] + c x[i+1]. Both are (a + b + c) x[i] and one product more: of a and the step that comes before,
x[i-1] - x[i], or of -c and the step that comes after, x[i] - x[i+1]. So three products make two numbers, and
along both axes nine make four, where a convolution takes thirty-six.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.modules.onednn import product

POSITIONS = 2048  # at a time, so that what is made of them is small beside a map


def convolved_double(
    x: Tensor, weight: Tensor, bias: Tensor, above: int = 0, below: int = 0, y: Tensor | None = None
) -> Tensor:
    """What a convolution that keeps height and width makes of x doubled, by oneDNN; see `is_fast`.

    (B, C, H, W) and (out, C, 3, 3) to (B, out, 2H, 2W), channels last. The first `above` and the last `below`
    rows of x are a halo: read, but nothing is made of them. The rest is written to `y`, where that is given.
    """
    batch, channels, height, width = x.shape
    inside = height - above - below
    if y is None:
        y = x.new_empty(batch, 2 * inside, 2 * width, len(weight)).permute(0, 3, 1, 2)
    made = y.permute(0, 2, 3, 1).view(batch, inside, 2, width, 2, -1)
    g = weight.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (out, 3, 3, C)
    whole, before, after = (
        [part.contiguous() for part in of_kernel(row)] for row in of_kernel(g)
    )  # each 3 of (out, C)
    x = x.permute(2, 0, 3, 1)  # (H, B, W, C)
    # A zero ahead of every row is the border to its left, and to the right of the row before.
    line = batch * (width + 1)  # positions of a row of all maps
    some = max(1, POSITIONS // line)
    for top in range(above, above + inside, some):
        k = min(some, above + inside - top)
        first, last = max(0, top - 1), min(top + k + 1, height)
        d = x.new_zeros(1 + (k + 2) * line + 1, channels)
        rows = d[1:-1].view(k + 2, batch, width + 1, channels)
        rows[first - top + 1 : last - top + 1, :, 1:] = x[first:last]
        down = steps(d, line)  # every position less the one below
        middle = across(d[line:-line], whole, bias)  # 2 of (k * line, out)
        upper = across(down[:-line], before)
        lower = across(down[line:], after)
        for j in range(2):
            for i, rest in enumerate((upper, lower)):
                out = made[:, top - above : top - above + k, i, :, j].transpose(0, 1)  # (k, B, W, out)
                both = (it[j].view(k, batch, width + 1, -1)[:, :, 1:] for it in (middle, rest))
                torch.add(*both, out=out)
    return y


def of_kernel(g: Tensor) -> Iterator[Tensor]:
    """a + b + c, a and -c of the three numbers along the second dimension."""
    a, b, c = g.unbind(1)
    yield a + b + c
    yield a
    yield -c


def steps(d: Tensor, far: int) -> Tensor:
    """Every position less the one so far behind it, (N, C) to (N - far, C)."""
    return d[:-far] - d[far:]


def across(d: Tensor, kernels: list[Tensor], bias: Tensor | None = None) -> list[Tensor]:
    """The left and the right number of all positions but the outermost, (N + 2, C) to 2 of (N, out)."""
    whole, *ends = kernels
    both, step = product(d[1:-1], whole, bias), steps(d, 1)  # (N, out), (N + 1, C)
    return [product(part, end).add_(both) for part, end in zip((step[:-1], step[1:]), ends, strict=True)]
