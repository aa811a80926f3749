"""LR-ASPP: a gate from the whole picture, and scores of two strides added."""

import keras

from keras_aspp.models.features import pick
from keras_aspp.models.head import CLASSIFIER
from keras_aspp.models.segmenter import Segmenter


@keras.saving.register_keras_serializable(package="keras_aspp")
class LRASPP(Segmenter):
    """Backbone -> gated 1x1 convolution -> scores of two levels -> resize.

    The high-level feature goes through a 1x1 convolution and is weighted,
    channel by channel, by a gate: the mean over the picture, a 1x1
    convolution and a sigmoid. Its scores are resized to the low-level feature
    of stride 8 and added to the scores of that.

    Args:
        num_classes: int > 1, background included.
        *args: see `Segmenter`. It has no atrous branches: `atrous_rates` is
            left alone.
        gate_filters: int > 0. Channels that are gated. Defaults to 128.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = LRASPP(21, backbone_weights=None)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Howard et al., 2019](https://arxiv.org/abs/1905.02244), section 6.4,
        as torchvision reads it (the gate's mean is over the whole picture).
        Differs from it in: the high level is scored before it is resized,
        which gives the same numbers on fewer channels; dropout before its
        classifier.
    """

    architecture = "lr_aspp"
    scores_at_output_stride = False

    def __init__(self, num_classes, *args, gate_filters=128, **kwargs):
        super().__init__(
            num_classes, *args, gate_filters=gate_filters, **kwargs
        )

    def decode(self, features, parts, gate_filters):
        low_level = pick(features, "stride_8")
        high_level = pick(features, parts.high_level)
        x = parts.conv(high_level, gate_filters, 1, name="high_level")
        # float16 sums of a large map overflow, so the mean is in float32.
        gate = keras.layers.GlobalAveragePooling2D(
            keepdims=True, dtype="float32", name="mean"
        )(high_level)
        gate = keras.layers.Conv2D(
            gate_filters,
            1,
            use_bias=False,
            activation="sigmoid",
            dtype=parts.dtype,
            name="gate",
        )(gate)  # (B, 1, 1, F)
        x = keras.layers.Multiply(dtype=parts.dtype, name="gated")([x, gate])
        # Of a backbone denser than 8, the low level is as dense.
        stride = min(8, parts.output_stride)
        scores = [
            parts.classify(low_level, f"{CLASSIFIER}_low"),
            parts.resize(
                parts.classify(parts.drop(x), f"{CLASSIFIER}_high"),
                parts.output_stride // stride,
                low_level,
                name="resize",
                dtype="float32",
                high_level_to=stride,
            ),
        ]
        return keras.layers.Add(dtype="float32", name="scores")(scores), stride
