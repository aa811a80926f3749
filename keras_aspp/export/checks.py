"""Checks of arguments that all exports have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_aspp.data.tiff import without_gaps
from keras_aspp.inference import serving
from keras_aspp.inference.predictor import fits_dtype
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Size


def checked_answers(
    model: Segmenter, coarse_labels: bool, outputs: Sequence[str]
) -> dict[str, Any]:
    """Returns the arguments of converters that say what files return.

    Args:
        model: `Segmenter`.
        coarse_labels: bool; see `export_model`.
        outputs: see `export_model`.

    Raises:
        ValueError: `outputs` are not outputs of such a model.
    """
    ordered = tuple(name for name in serving.OUTPUTS if name in outputs)
    if len(ordered) != len(outputs) or "labels" not in ordered:
        raise InputError(
            f"`outputs` must be different names of {serving.OUTPUTS}, labels "
            f"among them. Received: outputs={tuple(outputs)}"
        )
    if model.task == "multilabel" and "confidence" in outputs:
        raise InputError(
            "Classes that may overlap have probabilities, but no common "
            f"confidence. Received: outputs={tuple(outputs)}"
        )
    return {"coarse_labels": coarse_labels, "outputs": ordered}


def check_segmenter(model: Any) -> None:
    """Raises `ValueError` for what is no `Segmenter`, such as a path."""
    if not isinstance(model, Segmenter):
        raise InputError(
            "`model` must be a Segmenter; keras.saving.load_model opens a "
            f".keras file. Received: model={model!r}"
        )


def checked_images(
    name: str, images: Iterable[np.ndarray], model: Segmenter
) -> list[np.ndarray]:
    """Returns images as predictors pass them to a model.

    Args:
        name: of the argument, for the message.
        images: arrays.
        model: `Segmenter`.

    Returns:
        list of arrays in the model's type; pixels without data are 0.

    Raises:
        ValueError: an image has another form than the model takes.
    """
    channels, dtype = model.input_channels, model.preprocess.input_dtype
    found = []
    for image in images:
        image = np.asarray(image)
        if (
            image.ndim != 3
            or not fits_dtype(image.dtype, dtype)
            or image.shape[2] != channels
        ):
            raise InputError(
                f"`{name}` must be {dtype} arrays (height, width, {channels}). "
                f"Received: shape={image.shape}, dtype={image.dtype}"
            )
        found.append(without_gaps(image.astype(dtype, copy=False), None)[0])
    return found


def check_size(name: str, image_size: Size, model: Segmenter) -> Size:
    """Returns an image size as a tuple, if a model takes it.

    Args:
        name: of the argument, for the message.
        image_size: `(height, width)`, in pixels.
        model: `Segmenter`.

    Raises:
        ValueError: it is not a size, or not that of the model.
    """
    size = tuple(np.atleast_1d(np.asarray(image_size, object)))
    if len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise InputError(
            f"`{name}` must hold (height, width), ints > 0. "
            f"Received: {name}={image_size}"
        )
    fixed = model.input.shape[1:3]
    if any(own not in (None, n) for own, n in zip(fixed, size, strict=True)):
        raise InputError(
            f"`{name}` must be the size of the model's `input_shape`, "
            f"{tuple(fixed)}; for other sizes, build the model with "
            f"input_shape=(None, None, {model.input_channels}) and load the "
            "weights into it. "
            f"Received: {name}={size}"
        )
    return size


def check_repeatable(evaluation_data: Iterable[Any] | None) -> None:
    """Raises `ValueError` for an iterator of Python, which is read once."""
    if (
        isinstance(evaluation_data, Iterator)
        # Iterators of others may begin again.
        and type(evaluation_data).__module__ == "builtins"
    ):
        raise InputError(
            "`evaluation_data` is read once for each artefact; pass a list, "
            "or an object whose `__iter__` begins again. Received: "
            f"{type(evaluation_data).__name__}"
        )
