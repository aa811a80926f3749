"""create_backbone: names -> dense feature extractors."""

import dataclasses
import os
import re
from collections.abc import Callable

import keras

from keras_aspp.backbones.atrous import rebuild, with_output_stride
from keras_aspp.preprocess import (
    KERAS_CAFFE,
    KERAS_TF,
    TORCHVISION,
    Preprocess,
)


@dataclasses.dataclass(frozen=True)
class _Family:
    """What the zoo knows of one family of `keras.applications`."""

    build: Callable  # (multiplier, weights, input_shape) -> keras.Model
    features: dict  # feature key -> name of the layer that ends the stage
    preprocess: Preprocess  # of Keras' own weights
    torchvision_epsilon: float | None = None  # None: no importer yet


_RESNET_FEATURES = {
    "stride_2": "conv1_relu",
    "stride_4": "conv2_block3_out",
    "stride_8": "conv3_block4_out",
}
_FAMILIES = {
    "mobilenet_v2": _Family(
        build=lambda alpha, **kw: keras.applications.MobileNetV2(
            alpha=alpha, **kw
        ),
        features={
            "stride_2": "expanded_conv_project_BN",
            "stride_4": "block_2_add",
            "stride_8": "block_5_add",
            "stride_16": "block_12_add",
            "stride_32": "block_16_project_BN",
        },
        preprocess=KERAS_TF,
        torchvision_epsilon=1e-5,
    ),
    "resnet50": _Family(
        build=lambda _, **kw: keras.applications.ResNet50(**kw),
        features={
            **_RESNET_FEATURES,
            "stride_16": "conv4_block6_out",
            "stride_32": "conv5_block3_out",
        },
        preprocess=KERAS_CAFFE,
    ),
    "resnet101": _Family(
        build=lambda _, **kw: keras.applications.ResNet101(**kw),
        features={
            **_RESNET_FEATURES,
            "stride_16": "conv4_block23_out",
            "stride_32": "conv5_block3_out",
        },
        preprocess=KERAS_CAFFE,
    ),
}
_MULTIPLIERS = ("0.35", "0.5", "0.75", "1.3", "1.4")


def list_backbones():
    """Names that `create_backbone` knows.

    MobileNetV2 takes any depth multiplier, `mobilenet_v2_0.25` too; listed
    are those with published weights.
    """
    return sorted([*_FAMILIES, *(f"mobilenet_v2_{m}" for m in _MULTIPLIERS)])


def create_backbone(
    name,
    output_stride=16,
    weights="imagenet",
    input_shape=(None, None, 3),
    batch_norm_epsilon=None,
    batch_norm_momentum=None,
    dtype=None,
):
    """A feature extractor out of `keras.applications`, made dense.

    Args:
        name: one of `list_backbones()`, or `mobilenet_v2_<multiplier>`.
        output_stride: 8, 16 or 32 (any power of two that the network can be
            converted to). Defaults to 16.
        weights: `"imagenet"` (downloaded by Keras), `None`, the path of a
            Keras weights file of the same `keras.applications` model without
            top, or of torchvision's `mobilenet_v2-*.pth`. Padding and
            batch-norm epsilon follow the weights.
        input_shape: `(height, width, channels)`, sizes may be `None`. Other
            than three channels need `weights=None`.
        batch_norm_epsilon: float > 0, or `None` for that of the weights.
        batch_norm_momentum: float in [0, 1), or `None` for that of the
            architecture.
        dtype: Keras dtype or policy, or `None` for the global one.

    Returns:
        `keras.Model`, images -> dict of features keyed by nominal stride,
        `{"stride_2": .., .., "stride_32": ..}`. At output stride 16,
        `"stride_32"` has one cell per 16 pixels. `model.preprocess` is what
        its pictures need.

    Raises:
        ValueError: unknown name or weights, weights that do not fit.
        FileNotFoundError: the weights file does not exist.
    """
    family, multiplier = _parse(name)
    height, width, channels = input_shape
    if weights is not None and channels != 3:
        raise ValueError(
            "Pretrained weights need three input channels; pass "
            "weights=None (backbone_weights=None of a segmenter). Received: "
            f"input_shape={tuple(input_shape)}, weights={weights!r}"
        )
    torch = weights is not None and str(weights).endswith(".pth")
    if weights not in (None, "imagenet") and not os.path.isfile(weights):
        raise FileNotFoundError(
            f"`weights` must be 'imagenet', None or a file. Received: "
            f"weights={str(weights)!r}, which does not exist"
        )
    if torch and family.torchvision_epsilon is None:
        raise ValueError(
            f"No importer for torchvision weights of {name}. "
            f"Received: weights={str(weights)!r}"
        )
    model = _load(
        name, family, multiplier, None if torch else weights, channels
    )
    preprocess = family.preprocess
    if torch:
        from keras_aspp.weights import torchvision

        torchvision.load_mobilenet_v2(model, weights)
        preprocess = TORCHVISION
        batch_norm_epsilon = batch_norm_epsilon or family.torchvision_epsilon
    features = {
        key: model.get_layer(layer).output
        for key, layer in family.features.items()
    }
    model = keras.Model(model.input, features, name=name.replace(".", "_"))
    symmetric = torch or weights is None
    if symmetric:
        model = _pad_symmetrically(model)
    model = configure(model, batch_norm_epsilon, batch_norm_momentum, dtype)
    if (height, width) != (None, None):
        model = _fix_size(model, input_shape)
    model = with_output_stride(model, output_stride)
    model.preprocess = preprocess
    return model


