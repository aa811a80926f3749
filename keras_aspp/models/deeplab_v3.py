"""DeepLabV3: a dense backbone and ASPP."""

import keras

from keras_aspp.layers.aspp import ASPP
from keras_aspp.models.segmenter import Segmenter, pick


@keras.saving.register_keras_serializable(package="keras_aspp")
class DeepLabV3(Segmenter):
    """Backbone -> ASPP -> classifier -> resize to the picture.

    Args:
        num_classes: int > 0.
        *args: see `Segmenter`.
        **kwargs: see `Segmenter`.

    Example:
    >>> model = DeepLabV3(21, backbone_weights=None)
    >>> model(keras.ops.zeros((1, 65, 97, 3))).shape
    TensorShape([1, 65, 97, 21])

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587). Differs from it
        in: no multi-grid.
    """

    architecture = "deeplab_v3"

    def decode(self, features, aspp, common, output_stride, **_):
        x = ASPP(**aspp, **common)(pick(features, "stride_32"))
        return x, output_stride
