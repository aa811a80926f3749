"""From `LossConfig` to a loss."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_run import replace, small_config

from keras_aspp import losses
from keras_aspp.config.schema import LossConfig
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.loss import build_loss, resolve_class_weights
from keras_aspp.engine.run import train

SPEC = DatasetSpec(["sky", "road", "car"])
MEDIAN = (6 / 7 + 1 / 4) / 2


def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 6, 5)).astype("int32")
    labels[0, :2] = 255
    return labels, rng.normal(size=(2, 6, 5, 3)).astype("float32")


def source(*masks):
    """Two records, as a source has them."""
    return types.SimpleNamespace(
        spec=SPEC,
        records=lambda split: tf.data.Dataset.range(len(masks)).map(
            lambda i: (i,)
        ),
        decode=lambda i: (None, np.array(masks[i])),
    )


def test_default_is_keras_own():
    loss = build_loss(LossConfig(), 255)
    assert type(loss) is keras.losses.SparseCategoricalCrossentropy
    assert loss.ignore_class == 255


def test_every_field_arrives():
    config = LossConfig(
        cross_entropy=0.5,
        dice=0.25,
        tversky=2.0,
        lovasz=1.5,
        focal_gamma=1.0,
        label_smoothing=0.1,
        hard_share=0.4,
        boundary_weight=3.0,
        boundary_px=1,
        tversky_alpha=0.1,
        tversky_beta=0.8,
    )
    weights = [1.0, 2.0, 3.0]
    labels, logits = batch()
    expected = (
        0.5
        * losses.CrossEntropy(255, weights, 1.0, 0.1, 0.4, 3.0, 1)(
            labels, logits
        )
        + 0.25 * losses.Dice()(labels, logits)
        + 2.0 * losses.Tversky(255, 0.1, 0.8)(labels, logits)
        + 1.5 * losses.LovaszSoftmax()(labels, logits)
    )
    loss = build_loss(config, 255, weights)
    assert float(loss(labels, logits)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    "kind, expected",
    [
        # sky is 6 of 7 valid pixels, road 1 of 4; car is never seen.
        ("median_frequency", [MEDIAN * 7 / 6, MEDIAN * 4, 0.0]),
        ("effective_number", [2000 / 2999, 3998 / 2999, 0.0]),
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
        (None, None),
    ],
)
def test_class_weights(kind, expected):
    masks = source([[0, 0, 0, 1]], [[0, 255, 255, 0], [255, 255, 255, 0]])
    found = resolve_class_weights(LossConfig(class_weights=kind), masks, "x")
    assert found == (expected and pytest.approx(expected, rel=1e-3))


def test_class_weights_of_another_length():
    config = LossConfig(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="2 weights, classes=.*'road'"):
        resolve_class_weights(config, source(), "x")


@pytest.mark.parametrize("weights", [{"dice": -1.0}, {"cross_entropy": 0.0}])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ValueError, match="Weights of losses must be >= 0"):
        LossConfig(**weights)


@pytest.mark.slow
def test_a_run_with_weights_of_its_classes(tmp_path, tiny_folder, capsys):
    config = small_config(tiny_folder, total_epochs=1)
    config = replace(
        config,
        train={
            "loss": LossConfig(
                dice=1.0, class_weights="median_frequency", hard_share=0.5
            )
        },
    )
    metrics = train(config, tmp_path / "run")
    assert np.isfinite(metrics["mean_iou"])
    assert "Class weights: " in capsys.readouterr().out
