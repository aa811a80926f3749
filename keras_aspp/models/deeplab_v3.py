"""DeepLabV3: ASPP on a dense backbone, or a cascade of dilated blocks."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras

from keras_aspp.backbones.cascade import with_cascade, with_multi_grid
from keras_aspp.context_modules import ContextName
from keras_aspp.models.context import HasContext, as_context
from keras_aspp.models.features import pick
from keras_aspp.models.head import HeadBuilder
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.numeric import check_int
from keras_aspp.utils.types import ImagePoolingMode, PathLike, Rate


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV3(HasContext, Segmenter):
    """Backbone -> ASPP -> classifier -> resize to the image.

    With `atrous_rates=()`, the ASPP is the head for phones: a 1x1 convolution
    and image pooling.

    Args:
        {common_arguments}
        aspp_filters: int > 0. Defaults to 256.
        separable: bool. Depthwise separable 3x3 convolutions in the ASPP.
            Defaults to `False`.
        image_pooling: `True`, `False`, or `"bias"`: the image-level branch of
            the ASPP, with batch norm or a bias. Defaults to `True`.
        refine_filters: int > 0, or `None`: channels of a 3x3 convolution
            between ASPP and classifier: 256 in torchvision, none in the
            paper. Defaults to `None`.
        multi_grid: ints > 0, one for each spatial convolution of the
            backbone's last block, which multiply its rates; (1, 2, 4) in the
            paper, for ResNet. `None` keeps the rates of the backbone. Defaults
            to `None`.
        context: the module between backbone and classifier, by name:
            {context_modules}
        normalize_context: bool. A 1x1 convolution with batch norm follows
            modules that end without one (`"ksac"`, `"d_linknet"`, `"dappm"`,
            `"pappm"`, layers of their classes), unless `refine_filters` is
            given. A classifier that reads a sum of branches hardly learns.
            Defaults to `True`.

    Example:
    >>> model = DeepLabV3(21, backbone_weights=None)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.3;
        without atrous branches: [Sandler et al.,
        2018](https://arxiv.org/abs/1801.04381), section 6.3. Differs from
        them in: nothing.
    """

    architecture = "deeplab_v3"
    absent_arguments = {"normalize_context": False}

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
        refine_filters: int | None = None,
        multi_grid: list[int] | tuple[int, ...] | None = None,
        context: ContextName | keras.layers.Layer | dict[str, Any] = "aspp",
        normalize_context: bool = True,
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
            aspp_filters=aspp_filters,
            separable=separable,
            image_pooling=image_pooling,
            refine_filters=refine_filters,
            multi_grid=multi_grid,
            context=as_context(context),
            normalize_context=bool(normalize_context),
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if not any(layer.name == "projection" for layer in self.layers):
            # Earlier versions load the file, too.
            del config["normalize_context"]
        return config

    def modify_backbone(
        self,
        backbone: keras.Model,
        output_stride: int,
        head: types.SimpleNamespace,
    ) -> keras.Model:
        if head.multi_grid is None:
            return backbone
        return with_multi_grid(backbone, head.multi_grid, output_stride)

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        x = pick(features, builder.high_level)
        refined = head.refine_filters is not None
        normalize = head.normalize_context and not refined
        x = self.build_context(x, builder, head, normalize=normalize)
        if refined:
            x = builder.conv(x, head.refine_filters, name="refine")
        return builder.classify(x), builder.output_stride


@keras.saving.register_keras_serializable(package="keras_aspp")
class CascadedDeepLabV3(Segmenter):
    """Backbone -> copies of its last block -> classifier -> resize.

    A strided copy would halve the feature map; here the map keeps
    `output_stride`, and each copy has twice the rates of the one before.

    Args:
        {common_arguments}
        blocks: int > 0. Copies after the last block; the paper's block5 to
            block7 are 3. Defaults to 3.
        multi_grid: ints > 0, one for each spatial convolution of the
            backbone's last block, which multiply its rates, in the copies too;
            (1, 2, 1) is the paper's best. `None` keeps the rates of the
            backbone. Defaults to `None`.

    Example:
    >>> model = CascadedDeepLabV3(21, backbone_weights=None, blocks=1)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.2.
        Differs from it in: dropout before the classifier, as in all
        architectures here; copies are initialized with the weights of the
        block they copy, where the shapes are equal.
    """

    architecture = "deeplab_v3_cascaded"

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
        blocks: int = 3,
        multi_grid: list[int] | tuple[int, ...] | None = None,
    ) -> None:
        blocks = check_int("blocks", blocks)
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
            blocks=blocks,
            multi_grid=multi_grid,
        )

    def modify_backbone(
        self,
        backbone: keras.Model,
        output_stride: int,
        head: types.SimpleNamespace,
    ) -> keras.Model:
        # A loaded backbone has its copies already.
        if _last_feature(head.blocks) in backbone.output:
            return backbone
        if head.multi_grid is not None:
            backbone = with_multi_grid(backbone, head.multi_grid, output_stride)
        return with_cascade(backbone, head.blocks, output_stride)

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        x = builder.drop(pick(features, _last_feature(head.blocks)))
        return builder.classify(x), builder.output_stride


def _last_feature(blocks):
    """Key of the last copy's feature, by the stride of a strided one."""
    return f"stride_{32 * 2**blocks}"
