"""Fake quantization: int8's rounding in float, with a gradient for training.

The schemes are those of TFLite's int8: activations are asymmetric, with one
scale per tensor; kernels are symmetric, with one scale per output channel.
Rounding has the gradient of the identity (straight-through), and values
beyond the range have none.

Reference:
    [Jacob et al., 2018](https://arxiv.org/abs/1712.05877), section 3;
    [Krishnamoorthi, 2018](https://arxiv.org/abs/1806.08342), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.utils.types import Tensor

# A range of no width still has a scale.
_LEAST = 1e-8


def nudged_range(
    low: Tensor, high: Tensor, bits: int = 8
) -> tuple[Tensor, ...]:
    """Moves a range so that 0 is one of its levels.

    Args:
        low: float, smallest value.
        high: float, largest value.
        bits: int > 1. Defaults to 8.

    Returns:
        `(low, high, scale)`: the moved range, which contains 0, and the
        distance of its `2**bits` levels.
    """
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 0.0)
    steps = 2**bits - 1
    scale = ops.maximum((high - low) / steps, _LEAST)
    low = -scale * ops.clip(ops.round(-low / scale), 0, steps)
    return low, low + scale * steps, scale


def fake_quantize(
    x: Tensor, low: Tensor, high: Tensor, bits: int = 8
) -> Tensor:
    """Rounds an activation to the levels of its range.

    Args:
        x: float tensor of any shape.
        low: float, smallest value of the range.
        high: float, largest value of the range.
        bits: int > 1. Defaults to 8.

    Returns:
        Tensor of the shape of `x`. Its gradient is 1 within the range, and 0
        beyond it.

    Example:
    >>> x = keras.ops.convert_to_tensor([-1.0, 0.3, 9.0])
    >>> keras.ops.convert_to_numpy(fake_quantize(x, 0.0, 1.5, bits=2)).tolist()
    [0.0, 0.5, 1.5]
    """
    low, high, scale = map(ops.stop_gradient, nudged_range(low, high, bits))
    clipped = ops.clip(x, low, high)
    rounded = low + scale * ops.round((clipped - low) / scale)
    return clipped + ops.stop_gradient(rounded - clipped)


def fake_quantize_kernel(
    kernel: Tensor, axes: Sequence[int], bits: int = 8
) -> Tensor:
    """Rounds a kernel to symmetric levels, with one scale per channel.

    Args:
        kernel: float tensor.
        axes: axes that a scale covers, all but those of the output channels.
        bits: int > 1. Defaults to 8.

    Returns:
        Tensor of the shape of `kernel`. Its gradient is 1.
    """
    most = 2 ** (bits - 1) - 1
    largest = ops.max(ops.abs(kernel), axis=tuple(axes), keepdims=True)
    scale = ops.maximum(largest / most, _LEAST)
    rounded = scale * ops.round(kernel / scale)
    return kernel + ops.stop_gradient(rounded - kernel)


class ActivationQuantizer(keras.layers.Layer):
    """Fake quantization of one activation, which learns its range.

    Training averages the smallest and the largest value of batches: all
    batches weigh the same at first, later it is a moving average. After
    `observe_steps` batches the range stays. Until the first batch the layer
    returns its input.

    Args:
        bits: int > 1. Defaults to 8.
        momentum: float in [0, 1), of the moving average. Defaults to 0.99.
        observe_steps: int > 0, or `None` to observe as long as it is trained.
            Defaults to `None`.
        fixed: `(low, high)`, a range that stays, or `None`. Defaults to
            `None`.
        **kwargs: forwarded to `keras.layers.Layer`.

    Attributes:
        low: smallest value, a variable, or a float of a fixed range.
        high: largest value, as `low`.
    """

    def __init__(
        self,
        bits: int = 8,
        momentum: float = 0.99,
        observe_steps: int | None = None,
        fixed: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bits, self.momentum = bits, momentum
        self.observe_steps, self.fixed = observe_steps, fixed
        if fixed is not None:
            self.low, self.high = fixed
        else:
            self.low, self.high, self.count = (
                self.add_weight(
                    name=name,
                    shape=(),
                    initializer="zeros",
                    trainable=False,
                    aggregation="mean",
                    autocast=False,
                )
                for name in ("low", "high", "count")
            )
        self.built = True

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        observe: bool = True,
    ) -> Tensor:
        """Quantizes a tensor.

        Args:
            inputs: float tensor.
            training: bool. Update the range first.
            observe: bool. False for a further tensor of the same range, which
                never updates it.
        """
        if self.fixed is not None:
            return fake_quantize(inputs, *self.fixed, self.bits)
        if training and observe:
            self._observe(inputs)
        rounded = fake_quantize(inputs, self.low, self.high, self.bits)
        if training:
            return rounded
        return ops.where(self.count > 0, rounded, inputs)

    def _observe(self, inputs):
        inputs = ops.stop_gradient(inputs)
        count = ops.convert_to_tensor(self.count)
        keep = ops.minimum(self.momentum, count / (count + 1))
        if self.observe_steps is not None:
            keep = ops.where(count < self.observe_steps, keep, 1.0)
        for variable, found in (
            (self.low, ops.min(inputs)),
            (self.high, ops.max(inputs)),
        ):
            variable.assign(variable * keep + found * (1 - keep))
        self.count.assign(count + 1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape
