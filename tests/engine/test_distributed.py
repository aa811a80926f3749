"""What a strategy refuses, and who is who; runs: test_two_processes.py."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, sample

from keras_aspp import losses
from keras_aspp.config.schema import TrainConfig
from keras_aspp.engine import distributed
from keras_aspp.engine.cluster import check_supported, make_strategy, worker
from keras_aspp.engine.compile import resolve_jit
from keras_aspp.engine.distributed import (
    prepare,
    share,
    training_batches,
    validation_batches,
)
from keras_aspp.engine.tensorboard import Compilations

SLURM = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "n[2,9-10]",
    "SLURM_JOB_ID": "412345",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables; none is there before, or stays."""

    def set_variables(**values):
        for name in ("TF_CONFIG", *SLURM):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


def cluster(kind, index, **addresses):
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": addresses, "task": task})


@pytest.mark.parametrize(
    "config, place",
    [
        (cluster("worker", 1, worker=["a:1", "b:1"]), (1, 2)),
        (cluster("chief", 0, chief=["a:1"], worker=["b:1", "c:1"]), (0, 3)),
        (cluster("worker", 1, chief=["a:1"], worker=["b:1", "c:1"]), (2, 3)),
    ],
)
def test_place_in_the_cluster(environment, config, place):
    environment(TF_CONFIG=config)
    assert worker("multi_worker") == place
    assert worker("mirrored") == worker("none") == (0, 1)


def test_cluster_of_slurm(environment):
    environment(**SLURM)
    assert worker("multi_worker") == (2, 3)
    import os

    # In Slurm's order, which is not that of letters.
    assert json.loads(os.environ["TF_CONFIG"]) == {
        "cluster": {"worker": ["n2:22345", "n9:22345", "n10:22345"]},
        "task": {"type": "worker", "index": 2},
    }


@pytest.mark.parametrize(
    "variables, message",
    [
        ({}, "Missing: TF_CONFIG, SLURM_PROCID"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "6"}, "Received: 6 tasks on 3"),
        ({"TF_CONFIG": "{"}, "Received: TF_CONFIG={"),
        ({"TF_CONFIG": "[]"}, r"Received: TF_CONFIG=\[\]"),
        ({"TF_CONFIG": cluster("ps", 0, worker=["a:1"])}, "Received: TF_CONF"),
        ({"TF_CONFIG": cluster("worker", 1, worker=["a:1"])}, "a task in it"),
    ],
)
def test_no_cluster(environment, variables, message):
    environment(**variables)
    with pytest.raises(ValueError, match=message):
        worker("multi_worker")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"accumulate_steps": 2}, "inside a condition.*accumulate_steps=2"),
        ({"precision": "mixed_float16"}, "first device only.*mixed_float16"),
        ({"lr_finder": True}, "one device.*strategy=mirrored"),
        ({"batch_size": 3}, "batch_size=3, 2 devices"),
    ],
)
def test_refused_under_a_strategy(fields, message):
    class Two:
        num_replicas_in_sync = 2

    def config(**more):
        return TrainConfig(total_epochs=1, **more)

    with pytest.raises(ValueError, match=message):
        check_supported(config(strategy="mirrored", **fields), Two)
    check_supported(config(**fields), tf.distribute.get_strategy())
    check_supported(config(strategy="mirrored"), Two)


def test_xla_is_refused_under_a_strategy():
    assert resolve_jit("auto", distributed=True) == (
        False,
        "auto: not under tf.distribute",
    )
    assert resolve_jit(False, distributed=True)[0] is False
    with pytest.raises(ValueError, match="Received: train.jit_compile=true"):
        resolve_jit(True, distributed=True)


def test_mirrored_needs_two_devices():
    with pytest.raises(ValueError, match=r"Received: /device:CPU:0"):
        make_strategy("mirrored")


def small_model(**options):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", **options)
    return model


