"""DeepLabV3: a dense backbone and ASPP, or ever more dilated blocks."""

import keras

from keras_aspp.backbones.cascade import with_cascade, with_multi_grid
from keras_aspp.layers.aspp import ASPP
from keras_aspp.layers.checks import check_positive_int
from keras_aspp.models.features import pick
from keras_aspp.models.segmenter import Segmenter


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV3(Segmenter):
    """Backbone -> ASPP -> classifier -> resize to the picture.

    With `atrous_rates=()` what is left is the head for phones: a 1x1
    convolution and image pooling.

    Args:
        num_classes: int > 1, background included.
        *args: see `Segmenter`.
        aspp_filters: int > 0. Defaults to 256.
        separable: bool. Depthwise separable 3x3 convolutions in the ASPP.
            Defaults to `False`.
        image_pooling: bool. Defaults to `True`.
        refine_filters: int > 0, or `None`: channels of a 3x3 convolution
            between ASPP and classifier, which torchvision has (256) and the
            paper has not. Defaults to `None`.
        multi_grid: ints > 0, one for each spatial convolution of the
            backbone's last block, which multiply its rates; (1, 2, 4) in the
            paper, for ResNet. `None` leaves the backbone as it is. Defaults
            to `None`.
        **kwargs: see `Segmenter`.

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

    def __init__(
        self,
        num_classes,
        *args,
        aspp_filters=256,
        separable=False,
        image_pooling=True,
        refine_filters=None,
        multi_grid=None,
        **kwargs,
    ):
        super().__init__(
            num_classes,
            *args,
            aspp_filters=aspp_filters,
            separable=separable,
            image_pooling=image_pooling,
            refine_filters=refine_filters,
            multi_grid=multi_grid,
            **kwargs,
        )

    def adapt(self, backbone, output_stride, multi_grid, **_):
        if multi_grid is None:
            return backbone
        return with_multi_grid(backbone, multi_grid, output_stride)

    def decode(
        self,
        features,
        parts,
        aspp_filters,
        separable,
        image_pooling,
        refine_filters,
        multi_grid,
    ):
        x = ASPP(
            aspp_filters,
            parts.atrous_rates,
            separable=separable,
            image_pooling=image_pooling,
            dropout=parts.dropout,
            name="aspp",
            **parts.common,
        )(pick(features, parts.high_level))
        if refine_filters is not None:
            x = parts.conv(x, refine_filters, name="refine")
        return parts.classify(x), parts.output_stride


@keras.saving.register_keras_serializable(package="keras_aspp")
class CascadedDeepLabV3(Segmenter):
    """Backbone -> copies of its last block -> classifier -> resize.

    Each copy would halve the map once more; at `output_stride` it is dilated
    twice as much as the one before instead.

    Args:
        num_classes: int > 1, background included.
        *args: see `Segmenter`.
        blocks: int > 0. Copies behind the last block; the paper's block5 to
            block7 are 3. Defaults to 3.
        multi_grid: see `DeepLabV3`; it holds in the copies too. The paper's
            best is (1, 2, 1). Defaults to `None`.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = CascadedDeepLabV3(21, backbone_weights=None, blocks=1)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.2.
        Differs from it in: dropout before the classifier, as everywhere here;
        the copies begin with the weights of the block they copy, where these
        fit.
    """

    architecture = "deeplab_v3_cascaded"

    def __init__(self, num_classes, *args, blocks=3, multi_grid=None, **kwargs):
        check_positive_int("blocks", blocks)
        super().__init__(
            num_classes, *args, blocks=blocks, multi_grid=multi_grid, **kwargs
        )

    def adapt(self, backbone, output_stride, blocks, multi_grid):
        if f"stride_{32 * 2**blocks}" in backbone.output:
            return backbone
        if multi_grid is not None:
            backbone = with_multi_grid(backbone, multi_grid, output_stride)
        return with_cascade(backbone, blocks, output_stride)

    def decode(self, features, parts, blocks, multi_grid):
        x = parts.drop(pick(features, f"stride_{32 * 2**blocks}"))
        return parts.classify(x), parts.output_stride
