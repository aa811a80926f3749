"""DeepLabV2: the scores of several rates, added."""

import keras

from keras_aspp.layers.checks import check_atrous_rates
from keras_aspp.models.features import pick
from keras_aspp.models.head import CLASSIFIER
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.exceptions import InputError

PYRAMIDS = ("large_fov", "aspp_s", "aspp_l")


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV2(Segmenter):
    """Backbone -> one branch of scores for each rate -> sum -> resize.

    A branch is a 3x3 atrous convolution to the scores (ResNet-101), or, with
    `fc_filters`, the fully connected layers of VGG-16 as convolutions: 3x3
    atrous fc6, 1x1 fc7, 1x1 to the scores. The head has no batch norm.

    Args:
        num_classes: int > 1, background included.
        *args: see `Segmenter`. The paper's `output_stride` is 8.
        pyramid: `"large_fov"` (one rate, also known as DeepLabV1),
            `"aspp_s"` or `"aspp_l"` (four): the rates that
            `atrous_rates="auto"` means. Defaults to `"aspp_l"`.
        fc_filters: int > 0, channels of fc6 and fc7 (1024 with VGG-16), or
            `None` for branches of one convolution. Defaults to `None`.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = DeepLabV2(21, backbone_weights=None, output_stride=8)
    >>> model.atrous_rates
    (6, 12, 18, 24)

    Reference:
        [Chen et al., 2016](https://arxiv.org/abs/1606.00915), sections 3.2
        and 4.1. Differs from it in: one rate of dropout before the scores
        (after fc6 and fc7 where there are; published: 0.5 there, none with
        ResNet-101); no CRF.
    """

    architecture = "deeplab_v2"

    def __init__(
        self, num_classes, *args, pyramid="aspp_l", fc_filters=None, **kwargs
    ):
        if pyramid not in PYRAMIDS:
            raise InputError(
                f"`pyramid` must be one of {PYRAMIDS}. "
                f"Received: pyramid={pyramid!r}"
            )
        super().__init__(
            num_classes, *args, pyramid=pyramid, fc_filters=fc_filters, **kwargs
        )

    def offsets_name(self, pyramid, **_):
        return f"{self.architecture}_{pyramid}"

    def decode(self, features, parts, pyramid, fc_filters):
        rates = check_atrous_rates(parts.atrous_rates)
        x = pick(features, parts.high_level)
        if fc_filters is None:
            x = parts.drop(x)
        scores = [
            self._branch(x, parts, fc_filters, i, rate)
            for i, rate in enumerate(rates, start=1)
        ]
        if len(scores) > 1:
            add = keras.layers.Add(dtype="float32", name="scores")
            scores = [add(scores)]
        return scores[0], parts.output_stride

    def _branch(self, x, parts, fc_filters, i, rate):
        name = f"{CLASSIFIER}_{i}"
        if fc_filters is None:
            return parts.classify(x, name, kernel_size=3, atrous_rate=rate)
        for fc, (size, fc_rate) in {"fc6": (3, rate), "fc7": (1, 1)}.items():
            x = parts.conv(
                x,
                fc_filters,
                size,
                atrous_rate=fc_rate,
                batch_norm=False,
                name=f"{fc}_{i}",
            )
            x = parts.drop(x, name=f"{fc}_{i}_dropout")
        return parts.classify(x, name)
