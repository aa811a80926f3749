"""TensorBoard logs of a run that is resumed."""

import shutil

import keras
import numpy as np
import pytest
from helpers import event_steps, sample

from keras_aspp.config.schema import TrainConfig
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.compile import build_optimizer
from keras_aspp.engine.tensorboard import (
    TensorBoard,
    ValidationImages,
    cut_events,
)

STEPS = 4


@pytest.mark.parametrize(
    ("accumulate_steps", "factor", "expected"),
    [
        (1, 1.0, [4, 8]),
        (2, 1.0, [2, 4]),
        # Keras' optimizer of two rates counts batches.
        (2, 0.1, [4, 8]),
    ],
)
def test_events_are_cut_by_the_count_of_the_optimizer(
    tmp_path, accumulate_steps, factor, expected
):
    backbone = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = keras.Sequential([backbone, keras.layers.Dense(1)])
    config = TrainConfig(
        total_epochs=2,
        accumulate_steps=accumulate_steps,
        backbone_learning_rate_factor=factor,
    )
    model.compile(build_optimizer(config, 2 * STEPS, backbone), "mse")
    x, y = sample((2 * STEPS, 3)), np.ones((2 * STEPS, 1), "float32")
    counts = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            counts.append(int(self.model.optimizer.iterations))

    model.fit(
        x,
        y,
        batch_size=2,
        epochs=2,
        validation_data=(x, y),
        callbacks=[TensorBoard(tmp_path, write_graph=False), Count()],
        verbose=0,
    )
    tag = "evaluation_loss_vs_iterations"
    assert event_steps(tmp_path)[tag] == expected
    cut_events(tmp_path, 1, counts[0])
    found = event_steps(tmp_path)
    assert found[tag] == expected[:1]
    assert {*found["epoch_loss"]} == {0}


def test_events_of_other_callbacks_are_kept(tmp_path):
    """In a folder of their own, and by batch in those of the run."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = sample((2 * STEPS, 3)), np.ones((2 * STEPS, 1), "float32")
    by_batch = keras.callbacks.TensorBoard(tmp_path, update_freq=1)
    model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[by_batch])
    shutil.copytree(tmp_path / "train", tmp_path / "mine" / "train")
    batches = event_steps(tmp_path / "mine")["batch_loss"]
    assert len(batches) == 2 * STEPS
    write_images(tmp_path / "images", epochs=2)
    cut_events(tmp_path, 1, STEPS)
    found = event_steps(tmp_path / "train")
    assert found["batch_loss"] == batches
    assert found["epoch_loss"] == [0]
    assert event_steps(tmp_path / "mine")["epoch_loss"] == [0, 1]
    assert event_steps(tmp_path / "images") == {"image, label, prediction": [0]}


def write_images(folder, epochs):
    spec = DatasetSpec(("ground", "box"))
    images, labels = np.zeros((1, 4, 4, 3), "uint8"), np.zeros((1, 4, 4), int)
    shown = ValidationImages(images, labels, spec, folder)
    shown.set_model(PerPixel())
    for epoch in range(epochs):
        shown.on_epoch_begin(epoch)
        shown.on_test_end()


class PerPixel:
    """A model of two classes, as far as images of it are drawn."""

    def preprocess(self, images):
        return images

    def __call__(self, images, training):
        return np.zeros((*images.shape[:3], 2), "float32")
