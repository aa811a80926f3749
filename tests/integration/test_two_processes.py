"""Two devices, and two processes, give what one gives."""

import csv
import json
import shutil
import socket

import forked
import numpy as np
import pytest
import run_strategy
from tiny_run import small_config, write_folder

from keras_aspp.models.segmenter import load_saved

# Of weights; and of what is kept beside them, statistics and momenta, which
# no learning rate makes smaller.
TOLERANCE, OF_THE_REST = 1e-5, 1e-4
# Share of pixels whose two best scores may be that close.
TIES = 5e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("data"))
    small_config(root)  # writes the segmenter
    return root


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The run of one process on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    run_strategy.train("none", folder, workdir)
    return workdir


def start(strategy, folder, workdir, resume=False, **environment):
    index = len(list(workdir.parent.glob("*.log")))
    return forked.start(
        workdir.parent / f"{index}.log",
        run_strategy.train,
        *(strategy, folder, workdir, resume),
        **environment,
    )


def two_processes(folder, workdir, resume=False):
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    cluster = {"worker": addresses}
    tasks = [{"type": "worker", "index": i} for i in range(2)]
    return forked.finish(
        *(
            start(
                *("multi_worker", folder, workdir, resume),
                TF_CONFIG=json.dumps({"cluster": cluster, "task": task}),
            )
            for task in tasks
        )
    )


def variables(workdir):
    """Model and optimizer after the last epoch, moving averages included."""
    with np.load(workdir / "checkpoints/epoch_00002/variables.npz") as arrays:
        return [arrays[name] for name in arrays.files]


def read_metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def assert_nearly_equal(actual, expected):
    """Compares nested metrics; numbers may differ by what ties may change."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_nearly_equal(actual[name], value)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=10 * TIES, nan_ok=True)
    else:
        assert actual == expected


def losses_of_training(workdir):
    names = ["auxiliary_loss", "distillation_loss"]
    with open(workdir / "logs/history.csv") as file:
        rows = list(csv.DictReader(file))
    assert not {f"val_{name}" for name in names} & rows[0].keys()
    return [float(row[name]) for row in rows for name in names]


def assert_same_run(workdir, alone):
    assert losses_of_training(workdir) == pytest.approx(
        losses_of_training(alone), rel=1e-4
    )
    expected = variables(alone)
    actual = variables(workdir)
    assert len(actual) == len(expected) > 90
    model = load_saved(alone)
    learned = [variable.trainable for variable in model.variables]
    learned += [False] * (len(expected) - len(learned))
    for a, b, weight in zip(actual, expected, learned, strict=True):
        tolerance = TOLERANCE if weight else OF_THE_REST
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
    # Each labeled pixel is counted once; where two scores are nearly equal,
    # sums of another order may predict the other class.
    expected = np.load(alone / "validation.npy")
    assert expected.sum() > 3 * 60 * 60
    actual = np.load(workdir / "validation.npy")
    np.testing.assert_array_equal(actual.sum(axis=1), expected.sum(axis=1))
    assert np.abs(actual - expected).sum() / 2 <= TIES * expected.sum()
    assert_nearly_equal(read_metrics(workdir), read_metrics(alone))


def test_two_devices(folder, alone, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (printed,) = forked.finish(start("mirrored", folder, workdir))
    assert "; 2 devices" in printed
    assert "XLA off (auto: not under tf.distribute)" in printed
    assert_same_run(workdir, alone)


def test_two_processes_and_resumed(folder, alone, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    chief, other = two_processes(folder, workdir)
    assert "2 devices of 2 machines, this is 0" in chief
    assert "2 devices of 2 machines, this is 1" in other
    assert_same_run(workdir, alone)
    # As if they had been killed in the second epoch.
    shutil.rmtree(workdir / "checkpoints" / "epoch_00002")
    chief, other = two_processes(folder, workdir, resume=True)
    assert "Resumed after epoch 1" in chief
    assert "Resumed after epoch 1" in other
    assert_same_run(workdir, alone)
