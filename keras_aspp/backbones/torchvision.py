"""Backbones of torchvision, from their published state dicts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_aspp.utils.exceptions import InputError, UnavailableError
from keras_aspp.utils.types import PathLike

_URL = "https://download.pytorch.org/models/"
# The end of a file's name is the start of its SHA-256.
FILES = {
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "mobilenet_v3_large": "mobilenet_v3_large-8738ca79.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "deeplabv3_resnet50": "deeplabv3_resnet50_coco-cd0a2569.pth",
    "deeplabv3_resnet101": "deeplabv3_resnet101_coco-586e9e4e.pth",
    "deeplabv3_mobilenet_v3_large": (
        "deeplabv3_mobilenet_v3_large-fc3c493d.pth"
    ),
    "lraspp_mobilenet_v3_large": "lraspp_mobilenet_v3_large-d234d4ea.pth",
}
# Suffixes of the weights of a layer, batch norm included.
_NORM = ("weight", "bias", "running_mean", "running_var")


def download(name: str) -> str:
    """Downloads a published file once, verifies it and returns its path.

    Args:
        name: key of `FILES`.

    Raises:
        ValueError: the downloaded file is not the published one.
        OSError: it cannot be downloaded.
    """
    file = FILES[name]
    try:
        path = keras.utils.get_file(file, _URL + file, cache_subdir="models")
    except Exception as error:
        # Keras raises a bare Exception here.
        raise UnavailableError(
            f"{_URL}{file} cannot be downloaded; get it by other means and "
            f"pass its path. ({error})"
        ) from error
    check_published(path)
    return path


def check_published(path: PathLike) -> None:
    """Raises `ValueError` unless a file has the SHA-256 in its name.

    Args:
        path: file whose name ends with the first 8 digits.
    """
    with open(path, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if not found.startswith(re.search(r"-([0-9a-f]{8})\.[^.]*$", str(path))[1]):
        raise InputError(
            "The file is not the published one; delete it and download or "
            "install it again. "
            f"File: {path} (SHA-256 {found})"
        )


def resnet_changes(model: keras.Model) -> dict[str, dict[str, Any]]:
    """Returns the configuration changes from Keras' ResNet to torchvision's.

    A stage strides in the 3x3 convolution of its first block, not in the 1x1
    before it ("v1.5"), and convolutions have no bias.
    """
    changes = {
        layer.name: {"use_bias": False}
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    }
    for stage in (3, 4, 5):
        changes[f"conv{stage}_block1_1_conv"]["strides"] = 1
        changes[f"conv{stage}_block1_2_conv"]["strides"] = 2
    return changes


def fill_resnet(
    model: keras.Model, arrays: Mapping[str, np.ndarray], source: PathLike
) -> None:
    """Loads torchvision's ResNet into a model with `resnet_changes`.

    Args:
        model: functional `keras.Model`, `keras.applications`' names.
        arrays: dict: name -> array, of the network itself.
        source: what messages call it.

    Raises:
        ValueError: the tensors are not those of the model.
    """
    state = TorchState(arrays, source)
    for layer in model.layers:
        if layer.weights:
            state.fill(layer, _resnet_name(layer.name))
    state.check_empty(but="fc.")


def fill_mobilenet(
    model: keras.Model, arrays: Mapping[str, np.ndarray], source: PathLike
) -> None:
    """Loads torchvision's MobileNetV2 or V3 into Keras'.

    Arguments and errors as `fill_resnet`.
    """
    state = TorchState(arrays, source)
    # Both number their layers in the order of the forward pass.
    names = dict.fromkeys(
        name.rpartition(".")[0]
        for name in sorted(arrays, key=_natural)
        if not name.startswith("classifier.")
    )
    layers = [layer for layer in model.layers if layer.weights]
    # The last 1x1 convolution of MobileNetV2 comes after the features.
    for layer, name in zip(layers, names, strict=False):
        state.fill(layer, name)
    if len(layers) > len(names):
        raise InputError(
            f"The model has {len(layers)} layers with weights. Received: "
            f"{len(names)} in {source!r}"
        )
    state.check_empty(but="classifier.")


class TorchState:
    """Tensors of a state dict, each to be used once.

    Args:
        arrays: dict, name of torch -> array.
        source: name of the file for messages.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], source: PathLike
    ) -> None:
        self.arrays: dict[str, np.ndarray] = {
            name: array
            for name, array in arrays.items()
            if not name.endswith("num_batches_tracked")
        }
        self.source: str = str(source)
        self.left: dict[str, None] = dict.fromkeys(self.arrays)

    def size_of(self, name: str) -> int:
        """Returns the number of output channels of a tensor."""
        if name not in self.arrays:
            self._raise_missing(name)
        return len(self.arrays[name])

    def fill(self, layer: keras.layers.Layer, name: str) -> None:
        """Assigns the tensors `name.weight`, ... to a layer."""
        for weight, suffix in zip(layer.weights, _NORM, strict=False):
            array = self._take(f"{name}.{suffix}")
            if array.ndim == 4:
                deep = isinstance(layer, keras.layers.DepthwiseConv2D)
                array = array.transpose((2, 3, 0, 1) if deep else (2, 3, 1, 0))
            if array.shape != tuple(weight.shape):
                raise InputError(
                    f"Tensor {name}.{suffix} of {self.source!r} does not fit "
                    f"{weight.path}. Received: shape={array.shape}, "
                    f"needed={tuple(weight.shape)}"
                )
            weight.assign(array)

    def check_empty(self, but: str | tuple[str, ...] = "\0") -> None:
        """Raises `ValueError` for unused tensors, except those of `but`."""
        left = [name for name in self.left if not name.startswith(but)]
        if left:
            raise InputError(
                f"Unexpected tensors in the file: {len(left)}, for example "
                f"{left[0]}. Received: {self.source!r}"
            )

    def _take(self, name):
        if name not in self.left:
            self._raise_missing(name)
        del self.left[name]
        return self.arrays[name]

    def _raise_missing(self, name):
        raise InputError(
            f"Missing tensor {name}. Received: {self.source!r} with "
            f"{len(self.arrays)} tensors"
        )


def _resnet_name(layer):
    """`"conv3_block1_0_bn"` -> `"layer2.0.downsample.1"`."""
    match = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer)
    if not match:
        return {"conv1_conv": "conv1", "conv1_bn": "bn1"}[layer]
    stage, block, unit = map(int, match.groups()[:3])
    layer_type = match[4]
    inner = f"downsample.{int(layer_type == 'bn')}"
    if unit:
        inner = f"{layer_type}{unit}"
    return f"layer{stage - 1}.{block - 1}.{inner}"


def _natural(name):
    """Sorts `features.10` after `features.9`."""
    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in name.split(".")
    ]
