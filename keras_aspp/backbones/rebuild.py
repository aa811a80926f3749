"""Rebuilds functional models layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras

from keras_aspp.backbones.grids import OURS
from keras_aspp.layers import rewritable
from keras_aspp.layers.batch_norm import GroupNormalization
from keras_aspp.layers.checks import check_batch_norm_numbers
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import (
    clone_graph,
    graph_of,
    is_functional,
    layers_by_path,
    sublayers,
)


def copy_weights(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Assigns the weights of a layer to its copy.

    Layers within it that are frozen are frozen in the copy; `trainable` of the
    layer itself belongs to its configuration.
    """
    shapes, ours = ([w.shape for w in x.weights] for x in (layer, copy))
    if shapes != ours:
        raise InputError(
            f"Layer `{layer.name}` ({type(layer).__name__}) cannot be copied: "
            "the weights of a layer of its configuration have other shapes. "
            f"Received: {len(shapes)} weights, and {len(ours)} of the copy"
        )
    # Variable to variable, without a copy in NumPy.
    for to, value in zip(copy.weights, layer.weights, strict=True):
        to.assign(value)
    # Normalization computes with tensors that it derives from its weights.
    for inner in sublayers(copy):
        if hasattr(inner, "finalize_state"):
            inner.finalize_state()
    set_trainable_within(copy, trainable_within(layer))


def trainable_within(layer: keras.layers.Layer) -> list[bool]:
    """Returns `trainable` of each layer with weights within a layer.

    The configuration of a layer does not contain it.
    """
    return [inner.trainable for inner in _weighted_within(layer)]


def set_trainable_within(
    layer: keras.layers.Layer, values: Sequence[bool]
) -> None:
    """Sets what `trainable_within` returned for a layer of the same kind."""
    pairs = list(zip(_weighted_within(layer), values, strict=True))
    # The setter also sets all layers within, so outer layers come first.
    # `sublayers` lists a layer of two outer ones before the second of them.
    pairs.sort(key=lambda pair: -len(sublayers(pair[0])))
    for inner, value in pairs:
        if inner.trainable != value:
            inner.trainable = value


def _weighted_within(layer):
    return [x for x in sublayers(layer, include_self=False) if x.weights]


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
    channels: int | None = None,
    made: dict[int, list[Any]] | None = None,
) -> keras.Model:
    """Copies a functional model with changed layer configurations.

    A layer in a nested model goes by its path, `outer/inner`. One that several
    nested models share is one in the copy too, if its changes are equal.

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
        channels: int > 0, channels of the copy's input; `None` for those of
            `model`. `carry` must then fit the weights.
        made: dict: id of a layer -> its changes and copies so far, for the
            rebuilding of nested models.

    Returns:
        A new model with the weights of `model`.
    """
    padding_before = padding_before or {}
    made = {} if made is None else made
    # Of the copies, since a layer may change the name in its configuration.
    copies = {}

    def clone(layer):
        copies[layer.name] = copy_of(layer)
        return copies[layer.name]

    def copy_of(layer):
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
                made=made,
            )
        return _once(layer, changes.get(layer.name, {}), made)

    def steps(layer):
        """Returns the layers to call in sequence in place of one."""
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
        lambda t: _input_like(t, any_size, channels), graph_of(model).input
    )
    if isinstance(model, keras.Sequential):
        chain = [s for layer in model.layers for s in steps(clone(layer))]
        copy = keras.Sequential([inputs, *chain], name=model.name)
    else:
        copy = clone_graph(
            model, inputs, clone_function=clone, call_function=call
        )
    called = set(map(id, copy.layers))
    for layer in model.layers:
        if (
            layer.weights
            and id(copies.get(layer.name)) in called
            and not is_functional(layer)
        ):
            carry(layer, copies[layer.name])
    return copy


def _once(layer, changes, made):
    """Returns the copy that was made with these changes, or a new one."""
    done = made.setdefault(id(layer), [])
    for other, copy in done:
        if other == changes:
            return copy
    done.append((changes, _configured(layer, changes)))
    return done[-1][1]


