"""The only reader of Keras' private graph attributes.

A functional model's graph is public in no version of Keras 3. Verified with
Keras 3.15; tests/utils/test_keras_graph.py names what each function relies on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from keras_aspp.utils.exceptions import InputTypeError

if TYPE_CHECKING:
    # `--help` reads the configuration, which must not wait for Keras.
    import keras


def producer(tensor: keras.KerasTensor) -> keras.Operation:
    """Returns the operation that computes a `KerasTensor`."""
    return tensor._keras_history.operation


def producers(layer: Any) -> list[keras.Operation]:
    """Returns the operations that feed the first call of a layer."""
    return [producer(x) for x in layer._inbound_nodes[0].input_tensors]


def consumers(layer: Any) -> list[keras.Operation]:
    """Returns the operations that read a layer's output, one for each call."""
    return [node.operation for node in layer._outbound_nodes]


def sublayers(
    layer: Any, include_self: bool = True
) -> list[keras.layers.Layer]:
    """Returns a layer and all layers nested in it, at any depth.

    Args:
        layer: `keras.layers.Layer`, or an operation, which contains no layer.
        include_self: bool. Whether `layer` itself is among them.
    """
    import keras

    if not isinstance(layer, keras.layers.Layer):
        return []
    return list(layer._flatten_layers(include_self=include_self))


def layers_by_path(
    model: keras.Model,
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields `(path, layer)` of every layer, also of nested models."""
    for layer in model.layers:
        if not is_functional(layer):
            yield layer.name, layer
            continue
        for path, inner in layers_by_path(layer):
            yield f"{layer.name}/{path}", inner


def draws_random(layer: keras.layers.Layer) -> bool:
    """Returns True if a layer itself, not one within it, has a generator."""
    return bool(layer._seed_generators)


def is_functional(model: Any) -> bool:
    """Returns True if a model has a graph of layers."""
    import keras

    return isinstance(model, keras.Model) and hasattr(
        graph_of(model), "_nodes_by_depth"
    )


def clone_graph(model: keras.Model, *args: Any, **kwargs: Any) -> keras.Model:
    """Applies `keras.models.clone_model`, but the copy is not compiled.

    Keras gives it an optimizer and the loss, which must be found by name.
    """
    import keras

    compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model, *args, **kwargs)
    finally:
        model.compiled = compiled


def check_functional(model: Any) -> None:
    """Raises `TypeError` unless a model has a graph of layers."""
    if not is_functional(model):
        raise InputTypeError(
            "`model` must be a functional Keras model, built from "
            f"`keras.Input`. Received: model={model!r} of type "
            f"{type(model).__name__}"
        )


def nodes_of(model: keras.Model) -> list[Any]:
    """Returns the calls of layers in a graph, in the order of computation.

    Args:
        model: functional or Sequential `keras.Model`, or `keras.Function`.
    """
    by_depth = graph_of(model)._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
    ]


def graph_of(model: keras.Model) -> keras.Model:
    """Returns the functional model within a Sequential one, or the model."""
    return getattr(model, "_functional", None) or model


@contextlib.contextmanager
def calls_forgotten(model: keras.Model) -> Iterator[None]:
    """Forgets the symbolic calls of a model's layers that are made within.

    Each symbolic call appends a node to the lists of its layers, and a layer
    may assign to its variables or add losses; without this, tracing a model
    would change it.
    """
    import keras

    lists = [
        nodes
        for layer in sublayers(model)
        for nodes in (layer._inbound_nodes, layer._outbound_nodes)
    ]
    lengths = [len(nodes) for nodes in lists]
    try:
        with keras.StatelessScope():
            yield
    finally:
        for nodes, length in zip(lists, lengths, strict=True):
            del nodes[length:]
