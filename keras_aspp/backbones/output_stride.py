"""with_output_stride: trades strides for dilation in a functional model."""

from __future__ import annotations

import re

import keras

from keras_aspp.backbones.grids import Walk
from keras_aspp.backbones.rebuild import rebuild
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import check_functional, graph_of, producer
from keras_aspp.utils.types import Tensor

_UNLIMITED = 2**30


def with_output_stride(model: keras.Model, output_stride: int) -> keras.Model:
    """Rewrites a network to a denser output stride, with the same weights.

    From the layer on that would pass `output_stride`, strides become 1 and
    what comes after is dilated by the factor they removed. Subsampled, the
    dense features equal the original ones (Chen et al., 2016, section 3.1).
    Rewritten layers remember what they were, so a dense model can be given
    another output stride, or its own back, also after saving and loading.

    Args:
        model: functional `keras.Model` of one image input, channels last.
        output_stride: int, a power of two, at most the model's own stride;
            input pixels per cell of the last feature map.

    Returns:
        A new functional model with the same names, outputs and weights; a
        Sequential one within it stays one. docs/decisions/0004 defines which
        cells are the original ones.

    Raises:
        TypeError: `model` is not a functional Keras model.
        ValueError: the stride cannot be reached, or a layer cannot be
            converted; the message names it.

    Example:
    >>> inputs = keras.Input((None, None, 3))
    >>> x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    >>> x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(x)
    >>> dense = with_output_stride(keras.Model(inputs, x), 2)
    >>> dense(keras.ops.ones((1, 8, 8, 3))).shape
    TensorShape([1, 4, 4, 4])
    """
    _check_image_model(model)
    if (
        type(output_stride) is not int
        or output_stride < 1
        or output_stride & (output_stride - 1)
    ):
        raise InputError(
            "`output_stride` must be a power of two. "
            f"Received: output_stride={output_stride!r}"
        )
    strides = {g.stride for g in Walk(model, _UNLIMITED).grids.values()}
    own = max(strides)
    if output_stride > own:
        raise InputError(
            f"`output_stride` must be at most the model's own stride {own}; "
            "the model is already denser. "
            f"Received: output_stride={output_stride}"
        )
    walk = _walk(model, output_stride)
    coarse = [g for g in walk.grids.values() if g.stride >= output_stride]
    if any(grid.stride != output_stride * grid.rate for grid in coarse):
        strides = sorted(strides - {1})
        raise InputError(
            "`output_stride` must be one that the model passes; it has the "
            f"strides {', '.join(map(str, strides))}. "
            f"Received: output_stride={output_stride}"
        )
    dense = rebuild(model, walk.changes, trims=walk.trims, resized=walk.resized)
    if isinstance(dense, keras.Sequential):
        # It has no `input` or `output` to go on from.
        graph = graph_of(dense)
        dense = keras.Model(graph.input, graph.output, name=model.name)
    if hasattr(model, "preprocess"):
        dense.preprocess = model.preprocess
    return dense


def _check_image_model(model):
    """Raises an error unless a model is functional and reads images."""
    check_functional(model)
    shapes = [tuple(x.shape) for x in graph_of(model).inputs]
    if all(len(shape) != 4 for shape in shapes):
        raise InputError(
            "`model` must take an image, (batch, height, width, channels). "
            f"Received: model={model.name!r} of input shape "
            f"{', '.join(map(str, shapes))}"
        )


def _walk(model, output_stride):
    """Returns a `Walk` in which joined maps have equal origins."""
    anchored = frozenset()
    walk = Walk(model, output_stride)
    while walk.conflicts - anchored:
        anchored |= walk.conflicts
        walk = Walk(model, output_stride, anchored)
    return walk


def first_cell(
    model: keras.Model, output_stride: int, key: str
) -> tuple[int, int]:
    """Returns the dense cell that holds the first cell of the original map.

    Args:
        model: functional `keras.Model` with dict outputs.
        output_stride: int, at which the model is, or would be, dense.
        key: a feature, e.g. `"stride_32"`.

    Returns:
        `(row, column)`: (0, 0) for symmetric padding. For padding that depends
        on the image size, the value at sizes that all strides divide.
    """
    operation = producer(model.output[key])
    return _walk(model, output_stride).grids[operation.name].origin


def feature_strides(model: keras.Model) -> dict[str, int]:
    """Returns the nominal stride of each layer's output.

    Args:
        model: functional `keras.Model`.

    Returns:
        dict: layer name -> input pixels per cell, in the order of the graph.
    """
    _check_image_model(model)
    return {name: grid.stride for name, grid in _grids(model).items()}


def _grids(model):
    """Returns the grid of each layer's output at the model's own strides."""
    grids = Walk(model, _UNLIMITED).grids
    return {path: grid for path, grid in grids.items() if "/" not in path}


def stage_ends(
    model: keras.Model, preferred: str = "$^", output: bool = True
) -> dict[str, Tensor]:
    """Returns the last tensor of each nominal stride.

    Args:
        model: functional `keras.Model` of one output.
        preferred: str, a regular expression: names of layers that end a
            block. The last of a stride is taken, or where there is none the
            last layer of that stride.
        output: bool. If True, the output of the model ends the last stride,
            whatever its name. Defaults to `True`.

    Returns:
        dict: `"stride_2"` and so on -> feature map, in rising order.
    """
    _check_image_model(model)
    last, ends = {}, {}
    graph = graph_of(model)
    operations = {operation.name: operation for operation in graph.operations}
    for name, grid in _grids(model).items():
        operation, stride = operations[name], grid.stride
        if (
            isinstance(operation, keras.layers.ZeroPadding2D)
            or grid.is_pooled  # of a classifier: it has no position
            or len(getattr(operation.output, "shape", ())) != 4
        ):
            continue
        last[stride] = operation.output
        if re.search(preferred, name) or (
            output and operation.output is graph.outputs[0]
        ):
            ends[stride] = operation.output
    return {
        f"stride_{stride}": ends.get(stride, last[stride])
        for stride in sorted(last)
        if stride > 1
    }
