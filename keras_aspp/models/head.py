"""Head: makes the layers of a segmenter's head, all to one policy."""

import dataclasses

import keras

from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.layers.rewritable import Conv2D

# Layers that make scores are named so; their weights depend on the classes.
CLASSIFIER = "classifier"


@dataclasses.dataclass(frozen=True)
class HeadBuilder:
    """What every head is built with.

    Args:
        num_classes: int > 0.
        output_stride: int, pixels per cell of the high-level feature.
        high_level: key of the high-level feature.
        atrous_rates: tuple of ints > 0, in feature cells.
        dropout: float in [0, 1), before the classifier.
        align_corners: bool, resize convention.
        shift_px: `(down, right)`, by which the high-level map is to be moved,
            since its head learned it at another output stride.
        batch_norm: see `AtrousConv2D`.
        batch_norm_momentum: float in [0, 1).
        batch_norm_epsilon: float > 0.
        dtype: dtype policy.
    """

    num_classes: int
    output_stride: int
    high_level: str
    atrous_rates: tuple
    dropout: float
    align_corners: bool
    shift_px: tuple
    batch_norm: bool | str
    batch_norm_momentum: float
    batch_norm_epsilon: float
    dtype: keras.DTypePolicy

    @property
    def common(self):
        """Arguments that every layer with batch norm takes."""
        return {
            "batch_norm": self.batch_norm,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
            "dtype": self.dtype,
        }

    def conv(self, x, filters, kernel_size=3, **kwargs):
        """`AtrousConv2D` on a map."""
        arguments = {**self.common, **kwargs}
        return AtrousConv2D(filters, kernel_size, **arguments)(x)

    def drop(self, x, name="dropout"):
        """Dropout on a map."""
        return keras.layers.Dropout(self.dropout, dtype=self.dtype, name=name)(
            x
        )

    def concatenate(self, maps, name="concat"):
        """Maps of one size, beside each other."""
        return keras.layers.Concatenate(dtype=self.dtype, name=name)(maps)

    def resize(self, x, scale, reference, name, dtype=None, high_level_to=None):
        """A map upsampled by `scale` to the height and width of another.

        Of the high-level map, `high_level_to` is the stride of the result.
        """
        shift = (0, 0)
        if high_level_to and not self.align_corners:
            shift = tuple(n / high_level_to for n in self.shift_px)
        return BilinearResize(
            scale=scale,
            align_corners=self.align_corners,
            shift=shift,
            dtype=dtype or self.dtype,
            name=name,
        )(x, reference=reference)

    def magnify(self, images, scale):
        """Pictures upsampled by a factor, those of 1 as they are."""
        if scale == 1:
            return images
        return BilinearResize(scale=scale, name="magnified", dtype="float32")(
            images
        )

    def classify(self, x, name=CLASSIFIER, kernel_size=1, atrous_rate=1):
        """Scores of a map, (B, h, w, K).

        They are few channels, so they stay in float32 under mixed precision.
        """
        return Conv2D(
            self.num_classes,
            kernel_size,
            padding="same",
            dilation_rate=atrous_rate,
            dtype="float32",
            name=name,
        )(x)
