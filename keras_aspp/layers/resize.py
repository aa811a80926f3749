"""BilinearResize: the interpolation that all models use.

Shape legend: B batch, h x w cells, C channels, H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import is_number
from keras_aspp.utils.types import Shape, Size, Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class BilinearResize(keras.layers.Layer):
    """Resizes a map bilinearly, in float32.

    With `scale`, a map is upsampled by that integer and cropped to the height
    and width of `reference`. Cell i then covers the same pixels at every
    image size; a plain resize to the image size would drift. With `size`, the
    map is resized to that size.

    Args:
        size: `(height, width)`, ints > 0, in pixels; or `None`.
        scale: int > 0, pixels per cell; or `None`. Exactly one of the two is
            given.
        align_corners: bool. If `False`, samples at half-pixel centers
            (`[0, 1, 2, 3]` to width 8 gives `0 .25 .75 1.25 ...`). If `True`,
            the corners of map and result coincide, as DeepLab's published
            weights expect; with `scale` and `reference` that is exact at sizes
            `k * scale + 1`, other sizes warn once. Defaults to `False`.
        shift: `(down, right)`, floats, in pixels of the result: offset of the
            map, its edges repeated; takes `scale`. Multiples of 0.5 with
            `scale=1`, else whole numbers. Defaults to (0, 0).
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Call arguments:
        inputs: float tensor (B, h, w, C).
        reference: tensor (B, H, W, any) or `None`. The result has its height
            and width. The map may be one cell short (`ceil(H / scale) <=
            h + 1`); its edge is then repeated.

    Output shape:
        `(B, H, W, C)`, float32; without `reference` `(B, h * scale,
        w * scale, C)`; with `size` `(B, *size, C)`.

    Raises:
        ValueError: not exactly one of `size` and `scale`, or not ints > 0;
            a `shift` that is not as above.

    Example:
    >>> BilinearResize(scale=2)(keras.ops.ones((1, 3, 4, 2))).shape
    TensorShape([1, 6, 8, 2])
    """

    def __init__(
        self,
        size: Size | None = None,
        scale: int | None = None,
        align_corners: bool = False,
        shift: Sequence[float] = (0, 0),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (size is None) == (scale is None):
            raise InputError(
                "Exactly one of `size` and `scale` must be given. "
                f"Received: size={size}, scale={scale}"
            )
        if size is None:
            numbers, count = (scale,), 1
        else:
            numbers = tuple(size) if isinstance(size, (list, tuple)) else ()
            count = 2
        if len(numbers) != count or any(
            type(n) is not int or n < 1 for n in numbers
        ):
            raise InputError(
                "`size` must be two ints > 0, `scale` one int > 0. "
                f"Received: size={size}, scale={scale}"
            )
        step = 0.5 if scale == 1 else 1
        pair = isinstance(shift, (list, tuple)) and len(shift) == 2
        if (
            not pair
            or any(not is_number(n) or n % step for n in shift)
            or (any(shift) and (align_corners or scale is None))
        ):
            raise InputError(
                "`shift` must be two whole numbers (halves with scale=1), and "
                "(0, 0) with `size` or `align_corners`. "
                f"Received: shift={shift}"
            )
        self.size = None if size is None else numbers
        self.scale = scale
        self.align_corners = bool(align_corners)
        self.shift = tuple(shift)
        self._warned = False

    def call(self, inputs: Tensor, reference: Tensor | None = None) -> Tensor:
        height, width = ops.shape(inputs)[1:3]
        if self.size is not None:
            return lowering.resize_bilinear(
                inputs, self.size, self.size, self.align_corners
            )
        if reference is None:
            size = (height * self.scale, width * self.scale)
            return lowering.resize_bilinear(
                inputs, size, size, self.align_corners, self.shift
            )
        size = tuple(ops.shape(reference)[1:3])
        if self.align_corners:
            self._warn_if_inexact(size)
            return lowering.resize_bilinear(inputs, size, size, True)
        needed = [-(-n // self.scale) for n in size]
        missing = [
            max(n - have, 0)
            if isinstance(n, int) and isinstance(have, int)
            else ops.maximum(n - have, 0)
            for n, have in zip(needed, (height, width), strict=True)
        ]
        x = lowering.extend_edge(inputs, *missing)
        grid = [n * self.scale for n in ops.shape(x)[1:3]]
        return lowering.resize_bilinear(x, size, grid, shift=self.shift)

    def nearest_cells(self, cells: Size, pixels: Size) -> list[np.ndarray]:
        """Returns the nearest cell of each row and column of pixels.

        Args:
            cells: `(height, width)` of the map, ints.
            pixels: `(height, width)` of the reference, ints.

        Returns:
            two int arrays: the row of each row, the column of each column.
        """
        found = []
        for have, n, shift in zip(cells, pixels, self.shift, strict=True):
            extended, grid = have, n
            if not self.align_corners:
                extended = max(have, -(-n // self.scale))
                grid = extended * self.scale
            at = lowering.sampled_at(
                extended, grid, n, self.align_corners, shift
            )
            # Ties go to the lower index, as argmax does.
            nearest = np.ceil(at - 0.5).astype("int32")
            found.append(np.minimum(nearest, have - 1))
        return found

    def _warn_if_inexact(self, size):
        exact = all(
            not isinstance(n, int) or n % self.scale in (0, 1) for n in size
        )
        if not exact and not self._warned:
            self._warned = True
            warnings.warn(
                "`align_corners=True` is exact at sizes k * stride + 1. "
                f"Received: size={size}, stride={self.scale}",
                stacklevel=3,
            )

    def compute_output_shape(
        self, input_shape: Shape, reference_shape: Shape | None = None
    ) -> Shape:
        if self.size is not None:
            size = self.size
        elif reference_shape is not None:
            size = tuple(reference_shape[1:3])
        else:
            size = tuple(
                None if n is None else n * self.scale for n in input_shape[1:3]
            )
        return (input_shape[0], *size, input_shape[-1])

    def compute_output_spec(
        self, inputs: Tensor, reference: Tensor | None = None
    ) -> keras.KerasTensor:
        shape = self.compute_output_shape(
            inputs.shape, None if reference is None else reference.shape
        )
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "scale": self.scale,
            "align_corners": self.align_corners,
            "shift": self.shift,
        }
