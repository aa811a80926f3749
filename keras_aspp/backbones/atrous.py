"""with_output_stride: trades strides for dilation in a functional model."""

import dataclasses
import re

import keras

from keras_aspp.layers import strided

# Keras' layers and the subclasses of ours that remember a rewrite.
_OURS = {
    keras.layers.Conv2D: strided.Conv2D,
    keras.layers.DepthwiseConv2D: strided.DepthwiseConv2D,
    keras.layers.ZeroPadding2D: strided.ZeroPadding2D,
}
_CONVERTIBLE = (strided.Conv2D, strided.DepthwiseConv2D)
# Layers that look at a neighbourhood or move cells: they cannot be passed by
# once the map is denser than they were built for.
_SPATIAL = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.UpSampling2D,
    keras.layers.Cropping2D,
    keras.layers.CenterCrop,
    keras.layers.Resizing,
)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Where a tensor's cells lie."""

    stride: int  # pixels per cell in the original network
    rate: int  # cells per original cell: 1, or more where strides were traded


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
        A new functional model with the same names, outputs and weights.

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
    _check_functional(model)
    if (
        type(output_stride) is not int
        or output_stride < 1
        or output_stride & (output_stride - 1)
    ):
        raise ValueError(
            "`output_stride` must be a power of two. "
            f"Received: output_stride={output_stride!r}"
        )
    own = max(grid.stride for grid in _walk(model, 2**30)[0].values())
    if output_stride > own:
        raise ValueError(
            f"`output_stride` must be at most the model's own stride {own}; "
            "the model is already denser. "
            f"Received: output_stride={output_stride}"
        )
    grids, changes = _walk(model, output_stride)
    coarse = {g for g in grids.values() if g.stride >= output_stride}
    if any(grid.stride != output_stride * grid.rate for grid in coarse):
        strides = sorted({g.stride for g in grids.values()} - {1})
        raise ValueError(
            "`output_stride` must be one that the model passes; it has the "
            f"strides {', '.join(map(str, strides))}. "
            f"Received: output_stride={output_stride}"
        )
    return rebuild(model, changes)


def feature_strides(model):
    """Nominal stride of each layer's output, before any rewrite.

    Args:
        model: functional `keras.Model`.

    Returns:
        dict: layer name -> input pixels per cell, in the order of the graph.
    """
    _check_functional(model)
    grids, _ = _walk(model, 2**30)
    return {name: grid.stride for name, grid in grids.items()}


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
    operations = {operation.name: operation for operation in model.operations}
    for name, stride in feature_strides(model).items():
        operation = operations[name]
        if isinstance(operation, keras.layers.ZeroPadding2D) or (
            len(getattr(operation.output, "shape", ())) != 4
        ):
            continue
        last[stride] = operation.output
        if re.search(preferred, name) or (
            output and operation.output is model.output
        ):
            ends[stride] = operation.output
    return {
        f"stride_{stride}": ends.get(stride, last[stride])
        for stride in sorted(last)
        if stride > 1
    }


def rebuild(model, changes, padding_before=None, leave_out=()):
    """A copy of a functional model with some layers configured differently.

    Args:
        model: functional `keras.Model`.
        changes: dict: layer name -> configuration values to replace.
        padding_before: dict: layer name -> zero padding, in cells, to insert
            before it.
        leave_out: names of layers that are not called; their input goes on.

    Returns:
        A new model with the weights of `model`.
    """
    padding_before = padding_before or {}

    def clone(layer):
        kind = _OURS.get(type(layer), type(layer))
        return kind.from_config(
            {**layer.get_config(), **changes.get(layer.name, {})}
        )

    def call(layer, *args, **kwargs):
        if layer.name in leave_out:
            return args[0]
        if layer.name in padding_before:
            pad = strided.ZeroPadding2D(
                padding_before[layer.name],
                name=f"{layer.name}_pad",
                dtype=layer.dtype_policy,
            )
            args = (pad(args[0]), *args[1:])
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(
        model, clone_function=clone, call_function=call
    )
    for layer in model.layers:
        if layer.weights and layer.name not in leave_out:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def _check_functional(model):
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        raise TypeError(
            "`model` must be a functional Keras model, built from "
            f"`keras.Input`. Received: model={model!r} of type "
            f"{type(model).__name__}"
        )


