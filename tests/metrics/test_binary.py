"""Precision and recall of an object at every threshold, against a loop."""

import numpy as np
import pytest

from keras_aspp.metrics import BinaryCurve
from keras_aspp.plots.evaluation import precision_recall_figure

RNG = np.random.default_rng(8)


def sample(shape=(2, 6, 5), ignore_label=255):
    labels = RNG.choice([0, 1, ignore_label], shape, p=[0.6, 0.3, 0.1])
    probabilities = np.clip(RNG.normal(0.3 + 0.3 * (labels == 1), 0.2), 0, 1)
    return labels, probabilities.astype("float32")


def curve_of(labels, probabilities, **kwargs):
    curve = BinaryCurve(**kwargs)
    curve.update(labels, probabilities)
    return curve


def test_against_a_loop_over_thresholds():
    curve, batches = BinaryCurve(ignore_label=9, bins=16), []
    for _ in range(3):
        batches.append(sample(ignore_label=9))
        curve.update(*batches[-1])
    labels, p = (np.concatenate(x) for x in zip(*batches, strict=True))
    truth, p = labels[labels != 9] == 1, p[labels != 9]
    assert curve.thresholds.tolist() == [i / 16 for i in range(16)]
    for i, threshold in enumerate(curve.thresholds):
        found = p > threshold if i else np.ones(len(p), bool)
        hit = (truth & found).sum()
        if found.any():
            expected = hit / found.sum()
            assert curve.precision()[i] == pytest.approx(expected)
        else:
            assert np.isnan(curve.precision()[i])
        assert curve.recall()[i] == pytest.approx(hit / truth.sum())
        iou = hit / (truth | found).sum()
        assert curve.iou()[i] == pytest.approx(iou)
        assert curve.f1()[i] == pytest.approx(
            2 * hit / (truth.sum() + found.sum())
        )
    best = np.argmax(curve.iou())
    assert curve.best_threshold() == curve.thresholds[best]
    assert 0.2 < curve.best_threshold() < 0.8


def test_average_precision_is_the_area_over_ranked_pixels():
    """By the definition: the mean precision at the rank of each object."""
    labels, p = sample((4, 20, 20))
    # Multiples of 1 / 1024 above 0, each its own bin; no two are equal.
    ranks = RNG.permutation(1024)[: labels.size % 1024]
    labels, p = labels.ravel()[: len(ranks)], (1 + ranks) / 1024
    truth = labels[labels != 255][np.argsort(-p[labels != 255])] == 1
    precision = np.cumsum(truth) / np.arange(1, len(truth) + 1)
    expected = precision[truth].mean()
    assert curve_of(labels, p).average_precision() == pytest.approx(expected)


def test_ties_go_to_the_background_and_to_the_threshold_nearest_a_half():
    curve = curve_of([0, 1], [0.25, 0.75], bins=8)
    assert curve.iou()[2:6].tolist() == [1.0] * 4
    assert curve.iou()[1] == 0.5 and curve.iou()[6] == 0.0
    assert curve.best_threshold() == 0.5
    assert curve_of([0, 1], [0.625, 0.75], bins=8).best_threshold() == 0.625
    assert curve_of([0, 1], [0.1, 0.25], bins=8).best_threshold() == 0.125


def test_certain_predictions():
    curve = curve_of([0, 1, 255], [0.0, 1.0, np.nan])
    assert curve.average_precision() == 1.0
    assert curve.iou()[0] == 0.5 and (curve.iou()[1:] == 1).all()
    # Where everything is the object, threshold 0 is still no answer.
    assert curve_of([1, 1], [0.0, 0.3]).best_threshold() > 0


@pytest.mark.parametrize("labels", [[], [0, 0], [255]])
def test_without_the_object_nothing_is_defined(labels):
    curve = curve_of(np.array(labels, int), np.full(len(labels), 0.4))
    assert np.isnan(curve.average_precision())
    assert np.isnan(curve.best_threshold())
    assert np.isnan(curve.recall()).all()


@pytest.mark.parametrize(
    "labels, probabilities, message",
    [
        ([0, 2], [0.1, 0.2], "1 pixels of other values, first 2"),
        ([0, 1], [0.1], r"\(2,\) and \(1,\)"),
        ([0, 1], [0.1, 1.5], "1 others, first 1.5"),
        ([0, 1], [np.nan, 0.5], "1 others, first nan"),
    ],
)
def test_bad_input_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        curve_of(labels, probabilities)
    with pytest.raises(ValueError, match="Received: bins=1"):
        BinaryCurve(bins=1)


def test_figure_marks_the_best_threshold_and_the_one_in_use():
    curve = curve_of(*sample())
    figure = precision_recall_figure(curve, "road", threshold=0.3)
    (axes,) = figure.axes
    title = axes.get_title()
    assert f"{curve.average_precision():.4f}" in title and "road" in title
    best = curve.thresholds.tolist().index(curve.best_threshold())
    drawn = {
        marker.get_label(): marker.get_offsets()[0].tolist()
        for marker in axes.collections
    }
    assert len(drawn) == 2
    (label,) = (label for label in drawn if label.startswith("best"))
    assert f"{curve.best_threshold():.3f}" in label
    assert drawn[label] == pytest.approx(
        [curve.recall()[best], curve.precision()[best]]
    )
    (label,) = (label for label in drawn if label.startswith("in use"))
    at = round(0.3 * 1024)
    assert drawn[label] == pytest.approx(
        [curve.recall()[at], curve.precision()[at]]
    )


def test_figure_of_an_object_that_never_occurs_says_so():
    figure = precision_recall_figure(curve_of([0], [0.2]), "road")
    assert "never occurs" in figure.axes[0].get_title()
