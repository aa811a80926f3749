import numpy as np
import pytest

from keras_aspp.metrics import Calibration

RNG = np.random.default_rng(6)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_against_a_loop_over_bins():
    metric, confidences, rights = Calibration(ignore_label=9, bins=7), [], []
    for _ in range(3):
        scores = 2 * RNG.normal(size=(2, 6, 5, 4))
        labels = RNG.choice([0, 1, 2, 3, 9], (2, 6, 5))
        metric.update(labels, scores)
        valid = labels != 9
        confidences.append(softmax(scores).max(-1)[valid])
        rights.append((scores.argmax(-1) == labels)[valid])
    confidence, right = np.concatenate(confidences), np.concatenate(rights)
    error = 0
    for i in range(7):
        inside = (confidence >= i / 7) & (confidence < (i + 1) / 7)
        found = metric.histogram()[i]
        assert found["pixels"] == inside.sum()
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
            assert found["accuracy"] == pytest.approx(right[inside].mean())
    assert metric.error() == pytest.approx(error)
    assert metric.error() > 0.05


def test_a_model_that_says_what_it_knows():
    """Labels drawn from the model's own probabilities."""
    scores = RNG.normal(size=(1, 100, 300, 3))
    draws = RNG.random((1, 100, 300, 1))
    labels = (draws > softmax(scores).cumsum(-1)).sum(-1)
    metric = Calibration()
    metric.update(labels, scores)
    assert metric.error() < 0.02


def test_certain_and_nothing():
    metric = Calibration(bins=5)
    assert np.isnan(metric.error())
    metric.update(np.array([[[0, 255]]]), np.array([[[[99.0, 0], [0, 99.0]]]]))
    assert metric.error() == pytest.approx(0)
    assert [b["pixels"] for b in metric.histogram()] == [0, 0, 0, 0, 1]
    assert metric.histogram()[0]["accuracy"] is None


@pytest.mark.parametrize(
    "labels, message",
    [([[[0, 128]]], "1 pixels .*first 128"), ([[0, 1]], r"shapes \(1, 2\)")],
)
def test_labels_of_no_class_are_refused(labels, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        Calibration().update(np.array(labels), np.zeros((1, 1, 2, 3)))


def test_scores_of_no_numbers_are_refused():
    scores = np.array([[[[0, np.nan], [0, 1]]]])
    with pytest.raises(ValueError, match="Received: 1 pixels with NaN"):
        Calibration().update(np.array([[[0, 1]]]), scores)
    Calibration().update(np.array([[[255, 1]]]), scores)


def test_labels_of_a_threshold_have_their_own_probability():
    """A binary model labels the object above 0.3, not above one half."""
    metric = Calibration(bins=5)
    p = np.array([[[0.1, 0.35, 0.45, 0.9]]])  # of the object
    scores = np.log(np.stack([1 - p, p], -1))
    labels = np.array([[[0, 1, 0, 255]]])
    metric.update(labels, scores, (p > 0.3).astype(int))
    # Confidence 0.9, 0.35 and 0.45 of labels 0, 1 and 1.
    found = metric.histogram()
    assert [b["pixels"] for b in found] == [0, 1, 1, 0, 1]
    assert [b["accuracy"] for b in found] == [None, 1, 0, None, 1]
    assert found[1]["confidence"] == pytest.approx(0.35)
    expected = (abs(1 - 0.35) + abs(0 - 0.45) + abs(1 - 0.9)) / 3
    assert metric.error() == pytest.approx(expected)


@pytest.mark.parametrize(
    "predicted", [[[[2, 0]]], [[[-1, 0]]], [[[0.0, 1.0]]], [[0, 1]]]
)
def test_predictions_of_no_class_are_refused(predicted):
    labels, scores = np.array([[[0, 1]]]), np.zeros((1, 1, 2, 2))
    with pytest.raises(
        ValueError, match=r"in 0..1, as .*Received: (int|float)"
    ):
        Calibration().update(labels, scores, predicted)
