"""DeepLabV3+: DeepLabV3 with a decoder that restores object boundaries."""

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras

from keras_aspp.context_modules import ContextName
from keras_aspp.models.context import HasContext, as_context
from keras_aspp.models.features import pick
from keras_aspp.models.head import HeadBuilder
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import as_int
from keras_aspp.utils.types import ImagePoolingMode, PathLike, Rate

# Decoder stride -> low-level features from coarse to fine: key, stride, and
# suffix of the layers' names.
LEVELS = {4: (("stride_4", 4, ""),)}
LEVELS[2] = (*LEVELS[4], ("stride_2", 2, "_stride_2"))


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV3Plus(HasContext, Segmenter):
    """Backbone -> ASPP -> decoder -> classifier -> resize.

    The decoder resizes the ASPP's map to the low-level feature of stride 4,
    concatenates it with a 1x1 projection of that feature, and refines both
    with two 3x3 convolutions. `decoder_stride=2` repeats this at stride 2.
    `decoder="light"` has one 1x1 convolution instead, as keras-hub's
    DeepLabV3+ has.

    Args:
        {common_arguments}
        aspp_filters: int > 0. Defaults to 256.
        separable: bool. Depthwise separable 3x3 convolutions in ASPP and
            decoder. Defaults to `False`.
        image_pooling: `True`, `False`, or `"bias"`: the image-level branch of
            the ASPP, with batch norm or a bias. Defaults to `True`.
        decoder_stride: 4 or 2, pixels per score, counted after `input_scale`.
            Defaults to 4.
        projection_filters: int > 0. Channels of the 1x1 projection of each
            low-level feature. Defaults to 48.
        decoder_filters: int > 0. Channels of the decoder's convolutions.
            Defaults to 256.
        decoder_kernel_sizes: odd ints > 0, one for each convolution of the
            decoder. Defaults to (3, 3).
        context: the module between backbone and decoder, by name:
            {context_modules}
        decoder: `"paper"`; or `"light"`, one 1x1 convolution in place of
            those of `decoder_kernel_sizes`, computed by `layers.SkipFusion`
            with about a hundredth of their multiply-adds. Defaults to
            `"paper"`.

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
        aspp_filters: int = 256,
        separable: bool = False,
        image_pooling: ImagePoolingMode = True,
        decoder_stride: int = 4,
        projection_filters: int = 48,
        decoder_filters: int = 256,
        decoder_kernel_sizes: list[int] | tuple[int, ...] = (3, 3),
        context: ContextName | keras.layers.Layer | dict[str, Any] = "aspp",
        decoder: Literal["paper", "light"] = "paper",
    ) -> None:
        if not isinstance(decoder_kernel_sizes, (str, dict)) and isinstance(
            decoder_kernel_sizes, Iterable
        ):
            decoder_kernel_sizes = tuple(
                as_int(size) or size for size in decoder_kernel_sizes
            )
        _check_decoder(decoder, decoder_stride, decoder_kernel_sizes)
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
            aspp_filters=aspp_filters,
            separable=separable,
            image_pooling=image_pooling,
            decoder_stride=decoder_stride,
            projection_filters=projection_filters,
            decoder_filters=decoder_filters,
            decoder_kernel_sizes=decoder_kernel_sizes,
            context=as_context(context),
            decoder=decoder,
        )

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        x, stride = pick(features, builder.high_level), builder.output_stride
        x = self.build_context(x, builder, head)
        high_level = True
        for key, nominal, suffix in LEVELS[head.decoder_stride]:
            low_level = pick(features, key)
            # At an output stride below `nominal`, so is the low level.
            finer = min(nominal, stride)
            resize = {
                "scale": stride // finer,
                "high_level_to": finer if high_level else None,
            }
            high_level, stride = False, finer
            projected = builder.conv(
                low_level, head.projection_filters, 1, name=f"low_level{suffix}"
            )
            if head.decoder == "light":
                x = builder.fuse(
                    x,
                    projected,
                    head.decoder_filters,
                    name=f"decoder_1{suffix}",
                    **resize,
                )
                continue
            x = builder.resize(
                x, reference=low_level, name=f"resize{suffix}", **resize
            )
            x = builder.concatenate([x, projected], name=f"concat{suffix}")
            for i, kernel_size in enumerate(head.decoder_kernel_sizes, start=1):
                x = builder.conv(
                    x,
                    head.decoder_filters,
                    kernel_size,
                    separable=head.separable and kernel_size > 1,
                    name=f"decoder_{i}{suffix}",
                )
        return builder.classify(x), stride

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if config["decoder"] == "paper":
            # Earlier versions load the file, too.
            del config["decoder"]
        return config


def _check_decoder(decoder, decoder_stride, decoder_kernel_sizes):
    """Raises `ValueError` for arguments of the decoder that do not fit."""
    if decoder not in ("paper", "light"):
        raise InputError(
            "`decoder` must be 'paper' or 'light'. "
            f"Received: decoder={decoder!r}"
        )
    if decoder == "light" and decoder_kernel_sizes != (3, 3):
        raise InputError(
            "`decoder_kernel_sizes` needs decoder='paper'; 'light' has one "
            "1x1 convolution. "
            f"Received: decoder_kernel_sizes={decoder_kernel_sizes}"
        )
    if not isinstance(decoder_kernel_sizes, tuple) or not decoder_kernel_sizes:
        raise InputError(
            "`decoder_kernel_sizes` must be a sequence of odd ints, one at "
            f"least. Received: decoder_kernel_sizes={decoder_kernel_sizes!r}"
        )
    if decoder_stride not in tuple(LEVELS):
        raise InputError(
            "`decoder_stride` must be 4 or 2. "
            f"Received: decoder_stride={decoder_stride!r}"
        )
