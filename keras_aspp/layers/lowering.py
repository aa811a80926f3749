"""Forms of each operation: graph, XLA or export.

Each operation has one form that TensorFlow's kernels run fast, one that XLA
can fuse, and one that the TFLite converter keeps as a single builtin operator.
Only this module chooses among them; layers call it.

| operation | graph | XLA | export (TFLite) |
|---|---|---|---|
| dilated convolution | `tf.nn.conv2d` | the same | the same |
| - on a small map (CPU) | live taps | live taps | live taps, 1x1 each |
| depthwise convolution | `tf.nn.depthwise_conv2d` | taps (CPU) | native |
| dilated pooling | slices | the same | the same |
| crop | `Slice` | `StridedSlice` | `StridedSlice` |
| preprocessing | multiply, add | the same | native depthwise |
| bilinear resize | `ResizeBilinear` | two matrix products | `ResizeBilinear` |
| batch norm in training | `FusedBatchNormV3` | Keras' | - |

On the JAX backend everything takes the XLA form.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_aspp.layers.depthwise_taps import depthwise_taps
from keras_aspp.layers.live_taps import (
    convolve_live_taps,
    crop_kernel,
    live_share,
    sum_of_taps,
)
from keras_aspp.litert.names import live_taps_scope
from keras_aspp.utils.types import Pads, Size, Tensor

# With more, a sum of shifted maps compiles in minutes and runs slower than
# XLA's own convolution: 13x13 takes 22 times as long (docs/performance.md).
_MOST_TAPS = 49

# A context variable, so that an export in one thread does not change the form
# that another thread traces: `live_taps` of `export_form`, `None` outside.
_exporting = contextvars.ContextVar("exporting", default=None)


@contextlib.contextmanager
def export_form(live_taps: bool = False) -> Iterator[None]:
    """Context in which traced functions use the export forms.

    For inference only: the gradient of a dilated depthwise convolution
    is silently wrong in this form on the CPU (TensorFlow 2.21).

    Args:
        live_taps: bool. Dilated convolutions of small maps become one 1x1
            convolution for each tap, which LiteRT runs faster in floats on a
            CPU.
    """
    token = _exporting.set(live_taps)
    try:
        yield
    finally:
        _exporting.reset(token)


def form() -> Literal["graph", "xla", "export"]:
    """Returns the form to use here: `"graph"`, `"xla"` or `"export"`."""
    if keras.backend.backend() != "tensorflow":
        return "xla"
    if _exporting.get() is not None:
        return "export"
    return "xla" if _in_xla_context() else "graph"


def convolve(
    x: Tensor,
    kernel: Tensor,
    strides: Size,
    padding: Literal["same", "valid"],
    atrous_rate: Size,
) -> Tensor:
    """Computes a 2D convolution, `kernel` (kh, kw, C, F).

    Args:
        x: float tensor (B, H, W, C).
        kernel: float tensor of the same dtype.
        strides: `(height, width)`, ints > 0.
        padding: `"same"` or `"valid"`.
        atrous_rate: `(height, width)`, ints > 0.

    Returns:
        float tensor (B, h, w, F).
    """
    if x.shape[-1] == kernel.shape[-1] > kernel.shape[-2] == 1:
        # One group for each channel: a depthwise convolution in ConvNeXt.
        kernel = ops.transpose(kernel, (0, 1, 3, 2))
        return convolve_depthwise(x, kernel, strides, padding, atrous_rate)
    kernel, atrous_rate = _without_dead_taps(
        x, kernel, strides, padding, atrous_rate
    )
    how = _live_taps(x, kernel, strides, padding, atrous_rate)
    if how == "all" and form() == "export":
        return _live_taps_of_export(x, kernel, atrous_rate)
    if how == "all":
        return convolve_live_taps(x, kernel, atrous_rate)
    if how == "kernel":
        return convolve_live_taps(
            x,
            kernel,
            atrous_rate,
            functools.partial(_conv2d, atrous_rate=atrous_rate),
            functools.partial(_conv2d_gradient, atrous_rate=atrous_rate),
        )
    plain = (
        keras.backend.backend() != "tensorflow"
        or x.shape[-1] != kernel.shape[-2]  # groups, which Keras handles
        or (
            max(atrous_rate) > 1
            and form() == "graph"
            and not _has_dilated_gradient(x)
        )
    )
    if plain:
        return ops.conv(
            x,
            kernel,
            strides=tuple(strides),
            padding=padding,
            dilation_rate=tuple(atrous_rate),
            data_format="channels_last",
        )
    return _conv2d(x, kernel, atrous_rate, strides, padding)


def convolve_depthwise(
    x: Tensor,
    kernel: Tensor,
    strides: Size,
    padding: Literal["same", "valid"],
    atrous_rate: Size,
) -> Tensor:
    """Computes a depthwise convolution, `kernel` (kh, kw, C, multiplier).

    Arguments and result as `convolve`, F = C * multiplier.
    """
    kernel, atrous_rate = _without_dead_taps(
        x, kernel, strides, padding, atrous_rate
    )
    how = form()
    strided = max(strides) > 1
    static = all(isinstance(n, int) for n in x.shape[1:3])
    few = math.prod(kernel.shape[:2]) <= _MOST_TAPS
    if how == "xla" and few and (static or not strided) and _on_cpu():
        return depthwise_taps(x, kernel, strides, padding, atrous_rate)
    if how == "export" and not strided:
        import tensorflow as tf

        return tf.raw_ops.DepthwiseConv2dNative(
            input=x,
            filter=kernel,
            strides=[1, *strides, 1],
            padding=padding.upper(),
            dilations=[1, *atrous_rate, 1],
        )
    return ops.depthwise_conv(
        x,
        kernel,
        strides=tuple(strides),
        padding=padding,
        dilation_rate=tuple(atrous_rate),
        data_format="channels_last",
    )


def has_fused_batch_norm(x: Tensor) -> bool:
    """Returns True if `normalize` accepts `x`: a map, in graph form.

    The kernel computes in at most 32 bits, so not float64.
    """
    wide = keras.backend.standardize_dtype(x.dtype) == "float64"
    return form() == "graph" and len(x.shape) == 4 and not wide


def normalize(
    x: Tensor, scale: Tensor, offset: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes a map by its own batch statistics in one fused kernel.

    Args:
        x: float tensor (B, h, w, C).
        scale: float32 (C,).
        offset: float32 (C,).
        epsilon: float > 0.

    Returns:
        `(tensor, mean, variance)`: like `x`; float32 (C,); float32 (C,), the
        population variance, which Keras' moving variance averages.
    """
    import tensorflow as tf

    result = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=epsilon,
        is_training=True,
    )
    # The op returns the sample variance, larger by n / (n - 1).
    n = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), "float32")
    return result.y, result.batch_mean, result.batch_variance * ((n - 1) / n)