@pytest.mark.parametrize(
    "options, message",
    [
        ({"jit_compile": True}, "Received: jit_compile=True"),
        (
            {"jit_compile": False, "steps_per_execution": 3},
            "Received: steps_per_execution=3",
        ),
    ],
)
def test_a_compiled_model_that_is_not_fit_for_it(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(small_model(**options))


def test_a_loss_that_cannot_be_shared():
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    with pytest.raises(TypeError, match="SparseCategoricalCrossentropy"):
        share(loss, tf.distribute.get_strategy())


def batch_of(loss):
    """`[labels, logits]` of a loss, with as many valid pixels nowhere."""
    classes = 2 if isinstance(loss, losses.LovaszHinge) else 3
    logits = sample((4, 5, 6, classes))
    labels = np.random.default_rng(1).integers(0, classes, (4, 5, 6))
    labels[0, :3] = labels[3, 1:] = 255
    if isinstance(loss, losses.Distillation):
        return [labels, (logits, sample(logits.shape, seed=3))]
    if isinstance(loss, losses.PerClass):
        masks = labels[..., None] == np.arange(classes)
        return [np.where(labels[..., None] == 255, 255, masks), logits]
    return [labels, logits]


@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.CrossEntropy(class_weights=[1, 2, 3], focal_gamma=2.0),
        lambda: losses.CrossEntropy(hard_share=0.3),
        losses.Dice,
        losses.Tversky,
        losses.LovaszSoftmax,
        losses.LovaszHinge,
        lambda: losses.Distillation(temperature=2.0),
        lambda: losses.WeightedSum(
            [losses.CrossEntropy(), losses.LovaszSoftmax()], [0.3, 2.0]
        ),
        lambda: losses.PerClass(
            losses.WeightedSum(
                [losses.CrossEntropy(), losses.Dice(class_weights=(0, 1))],
                [1.0, 0.5],
            ),
            class_weights=(1, 2, 3),
        ),
    ],
)
@pytest.mark.parametrize("weigh", [False, True])
def test_parts_add_up_to_the_loss_of_the_batch(make, weigh, monkeypatch):
    """Two devices by turns: what one sums up is known to the other."""
    batch = batch_of(make())
    if weigh:
        batch.append(np.random.default_rng(2).uniform(0, 3, (4, 5, 6)))
    whole = float(npy(make()(*batch)))
    halves = [
        keras.tree.map_structure(lambda x, half=half: x[half], batch)
        for half in (slice(2), slice(2, 4))
    ]
    strategy = types.SimpleNamespace(num_replicas_in_sync=2)
    sums = []
    while True:  # each sum over devices may depend on the one before
        total, asked = 0.0, [[], []]
        for half, own in zip(halves, asked, strict=True):
            known = iter(sums)

            def everywhere(x, known=known, own=own):
                own.append(npy(x))
                return next(known, x)

            monkeypatch.setattr(distributed, "_sum_over_devices", everywhere)
            total += float(npy(share(make(), strategy)(*half)))
        if len(sums) == len(asked[0]):
            break
        at = len(sums)
        sums.append(asked[0][at] + asked[1][at])
    assert total == pytest.approx(whole, rel=1e-5)
    apart = sum(float(npy(make()(*half))) for half in halves) / 2
    assert apart != pytest.approx(whole, rel=1e-4)


def test_machines_read_their_own_examples():
    class Strategy:
        """Collects the data sets of two machines of two devices each."""

        num_replicas_in_sync = 4

        def distribute_datasets_from_function(self, make):
            return [
                list(make(context).take(4).as_numpy_iterator())
                for context in (
                    tf.distribute.InputContext(2, i, 4) for i in range(2)
                )
            ]

    def make(batch_size, shard):
        numbers = tf.data.Dataset.range(100).shard(shard[1], shard[0])
        return numbers.batch(batch_size)

    machines = training_batches(Strategy(), make, 8)
    assert all(len(batch) == 2 for m in machines for batch in m)
    # Two batches of each device make one of all.
    first = np.concatenate([b for m in machines for b in m[:2]])
    assert sorted(first) == list(range(8))

    images = np.arange(5, dtype="float32").reshape(5, 1, 1, 1) + 1
    labels = np.zeros((5, 1, 1), "int32")
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    first, second = validation_batches(Strategy(), batches, 255)
    pictures = [[x.ravel().tolist() for x, _ in m] for m in (first, second)]
    assert pictures == [[[1], [2], [5], [0]], [[3], [4], [0], [0]]]
    ignored = [[y.ravel().tolist() for _, y in m] for m in (first, second)]
    assert ignored == [[[0], [0], [0], [255]], [[0], [0], [255], [255]]]


def test_compilations_are_counted(tmp_path, capsys):
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    counted = Compilations("XLA off (a reason)", tmp_path)
    assert "train_step" not in vars(model)
    x, y = np.ones((4, 3, 2)), np.ones((4, 3, 1))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[counted])
    first = counted.traces["train_step"]
    model.fit(x, y, batch_size=2, verbose=0)
    assert counted.traces["train_step"] == first
    model.fit(x[:, :2], y[:, :2], batch_size=2, verbose=0)
    assert counted.traces["train_step"] == first + 1
    assert f"train_step {first}; XLA off (a reason)." in capsys.readouterr().out
    (events,) = tmp_path.glob("events*")
    assert b"traces/train_step" in events.read_bytes()
    assert b"a reason" in events.read_bytes()
