"""Families of backbones: builders, preprocessing, features."""

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any

import keras

from keras_aspp.preprocess import KERAS_TF, Preprocess
from keras_aspp.utils.exceptions import InputError


@dataclasses.dataclass(frozen=True)
class Family:
    """Description of one family, of `keras.applications` or of ours."""

    # Name of the function in `keras.applications`, or a function of ours of
    # an `input_shape`.
    builder: str | Callable[..., keras.Model]
    preprocess: Preprocess  # of Keras' own weights
    # Layers whose outputs are features. Where none has the stride, the last
    # layer of that stride is taken.
    features: str = "$^"
    output: bool = True  # whether the model's own output is a feature
    multipliers: tuple[str, ...] = ()  # widths that have published weights
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    default_size: int | None = None  # of a graph that depends on the size
    torchvision_epsilon: float | None = None  # None: no importer yet
    # First layers of the network without scaling, and of torchvision's, as
    # `_described` names them; `*` is any text. Families of -1..1 need none,
    # since that is the default.
    stem: str = ""
    torchvision_stem: str = ""


# Images are preprocessed by `Preprocess`, so that it is defined once.
BARE = {"include_preprocessing": False}
FAMILIES = {
    "mobilenet": Family(
        "MobileNet", KERAS_TF, multipliers=("0.25", "0.5", "0.75")
    ),
    "mobilenet_v2": Family(
        "MobileNetV2",
        KERAS_TF,
        # Narrow ends of blocks, not the expanded maps of the next block.
        features=r"(_add|_project_BN)$",
        output=False,
        multipliers=("0.35", "0.5", "0.75", "1.3", "1.4"),
        torchvision_epsilon=1e-5,
        torchvision_stem="*Conv1*:conv3/2x*v *:bn1e-05",
    ),
    "xception": Family("Xception", KERAS_TF),
    "inception_v3": Family("InceptionV3", KERAS_TF, features=r"^mixed\d+$"),
    "inception_resnet_v2": Family(
        "InceptionResNetV2", KERAS_TF, features=r"^(mixed_|block\d+_\d+_ac$)"
    ),
}


def list_backbones() -> list[str]:
    """Returns the names that `create_backbone` accepts.

    The MobileNets take any width multiplier, `mobilenet_v2_0.25` too; listed
    are those with published weights.
    """
    widths = [
        f"{name}_{multiplier}"
        for name, family in FAMILIES.items()
        for multiplier in family.multipliers
    ]
    return sorted([*FAMILIES, *widths])


def parse_name(name: str) -> tuple[Family, float]:
    """Splits a backbone's name into its family and width multiplier."""
    match = re.fullmatch(r"(.+)_(\d+(?:\.\d+)?)", str(name))
    base, multiplier = match.groups() if match else (name, "1")
    if match and not (
        base in FAMILIES
        and FAMILIES[base].multipliers
        and float(multiplier) > 0
    ):
        base, multiplier = name, "1"
    if base not in FAMILIES:
        near = difflib.get_close_matches(str(name), list_backbones(), 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"Unknown backbone.{hint} Known: {', '.join(list_backbones())}. "
            f"Received: name={name!r}"
        )
    return FAMILIES[base], float(multiplier)
