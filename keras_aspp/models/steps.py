"""Tracer: lists the calls of a model down to single layers and operations.

Symbolic tensors go through the model, and composite layers are opened until
only layers and operations are left that do one thing.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from keras_aspp.layers import BilinearResize
from keras_aspp.utils.deprecation import renamed_attribute
from keras_aspp.utils.keras_graph import (
    is_functional,
    nodes_of,
    sublayers,
)
from keras_aspp.utils.types import Shape

# Whatever else they are made of, what these do is known by their type.
KNOWN = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.BatchNormalization,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    BilinearResize,
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a layer, or of one of `keras.ops`.

    Attributes:
        path: names of the layers it lies in, and its own, joined by `/`.
        operation: the layer, or the `keras.Operation`.
        inputs: tuple of symbolic tensors.
        outputs: tuple of symbolic tensors.
        opened: whether it is a composite layer, whose parts are steps too.
        opaque: whether it is a layer of the user that could not be opened.
        arguments: tuple, what it was called with, by position.
        keywords: dict, what it was called with, by name.
    """

    path: str
    operation: keras.Operation
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    opened: bool = False
    opaque: bool = False
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    kind: ClassVar[property] = renamed_attribute("kind", "layer_type")

    @property
    def layer_type(self) -> str:
        """Name of its class."""
        return type(self.operation).__name__

    @property
    def shape(self) -> Shape:
        """Shape of its (first) output, without the batch."""
        return tuple(self.outputs[0].shape[1:]) if self.outputs else ()


class Tracer:
    """Collects steps; maps symbolic tensors to their copies.

    Args:
        calls: dict, type of a layer -> function of such a layer and of its
            inputs that is traced in place of its `call`, or `None` to leave
            such a layer closed.
        live: bool. Leaves layers closed whose steps would not compute as the
            layer does once its weights or the phase change: layers that
            compute with their weights apart from any symbolic tensor, and
            layers without parts that have a training phase. Defaults to
            `False`.

    Attributes:
        steps: list of `Step` in the order of computation.
    """

    def __init__(
        self,
        calls: Mapping[type, Callable[..., Any] | None] | None = None,
        live: bool = False,
    ) -> None:
        self.steps: list[Step] = []
        self._live = live
        self._calls = calls or {}
        self._same = {}  # id of a composite's output -> that of its inside
        self._kept = []  # an id is one tensor's only while that is alive

    def open(
        self,
        layer: keras.layers.Layer,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        path: str,
    ) -> tuple[keras.KerasTensor, ...]:
        """Calls `layer` symbolically and visits what it calls.

        Args:
            layer: composite layer or model.
            args: arguments of its call by position, symbolic tensors.
            kwargs: arguments of its call by name.
            path: path of the layer, the prefix of those of its parts.

        Returns:
            Its outputs.
        """
        call = self._calls.get(type(layer), type(layer).call)
        result = call(layer, *args, **kwargs)
        outputs = keras.tree.flatten(result)
        inputs = [
            t
            for t in keras.tree.flatten((args, kwargs))
            if isinstance(t, keras.KerasTensor)
        ]
        made = [t for t in outputs if all(t is not i for i in inputs)]
        if made:
            # Function finds the calls between inputs and outputs.
            nodes = nodes_of(keras.Function(inputs, made))
            if self._live and _holds_values(layer, nodes):
                raise RuntimeError(f"{path} computes with its weights.")
            for node in nodes:
                if all(t is not i for t in node.output_tensors for i in inputs):
                    self._visit(node, path)
        return tuple(self._resolve(outputs))

    def _visit(self, node, path):
        operation = node.operation
        path = f"{path}/{_name(operation)}".lstrip("/")
        inputs = tuple(self._resolve(node.input_tensors))
        outputs = tuple(node.output_tensors)
        if type(operation).__name__ == "ConvertToTensor":
            self._alias(outputs, inputs)  # what Keras does to any input
            return
        opened = opaque = False
        closed = self._calls.get(type(operation), False) is None or (
            self._live and _is_one_with_phases(operation)
        )
        if not closed and _is_composite(operation):
            count = len(self.steps)
            try:
                inner = self.open(
                    operation,
                    node.arguments.args,
                    node.arguments.kwargs,
                    path,
                )
                opened = True
            except (ValueError, TypeError, AttributeError, RuntimeError):
                # Its `call` asks more of a tensor than a shape.
                del self.steps[count:]
                opaque = True
            else:
                self._alias(outputs, inner)
                outputs = inner
        self.steps.append(
            Step(
                path,
                operation,
                inputs,
                outputs,
                opened,
                opaque,
                *self._resolve_nested(
                    (tuple(node.arguments.args), dict(node.arguments.kwargs))
                ),
            )
        )

    def _resolve_nested(self, arguments):
        return keras.tree.map_structure(
            lambda t: (
                self._same.get(id(t), t)
                if isinstance(t, keras.KerasTensor)
                else t
            ),
            arguments,
        )

    def _alias(self, tensors, others):
        for tensor, other in zip(tensors, others, strict=True):
            self._same[id(tensor)] = other
        self._kept.extend(tensors)

    def _resolve(self, tensors):
        return [self._same.get(id(tensor), tensor) for tensor in tensors]


def _name(operation):
    if isinstance(operation, keras.layers.Layer):
        return operation.name
    # Operations are numbered through the process; their type identifies them.
    return type(operation).__name__.lower()


def _is_composite(operation):
    if not isinstance(operation, keras.layers.Layer) or isinstance(
        operation, KNOWN
    ):
        return False
    has_parts = bool(sublayers(operation, include_self=False))
    foreign = not type(operation).__module__.startswith("keras.")
    return has_parts or foreign or isinstance(operation, keras.layers.Lambda)


def _is_one_with_phases(operation):
    """Returns True for a layer without parts whose call takes `training`."""
    if not isinstance(operation, keras.layers.Layer) or sublayers(
        operation, include_self=False
    ):
        return False
    call = operation.call
    if isinstance(operation, keras.layers.Lambda):
        call = operation.function
    return "training" in inspect.signature(call).parameters


def _holds_values(layer, nodes):
    """Returns True if calls contain values that may come from weights.

    An operation without a symbolic tensor runs at once, so its result no
    longer follows the weights. The constants of a functional model are its own.
    """
    if is_functional(layer) or not layer.weights:
        return False
    return any(
        keras.ops.is_tensor(value)
        and not isinstance(value, keras.Variable)
        and keras.backend.is_float_dtype(value.dtype)
        for node in nodes
        for value in keras.tree.flatten(
            (node.arguments.args, node.arguments.kwargs)
        )
    )