def scale_and_shift(x: Tensor, scale: np.ndarray, shift: np.ndarray) -> Tensor:
    """Computes `x * scale + shift`, per channel.

    Args:
        x: float tensor (..., C); (B, H, W, C) in export.
        scale: array (C,).
        shift: array (C,).
    """
    if form() == "export":
        # One operator with a scale per channel, so that int8 rounds only once.
        kernel = ops.convert_to_tensor(scale[None, None, :, None])
        x = convolve_depthwise(x, kernel, (1, 1), "valid", (1, 1))
        return x + shift
    return x * _scalar_if_equal(scale) + _scalar_if_equal(shift)


def _scalar_if_equal(values):
    """Returns the one value of an array, or the array if they differ.

    TensorFlow broadcasts three channels three times slower than a scalar.
    """
    return values[0] if (values == values[0]).all() else values


def pool_max(
    x: Tensor,
    size: Size,
    strides: Size,
    padding: Literal["same", "valid"],
    atrous_rate: Size,
    pads: Pads | None = None,
) -> Tensor:
    """Computes the largest value of each window.

    Dilated, it is the maximum of shifted slices, first over rows, then over
    columns. `tf.nn.pool` would wrap its window in SpaceToBatch and
    BatchToSpace.

    Args:
        x: float tensor, channels last.
        size: `(height, width)` of the window, ints > 0.
        strides: `(height, width)`, ints > 0; 1 where dilated.
        padding: `"same"` or `"valid"`; cells outside the map are excluded.
        atrous_rate: `(height, width)`, ints > 0.
        pads: `((top, bottom), (left, right))` with `"valid"`, cells outside
            the map that windows may cover, or `None`.

    Returns:
        float tensor (B, h, w, C).
    """
    pads = _pads_of(size, padding, atrous_rate, pads)
    if pads is None or max(atrous_rate) == 1:
        padded = pad(x, pads, value=-np.inf)
        padding = padding if pads is None else "valid"
        return ops.max_pool(
            padded, size, strides, padding, data_format="channels_last"
        )
    return _over_windows(
        ops.maximum, pad(x, pads, value=-np.inf), size, atrous_rate
    )