def _walk(model, output_stride):
    """Follows the graph from the image on.

    Returns:
        `(grids, changes)`: layer name -> `_Grid` of its output; layer name ->
        configuration values that make the model dense.
    """
    by_depth = model._nodes_by_depth
    depths = sorted(by_depth, reverse=True)
    nodes = [node for depth in depths for node in by_depth[depth]]
    consumers = {}
    for node in nodes:
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node)
    tensor_grid, grids, changes, padded = {}, {}, {}, []
    for node in nodes:
        layer = node.operation
        inputs = [tensor_grid[id(t)] for t in node.input_tensors] or [
            _Grid(1, 1)
        ]
        grid = _join(layer, inputs)
        if isinstance(layer, _SPATIAL):
            grid, change = _convert(layer, grid, output_stride)
            _check_padding(layer, node, change, consumers, changes)
            if layer.name in grids and changes.get(layer.name) != change:
                raise ValueError(
                    f"Layer `{layer.name}` is shared between feature maps of "
                    "different strides and cannot be made dense."
                )
            changes[layer.name] = change
        elif isinstance(layer, keras.layers.ZeroPadding2D):
            changes[layer.name] = _restored(layer)
            if grid.rate > 1:
                padded.append(layer)
        elif isinstance(layer, keras.Model) and any(
            isinstance(inner, _SPATIAL)
            for inner in layer._flatten_layers(include_self=False)
        ):
            raise ValueError(
                f"Layer `{layer.name}` is a nested model; its strides cannot "
                "be reached. Build the outer model from its layers instead."
            )
        grids[layer.name] = grid
        for tensor in node.output_tensors:
            tensor_grid[id(tensor)] = grid
    for layer in padded:
        if not changes[layer.name].get("original"):
            raise ValueError(
                f"Layer `{layer.name}` pads a map for no convolution with "
                "`valid` padding and cannot be made dense to output stride "
                f"{output_stride}. Received: padding={layer.padding}"
            )
    return grids, changes


def _join(layer, inputs):
    # A tensor pooled to one cell keeps the grid of what it was pooled from.
    stride = max(grid.stride for grid in inputs)
    rates = {grid.rate for grid in inputs if grid.stride == stride}
    if len(rates) > 1:
        raise ValueError(
            f"Layer `{layer.name}` joins feature maps of different density "
            "and cannot be made dense."
        )
    return _Grid(stride, rates.pop())


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _restored(layer):
    """The configuration values that undo an earlier rewrite."""
    original = dict(getattr(layer, "original", {}))
    return {**original, "original": {}} if original else {}


def _convert(layer, grid, output_stride):
    """The output grid of a spatial layer, and how to reconfigure it."""
    change = _restored(layer)
    config = {**layer.get_config(), **change}
    stride = _pair(config.get("strides", 1))
    stride = stride if len(set(stride)) == 1 else None
    moves = isinstance(
        layer,
        (
            keras.layers.Conv2DTranspose,
            keras.layers.UpSampling2D,
            keras.layers.Cropping2D,
            keras.layers.CenterCrop,
            keras.layers.Resizing,
        ),
    )
    if moves:
        stride = (1, 1)
    if stride is None:
        raise ValueError(
            f"Layer `{layer.name}` has unequal strides. "
            f"Received: strides={config['strides']}"
        )
    removed = stride[0] if stride[0] * grid.stride > output_stride else 1
    after = _Grid(grid.stride * stride[0], grid.rate * removed)
    kernel = _pair(config.get("kernel_size", config.get("pool_size", 2)))
    untouched = removed == 1 and (grid.rate == 1 or kernel == (1, 1))
    if untouched and not (moves and grid.rate > 1):
        return after, change
    kind = _OURS.get(type(layer), type(layer))
    odd = all(k % 2 for k in kernel)
    if kind not in _CONVERTIBLE or (kernel != (1, 1) and not odd):
        raise ValueError(
            f"Layer `{layer.name}` ({type(layer).__name__}, kernel {kernel}) "
            f"cannot be made dense to output stride {output_stride}: only "
            "Conv2D and DepthwiseConv2D with odd kernels can. Its stride in "
            f"the original network is {after.stride}."
        )
    rate = tuple(r * grid.rate for r in _pair(config["dilation_rate"]))
    change |= {"strides": (1, 1), "dilation_rate": rate}
    if kernel == (1, 1):
        change["dilation_rate"] = (1, 1)
    change["original"] = {
        "strides": list(stride),
        "dilation_rate": list(_pair(config["dilation_rate"])),
        "padding": config["padding"],
    }
    return after, change


def _check_padding(layer, node, change, consumers, changes):
    """Gives a converted `valid` layer `same` padding, or says why not.

    A strided layer behind ZeroPadding2D pads less than a dense one must, to
    keep the size of the map. `same` with an odd kernel is symmetric and does;
    only the offset of the samples depends on the original padding.
    """
    original = change.get("original")
    if not original or original["padding"] != "valid":
        return
    kernel = _pair(layer.get_config()["kernel_size"])
    if kernel == (1, 1):
        return
    source = node.input_tensors[0]._keras_history.operation
    padding = None
    if isinstance(source, keras.layers.ZeroPadding2D):
        config = {**source.get_config(), **_restored(source)}
        padding = config["padding"]
    fits = padding is not None and all(
        after == (k - 1) // 2 and k - s <= before + after <= k - 1
        for k, s, (before, after) in zip(
            kernel, original["strides"], padding, strict=True
        )
    )
    if not fits or len(consumers[id(node.input_tensors[0])]) > 1:
        raise ValueError(
            f"Layer `{layer.name}` has `valid` padding that no ZeroPadding2D "
            "before it balances, so its map would shrink. Received: "
            f"kernel_size={kernel}, zero padding={padding}"
        )
    change["padding"] = "same"
    changes[source.name] = {
        "padding": ((0, 0), (0, 0)),
        "original": {"padding": padding},
    }
