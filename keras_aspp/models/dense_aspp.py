"""DenseASPP: atrous convolutions in a row, each seeing all before it."""

import keras

from keras_aspp.layers import dense_aspp
from keras_aspp.models.features import pick
from keras_aspp.models.segmenter import Segmenter


# The layer of this name has "keras_aspp".
@keras.saving.register_keras_serializable(package="keras_aspp.models")
class DenseASPP(Segmenter):
    """Backbone -> densely connected ASPP -> classifier -> resize.

    Args:
        num_classes: int > 1, background included.
        *args: see `Segmenter`; here `output_stride` defaults to 8, as some
            of the paper's rates are no whole number at 16.
        growth_filters: int > 0. Channels that each rate adds. Defaults to 64.
        bottleneck_filters: int > 0. Channels before each atrous convolution.
            Defaults to 256.
        separable: bool. Depthwise separable 3x3 convolutions. Defaults to
            `False`.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = DenseASPP(21, backbone_weights=None)
    >>> model.atrous_rates
    (3, 6, 12, 18, 24)

    Reference:
        Yang et al., 2018, "DenseASPP for Semantic Segmentation in Street
        Scenes", section 3. Differs from it in: see `layers.DenseASPP`; the
        backbone's last map is not narrowed to 512 channels first.
    """

    architecture = "dense_aspp"

    def __init__(
        self,
        num_classes,
        backbone="mobilenet_v2",
        output_stride=8,
        *args,
        growth_filters=64,
        bottleneck_filters=256,
        separable=False,
        **kwargs,
    ):
        super().__init__(
            num_classes,
            backbone,
            output_stride,
            *args,
            growth_filters=growth_filters,
            bottleneck_filters=bottleneck_filters,
            separable=separable,
            **kwargs,
        )

    def decode(
        self, features, parts, growth_filters, bottleneck_filters, separable
    ):
        x = dense_aspp.DenseASPP(
            growth_filters,
            bottleneck_filters,
            parts.atrous_rates,
            separable=separable,
            dropout=parts.dropout,
            name="dense_aspp",
            **parts.common,
        )(pick(features, parts.high_level))
        return parts.classify(x), parts.output_stride
