"""Readers of the graph of a functional Keras model."""

from collections.abc import Iterator
from typing import Any

import keras


def layers_by_path(
    model: keras.Model,
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """`(path, layer)` of every layer, those of nested models too."""
    for layer in model.layers:
        if not is_functional(layer):
            yield layer.name, layer
            continue
        for path, inner in layers_by_path(layer):
            yield f"{layer.name}/{path}", inner


def is_functional(model: Any) -> bool:
    """Whether a model knows its graph."""
    return isinstance(model, keras.Model) and hasattr(
        graph_of(model), "_nodes_by_depth"
    )


def check_functional(model: Any) -> None:
    """Raises `TypeError` where a model does not know its graph."""
    if not is_functional(model):
        raise TypeError(
            "`model` must be a functional Keras model, built from "
            f"`keras.Input`. Received: model={model!r} of type "
            f"{type(model).__name__}"
        )


def nodes_of(model: keras.Model) -> list[Any]:
    """Calls of layers in a graph, in the order of computation."""
    by_depth = graph_of(model)._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
    ]


def graph_of(model: keras.Model) -> keras.Model:
    """The functional model within a Sequential one, or the model itself."""
    return getattr(model, "_functional", None) or model
