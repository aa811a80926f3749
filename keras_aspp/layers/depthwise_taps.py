"""Depthwise convolution as shifted multiply-adds, which XLA fuses.

XLA's own depthwise convolution takes 5 to 12 times as long on a CPU as this
sum of shifted maps, forward and gradient (docs/performance.md).
Shape legend: B batch, H x W cells, h x w cells of the result, C channels.
"""

from __future__ import annotations

from typing import Literal

from keras import ops

from keras_aspp.utils.types import Size, Tensor


def depthwise_taps(
    x: Tensor,
    kernel: Tensor,
    strides: Size,
    padding: Literal["same", "valid"],
    atrous_rate: Size,
) -> Tensor:
    """Computes a depthwise convolution as a sum of shifted maps.

    With strides, the input is split into interleaved maps (phases); each tap
    reads one of them.

    Args:
        x: float tensor (B, H, W, C); H and W are ints where it is strided.
        kernel: float tensor (kh, kw, C, multiplier).
        strides: `(height, width)`, ints > 0.
        padding: `"same"` or `"valid"`.
        atrous_rate: `(height, width)`, ints > 0.

    Returns:
        float tensor (B, h, w, C * multiplier). Sums are in float32.
    """
    kh, kw, channels, multiplier = kernel.shape
    if multiplier > 1:
        x = ops.repeat(x, multiplier, axis=-1)
    kernel = ops.reshape(kernel, (kh, kw, channels * multiplier))
    rows, columns = (
        _Axis(*numbers, padding)
        for numbers in zip(
            ops.shape(x)[1:3], (kh, kw), strides, atrous_rate, strict=True
        )
    )
    maps = _interleaved(x, rows, columns)

    def shifted(maps, top, left):
        height, width = rows.cells, columns.cells
        return maps[:, top : top + height, left : left + width]

    taps = [
        (i, j, row_phase * columns.stride + column_phase, top, left)
        for i, (row_phase, top) in enumerate(rows.taps)
        for j, (column_phase, left) in enumerate(columns.taps)
    ]

    # Automatic differentiation would give a chain of padded sums; this
    # gradient is a sum of taps, which XLA fuses as well.
    @ops.custom_gradient
    def convolved(maps, kernel):
        def as_floats(tensor):
            return ops.cast(tensor, "float32")

        total = 0.0
        for i, j, phase, top, left in taps:
            tap = as_floats(shifted(maps[phase], top, left))
            total = total + tap * as_floats(kernel[i, j])

        def gradient(*args, upstream=None):
            upstream = as_floats(args[0] if upstream is None else upstream)
            high, wide = rows.reach, columns.reach
            around = ops.pad(
                upstream, ((0, 0), (high, high), (wide, wide), (0, 0))
            )
            # With strides beyond the kernel, some maps are read by no tap.
            nothing = ops.zeros_like(maps[0], dtype="float32")
            of_maps, of_kernel = [nothing] * maps.shape[0], []
            for i, j, phase, top, left in taps:
                seen = around[
                    :,
                    high - top : 2 * high - top + rows.cells,
                    wide - left : 2 * wide - left + columns.cells,
                ]
                of_maps[phase] = of_maps[phase] + seen * as_floats(kernel[i, j])
                tap = as_floats(shifted(maps[phase], top, left))
                of_kernel.append(ops.sum(tap * upstream, axis=(0, 1, 2)))
            return (
                ops.cast(ops.stack(of_maps), maps.dtype),
                ops.cast(
                    ops.reshape(ops.stack(of_kernel), kernel.shape),
                    kernel.dtype,
                ),
            )

        return ops.cast(total, maps.dtype), gradient

    return convolved(maps, kernel)


class _Axis:
    """Positions of the taps along one axis.

    Attributes:
        stride: int.
        cells: int, size of the result.
        reach: int, largest shift of a tap, in cells of an interleaved map.
        length: int, size of the padded map, a multiple of `stride`.
        pads: `(before, after)`, padding of the input.
        taps: list of `(phase, shift)`: the interleaved map that a tap reads
            and the first cell it reads.
    """

    def __init__(self, size, kernel, stride, rate, padding):
        span, total = (kernel - 1) * rate, 0
        if padding == "same":
            total = span
            if stride > 1:
                cells = -(-size // stride)
                total = max((cells - 1) * stride + span + 1 - size, 0)
        self.stride = stride
        self.cells = (size + total - span - 1) // stride + 1
        self.reach = span // stride
        self.length = (self.cells + self.reach) * stride
        before = total // 2
        after = total - before if stride == 1 else self.length - size - before
        self.pads = (before, max(after, 0))
        self.taps = [
            (i * rate % stride, i * rate // stride) for i in range(kernel)
        ]


def _interleaved(x, rows, columns):
    """Splits `x` into interleaved maps, (phases, B, cells + reach, ..., C)."""
    x = ops.pad(x, ((0, 0), rows.pads, columns.pads, (0, 0)))
    if rows.stride == columns.stride == 1:
        return x[None]
    # Cells that no window reaches are cut off.
    x = x[:, : rows.length, : columns.length]
    size, channels = [], x.shape[-1]
    for axis in (rows, columns):
        size += [axis.length // axis.stride, axis.stride]
    x = ops.transpose(ops.reshape(x, (-1, *size, channels)), (2, 4, 0, 1, 3, 5))
    return ops.reshape(x, (size[1] * size[3], -1, size[0], size[2], channels))
