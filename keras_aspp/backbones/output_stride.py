"""with_output_stride: trades strides for dilation in a functional model."""

from __future__ import annotations

import re
from fractions import Fraction

import keras

from keras_aspp.backbones.grids import Walk
from keras_aspp.backbones.rebuild import rebuild
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import (
    check_functional,
    graph_of,
    is_functional,
    nodes_of,
)
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
    strides = {g.stride for g in _walk(model).tensors.values()}
    own = max(strides)
    if output_stride > own:
        raise InputError(
            f"`output_stride` must be at most the model's own stride {own}; "
            "the model is already denser. "
            f"Received: output_stride={output_stride}"
        )
    walk = _walk(model, output_stride)
    coarse = [g for g in walk.tensors.values() if g.stride >= output_stride]
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


def _walk(model, output_stride=_UNLIMITED):
    """Returns a `Walk` in which joined maps have equal origins."""
    anchored = frozenset()
    walk = Walk(model, _UNLIMITED)
    gates = walk.gates
    if gates or output_stride != _UNLIMITED:
        walk = Walk(model, output_stride, anchored, gates)
    while walk.conflicts - anchored:
        anchored |= walk.conflicts
        walk = Walk(model, output_stride, anchored, gates)
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
    grids = _walk(model, output_stride).tensors
    return grids["", id(model.output[key])].origin


def feature_strides(model: keras.Model) -> dict[str, int | Fraction]:
    """Returns the nominal stride of each layer's output.

    Of a layer with several calls it is the last one, of several outputs the
    first one.

    Args:
        model: functional `keras.Model`.

    Returns:
        dict: layer name -> input pixels per cell, in the order of the graph;
        a `Fraction` where it is not whole, as after upsampling.
    """
    _check_image_model(model)
    grids = _walk(model).grids
    return {
        path: _number(grid.stride)
        for path, grid in grids.items()
        if "/" not in path
    }


def tensor_strides(model: keras.Model) -> dict[int, int | Fraction]:
    """Returns the nominal stride of each symbolic tensor, by its id.

    Args:
        model: functional `keras.Model`.
    """
    _check_image_model(model)
    grids = _walk(model).tensors
    return {
        tensor: _number(grid.stride)
        for (prefix, tensor), grid in grids.items()
        if not prefix
    }


def output_strides(model: keras.Model) -> dict[str, int | Fraction]:
    """Returns the nominal stride of each output, by its key.

    Args:
        model: functional `keras.Model` with dict outputs.
    """
    strides = tensor_strides(model)
    return {key: strides[id(tensor)] for key, tensor in model.output.items()}


def _number(stride):
    """Returns an int for a whole stride."""
    return int(stride) if stride.denominator == 1 else stride


def stage_ends(
    model: keras.Model, preferred: str = "$^", output: bool = True
) -> dict[str, Tensor]:
    """Returns the last tensor of each whole nominal stride above 1.

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
    end = graph_of(model).outputs[0]
    grids = _walk(model).tensors
    for operation, tensor in _maps(model):
        grid = grids["", id(tensor)]
        if grid.is_pooled:  # of a classifier: it has no position
            continue
        last[grid.stride] = tensor
        if re.search(preferred, operation.name) or (output and tensor is end):
            ends[grid.stride] = tensor
    return {
        f"stride_{stride}": ends.get(stride, last[stride])
        for stride in sorted(last)
        if stride > 1 and stride.denominator == 1
    }


def _maps(model):
    """Yields each operation of a graph and its feature maps."""
    for node in nodes_of(model):
        operation, tensors = node.operation, node.output_tensors
        # Of an operation, several outputs are parts of a map.
        if isinstance(operation, keras.layers.ZeroPadding2D) or (
            len(tensors) > 1 and not is_functional(operation)
        ):
            continue
        for tensor in tensors:
            if len(tensor.shape) == 4:
                yield operation, tensor
