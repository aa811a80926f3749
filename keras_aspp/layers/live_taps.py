"""Dilated convolution that computes only the taps on the map.

On a small map a dilated kernel reads padding most of the time: a 3x3 kernel of
rate 18 on 33x33 cells has 40 % of its taps on the map. Each tap is one matrix
product over the cells that it reads.
Shape legend: B batch, H x W cells, C input channels, F filters.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

from keras import ops

from keras_aspp.utils.types import Size, Tensor


def live_share(size: Size, kernel_size: Size, atrous_rate: Size) -> float:
    """Computes the share of a kernel's taps on the map, over all cells.

    Args:
        size: `(height, width)` of the map, ints > 0, in cells.
        kernel_size: `(height, width)`, ints > 0.
        atrous_rate: `(height, width)`, ints > 0.

    Returns:
        float in [0, 1], for stride 1 and padding `"same"`.

    Example:
    >>> round(live_share((33, 33), (3, 3), (18, 18)), 3)
    0.405
    """
    axes = zip(size, kernel_size, atrous_rate, strict=True)
    return math.prod(
        sum(max(n - abs(offset), 0) for offset in _offsets(k, rate)) / (n * k)
        for n, k, rate in axes
    )


def crop_kernel(
    kernel: Tensor, size: Size, atrous_rate: Size
) -> tuple[Tensor, Size]:
    """Removes the outer taps that read padding at every cell.

    Args:
        kernel: tensor (kh, kw, ...).
        size: `(height, width)` of the map, ints > 0, in cells.
        atrous_rate: `(height, width)`, ints > 0.

    Returns:
        `(kernel, atrous_rate)` of the same `"same"` convolution at stride 1;
        the rate is 1 along an axis with one tap.
    """
    cuts, rates = [], []
    axes = zip(kernel.shape[:2], size, atrous_rate, strict=True)
    for k, n, rate in axes:
        dead = [abs(offset) >= n for offset in _offsets(k, rate)]
        # In pairs, so that the padding before the map shrinks by one rate.
        pairs = list(zip(dead, reversed(dead), strict=True))[: (k - 1) // 2]
        removed = sum(1 for _ in itertools.takewhile(all, pairs))
        cuts.append(slice(removed, k - removed))
        rates.append(1 if k - 2 * removed == 1 else rate)
    if any(cut.start for cut in cuts):
        kernel = kernel[tuple(cuts)]
    return kernel, tuple(rates)


def convolve_live_taps(
    x: Tensor,
    kernel: Tensor,
    atrous_rate: Size,
    forward: Callable[..., Tensor] | None = None,
    backward: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Computes a `"same"` convolution of stride 1 without its padding.

    Args:
        x: float tensor (B, H, W, C), H and W ints.
        kernel: float tensor (kh, kw, C, F), kh and kw odd, every tap on the
            map at some cell; see `crop_kernel`.
        atrous_rate: `(height, width)`, ints > 0.
        forward: function of `(x, kernel)` that computes the result, or `None`
            for live taps.
        backward: function of `(x, kernel, upstream)` that computes the
            gradient of `x`, or `None` for live taps.

    Returns:
        float tensor (B, H, W, F). Sums over taps are in float32.
    """
    kh, kw = kernel.shape[:2]
    rows = _Axis(x.shape[1], kh, atrous_rate[0])
    columns = _Axis(x.shape[2], kw, atrous_rate[1])
    forward = forward or functools.partial(
        sum_of_taps, atrous_rate=atrous_rate, product=_product
    )
    backward = backward or functools.partial(_gradient_of_map, rows, columns)

    # Automatic differentiation would pad and add a map of C channels for
    # each tap.
    @ops.custom_gradient
    def convolved(x, kernel):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return (
                backward(x, kernel, upstream),
                _gradient_of_kernel(rows, columns, x, kernel, upstream),
            )

        return forward(x, kernel), gradient

    # A variable would be read inside, where its gradient is not returned.
    return convolved(x, ops.reshape(kernel, kernel.shape))


