"""Every pair of training settings, resumed: equal to the bit."""

import itertools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, sample
from tiny_run import replace

from keras_aspp.config.schema import Config
from keras_aspp.engine.checkpoint import Checkpoints, _variables
from keras_aspp.engine.compile import compile_model
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.models import DeepLabV3

FIELDS = {
    "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
    "optimizer": ("sgd", "adamw"),
    "accumulate_steps": (1, 2),
    "ema_momentum": (None, 0.8),
    "backbone_learning_rate_factor": (1.0, 0.1),
    "rematerialize": (False, True),
    "auxiliary_weight": (0.0, 0.4),
}
# Rows of indices into the values of each field.
ROWS = [
    (0, 0, 0, 0, 0, 1, 0),
    (0, 1, 1, 1, 1, 0, 1),
    (1, 0, 0, 1, 1, 1, 1),
    (1, 1, 1, 0, 0, 0, 0),
    (2, 0, 0, 1, 0, 0, 0),
    (2, 0, 1, 0, 1, 1, 0),
    (2, 1, 0, 0, 0, 1, 1),
]
SIZE, CLASSES, STEPS = (32, 32), 3, 3


def test_rows_cover_every_pair_of_values():
    for a, b in itertools.combinations(range(len(FIELDS)), 2):
        counts = [len(list(FIELDS.values())[i]) for i in (a, b)]
        pairs = set(itertools.product(*map(range, counts)))
        assert {(row[a], row[b]) for row in ROWS} == pairs


def batches(first):
    x = sample((8, *SIZE, 3))
    y = (x[..., 0] > 0).astype("int32") + (x[..., 1] > 0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    return data.skip(first)


def run(workdir, settings, toy_backbone):
    """Trains two epochs, or from the newest checkpoint on.

    Returns:
        list of arrays: the variables of model and optimizer at the end.
    """
    keras.utils.set_random_seed(3)
    precision = settings["precision"]
    model = DeepLabV3(
        CLASSES,
        toy_backbone(padding=1, dtype=precision),
        atrous_rates=(1,),
        aspp_filters=4,
        dropout=0.3,
        rematerialize=settings["rematerialize"],
        auxiliary_weight=settings["auxiliary_weight"],
        dtype=precision,
    )
    train = {k: v for k, v in settings.items() if k != "auxiliary_weight"}
    config = replace(Config(), train={**train, "warmup_steps": 1})
    averages = None
    if config.train.ema_momentum:
        averages = keras.callbacks.SwapEMAWeights()
    compile_model(model, config.train, 2 * STEPS, ignore_label=255)
    checkpoints = Checkpoints(
        CheckpointStore(workdir, config.train.keep_checkpoints),
        config,
        {"train": 8},
        averages,
        STEPS,
    )
    checkpoints.restore(model)
    begun = checkpoints.epochs
    assert begun == len(list(workdir.glob("checkpoints/epoch_*")))
    model.fit(
        batches(begun * STEPS),
        validation_data=batches(0).take(1),
        initial_epoch=begun,
        epochs=2,
        steps_per_epoch=STEPS,
        shuffle=False,
        callbacks=[*([averages] if averages else []), checkpoints],
        verbose=0,
    )
    return [npy(v) for v in _variables(model)]


@pytest.mark.slow  # two short trainings a row
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_resumed_run_ends_in_the_same_bits(row, tmp_path, toy_backbone):
    settings = {
        name: values[i]
        for (name, values), i in zip(FIELDS.items(), row, strict=True)
    }
    expected = run(tmp_path, settings, toy_backbone)
    # What a run that was killed in its second epoch leaves.
    shutil.rmtree(tmp_path / "checkpoints" / "epoch_00002")
    found = run(tmp_path, settings, toy_backbone)
    with np.load(tmp_path / "checkpoints/epoch_00001/variables.npz") as state:
        assert np.abs(state["00000"] - expected[0]).max() > 0  # it trained on
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
