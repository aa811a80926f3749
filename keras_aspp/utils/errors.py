"""Errors as one line for the user."""

from keras_aspp.utils.text import printable

# Longer ones repeat a value that is itself at fault.
MAX_MESSAGE = 1500


def is_user_error(error):
    """Whether an error tells of the input, and is no fault of ours."""
    if isinstance(error, (ValueError, TypeError, OSError, MemoryError)):
        return True
    import tensorflow as tf

    return isinstance(error, tf.errors.OpError)


def one_line(error):
    """The message of an error, as one line of printable characters."""
    message = printable(_message(error))
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE - 200]} [...] {message[-200:]}"
    return message


def _message(error):
    """The message of an error, without a traceback.

    A host function's error reaches us through TensorFlow with a traceback in
    front; its last `...Error: message` line is the one to show.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        kind, _, message = line.partition(": ")
        if kind in ("ValueError", "FileNotFoundError", "OSError") and message:
            return message
        if "Error: ValueError: " in line:
            return line.split("ValueError: ", 1)[1]
    return " ".join(lines[:3]) or type(error).__name__
