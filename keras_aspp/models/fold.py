"""fold_batch_norm: a copy for inference, without batch norm."""

import collections
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_aspp.backbones.grids import OURS
from keras_aspp.backbones.rebuild import copy_weights, rebuild
from keras_aspp.layers import AtrousConv2D, DilatedReparamBlock, SkipFusion
from keras_aspp.utils.keras_graph import (
    check_functional,
    graph_of,
    is_functional,
    layers_by_path,
    nodes_of,
    producer,
    sublayers,
)

# All these are exact types, since a subclass may compute something else.
# Layers that can absorb batch norm, and their kernel with the output channels.
FOLDED_KERNELS = {
    layer_type: name
    for theirs, name in (
        (keras.layers.SeparableConv2D, "pointwise_kernel"),
        (keras.layers.DepthwiseConv2D, "kernel"),
        (keras.layers.Conv2D, "kernel"),
    )
    for layer_type in (theirs, OURS[theirs])
}
_NORMS = (
    keras.layers.BatchNormalization,
    OURS[keras.layers.BatchNormalization],
)
_BLOCKS = (AtrousConv2D, SkipFusion)


def fold_batch_norm(model: keras.Model) -> Any:
    """Copies a model for inference, with batch norm folded into convolutions.

    At inference batch norm multiplies each channel by a constant and adds
    another. These move into kernel and bias of the convolution before it;
    batch norm after any other layer, or in another precision, stays. A layer
    of one's own that has an argument `batch_norm` is folded if it uses its
    `layers.AtrousConv2D` by calling them alone. The branches of a
    `layers.DilatedReparamBlock` become its one merged kernel. Outputs at
    inference are the same.

    Args:
        model: functional `keras.Model`, e.g. a segmenter.

    Returns:
        A functional `keras.Model` with the inputs and outputs of `model` and,
        for a segmenter, its `preprocess`. For inference only; the copy cannot
        be trained.

    Raises:
        TypeError: `model` is not a functional Keras model.

    Example:
    >>> from keras_aspp.models import DeepLabV3
    >>> folded = fold_batch_norm(DeepLabV3(21, backbone_weights=None))
    >>> any("gamma" in weight.path for weight in folded.weights)
    False
    """
    check_functional(model)
    pairs = dict(_pairs(model))
    layers = dict(layers_by_path(model))
    norm_of = {id(layers[conv]): layers[norm] for norm, conv in pairs.items()}
    changes = {conv: {"use_bias": True} for conv in pairs.values()}
    ours = {path for path, layer in layers.items() if _has_batch_norm(layer)}
    with_blocks = {id(layers[path]) for path in ours}
    changes |= {path: _without_batch_norm(layers[path]) for path in ours}
    changes |= {
        path: {"merged": True}
        for path, layer in layers.items()
        if type(layer) is DilatedReparamBlock
    }

    def carry(layer, copy):
        if type(layer) is DilatedReparamBlock:
            _merge(layer, norm_of.get(id(layer)), copy)
        elif id(layer) in norm_of:
            _fold(layer, norm_of[id(layer)], copy)
        elif id(layer) in with_blocks:
            for block, plain in zip(_blocks(layer), _blocks(copy), strict=True):
                for (conv, norm), (conv_copy, norm_copy) in zip(
                    _convolutions(block), _convolutions(plain), strict=True
                ):
                    if is_batch_norm(norm) and norm_copy is None:
                        _fold(conv, norm, conv_copy)
                        continue
                    # An image pooling with a bias, or a block whose norm no
                    # argument of the layer leaves out.
                    copy_weights(conv, conv_copy)
                    if norm is not None:
                        copy_weights(norm, norm_copy)
        else:
            copy_weights(layer, copy)

    # Keras would copy a subclass of Model by its own constructor.
    plain = keras.Model(model.input, model.output, name=model.name)
    folded = rebuild(plain, changes, leave_out=set(pairs), carry=carry)
    if hasattr(model, "preprocess"):
        folded.preprocess = model.preprocess
    return folded


def _pairs(model):
    """Paths of each batch norm and the convolution that only it follows."""
    graphs = dict(_graphs(model))
    # A layer may be shared between nested models, which are several graphs.
    calls = collections.Counter(
        id(node.operation)
        for graph in {id(g): g for g in graphs.values()}.values()
        for node in nodes_of(graph)
    )
    for prefix, graph in graphs.items():
        for norm, conv in _pairs_in(graph, calls):
            yield f"{prefix}{norm}", f"{prefix}{conv}"


def _graphs(model, prefix=""):
    """Yields `(prefix of its paths, model)` of a model and all within it."""
    yield prefix, model
    for layer in model.layers:
        if is_functional(layer):
            yield from _graphs(layer, f"{prefix}{layer.name}/")


def _pairs_in(model, calls):
    """Names of the layers of `_pairs` in one graph."""
    nodes = nodes_of(model)
    uses = collections.Counter(
        id(tensor)
        for tensors in (
            graph_of(model).outputs,
            *(node.input_tensors for node in nodes),
        )
        for tensor in tensors
    )
    for node in nodes:
        layer = node.operation
        if not is_batch_norm(layer):
            continue
        (tensor,) = node.input_tensors
        before = producer(tensor)
        if (
            absorbs_batch_norm(before)
            and uses[id(tensor)] == calls[id(layer)] == calls[id(before)] == 1
            and layer.axis in (-1, 3)
            and layer.compute_dtype == before.compute_dtype
        ):
            yield layer.name, before.name


