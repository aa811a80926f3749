"""Gridding: what a stack of dilated convolutions never reads."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_aspp.layers.checks import (
    check_atrous_rates,
    check_odd,
    rate_pair,
    rate_text,
)
from keras_aspp.utils.types import Rate


@dataclasses.dataclass(frozen=True)
class Gridding:
    """Receptive field of a stack of dilated convolutions, and its gaps.

    Attributes:
        rates: tuple of ints or pairs `(height, width)`, in cells.
        kernel_sizes: tuple of ints, one for each rate.
        axes: int arrays `(height,)` and `(width,)`: along each axis, the
            number of ways from a cell of the input to the cell in the middle;
            0 is never seen. The whole pattern is their outer product.
        suggestion: tuple of rates near the given ones that leave nothing out
            and reach as far, or as far as they then can; `rates` where these
            leave nothing out.
    """

    rates: tuple[Rate, ...]
    kernel_sizes: tuple[int, ...]
    axes: tuple[np.ndarray, np.ndarray]
    suggestion: tuple[Rate, ...]

    @property
    def paths(self) -> np.ndarray:
        """Ways along the rows, the first of `axes`."""
        return self.axes[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the receptive field, in cells."""
        return tuple(map(len, self.axes))

    @property
    def size(self) -> int:
        """Longer side of the receptive field, in cells."""
        return max(self.shape)

    @property
    def unseen(self) -> int:
        """Number of cells of the receptive field that are never read."""
        seen = math.prod(int((paths > 0).sum()) for paths in self.axes)
        return math.prod(self.shape) - seen

    @property
    def unseen_share(self) -> float:
        """Share of the receptive field that is never read, in [0, 1)."""
        return self.unseen / math.prod(self.shape)

    @property
    def common_divisor(self) -> int:
        """Greatest common divisor of the rates; above 1 there is a grid.

        Of rates that differ by axis, that of the axis with the larger one.
        """
        return max(math.gcd(*axis) for axis in _by_axis(self.rates))


def gridding(
    rates: Sequence[Rate], kernel_size: int | Sequence[int] = 3
) -> Gridding:
    """Finds the cells that a stack of dilated convolutions never sees.

    Args:
        rates: ints > 0 or pairs `(height, width)`, one for each convolution
            in the row; their order does not matter.
        kernel_size: odd int > 0, or one for each rate. Defaults to 3.

    Returns:
        `Gridding`.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> found = gridding((2, 2, 2))
    >>> found.size, found.unseen, found.suggestion
    (13, 120, (1, 2, 3))

    Reference:
        [Wang et al., 2018](https://arxiv.org/abs/1702.08502), section 3.2.
        Differs from it in: covered cells are counted, not bounded by its rule
        M_2 <= K, which is sufficient but not necessary.
    """
    rates = check_atrous_rates(rates)
    sizes = kernel_size
    if isinstance(kernel_size, int):
        sizes = (kernel_size,) * len(rates)
    for size in sizes:
        check_odd(size)
    by_axis = _by_axis(rates)
    axes = tuple(_paths(axis, sizes) for axis in by_axis)
    better = [
        axis if all(paths) else _without_holes(axis, sizes)
        for axis, paths in zip(by_axis, axes, strict=True)
    ]
    suggestion = rates
    if better[0] == better[1] != by_axis[0] and len(set(sizes)) == 1:
        # The order of equal axes and kernels is free.
        suggestion = tuple(sorted(better[0]))
    elif better != [*by_axis]:
        suggestion = check_atrous_rates([*zip(*better, strict=True)])
    return Gridding(rates, tuple(sizes), axes, suggestion)


def _by_axis(rates):
    """Returns the rates of the rows, and those of the columns."""
    return tuple(zip(*map(rate_pair, rates), strict=True))


def _paths(rates, sizes):
    """Number of ways along one axis from each cell to the middle one."""
    kernels = []
    for rate, size in zip(rates, sizes, strict=True):
        kernel = np.zeros((size - 1) * rate + 1, object)
        kernel[::rate] = 1  # Python's ints: deep stacks overflow others
        kernels.append(kernel)
    return functools.reduce(np.convolve, kernels)


def _without_holes(rates, sizes):
    """Rates near the given ones whose stack leaves no hole.

    The less the first ones are raised, the nearer; they are raised only as
    far as it takes for the last to reach as far as before.
    """
    order = sorted(range(len(rates)), key=lambda i: (rates[i], sizes[i]))
    pairs = [(rates[i], sizes[i]) for i in order]
    best = ()
    for raised in range(sum(rates)):
        found = _unbroken(pairs, raised)
        if sum(found) > sum(best):
            best = found
        if sum(best) == sum(rates):
            break
    return tuple(best[order.index(i)] for i in range(len(rates)))


def _unbroken(pairs, owed):
    """Rates without holes; what one must give up, the next ones add.

    Copies of an unbroken field, moved by a rate, leave no gap between them
    while the rate is at most the field's size.
    """
    found, field, left = [], 1, sum(rate for rate, _ in pairs)
    for later, (rate, size) in zip(
        reversed(range(len(pairs))), pairs, strict=True
    ):
        wanted = rate + owed if later else left
        taken = min(wanted, field, left - later)
        owed += rate - taken
        left -= taken
        field += (size - 1) * taken
        found.append(taken)
    return found


def rates_text(rates: Sequence[Rate]) -> str:
    """Formats rates, long runs of equal ones together: `7 x 1, 2, 2`."""
    words = []
    for rate, same in itertools.groupby(rates):
        count = len(list(same))
        text = rate_text(rate)
        words += [f"{count} x {text}"] if count > 3 else [text] * count
    return ", ".join(words)
