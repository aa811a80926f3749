"""DeepLabV3+: DeepLabV3 with a decoder that brings back outlines."""

import keras

from keras_aspp.layers.aspp import ASPP
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.models.segmenter import Segmenter, pick

DECODER_STRIDE = 4


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV3Plus(Segmenter):
    """Backbone -> ASPP -> decoder at stride 4 -> classifier -> resize.

    The decoder resizes ASPP's map to the low-level feature of stride 4, puts
    it beside a 1x1 projection of that feature, and refines both with two 3x3
    convolutions.

    Args:
        num_classes: int > 0.
        *args: see `Segmenter`.
        projection_filters: int > 0. 1x1 channels on the low-level feature.
            Defaults to 48.
        decoder_filters: int > 0. Defaults to 256.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = DeepLabV3Plus(21, backbone_weights=None)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Chen et al., 2018](https://arxiv.org/abs/1802.02611), section 3.
        Differs from it in: the classifier's scores are computed at stride 4
        and then resized, as in the published code.
    """

    architecture = "deeplab_v3_plus"

    def __init__(
        self,
        num_classes,
        *args,
        projection_filters=48,
        decoder_filters=256,
        **kwargs,
    ):
        super().__init__(
            num_classes,
            *args,
            projection_filters=projection_filters,
            decoder_filters=decoder_filters,
            **kwargs,
        )

    def decode(
        self,
        features,
        aspp,
        common,
        output_stride,
        separable,
        align_corners,
        projection_filters,
        decoder_filters,
    ):
        low_level = pick(features, f"stride_{DECODER_STRIDE}")
        high_level = ASPP(**aspp, **common)(pick(features, "stride_32"))
        high_level = BilinearResize(
            scale=output_stride // DECODER_STRIDE,
            align_corners=align_corners,
            dtype=common["dtype"],
            name="resize",
        )(high_level, reference=low_level)
        low_level = AtrousConv2D(
            projection_filters, 1, name="low_level", **common
        )(low_level)
        x = keras.layers.Concatenate(dtype=common["dtype"], name="concat")(
            [high_level, low_level]
        )
        for i in (1, 2):
            x = AtrousConv2D(
                decoder_filters,
                separable=separable,
                name=f"decoder_{i}",
                **common,
            )(x)
        return x, DECODER_STRIDE
