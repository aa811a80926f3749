"""recalibrate: batch-norm statistics of the weights as they are."""

import keras

from keras_aspp.utils.exceptions import InputError


def recalibrate(model, batches):
    """Takes the statistics of batch norm anew, as means over batches.

    The moving statistics that training leaves follow the weights at a
    distance and remember few batches; averaged weights have none of their
    own. Here each batch counts the same, and nothing but statistics changes:
    dropout is off, frozen layers stay as they are.

    Args:
        model: `keras.Model`; changed in place.
        batches: iterable of float arrays (B, H, W, C), preprocessed as in
            training, of pictures and sizes as in training.

    Returns:
        int, how many layers have new statistics.

    Raises:
        ValueError: there is no batch.

    Example:
    >>> from keras_aspp.models import DeepLabV3
    >>> model = DeepLabV3(21, backbone_weights=None)
    >>> recalibrate(model, [keras.ops.ones((2, 64, 64, 3))])
    57

    Reference:
        Wu & Johnson, 2021, "Rethinking 'Batch' in BatchNorm", section 3
        (PreciseBN).
    """
    layers = list(model._flatten_layers())
    norms = [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
    drops = [
        layer for layer in layers if isinstance(layer, keras.layers.Dropout)
    ]
    before = [(layer, "momentum", layer.momentum) for layer in norms]
    before += [(layer, "rate", layer.rate) for layer in drops]
    done = 0
    try:
        for layer in drops:
            layer.rate = 0.0
        for batch in batches:
            for layer in norms:
                layer.momentum = done / (done + 1)
            model(batch, training=True)
            done += 1
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)
    if not done:
        raise InputError(
            "Statistics need at least one batch. Received: no batches"
        )
    return len(norms)
