"""User errors are classes of their own; any other error is internal."""

import ast
import errno
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import keras_aspp as ka
from keras_aspp.utils import exceptions
from keras_aspp.utils.errors import first_line, is_user_error, one_line
from keras_aspp.utils.exceptions import InputError, UserError

PACKAGE = pathlib.Path(ka.__file__).parent
# Built-in errors that the package raises as a subclass of `UserError` only.
BUILTIN = {
    kind.__name__
    for own in vars(exceptions).values()
    if isinstance(own, type) and issubclass(own, UserError)
    for kind in own.__mro__
    if kind.__module__ == "builtins"
} - {"Exception", "BaseException", "object"}
# Files that run in processes without keras_aspp.
ALONE = {"run_alone.py"}


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def of_the_host(error):
    """What an error becomes that a host function of a data set raises."""

    def fail(x):
        raise error

    data = tf.data.Dataset.range(1).map(
        lambda x: tf.numpy_function(fail, [x], tf.int64)
    )
    return raised(lambda: list(data))


def test_the_package_raises_built_in_errors_as_user_errors_only():
    assert BUILTIN >= {"ValueError", "TypeError", "OSError"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                made = getattr(node.exc, "func", node.exc)
                name = getattr(made, "id", None)
                # With a number, an error of the system is passed on.
                numbered = name == "OSError" and len(node.exc.args) > 1
                where = f"{path}:{node.lineno}"
                allowed = path.name in ALONE or numbered
                assert allowed or name not in BUILTIN, where


def test_errors_of_the_package_with_a_name_of_their_own_are_user_errors():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "exceptions.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {getattr(base, "id", None) for base in node.bases}
                assert not bases & BUILTIN, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "error",
    [
        InputError("bad"),
        exceptions.InputTypeError("bad"),
        exceptions.InputNotFoundError("bad"),
        exceptions.OutputExistsError("bad"),
        exceptions.UnavailableError("bad"),
        exceptions.UnreachableError("bad"),
        PermissionError(errno.EACCES, "denied", "a.png"),
        OSError(errno.ENOSPC, "disk full"),
        TimeoutError("timed out"),
        MemoryError("9 GB"),
        tf.errors.ResourceExhaustedError(None, None, "9 GB"),
        tf.errors.NotFoundError(None, None, "a.tfrecord"),
        of_the_host(InputError("Label 9 is bad. File: a.png")),
        of_the_host(PermissionError(errno.EACCES, "denied", "a.png")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_input_and_machine_are_the_users(error):
    assert is_user_error(error)
    assert "\n" not in one_line(error)


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: np.zeros(3).reshape(2)),  # ValueError
        raised(lambda: len(3)),  # TypeError
        raised(lambda: {}["key"]),
        raised(lambda: np.nothing),  # AttributeError
        OSError("Unable to open object"),  # as h5py has them
        tf.errors.InvalidArgumentError(None, None, "Incompatible shapes"),
        of_the_host(ValueError("cannot reshape array")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_code_are_internal(error):
    assert not is_user_error(error)


@pytest.mark.parametrize("kind", [InputError, exceptions.InputNotFoundError])
def test_an_error_through_tensorflow_is_shown_without_its_traceback(kind):
    found = of_the_host(kind("Label 9 is bad. File: a.png"))
    assert one_line(found) == "Label 9 is bad. File: a.png"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first\nsecond"), "first"),
        ("first", "first"),
        (RuntimeError(), ""),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line