def is_batch_norm(layer: Any) -> bool:
    """Returns True for batch norm, not for a subclass of one's own."""
    return type(layer) in _NORMS


def absorbs_batch_norm(layer: Any) -> bool:
    """Returns True for a layer that can absorb a batch norm."""
    return type(layer) is DilatedReparamBlock or (
        type(layer) in FOLDED_KERNELS
        and layer.activation is keras.activations.linear
        and not has_lora(layer)
    )


def has_lora(layer: Any) -> bool:
    """Returns True for a layer whose kernel is a sum of several weights."""
    return getattr(layer, "lora_enabled", False)


def _has_batch_norm(layer):
    """Returns True for a layer of blocks with batch norm and nothing else.

    Its argument `batch_norm` leaves batch norm out of a copy, and `shared`
    gives each rate of the copy a kernel; other layers stay as they are.
    """
    blocks = _blocks(layer)
    if not blocks or layer.get_config().get("batch_norm") not in (
        True,
        "freeze",
        "sync",
    ):
        return False
    if any(map(has_lora, sublayers(layer))):
        return False
    known = {id(weight) for block in blocks for weight in block.weights}
    if any(id(weight) not in known for weight in layer.weights):
        return False
    tied = any(block.is_tied for block in blocks)
    if tied and not getattr(layer, "shared", False):
        return False
    try:
        copy = type(layer).from_config(
            {**layer.get_config(), **_without_batch_norm(layer)}
        )
    except Exception:  # `rebuild` says what is wrong, of any type
        return False
    return _can_carry(blocks, _blocks(copy))


def _without_batch_norm(layer):
    """Returns the changes to the configuration of a layer that is folded."""
    # A kernel with batch norm folded into it belongs to one rate.
    shared = {"shared": False} if getattr(layer, "shared", False) else {}
    return {"batch_norm": False, **shared}


def _can_carry(blocks, copies):
    """Returns True if each block of a layer has its weights in a copy."""
    if [(type(b), b.separable) for b in blocks] != [
        (type(b), b.separable) for b in copies
    ]:
        return False
    norms, kept = (
        [norm for block in side for _, norm in _convolutions(block)]
        for side in (blocks, copies)
    )
    return all(
        type(norm) is type(own) or (is_batch_norm(norm) and own is None)
        for norm, own in zip(norms, kept, strict=True)
    )


def _convolutions(block):
    """Each convolution of a block with its norm or `None`, in their order."""
    if block.separable:
        yield block.depthwise, block.depthwise_norm
    yield block.conv, block.norm


def _blocks(layer):
    """Every `AtrousConv2D` in a layer, in the order of construction."""
    return [block for block in sublayers(layer) if type(block) in _BLOCKS]


def _fold(convolution, norm, copy):
    """Fills a convolution that replaces another and its batch norm."""
    scale, shift = scale_and_shift(norm)
    if convolution.use_bias:
        shift = shift + scale * _array(convolution.bias)
    kernel = FOLDED_KERNELS[type(convolution)]
    values = {weight.name: _array(weight) for weight in convolution.weights}
    name = getattr(convolution, kernel).name
    # A depthwise kernel ends in (channels, multiplier).
    by_channel = scale
    if isinstance(convolution, keras.layers.DepthwiseConv2D):
        by_channel = scale.reshape(values[name].shape[2:])
    values[name] = values[name] * by_channel
    for weight in copy.weights:
        weight.assign(shift if weight.name == "bias" else values[weight.name])


def _merge(block, norm, copy):
    """Fills a merged block with one in training form and its batch norm."""
    size, kernel, bias = block.kernel_size, 0, 0
    for i, (convolution, (taps, rate)) in enumerate(
        zip(block.convolutions, block.parts, strict=True)
    ):
        scale, shift = 1, 0
        if block.norms:
            scale, shift = scale_and_shift(block.norms[i])
        if convolution.use_bias:
            shift = _array(convolution.bias)
        values = _array(convolution.kernel)[..., 0]  # (k, k, C)
        dense = np.zeros((size, size, values.shape[-1]))
        first = size // 2 - taps // 2 * rate
        at = slice(first, size - first, rate)
        dense[at, at] = values * scale
        kernel, bias = kernel + dense, bias + shift
    if norm is not None:
        scale, shift = scale_and_shift(norm)
        kernel, bias = kernel * scale, bias * scale + shift
    (merged,) = copy.convolutions
    merged.kernel.assign(kernel[..., None])
    merged.bias.assign(bias)


def _array(weight):
    return keras.ops.convert_to_numpy(weight).astype("float64")


def scale_and_shift(
    norm: keras.layers.BatchNormalization,
    read: Callable[[Any], Any] = _array,
) -> tuple[Any, Any]:
    """Returns batch norm at inference, `x * scale + shift`.

    Args:
        norm: batch norm of C channels.
        read: function that reads a weight. Defaults to float64 in NumPy;
            `keras.ops.convert_to_tensor` lets gradients through.

    Returns:
        `(scale, shift)`, (C,) each.
    """
    scale = 1 / (read(norm.moving_variance) + norm.epsilon) ** 0.5
    if norm.scale:
        scale = scale * read(norm.gamma)
    shift = -read(norm.moving_mean) * scale
    if norm.center:
        shift = shift + read(norm.beta)
    return scale, shift
