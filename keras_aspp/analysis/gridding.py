"""Gridding: what a stack of dilated convolutions never looks at."""

import dataclasses
import functools
import math

import numpy as np

from keras_aspp.analysis.taps import check_odd
from keras_aspp.layers.aspp import check_atrous_rates


@dataclasses.dataclass(frozen=True)
class Gridding:
    """What dilated convolutions in a row see around a cell.

    Attributes:
        rates: tuple of ints, in cells.
        kernel_size: int.
        paths: int array `(size,)`: along one axis, the number of ways from a
            cell of the input to the cell in the middle; 0 is never seen.
            A square kernel's whole pattern is its outer product.
        suggestion: tuple of ints, rates that leave nothing out and reach as
            far, or nearly; `rates` where these do already.
    """

    rates: tuple
    kernel_size: int
    paths: np.ndarray
    suggestion: tuple

    @property
    def size(self):
        """Side of the receptive field, in cells."""
        return len(self.paths)

    @property
    def unseen(self):
        """Cells of the receptive field that are never seen, int."""
        return self.size**2 - int((self.paths > 0).sum()) ** 2

    @property
    def unseen_share(self):
        """The same as a share of the field, in [0, 1)."""
        return self.unseen / self.size**2

    @property
    def common_divisor(self):
        """Greatest common divisor of the rates; above 1 there is a grid."""
        return math.gcd(*self.rates)


def gridding(rates, kernel_size=3):
    """Finds the cells that a stack of dilated convolutions never sees.

    Args:
        rates: ints > 0, one for each convolution in the row; their order does
            not matter.
        kernel_size: odd int > 0. Defaults to 3.

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
        Differs from it in: what is seen is counted, not bounded by its rule
        M_2 <= K, which is sufficient but not necessary.
    """
    rates = check_atrous_rates(rates)
    check_odd(kernel_size)
    kernels = []
    for rate in rates:
        kernel = np.zeros((kernel_size - 1) * rate + 1, object)
        kernel[::rate] = 1  # Python's ints: deep stacks overflow others
        kernels.append(kernel)
    paths = functools.reduce(np.convolve, kernels)
    suggestion = rates
    if not all(paths):
        suggestion = _without_holes(rates, kernel_size)
    return Gridding(rates, kernel_size, paths, suggestion)


def _without_holes(rates, kernel_size):
    """Rates near the given ones whose stack leaves no hole.

    Copies of an unbroken field, moved by a rate, leave no gap between them
    while the rate is at most the field's size. What one rate must give up,
    the next ones add where they may.
    """
    found, size, owed = [], 1, 0
    for rate in sorted(rates):
        taken = min(rate + owed, size)
        owed += rate - taken
        size += (kernel_size - 1) * taken
        found.append(taken)
    return tuple(sorted(found))
