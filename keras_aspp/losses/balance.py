"""Class weights from class frequencies."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.utils.deprecation import renamed_arguments
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_number


@renamed_arguments(pixels_of_pictures="pixels_of_images")
def median_frequency_weights(
    pixels: ArrayLike, pixels_of_images: ArrayLike
) -> np.ndarray:
    """Computes median-frequency class weights.

    The class of median frequency has weight 1, rarer classes more.

    Args:
        pixels: ints (K,), pixels of each class.
        pixels_of_images: ints (K,), valid pixels of the images that contain
            the class.

    Returns:
        float array (K,); 0 for a class that does not occur.

    Raises:
        ValueError: counts are negative, all are 0, or a class has more pixels
            than the images that contain it.

    Example:
    >>> median_frequency_weights([80, 10, 10], [100, 100, 20])
    array([0.625, 5.   , 1.   ])

    Reference:
        [Eigen and Fergus, 2015](https://arxiv.org/abs/1411.4734), section
        6.3.2. Differs from it in: nothing.
    """
    pixels, of_images = _counts(pixels), _counts(pixels_of_images)
    if len(pixels) != len(of_images) or (pixels > of_images).any():
        raise InputError(
            "`pixels_of_images` must hold one count for each class, at least "
            f"that of `pixels`. Received: pixels={pixels.tolist()}, "
            f"pixels_of_images={of_images.tolist()}"
        )
    seen = pixels > 0
    frequency = np.divide(pixels, of_images, where=seen, out=pixels * 0.0)
    weights = np.zeros(len(pixels))
    weights[seen] = np.median(frequency[seen]) / frequency[seen]
    return weights


def effective_number_weights(
    samples: ArrayLike, beta: float = 0.999
) -> np.ndarray:
    """Computes class weights from the effective number of samples.

    Args:
        samples: ints (K,), number of samples of each class, such as images
            that contain it. (With counts of pixels all weights would be equal.)
        beta: float in [0, 1). Close to 1, weights are inverse to `samples`; at
            0 they are equal. Defaults to 0.999.

    Returns:
        float array (K,), with mean 1 over classes that occur; 0 for the
        others.

    Raises:
        ValueError: counts are negative, all are 0, or `beta` is out of range.

    Example:
    >>> effective_number_weights([100, 10, 0], beta=0.9).round(3)
    array([0.789, 1.211, 0.   ])

    Reference:
        [Cui et al., 2019](https://arxiv.org/abs/1901.05555), equation 2.
        Differs from it in: nothing.
    """
    beta = check_number("beta", beta, "[0, 1)")
    samples = _counts(samples)
    seen = samples > 0
    weights = np.zeros(len(samples))
    weights[seen] = (1 - beta) / (1 - beta ** samples[seen])
    return weights / weights[seen].mean()


def _counts(numbers):
    numbers = np.asarray(numbers, "float64")
    if (
        numbers.ndim != 1
        or not (np.isfinite(numbers).all() and numbers.min(initial=0) >= 0)
        or not numbers.any()
    ):
        raise InputError(
            "Counts must be ints >= 0, one for each class, and not all 0. "
            f"Received: {numbers.tolist()}"
        )
    return numbers
