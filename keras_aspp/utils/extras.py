"""Optional packages (extras)."""

import importlib
import importlib.util

from keras_aspp.utils.exceptions import InputError


def is_installed(module: str) -> bool:
    """Returns True if a module of an extra can be found; it is not imported.

    Args:
        module: its name.
    """
    return importlib.util.find_spec(module) is not None


def require(what: str, extra: str, *modules: str) -> None:
    """Imports packages of an extra.

    Args:
        what: str, the feature that needs them, for the message.
        extra: str, of `pip install 'keras-aspp[...]'`.
        modules: names of modules.

    Raises:
        ValueError: a package is not installed.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"{what} needs a package that is not installed: "
                f"pip install 'keras-aspp[{extra}]'. Received: {error}"
            ) from None
