"""Theoretical receptive field: the pixels that a cell can depend on.

Along one axis, cell i of a map sees the pixels from `low(i)` to `high(i)`.
Both grow by the stride from cell to cell, with a period where a map has been
upsampled. Every layer composes its own window with that of its input, and
branches that join are united, so sizes are exact, not summed-up formulas.

Reference: [Araujo et al., 2019](https://distill.pub/2019/computing-receptive-
fields). Differs from it in: upsampling, and branches of unequal centers.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any, ClassVar

import keras
import numpy as np

from keras_aspp.analysis.trace import Step, Trace, operation_type, trace
from keras_aspp.backbones.grids import is_cellwise
from keras_aspp.backbones.probes import leaves_cells_alone
from keras_aspp.layers import BilinearResize, rewritable
from keras_aspp.utils.deprecation import renamed_attribute
from keras_aspp.utils.types import Shape, Size

# Our layers, which may pad otherwise than their `padding` says.
_PADDED = (
    rewritable.Conv2D,
    rewritable.DepthwiseConv2D,
    rewritable.SeparableConv2D,
    rewritable.MaxPooling2D,
    rewritable.AveragePooling2D,
)
# Interpolations and how many cells each side of the two nearest they take.
_MARGINS = {"bilinear": 0, "bicubic": 1, "lanczos3": 2, "lanczos5": 4}
# Options of a resize that read further, or keep only a part of the map.
_RESIZED_OTHERWISE = (
    "antialias",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
)
# Operations that broadcast. A constant of the map's size would not fit the
# smaller map on which others are tried.
_ELEMENTWISE = {
    "Add",
    "Divide",
    "Maximum",
    "Minimum",
    "Multiply",
    "Subtract",
    "TrueDivide",
    "Where",
}


@dataclasses.dataclass(frozen=True)
class Axis:
    """Receptive fields of the cells of a map along one axis.

    Attributes:
        stride: Fraction, pixels from cell to cell.
        low: int array, first pixel of the cells of one period.
        high: int array, last pixel of them.
    """

    stride: Fraction
    low: np.ndarray
    high: np.ndarray

    @property
    def period(self) -> int:
        """Number of cells after which the pattern repeats."""
        return len(self.low)

    @property
    def size(self) -> int:
        """Size of the (largest) receptive field, in pixels."""
        return int((self.high - self.low).max()) + 1

    def pixels(self, cells: int | np.ndarray) -> tuple[Any, Any]:
        """Returns the first and last pixel of cells in an unbounded image.

        Args:
            cells: int or int array, negative ones too.
        """
        cells = np.asarray(cells)
        shift = cells // self.period * int(self.period * self.stride)
        at = cells % self.period
        return self.low[at] + shift, self.high[at] + shift


@dataclasses.dataclass(frozen=True)
class Window:
    """Input cells that output cells read, along one axis.

    Output cell i of a period reads from `first[i]` to `last[i]`; a period
    further on, `advance` input cells further.
    """

    advance: int
    first: np.ndarray
    last: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of the output of a layer.

    Attributes:
        path: names of the layers it lies in, and its own.
        layer_type: name of its class.
        shape: of its output, without the batch.
        kernel_size: `(height, width)`, or `None` for a layer without.
        dilation: `(height, width)` in cells of its input, or `None`.
        axes: two `Axis`, or `None` where it sees nothing but the whole.
        is_global: whether some path from the image goes through one cell
            for the whole map (image pooling, squeeze-and-excite), so that
            every pixel matters. `size` then is that of the other paths.
        assumed: whether it, or a layer before it, is one whose reach is not
            known: no rule covers it, and it mixes or moves cells when it is
            run. Taken as cell by cell if the map kept its size, else as
            global.
    """

    path: str
    layer_type: str
    shape: Shape
    kernel_size: tuple[int, int] | None
    dilation: tuple[int, int] | None
    axes: tuple[Axis, Axis] | None
    is_global: bool
    assumed: bool

    kind: ClassVar[property] = renamed_attribute("kind", "layer_type")

    @property
    def stride(self) -> tuple[Any, Any] | None:
        """`(height, width)`, pixels from cell to cell, or `None`."""
        return self.axes and tuple(_number(a.stride) for a in self.axes)

    @property
    def size(self) -> tuple[int, int] | None:
        """`(height, width)` in pixels, or `None`."""
        return self.axes and tuple(axis.size for axis in self.axes)

    @property
    def center(self) -> tuple[Any, Any] | None:
        """`(y, x)` of the middle of what cell (0, 0) sees, in pixels.

        With symmetric padding that is pixel (0, 0). Where cells differ, the
        mean over a period, as seen from cell (0, 0).
        """
        return self.axes and tuple(_center(axis) for axis in self.axes)


