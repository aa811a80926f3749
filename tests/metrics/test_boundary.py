"""Against loops over every pixel and its window."""

import numpy as np
import pytest

from keras_aspp.metrics import BandIoU, BoundaryIoU
from keras_aspp.metrics.boundary import rim

RNG = np.random.default_rng(5)
IGNORE = 255


def blobs(height=19, width=26, kinds=3, ignored=True):
    """A coarse map, so that there are areas and not only rims."""
    coarse = RNG.integers(0, kinds, (4, 5))
    labels = np.kron(coarse, np.ones((5, 6), int))[:height, :width]
    if ignored:
        labels[2:5, 7:12] = IGNORE
    return labels


def window(array, y, x, d):
    return array[max(y - d, 0) : y + d + 1, max(x - d, 0) : x + d + 1]


def slow_rim(mask, d):
    padded = np.pad(mask, d)
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[y, x] = not window(padded, y + d, x + d, d).all()
    return out


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_rim(d):
    mask = blobs() == 1
    np.testing.assert_array_equal(rim(mask, d), slow_rim(mask, d))


def test_boundary_iou():
    metric = BoundaryIoU(4, IGNORE, distance=0.06)
    shared, either = np.zeros(4), np.zeros(4)
    for _ in range(3):
        labels, predicted = blobs(), blobs(ignored=False)
        metric.update(labels, predicted)
        predicted = np.where(labels == IGNORE, IGNORE, predicted)
        d = round(0.06 * np.hypot(19, 26))
        assert d == 2
        for kind in range(4):
            a, b = (slow_rim(m == kind, d) for m in (labels, predicted))
            shared[kind] += (a & b).sum()
            either[kind] += (a | b).sum()
    assert np.isnan(metric.per_class()[3])
    expected = shared[:3] / either[:3]
    np.testing.assert_allclose(metric.per_class()[:3], expected)
    assert metric.mean() == pytest.approx(expected.mean())
    assert 0 < metric.mean() < 0.9


def test_an_ignored_label_may_be_a_class():
    labels, predicted = blobs(ignored=False), blobs(ignored=False)
    values = []
    for ignored in (0, IGNORE):
        metric = BoundaryIoU(3, ignored)
        metric.update(np.where(labels == 0, ignored, labels), predicted)
        values.append(metric.per_class())
    np.testing.assert_array_equal(*values)


def test_an_outline_that_is_off_costs_more_than_in_mean_iou():
    labels = np.zeros((64, 64), int)
    labels[8:56, 8:56] = 1
    predicted = np.roll(labels, 2, axis=0)
    metric = BoundaryIoU(2)
    metric.update(labels, predicted)
    area = ((labels == 1) & (predicted == 1)).sum()
    iou = area / ((labels == 1) | (predicted == 1)).sum()
    assert iou > 0.9
    assert metric.per_class()[1] < 0.5


def test_band_iou():
    labels, predicted = blobs(), blobs(ignored=False)
    metric = BandIoU(3, IGNORE, (1, 3, 100))
    metric.update(labels, predicted)
    found = metric.mean()
    for width in (1, 3):
        near = np.array(
            [
                [
                    (window(labels, y, x, width) != labels[y, x]).any()
                    for x in range(labels.shape[1])
                ]
                for y in range(labels.shape[0])
            ]
        )
        counted = near & (labels != IGNORE)
        ious = []
        for kind in range(3):
            a, b = (counted & (m == kind) for m in (labels, predicted))
            if (a | b).any():
                ious.append((a & b).sum() / (a | b).sum())
        assert found[width] == pytest.approx(np.mean(ious))
    # A band as wide as the picture is the picture.
    every = BandIoU(3, IGNORE, (100,))
    every.update(labels, labels)
    assert every.mean() == {100: 1.0}


def test_nothing_to_count():
    metric, bands = BoundaryIoU(2), BandIoU(2, bands_px=(1,))
    for nothing in (metric, bands):
        nothing.update(np.full((4, 5), 255), np.zeros((4, 5), int))
    assert np.isnan(metric.mean())
    assert np.isnan(bands.mean()[1])


@pytest.mark.parametrize("kind", [BoundaryIoU, BandIoU])
@pytest.mark.parametrize(
    "labels, predicted, message",
    [
        ([[0, 128]], [[0, 0]], "`labels`.*1 pixels of other values, first 128"),
        ([[0, -1]], [[0, 0]], "first -1"),
        ([[0, 0.5]], [[0, 0]], "first 0.5"),
        ([[0, 1]], [[7, -1]], "`predicted`.*2 pixels of other values, first 7"),
        ([[0, 1]], [[[0], [1]]], r"shapes \(1, 2\) and \(1, 2, 1\)"),
    ],
)
def test_what_is_no_class_is_refused(kind, labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        kind(2).update(np.array(labels), np.array(predicted))
    # Where the label is ignored, any prediction is.
    kind(2).update(np.array([[0, 255]]), np.array([[0, 9]]))


@pytest.mark.parametrize("kind", [BoundaryIoU, BandIoU])
def test_one_class_is_no_task(kind):
    with pytest.raises(ValueError, match="background.*num_classes=1"):
        kind(1)


def test_bands_are_whole_pixels():
    with pytest.raises(ValueError, match="`bands_px` must be an int > 0"):
        BandIoU(2, bands_px=(1, 1.5))
