"""Counts of classes that may overlap, against NumPy."""

import keras
import numpy as np
import pytest

from keras_aspp.metrics import (
    ConfusionMatrix,
    MultilabelConfusion,
    confusion_of,
)


def batch(seed=0, shape=(2, 5, 7, 3)):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 255], shape, p=[0.5, 0.3, 0.2])
    return labels.astype("uint8"), rng.normal(0, 1, shape).astype("float32")


def np_matrices(labels, predicted):
    found = np.zeros((labels.shape[-1], 2, 2), int)
    for at in map(tuple, np.argwhere(labels != 255)):
        found[at[-1], labels[at], int(predicted[at])] += 1
    return found


@pytest.mark.parametrize("as_labels", [False, True])
def test_counts_and_measures_equal_numpy(as_labels):
    metric = MultilabelConfusion(3)
    expected = np.zeros((3, 2, 2), int)
    for seed in range(2):
        labels, scores = batch(seed)
        given = (scores > 0).astype("uint8") if as_labels else scores
        metric.update_state(labels, given)
        expected += np_matrices(labels, scores > 0)
    np.testing.assert_array_equal(metric.matrices(), expected)
    hit = expected[:, 1, 1]
    iou = hit / (expected.sum((1, 2)) - expected[:, 0, 0])
    assert iou.std() > 0.01
    np.testing.assert_allclose(metric.per_class_iou(), iou)
    assert float(metric.result()) == pytest.approx(iou.mean(), rel=1e-6)
    right = expected[:, 0, 0].sum() + hit.sum()
    assert metric.pixel_accuracy() == pytest.approx(right / expected.sum())
    recall = hit / expected[:, 1].sum(-1)
    assert metric.mean_accuracy() == pytest.approx(recall.mean())
    weighted = np.average(iou, weights=expected[:, 1].sum(-1))
    assert metric.frequency_weighted_iou() == pytest.approx(weighted)


def test_a_class_that_never_occurs_is_left_out_of_the_mean():
    metric = MultilabelConfusion(2)
    labels = np.zeros((1, 2, 2, 2), "uint8")
    predicted = labels.copy()
    labels[..., 0], predicted[:, 0, :, 0] = 1, 1
    metric.update_state(labels, predicted)
    assert metric.mean_iou() == 0.5
    assert np.isnan(metric.per_class_iou()[1])


@pytest.mark.parametrize("value, score", [(2, 1.0), (1, np.nan)])
def test_invalid_pixels_are_counted_and_named(value, score):
    metric = MultilabelConfusion(1)
    labels = np.full((1, 1, 2, 1), value, "uint8")
    metric.update_state(labels, np.full(labels.shape, score, "float32"))
    assert np.isnan(float(metric.result()))
    with pytest.raises(ValueError, match="Received: 2 others"):
        metric.matrices()
    metric.reset_state()
    assert not metric.matrices().any()


def test_the_task_chooses_the_metric_and_shapes_are_checked():
    assert isinstance(confusion_of("binary", 2), ConfusionMatrix)
    metric = confusion_of("multilabel", 3)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert again.get_config() == metric.get_config()
    labels, scores = batch()
    with pytest.raises(ValueError, match=r"\(2, 5, 7\) and \(2, 5, 7, 3\)"):
        metric.update_state(labels[..., 0], scores)


def test_a_rare_class_on_many_pixels():
    metric = MultilabelConfusion(1)
    # In float32, all pixels minus the true negatives are 32 or 64, not 48.
    metric.counts.assign([[[500 * 2**20 - 48, 4], [4, 40]]])
    assert float(metric.result()) == pytest.approx(40 / 48)
    assert metric.mean_iou() == pytest.approx(40 / 48)


def test_counts_that_int32_cannot_hold():
    metric = MultilabelConfusion(1)
    metric.counts.assign([[[-(2**31), 1], [1, 1]]])  # 2**31 on JAX
    assert np.isnan(metric.result())
    with pytest.raises(OverflowError, match="Evaluate on TensorFlow"):
        metric.matrices()
