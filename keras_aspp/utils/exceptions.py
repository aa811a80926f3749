"""Errors that the user can mend, each also a built-in error.

The package raises these classes on purpose, with a message that names the rule
and the received value. The command line reports any other exception as a fault
of the package.
"""


class UserError(Exception):
    """Base class of errors caused by arguments, files, data or the machine."""


class InputError(UserError, ValueError):
    """Invalid argument, configuration, file or data."""


class InputTypeError(UserError, TypeError):
    """Argument of a wrong type."""


class InputNotFoundError(UserError, FileNotFoundError):
    """Missing file or folder."""


class OutputExistsError(UserError, FileExistsError):
    """Output that exists and must not be replaced."""


class UnavailableError(UserError, OSError):
    """Resource that the system refuses, such as disk space or a port."""


class UnreachableError(UserError, ConnectionError):
    """Host that cannot be reached."""