def pool_average(
    x: Tensor,
    size: Size,
    strides: Size,
    padding: Literal["same", "valid"],
    atrous_rate: Size,
    pads: Pads | None = None,
) -> Tensor:
    """Computes the mean of each window over its cells inside the map.

    Arguments and result as `pool_max`.
    """
    pads = _pads_of(size, padding, atrous_rate, pads)

    def mean(x):
        if max(atrous_rate) == 1:
            return ops.average_pool(
                x,
                size,
                strides,
                padding if pads is None else "valid",
                data_format="channels_last",
            )
        total = _over_windows(ops.add, x, size, atrous_rate)
        return total / (size[0] * size[1])

    if pads is None:
        return mean(x)
    counted = mean(pad(ops.ones_like(x[:1, :, :, :1]), pads))
    return mean(pad(x, pads)) / counted


def pad(x: Tensor, pads: Pads | None, value: float = 0.0) -> Tensor:
    """Pads `x` with `pads` cells of `value`.

    Args:
        x: float tensor (B, H, W, C).
        pads: `((top, bottom), (left, right))`, ints or scalar tensors, or
            `None`.
        value: float.
    """
    if pads is None:
        return x
    if all(isinstance(n, int) for pair in pads for n in pair):
        if not any(n for pair in pads for n in pair):
            return x
        return ops.pad(
            x, ((0, 0), *pads, (0, 0)), constant_values=value or None
        )
    import tensorflow as tf

    return tf.pad(x, [[0, 0], *pads, [0, 0]], constant_values=value)


