"""Cost of a model: parameters, multiply-adds, activation memory.

Conventions. One multiply-add (MAdd) is one multiplication and the addition
that follows: half of what counts as floating-point operations. Convolutions
and dense layers are counted, with every tap of a kernel, those over the
padding too; bias, batch norm, activations, pooling, sums and resizing are
not. Memory is that of one image, every layer writing a tensor of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import keras

from keras_aspp.analysis.trace import Step, Trace, operation_type, trace
from keras_aspp.utils.deprecation import renamed_attribute
from keras_aspp.utils.types import Shape, Size


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Cost of one call of a layer, for one image.

    Attributes:
        path: names of the layers it lies in, and its own.
        layer_type: name of its class.
        shape: of its output, without the batch.
        parameters: int, those that no layer before it shares.
        madds: int, multiply-adds.
        activation_bytes: int, size of its output.
    """

    path: str
    layer_type: str
    shape: Shape
    parameters: int
    madds: int
    activation_bytes: int
    kind: ClassVar[property] = renamed_attribute("kind", "layer_type")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a model, for one image.

    Attributes:
        image_size: `(height, width)` in pixels.
        parameters: int, statistics of batch norm included, as Keras counts.
        madds: int, multiply-adds.
        activation_bytes: int, all outputs together: what training holds.
        peak_activation_bytes: int, the most that must be held at one time
            when every output is freed after its last use: inference.
        uncounted: tuple of paths of layers that could not be opened, whose
            sizes stayed open (attention), or that multiply in a way that is
            not counted (`keras.ops.matmul`); `madds` is a lower bound where
            it is not empty.
        layers: tuple of `LayerCost`, in the order of computation.
    """

    image_size: tuple[int, int]
    parameters: int
    madds: int
    activation_bytes: int
    peak_activation_bytes: int
    uncounted: tuple[str, ...]
    layers: tuple[LayerCost, ...]


def cost(model: keras.Model, image_size: Size) -> Cost:
    """Parameters, multiply-adds and activation memory of a model.

    Args:
        model: `keras.Model` of one image; see `trace`.
        image_size: `(height, width)`, ints > 0, in pixels.

    Returns:
        `Cost`.

    Raises:
        TypeError, ValueError: see `trace`.

    Example:
    >>> inputs = keras.Input((None, None, 3))
    >>> outputs = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    >>> found = cost(keras.Model(inputs, outputs), (10, 20))
    >>> found.parameters, found.madds
    (112, 21600)
    """
    return cost_of(trace(model, image_size))


def cost_of(traced: Trace) -> Cost:
    """Computes `cost` from a `Trace`.

    Args:
        traced: `Trace`.
    """
    layers, seen = [], set()
    for step in traced.steps:
        own = [w for w in _weights(step) if id(w) not in seen]
        seen |= {id(w) for w in own}
        if step.opened and not own:
            continue
        layers.append(
            LayerCost(
                step.path,
                step.layer_type,
                step.shape,
                sum(math.prod(w.shape) for w in own),
                0 if step.opened else multiply_adds(step),
                0 if step.opened else sum(map(tensor_bytes, step.outputs)),
            )
        )
    return Cost(
        traced.image_size,
        traced.model.count_params(),
        sum(layer.madds for layer in layers),
        sum(layer.activation_bytes for layer in layers),
        _peak_bytes(traced),
        tuple(filter(None, map(_uncounted, traced.leaves))),
        tuple(layers),
    )


def _uncounted(step):
    """The path of a step whose multiply-adds are not known, or `None`."""
    shapes = [tensor.shape[1:] for tensor in step.outputs]
    is_open = any(None in shape for shape in shapes) and multiply_adds(step)
    no_rule = step.layer_type in _MULTIPLYING
    return step.path if step.opaque or is_open or no_rule else None


def multiply_adds(step: Step) -> int:
    """Computes the multiply-adds of one step."""
    layer = step.operation
    if isinstance(layer, _TRANSPOSED):
        return _positions(step, step.inputs[0]) * _size(layer.kernel)
    if isinstance(
        layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
    ):
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return _positions(step, step.outputs[0]) * sum(map(_size, kernels))
    if isinstance(layer, keras.layers.EinsumDense):
        # Every weight meets every position of the axes that are not its own.
        inner = [layer.kernel.shape[i] for i in _contracted(layer)]
        return _cells(step.outputs[0].shape[1:]) * math.prod(inner)
    if isinstance(layer, _WITH_KERNEL):
        return _positions(step, step.outputs[0]) * _size(layer.kernel)
    operation = operation_type(step)
    if operation == "ConvTranspose":
        return _positions(step, step.inputs[0]) * _size(step.arguments[1])
    if operation in ("Conv", "DepthwiseConv", "SeparableConv"):
        kernels = step.arguments[1:]
        return _positions(step, step.outputs[0]) * sum(map(_size, kernels))
    return 0


_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_WITH_KERNEL = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)
# Layers and operations that multiply and add, and have no rule here.
_MULTIPLYING = {
    "AdditiveAttention",
    "Attention",
    "Correlate",
    "Dot",
    "DotProductAttention",
    "Einsum",
    "GaussianBlur",
    "Inner",
    "Matmul",
    "Tensordot",
    "Vdot",
}


def _contracted(layer):
    """Axes of an EinsumDense's kernel that its output does not have."""
    inputs, output = layer.equation.split("->")
    kernel = inputs.split(",")[1]
    return [i for i, label in enumerate(kernel) if label not in output]


def _positions(step, tensor):
    """Cells of an input or output of a step."""
    shape = tensor.shape[1:]
    channels_first = getattr(step.operation, "data_format", None) == (
        "channels_first"
    )
    return _cells(shape[1:] if channels_first else shape[:-1])


def _cells(shape):
    # Attention leaves sizes open; see `Cost.uncounted`.
    return math.prod(n or 1 for n in shape)


def _size(weight):
    return math.prod(weight.shape)


def tensor_bytes(tensor: keras.KerasTensor) -> int:
    """Computes the size of a symbolic tensor for one image, in bytes."""
    bits = "".join(filter(str.isdigit, tensor.dtype)) or "8"
    return _cells(tensor.shape[1:]) * int(bits) // 8


def _weights(step):
    if isinstance(step.operation, keras.layers.Layer):
        return step.operation.weights
    return []


def _peak_bytes(traced):
    """The most bytes alive at once, each tensor freed after its last use."""
    last_use = {id(tensor): len(traced.leaves) for tensor in traced.outputs}
    for at, step in enumerate(traced.leaves):
        for tensor in (*step.inputs, *step.outputs):
            last_use[id(tensor)] = max(at, last_use.get(id(tensor), 0))
    alive = peak = 0
    freed = {}
    for at, step in enumerate(traced.leaves):
        for tensor in step.outputs:
            size = tensor_bytes(tensor)
            alive += size
            end = last_use[id(tensor)]
            freed[end] = freed.get(end, 0) + size
        peak = max(peak, alive)
        alive -= freed.get(at, 0)
    return peak
