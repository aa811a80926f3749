"""What a run says when it does not learn."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy
from tiny_run import (
    CLASS_NAMES,
    replace,
    small_config,
    tiny_config,
    write_folder,
)

from keras_aspp.config.schema import Config, LossConfig
from keras_aspp.data.pipeline import images_of_batch
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.checkpoint import Checkpoints
from keras_aspp.engine.monitor import TrainingMonitor
from keras_aspp.engine.run import train
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.models import DeepLabV3

SPEC = DatasetSpec(CLASS_NAMES)


def watch(steps=200, **kwargs):
    return TrainingMonitor(
        SPEC, lambda step: [f"of {step}.png"], steps, **kwargs
    )


def said(capsys):
    return [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("Warning")
    ]


def with_predictions(shares):
    """A model whose metric has seen that many pixels of each class."""
    matrix = ConfusionMatrix(3)
    labels = np.repeat(np.arange(3), 1000)[None, None]
    predicted = np.repeat(np.arange(3), shares)[None, None]
    matrix.update_state(labels, predicted)

    class Model:
        metrics = [matrix]

    return Model()


@pytest.mark.parametrize(
    "shares, warned", [((2999, 1, 0), True), ((2900, 100, 0), False)]
)
def test_collapse_is_said_once(capsys, shares, warned):
    callback = watch()
    callback.set_model(with_predictions(shares))
    callback.on_test_end()
    assert not said(capsys)  # the line of the epoch comes first
    callback.on_epoch_end(0)
    callback.on_test_end()
    callback.on_epoch_end(1)
    found = said(capsys)
    assert len(found) == warned
    assert all("100.0% of the validation pixels" in f for f in found)
    assert all("ground, 33.3% are labeled so" in f for f in found)


@pytest.mark.parametrize(
    ("task", "loss", "advised"),
    [
        ("semantic", LossConfig(), True),
        ("semantic", LossConfig(dice=0.5), False),
        ("semantic", LossConfig(lovasz=1.0), False),
        ("binary", LossConfig(), False),
        ("binary", LossConfig(dice=0.0), True),
    ],
)
def test_dice_is_advised_only_where_no_loss_of_overlap_is_on(
    task, loss, advised, capsys
):
    spec = DatasetSpec(CLASS_NAMES[:2], task=task)
    callback = TrainingMonitor(spec, list, 200, loss=loss)
    callback.set_model(with_predictions((3000, 0, 0)))
    callback.on_test_end()
    callback.on_epoch_end(0)
    (found,) = said(capsys)
    assert ("train.loss.dice" in found) == advised
    assert "another learning rate" in found


@pytest.mark.parametrize(
    "last, is_trained, warned",
    [
        (4.0, False, "too high"),
        (4.0, True, "too high"),
        (1.99, False, "too low"),
        (1.99, True, None),
        (1.0, False, None),
    ],
)
def test_a_learning_rate_that_is_far_off(capsys, last, is_trained, warned):
    callback = watch(is_trained=is_trained)
    callback.on_epoch_begin(0)
    for batch in range(10):
        callback.on_train_batch_end(batch, {"loss": 2.0})
    callback.on_epoch_end(0, {"loss": last})
    callback.on_epoch_end(1, {"loss": last})
    found = said(capsys)
    assert len(found) == (warned is not None)
    assert all(warned in f and "train.lr_finder" in f for f in found)


def test_a_short_epoch_says_nothing_of_the_rate(capsys):
    callback = watch(steps=20)
    for batch in range(10):
        callback.on_train_batch_end(batch, {"loss": 2.0})
    callback.on_epoch_end(0, {"loss": 2.0})
    assert not said(capsys)


def test_a_batch_without_valid_pixels_is_said_once(capsys):
    labels = np.full((4, 2, 5, 5), 255, "int32")
    labels[0, 0, 0, 0] = 1
    callback = watch()
    batches = tf.data.Dataset.from_tensor_slices((labels, labels))
    batches = batches.map(callback.check_batch)
    list(batches.take(1))
    assert not said(capsys)
    (_, seen), *_ = list(batches)
    np.testing.assert_array_equal(seen, labels[0])
    (warning,) = said(capsys)
    assert "only ignored pixels" in warning


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, tiny_folder):
    config = small_config(tiny_folder)
    real = TrainingMonitor.on_train_batch_end

    def poisoned(self, batch, logs=None):
        # Steps of 2 pictures out of 3: the second epoch's last is step 3.
        if self.epoch == 1 and batch == 1:
            logs = {"loss": float("nan")}
        real(self, batch, logs)

    patched = pytest.MonkeyPatch()
    patched.setattr(TrainingMonitor, "on_train_batch_end", poisoned)
    with pytest.raises(ValueError, match="not finite at step 3") as raised:
        train(config, tmp_path / "run")
    patched.undo()
    assert str(raised.value).count("train_") == 2
    states = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert states == ["epoch_00001"]
    assert (tmp_path / "run" / "model.keras").is_file()


@pytest.mark.slow
def test_divergence_is_found_by_itself(tmp_path, tiny_folder):
    config = small_config(tiny_folder, learning_rate=1e30)
    with pytest.raises(ValueError, match="loss is not finite at step"):
        train(config, tmp_path / "run")


def test_pictures_of_a_batch_are_those_it_was_made_of(tmp_path):
    from keras_aspp.data.augment import AugmentConfig
    from keras_aspp.data.folder import FolderSource
    from keras_aspp.data.pipeline import training_dataset

    root = write_folder(tmp_path, sizes=((64, 96),) * 5)
    source = FolderSource(root)
    keras.utils.set_random_seed(3)  # must not matter
    plain = AugmentConfig((1.0, 1.0), False, 0.0, 0.0, 0.0, 0.0)
    batches = training_dataset(
        source, "train", plain, (64, 96), 2, lambda x: x, seed=4
    )
    pictures = {
        image: source.decode(image, mask)[0]
        for image, mask in source.pairs["train"]
    }
    for step, (images, _) in enumerate(batches.take(6)):
        names = images_of_batch(source, "train", 2, 4, step)
        for image, name in zip(images.numpy(), names, strict=True):
            np.testing.assert_allclose(image, pictures[name], atol=1e-3)


@pytest.mark.slow
def test_averaged_weights_are_what_is_validated_and_kept(tmp_path, tiny_folder):
    config = tiny_config(
        tiny_folder,
        total_epochs=3,
        ema_momentum=0.9,
        precision="mixed_bfloat16",
        recalibrate_steps=2,
    )
    metrics = train(config, tmp_path / "run")
    with open(tmp_path / "run" / "logs" / "history.csv") as file:
        scores = [float(r["val_mean_iou"]) for r in csv.DictReader(file)]
    # Float32 against the bfloat16 of the run, and fresh statistics.
    assert metrics["mean_iou"] >= max(scores) - 0.05
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    assert dtypes == {"float32"}
    config = replace(config, train={"recalibrate_steps": 0})
    assert train(config, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_the_best_model_is_that_of_the_averages(toy_backbone, tmp_path):
    model = DeepLabV3(3, toy_backbone(padding=1), atrous_rates=(1, 2))
    model.compile(keras.optimizers.SGD(0.5, use_ema=True), "mse")
    x = np.ones((2, 64, 64, 3), "float32")
    model.train_on_batch(x, np.ones((2, 64, 64, 3)))
    model.train_on_batch(x, np.zeros((2, 64, 64, 3)))
    averages = keras.callbacks.SwapEMAWeights()
    checkpoints = Checkpoints(
        CheckpointStore(tmp_path, 2), Config(), averages=averages
    )
    for callback in (averages, checkpoints):
        callback.set_model(model)
    before = [npy(w).copy() for w in model.trainable_weights]
    means = [
        npy(w).copy() for w in model.optimizer._model_variables_moving_average
    ]
    checkpoints.on_epoch_end(0, {"val_mean_iou": 0.5})
    saved = keras.saving.load_model(tmp_path / "model.keras")
    moved = 0
    for weight, mean, own in zip(
        saved.trainable_weights, means, before, strict=True
    ):
        np.testing.assert_allclose(npy(weight), mean, atol=1e-5)
        moved += not np.allclose(mean, own, atol=1e-4)
    assert moved > 5
    # And training goes on from its own weights.
    for weight, own in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_allclose(npy(weight), own, atol=1e-5)


def test_weights_that_are_no_numbers_are_no_checkpoint(toy_backbone, tmp_path):
    model = DeepLabV3(3, toy_backbone(padding=1), atrous_rates=(1, 2))
    model.compile("sgd", "mse")
    checkpoints = Checkpoints(CheckpointStore(tmp_path, 2), Config())
    checkpoints.set_model(model)
    checkpoints.on_epoch_end(0)
    weight = model.trainable_weights[0]
    weight.assign(npy(weight) * np.nan)
    with pytest.raises(ValueError, match="not finite after epoch 2"):
        checkpoints.on_epoch_end(1)
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert names == ["epoch_00001"]