def receptive_fields(
    model: keras.Model, image_size: Size
) -> list[ReceptiveField]:
    """Stride, dilation and theoretical receptive field of every layer.

    Args:
        model: `keras.Model` of one image; see `trace`.
        image_size: `(height, width)`, ints > 0, in pixels. `"same"` padding
            of a strided layer depends on it, and what global means.

    Returns:
        list of `ReceptiveField`, one for each of `Trace.steps`; that of a
        composite layer of several outputs is the first one's.

    Raises:
        TypeError, ValueError: see `trace`.

    Example:
    >>> inputs = keras.Input((None, None, 3))
    >>> x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    >>> x = keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same")(x)
    >>> [f.size for f in receptive_fields(keras.Model(inputs, x), (9, 9))]
    [(1, 1), (3, 3), (11, 11)]
    """
    return receptive_fields_of(trace(model, image_size))


def receptive_fields_of(traced: Trace) -> list[ReceptiveField]:
    """`receptive_fields` of a model that was followed already.

    Args:
        traced: `Trace`.
    """
    start = Axis(Fraction(1), np.zeros(1, int), np.zeros(1, int))
    seen = {id(traced.image): _Seen((start, start))}
    rows = []
    for step in traced.steps:
        if step.inputs and not step.opened:
            found = _through(step, [seen[id(t)] for t in step.inputs])
            seen |= {id(tensor): found for tensor in step.outputs}
        for tensor in step.outputs[:1]:
            rows.append(_row(step, seen[id(tensor)]))
    return rows


def as_text(field: ReceptiveField) -> str:
    """Formats the size of a receptive field, e.g. `"427x427"`."""
    if field.size is None:
        return "global"
    size = "x".join(map(str, field.size))
    return size + (" + global" if field.is_global else "")


@dataclasses.dataclass(frozen=True)
class _Seen:
    axes: tuple[Axis, Axis] | None
    is_global: bool = False
    assumed: bool = False


def _row(step, seen):
    layer, kernel, dilation = step.operation, None, None
    if not step.opened:
        kernel = _pair(_kernel_size(layer))
        dilation = kernel and _pair(getattr(layer, "dilation_rate", 1))
    return ReceptiveField(
        step.path,
        step.layer_type,
        step.shape,
        kernel,
        dilation,
        seen.axes,
        seen.is_global,
        seen.assumed,
    )


def _through(step, inputs):
    """Computes the receptive field of a step from those of its inputs."""
    windows = windows_of(step)
    if windows is not None:
        first = inputs[0]
        if first.axes is None:
            return first
        axes = tuple(map(_compose, first.axes, windows))
        return dataclasses.replace(first, axes=axes)
    assumed = any(seen.assumed for seen in inputs) or step.opaque
    output = step.outputs[0].shape
    maps = [
        (seen.axes, tensor.shape[1:3])
        for seen, tensor in zip(inputs, step.inputs, strict=True)
        if seen.axes is not None and len(output) >= 4
    ]
    joined = [m for m in maps if _broadcasts(m[1], output[1:3])]
    # A window that left one cell for all others covered the whole map.
    placed = [m for m in joined if m[1] != (1, 1) or m[1] == output[1:3]]
    axes = tuple(
        _joined([(axes[i], size[i]) for axes, size in placed], output[1 + i])
        for i in (0, 1)
        if placed
    )
    if not axes or None in axes:
        # Its size is gone: everything was drawn together, or rearranged.
        known = (
            len(output) < 4
            or output[1:3] == (1, 1)
            or step.inputs[0].shape[1:3] == (1, 1)
        )
        return _Seen(None, True, assumed or not known)
    is_global = any(s.is_global or s.axes is None for s in inputs)
    is_global = is_global or len(placed) < len(joined)
    averages = _averages(step.operation)
    assumed = assumed or not (averages or _is_cell_by_cell(step))
    return _Seen(axes, is_global or averages, assumed)


def _broadcasts(size, output):
    return all(n in (1, m) for n, m in zip(size, output, strict=True))


