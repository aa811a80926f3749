"""Transfer of weights between segmenters of one architecture."""

import re
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_aspp.models.head import CLASSIFIER
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import layers_by_path
from keras_aspp.utils.types import PathLike


def load_matching(
    model: keras.Model, saved: keras.Model, path: PathLike
) -> None:
    """Copies a segmenter's weights; the classifier's only where they fit.

    Args:
        model: `Segmenter` that receives the weights.
        saved: `Segmenter` that provides them.
        path: origin of `saved`, for messages.

    Raises:
        ValueError: the two differ in more than the classifier.
    """
    ours, theirs = _weights_by_name(model), _weights_by_name(saved)
    left = [
        name
        for name in ours
        if name not in theirs or theirs[name].shape != ours[name].shape
    ]
    # A backbone spread over other channels has its first kernel already.
    if model.input.shape[-1] != saved.input.shape[-1]:
        spread = [
            name for name in left if _differs_in_channels(ours, theirs, name)
        ]
        left = [name for name in left if name not in spread]
        theirs |= {name: ours[name] for name in spread}
    wrong = [name for name in left if not name.startswith(CLASSIFIER)]
    wrong += [name for name in theirs if name not in ours]
    if wrong:
        first = (ours if wrong[0] in ours else theirs)[wrong[0]]
        raise InputError(
            f"The weights of {str(path)!r} belong to another architecture or "
            "other arguments; build the model with those of the file. "
            f"Received: {len(wrong)} tensors that do not fit, first "
            f"{first.path}"
        )
    for name, weight in ours.items():
        if name not in left:
            weight.assign(theirs[name])
    if left:
        warnings.warn(
            f"Loaded {str(path)!r} except for the classifier: {len(left)} "
            "tensors keep their initial values: "
            + ", ".join(ours[name].path for name in left),
            stacklevel=3,
        )


def copy_with(segmenter: Any, **changes: Any) -> Any:
    """Copies a segmenter with its weights, but for some arguments.

    Args:
        segmenter: `Segmenter`.
        **changes: arguments of its constructor; the weights must keep their
            names and shapes.

    Returns:
        A new `Segmenter` of the same class, not compiled, with the same
        layers frozen.
    """
    copy = type(segmenter)(**{**segmenter.arguments(), **changes})
    load_matching(copy, segmenter, segmenter.name)
    freeze_layers(copy, frozen_layers(segmenter))
    return copy


def frozen_layers(segmenter: Any) -> list[str]:
    """Returns the names of frozen layers; those of the backbone stay so."""
    return [
        layer.name
        for layer in segmenter.layers
        if layer is not segmenter.backbone and not layer.trainable
    ]


def freeze_layers(model: keras.Model, names: Iterable[str]) -> None:
    """Freezes layers by name."""
    for name in names:
        model.get_layer(name).trainable = False


def _differs_in_channels(ours, theirs, name):
    """Returns True for kernels that differ in their input channels alone."""
    if name not in theirs or len(ours[name].shape) != 4:
        return False
    one, other = (list(w[name].shape) for w in (ours, theirs))
    del one[2], other[2]
    return one == other


def _weights_by_name(model):
    """Weights by names that are equal in models of one architecture.

    A name is that of a layer of the graph, the weight's position in it, and
    its own name: Keras numbers unnamed layers within a layer, and unnamed
    weights, over all models of a process.
    """
    found, seen = {}, set()
    for name, layer in [
        *((layer.name, layer) for _, layer in layers_by_path(model)),
        ("", model),  # weights that are the model's own
    ]:
        for i, weight in enumerate(layer.weights):
            own = re.sub(r"^variable_\d+$", "variable", weight.name)
            key = f"{name}/{i}/{own}"
            while key in found:
                key += "+"
            if id(weight) not in seen:
                seen.add(id(weight))
                found[key] = weight
    return found
