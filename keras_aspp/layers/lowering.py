"""Which form an operation takes: graph, XLA or export.

The same mathematics has one form that TensorFlow's kernels run fast, one that
XLA can fuse, and one that the TFLite converter keeps as a single builtin
operator. This module alone decides; no layer knows.

| operation | graph | XLA | export (TFLite) |
|---|---|---|---|
| dilated convolution | `tf.nn.conv2d` | the same | the same |
| depthwise convolution | `tf.nn.depthwise_conv2d` | taps (CPU) | native |
| dilated pooling | slices | the same | the same |
| preprocessing | multiply, add | the same | native depthwise |
| bilinear resize | `ResizeBilinear` | two matrix products | `ResizeBilinear` |
| batch norm in training | `FusedBatchNormV3` | Keras' | - |

On the JAX backend everything takes the XLA form.
"""

import contextlib
import contextvars
import functools
import math

import keras
import numpy as np
from keras import ops

from keras_aspp.layers.depthwise_taps import depthwise_taps

# A context variable, so that an export in one thread does not change the form
# that another thread traces.
_exporting = contextvars.ContextVar("exporting", default=False)


@contextlib.contextmanager
def export_form():
    """Within it, traced functions use the forms that TFLite keeps whole.

    They are for inference: the gradient of a dilated depthwise convolution
    is silently wrong in this form on the CPU (TensorFlow 2.21).
    """
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def form():
    """The form to use here: `"graph"`, `"xla"` or `"export"`."""
    if keras.backend.backend() != "tensorflow":
        return "xla"
    if _exporting.get():
        return "export"
    return "xla" if _in_xla_context() else "graph"