def sum_of_taps(
    x: Tensor,
    kernel: Tensor,
    atrous_rate: Size,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Computes the result of `convolve_live_taps`, without its gradient.

    Args:
        x: float tensor (B, H, W, C), H and W ints.
        kernel: float tensor (kh, kw, C, F); see `convolve_live_taps`.
        atrous_rate: `(height, width)`, ints > 0.
        product: function of cells (B, h, w, C) and weights (C, F) that
            computes their product, float32 (B, h, w, F).

    Returns:
        float tensor (B, H, W, F).
    """
    kh, kw = kernel.shape[:2]
    rows = _Axis(x.shape[1], kh, atrous_rate[0])
    columns = _Axis(x.shape[2], kw, atrous_rate[1])
    lines = []
    for i in range(kh):
        line = []
        for j in range(kw):
            cells = _window(x, rows.reads(i), columns.reads(j))
            tap = product(cells, kernel[i, j])
            line.append(_padded(tap, (0, 0), columns.without(j)))
        line = functools.reduce(ops.add, line)
        lines.append(_padded(line, rows.without(i), (0, 0)))
    return ops.cast(functools.reduce(ops.add, lines), x.dtype)


def _window(x, rows, columns):
    """Returns cells of a map; the whole one would be copied."""
    size = (rows.stop - rows.start, columns.stop - columns.start)
    return x if size == tuple(x.shape[1:3]) else x[:, rows, columns]


def _padded(x, rows, columns):
    pads = ((0, 0), rows, columns, (0, 0))
    return ops.pad(x, pads) if any(map(any, pads)) else x


def _product(cells, weights):
    channels, filters = weights.shape
    columns = ops.reshape(ops.cast(cells, "float32"), (-1, channels))
    found = ops.matmul(columns, ops.cast(weights, "float32"))
    return ops.reshape(found, (-1, *cells.shape[1:3], filters))


def _gradient_of_map(rows, columns, x, kernel, upstream):
    """Returns the gradient of the input, (B, H, W, C).

    One matrix product for each band of cells that the same taps read: with
    one for each tap, nine maps of C channels would be added.
    """
    channels = x.shape[-1]
    kernel = ops.transpose(kernel, (2, 0, 1, 3))
    lines = []
    for top, bottom, i in rows.bands():
        line = []
        for left, right, j in columns.bands():
            reached = [
                upstream[:, top - a : bottom - a, left - b : right - b]
                for a in rows.offsets[i]
                for b in columns.offsets[j]
            ]
            reached = ops.concatenate(reached, axis=-1)
            reached = ops.reshape(reached, (-1, reached.shape[-1]))
            weights = ops.reshape(kernel[:, i, j], (channels, -1))
            band = ops.matmul(reached, ops.transpose(weights))
            size = (bottom - top, right - left)
            line.append(ops.reshape(band, (-1, *size, channels)))
        lines.append(ops.concatenate(line, axis=2))
    return ops.concatenate(lines, axis=1)


def _gradient_of_kernel(rows, columns, x, kernel, upstream):
    """Returns the gradient of the kernel, (kh, kw, C, F)."""
    kh, kw, channels, filters = kernel.shape
    taps = []
    for i, j in itertools.product(range(kh), range(kw)):
        cells = x[:, rows.reads(i), columns.reads(j)]
        reached = upstream[:, rows.writes(i), columns.writes(j)]
        cells = ops.reshape(cells, (-1, channels))
        reached = ops.reshape(reached, (-1, filters))
        # (F, C): the smaller operand is the one to transpose.
        taps.append(ops.matmul(ops.transpose(reached), cells))
    taps = ops.transpose(ops.stack(taps), (0, 2, 1))
    return ops.reshape(taps, kernel.shape)


def _offsets(k, rate):
    """Returns the cell that each tap reads, relative to the result's cell."""
    return [i * rate - (k - 1) * rate // 2 for i in range(k)]


class _Axis:
    """Positions of the taps along one axis.

    Attributes:
        size: int, cells of the map.
        offsets: list of ints; tap `i` at cell `n` reads `n + offsets[i]`.
    """

    def __init__(self, size, k, rate):
        self.size = size
        self.offsets = _offsets(k, rate)

    def reads(self, tap):
        """Returns the slice of the input that a tap reads."""
        offset = self.offsets[tap]
        return slice(max(offset, 0), self.size + min(offset, 0))

    def writes(self, tap):
        """Returns the slice of the result where a tap is on the map."""
        offset = self.offsets[tap]
        return slice(max(-offset, 0), self.size - max(offset, 0))

    def without(self, tap):
        """Returns `(before, after)`, cells of the result without this tap."""
        writes = self.writes(tap)
        return writes.start, self.size - writes.stop

    def bands(self):
        """Returns `(first, end, taps)`, ranges of input cells by their taps."""
        parts = [self.reads(tap) for tap in range(len(self.offsets))]
        edges = sorted({edge for s in parts for edge in (s.start, s.stop)})
        found = []
        for first, end in itertools.pairwise(edges):
            taps = [
                tap
                for tap, part in enumerate(parts)
                if part.start <= first and end <= part.stop
            ]
            found.append((first, end, slice(taps[0], taps[-1] + 1)))
        return found
