import numpy as np
import pytest

from keras_aspp.losses import effective_number_weights, median_frequency_weights


def test_median_frequency():
    # Shares of their pictures: 0.5, 0.1, 0.05; the median is 0.1.
    weights = median_frequency_weights([500, 100, 10, 0], [1000, 1000, 200, 0])
    np.testing.assert_allclose(weights, [0.2, 1.0, 2.0, 0.0])


def test_effective_number():
    weights = effective_number_weights([1, 2, 0], beta=0.5)
    # Effective numbers 1 and 1.5, so weights 3 : 2 of mean 1.
    np.testing.assert_allclose(weights, [1.2, 0.8, 0.0])
    np.testing.assert_allclose(effective_number_weights([5, 9], 0.0), [1, 1])


@pytest.mark.parametrize(
    "counts", [[], [0, 0], [1, -1], [[1, 2]], [1, np.nan], [1, np.inf]]
)
def test_counts_that_cannot_be(counts):
    with pytest.raises(ValueError, match="Counts must be.*Received"):
        effective_number_weights(counts)
    with pytest.raises(ValueError, match="Counts must be.*Received"):
        median_frequency_weights(counts, counts)


def test_beta_out_of_range():
    with pytest.raises(ValueError, match="Received: beta=1.0"):
        effective_number_weights([1], 1.0)


@pytest.mark.parametrize("of_images", [[9], [9, 4], [9, 0]])
def test_pixels_of_images_that_cannot_be(of_images):
    with pytest.raises(ValueError, match=r"Received: pixels=\[1.0, 5.0\]"):
        median_frequency_weights([1, 5], of_images)