def _parse(name):
    match = re.fullmatch(r"(mobilenet_v2)_(\d+(?:\.\d+)?)", str(name))
    family, multiplier = match.groups() if match else (name, "1")
    if family not in _FAMILIES or float(multiplier) <= 0:
        raise ValueError(
            f"Unknown backbone. Known: {', '.join(list_backbones())}. "
            f"Received: name={name!r}"
        )
    return _FAMILIES[family], float(multiplier)


def _load(name, family, multiplier, weights, channels):
    try:
        return family.build(
            multiplier,
            weights=None if weights is None else str(weights),
            input_shape=(None, None, channels),
            include_top=False,
        )
    except Exception as error:
        # Keras' own errors here name neither the backbone nor the way out.
        if weights is None:
            raise
        raise ValueError(
            f"Weights of {name} could not be loaded; pass a file of them, "
            f"or None. Received: weights={str(weights)!r} "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def configure(
    model, batch_norm_epsilon=None, batch_norm_momentum=None, dtype=None
):
    """A copy with other batch-norm arguments or another dtype policy.

    `None` keeps what is. The weights are the same.
    """
    norm = {"epsilon": batch_norm_epsilon, "momentum": batch_norm_momentum}
    norm = {key: value for key, value in norm.items() if value is not None}
    changes = {}
    for layer in model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        changes[layer.name] = dict(norm) if is_norm else {}
        if dtype is not None:
            changes[layer.name]["dtype"] = dtype
    return rebuild(model, changes)


def _pad_symmetrically(model):
    """Strided layers pad alike at both sides, whatever the picture's size.

    Keras' own backbones pad by the parity of the size they are built with.
    """
    changes, padding_before = {}, {}
    for layer in model.layers:
        kernel = _kernel_behind(layer)
        if kernel:
            half = (kernel - 1) // 2
            changes[layer.name] = {"padding": ((half, half), (half, half))}
        strided = getattr(layer, "strides", (1, 1)) != (1, 1)
        if strided and layer.padding == "same":
            padding_before[layer.name] = layer.kernel_size[0] // 2
            changes[layer.name] = {"padding": "valid"}
    return rebuild(model, changes, padding_before)


def _kernel_behind(layer):
    """Kernel size of the convolution that a ZeroPadding2D pads for."""
    if not isinstance(layer, keras.layers.ZeroPadding2D):
        return None
    (node,) = layer._outbound_nodes[:1]
    target = node.operation
    return getattr(target, "kernel_size", getattr(target, "pool_size", None))[0]


def _fix_size(model, input_shape):
    inputs = keras.Input(input_shape, name=model.input.name)
    return keras.models.clone_model(
        model, input_tensors=inputs, clone_function=lambda layer: layer
    )