def _configured(layer, changes):
    """Builds a layer of the same configuration but for `changes`."""
    layer_type = OURS.get(type(layer), type(layer))
    try:
        return layer_type.from_config({**layer.get_config(), **changes})
    except InputError:
        raise
    except Exception as error:
        fix = "`from_config` must accept what `get_config` returns."
        if isinstance(layer, keras.layers.Lambda):
            fix = "Replace its function by a registered one or by a layer."
        cause = error.__context__ or error  # Keras wraps that of the layer
        raise InputError(
            f"Layer `{layer.name}` ({layer_type.__name__}) cannot be "
            f"copied: `from_config(get_config())` fails. {fix} Received: "
            f"{type(cause).__name__}: {first_line(cause)}"
        ) from error


def _input_like(tensor, any_size, channels=None):
    """An input for the copy of a model whose input is `tensor`."""
    shape = tensor.shape
    if any_size and _is_map(tensor):
        shape = (shape[0], None, None, shape[3])
    if channels is not None:
        shape = (*shape[:-1], channels)
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)


def _within(layer, paths):
    """Returns the entries of a dict or set of paths within a nested model."""
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
    # Maps of one cell were pooled; they are broadcast, not trimmed.
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
    """Copies a model with other batch-norm arguments or dtype policy.

    `None` keeps the present value. The weights are the same.

    Raises:
        ValueError: see `check_configuration`.
    """
    check_configuration(batch_norm_epsilon, batch_norm_momentum, dtype)
    return rebuild(
        model,
        configuration_of(model, batch_norm_epsilon, batch_norm_momentum, dtype),
    )


def check_configuration(
    batch_norm_epsilon: float | None,
    batch_norm_momentum: float | None,
    dtype: str | keras.DTypePolicy | None,
) -> None:
    """Raises `ValueError` for arguments that `configure` cannot apply.

    Args:
        batch_norm_epsilon: float >= 0, or `None`.
        batch_norm_momentum: float in [0, 1], or `None`.
        dtype: floating dtype or policy, or `None`.
    """
    check_batch_norm_numbers(
        0.0 if batch_norm_momentum is None else batch_norm_momentum,
        0.0 if batch_norm_epsilon is None else batch_norm_epsilon,
    )
    if dtype is None:
        return
    try:
        policy = keras.dtype_policies.get(dtype)
        floating = keras.backend.is_float_dtype(policy.compute_dtype)
    except Exception:  # Keras raises many types
        floating = False
    if not floating:
        raise InputError(
            "`dtype` must be a floating dtype or a policy, such as "
            f"'mixed_bfloat16'. Received: dtype={dtype!r}"
        )


def compute_dtypes(model: keras.Model) -> set[str]:
    """Returns the compute dtypes of all layers that have weights.

    A functional model's own policy is always the global one, so it is not
    among them.
    """
    return {
        layer.compute_dtype
        for layer in sublayers(model)
        if layer.weights and not isinstance(layer, keras.Model)
    }


def synchronize(model: keras.Model) -> keras.Model:
    """Copies a model with batch statistics over all replicas."""
    changes = {}
    for path, layer in layers_by_path(model):
        if _is_norm(layer):
            changes[path] = {"synchronized": True}
        elif getattr(layer, "batch_norm", None) is True:
            # A layer of `keras_aspp.layers` that contains batch norm.
            changes[path] = {"batch_norm": "sync"}
    return rebuild(model, changes)


def group_normalize(model: keras.Model) -> keras.Model:
    """Replaces batch norm by group norm; other layers are shared.

    For untrained weights only: trained ones depend on their batch norm.
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

    return clone_graph(
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
    """Returns dict: path of each layer -> configuration values to replace."""
    norm = {"epsilon": batch_norm_epsilon, "momentum": batch_norm_momentum}
    norm = {key: value for key, value in norm.items() if value is not None}
    inner = {f"batch_norm_{key}": value for key, value in norm.items()}
    changes = {}
    for path, layer in layers_by_path(model):
        changes[path] = dict(norm) if _is_norm(layer) else {}
        if all(hasattr(layer, key) for key in inner):
            # A layer of `keras_aspp.layers` that contains batch norm.
            changes[path] |= inner
        if dtype is not None:
            changes[path]["dtype"] = dtype
    return changes
