"""Mean, spread and range of the bands of images."""

import numpy as np

from keras_aspp.data.band_statistics import BandStatistics
from keras_aspp.data.tiff import Bands


def test_images_of_any_size_are_one_population():
    rng = np.random.default_rng(0)
    images = [
        (1e4 + rng.normal(0, 3, (h, w, 2)) * [1, 50]).astype("float32")
        for h, w in ((5, 7), (30, 2), (9, 9))
    ]
    found = BandStatistics()
    for image in images:
        found.add(Bands(image))
    pixels = np.concatenate([i.reshape(-1, 2) for i in images]).astype(float)
    result = found.result()
    assert (result["channels"], result["dtype"]) == (2, "float32")
    for name in ("mean", "std", "min", "max"):
        expected = getattr(pixels, name)(0)
        np.testing.assert_allclose(result[name], expected, rtol=1e-5)


def test_pixels_without_data_do_not_count_and_the_common_format_wins():
    found = BandStatistics()
    image = np.array([[[7], [0]]], "uint16")
    found.add(Bands(image, np.array([[True, False]])))
    found.add(Bands(image, np.array([[False, False]])))
    found.add(Bands(np.zeros((1, 1, 3), "uint8")))
    result = found.result()
    assert result["mean"] == result["min"] == result["max"] == [7]
    # A constant band is left as it is.
    assert result["std"] == [1]
    assert BandStatistics().result() == {}
