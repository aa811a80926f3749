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
from keras_aspp.utils.numeric import check_ints
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
            and reach as far, or as far as they then can (2 cells less at
            times, where kernels differ in size); `rates` where these leave
            nothing out.
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
    sizes = check_ints("kernel_size", kernel_size, len(rates))
    sizes = tuple(map(check_odd, sizes))
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
    far as it takes for the last to reach as far as before. Of kernels that
    differ in size, which comes first decides how far the stack can reach.
    """
    reach = sum(
        rate * (size - 1) for rate, size in zip(rates, sizes, strict=True)
    )
    # A kernel of one cell has no reach, so any rate will do.
    spatial = [i for i, size in enumerate(sizes) if size > 1]
    orders = [
        sorted(spatial, key=lambda i: (rates[i], sizes[i])),
        sorted(spatial, key=lambda i: (rates[i], -sizes[i])),
        sorted(spatial, key=lambda i: (-sizes[i], rates[i])),
        sorted(spatial, key=lambda i: (sizes[i], rates[i])),
    ]
    best, farthest = rates, 0
    for raised, order in itertools.product(range(0, reach, 2), orders):
        found = _unbroken([(rates[i], sizes[i] - 1) for i in order], raised)
        far = sum(
            rate * (sizes[i] - 1) for i, rate in zip(order, found, strict=True)
        )
        if far > farthest:
            of_layer = dict(zip(order, found, strict=True))
            best = tuple(of_layer.get(i, r) for i, r in enumerate(rates))
            farthest = far
        if farthest == reach:
            break
    return best


def _unbroken(pairs, owed):
    """Rates without holes; what one must give up, the next ones add.

    Copies of an unbroken field, moved by a rate, leave no gap between them
    while the rate is at most the field's size.

    Args:
        pairs: `(rate, span)`: of a kernel of size k, the span is k - 1.
        owed: int, cells of reach that the first ones add.
    """
    found, field = [], 1
    left = sum(rate * span for rate, span in pairs)
    later = sum(span for _, span in pairs)  # the least that those need
    for i, (rate, span) in enumerate(pairs, start=1):
        later -= span
        wanted = rate + owed // span if i < len(pairs) else left // span
        taken = max(min(wanted, field, (left - later) // span), 1)
        owed += (rate - taken) * span
        left -= taken * span
        field += taken * span
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
