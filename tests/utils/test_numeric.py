"""Numbers that users give: each wrong one has a clear line."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from keras_aspp import losses, metrics
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int, check_number, check_numbers


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1)", [0, 0.5, np.float32(0.25)], [1, -0.1]),
        ("(0, 1]", [1, 1e-9], [0, 1.1]),
        ("(0, inf)", [5, 1e300], [0, np.inf]),
        ("[0, inf]", [0, np.inf], [-1]),
        ("(-inf, inf)", [-3, 0], [np.inf, -np.inf]),
    ],
)
def test_a_number_is_in_its_interval(interval, inside, outside):
    for value in inside:
        assert check_number("x", value, interval) == float(value)
    for value in [*outside, np.nan, "0.5", None, True, [0.5], 0.5j]:
        with pytest.raises(InputError, match="`x` must be .*Received: x="):
            check_number("x", value, interval)


def test_the_rule_is_named():
    for interval, rule in {
        "[0, 1)": r"in \[0, 1\)",
        "(0, inf)": "a number > 0",
        "[0, inf)": "a number >= 0",
        "(-inf, inf)": "a finite number",
    }.items():
        with pytest.raises(InputError, match=f"`x` must be {rule}. Rec"):
            check_number("x", np.nan, interval)


def test_sequences_of_numbers():
    for values in (
        [1, 2],
        np.float32([1, 2]),
        iter((1, 2)),
        tf.constant([1, 2]),
        [tf.constant(1.0), np.array(2)],
    ):
        assert check_numbers("x", values, "(0, inf)") == (1, 2)
    for values in ("12", {1: 2}, {1, 2}, 1, None, [1, 0], [[1]], [1, None]):
        with pytest.raises(InputError, match="`x` must be a sequence"):
            check_numbers("x", values, "(0, inf)")


def test_ints():
    for value in (2, np.uint8(2), np.array(2), tf.constant(2)):
        assert type(check_int("x", value, 2)) is int
    for value in (1, 2.0, True, "2", None):
        with pytest.raises(InputError, match="`x` must be an int > 1. Rec"):
            check_int("x", value, 2)


REQUIRED = {
    "num_classes": 3,
    "loss": losses.Dice(),
    "losses": [losses.Dice()],
    "weights": [1.0],
}


def numeric_arguments():
    for module in (losses, metrics):
        for name in module.__all__:
            made = getattr(module, name)
            if not inspect.isclass(made) or name == "ScaleRecall":
                continue
            for argument, about in inspect.signature(made).parameters.items():
                if about.annotation in (
                    *("int", "float"),
                    *("Sequence[int]", "Sequence[float]"),
                    "Sequence[float] | None",
                ):
                    yield pytest.param(made, argument, id=f"{name}-{argument}")


@pytest.mark.parametrize("made, argument", numeric_arguments())
def test_losses_and_metrics_refuse_what_is_no_number(made, argument):
    needed = inspect.signature(made).parameters
    given = {name: REQUIRED[name] for name in needed if name in REQUIRED}
    made(**given)
    for wrong in ("five", [[1]], float("nan"), 1j, {1: 2}, [1, [2, 3]]):
        with pytest.raises(InputError, match=f"`{argument}` must"):
            made(**{**given, argument: wrong})
