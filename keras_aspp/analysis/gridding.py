"""Gridding: what a stack of dilated convolutions never reads."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_aspp.layers.checks import check_atrous_rates, check_odd


@dataclasses.dataclass(frozen=True)
class Gridding:
    """Receptive field of a stack of dilated convolutions, and its gaps.

    Attributes:
        rates: tuple of ints, in cells.
        kernel_sizes: tuple of ints, one for each rate.
        paths: int array `(size,)`: along one axis, the number of ways from a
            cell of the input to the cell in the middle; 0 is never seen.
            A square kernel's whole pattern is its outer product.
        suggestion: tuple of ints, rates near the given ones that leave
            nothing out and reach as far, or as far as they then can; `rates`
            where these leave nothing out.
    """

    rates: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    paths: np.ndarray
    suggestion: tuple[int, ...]

    @property
    def size(self) -> int:
        """Side of the receptive field, in cells."""
        return len(self.paths)

    @property
    def unseen(self) -> int:
        """Number of cells of the receptive field that are never read."""
        return self.size**2 - int((self.paths > 0).sum()) ** 2

    @property
    def unseen_share(self) -> float:
        """Share of the receptive field that is never read, in [0, 1)."""
        return self.unseen / self.size**2

    @property
    def common_divisor(self) -> int:
        """Greatest common divisor of the rates; above 1 there is a grid."""
        return math.gcd(*self.rates)


def gridding(
    rates: Sequence[int], kernel_size: int | Sequence[int] = 3
) -> Gridding:
    """Finds the cells that a stack of dilated convolutions never sees.

    Args:
        rates: ints > 0, one for each convolution in the row; their order does
            not matter.
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
    kernels = []
    for rate, size in zip(rates, sizes, strict=True):
        kernel = np.zeros((size - 1) * rate + 1, object)
        kernel[::rate] = 1  # Python's ints: deep stacks overflow others
        kernels.append(kernel)
    paths = functools.reduce(np.convolve, kernels)
    suggestion = rates if all(paths) else _without_holes(rates, sizes)
    return Gridding(rates, tuple(sizes), paths, suggestion)


def _without_holes(rates, sizes):
    """Rates near the given ones whose stack leaves no hole.

    The less the first ones are raised, the nearer; they are raised only as
    far as it takes for the last to reach as far as before.
    """
    pairs = sorted(zip(rates, sizes, strict=True))
    best = ()
    for raised in range(sum(rates)):
        found = _unbroken(pairs, raised)
        if sum(found) > sum(best):
            best = found
        if sum(best) == sum(rates):
            break
    return best


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
    return tuple(sorted(found))


def rates_text(rates: Sequence[int]) -> str:
    """Formats rates, long runs of equal ones together: `7 x 1, 2, 2`."""
    words = []
    for rate, same in itertools.groupby(rates):
        count = len(list(same))
        words += [f"{count} x {rate}"] if count > 3 else [str(rate)] * count
    return ", ".join(words)