def convolve(x, kernel, strides, padding, atrous_rate):
    """2D convolution, `x` (B, H, W, C), `kernel` (kh, kw, C, F).

    Args:
        x: float tensor, channels last.
        kernel: float tensor of the same dtype.
        strides: `(height, width)`, ints > 0.
        padding: `"same"` or `"valid"`.
        atrous_rate: `(height, width)`, ints > 0.

    Returns:
        float tensor (B, h, w, F).
    """
    if x.shape[-1] == kernel.shape[-1] > kernel.shape[-2] == 1:
        # As many groups as channels, ConvNeXt's way of a depthwise one.
        kernel = ops.transpose(kernel, (0, 1, 3, 2))
        return convolve_depthwise(x, kernel, strides, padding, atrous_rate)
    plain = (
        keras.backend.backend() != "tensorflow"
        or x.shape[-1] != kernel.shape[-2]  # groups: Keras knows the detour
        or (
            max(atrous_rate) > 1
            and form() == "graph"
            and not _conv2d_has_dilated_gradient(
                keras.backend.standardize_dtype(x.dtype)
            )
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
    import tensorflow as tf

    # tf.nn.convolution, which Keras calls, wraps a dilated convolution in
    # SpaceToBatch and BatchToSpace; tf.nn.conv2d is one kernel.
    return tf.nn.conv2d(
        x, kernel, strides, padding.upper(), dilations=atrous_rate
    )


def convolve_depthwise(x, kernel, strides, padding, atrous_rate):
    """Depthwise 2D convolution, `kernel` (kh, kw, C, multiplier).

    Arguments and result as `convolve`, F = C * multiplier.
    """
    how = form()
    strided = max(strides) > 1
    static = all(isinstance(n, int) for n in x.shape[1:3])
    if how == "xla" and (static or not strided) and _on_cpu():
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


def has_fused_batch_norm(x):
    """Whether `normalize` takes a tensor: a map, in graph form."""
    return form() == "graph" and len(x.shape) == 4


def normalize(x, scale, offset, epsilon):
    """Batch norm of a map by its own statistics, in one pass.

    Args:
        x: float tensor (B, h, w, C).
        scale: float32 (C,).
        offset: float32 (C,).
        epsilon: float > 0.

    Returns:
        `(tensor, mean, variance)`: like `x`, and float32 (C,) each, the
        variance that of the population, as Keras keeps it.
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
    # The op's own variance is that of a sample, greater by n / (n - 1).
    n = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), "float32")
    return result.y, result.batch_mean, result.batch_variance * ((n - 1) / n)


def scale_and_shift(x, scale, shift):
    """`x * scale + shift`, per channel.

    Args:
        x: float tensor (..., C); (B, H, W, C) in export.
        scale: array (C,).
        shift: array (C,).
    """
    if form() == "export":
        # One operator with a scale per channel: in integers it rounds once.
        kernel = ops.convert_to_tensor(scale[None, None, :, None])
        x = convolve_depthwise(x, kernel, (1, 1), "valid", (1, 1))
    else:
        x = x * scale
    return x + shift


def pool_max(x, size, strides, padding, atrous_rate, pads=None):
    """Largest value of each window.

    With holes it is the maximum of shifted slices, first over rows, then over
    columns: a few plain operators, where `tf.nn.pool` would wrap its window
    in SpaceToBatch and BatchToSpace.

    Args:
        x: float tensor, channels last.
        size: `(height, width)` of the window, ints > 0.
        strides: `(height, width)`, ints > 0; 1 where there are holes.
        padding: `"same"` or `"valid"`; cells beyond the map never count.
        atrous_rate: `(height, width)`, ints > 0.
        pads: `((top, bottom), (left, right))` with `"valid"`, cells beyond
            the map that windows may reach into, or `None`.

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


def pool_average(x, size, strides, padding, atrous_rate, pads=None):
    """Mean of each window, over the cells that are on the map.

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


def pad(x, pads, value=0.0):
    """`x` (B, H, W, C) with `pads` cells of `value` around it.

    Args:
        x: float tensor.
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


def original_padding(size, window, strides, dilation, atrous_rate, first):
    """Padding of a dense map that a strided `same` layer would have given.

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


def smallest(numbers):
    """The least of ints or scalar tensors."""
    if all(isinstance(n, int) for n in numbers):
        return min(numbers)
    return functools.reduce(ops.minimum, numbers)


def resize_bilinear(x, size, grid, align_corners=False, shift=(0, 0)):
    """The first `size` rows and columns of `x` resized bilinearly to `grid`.

    Sampling is at half-pixel centres: output pixel i of n lies at
    `(i + 0.5) * in / n - 0.5`, clamped to the map; with `align_corners` at
    `i * (in - 1) / (n - 1)`. Computed in float32.

    Args:
        x: float tensor (B, h, w, C).
        size: `(height, width)` of the result, ints or scalar tensors.
        grid: `(height, width)` of the whole resized map, at least `size`.
        align_corners: bool. The convention.
        shift: `(down, right)`, by how many pixels of the result it is moved;
            whole numbers, or any multiples of 0.5 of a map that keeps its
            size.

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
        # The converter forgets the channels of a slice of unknown size.
        for axis in (1, 2):
            y = ops.take(y, tf.range(size[axis - 1]), axis)
        return y
    return y[:, : size[0], : size[1], :]


def sampled_at(n_in, n_grid, n_out, align_corners=False, shift=0):
    """Where on a row of `n_in` cells each of `n_out` pixels is sampled.

    See `resize_bilinear`, whose rule this is, for one axis.

    Returns:
        float64 (n_out,), in [0, n_in - 1].
    """
    i = np.arange(n_out, dtype="float64") - shift
    if align_corners:
        position = i * (n_in - 1) / max(n_grid - 1, 1)
    else:
        position = (i + 0.5) * n_in / n_grid - 0.5
    return np.clip(position, 0, n_in - 1)


def extend_edge(x, rows, columns):
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


def _pads_of(size, padding, atrous_rate, pads):
    """`same` padding of a window with holes; `None` leaves it to the op."""
    if padding == "valid" or max(atrous_rate) == 1:
        return pads or (((0, 0), (0, 0)) if max(atrous_rate) > 1 else None)
    # Before the map, whole windows of holes: cells of one original map stay
    # among themselves.
    return tuple(
        ((k - 1) // 2 * r, (k - 1 - (k - 1) // 2) * r)
        for k, r in zip(size, atrous_rate, strict=True)
    )


def _over_windows(reduce, x, size, atrous_rate):
    """Reduces dilated windows, rows first; no padding."""
    for axis in (1, 2):
        k, rate = size[axis - 1], atrous_rate[axis - 1]
        taps = []
        for i in range(k):
            cut = slice(i * rate, (i - k + 1) * rate or None)
            taps.append(x[:, cut] if axis == 1 else x[:, :, cut])
        x = functools.reduce(reduce, taps)
    return x


def _moved(y, axis, size, grid, shift):
    """The first `size` rows (columns) after a move; edges are repeated."""
    whole = math.floor(shift)
    position = ops.arange(size) - whole
    moved = ops.take(y, ops.clip(position, 0, grid - 1), axis)
    if shift == whole:
        return moved
    share = shift - whole
    beside = ops.take(y, ops.clip(position - 1, 0, grid - 1), axis)
    return (1 - share) * moved + share * beside


def _interpolation_matrix(n_in, n_grid, n_out, align_corners, shift):
    """float32 `(n_out, n_in)`; row i holds the weights of output pixel i."""
    position = sampled_at(n_in, n_grid, n_out, align_corners, shift)
    distance = np.abs(position[:, None] - np.arange(n_in)[None, :])
    return np.maximum(0, 1 - distance).astype("float32")


def _in_xla_context():
    """Whether the TensorFlow graph being traced will be compiled by XLA."""
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


@functools.cache
def _conv2d_has_dilated_gradient(dtype):
    """Whether `tf.nn.conv2d(dilations=)` can be differentiated here.

    On a CPU only oneDNN has the gradient, on some processors in float32
    alone; the probe asks for it once per dtype.
    """
    import tensorflow as tf

    # A tape records nothing within init_scope, so the op that a tape would
    # run is run itself.
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
