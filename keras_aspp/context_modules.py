"""The context modules that `context` accepts by name, in one table.

The head, the configuration, its help texts and the tests of every module
read `MODULES`. It imports no layer, so that the command line prints its help
without loading Keras.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from keras_aspp.utils.types import Rate

# Of the published configuration of each; docs/atrous.md compares them.
ContextName: TypeAlias = Literal[
    "aspp",
    "ksac",
    "ksac_concat",
    "wasp",
    "d_linknet",
    "dappm",
    "pappm",
    "dpc",
    "dilated_reparam",
    "none",
]


@dataclasses.dataclass(frozen=True)
class ContextModule:
    """A module between the backbone and the rest of the head.

    Args:
        layer: name of its layer in `keras_aspp.layers`, or `None` without one.
        text: noun phrase for help texts.
        offsets_px: ints > 0 or pairs `(height, width)`: how far each branch
            reaches, in pixels. Divided by the output stride, they are the
            values of `atrous_rates="auto"`.
        arguments: arguments of the layer that differ from its defaults.
        head_arguments: names of arguments of the segmenter that the layer has,
            too. `aspp_filters`, `dropout` and batch norm are passed anyway.
    """

    layer: str | None
    text: str
    offsets_px: tuple[Rate, ...]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_arguments: tuple[str, ...] = ()


# DeepLabV3, section 4.1: 6, 12, 18 at output stride 16, doubled at 8.
_ASPP_PX = (96, 192, 288)
# Pool strides 2, 4, 8 at output stride 16. Published at 64, for images of
# 1024 pixels and more.
_POOLS_PX = (32, 64, 128)
_ASPP_LIKE = ("separable", "image_pooling")

MODULES: Mapping[str, ContextModule] = {
    "aspp": ContextModule(
        "ASPP",
        "convolutions of several rates side by side",
        _ASPP_PX,
        head_arguments=_ASPP_LIKE,
    ),
    "ksac": ContextModule(
        "ASPP",
        "an ASPP of one kernel, its branches added",
        _ASPP_PX,
        {"shared": True, "fusion": "linear_sum"},
        _ASPP_LIKE,
    ),
    "ksac_concat": ContextModule(
        "ASPP",
        "an ASPP of one kernel, its branches concatenated",
        _ASPP_PX,
        {"shared": True},
        _ASPP_LIKE,
    ),
    "wasp": ContextModule(
        "AtrousCascade",
        "a cascade of rates, its stages concatenated",
        # As those of ASPP, the largest first.
        _ASPP_PX[::-1],
        head_arguments=_ASPP_LIKE,
    ),
    "d_linknet": ContextModule(
        "AtrousCascade",
        "a cascade of rates, its stages added",
        # 1, 2, 4, 8 at stride 32.
        (32, 64, 128, 256),
        {"fusion": "sum", "image_pooling": False},
        ("separable",),
    ),
    "dappm": ContextModule(
        "DAPPM", "pools of several sizes, one after the other", _POOLS_PX
    ),
    "pappm": ContextModule(
        "DAPPM",
        "pools of several sizes side by side",
        _POOLS_PX,
        {"parallel": True},
    ),
    "dpc": ContextModule(
        "DensePredictionCell",
        "a dense prediction cell",
        # `CITYSCAPES_RATES` at output stride 16.
        ((16, 96), (288, 240), (96, 48), 16, (96, 336)),
    ),
    # One rate, which multiplies those of all its branches. Layers of the model
    # itself, so that they can be merged: see `HasContext`.
    "dilated_reparam": ContextModule(
        "DilatedReparamBlock", "a large kernel of one rate", (16,)
    ),
    "none": ContextModule(None, "no module", ()),
}


def modules_text(quote: str = "") -> str:
    """Returns a sentence of all names and what they mean, for help texts.

    Args:
        quote: character around each name.
    """
    listed = "; ".join(
        f"`{quote}{name}{quote}`, {module.text}"
        for name, module in MODULES.items()
    )
    return f"{listed}."
