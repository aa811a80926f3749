"""Depthwise convolution as shifted multiply-adds, the form that XLA fuses.

XLA's own depthwise convolution takes 5 to 12 times as long on a CPU as this
sum of shifted maps, forward and gradient (docs/performance.md).
Shape legend: B batch, H x W cells, h x w cells of the result, C channels.
"""

from keras import ops


def depthwise_taps(x, kernel, strides, padding, atrous_rate):
    """Depthwise convolution; arguments and result as `convolve_depthwise`.

    Strided, a map is several interleaved ones, and a tap reads one of them.

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

    # Derived from the forward pass, the gradient would be a chain of padded
    # sums; here it is made of taps too.
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
            # Strides beyond the kernel leave maps that no tap reads.
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
    """Where the taps of one axis lie.

    Attributes:
        stride: int.
        cells: of the result.
        reach: int, by how far a tap is shifted at most, in cells of an
            interleaved map.
        length: of the padded map, whole interleaved maps.
        pads: `(before, after)` of the map.
        taps: list of `(phase, shift)`: which interleaved map a tap reads, and
            from which cell on.
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
    """The maps that `x` is made of, (phases, B, cells + reach, ..., C)."""
    x = ops.pad(x, ((0, 0), rows.pads, columns.pads, (0, 0)))
    if rows.stride == columns.stride == 1:
        return x[None]
    # What no window reaches is cut off.
    x = x[:, : rows.length, : columns.length]
    size, channels = [], x.shape[-1]
    for axis in (rows, columns):
        size += [axis.length // axis.stride, axis.stride]
    x = ops.transpose(ops.reshape(x, (-1, *size, channels)), (2, 4, 0, 1, 3, 5))
    return ops.reshape(x, (size[1] * size[3], -1, size[0], size[2], channels))
