"""Valid taps: how much of a dilated kernel still falls on the map."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from keras_aspp.layers.checks import (
    check_atrous_rate,
    check_odd,
    rate_pair,
)
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_ints
from keras_aspp.utils.types import Pads, Rate, Size


@dataclasses.dataclass(frozen=True)
class ValidTaps:
    """Number of valid taps of a dilated kernel over the cells of a map.

    Attributes:
        rate: int or `(height, width)`, in cells.
        size: `(height, width)` of the map, in cells.
        kernel_size: int.
        shares: dict: number of valid taps -> share of the output's cells
            that have so many, in (0, 1]; sums to 1.
        mean: float in (0, 1]. Share of the kernel's taps that are valid, over
            all cells: 1/9 for a 3x3 that acts as a 1x1.
    """

    rate: Rate
    size: tuple[int, int]
    kernel_size: int
    shares: dict[int, float]
    mean: float

    @property
    def degenerate(self) -> bool:
        """True if only one tap is valid at every cell."""
        return set(self.shares) == {1} and self.kernel_size > 1


def valid_taps(
    rate: Rate,
    size: int | Size,
    kernel_size: int = 3,
    pads: Pads | None = None,
) -> ValidTaps:
    """Counts the taps of a dilated kernel that fall on the map.

    The others fall into the zero padding and multiply nothing.

    Args:
        rate: int > 0 or two of them, `(height, width)`, in cells.
        size: int or `(height, width)`, ints > 0, cells of the map.
        kernel_size: odd int > 0. Defaults to 3.
        pads: `((top, bottom), (left, right))`, ints >= 0, cells of zero padding
            around the map. Defaults to `"same"`; zeros are `"valid"`, which
            loses no tap.

    Returns:
        `ValidTaps`.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> valid_taps(rate=64, size=65).shares[1] > 0.9
    True

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), figure 4, which
        shows the shares of 1, 4 and 9 valid taps on a map of 65x65.
    """
    rate = check_atrous_rate("rate", rate)
    size = check_ints("size", size, 2)
    kernel_size = check_odd(kernel_size)
    if pads is None:
        pads = same_pads(rate, kernel_size)
    rows, columns = map(
        functools.partial(_count, kernel_size), size, rate_pair(rate), pads
    )
    counts, cells = np.unique(np.outer(rows, columns), return_counts=True)
    shares = cells / cells.sum()
    return ValidTaps(
        rate,
        size,
        kernel_size,
        dict(zip(counts.tolist(), shares.tolist(), strict=True)),
        float(counts @ shares) / kernel_size**2,
    )


def same_pads(rate: Rate, kernel_size: int) -> Pads:
    """Returns the padding that keeps the size of a map, at stride 1."""
    return tuple((kernel_size // 2 * apart,) * 2 for apart in rate_pair(rate))


def _count(kernel_size, cells, rate, pads):
    """Counts the valid taps of the output's cells along one axis."""
    before, after = pads
    taps = rate * np.arange(kernel_size)
    num_outputs = before + cells + after - taps[-1]
    if min(pads) < 0 or num_outputs < 1:
        raise InputError(
            "`pads` must be two pairs of ints >= 0 that leave room for the "
            f"kernel. Received: pads={pads}, {cells} cells, rate {rate}"
        )
    at = np.arange(num_outputs)[:, None] - before + taps
    return ((0 <= at) & (at < cells)).sum(axis=1)
