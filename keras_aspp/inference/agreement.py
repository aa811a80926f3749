"""Agreement of two predictors on an image file."""

from __future__ import annotations

import numpy as np

from keras_aspp.inference.predictor import Predictor
from keras_aspp.inference.scenes import is_predicted_by_window
from keras_aspp.utils.errors import is_user_error
from keras_aspp.utils.types import PathLike


def agreement(
    predictor: Predictor, reference: Predictor, image: PathLike
) -> float | None:
    """Returns the share of pixels to which two predictors give one label.

    Args:
        predictor: `Predictor`, e.g. of another runtime or precision.
        reference: `Predictor` to compare with.
        image: path.

    Returns:
        float in [0, 1], or `None` if the file cannot be compared: a scene,
        which is predicted by window, or no readable image.
    """
    try:
        if is_predicted_by_window(image):
            return None
        found, expected = (one.predict(image) for one in (predictor, reference))
    except Exception as error:
        # Whoever predicts the file reports it.
        if not is_user_error(error):
            raise
        return None
    return float(np.mean(equal_pixels(found, expected)))


def equal_pixels(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns True for pixels whose labels are equal.

    Args:
        found: labels of an image, `[H, W]`, or `[H, W, K]` of a multilabel
            task, whose classes must all be equal.
        expected: labels of the same shape.

    Returns:
        bool `[H, W]`.
    """
    equal = found == expected
    # Most classes are absent from most pixels, so pairs of pixel and class
    # are equal in masks that share nothing.
    return equal if equal.ndim == 2 else equal.all(axis=-1)
