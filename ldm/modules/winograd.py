"""A 3x3 convolution with 4/9 of its multiplications, after Winograd.

Two by two numbers that come out see four by four that go in. Sums and differences of these, times sums and
differences of the kernel, make sixteen products where thirty-six were; F(2x2, 3x3) in Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks" (CVPR 2016), from whom the letters below are.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.onednn import product

TILES = 1024  # at a time, so that what is made of them is small beside a map


def winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a convolution that keeps height and width makes of x, where oneDNN multiplies; see `is_fast`.

    (B, C, H, W) and (out, C, 3, 3) to (B, out, H, W), channels last.
    """
    batch, _, height, width = x.shape
    rows, columns = -(-height // 2), -(-width // 2)  # of tiles
    some = max(1, TILES // (batch * columns))  # rows of tiles
    g = weight.permute(0, 2, 3, 1)  # (out, 3, 3, C)
    kernels: Iterable[list[Tensor]] = (
        [column.contiguous() for column in of_kernel(row)] for row in of_kernel(g)
    )  # 4 of 4 of (out, C)
    # They are large beside a small map: one that is a single strip has them made as it comes to them.
    if rows > some:
        kernels = list(kernels)
    x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    y = x.new_empty(batch, rows, 2, columns, 2, len(weight))
    for top in range(0, rows, some):
        # A row and a column beyond the tiles on every side, of zeros where the map ends.
        first, last = 2 * top - 1, 2 * min(top + some, rows) + 1
        above, below = max(0, -first), max(0, last - height)
        zeros = 0, 0, 1, 1 + width % 2, above, below
        d = F.pad(x[:, max(0, first) : last], zeros)  # (B, 2k + 2, 2c + 2, C)
        across = []  # 4 of 2 of (B, k, c, out)
        for i, (u, row) in enumerate(zip(kernels, of_input(d, 1), strict=True)):
            v = of_input(row, 2)  # 4 of (B, k, c, C)
            # The product that all four numbers get a quarter of brings the bias.
            m1 = product(v[1], u[1], 4 * bias if i == 1 else None)
            half_sum, half_difference = halves(m1, product(v[2], u[2]))
            across.append((product(v[0], u[0]).add_(half_sum), product(v[3], u[3]).add_(half_difference)))
        for j, (m0, m1, m2, m3) in enumerate(zip(*across, strict=True)):
            half_sum, half_difference = halves(m1, m2)
            torch.add(m0, half_sum, out=y[:, top : top + some, 0, :, j])
            torch.add(m3, half_difference, out=y[:, top : top + some, 1, :, j])
    h = y.view(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]
    return h.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def of_kernel(g: Tensor) -> Iterator[Tensor]:
    """G g: four of the three numbers along the second dimension, those in the middle doubled."""
    g0, g1, g2 = g.unbind(1)
    yield g0
    ends = g0 + g2
    yield ends + g1
    yield ends.sub_(g1)
    yield g2


def of_input(d: Tensor, dim: int) -> list[Tensor]:
    """B^T d: every four of 2n + 2 numbers along a dimension, two apart, make four, each (..., n, ...).

    The last has its sign changed, so that what is made of it is added like the rest.
    """
    even, odd = d.unflatten(dim, (-1, 2)).unbind(dim + 1)
    n = even.shape[dim] - 1
    d0, d2 = even.narrow(dim, 0, n), even.narrow(dim, 1, n)
    d1, d3 = odd.narrow(dim, 0, n), odd.narrow(dim, 1, n)
    return [d0 - d2, d1 + d2, d2 - d1, d3 - d1]


def halves(m1: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    """The halves that G leaves out: half the sum and half the difference, written over m1 and m2."""
    half_sum = torch.lerp(m1, m2, 0.5, out=m1)
    return half_sum, torch.sub(half_sum, m2, out=m2)
