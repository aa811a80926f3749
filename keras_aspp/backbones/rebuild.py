"""Rebuilds functional models layer by layer."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras

from keras_aspp.backbones.grids import OURS
from keras_aspp.layers import rewritable
from keras_aspp.layers.batch_norm import GroupNormalization
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import (
    graph_of,
    is_functional,
    layers_by_path,
)


def copy_weights(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Gives a layer's weights to its copy."""
    # Variable to variable: neither a third copy nor a way by NumPy.
    for to, value in zip(copy.weights, layer.weights, strict=True):
        to.assign(value)


def rebuild(
    model: keras.Model,
    changes: Mapping[str, dict[str, Any]],
    padding_before: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
    trims: Collection[str] = (),
    carry: Callable[
        [keras.layers.Layer, keras.layers.Layer], None
    ] = copy_weights,
    resized: Collection[str] = (),
    any_size: bool = False,
) -> keras.Model:
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
            raise InputError(
                f"Layer `{layer.name}` ({kind.__name__}) cannot be copied: it "
                "does not come back from its own configuration. (A Lambda of "
                "a Python function does not; a registered function, or a "
                "layer, does.)"
            ) from error

    def steps(layer):
        """Layers to call one after the other in the place of one."""
        if layer.name in leave_out or isinstance(layer, rewritable.Trim):
            return []
        if layer.name not in padding_before:
            return [layer]
        pad = rewritable.ZeroPadding2D(
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
    trim = rewritable.Trim(
        name=f"{layer.name}_trim", dtype=policy and policy.name
    )
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


def configure(
    model: keras.Model,
    batch_norm_epsilon: float | None = None,
    batch_norm_momentum: float | None = None,
    dtype: str | keras.DTypePolicy | None = None,
) -> keras.Model:
    """A copy with other batch-norm arguments or another dtype policy.

    `None` keeps what is. The weights are the same.
    """
    return rebuild(
        model,
        configuration_of(model, batch_norm_epsilon, batch_norm_momentum, dtype),
    )


def synchronize(model: keras.Model) -> keras.Model:
    """A copy whose batch norm takes its statistics from all devices."""
    norms = [path for path, layer in layers_by_path(model) if _is_norm(layer)]
    return rebuild(model, dict.fromkeys(norms, {"synchronized": True}))


def group_normalize(model: keras.Model) -> keras.Model:
    """The model with group norm where it has batch norm; it shares layers.

    It is for fresh weights: those of a trained network rely on their norm.
    """

    def change(layer):
        if not _is_norm(layer):
            return layer
        return GroupNormalization(
            epsilon=layer.epsilon, dtype=layer.dtype_policy, name=layer.name
        )

    def call(layer, *args, **kwargs):
        if isinstance(layer, GroupNormalization):
            kwargs = {}  # the mask that batch norm takes
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        model,
        input_tensors=model.input,
        clone_function=change,
        call_function=call,
    )


def _is_norm(layer):
    return isinstance(layer, keras.layers.BatchNormalization)


def configuration_of(
    model: keras.Model,
    batch_norm_epsilon: float | None,
    batch_norm_momentum: float | None,
    dtype: str | keras.DTypePolicy | None,
) -> dict[str, dict[str, Any]]:
    """dict: path of every layer -> configuration values to replace."""
    norm = {"epsilon": batch_norm_epsilon, "momentum": batch_norm_momentum}
    norm = {key: value for key, value in norm.items() if value is not None}
    changes = {}
    for path, layer in layers_by_path(model):
        changes[path] = dict(norm) if _is_norm(layer) else {}
        if dtype is not None:
            changes[path]["dtype"] = dtype
    return changes
