"""DeepLabV3's changes to a backbone: multi-grid and copies of its last block.

Both are made to the network at its own strides; making it dense multiplies
the rates afterwards, as in the paper (Chen et al., 2017, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_aspp.backbones.output_stride import (
    tensor_strides,
    with_output_stride,
)
from keras_aspp.backbones.rebuild import copy_weights, rebuild
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import clone_graph, nodes_of, producer

HIGH, LAST = "stride_16", "stride_32"


def with_multi_grid(
    model: keras.Model, multi_grid: Sequence[int], output_stride: int
) -> keras.Model:
    """Dilates each convolution of the last block by its own rate.

    Args:
        model: functional `keras.Model`, images -> dict keyed by nominal
            stride, with a `"stride_32"`.
        multi_grid: ints > 0, the rate of each spatial convolution at input
            stride 32, in graph order; at `output_stride` they are multiplied
            by the rate of the block.
        output_stride: int, a power of two.

    Returns:
        A new model with the weights of `model`. The function is
        idempotent.

    Raises:
        ValueError: not as many rates as convolutions, or not ints > 0.

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.2.1.
        Differs from it in: nothing.
    """
    layers = _last_convolutions(model)
    names = [layer.name for layer in layers]
    rates = tuple(multi_grid) if isinstance(multi_grid, (list, tuple)) else ()
    if len(rates) != len(names) or any(
        type(r) is not int or r < 1 for r in rates
    ):
        raise InputError(
            "`multi_grid` must be one int > 0 for each spatial convolution of "
            f"the last block: {', '.join(names) or 'it has none'}. "
            f"Received: multi_grid={multi_grid}"
        )
    changes = {}
    for layer, rate in zip(layers, rates, strict=True):
        if _own(layer, "dilation_rate") != (rate, rate):
            changes |= _dilated(layer, rate)
    if not changes:
        return model
    return with_output_stride(rebuild(model, changes), output_stride)


def with_cascade(
    model: keras.Model, blocks: int, output_stride: int
) -> keras.Model:
    """Adds copies of the last block, each at twice the stride of the last.

    Args:
        model: functional `keras.Model`, images -> dict keyed by nominal
            stride, with `"stride_16"` and `"stride_32"`, between which its
            last block lies.
        blocks: int > 0. Copies.
        output_stride: int, a power of two.

    Returns:
        A new model with `"stride_64"`, `"stride_128"`, ... too. A copy begins
        with the weights of the block, but for the layers whose inputs have
        other channels there.

    Raises:
        ValueError: one of the two features is not there, or the second is
            not computed from the first.

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.2.
        Differs from it in: nothing.
    """
    features = dict(model.output)
    missing = {HIGH, LAST} - set(features)
    if missing:
        raise InputError(
            f"A cascade copies what lies between {HIGH} and {LAST}. "
            f"Received: features={sorted(features)}"
        )
    try:
        block = keras.Model(features[HIGH], features[LAST])
    except ValueError as error:
        raise InputError(
            f"A cascade copies the layers that compute {LAST} from {HIGH}. "
            "This backbone has none, as one nested model that returns both. "
            f"Received: backbone={model.name!r}"
        ) from error
    x = features[LAST]
    copied = {}
    for i in range(1, blocks + 1):
        x, layers = _copy(block, x, f"cascade_{i}_")
        features[f"stride_{32 * 2**i}"] = x
        copied |= layers
    copy = keras.Model(model.input, features, name=model.name)
    for name, layer in copied.items():
        ours = copy.get_layer(name)
        if [w.shape for w in layer.weights] == [w.shape for w in ours.weights]:
            copy_weights(layer, ours)
    return with_output_stride(copy, output_stride)


def _copy(block, x, prefix):
    """Applies new layers like those of `block` to `x`.

    Returns:
        `(tensor, layers)`: the result; new name -> layer that was copied.
    """
    outputs = {}

    def clone(layer):
        config = layer.get_config()
        return type(layer).from_config({**config, "name": prefix + layer.name})

    def call(layer, *args, **kwargs):
        outputs[layer.name] = layer(*args, **kwargs)
        return outputs[layer.name]

    # Only the recorded calls are used; the clone has an input of its own.
    clone_graph(
        block, input_tensors=x, clone_function=clone, call_function=call
    )
    last = producer(block.output).name
    layers = {prefix + layer.name: layer for layer in block.layers}
    return outputs[prefix + last], {
        name: layer for name, layer in layers.items() if name in outputs
    }


def _own(layer, name):
    """Returns an attribute from before the model was made dense."""
    value = getattr(layer, "original", {}).get(name, getattr(layer, name))
    return value if isinstance(value, str) else tuple(value)


def _dilated(layer, rate):
    """Returns changes that set a rate and keep the map size."""
    change = {
        "dilation_rate": (rate, rate),
        "padding": "same",
        "original": {},
    }
    if _own(layer, "padding") == "same":
        return {layer.name: change}
    # ResNetV2 pads one cell and convolves `valid`, which is `same`.
    source = producer(layer.input)
    half = tuple(((k - 1) // 2,) * 2 for k in layer.kernel_size)
    padding = isinstance(source, keras.layers.ZeroPadding2D) and tuple(
        map(tuple, _own(source, "padding"))
    )
    if padding != half:
        raise InputError(
            f"Layer `{layer.name}` has `valid` padding and cannot take a rate "
            f"of `multi_grid`. Received: zero padding before it={padding}"
        )
    none = {"padding": ((0, 0), (0, 0)), "original": {}}
    return {layer.name: change, source.name: none}


def _last_convolutions(model):
    """Returns the spatial convolutions whose input has stride 32."""
    strides = tensor_strides(model)
    spatial = (
        keras.layers.Conv2D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv2D,
    )
    layers = {
        node.operation.name: node.operation
        for node in nodes_of(model)
        if isinstance(node.operation, spatial)
        and max(node.operation.kernel_size) > 1
        and strides[id(node.input_tensors[0])] == 32
    }
    return list(layers.values())
