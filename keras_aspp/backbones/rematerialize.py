"""rematerialize: trades a second forward pass for memory in training."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import keras

from keras_aspp.backbones.output_stride import tensor_strides
from keras_aspp.utils.keras_graph import (
    check_functional,
    draws_random,
    nodes_of,
    sublayers,
)
from keras_aspp.utils.types import Tensor

# A residual block has 8 to 10 layers. Shorter parts would keep nearly all.
SHORTEST, LONGEST = 8, 16


def rematerialize(model: keras.Model) -> Rematerialized:
    """Returns the model with fewer activations stored for the gradient.

    The graph is cut into parts where a single tensor goes on, at the ends of
    blocks. In training only those tensors are kept; what lies between is
    computed a second time when its gradient is due. Weights are shared, and
    results, gradients and statistics are those of `model`.

    Args:
        model: functional `keras.Model` of maps, e.g. a backbone.

    Returns:
        `Rematerialized` model with the layers of `model`.

    Raises:
        TypeError: `model` is not a functional Keras model.
        NotImplementedError: in training, on another backend than TensorFlow.

    Example:
    >>> from keras_aspp.backbones import create_backbone
    >>> backbone = rematerialize(create_backbone("resnet50", 16, None))
    >>> type(backbone).__name__
    'Rematerialized'

    Reference:
        [Chen et al., 2016](https://arxiv.org/abs/1604.06174), section 4.
        Differs from it in: parts end at the narrowest place within 8 to 16
        layers.
    """
    check_functional(model)
    copy = Rematerialized(model.input, model.output, name=model.name)
    if hasattr(model, "preprocess"):
        copy.preprocess = model.preprocess
    return copy


@keras.saving.register_keras_serializable(package="keras_aspp")
class Rematerialized(keras.Model):
    """A functional model that keeps few activations; see `rematerialize`."""

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if not training:
            return super().call(inputs, training=training, mask=mask)
        if keras.backend.backend() != "tensorflow":
            raise NotImplementedError(
                "Activations can be rematerialized on TensorFlow only. "
                f"Received: backend={keras.backend.backend()}"
            )
        values = dict(
            zip(map(id, self.inputs), keras.tree.flatten(inputs), strict=True)
        )
        for part in parts_of(self):
            made = part.run([values[name] for name in part.needed])
            values.update(zip(part.made, made, strict=True))
        outputs = [values[id(tensor)] for tensor in self.outputs]
        return keras.tree.pack_sequence_as(self._outputs_struct, outputs)


@dataclasses.dataclass(frozen=True)
class Part:
    """Nodes of a graph that are computed together, twice in training.

    Tensors go by the `id` of the symbolic one.

    Attributes:
        nodes: list of nodes, in order.
        needed: list of tensors that come from before.
        made: list of tensors that are used after it.
    """

    nodes: list[Any]
    needed: list[int]
    made: list[int]

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Tensors `made` from tensors `needed`."""
        if any(map(_draws, self.nodes)):
            # A second draw would be another one.
            return self._compute(*inputs)
        forward = itertools.chain([True], itertools.repeat(False))

        def compute(*inputs):
            if next(forward):
                return self._compute(*inputs)
            with _statistics_kept(self.nodes):
                return self._compute(*inputs)

        return keras.remat(compute)(*inputs)

    def _compute(self, *inputs):
        values = dict(zip(self.needed, inputs, strict=True))
        for node in self.nodes:
            args, kwargs = node.arguments.fill_in(values)
            if getattr(node.operation, "_call_has_training_arg", False):
                kwargs["training"] = True
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            values.update(zip(map(id, node.outputs), outputs, strict=True))
        return tuple(values[name] for name in self.made)


def parts_of(model: keras.Model) -> list[Part]:
    """The graph of a model, cut at the narrow places.

    Args:
        model: functional `keras.Model`.

    Returns:
        list of `Part`.
    """
    nodes = [node for node in nodes_of(model) if not node.is_input]
    last_use = {
        id(tensor): i
        for i, node in enumerate(nodes)
        for tensor in node.input_tensors
    }
    kept = {id(tensor) for tensor in model.outputs}
    parts, start = [], 0
    widths = _widths(model, nodes, last_use)
    while start < len(nodes):
        end = _end(nodes, widths, start)
        inside = nodes[start:end]
        made = dict.fromkeys(id(t) for node in inside for t in node.outputs)
        needed = dict.fromkeys(
            id(t)
            for node in inside
            for t in node.input_tensors
            if id(t) not in made
        )
        later = [
            name
            for name in made
            if name in kept or last_use.get(name, -1) >= end
        ]
        parts.append(Part(inside, list(needed), later))
        start = end
    return parts


def _widths(model, nodes, last_use):
    """Numbers per pixel that go on after each node, `None` if several do."""
    strides = tensor_strides(model)
    widths, live = [], {}
    for i, node in enumerate(nodes):
        for tensor in node.outputs:
            live[id(tensor)] = tensor.shape[-1] / strides[id(tensor)] ** 2
        live = {
            name: width
            for name, width in live.items()
            if last_use.get(name, -1) > i
        }
        widths.append(next(iter(live.values())) if len(live) == 1 else None)
    return widths


def _end(nodes, widths, start):
    """Returns the best end of the part that begins at a node."""
    if _draws(nodes[start]):
        return start + 1
    stop = next(
        (i for i in range(start, len(nodes)) if _draws(nodes[i])), len(nodes)
    )
    places = [i for i in range(start + SHORTEST - 1, stop) if widths[i]]
    near = [i for i in places if i < start + LONGEST]
    if near:
        return min(near, key=lambda i: (widths[i], -i)) + 1
    return places[0] + 1 if places else stop


def _draws(node):
    """Returns True if a layer draws random numbers."""
    return any(draws_random(layer) for layer in _layers(node))


def _layers(node):
    """The layer of a node and those within it; an operation has none."""
    return sublayers(node.operation)


@contextlib.contextmanager
def _statistics_kept(nodes):
    """Within it, batch norm in training leaves its moving statistics."""
    norms = {
        layer: layer.momentum
        for node in nodes
        for layer in _layers(node)
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
