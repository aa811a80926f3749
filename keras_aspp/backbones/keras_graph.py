"""Readers of the graph of a functional Keras model."""

import keras

from keras_aspp.utils.exceptions import InputTypeError


def layers_by_path(model):
    """`(path, layer)` of every layer, those of nested models too."""
    for layer in model.layers:
        if not is_functional(layer):
            yield layer.name, layer
            continue
        for path, inner in layers_by_path(layer):
            yield f"{layer.name}/{path}", inner


def is_functional(model):
    """Whether a model knows its graph."""
    return isinstance(model, keras.Model) and hasattr(
        graph_of(model), "_nodes_by_depth"
    )


def check_functional(model):
    """Raises `TypeError` where a model does not know its graph."""
    if not is_functional(model):
        raise InputTypeError(
            "`model` must be a functional Keras model, built from "
            f"`keras.Input`. Received: model={model!r} of type "
            f"{type(model).__name__}"
        )


def nodes_of(model):
    """Calls of layers in a graph, in the order of computation."""
    by_depth = graph_of(model)._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
    ]


def graph_of(model):
    """The functional model within a Sequential one, or the model itself."""
    return getattr(model, "_functional", None) or model
