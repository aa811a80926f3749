"""Context modules of about equal cost, for `training.ablation`."""

import dataclasses

import keras
import numpy as np

from keras_aspp.analysis import cost
from keras_aspp.analysis.gridding import rates_text
from keras_aspp.layers.checks import rate_pair
from keras_aspp.layers.dense_prediction_cell import CITYSCAPES_RATES
from keras_aspp.models import DeepLabV3

# Of a module whose published rates fall from stage to stage.
_RISING = "_rising"
# Multiples of it are tried as numbers of filters.
_STEP = 8
# Filters at which costs are measured; between them they are quadratic.
_MEASURED = (32, 96, 160)


def contexts(model, channels, size):
    """Returns the variants: name -> `(description, ModelConfig)`.

    Distances are those of the given pyramid: rates reach as far as its
    largest one. Filters are chosen for multiply-adds of the head nearest to
    the pyramid's.

    Args:
        model: `ModelConfig` of a DeepLabV3; its rates and filters are the
            pyramid's.
        channels: int, of the feature that the head reads.
        size: `(height, width)` of the images, in pixels.
    """
    budget = head_madds(model, channels, size)
    found = {}
    for name, rates in _rates(list(model.atrous_rates)).items():
        context = name.removesuffix(_RISING)
        one = dataclasses.replace(model, context=context, atrous_rates=rates)
        if context not in ("none", "aspp"):
            filters = _filters(one, budget, channels, size)
            one = dataclasses.replace(one, aspp_filters=filters)
        found[name] = (_description(one, channels, size), one)
    return found


def head_madds(model, channels, size):
    """Returns multiply-adds of a head on a feature of one convolution."""
    image = keras.Input((None, None, 3))
    stride = model.output_stride
    feature = keras.layers.Conv2D(channels, stride, stride)(image)
    head = DeepLabV3(
        8,
        keras.Model(image, {f"stride_{stride}": feature}),
        output_stride=stride,
        atrous_rates=model.atrous_rates,
        context=model.context,
        aspp_filters=model.aspp_filters,
        separable=model.separable,
        image_pooling=model.image_pooling,
    )
    backbone = cost(head.backbone, size).madds
    madds = cost(head, size).madds - backbone
    keras.backend.clear_session()
    return madds


def _rates(pyramid):
    """Returns the rates of each module where those of the ASPP are given."""
    reach = max(pyramid)
    # Published: 1, 2, 4, 8 beside 6, 12, 18.
    doubling = [max(1, round(reach * share)) for share in (1 / 8, 1 / 4, 1 / 2)]
    largest = max(max(rate) for rate in map(rate_pair, CITYSCAPES_RATES))
    cell = [
        [max(1, round(n * reach / largest)) for n in rate_pair(rate)]
        for rate in CITYSCAPES_RATES
    ]
    return {
        "none": "auto",
        "aspp": pyramid,
        "ksac": pyramid,
        "ksac_concat": pyramid,
        "wasp": pyramid[::-1],
        f"wasp{_RISING}": pyramid,
        "d_linknet": [*doubling, reach],
        # Strides of pools, of twice as many cells.
        "dappm": [2, 4, 8],
        "pappm": [2, 4, 8],
        "dpc": cell,
    }


def _filters(model, budget, channels, size):
    """Returns the number of filters with multiply-adds nearest to a budget."""
    costs = [
        head_madds(
            dataclasses.replace(model, aspp_filters=filters), channels, size
        )
        for filters in _MEASURED
    ]
    curve = np.polyfit(_MEASURED, costs, 2)
    candidates = np.arange(_STEP, 1024, _STEP)
    return int(
        candidates[np.abs(np.polyval(curve, candidates) - budget).argmin()]
    )


def _description(model, channels, size):
    madds = head_madds(model, channels, size) / 1e6
    if model.context == "none":
        return f"no context module ({madds:.0f} M)"
    rates = rates_text(model.atrous_rates)
    return (
        f"{model.context} ({rates}), {model.aspp_filters} filters "
        f"({madds:.0f} M)"
    )