def original_padding(
    size: Sequence[Any],
    window: Size,
    strides: Size,
    dilation: Size,
    atrous_rate: Size,
    first: Size,
) -> tuple[tuple[Any, Any], ...]:
    """Computes the padding of a strided `same` layer on a dense map.

    Args:
        size: `(height, width)` of the dense map, ints or scalar tensors.
        window: `(height, width)` of the kernel or pool.
        strides: `(height, width)` of the original layer.
        dilation: `(height, width)` of the original layer.
        atrous_rate: `(height, width)` of the dense layer.
        first: `(row, column)` of the first original cell in the dense map.

    Returns:
        `((top, bottom), (left, right))`, ints or scalar tensors; a dense
        window with that padding keeps the size of its map.
    """
    pads = []
    for n, k, s, d, r, at in zip(
        size, window, strides, dilation, atrous_rate, first, strict=True
    ):
        rate = r // d  # dense cells per original cell
        cells = -((at - n) // rate)
        reach = (k - 1) * d
        total = (-(-cells // s) - 1) * s + reach + 1 - cells
        total = max(total, 0) if isinstance(n, int) else ops.maximum(total, 0)
        before = total // 2 * rate
        pads.append((before, reach * rate - before))
    return tuple(pads)


def smallest(numbers: Sequence[Any]) -> Any:
    """Returns the smallest of ints or scalar tensors."""
    if all(isinstance(n, int) for n in numbers):
        return min(numbers)
    return functools.reduce(ops.minimum, numbers)


def resize_bilinear(
    x: Tensor,
    size: Sequence[Any],
    grid: Sequence[Any],
    align_corners: bool = False,
    shift: Sequence[float] = (0, 0),
) -> Tensor:
    """Resizes `x` bilinearly to `grid` and crops it to `size`.

    Sampling is at half-pixel centres: output pixel i of n lies at
    `(i + 0.5) * in / n - 0.5`, clamped to the map; with `align_corners` at
    `i * (in - 1) / (n - 1)`. Computed in float32.

    Args:
        x: float tensor (B, h, w, C).
        size: `(height, width)` of the result, ints or scalar tensors.
        grid: `(height, width)` of the resized map before the crop.
        align_corners: bool. The sampling rule, see above.
        shift: `(down, right)`, offset in pixels of the result: whole numbers,
            or multiples of 0.5 where the map keeps its size.

    Returns:
        float32 tensor (B, *size, C).
    """
    x = ops.cast(x, "float32")
    static = all(isinstance(n, int) for n in (*size, *grid, *x.shape[1:3]))
    if form() == "xla" and static:
        for axis in (1, 2):
            weights = _interpolation_matrix(
                x.shape[axis],
                grid[axis - 1],
                size[axis - 1],
                align_corners,
                shift[axis - 1],
            )
            rule = "bhwc,Hh->bHwc" if axis == 1 else "bhwc,Ww->bhWc"
            x = ops.einsum(rule, x, ops.convert_to_tensor(weights))
        return x
    import tensorflow as tf

    y = tf.raw_ops.ResizeBilinear(
        images=x,
        size=tf.stack(grid),
        align_corners=align_corners,
        half_pixel_centers=not align_corners,
    )
    if any(shift):
        for axis in (1, 2):
            y = _moved(y, axis, size[axis - 1], grid[axis - 1], shift[axis - 1])
        return y
    if static and tuple(size) == tuple(grid):
        return y
    if form() == "export" and not static:
        # The converter loses the channels of a slice of unknown size.
        for axis in (1, 2):
            y = ops.take(y, tf.range(size[axis - 1]), axis)
        return y
    return crop(y, size)


def crop(
    x: Tensor, size: Sequence[Any], first: Sequence[Any] = (0, 0)
) -> Tensor:
    """Cuts a window out of a map.

    Args:
        x: tensor (B, H, W, C).
        size: `(height, width)` of the window, ints or scalar tensors.
        first: `(row, column)` of its first cell, ints or scalar tensors.

    Returns:
        tensor (B, *size, C).
    """
    if form() == "graph":
        import tensorflow as tf

        # The gradient of `StridedSlice` takes 7 to 10 times as long on a CPU.
        y = tf.slice(x, [0, *first, 0], [-1, *size, -1])
        # Of a window of unknown size, `Slice` forgets the channels.
        known = [n if isinstance(n, int) else None for n in size]
        y.set_shape((x.shape[0], *known, x.shape[-1]))
        return y
    (top, left), (height, width) = first, size
    return x[:, top : top + height, left : left + width, :]


def sampled_at(
    n_in: int,
    n_grid: int,
    n_out: int,
    align_corners: bool = False,
    shift: float = 0,
) -> np.ndarray:
    """Computes the sampling positions of `resize_bilinear` along one axis.

    Args:
        n_in: int, cells of the input.
        n_grid: int, pixels of the resized map before the crop.
        n_out: int, pixels of the result.
        align_corners: bool. The sampling rule.
        shift: float, offset in pixels of the result.

    Returns:
        float64 (n_out,), in [0, n_in - 1].
    """
    i = np.arange(n_out, dtype="float64") - shift
    if align_corners:
        position = i * (n_in - 1) / max(n_grid - 1, 1)
    else:
        position = (i + 0.5) * n_in / n_grid - 0.5
    return np.clip(position, 0, n_in - 1)


def extend_edge(x: Tensor, rows: Any, columns: Any) -> Tensor:
    """Repeats the last row and column, 0 or 1 times each.

    Args:
        x: tensor (B, h, w, C).
        rows: int or scalar tensor, 0 or 1.
        columns: the same, for the width.
    """
    # Mirroring one cell, edge included, is repeating it; TensorFlow has no
    # mode "edge".
    if isinstance(rows, int) and isinstance(columns, int):
        if not rows and not columns:
            return x
        pad = ((0, 0), (0, rows), (0, columns), (0, 0))
        return ops.pad(x, pad, "symmetric")
    import tensorflow as tf

    if form() == "export":
        # As in `resize_bilinear`.
        for axis, more in ((1, rows), (2, columns)):
            have = tf.shape(x)[axis]
            x = ops.take(x, tf.minimum(tf.range(have + more), have - 1), axis)
        return x
    return tf.pad(x, [[0, 0], [0, rows], [0, columns], [0, 0]], "SYMMETRIC")


def _without_dead_taps(x, kernel, strides, padding, atrous_rate):
    """Returns the kernel without outer taps that only read padding."""
    if padding == "valid" or max(strides) > 1 or not _is_static(x):
        return kernel, atrous_rate
    return crop_kernel(kernel, x.shape[1:3], atrous_rate)


def _live_taps(x, kernel, strides, padding, atrous_rate):
    """Returns what is computed by live taps: `"all"`, `"kernel"` or `None`.

    `"kernel"` is its gradient alone. The limits are measured on a processor
    with AVX512; see docs/decisions/0014-live-taps.md.
    """
    kh, kw, channels, filters = kernel.shape
    dtype = keras.backend.standardize_dtype(x.dtype)
    if (
        keras.backend.backend() != "tensorflow"
        or dtype not in ("float32", "bfloat16")
        or padding == "valid"
        or max(strides) > 1
        or max(atrous_rate) == 1
        or not _is_static(x)
        or kh % 2 == 0
        or kw % 2 == 0
        or x.shape[-1] != channels
    ):
        return None
    share = live_share(x.shape[1:3], (kh, kw), atrous_rate)
    if form() == "export":
        # Wherever the file is written, it runs on a CPU.
        few = _exporting.get() and channels >= 128 and share <= 0.8
        return "all" if few else None
    if not _on_cpu() or channels < max(filters, 256):
        return None
    if form() == "xla":
        most = {"all": 0.7, "kernel": 0.9}
    elif dtype == "bfloat16":
        # oneDNN's gradient of a dilated kernel is slow at any rate.
        most = {"kernel": 1.0} if _has_dilated_gradient(x) else {}
    elif _has_dilated_gradient(x):
        # oneDNN skips padding, but not in the gradient of the kernel where
        # rates exceed half of the map: a share of 4/9.
        most = {"kernel": 0.9 if channels >= 1024 else 0.45}
        if filters < 128:
            most = {}
    else:
        most = {"all": 0.8}
    return next((what for what in most if share <= most[what]), None)


def _is_static(x):
    """Returns True if the size of a map is known."""
    return all(isinstance(n, int) for n in x.shape[1:3])


def _pads_of(size, padding, atrous_rate, pads):
    """Returns the `same` padding of a dilated window, `None` if the op pads."""
    if padding == "valid" or max(atrous_rate) == 1:
        return pads or (((0, 0), (0, 0)) if max(atrous_rate) > 1 else None)
    # Padding before the map is a multiple of the rate, so that a window only
    # covers cells of one original map.
    return tuple(
        ((k - 1) // 2 * r, (k - 1 - (k - 1) // 2) * r)
        for k, r in zip(size, atrous_rate, strict=True)
    )


def _over_windows(reduce, x, size, atrous_rate):
    """Reduces dilated windows, rows first; no padding."""
    for axis in (1, 2):
        k, rate = size[axis - 1], atrous_rate[axis - 1]
        cells = list(ops.shape(x)[1:3])
        cells[axis - 1] -= (k - 1) * rate
        taps = [
            crop(x, cells, (i * rate, 0) if axis == 1 else (0, i * rate))
            for i in range(k)
        ]
        x = functools.reduce(reduce, taps)
    return x


def _moved(y, axis, size, grid, shift):
    """Shifts a map, repeats its edges and crops it to `size` along an axis."""
    whole = math.floor(shift)
    position = ops.arange(size) - whole
    moved = ops.take(y, ops.clip(position, 0, grid - 1), axis)
    if shift == whole:
        return moved
    share = shift - whole
    beside = ops.take(y, ops.clip(position - 1, 0, grid - 1), axis)
    return (1 - share) * moved + share * beside


def _interpolation_matrix(n_in, n_grid, n_out, align_corners, shift):
    """Returns float32 `(n_out, n_in)`, the weights of each output pixel."""
    position = sampled_at(n_in, n_grid, n_out, align_corners, shift)
    distance = np.abs(position[:, None] - np.arange(n_in)[None, :])
    return np.maximum(0, 1 - distance).astype("float32")


def _in_xla_context():
    """Returns True if XLA compiles the TensorFlow graph being traced."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    if tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


@functools.cache
def _on_cpu():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.config.list_physical_devices("GPU")
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    return False


def _conv2d(x, kernel, atrous_rate, strides=(1, 1), padding="same"):
    """Computes `convolve` without groups in one kernel.

    `tf.nn.convolution`, which Keras calls, wraps a dilated convolution in
    SpaceToBatch and BatchToSpace.
    """
    import tensorflow as tf

    return tf.nn.conv2d(
        x, kernel, strides, padding.upper(), dilations=atrous_rate
    )


def _live_taps_of_export(x, kernel, atrous_rate):
    """Computes a convolution by a 1x1 for each tap, LiteRT's fastest form.

    Names of its tensors tell `inspect` which convolution it was.
    """
    import tensorflow as tf

    def product(cells, weights):
        return _conv2d(cells, weights[None, None], (1, 1))

    scope = live_taps_scope(kernel.shape[:2], atrous_rate, x.shape[1:3])
    with tf.name_scope(scope):
        return sum_of_taps(x, kernel, atrous_rate, product)


def _conv2d_gradient(x, kernel, upstream, atrous_rate):
    """Returns the gradient of `x` of `_conv2d`."""
    import tensorflow as tf

    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(x),
        filter=kernel,
        out_backprop=upstream,
        strides=(1, 1, 1, 1),
        padding="SAME",
        dilations=(1, *atrous_rate, 1),
    )


def _has_dilated_gradient(x):
    dtype = keras.backend.standardize_dtype(x.dtype)
    return _conv2d_has_dilated_gradient(dtype)


@functools.cache
def _conv2d_has_dilated_gradient(dtype):
    """Returns True if `tf.nn.conv2d(dilations=)` has a gradient here.

    On a CPU only oneDNN has the gradient, on some processors in float32
    only, so each dtype is probed once.
    """
    import tensorflow as tf

    # A tape records nothing within init_scope, so the gradient op is run
    # directly.
    with tf.init_scope():
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=(1, 5, 5, 1),
                filter=tf.ones((3, 3, 1, 1), dtype),
                out_backprop=tf.ones((1, 5, 5, 1), dtype),
                strides=(1, 1, 1, 1),
                padding="SAME",
                dilations=(1, 2, 2, 1),
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
