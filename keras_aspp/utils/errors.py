"""Reports of errors: the user's in one line, internal ones as such."""

from __future__ import annotations

import re
import sys
import urllib.error

from keras_aspp.utils import exceptions
from keras_aspp.utils.text import printable

# Longer ones repeat the invalid value.
MAX_MESSAGE = 1500
# Errors of the machine, which the package does not raise itself. Timeouts and
# failed downloads have no `errno`.
_OF_THE_MACHINE = (
    MemoryError,
    ConnectionError,
    TimeoutError,
    urllib.error.URLError,
)
# The same, as TensorFlow's runtime raises them.
_OF_THE_MACHINE_IN_TENSORFLOW = (
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "DataLossError",
    "UnavailableError",
)
_NAMES = "|".join(
    [
        *(name for name in vars(exceptions) if name.endswith("Error")),
        *("FileNotFoundError", "PermissionError", "OSError", "MemoryError"),
    ]
)
# TensorFlow's message of an error in a host function.
_RAISED_ON_THE_HOST = re.compile(
    rf"^(?:.*: )?(?:{_NAMES}): (.+)\nTraceback \(most recent", re.MULTILINE
)


def is_user_error(error: BaseException) -> bool:
    """Returns True if an exception is reported to the user in one line.

    These are the errors that the package raises on purpose (`UserError`, also
    within a function that TensorFlow calls) and those of the machine: the
    operating system, the memory, the network. Any other error is internal.

    Args:
        error: exception.
    """
    if isinstance(error, (exceptions.UserError, *_OF_THE_MACHINE)):
        return True
    if isinstance(error, OSError):
        # Raised by the system itself, and not by a library of file formats.
        return error.errno is not None
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & set(_OF_THE_MACHINE_IN_TENSORFLOW)
        or _RAISED_ON_THE_HOST.search(str(error))
    )


def one_line(error: BaseException | str) -> str:
    """Returns the message of an error as one line of printable characters.

    Args:
        error: exception or warning.
    """
    message = printable(_message(error))
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE - 200]} [...] {message[-200:]}"
    return message


def first_line(error: BaseException | str) -> str:
    """Returns the first line of a message that has text, or an empty str.

    Args:
        error: exception, or its message.
    """
    return next(iter(str(error).strip().splitlines()), "")


def _message(error):
    """The message of an error, without the traceback of a host function."""
    text = str(error)
    raised = _RAISED_ON_THE_HOST.search(text)
    if raised:
        return raised[1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__
