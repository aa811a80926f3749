"""HeadBuilder: makes the layers of a segmenter's head, all to one policy."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.layers.rewritable import Conv2D
from keras_aspp.layers.skip_fusion import SkipFusion
from keras_aspp.utils.types import Rate

# Prefix of the layers that make scores; the shapes of their weights depend on
# the number of classes.
CLASSIFIER = "classifier"


@dataclasses.dataclass(frozen=True)
class HeadBuilder:
    """Common arguments of every head, and its layers made from them.

    Args:
        num_classes: int > 0, channels of the scores; 1 for a binary task.
        output_stride: int, pixels per cell of the high-level feature.
        high_level: key of the high-level feature.
        atrous_rates: tuple of ints > 0 or pairs, in feature cells.
        dropout: float in [0, 1), before the classifier.
        align_corners: bool, resize convention.
        shift_px: `(down, right)`, pixels by which the high-level map is
            shifted when it is resized; not zero where the head was trained at
            another output stride.
        batch_norm: see `AtrousConv2D`.
        batch_norm_momentum: float in [0, 1).
        batch_norm_epsilon: float > 0.
        dtype: dtype policy.
        shift_of: function: key of a feature -> the `shift_px` of its map.
    """

    num_classes: int
    output_stride: int
    high_level: str
    atrous_rates: tuple[Rate, ...]
    dropout: float
    align_corners: bool
    shift_px: tuple[float, float]
    batch_norm: bool | str
    batch_norm_momentum: float
    batch_norm_epsilon: float
    dtype: keras.DTypePolicy
    shift_of: Callable[[str], tuple[float, float]]

    @property
    def common(self) -> dict[str, Any]:
        """Returns the arguments that every layer with batch norm takes."""
        return {
            "batch_norm": self.batch_norm,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
            "dtype": self.dtype,
        }

    def conv(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel_size: int = 3,
        **kwargs: Any,
    ) -> keras.KerasTensor:
        """Applies `AtrousConv2D`; `kwargs` are further arguments of it."""
        arguments = {**self.common, **kwargs}
        return AtrousConv2D(filters, kernel_size, **arguments)(x)

    def drop(
        self, x: keras.KerasTensor, name: str = "dropout"
    ) -> keras.KerasTensor:
        """Applies dropout."""
        return keras.layers.Dropout(self.dropout, dtype=self.dtype, name=name)(
            x
        )

    def concatenate(
        self, maps: Sequence[keras.KerasTensor], name: str = "concat"
    ) -> keras.KerasTensor:
        """Concatenates the channels of maps of one size."""
        return keras.layers.Concatenate(dtype=self.dtype, name=name)(maps)

    def resize(
        self,
        x: keras.KerasTensor,
        scale: int,
        reference: keras.KerasTensor,
        name: str,
        dtype: str | keras.DTypePolicy | None = None,
        high_level_to: int | None = None,
        feature: str | None = None,
    ) -> keras.KerasTensor:
        """Upsamples a map by `scale`, cropped to the size of another.

        Args:
            x: the map.
            scale: int > 0.
            reference: map or image of the resulting height and width.
            name: name of the layer.
            dtype: dtype policy of the layer, or `None` for that of the head.
            high_level_to: pixels per cell of the result if `x` has the cells
                of the high-level feature, which `shift_px` shifts, or of
                `feature`; else `None`.
            feature: key of the feature whose cells `x` has, `None` for the
                high-level one.
        """
        return BilinearResize(
            scale=scale,
            align_corners=self.align_corners,
            shift=self._shift(high_level_to, feature),
            dtype=dtype or self.dtype,
            name=name,
        )(x, reference=reference)

    def fuse(
        self,
        x: keras.KerasTensor,
        finer: keras.KerasTensor,
        filters: int,
        scale: int,
        name: str,
        high_level_to: int | None = None,
    ) -> keras.KerasTensor:
        """Applies `SkipFusion` to a map and a finer one.

        Args:
            x: the map.
            finer: map of `scale` times as many cells per axis.
            filters: int > 0, output channels.
            scale: int > 0.
            name: name of the layer.
            high_level_to: see `resize`.
        """
        return SkipFusion(
            filters,
            scale,
            align_corners=self.align_corners,
            shift=self._shift(high_level_to),
            name=name,
            **self.common,
        )([x, finer])

    def _shift(self, high_level_to, feature=None):
        """Returns the shift of a map, in cells of the resized one."""
        if not high_level_to or self.align_corners:
            return (0, 0)
        pixels = self.shift_of(feature) if feature else self.shift_px
        return tuple(n / high_level_to for n in pixels)

    def upsample_input(
        self, images: keras.KerasTensor, scale: int
    ) -> keras.KerasTensor:
        """Upsamples images by a factor; 1 returns them unchanged."""
        if scale == 1:
            return images
        return BilinearResize(scale=scale, name="magnified", dtype="float32")(
            images
        )

    def classify(
        self,
        x: keras.KerasTensor,
        name: str = CLASSIFIER,
        kernel_size: int = 1,
        atrous_rate: Rate = 1,
    ) -> keras.KerasTensor:
        """Computes scores of a map, (B, h, w, K).

        Scores have few channels, so they stay in float32 under mixed
        precision.
        """
        return Conv2D(
            self.num_classes,
            kernel_size,
            padding="same",
            dilation_rate=atrous_rate,
            dtype="float32",
            name=name,
        )(x)
