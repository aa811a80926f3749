"""Loads `.keras` files within bounds of the memory that this needs."""

import contextlib
import json
import math
import threading
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_aspp.utils.archive import WEIGHTS, check_archive
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError, UserError
from keras_aspp.utils.types import PathLike

# A segmenter creates up to 1.9 times its weights until it is built, since its
# backbone is a model that is copied; states such as seeds may not be saved.
_MAX_COPIES, _UNSAVED = 2, 2**20
_patching = threading.RLock()


@contextlib.contextmanager
def _weights_within(path: PathLike) -> Iterator[None]:
    """Refuses to create more weights than a `.keras` stores bytes for.

    Its configuration declares shapes, and Keras allocates them before it
    reads a weight. No method of Keras counts them first, so this counts the
    variables that the thread creates, before each is allocated.
    """
    with zipfile.ZipFile(path) as archive:
        stored = archive.getinfo(WEIGHTS).file_size
    # A number takes at least one byte.
    limit = _MAX_COPIES * stored + _UNSAVED
    thread, declared = threading.get_ident(), 0

    def count(shape):
        nonlocal declared
        if threading.get_ident() != thread or not shape:
            return  # another thread's, or a number
        declared += math.prod(shape)
        if declared > limit:
            raise InputError(
                f"config.json declares {declared} weights or more, and "
                f"{WEIGHTS} holds {stored} bytes"
            )

    with _patching:
        create = keras.Variable.__init__

        def counted(self, initializer, shape=None, *args, **kwargs):
            count(shape)
            create(self, initializer, shape, *args, **kwargs)

        keras.Variable.__init__ = counted
        try:
            yield
        finally:
            keras.Variable.__init__ = create


class Refused(NamedTuple):
    """A layer that Keras cannot build, and the error."""

    name: str
    layer_type: str
    error: Exception


def refused_layer(path: PathLike) -> Refused | None:
    """Finds the layer that prevents a `.keras` from loading.

    Keras names the outermost model, or no layer at all. This builds the layers
    one by one, without weights and with the safe mode of `load_model`.

    Args:
        path: a file that `check_archive` accepts.

    Returns:
        The innermost such layer, or `None` if every layer can be built.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        return _refused(config["config"], ())
    except Exception:
        # The configuration itself is invalid; Keras' own error reports it.
        return None


def _refused(config, layer):
    """Returns the first object in `config`, inner first, that fails."""
    if isinstance(config, list):
        found = (_refused(item, layer) for item in config)
        return next(filter(None, found), None)
    if not isinstance(config, dict):
        return None
    within = config.get("config")
    if "class_name" not in config or not isinstance(within, dict):
        return _refused(list(config.values()), layer)
    is_layer = "name" in within and "DTypePolicy" not in config["class_name"]
    if is_layer:
        layer = (within["name"], config["class_name"])
    found = _refused(list(within.values()), layer)
    # A model would build all its layers again, and their weights.
    if found or not layer or "layers" in within:
        return found
    try:
        keras.saving.deserialize_keras_object(config)
    except Exception as error:
        return Refused(*layer, error)
    return None


def load_keras(path: PathLike) -> Any:
    """Loads any Keras model from a `.keras` file, not compiled.

    Args:
        path: the file.

    Returns:
        `keras.Model`.

    Raises:
        ValueError: the file cannot be loaded; if one layer is the cause, the
            message names it.
    """
    layer = None
    try:
        check_archive(path)
        try:
            with _weights_within(path):
                return keras.saving.load_model(path, compile=False)
        except Exception:
            with _weights_within(path):
                layer = refused_layer(path)
            raise
    except Exception as error:
        # The type of Keras' error depends on which byte is wrong. Its default
        # safe_mode refuses Lambda layers and classes that are not registered.
        cause = error if layer is None else layer.error
        # Keras quotes the configuration, followed by the cause.
        text = str(cause).rpartition("Exception encountered: ")[2]
        reason = first_line(text)[:400]
        named = ""
        if layer is not None:
            named = f"{layer.layer_type!s:.80} layer {layer.name!r:.80}: "
        if not isinstance(cause, UserError):
            named += f"{type(cause).__name__}: "
        raise InputError(
            f"Not a loadable `.keras` model. File: {path} ({named}{reason})"
        ) from error
