"""Boundary pixels and recall by size against counts by hand."""

import numpy as np
import pytest

from keras_aspp.analysis.breakdown import ScaleRecall, boundary_pixels


@pytest.mark.parametrize("distance_px", [1, 2, 3])
def test_boundary_pixels(distance_px):
    rng = np.random.default_rng(distance_px)
    labels = rng.integers(0, 3, (4, 5)).repeat(6, 0).repeat(7, 1)
    labels[3, 4] = 255
    expected = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(*labels.shape):
        window = labels[
            max(y - distance_px, 0) : y + distance_px + 1,
            max(x - distance_px, 0) : x + distance_px + 1,
        ]
        expected[y, x] = (window != labels[y, x]).any()
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(
        boundary_pixels(labels, distance_px), expected
    )


def test_scale_recall():
    instances = np.array([[1, 1, 2, 2, 2], [0, 3, 3, 3, 3], [4, 4, 0, 0, 0]])
    predicted = np.array([[5, 0, 6, 6, 0], [5, 7, 7, 7, 0], [6, 6, 5, 6, 7]])
    recall = ScaleRecall((10, 20, 40, 80))
    for _ in range(2):  # counts add up over pictures
        recall.update(predicted, instances, [5, 6, 7, 5], [10, 20, 39.9, 15])
    # 10 and 15: one of four; 20 and 39.9: two of three and three of four.
    assert recall.result() == {"10-20": 1 / 4, "20-40": 5 / 7, "40-80": None}


def test_scale_recall_holds_the_upper_edge():
    recall = ScaleRecall((10, 20, 40))
    recall.update(np.array([[1, 0]]), np.array([[1, 1]]), [1], [40.0])
    assert recall.result() == {"10-20": None, "20-40": 0.5}
