"""Pretrained backbones of RGB for images of other channels."""

from __future__ import annotations

import dataclasses
import logging

import keras
import numpy as np

from keras_aspp.backbones.rebuild import copy_weights, rebuild
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError

_log = logging.getLogger(__name__)


def inflate(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Spreads a kernel that reads RGB over other channels.

    An input whose channels are all equal gives the same output as before, so
    the statistics of batch norm stay right. The input is the normalized image:
    with a mean or deviation per color, channels of a gray image differ there.

    Args:
        kernel: `(height, width, 3, filters)`.
        channels: int > 0. Of four and more, the first three keep the weights
            of red, green and blue and each other one gets their mean; of one
            and two, each gets the mean. All are scaled by 3 / channels.

    Returns:
        `(height, width, channels, filters)`.

    Source: the scale by 3 / channels is that of timm's `adapt_input_conv`
    (Wightman, 2019) and of Carreira & Zisserman, 2017, section 2.4, who
    inflate over time. Differs from timm in: further channels get the mean,
    not red, green and blue in turn.
    """
    mean = kernel.mean(2, keepdims=True)
    kept = kernel if channels > 3 else kernel[:, :, :0]
    more = np.repeat(mean, channels - kept.shape[2], axis=2)
    return np.concatenate([kept, more], axis=2) * (3 / channels)


def with_channels(
    model: keras.Model, channels: int, preprocess: Preprocess
) -> tuple[keras.Model, Preprocess]:
    """Copies a backbone of RGB for images of other channels.

    Args:
        model: functional `keras.Model` of three input channels.
        channels: int > 0, not 3.
        preprocess: `Preprocess` of the model.

    Returns:
        `(model, preprocess)`; a further channel is normalized by the mean of
        those of red, green and blue. Features of a gray image are those in
        RGB if the three are equal, and close to them otherwise.

    Raises:
        ValueError: the model has not three channels, or a layer other than
            the first convolution depends on them.
    """
    if model.input.shape[-1] != 3:
        raise InputError(
            "Only weights of three input channels are spread over others. "
            f"Received: a model of {model.input.shape[-1]} input channels, "
            f"channels={channels}"
        )
    flip = slice(None, None, -1 if preprocess.channel_order == "bgr" else 1)

    def carry(layer, copy):
        if [w.shape for w in layer.weights] == [w.shape for w in copy.weights]:
            copy_weights(layer, copy)
            return
        if not isinstance(layer, keras.layers.Conv2D) or layer.groups != 1:
            raise InputError(
                "Only a first convolution can be spread over other channels. "
                f"Received: layer {layer.name} ({type(layer).__name__})"
            )
        kernel, *bias = layer.get_weights()
        copy.set_weights([inflate(kernel[:, :, flip], channels), *bias])
        rule = "the mean of R, G and B for each channel"
        if channels > 3:
            rule = "R, G, B, and their mean for each further channel"
        _log.info(
            "First convolution %s of %s: 3 -> %d input channels, %s, "
            "times 3/%d.",
            layer.name,
            model.name,
            channels,
            rule,
            channels,
        )

    copy = rebuild(model, {}, carry=carry, channels=channels)
    copy.preprocess = dataclasses.replace(
        preprocess,
        mean=_spread(preprocess.mean, channels, flip),
        std=_spread(preprocess.std, channels, flip),
        channel_order="rgb",
    )
    return copy, copy.preprocess


def _spread(value, channels, flip):
    """Extends one number per color by their mean."""
    if not isinstance(value, tuple):
        return value
    kept = value[flip] if channels > 3 else ()
    mean = float(np.mean(value))
    return (*kept, *(mean for _ in range(channels - len(kept))))
