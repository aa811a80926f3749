"""PixelFormat, and the preprocessing of images of other ranges."""

import json

import numpy as np
import pytest

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.pixels import PixelFormat, to_rgb
from keras_aspp.preprocess import KERAS_CAFFE, TORCHVISION, Preprocess


@pytest.mark.parametrize("base", [Preprocess(), KERAS_CAFFE, TORCHVISION])
def test_a_range_of_values_stands_for_0_to_255(base):
    low, high = (100.0, 0.0, -3.0), (4100.0, 1.0, 7.0)
    pixels = PixelFormat(3, "float32", (low, high))
    share = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 7, 3))
    stored = low + share * (np.array(high) - low)
    whole = base.of_images(pixels)
    expected = np.asarray(base((255 * share).astype("float32")))
    np.testing.assert_allclose(whole(stored), expected, rtol=1e-3, atol=2e-3)
    in_two = whole.of_pixels()(whole.to_pixels(stored))
    np.testing.assert_allclose(in_two, expected, rtol=1e-3, atol=2e-3)
    again = Preprocess.from_config(json.loads(json.dumps(whole.get_config())))
    assert again == whole


def test_statistics_give_the_mean_and_spread_of_imagenet():
    pixels = PixelFormat(2, "uint16", mean=[500, 9000], std=[20, 3000])
    preprocess = TORCHVISION.of_images(pixels)
    ends = preprocess.to_pixels(np.array([[[500, 9000], [520, 12000]]]))
    expected = 255 * np.array([[0.449, 0.449], [0.675, 0.675]])
    np.testing.assert_allclose(ends[0], expected, rtol=1e-5)


def test_rgb_is_described_as_before():
    assert Preprocess().get_config().keys() == {
        "value_range",
        "mean",
        "std",
        "channel_order",
    }
    assert PixelFormat().input_range() is None
    image = np.zeros((2, 3, 3), "uint8")
    assert Preprocess().to_pixels(image) is image


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, r"`channels` must be an int in 1..512.*channels=0"),
        ({"dtype": "int16"}, "`dtype` must be one of uint8, uint16, float32"),
        ({"value_range": [5, 5]}, "low < high"),
        ({"value_range": [0, 1, 2]}, r"\[low, high\]. Received: value_range"),
        ({"mean": [1, 2]}, "`mean` and `std` together"),
        ({"mean": [1, 2], "std": [1, 2]}, "each of the 3 channels"),
        ({"mean": 0, "std": 0}, "`std` must be > 0"),
        ({"mean": float("nan"), "std": 1}, "finite"),
        ({"value_range": [0, 1], "mean": 0, "std": 1}, "Either `value_range`"),
    ],
)
def test_bad_values_are_refused(fields, message):
    for take in (PixelFormat, lambda **kw: DatasetSpec(["a", "b"], **kw)):
        with pytest.raises(ValueError, match=message):
            take(**fields)


def test_images_of_other_bands_need_a_model_of_their_own():
    image = np.zeros((2, 3, 4), "uint8")
    message = 'need a model that was trained on them, by "channels": 4'
    with pytest.raises(ValueError, match=message):
        PixelFormat().check(image, "a.tif")


def test_deep_images_need_a_range():
    with pytest.raises(ValueError, match="data check ROOT` prints them"):
        Preprocess().of_images(PixelFormat(4, "uint16"))


def test_a_spec_is_read_as_written(tmp_path):
    path = tmp_path / "dataset.json"
    DatasetSpec(["a", "b"]).to_file(path)
    assert "channels" not in path.read_text() + "dtype"[1:]
    spec = DatasetSpec(
        ["a", "b"], channels=2, dtype="uint16", mean=[1, 2.5], std=[1, 3]
    )
    spec.to_file(path)
    assert DatasetSpec.from_file(path) == spec
    assert spec.pixels == PixelFormat(2, "uint16", None, (1, 2.5), (1, 3))


def test_people_see_three_bands_stretched():
    bands = np.zeros((100, 100, 4), "uint16")
    bands[..., 0] = np.arange(100) * 100 + 2000
    shown = to_rgb(bands)
    assert (shown.shape, shown.dtype) == ((100, 100, 3), "uint8")
    # From the 2nd to the 98th percentile.
    np.testing.assert_array_equal(shown[0, [0, 1, 98, 99], 0], [0, 0, 255, 255])
    assert abs(int(shown[0, 50, 0]) - 128) <= 2
    gray = np.arange(12, dtype="uint8").reshape(3, 4, 1)
    np.testing.assert_array_equal(to_rgb(gray), np.repeat(gray, 3, -1))


def test_pixels_without_data_are_black_and_change_no_other():
    bands = np.linspace(-3, 5, 300, dtype="float32").reshape(10, 10, 3)
    gaps = bands.copy()
    gaps[0, 0] = np.nan
    whole = bands.reshape(-1, 3)[1:]
    low, high = np.percentile(whole, (2, 98), axis=0)
    expected = np.clip(255 * (whole - low) / (high - low), 0, 255)
    shown = to_rgb(gaps).reshape(-1, 3)
    np.testing.assert_array_equal(shown[0], 0)
    np.testing.assert_allclose(shown[1:], expected, atol=0.51)
    np.testing.assert_array_equal(to_rgb(np.full((4, 4, 3), np.nan)), 0)
