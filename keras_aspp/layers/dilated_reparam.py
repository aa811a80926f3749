"""DilatedReparamBlock: dilated branches that merge into one large kernel.

Shape legend: B batch, h x w feature cells, C channels, K `kernel_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from keras_aspp.layers.batch_norm import normalization
from keras_aspp.layers.checks import (
    check_atrous_rate,
    check_batch_norm,
    check_odd,
    rate_pair,
)
from keras_aspp.layers.initializers import fresh
from keras_aspp.layers.rewritable import DepthwiseConv2D, RemembersOriginal
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Initializer, Rate, Shape, Tensor

# The published branches of each kernel size: (kernel size, rate).
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


@keras.saving.register_keras_serializable(package="keras_aspp")
class DilatedReparamBlock(RemembersOriginal, keras.layers.Layer):
    """Large depthwise convolution, trained with parallel dilated branches.

    Training form: K x K depthwise -> batch norm, plus for each branch k x k
    depthwise of rate r -> batch norm, added. A dilated kernel is a larger one
    with zeros between its taps. So all branches and their batch norms merge
    into one plain K x K depthwise convolution with a bias, the merged form.
    `models.fold_batch_norm` and every export compute it of a block that is a
    layer of the model itself. A block within another layer is not merged.

    Args:
        kernel_size: odd int > 2, K. Defaults to 13.
        branches: sequence of `(kernel_size, rate)`, each an odd int and an
            int > 0 whose dilated kernel is at most K wide; or `"auto"` for
            those of the paper, K = 5, 7, ..., 17. Defaults to `"auto"`.
        atrous_rate: int > 0, or two of them, `(height, width)`, in feature
            cells. Multiplies the rate of K x K and of every branch. Defaults
            to 1.
        merged: bool. `True` builds the merged form, for inference. Defaults
            to `False`.
        batch_norm: see `AtrousConv2D`, without `"group"`, which cannot be
            merged. Defaults to `True`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        kernel_initializer: Keras initializer, with the fans of depthwise
            kernels. Defaults to `"he_normal"`.
        original: dict or `None`, see `RemembersOriginal`.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        The same, in the layer's compute dtype. Its variance grows with the
        number of branches; the paper normalizes it once more.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = DilatedReparamBlock(kernel_size=7)
    >>> layer(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 5])

    Reference:
        [Ding et al., 2024](https://arxiv.org/abs/2311.15599), section 3.1;
        branches as in its published code. Differs from it in: kernels start
        with He's variance, not with a standard deviation of 0.02.
    """

    def __init__(
        self,
        kernel_size: int = 13,
        branches: Literal["auto"] | Sequence[tuple[int, int]] = "auto",
        atrous_rate: Rate = 1,
        merged: bool = False,
        batch_norm: bool | Literal["freeze", "sync"] = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        kernel_initializer: Initializer = "he_normal",
        *,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(original=original, **kwargs)
        self.kernel_size = check_odd(kernel_size)
        self.branches = _check_branches(branches, self.kernel_size)
        self.atrous_rate = check_atrous_rate("atrous_rate", atrous_rate)
        self.merged = bool(merged)
        self.batch_norm = check_batch_norm(batch_norm)
        if batch_norm == "group":
            raise InputError(
                "`batch_norm` must not be 'group', which depends on the image "
                "and cannot be merged. Received: batch_norm='group'"
            )
        self.batch_norm_momentum = batch_norm_momentum
        self.batch_norm_epsilon = batch_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.convolutions, self.norms = [], []
        for size, rate in self.parts:
            suffix = "" if size == kernel_size else f"_k{size}_r{rate}"
            self.convolutions.append(self._depthwise(size, rate, suffix))
            if batch_norm and not merged:
                self.norms.append(self._norm(suffix))

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and rate of K x K and of the branches that it has."""
        branches = () if self.merged else self.branches
        return ((self.kernel_size, 1), *branches)

    def _depthwise(self, size, rate, suffix):
        rows, columns = rate_pair(self.atrous_rate)
        return DepthwiseConv2D(
            size,
            padding="same",
            dilation_rate=(rate * rows, rate * columns),
            use_bias=self.merged or not self.batch_norm,
            depthwise_initializer=fresh(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=f"depthwise{suffix}",
        )

    def _norm(self, suffix):
        return normalization(
            self.batch_norm,
            self.batch_norm_momentum,
            self.batch_norm_epsilon,
            dtype=self.dtype_policy,
            name=f"norm{suffix}",
        )

    def build(self, input_shape: Shape) -> None:
        for part in (*self.convolutions, *self.norms):
            part.build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        maps = [convolution(inputs) for convolution in self.convolutions]
        if self.norms:
            maps = [
                norm(x, training=training)
                for norm, x in zip(self.norms, maps, strict=True)
            ]
        return sum(maps[1:], start=maps[0])  # (B, h, w, C)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "branches": [list(branch) for branch in self.branches],
            "atrous_rate": self.atrous_rate,
            "merged": self.merged,
            "batch_norm": self.batch_norm,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }


def _check_branches(branches, kernel_size):
    """Returns the branches as a tuple of pairs, `"auto"` replaced."""
    if branches == "auto":
        if kernel_size not in BRANCHES:
            raise InputError(
                f"`branches` are published for kernel sizes {tuple(BRANCHES)}; "
                "pass yours. "
                f"Received: kernel_size={kernel_size}, branches='auto'"
            )
        return BRANCHES[kernel_size]
    sequences = isinstance(branches, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) for pair in branches
    )
    pairs = tuple(map(tuple, branches)) if sequences else ()
    if (
        not sequences
        or len(set(pairs)) < len(pairs)
        or not all(
            len(pair) == 2
            and all(type(n) is int and n > 0 for n in pair)
            and pair[0] % 2
            and pair[0] < kernel_size
            and (pair[0] - 1) * pair[1] < kernel_size
            for pair in pairs
        )
    ):
        raise InputError(
            "`branches` must be different pairs (kernel size, rate), an odd "
            "int > 0 and an int > 0, whose dilated kernel fits into "
            f"{kernel_size}x{kernel_size}. Received: branches={branches}"
        )
    return pairs
