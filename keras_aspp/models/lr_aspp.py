"""LR-ASPP: an image-level gate, and a sum of the scores of two strides."""

import types
from collections.abc import Mapping, Sequence
from typing import Literal

import keras

from keras_aspp.models.features import pick
from keras_aspp.models.head import CLASSIFIER, HeadBuilder
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.types import PathLike, Rate


@keras.saving.register_keras_serializable(package="keras_aspp")
class LRASPP(Segmenter):
    """Backbone -> gated 1x1 convolution -> scores of two levels -> resize.

    A gate weights the channels of the high-level feature after a 1x1
    convolution: the mean over the image, a 1x1 convolution and a sigmoid. The
    scores of the gated feature are resized to the low-level feature of stride
    8 and added to the scores of that feature. The head has no atrous branches.

    Args:
        {common_arguments}
        gate_filters: int > 0. Channels that the gate weights. Defaults to 128.

    Example:
    >>> model = LRASPP(21, backbone_weights=None)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Howard et al., 2019](https://arxiv.org/abs/1905.02244), section 6.4,
        as implemented in torchvision (the gate's mean covers the image).
        Differs from it in: the high level is classified before the resize,
        which gives the same numbers on fewer channels; dropout before its
        classifier.
    """

    architecture = "lr_aspp"
    scores_at_output_stride = False

    def __init__(
        self,
        num_classes: int,
        backbone: str | keras.Model = "mobilenet_v2",
        output_stride: int = 16,
        atrous_rates: Literal["auto"] | Sequence[Rate] = "auto",
        backbone_weights: PathLike | None = "imagenet",
        weights: PathLike | None = None,
        input_shape: tuple[int | None, int | None, int] = (None, None, 3),
        preprocess: Preprocess | None = None,
        dropout: float = 0.1,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        align_corners: bool = False,
        trained_output_stride: int | None = None,
        high_level: str | None = None,
        batch_norm: Literal["train", "freeze", "sync", "group"] = "train",
        input_scale: int = 1,
        rematerialize: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        task: Literal["semantic", "binary"] = "semantic",
        threshold: float = 0.5,
        auxiliary_weight: float = 0.0,
        auxiliary_feature: str | None = None,
        *,
        gate_filters: int = 128,
    ) -> None:
        super().__init__(
            num_classes,
            backbone=backbone,
            output_stride=output_stride,
            atrous_rates=atrous_rates,
            backbone_weights=backbone_weights,
            weights=weights,
            input_shape=input_shape,
            preprocess=preprocess,
            dropout=dropout,
            batch_norm_momentum=batch_norm_momentum,
            batch_norm_epsilon=batch_norm_epsilon,
            align_corners=align_corners,
            trained_output_stride=trained_output_stride,
            high_level=high_level,
            batch_norm=batch_norm,
            input_scale=input_scale,
            rematerialize=rematerialize,
            dtype=dtype,
            name=name,
            task=task,
            threshold=threshold,
            auxiliary_weight=auxiliary_weight,
            auxiliary_feature=auxiliary_feature,
            gate_filters=gate_filters,
        )

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        low_level = pick(features, "stride_8")
        high_level = pick(features, builder.high_level)
        x = builder.conv(high_level, head.gate_filters, 1, name="high_level")
        # float16 sums of a large map overflow, so the mean is in float32.
        gate = keras.layers.GlobalAveragePooling2D(
            keepdims=True, dtype="float32", name="mean"
        )(high_level)
        gate = keras.layers.Conv2D(
            head.gate_filters,
            1,
            use_bias=False,
            activation="sigmoid",
            dtype=builder.dtype,
            name="gate",
        )(gate)  # (B, 1, 1, F)
        x = keras.layers.Multiply(dtype=builder.dtype, name="gated")([x, gate])
        # At an output stride below 8, so is the low level.
        stride = min(8, builder.output_stride)
        scores = [
            builder.classify(low_level, f"{CLASSIFIER}_low"),
            builder.resize(
                builder.classify(builder.drop(x), f"{CLASSIFIER}_high"),
                builder.output_stride // stride,
                low_level,
                name="resize",
                dtype="float32",
                high_level_to=stride,
            ),
        ]
        return keras.layers.Add(dtype="float32", name="scores")(scores), stride
