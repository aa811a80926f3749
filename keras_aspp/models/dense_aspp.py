"""DenseASPP: densely connected atrous convolutions."""

import types
from collections.abc import Mapping, Sequence
from typing import Literal

import keras

from keras_aspp.layers import dense_aspp
from keras_aspp.models.features import pick
from keras_aspp.models.head import HeadBuilder
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.types import PathLike, Rate


# "keras_aspp" is the package of the layer of the same name.
@keras.saving.register_keras_serializable(package="keras_aspp.models")
class DenseASPP(Segmenter):
    """Backbone -> densely connected ASPP -> classifier -> resize.

    `output_stride` defaults to 8, as in the paper: at 16, `"auto"` rates would
    not be whole numbers.

    Args:
        {common_arguments}
        growth_filters: int > 0. Channels that each rate adds. Defaults to 64.
        bottleneck_filters: int > 0. Channels before each atrous convolution.
            Defaults to 256.
        separable: bool. Depthwise separable 3x3 convolutions. Defaults to
            `False`.

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
        num_classes: int,
        backbone: str | keras.Model = "mobilenet_v2",
        output_stride: int = 8,
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
        growth_filters: int = 64,
        bottleneck_filters: int = 256,
        separable: bool = False,
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
            growth_filters=growth_filters,
            bottleneck_filters=bottleneck_filters,
            separable=separable,
        )

    def branch_offsets_px(
        self, head: types.SimpleNamespace
    ) -> tuple[Rate, ...]:
        # Section 3: 3, 6, 12, 18, 24 at output stride 8.
        return (24, 48, 96, 144, 192)

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        x = dense_aspp.DenseASPP(
            head.growth_filters,
            head.bottleneck_filters,
            builder.atrous_rates,
            separable=head.separable,
            dropout=builder.dropout,
            name="dense_aspp",
            **builder.common,
        )(pick(features, builder.high_level))
        return builder.classify(x), builder.output_stride
