"""Every pair of training settings, resumed: equal to the bit.

As a program it resumes one row in a process of its own, with two devices:
test_resume_matrix.py INDEX ... WORKDIR.
"""

import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, make_toy_backbone, npy, sample
from tiny_run import replace

from keras_aspp.config.schema import Config
from keras_aspp.engine.checkpoint import Checkpoints, _variables
from keras_aspp.engine.cluster import check_supported, make_strategy
from keras_aspp.engine.compile import compile_model
from keras_aspp.engine.run import _recalibrate
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.models import DeepLabV3
from keras_aspp.models.segmenter import load_saved
from keras_aspp.utils.exceptions import InputError

FIELDS = {
    "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
    "optimizer": ("sgd", "adamw"),
    "accumulate_steps": (1, 2),
    "ema_momentum": (None, 0.8),
    "backbone_learning_rate_factor": (1.0, 0.1),
    "rematerialize": (False, True),
    "auxiliary_weight": (0.0, 0.4),
    "strategy": ("none", "mirrored"),
    "recalibrate_steps": (0, 2),
}
# Rows of indices into the values of each field.
ROWS = [
    (0, 0, 0, 0, 0, 1, 0, 1, 1),
    (0, 1, 1, 1, 1, 0, 1, 0, 0),
    (1, 0, 0, 1, 1, 1, 1, 0, 1),
    (1, 1, 1, 0, 0, 0, 0, 0, 0),
    (2, 0, 0, 1, 0, 0, 0, 1, 0),
    (2, 0, 1, 0, 1, 1, 0, 0, 1),
    (2, 1, 0, 0, 0, 1, 1, 1, 0),
    (0, 1, 0, 0, 1, 0, 0, 1, 1),
]
SIZE, CLASSES, STEPS = (32, 32), 3, 3


def settings_of(row):
    return {
        name: values[i]
        for (name, values), i in zip(FIELDS.items(), row, strict=True)
    }


def configured(settings):
    """Returns the configuration of settings, but for the model's."""
    train = {k: v for k, v in settings.items() if k != "auxiliary_weight"}
    return replace(Config(), train={**train, "warmup_steps": 1})


def is_supported(pair):
    class Two:
        num_replicas_in_sync = 2

    try:
        check_supported(configured(pair).train, Two)
    except InputError:
        return False
    return True


def test_rows_cover_every_pair_of_values():
    found = [settings_of(row) for row in ROWS]
    for a, b in itertools.combinations(FIELDS, 2):
        pairs = itertools.product(FIELDS[a], FIELDS[b])
        pairs = {(x, y) for x, y in pairs if is_supported({a: x, b: y})}
        assert {(row[a], row[b]) for row in found} == pairs


def batches(first):
    x = sample((8, *SIZE, 3))
    y = (x[..., 0] > 0).astype("int32") + (x[..., 1] > 0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    return data.skip(first)


def run(workdir, settings):
    """Trains two epochs, or from the newest checkpoint on, and recalibrates.

    Returns:
        list of arrays: the variables of model and optimizer at the end, then
        those of the best model.
    """
    keras.utils.set_random_seed(3)
    config = configured(settings)
    strategy = make_strategy(config.train.strategy)
    check_supported(config.train, strategy)
    with strategy.scope():
        model = build(settings)
        compile_model(model, config.train, 2 * STEPS, ignore_label=255)
        averages = None
        if config.train.ema_momentum:
            averages = keras.callbacks.SwapEMAWeights()
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
    best = checkpoints.store.best_model
    if config.train.recalibrate_steps:
        taken = batches(0).take(config.train.recalibrate_steps)
        before = load_saved(best).get_weights()
        _recalibrate(best, taken, lambda path: {"mean_iou": 0.0})
        after = load_saved(best).get_weights()
        # The resumed run may recalibrate what is recalibrated already.
        changed = any(
            (a != b).any() for a, b in zip(before, after, strict=True)
        )
        assert changed or begun
    return [npy(v) for v in (*_variables(model), *load_saved(best).weights)]


def build(settings):
    precision = settings["precision"]
    return DeepLabV3(
        CLASSES,
        make_toy_backbone(padding=1, dtype=precision),
        atrous_rates=(1,),
        aspp_filters=4,
        dropout=0.3,
        rematerialize=settings["rematerialize"],
        auxiliary_weight=settings["auxiliary_weight"],
        dtype=precision,
    )


@pytest.mark.slow  # two short trainings a row
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_resumed_run_ends_in_the_same_bits(row, tmp_path):
    settings = settings_of(row)
    if settings["strategy"] == "none":
        check_row(settings, tmp_path)
        return
    # Devices must be known before TensorFlow computes anything.
    paths = [str(ROOT), str(ROOT / "tests")]
    subprocess.run(
        [sys.executable, __file__, *map(str, row), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def check_row(settings, workdir):
    expected = run(workdir, settings)
    # What a run that was killed in its second epoch leaves.
    shutil.rmtree(workdir / "checkpoints" / "epoch_00002")
    found = run(workdir, settings)
    with np.load(workdir / "checkpoints/epoch_00001/variables.npz") as state:
        assert np.abs(state["00000"] - expected[0]).max() > 0  # it trained on
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


if __name__ == "__main__":
    *indices, folder = sys.argv[1:]
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    check_row(settings_of(map(int, indices)), pathlib.Path(folder))
