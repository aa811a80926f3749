"""Class weights out of how often classes are seen."""

import numpy as np

from keras_aspp.utils.exceptions import InputError


def median_frequency_weights(pixels, pixels_of_pictures):
    """Weights by pixels: rare classes weigh more, the median one 1.

    Args:
        pixels: ints (K,): pixels of each class.
        pixels_of_pictures: ints (K,): valid pixels of the pictures in which
            the class is seen.

    Returns:
        float array (K,); 0 for a class that is never seen.

    Raises:
        ValueError: counts are negative, no class is seen, or a class has more
            pixels than the pictures in which it is seen.

    Example:
    >>> median_frequency_weights([80, 10, 10], [100, 100, 20])
    array([0.625, 5.   , 1.   ])

    Reference:
        [Eigen and Fergus, 2015](https://arxiv.org/abs/1411.4734), section
        6.3.2. Differs from it in: nothing.
    """
    pixels, of_pictures = _counts(pixels), _counts(pixels_of_pictures)
    if len(pixels) != len(of_pictures) or (pixels > of_pictures).any():
        raise InputError(
            "`pixels_of_pictures` must hold one count for each class, and no "
            f"less than `pixels`. Received: pixels={pixels.tolist()}, "
            f"pixels_of_pictures={of_pictures.tolist()}"
        )
    seen = pixels > 0
    frequency = np.divide(pixels, of_pictures, where=seen, out=pixels * 0.0)
    weights = np.zeros(len(pixels))
    weights[seen] = np.median(frequency[seen]) / frequency[seen]
    return weights


def effective_number_weights(samples, beta=0.999):
    """Weights by the effective number of samples, of mean 1.

    Args:
        samples: ints (K,): how often each class is seen, e.g. in how many
            pictures. (Of pixels there are so many that all weigh the same.)
        beta: float in [0, 1): near 1 weights are the inverse of `samples`, at
            0 they are equal. Defaults to 0.999.

    Returns:
        float array (K,), of mean 1 over classes that are seen; 0 for a class
        that is never seen.

    Raises:
        ValueError: counts are negative, no class is seen, or `beta` is not as
            above.

    Example:
    >>> effective_number_weights([100, 10, 0], beta=0.9).round(3)
    array([0.789, 1.211, 0.   ])

    Reference:
        [Cui et al., 2019](https://arxiv.org/abs/1901.05555), equation 2.
        Differs from it in: nothing.
    """
    if not 0 <= beta < 1:
        raise InputError(f"`beta` must be in [0, 1). Received: beta={beta}")
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