def _joined(axes, cells):
    """The `Axis` of joined maps, or `None` if all of them are broadcast.

    Args:
        axes: list of `(Axis, size of the map)`; a size of 1 is broadcast.
        cells: int, size of the output.
    """
    own = [axis for axis, size in axes if size == cells]
    if not own:
        return None
    axis = _unite(own, cells)
    strips = [axis for axis, size in axes if size != cells]
    if not strips:
        return axis
    # Each cell of the map sees what the single one does. Its pattern repeats
    # after twice the map, so that cells of padding see their own pixels only.
    period = axis.stride.denominator
    whole = -(-2 * cells // period) * period
    low, high = axis.pixels(np.arange(whole))
    low[:cells] = np.minimum(low[:cells], min(a.low[0] for a in strips))
    high[:cells] = np.maximum(high[:cells], max(a.high[0] for a in strips))
    return Axis(axis.stride, low, high)


def _is_cell_by_cell(step):
    """Returns True if a step of unchanged map size acts on each cell alone."""
    return (
        step.shape[:2] == (1, 1)
        or is_cellwise(step.operation)
        or operation_type(step) in _ELEMENTWISE
        or leaves_cells_alone(step.operation, step.arguments, step.keywords)
    )


def _averages(layer):
    """Returns True if a layer of unchanged map size mixes all cells."""
    if isinstance(layer, keras.layers.GroupNormalization):
        return True
    axis = getattr(layer, "axis", -1)
    return isinstance(layer, keras.layers.LayerNormalization) and bool(
        {1, 2} & set(np.atleast_1d(axis).tolist())
    )


def _compose(axis, window):
    """Computes the receptive field of a window over a map."""
    count = len(window.first)
    repeats = axis.period // math.gcd(axis.period, window.advance)
    cells = np.arange(count * repeats)
    shift = cells // count * window.advance
    low, _ = axis.pixels(window.first[cells % count] + shift)
    _, high = axis.pixels(window.last[cells % count] + shift)
    return Axis(axis.stride * Fraction(window.advance, count), low, high)


def _unite(axes, cells):
    """The smallest `Axis` that holds several."""
    stride = min(axis.stride for axis in axes)
    if all(axis.stride == stride for axis in axes):
        at = np.arange(math.lcm(*(axis.period for axis in axes)))
        pixels = [axis.pixels(at) for axis in axes]
        return Axis(
            stride,
            np.min([low for low, _ in pixels], axis=0),
            np.max([high for _, high in pixels], axis=0),
        )
    # Maps resized to one another's size drift apart: what holds on this map.
    at = np.arange(cells)
    shift = (at * float(stride)).round().astype(int)
    pixels = [axis.pixels(at) for axis in axes]
    low = min((low - shift).min() for low, _ in pixels)
    high = max((high - shift).max() for _, high in pixels)
    count = stride.denominator
    steps = np.arange(count) * stride.numerator // count
    return Axis(stride, low + steps, high + steps)


def windows_of(step: Step) -> list[Window] | None:
    """The two windows of a layer that reads neighboring cells, or `None`."""
    layer = step.operation
    if not step.inputs or step.opened or len(step.shape) != 3:
        return None
    if len(step.inputs[0].shape) != 4:
        return None
    sizes = zip(step.inputs[0].shape[1:3], step.shape[:2], strict=True)
    rule = next(
        (rule for types, rule in _RULES if isinstance(layer, types)),
        _OPERATIONS.get(operation_type(step)),
    )
    if rule is None:
        return None
    windows = [rule(step, i, *pair) for i, pair in enumerate(sizes)]
    return None if None in windows else windows


def _window_size(step):
    return _kernel_size(step.operation) or step.arguments[1].shape[:2]


def _kernel_size(layer):
    return getattr(layer, "kernel_size", getattr(layer, "pool_size", None))


def _pair(value):
    return (value, value) if isinstance(value, int) else value and tuple(value)


def _center(axis):
    middle = (axis.low + axis.high) / 2
    cells = np.arange(axis.period) * float(axis.stride)
    return float((middle - cells).mean())


def _number(fraction):
    whole = fraction.denominator == 1
    return int(fraction) if whole else float(fraction)


def _shifted(cells, step=1):
    return Window(step, np.array([cells]), np.array([cells]))


def _kernel(step, i, n_in, n_out):
    """Convolution or pooling, as a layer or of `keras.ops`."""
    layer, size = step.operation, _window_size(step)
    stride = _pair(layer.strides or size)[i]
    dilation = _pair(getattr(layer, "dilation_rate", 1))[i]
    reach = (_pair(size)[i] - 1) * dilation
    before, pads = 0, None
    if isinstance(layer, _PADDED):
        _, pads = layer.padding_of(step.inputs[0])
    if pads is not None:
        before = pads[i][0]
    elif layer.padding == "same":
        before = max((n_out - 1) * stride + reach + 1 - n_in, 0) // 2
    return Window(stride, np.array([-before]), np.array([reach - before]))


def _transposed(step, i, n_in, n_out):
    layer = step.operation
    stride = _pair(layer.strides)[i]
    reach = (_pair(_window_size(step))[i] - 1) * _pair(layer.dilation_rate)[i]
    # What the strided convolution from the output to the input pads.
    before = max((n_in - 1) * stride + reach + 1 - n_out, 0) // 2
    at = np.arange(stride) + before
    # A kernel smaller than the stride leaves cells that see nothing.
    first = np.minimum(-((reach - at) // stride), at // stride)
    return Window(1, first, at // stride)


def _sampled(position, advance, margin=0):
    """A window around fractional positions, one period of them."""
    low = [math.floor(p) - margin for p in position]
    high = [math.ceil(p) + margin for p in position]
    return Window(advance, np.array(low), np.array(high))


def _half_pixel(n_in, n_out, margin=0, shift=0):
    ratio = Fraction(n_in, n_out)
    half = Fraction(1, 2)
    cells = range(ratio.denominator)
    at = [(i - Fraction(shift) + half) * ratio - half for i in cells]
    return _sampled(at, ratio.numerator, margin)


def _nearest(n_in, n_out):
    ratio = Fraction(n_in, n_out)
    half = Fraction(1, 2)
    at = [math.floor((i + half) * ratio) for i in range(ratio.denominator)]
    return _sampled(at, ratio.numerator)


def _averaged(n_in, n_out):
    ratio = Fraction(n_in, n_out)
    cells = range(ratio.denominator)
    first = [math.floor(i * ratio) for i in cells]
    last = [math.ceil((i + 1) * ratio) - 1 for i in cells]
    return Window(ratio.numerator, np.array(first), np.array(last))


def _interpolated(interpolation, n_in, n_out):
    if interpolation == "nearest":
        return _nearest(n_in, n_out)
    if interpolation == "area":
        return _averaged(n_in, n_out)
    return _half_pixel(n_in, n_out, _MARGINS[interpolation])


def _upsampled(step, i, n_in, n_out):
    if any(getattr(step.operation, name, False) for name in _RESIZED_OTHERWISE):
        return None
    return _interpolated(step.operation.interpolation, n_in, n_out)


def _resized(step, i, n_in, n_out):
    """BilinearResize: to a size, or by its scale and then cropped."""
    layer = step.operation
    grid = n_out
    if layer.scale is not None and not layer.align_corners:
        grid = n_in * layer.scale
    if not layer.align_corners:
        return _half_pixel(n_in, grid, shift=layer.shift[i])
    ratio = Fraction(n_in - 1, max(grid - 1, 1))
    at = [cell * ratio for cell in range(ratio.denominator)]
    return _sampled(at, ratio.numerator)


def _padded(step, i, n_in, n_out):
    return _shifted(-step.operation.padding[i][0])


def _padded_by_operation(step, i, n_in, n_out):
    return _shifted(-step.operation.pad_width[1 + i][0])


def _cropped(step, i, n_in, n_out):
    return _shifted(step.operation.cropping[i][0])


def _center_cropped(step, i, n_in, n_out):
    return _shifted((n_in - n_out) // 2)


def _sliced(step, i, n_in, n_out):
    key = step.arguments[1]
    key = key if isinstance(key, tuple) else (key,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        gap = 5 - len(key)
        key = key[:at] + (slice(None),) * gap + key[at + 1 :]
    part = key[1 + i] if len(key) > 1 + i else slice(None)
    if not isinstance(part, slice) or (part.step or 1) < 0:
        return None
    start, _, stride = part.indices(n_in)
    return _shifted(start, stride)


_RULES = (
    (keras.layers.Conv2DTranspose, _transposed),
    (
        (
            keras.layers.Conv2D,
            keras.layers.DepthwiseConv2D,
            keras.layers.SeparableConv2D,
            keras.layers.MaxPooling2D,
            keras.layers.AveragePooling2D,
        ),
        _kernel,
    ),
    (keras.layers.ZeroPadding2D, _padded),
    (keras.layers.Cropping2D, _cropped),
    (keras.layers.CenterCrop, _center_cropped),
    (keras.layers.UpSampling2D, _upsampled),
    (keras.layers.Resizing, _upsampled),
    (BilinearResize, _resized),
)
_OPERATIONS = {
    "AveragePool": _kernel,
    "Conv": _kernel,
    "ConvTranspose": _transposed,
    "DepthwiseConv": _kernel,
    "GetItem": _sliced,
    "MaxPool": _kernel,
    "Pad": _padded_by_operation,
    "Resize": _upsampled,
    "SeparableConv": _kernel,
}
