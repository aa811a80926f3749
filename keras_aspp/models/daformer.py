"""DAFormer: all strides fused at the finest, then a separable ASPP."""

import types
from collections.abc import Mapping, Sequence
from typing import Literal

import keras

from keras_aspp.layers.aspp import ASPP
from keras_aspp.layers.rewritable import Conv2D
from keras_aspp.models.features import pick
from keras_aspp.models.head import HeadBuilder
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int
from keras_aspp.utils.types import PathLike, Rate

# Nominal strides of the features that the head reads, where there are any.
STRIDES = (2, 4, 8, 16, 32, 64)


@keras.saving.register_keras_serializable(package="keras_aspp")
class DAFormer(Segmenter):
    """Backbone -> fusion of all strides -> ASPP -> classifier -> resize.

    Each feature from `fusion_stride` on passes a linear 1x1 convolution and is
    upsampled to the finest of them. Their concatenation is the input of a
    separable ASPP without image pooling, whose projection is a 3x3
    convolution. The ASPP reads the finest map, so the backbone need not be
    dense: `output_stride` defaults to 32, and `with_output_stride` keeps the
    rates. It suits backbones that cannot be made dense, e.g. with attention.

    Args:
        {common_arguments}
        fusion_stride: int, a power of two: nominal stride of the finest feature
            that is fused, e.g. 16 for a backbone with this stride only.
            Defaults to 4.
        embed_filters: int > 0. Channels of each feature after its linear
            convolution. Defaults to 256.
        aspp_filters: int > 0. Defaults to 256.
        separable: bool. Depthwise separable 3x3 branches in the ASPP. Defaults
            to `True`.

    Example:
    >>> model = DAFormer(19, backbone_weights=None)
    >>> model.output_stride, model.atrous_stride, model.atrous_rates
    (32, 4, (6, 12, 18))

    Reference:
        [Hoyer et al., 2022](https://arxiv.org/abs/2111.14887), section 3.2,
        context-aware feature fusion, as in its published code. Differs from
        it in: nothing.
    """

    architecture = "daformer"
    scores_at_output_stride = False

    def __init__(
        self,
        num_classes: int,
        backbone: str | keras.Model = "mobilenet_v2",
        output_stride: int = 32,
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
        fusion_stride: int = 4,
        embed_filters: int = 256,
        aspp_filters: int = 256,
        separable: bool = True,
    ) -> None:
        if fusion_stride not in STRIDES:
            raise InputError(
                f"`fusion_stride` must be one of {STRIDES}. "
                f"Received: fusion_stride={fusion_stride!r}"
            )
        embed_filters = check_int("embed_filters", embed_filters)
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
            fusion_stride=fusion_stride,
            embed_filters=embed_filters,
            aspp_filters=aspp_filters,
            separable=separable,
        )

    def branch_offsets_px(
        self, head: types.SimpleNamespace
    ) -> tuple[Rate, ...]:
        # 6, 12, 18 on a map of stride 4; the rate 1 is the 1x1 convolution.
        return (24, 48, 72)

    def branch_stride(
        self, output_stride: int, head: types.SimpleNamespace
    ) -> int:
        return min(head.fusion_stride, output_stride)

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        finest = self.branch_stride(builder.output_stride, head)
        reference = pick(features, f"stride_{head.fusion_stride}")
        maps = []
        for nominal in STRIDES[STRIDES.index(head.fusion_stride) :]:
            key = f"stride_{nominal}"
            if key not in features:
                continue
            x = Conv2D(
                head.embed_filters, 1, dtype=builder.dtype, name=f"embed_{key}"
            )(features[key])
            if maps or _is_shifted(builder, key):
                x = builder.resize(
                    x,
                    min(nominal, builder.output_stride) // finest,
                    reference,
                    name=f"resize_{key}",
                    high_level_to=finest,
                    feature=key,
                )
            maps.append(x)
        if len(maps) > 1:
            maps = [builder.concatenate(maps)]
        x = ASPP(
            head.aspp_filters,
            builder.atrous_rates,
            separable=head.separable,
            image_pooling=False,
            dropout=builder.dropout,
            projection_kernel_size=3,
            name="aspp",
            **builder.common,
        )(maps[0])
        return builder.classify(x), finest


def _is_shifted(builder, key):
    """Returns True for a feature that is denser than it was in training."""
    return not builder.align_corners and any(builder.shift_of(key))
