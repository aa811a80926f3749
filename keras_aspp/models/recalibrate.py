"""recalibrate: batch-norm statistics of the current weights."""

import inspect
from collections.abc import Iterable
from typing import Any

import keras

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import draws_random, sublayers


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
    # Dropout, noise, augmentation; not what has batch norm inside.
    noisy = [
        layer
        for layer in layers
        if draws_random(layer)
        and not any(part in norms for part in sublayers(layer))
    ]
    before = [(layer, layer.momentum) for layer in norms]
    done = 0
    try:
        for layer in noisy:
            layer.call = _at_inference(layer)
        for layer in norms:
            layer.call = _averaged(layer)
        for batch in batches:
            model(batch, training=True)
            done += 1
    finally:
        for layer in (*norms, *noisy):
            del layer.call  # of the instance; the class has its own
        for layer, momentum in before:
            layer.momentum = momentum
    if not done:
        raise InputError(
            "Statistics need at least one batch. Received: no batches"
        )
    return len(norms)


def _at_inference(layer):
    """The layer's `call`, out of training if it knows the difference."""
    call = layer.call
    signature = inspect.signature(call)

    def quiet(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        if "training" in signature.parameters:
            bound.arguments["training"] = False
        return call(*bound.args, **bound.kwargs)

    return quiet


def _averaged(layer):
    """The layer's `call`, whose moving statistics are means over its calls."""
    call, done = layer.call, 0

    def averaged(*args, **kwargs):
        nonlocal done
        layer.momentum = done / (done + 1)
        done += 1
        return call(*args, **kwargs)

    return averaged
