"""with_output_stride: a trained segmenter at another output stride."""

import types

from keras_aspp.models.rates import offsets_of, whole_rates
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.models.transfer import copy_with
from keras_aspp.utils.exceptions import InputTypeError
from keras_aspp.utils.numeric import check_int


def with_output_stride(segmenter: Segmenter, output_stride: int) -> Segmenter:
    """Copies a segmenter, with its weights, to another output stride.

    The backbone's strides are traded for dilation, and the rates of the head
    are rescaled to reach as many pixels as before. Weights are copied exactly,
    so converting back restores the same logits. Of a `context` layer of one's
    own, only the rates of a `ContextLayer` and one `atrous_rate` are rescaled;
    other distances in cells, e.g. Keras' `dilation_rate`, stay.

    Upsampling at half-pixel centers puts cell i of stride s at pixel
    i * s + (s - 1) / 2, and the head was trained with these positions. The
    denser map is therefore shifted to them, from 16 to 8 by 4 pixels;
    `trained_output_stride` of the new model is the stride of the old one.

    Args:
        segmenter: `Segmenter`, e.g. a trained DeepLabV3 at stride 16.
        output_stride: int, a power of two, e.g. 8.

    Returns:
        A new segmenter of the same class, not compiled.

    Raises:
        TypeError: `segmenter` is not one of `keras_aspp.models`.
        ValueError: the backbone cannot have this stride, or a rate would not
            be a whole number.

    Example:
    >>> from keras_aspp.models import DeepLabV3
    >>> model = DeepLabV3(21, backbone_weights=None)
    >>> with_output_stride(model, 8).atrous_rates
    (12, 24, 36)

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 4.1:
        trained at 16, evaluated at 8.
    """
    if not isinstance(segmenter, Segmenter):
        raise InputTypeError(
            "`segmenter` must be one of `keras_aspp.models`. "
            f"Received: segmenter of type {type(segmenter).__name__}"
        )
    output_stride = check_int("output_stride", output_stride)
    head = types.SimpleNamespace(**segmenter.arguments())
    return copy_with(
        segmenter,
        output_stride=output_stride,
        atrous_rates=whole_rates(
            offsets_of(head.atrous_rates, segmenter.atrous_stride),
            segmenter.branch_stride(output_stride, head),
        ),
    )
