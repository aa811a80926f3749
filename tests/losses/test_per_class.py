"""Losses of classes that may overlap, against NumPy in float64."""

import keras
import numpy as np
import pytest

from keras_aspp import losses
from keras_aspp.config.schema import LossConfig
from keras_aspp.engine.loss import build_loss


def batch(seed=0, shape=(2, 5, 7, 3)):
    """Masks that overlap, some pixels of each ignored, and logits."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 255], shape, p=[0.5, 0.3, 0.2])
    logits = rng.normal(0, 2, shape)
    return labels.astype("uint8"), logits.astype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def of_classes(labels, logits, loss):
    """Mean over classes of a loss of valid labels and probabilities."""
    found = []
    for i in range(labels.shape[-1]):
        valid = labels[..., i] != 255
        found.append(
            loss(labels[..., i][valid] == 1, sigmoid(logits[..., i][valid]))
        )
    return np.array(found)


def np_cross_entropy(truth, p, gamma=0):
    right = np.where(truth, p, 1 - p)
    return (-((1 - right) ** gamma) * np.log(right)).mean()


def np_tversky(truth, p, alpha=0.5, beta=0.5):
    hit = (p * truth).sum()
    wrong, missed = (p * ~truth).sum(), ((1 - p) * truth).sum()
    return 1 - hit / (hit + alpha * wrong + beta * missed)


@pytest.mark.parametrize(
    "loss, oracle",
    [
        (losses.CrossEntropy(), np_cross_entropy),
        (
            losses.CrossEntropy(focal_gamma=2.0),
            lambda t, p: np_cross_entropy(t, p, 2),
        ),
        (losses.Dice(class_weights=(0, 1)), np_tversky),
        (
            losses.Tversky(alpha=0.3, beta=0.7, class_weights=(0, 1)),
            lambda t, p: np_tversky(t, p, 0.3, 0.7),
        ),
    ],
)
def test_is_the_mean_over_classes(loss, oracle):
    labels, logits = batch()
    expected = of_classes(labels, logits, oracle)
    assert expected.std() > 0.005
    found = losses.PerClass(loss)(labels, logits)
    assert float(found) == pytest.approx(expected.mean(), rel=1e-4)
    found = losses.PerClass(loss, [1, 0, 3])(labels, logits)
    weighted = np.average(expected, weights=[1, 0, 3])
    assert float(found) == pytest.approx(weighted, rel=1e-4)


def test_each_class_is_learned_by_its_own_pixels():
    labels, logits = batch()
    labels[..., 1] = 255
    loss = losses.PerClass(losses.CrossEntropy())
    changed = logits.copy()
    changed[..., 1] += 3
    assert float(loss(labels, logits)) == float(loss(labels, changed))


def test_a_class_without_a_pixel_adds_nothing_to_an_overlap():
    labels, logits = batch()
    labels[..., 0] = 0
    loss = losses.PerClass(losses.Dice(class_weights=(0, 1)))
    expected = of_classes(labels[..., 1:], logits[..., 1:], np_tversky)
    found = float(loss(labels, logits))
    assert found == pytest.approx(expected.sum() / 3, rel=1e-4)


def test_a_configuration_becomes_the_loss_of_one_object_per_class():
    loss = build_loss(
        LossConfig(lovasz=1.0), 255, [1.0, 2.0], task="multilabel"
    )
    assert loss.class_weights == (1, 2)
    names = [type(part).__name__ for part in loss.loss.losses]
    assert names == ["CrossEntropy", "Dice", "LovaszHinge"]
    labels, logits = batch(shape=(2, 5, 7, 2))
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    value = float(loss(labels, logits))
    assert value > 1
    assert float(again(labels, logits)) == pytest.approx(value, rel=1e-6)


def test_wrong_shapes_and_weights_are_named():
    labels, logits = batch()
    loss = losses.PerClass(losses.CrossEntropy())
    with pytest.raises(ValueError, match=r"Received: shapes \(2, 5, 7\)"):
        loss(labels[..., 0], logits)
    with pytest.raises(ValueError, match="Received: 2 weights for 3"):
        losses.PerClass(losses.CrossEntropy(), [1, 2])(labels, logits)
    with pytest.raises(ValueError, match=r"class_weights=\[-1, 2\]"):
        losses.PerClass(losses.CrossEntropy(), [-1, 2])


def test_keras_losses_take_weights_of_images():
    # As many images as columns: the weights must not become columns'.
    labels, logits = batch(shape=(4, 3, 4, 2))
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    weights = np.float32([0.5, 0, 2, 1])
    keras_loss = losses.PerClass(theirs)
    for given in (weights, weights[:, None]):
        assert float(keras_loss(labels, logits, given)) == pytest.approx(
            float(
                keras_loss(
                    labels,
                    logits,
                    np.tile(weights[:, None, None], (1, 3, 4)),
                )
            ),
            rel=1e-6,
        )


def test_labels_of_other_pixels_are_refused():
    labels, logits = batch()
    with pytest.raises(ValueError, match="must have the same pixels"):
        losses.PerClass(losses.Dice())(labels[:1], logits)
