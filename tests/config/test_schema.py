"""Settings of a configuration: how long a run trains."""

import pytest

from keras_aspp.config.schema import TrainConfig


@pytest.mark.parametrize(
    "duration, expected",
    [
        # 8 images in batches of 8: one step is a pass. Fifty epochs of one
        # step are too few, and of two steps too many.
        ({"total_steps": 50}, (50, 1)),
        ({"total_steps": 51}, (26, 2)),
        ({"total_steps": 101}, (34, 3)),
        ({"total_examples": 408}, (26, 2)),
    ],
)
def test_many_passes_are_at_most_fifty_epochs(duration, expected):
    assert TrainConfig(batch_size=8, **duration).duration(8) == expected


@pytest.mark.parametrize("num_examples", [3, 20, 47])
def test_a_run_exceeds_its_steps_by_less_than_an_epoch(num_examples):
    for total in range(1, 600):
        config = TrainConfig(batch_size=8, total_steps=total)
        epochs, steps = config.duration(num_examples)
        assert (epochs - 1) * steps < total <= epochs * steps
        assert epochs <= 50
