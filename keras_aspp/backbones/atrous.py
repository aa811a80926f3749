"""with_output_stride: trades strides for dilation in a functional model."""

import re

import keras

from keras_aspp.backbones.grids import (
    OURS,
    Walk,
    check_functional,
    graph_of,
    is_functional,
)
from keras_aspp.layers import strided

_UNLIMITED = 2**30


def with_output_stride(model, output_stride):
    """The same network with the same weights, computed more densely.

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
        Sequential one within it stays one. Which cells are the original ones
        is told in docs/decisions/0004.

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
    check_functional(model)
    if (
        type(output_stride) is not int
        or output_stride < 1
        or output_stride & (output_stride - 1)
    ):
        raise ValueError(
            "`output_stride` must be a power of two. "
            f"Received: output_stride={output_stride!r}"
        )
    strides = {g.stride for g in Walk(model, _UNLIMITED).grids.values()}
    own = max(strides)
    if output_stride > own:
        raise ValueError(
            f"`output_stride` must be at most the model's own stride {own}; "
            "the model is already denser. "
            f"Received: output_stride={output_stride}"
        )
    walk = _walk(model, output_stride)
    coarse = [g for g in walk.grids.values() if g.stride >= output_stride]
    if any(grid.stride != output_stride * grid.rate for grid in coarse):
        strides = sorted(strides - {1})
        raise ValueError(
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


def _walk(model, output_stride):
    """A `Walk` in which the maps that are joined have one first cell."""
    anchored = frozenset()
    walk = Walk(model, output_stride)
    while walk.conflicts - anchored:
        anchored |= walk.conflicts
        walk = Walk(model, output_stride, anchored)
    return walk


def first_cell(model, output_stride, key):
    """Where the first cell of the original network lies in a dense map.

    Args:
        model: functional `keras.Model` with dict outputs.
        output_stride: int, at which the model is, or would be, dense.
        key: a feature, e.g. `"stride_32"`.

    Returns:
        `(row, column)`: (0, 0) where padding is symmetric. Where it depends
        on the picture's size, that of a size which every stride divides.
    """
    operation = model.output[key]._keras_history.operation
    return _walk(model, output_stride).grids[operation.name].first


def feature_strides(model):
    """Nominal stride of each layer's output, before any rewrite.

    Args:
        model: functional `keras.Model`.

    Returns:
        dict: layer name -> input pixels per cell, in the order of the graph.
    """
    check_functional(model)
    grids = Walk(model, _UNLIMITED).grids
    return {
        path: grid.stride for path, grid in grids.items() if "/" not in path
    }


def stage_ends(model, preferred="$^", output=True):
    """The tensor that ends each nominal stride.

    Args:
        model: functional `keras.Model` of one output.
        preferred: str, a regular expression: names of layers that end a
            block. The last of a stride is taken, or where there is none the
            last layer of that stride.
        output: bool. Whether the output of the model, whatever its name,
            ends the last stride. Defaults to `True`.

    Returns:
        dict: `"stride_2"` and so on -> feature map, in rising order.
    """
    last, ends = {}, {}
    graph = graph_of(model)
    operations = {operation.name: operation for operation in graph.operations}
    for name, stride in feature_strides(model).items():
        operation = operations[name]
        if isinstance(operation, keras.layers.ZeroPadding2D) or (
            len(getattr(operation.output, "shape", ())) != 4
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


def copy_weights(layer, copy):
    """Gives a layer's weights to its copy."""
    # Variable to variable: neither a third copy nor a way by NumPy.
    for to, value in zip(copy.weights, layer.weights, strict=True):
        to.assign(value)


def rebuild(
    model,
    changes,
    padding_before=None,
    leave_out=(),
    trims=(),
    carry=copy_weights,
    resized=(),
    any_size=False,
):
    """A copy of a functional model with some layers configured differently.

    A layer in a nested model goes by its path, `outer/inner`.

    Args:
        model: functional `keras.Model`.
        changes: dict: path of a layer -> configuration values to replace.
        padding_before: dict: path -> zero padding, in cells, to insert before
            the layer.
        leave_out: paths of layers that are not called; their input goes on.
        trims: paths of layers whose inputs are cut to the smallest of them.
        carry: function of a layer and its copy that fills the copy's weights.
        resized: paths of nested models that are called on maps of another
            size than they were built for.
        any_size: bool. If True, the copy accepts maps of any height and
            width. Defaults to `False`.

    Returns:
        A new model with the weights of `model`.
    """
    padding_before = padding_before or {}

    def clone(layer):
        if is_functional(layer):
            return rebuild(
                layer,
                _within(layer, changes),
                _within(layer, padding_before),
                _within(layer, leave_out),
                _within(layer, trims),
                carry,
                _within(layer, resized),
                any_size=layer.name in resized,
            )
        kind = OURS.get(type(layer), type(layer))
        try:
            return kind.from_config(
                {**layer.get_config(), **changes.get(layer.name, {})}
            )
        except Exception as error:
            raise ValueError(
                f"Layer `{layer.name}` ({kind.__name__}) cannot be copied: it "
                "does not come back from its own configuration. (A Lambda of "
                "a Python function does not; a registered function, or a "
                "layer, does.)"
            ) from error

    def steps(layer):
        """Layers to call one after the other in the place of one."""
        if layer.name in leave_out or isinstance(layer, strided.Trim):
            return []
        if layer.name not in padding_before:
            return [layer]
        pad = strided.ZeroPadding2D(
            padding_before[layer.name],
            name=f"{layer.name}_pad",
            dtype=layer.dtype_policy,
        )
        return [pad, layer]

    def call(layer, *args, **kwargs):
        if layer.name in trims:
            args = _trimmed(layer, args)
        for step in steps(layer):
            args = (step(*args, **(kwargs if step is layer else {})),)
        return args[0]

    inputs = keras.tree.map_structure(
        lambda t: _input_like(t, any_size), graph_of(model).input
    )
    if isinstance(model, keras.Sequential):
        copies = [s for layer in model.layers for s in steps(clone(layer))]
        copy = keras.Sequential([inputs, *copies], name=model.name)
    else:
        copy = keras.models.clone_model(
            model, inputs, clone_function=clone, call_function=call
        )
    kept = {layer.name: layer for layer in copy.layers}
    for layer in model.layers:
        if layer.weights and layer.name in kept and not is_functional(layer):
            carry(layer, kept[layer.name])
    return copy


def _input_like(tensor, any_size):
    """An input for the copy of a model whose input is `tensor`."""
    shape = tensor.shape
    if any_size and _is_map(tensor):
        shape = (shape[0], None, None, shape[3])
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)


def _within(layer, paths):
    """The part of a dict or set of paths that is about a nested model."""
    prefix = f"{layer.name}/"
    inner = {p.removeprefix(prefix): p for p in paths if p.startswith(prefix)}
    if isinstance(paths, dict):
        return {name: paths[path] for name, path in inner.items()}
    return set(inner)


def _trimmed(layer, args):
    maps = [t for t in keras.tree.flatten(args) if _is_map(t)]
    policy = getattr(layer, "dtype_policy", None)  # an operation has none
    trim = strided.Trim(name=f"{layer.name}_trim", dtype=policy and policy.name)
    cut = iter(trim(maps))
    return keras.tree.map_structure(
        lambda t: next(cut) if _is_map(t) else t, args
    )


def _is_map(tensor):
    # Of one cell are those that were pooled; they are spread over the others.
    return (
        isinstance(tensor, keras.KerasTensor)
        and len(tensor.shape) == 4
        and tensor.shape[1:3] != (1, 1)
    )
