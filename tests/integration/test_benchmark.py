"""The benchmark's machinery; what it measures is in docs/performance.md."""

import json

import numpy as np
import pytest

from benchmarks import run, runtimes
from benchmarks.workloads import COMPARISONS


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["speed"], "COMPARISON must be of ceiling, .*Received: speed"),
        (["import", "--rounds", "0"], "`--rounds` must be > 0. Received: 0"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run.run([*arguments, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_targets_name_sides_that_there_are():
    for name, comparison in COMPARISONS.items():
        for target in comparison.targets:
            assert {target.side, target.other} <= set(comparison.sides), name
            assert target.of in ("seconds", "peak_bytes")


def test_the_list(capsys):
    assert run.run(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(COMPARISONS)


def test_sides_take_turns(tmp_path, capsys):
    name, rounds = "form_resize_xla", 3
    arguments = [name, "--rounds", str(rounds), "--output", str(tmp_path)]
    assert run.run(arguments) == 0
    assert "ours / Keras, seconds: " in capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert result["comparison"] == name
    assert result["commit"] != "unknown" and result["versions"]["keras"]
    for side in result["sides"].values():
        assert len(side["seconds"]) == rounds
        assert 0 < min(side["seconds"]) <= side["median_seconds"]
        # A process that has imported TensorFlow, in bytes.
        assert 2**28 < side["peak_bytes"] < 2**32
        # Not below all of the others, though a busy machine slows some.
        assert side["first_step_seconds"] > min(side["seconds"])
    (target,) = result["targets"]
    ours, keras = (result["sides"][s] for s in ("ours", "Keras"))
    share = ours["median_seconds"] / keras["median_seconds"]
    assert target["measured"] == pytest.approx(share)
    assert target["met"] == (share <= 1)


def test_a_side_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_ASPP_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"evaluate: evaluate failed: .*nowh"):
        run.compare("evaluate", 1)


@pytest.mark.parametrize(
    "operation, part",
    [
        ("deeplab_v3_plus_1/aspp_1/atrous_1_1/Relu", "aspp"),
        ("gradient_tape/net_1/low_level_1/conv_1/Conv2D", "low_level"),
        ("sgd/Mul_431", "the rest: loss, optimizer, labels"),
        (
            "compile_loss/cross_entropy/Mean",
            "the rest: loss, optimizer, labels",
        ),
    ],
)
def test_an_operation_belongs_to_a_layer_of_the_model(operation, part):
    assert run.part_of(operation) == part


def test_equal_masks_of_runtimes_are_counted_by_pixel():
    base, reference = runtimes.BASE, runtimes.REFERENCE
    masks = {
        reference: np.eye(4, dtype="uint8")[None],
        base: np.zeros((1, 4, 4)),
    }
    found = runtimes.measure(
        {name: lambda _, given=given: given for name, given in masks.items()},
        [None],
        rounds=1,
    )
    # Each pixel has one class of four, which finding nothing misses.
    assert found[base]["agreement"] == 0
    assert found[reference]["agreement"] == 1
