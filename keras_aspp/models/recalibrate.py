"""recalibrate: batch-norm statistics of the current weights."""

import inspect
from collections.abc import Iterable
from typing import Any

import keras

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import sublayers


def recalibrate(model: keras.Model, batches: Iterable[Any]) -> int:
    """Replaces the statistics of batch norm by means over batches.

    Moving statistics lag behind the weights and cover only recent batches;
    averaged weights have no statistics at all. Here all batches have equal
    weight, and so have the calls of a layer that is called several times. Only
    statistics change: dropout and noise are off, and frozen layers keep theirs.

    Args:
        model: `keras.Model`; changed in place.
        batches: iterable of float arrays (B, H, W, C), preprocessed, cropped
            and augmented as in training.

    Returns:
        int, number of layers with new statistics.

    Raises:
        ValueError: `batches` is empty.

    Example:
    >>> from keras_aspp.models import DeepLabV3
    >>> model = DeepLabV3(21, backbone_weights=None)
    >>> recalibrate(model, [keras.ops.ones((2, 64, 64, 3))])
    57

    Reference:
        Wu & Johnson, 2021, "Rethinking 'Batch' in BatchNorm", section 3
        (PreciseBN).
    """
    layers = sublayers(model)
    norms = [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
    before = [(layer, layer.momentum) for layer in norms]
    done = 0
    try:
        for layer in norms:
            layer.call = _averaged(layer)
        for batch in batches:
            # Out of training: without dropout, noise and augmentation.
            model(batch, training=False)
            done += 1
    finally:
        for layer in norms:
            del layer.call  # of the instance; the class has its own
        for layer, momentum in before:
            layer.momentum = momentum
    if not done:
        raise InputError(
            "Statistics need at least one batch. Received: no batches"
        )
    return len(norms)


def _averaged(layer):
    """The layer's `call` in training, whose statistics are means over calls."""
    call, done = layer.call, 0
    signature = inspect.signature(call)

    def averaged(*args, **kwargs):
        nonlocal done
        layer.momentum = done / (done + 1)
        done += 1
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = True
        return call(*bound.args, **bound.kwargs)

    return averaged
