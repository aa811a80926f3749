"""Every pair of training settings, resumed: equal to the bit."""

import dataclasses
import itertools
import shutil

import forked
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, make_small_backbone, npy, sample
from tiny_run import replace

from keras_aspp.config.schema import Config, TrainConfig
from keras_aspp.engine.checkpoint import Checkpoints, _variables
from keras_aspp.engine.cluster import check_supported, make_strategy
from keras_aspp.engine.compile import compile_model
from keras_aspp.engine.run import _recalibrate
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.engine.train import _validation_epochs
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
    "validate_every_epochs": (1, 2),
}
# Rows of indices into the values of each field; few of two devices, which take
# twice the time.
ROWS = [
    (2, 0, 0, 0, 1, 1, 1, 1, 0, 0),
    (0, 1, 0, 1, 0, 0, 0, 1, 1, 1),
    (1, 0, 1, 0, 0, 0, 1, 0, 1, 1),
    (2, 1, 1, 1, 0, 0, 1, 0, 0, 0),
    (0, 0, 1, 0, 1, 1, 0, 0, 0, 1),
    (1, 1, 0, 1, 1, 1, 0, 0, 0, 0),
    (0, 1, 1, 0, 0, 1, 1, 0, 1, 0),
    (2, 0, 1, 1, 1, 0, 0, 0, 1, 1),
]
# Fields that every row has, at values that matter.
OF_EACH_ROW = {
    "learning_rate",
    "loss",
    "schedule_power",
    "warmup_steps",
    "weight_decay",
}
_SEEN = "data/test_pipeline.py test_resumed_run_sees_what_it_would_have_seen"
_DISTILLED = (
    "engine/test_distill.py "
    "test_a_run_learns_from_a_workdir_and_resumes_to_the_same_bits"
)
_ROUNDED = (
    "engine/test_quantize_aware.py "
    "test_a_run_rounds_its_last_epochs_and_resumes"
)
_CHANGES = "engine/test_checkpoint.py test_changes_are_told_or_refused"
_DURATIONS = (
    "integration/test_resume_matrix.py test_durations_are_epochs_and_steps"
)
# All others, and where a run is resumed with them; for those that do not last
# through training, where they are tested.
ELSEWHERE = {
    "total_epochs": "engine/test_run.py test_damaged_checkpoint_is_skipped",
    "total_steps": _DURATIONS,
    "total_examples": _DURATIONS,
    "batch_size": "data/test_pipeline.py test_resume_from_within_a_batch",
    "seed": _SEEN,
    "distill_from": _DISTILLED,
    "distill_weight": _DISTILLED,
    "distill_temperature": _DISTILLED,
    "quantize_aware": _ROUNDED,
    "quantize_aware_epochs": _ROUNDED,
    "jit_compile": "integration/test_resume_matrix.py "
    "test_a_resumed_run_of_xla_ends_in_the_same_bits",
    "early_stopping_epochs": "engine/test_checkpoint.py "
    "test_patience_is_remembered",
    "keep_checkpoints": _CHANGES,
    "checkpoint_steps": "engine/test_checkpoint.py "
    "test_a_run_cut_within_an_epoch_ends_in_the_same_bits",
    # Instead of training.
    "lr_finder": "engine/test_lr_finder.py test_range_test",
    # At the end, from the best model.
    "threshold": "integration/test_binary_task.py "
    "test_training_stores_the_best_threshold_and_reports_the_object",
    # Their state is the user's.
    "callbacks": "engine/test_callbacks.py "
    "test_a_configuration_of_callbacks_is_the_same_after_a_reload",
}
SIZE, CLASSES, STEPS = (32, 32), 3, 3


def test_every_field_of_training_is_resumed_somewhere():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    of_rows = {*FIELDS} - {"auxiliary_weight"}  # of the model
    assert of_rows | OF_EACH_ROW | {*ELSEWHERE} == fields
    assert len(of_rows) + len(OF_EACH_ROW) + len(ELSEWHERE) == len(fields)
    for place in {*ELSEWHERE.values()}:
        file, test = place.split()
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), place


@pytest.mark.parametrize(
    "duration, expected",
    [
        ({"total_epochs": 3}, (3, 3)),
        # Not fewer steps than asked for, in epochs of at most one pass.
        ({"total_steps": 7}, (3, 3)),
        ({"total_examples": 17}, (2, 3)),
        ({"total_steps": 1000}, (50, 20)),
    ],
)
def test_durations_are_epochs_and_steps(duration, expected):
    assert TrainConfig(batch_size=4, **duration).duration(10) == expected


def settings_of(row):
    return {
        name: values[i]
        for (name, values), i in zip(FIELDS.items(), row, strict=True)
    }


def is_shared(row):
    return settings_of(row)["strategy"] == "mirrored"


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
        validation_freq=_validation_epochs(config.train, 2),
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
        make_small_backbone(precision),
        atrous_rates=(1,),
        aspp_filters=4,
        image_pooling=False,
        dropout=0.3,
        rematerialize=settings["rematerialize"],
        auxiliary_weight=settings["auxiliary_weight"],
        dtype=precision,
    )


@pytest.mark.parametrize("row", [r for r in ROWS if not is_shared(r)], ids=str)
def test_a_resumed_run_ends_in_the_same_bits(row, tmp_path):
    check_row(settings_of(row), tmp_path)


@pytest.mark.parametrize("row", [r for r in ROWS if is_shared(r)], ids=str)
def test_a_resumed_run_of_two_devices_ends_in_the_same_bits(row, tmp_path):
    """In a process of its own, which has one set of collective operations."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    forked.finish(
        forked.start(tmp_path / "log", check_shared_row, row, workdir)
    )


def test_a_resumed_run_of_xla_ends_in_the_same_bits(tmp_path):
    settings = settings_of([0] * len(FIELDS))
    check_row({**settings, "jit_compile": True}, tmp_path)


def check_row(settings, workdir):
    expected = run(workdir, settings)
    # What a run that was killed in its second epoch leaves.
    shutil.rmtree(workdir / "checkpoints" / "epoch_00002")
    found = run(workdir, settings)
    with np.load(workdir / "checkpoints/epoch_00001/variables.npz") as state:
        assert np.abs(state["00000"] - expected[0]).max() > 0  # it trained on
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def check_shared_row(row, folder):
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    check_row(settings_of(row), folder)
