"""DeepLabV2: a sum of the scores at several rates."""

import types
from collections.abc import Mapping, Sequence
from typing import Literal

import keras

from keras_aspp.layers.checks import check_atrous_rates
from keras_aspp.models.features import pick
from keras_aspp.models.head import CLASSIFIER, HeadBuilder
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike, Rate

# Chen et al., 2016, section 4.1. At output stride 8: LargeFOV 12; ASPP-S 2, 4,
# 8, 12; ASPP-L 6, 12, 18, 24.
OFFSETS_PX: dict[str, tuple[int, ...]] = {
    "large_fov": (96,),
    "aspp_s": (16, 32, 64, 96),
    "aspp_l": (48, 96, 144, 192),
}


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV2(Segmenter):
    """Backbone -> one branch of scores for each rate -> sum -> resize.

    A branch is a 3x3 atrous convolution to the scores (ResNet-101), or, with
    `fc_filters`, the fully connected layers of VGG-16 as convolutions: 3x3
    atrous fc6, 1x1 fc7, 1x1 to the scores. The head has no batch norm. The
    paper's `output_stride` is 8.

    Args:
        {common_arguments}
        pyramid: rates of `atrous_rates="auto"`: `"large_fov"` (one rate, also
            known as DeepLabV1), `"aspp_s"` or `"aspp_l"` (four rates).
            Defaults to `"aspp_l"`.
        fc_filters: int > 0, channels of fc6 and fc7 (1024 with VGG-16), or
            `None` for branches of one convolution. Defaults to `None`.

    Example:
    >>> model = DeepLabV2(21, backbone_weights=None, output_stride=8)
    >>> model.atrous_rates
    (6, 12, 18, 24)

    Reference:
        [Chen et al., 2016](https://arxiv.org/abs/1606.00915), sections 3.2
        and 4.1. Differs from it in: one dropout rate before the scores, or
        after fc6 and fc7 (published: 0.5 after fc6 and fc7, none with
        ResNet-101); no CRF.
    """

    architecture = "deeplab_v2"

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
        task: Literal["semantic", "binary", "multilabel"] = "semantic",
        threshold: float | Sequence[float] = 0.5,
        auxiliary_weight: float = 0.0,
        auxiliary_feature: str | None = None,
        *,
        pyramid: Literal["large_fov", "aspp_s", "aspp_l"] = "aspp_l",
        fc_filters: int | None = None,
    ) -> None:
        if pyramid not in OFFSETS_PX:
            raise InputError(
                f"`pyramid` must be one of {tuple(OFFSETS_PX)}. "
                f"Received: pyramid={pyramid!r}"
            )
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
            pyramid=pyramid,
            fc_filters=fc_filters,
        )

    def branch_offsets_px(
        self, head: types.SimpleNamespace
    ) -> tuple[Rate, ...]:
        return OFFSETS_PX[head.pyramid]

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        rates = check_atrous_rates(builder.atrous_rates)
        x = pick(features, builder.high_level)
        if head.fc_filters is None:
            x = builder.drop(x)
        scores = [
            self._branch(x, builder, head.fc_filters, i, rate)
            for i, rate in enumerate(rates, start=1)
        ]
        if len(scores) > 1:
            add = keras.layers.Add(dtype="float32", name="scores")
            scores = [add(scores)]
        return scores[0], builder.output_stride

    def _branch(self, x, builder, fc_filters, i, rate):
        name = f"{CLASSIFIER}_{i}"
        if fc_filters is None:
            return builder.classify(x, name, kernel_size=3, atrous_rate=rate)
        for fc, (size, fc_rate) in {"fc6": (3, rate), "fc7": (1, 1)}.items():
            x = builder.conv(
                x,
                fc_filters,
                size,
                atrous_rate=fc_rate,
                batch_norm=False,
                name=f"{fc}_{i}",
            )
            x = builder.drop(x, name=f"{fc}_{i}_dropout")
        return builder.classify(x, name)
