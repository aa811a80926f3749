"""TensorBoard logs of a run that is resumed."""

import keras
import numpy as np
import pytest
from helpers import event_steps, sample

from keras_aspp.config.schema import TrainConfig
from keras_aspp.engine.compile import build_optimizer
from keras_aspp.engine.tensorboard import TensorBoard, cut_events

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
