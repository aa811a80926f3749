"""Feature pyramids that backbones of keras-hub and keras-cv state."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_aspp.backbones.rebuild import (
    copy_weights,
    set_trainable_within,
    trainable_within,
)
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import graph_of, sublayers
from keras_aspp.utils.types import Tensor

# Pixels of the image on which strides are measured: any stride divides them.
_SIZE = 256


def has_pyramid(model: keras.Model) -> bool:
    """Returns True for a model with `pyramid_outputs`, as keras-hub's have."""
    return bool(getattr(model, "pyramid_outputs", None))


def pyramid_of(model: keras.Model) -> dict[str, Tensor]:
    """Returns the features that a backbone states, by nominal stride.

    keras-hub states tensors (`pyramid_outputs`), keras-cv names of layers
    (`pyramid_level_inputs`). Their keys do not always tell the stride: `P1` is
    stride 2 of a ResNet and stride 4 of MiT. So strides are measured.

    Args:
        model: functional `keras.Model`.

    Returns:
        dict: `"stride_4"` and so on -> feature map, in rising order; empty for
        a model that states none.

    Raises:
        ValueError: the features are not maps of the image.
    """
    found, levels = {}, _levels(model)
    image, shapes = _known_shapes(model, levels)
    for key, tensor in levels.items():
        stride = _stride(image, shapes[key])
        if stride is None:
            raise InputError(
                f"The features of {type(model).__name__} must be maps whose "
                "stride is a power of two. "
                f"Received: {key} of shape {tuple(tensor.shape)}"
            )
        found[stride] = tensor
    return {f"stride_{stride}": found[stride] for stride in sorted(found)}


def stated_strides(model: keras.Model) -> dict[str, int]:
    """Returns the strides of what `as_it_is` returned, as it measured them.

    The layers of such a backbone cannot be walked through.

    Args:
        model: functional `keras.Model`.

    Returns:
        dict: `"stride_4"` and so on -> 4 and so on; empty for other models.
    """
    if _stated(model) is None:
        return {}
    return {key: int(key.removeprefix("stride_")) for key in model.output}


def _levels(model):
    """Returns dict: the backbone's own name of a feature -> feature map."""
    if _stated(model):
        return model.output
    if has_pyramid(model):
        return model.pyramid_outputs
    try:
        names = getattr(model, "pyramid_level_inputs", None) or {}
    except NotImplementedError:  # keras-cv's ViTDet has one level only
        names = {}
    return {key: model.get_layer(name).output for key, name in names.items()}


def _stated(model):
    """Returns the `StatedPyramid` of what `as_it_is` returned, or `None`."""
    layers = (x for x in model.layers if isinstance(x, StatedPyramid))
    return next(layers, None)


@keras.saving.register_keras_serializable(package="keras_aspp")
class StatedPyramid(keras.layers.Layer):
    """Features that a backbone states, with the backbone as one layer.

    Some layers of keras-hub's and keras-cv's MiT cannot be copied or loaded
    on their own, but the whole backbone can.

    Args:
        backbone: functional `keras.Model` with a pyramid.
        **kwargs: forwarded to `keras.layers.Layer`: `name`, and `dtype`, by
            default that of the backbone, which must have it.

    Output shape:
        dict: nominal stride -> `(batch_size, height, width, channels)`.
    """

    def __init__(self, backbone: keras.Model, **kwargs: Any) -> None:
        own = _policy_of(backbone)
        super().__init__(**{"dtype": own, **kwargs})
        if self.dtype_policy.name != own.name:
            raise InputError(
                f"The backbone {type(backbone).__name__} cannot be copied to "
                "another dtype; create it with this one. Received: dtype="
                f"{self.dtype_policy.name!r}, a backbone of {own.name!r}"
            )
        self.backbone = backbone
        self._features = keras.Model(backbone.input, pyramid_of(backbone))
        self.built = True

    def call(
        self, inputs: Tensor, training: bool | None = None
    ) -> dict[str, Tensor]:
        return self._features(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "trainable_within": trainable_within(self),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StatedPyramid:
        config = dict(config)
        trainable = config.pop("trainable_within", None)
        inner = config["backbone"]
        policy = keras.dtype_policies.get(config["dtype"])
        if "dtype" in inner["config"]:
            # A copy may be of another dtype.
            arguments = {**inner["config"], "dtype": policy.name}
            inner = {**inner, "config": arguments}
        with _global_policy(policy):
            backbone = keras.saving.deserialize_keras_object(inner)
        layer = cls(**{**config, "backbone": backbone})
        if trainable is not None:  # None in older files
            set_trainable_within(layer, trainable)
        return layer


@contextlib.contextmanager
def _global_policy(policy):
    """Gives layers that are created within a policy.

    keras-hub's MiT does not pass its `dtype` on to its layers.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _policy_of(model):
    """Returns the dtype policy of a model's layers.

    That of a functional model itself is the global one.
    """
    layers = (
        layer
        for layer in sublayers(model)
        if layer.weights and not isinstance(layer, keras.Model)
    )
    return next(layers, model).dtype_policy


def as_it_is(model: keras.Model) -> keras.Model:
    """Copies a backbone with a pyramid, its strides and layers unchanged.

    Args:
        model: functional `keras.Model` of one image, with a pyramid, or what
            this function returned.

    Returns:
        Functional `keras.Model`, images -> dict keyed by nominal stride, with
        the weights of `model`; frozen layers stay frozen.
    """
    stated = _stated(model)
    source = stated.backbone if stated else model
    config = source.get_config()
    policy = keras.dtype_policies.get(config.get("dtype") or _policy_of(source))
    with _global_policy(policy):
        copy = type(source).from_config(config)
    copy.trainable = source.trainable
    copy_weights(source, copy)
    image = keras.Input(graph_of(model).inputs[0].shape[1:], name="image")
    features = StatedPyramid(copy, name="pyramid")(image)
    return keras.Model(image, features, name=model.name)


def _known_shapes(model, tensors):
    """Returns the shape of the image, and of tensors by name, of known size."""
    image = graph_of(model).inputs[0].shape
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if tensors and len(image) == 4 and None in image[1:3]:
        image = (1, _SIZE, _SIZE, image[-1])
        # All in one pass through the model.
        shapes = keras.Model(model.input, tensors).compute_output_shape(image)
    return image, shapes


def _stride(image, shape):
    """Pixels per cell, or `None` for a shape other than of a map of the image.

    The number of cells is rounded up or down: 513 pixels are 17 cells of
    stride 32 with padding, and 16 without.

    Args:
        image: shape `(B, H, W, C)`.
        shape: of a tensor.
    """
    if len(image) != 4 or len(shape) != 4:
        return None
    sides = list(zip(image[1:3], shape[1:3], strict=True))
    powers = [2**i for i in range(max(image[1:3]).bit_length())]
    fitting = [
        stride
        for stride in powers
        if all(abs(cells - pixels / stride) < 1 for pixels, cells in sides)
    ]
    # Two cells of 33 pixels fit strides 16 and 32: padding is the usual case.
    return min(
        fitting,
        key=lambda stride: sum(cells * stride < n for n, cells in sides),
        default=None,
    )
