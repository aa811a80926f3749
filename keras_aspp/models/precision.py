"""with_dtype: the same segmenter in another dtype policy."""

from keras_aspp.backbones.zoo import configure
from keras_aspp.models.segmenter import Segmenter, load_matching


def with_dtype(segmenter, dtype):
    """A copy with the same weights that computes in another dtype.

    Args:
        segmenter: `Segmenter`, e.g. one trained in `"mixed_bfloat16"`.
        dtype: Keras dtype or policy, e.g. `"float32"`.

    Returns:
        A new segmenter of the same class, not compiled.

    Raises:
        TypeError: `segmenter` is no segmenter of ours.

    Example:
    >>> from keras_aspp.models import DeepLabV3
    >>> model = DeepLabV3(21, backbone_weights=None, dtype="mixed_bfloat16")
    >>> with_dtype(model, "float32").backbone.compute_dtype
    'float32'
    """
    if not isinstance(segmenter, Segmenter):
        raise TypeError(
            "`segmenter` must be one of `keras_aspp.models`. "
            f"Received: segmenter of type {type(segmenter).__name__}"
        )
    arguments = {
        **segmenter.arguments(),
        "backbone": configure(segmenter.backbone, dtype=dtype),
        "dtype": dtype,
    }
    copy = type(segmenter)(**arguments)
    load_matching(copy, segmenter, segmenter.name)
    return copy
