"""Mean, spread and range of the bands of images."""

import numpy as np

from keras_aspp.data.band_statistics import BandStatistics
from keras_aspp.data.tiff import Bands
from keras_aspp.pixels import PixelFormat


def test_images_of_any_size_are_one_population():
    rng = np.random.default_rng(0)
    images = [
        (1e4 + rng.normal(0, 3, (h, w, 2)) * [1, 50]).astype("float32")
        for h, w in ((5, 7), (30, 2), (9, 9))
    ]
    found = BandStatistics()
    for image in images:
        found.add(Bands(image), "a.tif")
    pixels = np.concatenate([i.reshape(-1, 2) for i in images]).astype(float)
    result = found.result()
    assert (result["channels"], result["dtype"]) == (2, "float32")
    for name in ("mean", "std", "min", "max"):
        expected = getattr(pixels, name)(0)
        np.testing.assert_allclose(result[name], expected, rtol=1e-5)


def test_pixels_without_data_do_not_count():
    found = BandStatistics()
    image = np.array([[[7], [0]]], "uint16")
    found.add(Bands(image, np.array([[True, False]])), "a.tif")
    found.add(Bands(image, np.array([[False, False]])), "b.tif")
    result = found.result()
    assert result["mean"] == result["min"] == result["max"] == [7]
    # A constant band is left as it is.
    assert result["std"] == [1]
    assert BandStatistics().result() == {}


def test_images_of_several_formats_have_no_statistics_but_a_note():
    found = BandStatistics()
    found.add(Bands(np.zeros((1, 1, 3), "uint8")), "odd.png")
    for name in ("a.tif", "b.tif"):
        found.add(Bands(np.ones((1, 1, 4), "uint16")), name)
    assert found.result() == {}
    formats = "2 of 4 x uint16, first a.tif, 1 of 3 x uint8, first odd.png"
    assert found.note().endswith(formats)


def test_float_images_may_be_stored_as_numbers_of_any_type():
    found = BandStatistics(PixelFormat(1, "float32", (0, 1)))
    for value, dtype in ((1, "uint16"), (2, "float64")):
        found.add(Bands(np.full((1, 1, 1), value, dtype)), "a.tif")
    assert found.note() is None
    result = found.result()
    assert (result["dtype"], result["mean"]) == ("float32", [1.5])


def test_rgb_of_8_bits_is_measured_only_if_its_range_is_given():
    bands = Bands(np.ones((1, 1, 3), "uint8"))
    for pixels, mean in (
        (PixelFormat(), None),
        (PixelFormat(value_range=(0, 200)), [1, 1, 1]),
    ):
        found = BandStatistics(pixels)
        found.add(bands, "a.tif")
        assert found.result().get("mean") == mean
