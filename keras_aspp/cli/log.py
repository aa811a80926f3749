"""Messages of the library on the terminal."""

import contextlib
import logging

_LOGGER = logging.getLogger("keras_aspp")


class _Printer(logging.Handler):
    """Prints messages to standard output, warnings with a heading."""

    def emit(self, record):
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            # A progress line may stand unfinished on the terminal.
            text = f"\nWarning: {text}"
        print(text)


@contextlib.contextmanager
def printed_messages():
    """Prints the messages of the package, without time and source.

    Within another such block, nothing changes.
    """
    if any(isinstance(handler, _Printer) for handler in _LOGGER.handlers):
        yield
        return
    before = _LOGGER.level, _LOGGER.propagate
    printer = _Printer()
    _LOGGER.addHandler(printer)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    try:
        yield
    finally:
        _LOGGER.removeHandler(printer)
        _LOGGER.setLevel(before[0])
        _LOGGER.propagate = before[1]
