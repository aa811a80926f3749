"""Dense prediction cell: a small graph of atrous convolutions, found by search.

Shape legend: B batch, h x w feature cells, C input channels, F = `filters`,
N number of branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.layers.checks import (
    check_atrous_rate,
    check_atrous_rates,
    check_odd,
    rate_text,
)
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.image_pooling import ImagePooling
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import (
    Activation,
    BatchNorm,
    Rate,
    Shape,
    Tensor,
)

# The best cell of the search on Cityscapes, for output stride 16.
CITYSCAPES_CELL = (
    {"op": "conv", "kernel": 3, "rate": (1, 6), "input": -1},
    {"op": "conv", "kernel": 3, "rate": (18, 15), "input": 0},
    {"op": "conv", "kernel": 3, "rate": (6, 3), "input": 1},
    {"op": "conv", "kernel": 3, "rate": (1, 1), "input": 0},
    {"op": "conv", "kernel": 3, "rate": (6, 21), "input": 0},
)
CITYSCAPES_RATES = check_atrous_rates(
    [branch["rate"] for branch in CITYSCAPES_CELL]
)


@keras.saving.register_keras_serializable(package="keras_aspp")
class DensePredictionCell(ContextLayer):
    """Branches that read the input or an earlier branch.

    A branch is a 1x1 convolution, a depthwise separable atrous convolution
    with a rate for each axis, or image-level pooling. All branches are
    concatenated, dropped out, and projected by a 1x1 convolution.

    Args:
        filters: int > 0. Channels of every branch and of the result. Defaults
            to 256.
        branches: non-empty sequence of dicts, in the format of the published
            files. `op`: `"conv"` or `"pyramid_pooling"`; `input`: -1 for the
            input of the layer, or the index of an earlier branch; of a
            convolution `kernel`, odd int > 0, and, above 1, `rate`: int > 0
            or `(height, width)`, in feature cells; of a pooling `grid_size`,
            which must be 1. Defaults to the published cell for Cityscapes, at
            output stride 16.
        atrous_rates: sequence of rates, one for each convolution of a kernel
            above 1, which replace those of `branches`; `None` keeps them.
            Defaults to `None`.
        dropout: float in [0, 1), rate before the projection. Defaults to 0.1.
        activation: Keras activation or its name. Defaults to `"relu"`.
        batch_norm: see `AtrousConv2D`. Defaults to `True`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, filters)`, the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = DensePredictionCell(filters=4)
    >>> layer.atrous_rates
    ((1, 6), (18, 15), (6, 3), 1, (6, 21))

    Reference:
        [Chen et al., 2018](https://arxiv.org/abs/1809.04184). Differs from it
        in: the only grid of pyramid pooling is 1, the mean of the whole map,
        because the windows of others depend on the image size.
    """

    def __init__(
        self,
        filters: int = 256,
        branches: Sequence[Mapping[str, Any]] = CITYSCAPES_CELL,
        atrous_rates: Sequence[Rate] | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            dropout,
            activation,
            batch_norm,
            batch_norm_momentum,
            batch_norm_epsilon,
            **kwargs,
        )
        branches = _check_branches(branches)
        atrous = [branch for branch in branches if "rate" in branch]
        if atrous_rates is not None:
            rates = check_atrous_rates(atrous_rates, allow_empty=not atrous)
            if len(rates) != len(atrous):
                raise InputError(
                    f"`atrous_rates` must be {len(atrous)} rates, one for "
                    "each convolution of the cell whose kernel is above 1. "
                    f"Received: atrous_rates={atrous_rates}"
                )
            for branch, rate in zip(atrous, rates, strict=True):
                branch["rate"] = rate
        self.atrous_rates = tuple(branch["rate"] for branch in atrous)
        self.operations = [
            self._operation(branch, f"branch_{i}")
            for i, branch in enumerate(branches)
        ]
        self.projection = AtrousConv2D(
            filters, kernel_size=1, name="projection", **self.common
        )
        self.branches = branches
        self.add_dropout()

    def _operation(self, branch, name):
        if branch["op"] == "pyramid_pooling":
            return ImagePooling(self.filters, name=name, **self.common)
        return AtrousConv2D(
            self.filters,
            kernel_size=branch["kernel"],
            atrous_rate=branch.get("rate", 1),
            separable="rate" in branch,
            name=name,
            **self.common,
        )

    def build(self, input_shape: Shape) -> None:
        inner = (*input_shape[:-1], self.filters)
        for operation, branch in zip(
            self.operations, self.branches, strict=True
        ):
            operation.build(input_shape if branch["input"] < 0 else inner)
        channels = self.filters * len(self.operations)
        self.projection.build((*inner[:-1], channels))

    @property
    def branch_titles(self) -> list[str]:
        titles = []
        for i, branch in enumerate(self.branches):
            title = "1x1"
            if branch["op"] == "pyramid_pooling":
                title = "image pooling"
            elif "rate" in branch:
                title = f"rate {rate_text(branch['rate'])}"
            titles.append(f"{i}: {title}")
        return titles

    def branch_maps(
        self, inputs: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        maps = []
        for operation, branch in zip(
            self.operations, self.branches, strict=True
        ):
            source = branch["input"]
            x = inputs if source < 0 else maps[source]
            maps.append(operation(x, training=training))
        return maps

    def fuse(
        self, maps: list[Tensor], inputs: Tensor, training: bool | None
    ) -> Tensor:
        x = ops.concatenate(maps, axis=-1)  # (B, h, w, NF)
        x = self.drop(x, training=training)
        return self.projection(x, training=training)  # (B, h, w, F)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "branches": [dict(branch) for branch in self.branches],
            "atrous_rates": self.atrous_rates,
        }


def _check_branches(branches):
    """Returns new dicts, one for each branch, or raises `ValueError`."""
    if not isinstance(branches, (list, tuple)) or not branches:
        raise InputError(
            "`branches` must be a non-empty sequence of dicts. "
            f"Received: branches={branches!r}"
        )
    return [_check_branch(i, branch) for i, branch in enumerate(branches)]


def _check_branch(i, branch):
    if not isinstance(branch, Mapping):
        raise InputError(
            f"`branches[{i}]` must be a dict. Received: {branch!r}"
        )
    source = branch.get("input", -1)
    if type(source) is not int or not -1 <= source < i:
        raise InputError(
            f"`input` of `branches[{i}]` must be -1 or the index of an "
            f"earlier branch. Received: input={source!r}"
        )
    op = branch.get("op")
    if op == "pyramid_pooling":
        grid = branch.get("grid_size")
        if grid not in (1, [1, 1], (1, 1)):
            raise InputError(
                f"`grid_size` of `branches[{i}]` must be 1: the windows of "
                "other grids depend on the image size. "
                f"Received: grid_size={grid!r}"
            )
        return {"op": op, "grid_size": 1, "input": source}
    if op != "conv":
        raise InputError(
            f"`op` of `branches[{i}]` must be 'conv' or 'pyramid_pooling'. "
            f"Received: op={op!r}"
        )
    kernel = branch.get("kernel")
    if isinstance(kernel, (list, tuple)) and len(set(kernel)) == 1:
        kernel = kernel[0]
    kernel = check_odd(kernel)
    checked = {"op": op, "kernel": kernel, "input": source}
    if kernel > 1:
        name = f"rate of branches[{i}]"
        checked["rate"] = check_atrous_rate(name, branch.get("rate"))
    return checked
