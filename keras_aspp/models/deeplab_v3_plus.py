"""DeepLabV3+: DeepLabV3 with a decoder that brings back outlines."""

import keras

from keras_aspp.layers.aspp import ASPP
from keras_aspp.models.features import pick
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.exceptions import InputError

# What the decoder adds, from coarse to fine, and the suffix of its layers.
LEVELS = {4: (("stride_4", 4, ""),)}
LEVELS[2] = (*LEVELS[4], ("stride_2", 2, "_stride_2"))


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV3Plus(Segmenter):
    """Backbone -> ASPP -> decoder -> classifier -> resize.

    The decoder resizes ASPP's map to the low-level feature of stride 4, puts
    it beside a 1x1 projection of that feature, and refines both with two 3x3
    convolutions. With `decoder_stride=2` it does so once more at stride 2.

    Args:
        num_classes: int > 1, background included.
        *args: see `Segmenter`.
        aspp_filters: int > 0. Defaults to 256.
        separable: bool. Depthwise separable 3x3 convolutions in ASPP and
            decoder. Defaults to `False`.
        image_pooling: bool. Defaults to `True`.
        decoder_stride: 4 or 2, pixels per score. Defaults to 4.
        projection_filters: int > 0. 1x1 channels on each low-level feature.
            Defaults to 48.
        decoder_filters: int > 0. Defaults to 256.
        decoder_kernel_sizes: odd ints > 0, of the decoder's convolutions, one
            after the other. Defaults to (3, 3); `(1,)` is keras-hub's.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = DeepLabV3Plus(21, backbone_weights=None)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Chen et al., 2018](https://arxiv.org/abs/1802.02611), section 3;
        stride 2: the published code's `decoder_output_stride=[4, 2]`.
        Differs from it in: the classifier's scores are computed at the
        decoder's stride and then resized, as in the published code.
    """

    architecture = "deeplab_v3_plus"
    scores_at_output_stride = False

    def __init__(
        self,
        num_classes,
        *args,
        aspp_filters=256,
        separable=False,
        image_pooling=True,
        decoder_stride=4,
        projection_filters=48,
        decoder_filters=256,
        decoder_kernel_sizes=(3, 3),
        **kwargs,
    ):
        decoder_kernel_sizes = tuple(decoder_kernel_sizes)
        if not decoder_kernel_sizes:
            raise InputError(
                "`decoder_kernel_sizes` must not be empty. "
                f"Received: decoder_kernel_sizes={decoder_kernel_sizes}"
            )
        if decoder_stride not in LEVELS:
            raise InputError(
                "`decoder_stride` must be 4 or 2. "
                f"Received: decoder_stride={decoder_stride!r}"
            )
        super().__init__(
            num_classes,
            *args,
            aspp_filters=aspp_filters,
            separable=separable,
            image_pooling=image_pooling,
            decoder_stride=decoder_stride,
            projection_filters=projection_filters,
            decoder_filters=decoder_filters,
            decoder_kernel_sizes=decoder_kernel_sizes,
            **kwargs,
        )

    def decode(
        self,
        features,
        parts,
        aspp_filters,
        separable,
        image_pooling,
        decoder_stride,
        projection_filters,
        decoder_filters,
        decoder_kernel_sizes,
    ):
        x, stride = pick(features, parts.high_level), parts.output_stride
        x = ASPP(
            aspp_filters,
            parts.atrous_rates,
            separable=separable,
            image_pooling=image_pooling,
            dropout=parts.dropout,
            name="aspp",
            **parts.common,
        )(x)
        high_level = True
        for key, nominal, suffix in LEVELS[decoder_stride]:
            low_level = pick(features, key)
            # Of a backbone denser than that, the low level is as dense.
            finer = min(nominal, stride)
            x = parts.resize(
                x,
                stride // finer,
                low_level,
                name=f"resize{suffix}",
                high_level_to=finer if high_level else None,
            )
            high_level, stride = False, finer
            low_level = parts.conv(
                low_level, projection_filters, 1, name=f"low_level{suffix}"
            )
            x = parts.concatenate([x, low_level], name=f"concat{suffix}")
            for i, kernel_size in enumerate(decoder_kernel_sizes, start=1):
                x = parts.conv(
                    x,
                    decoder_filters,
                    kernel_size,
                    separable=separable and kernel_size > 1,
                    name=f"decoder_{i}{suffix}",
                )
        return parts.classify(x), stride
