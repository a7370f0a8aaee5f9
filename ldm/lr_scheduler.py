"""The learning rate's multiplier over the steps of a training, as latent diffusion's configs name it."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from ldm.errors import InputError


class LambdaLinearScheduler:
    """A multiplier that rises linearly and then falls linearly, cycle after cycle; for `LambdaLR`.

    Every list has one entry a cycle. Cycle i lasts `cycle_lengths[i]` steps, of which the first
    `warm_up_steps[i]` rise from `f_start[i]` to `f_max[i]`. As in the original, the fall to `f_min[i]` at the
    cycle's end is counted from its beginning, so that a warm-up cuts off the fall's first part. After the
    last cycle the multiplier stays.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
    ):
        if not 0 < len(warm_up_steps) == len(f_min) == len(f_max) == len(f_start) == len(cycle_lengths):
            raise InputError("LambdaLinearScheduler needs lists of one length, with an entry a cycle.")
        self.cycles = list(zip(warm_up_steps, f_min, f_max, f_start, cycle_lengths, strict=True))
        self.ends = list(accumulate(cycle_lengths))

    def schedule(self, n: int) -> float:
        """The multiplier at step n, from 0."""
        # A step on the border of two cycles belongs to the one that ends.
        cycle = bisect_left(self.ends, n)
        if cycle == len(self.cycles):
            return self.cycles[-1][1]
        warm_up, f_min, f_max, f_start, length = self.cycles[cycle]
        step = n - (self.ends[cycle] - length)
        if step < warm_up:
            return f_start + (f_max - f_start) * step / warm_up
        return f_min + (f_max - f_min) * (length - step) / length

    def __call__(self, n: int) -> float:
        return self.schedule(n)
