"""Loads `.keras` files, after bounding the memory that this needs."""

import collections
import contextlib
import io
import json
import math
import os
import threading
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import keras

from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError, UserError
from keras_aspp.utils.types import PathLike

# Keras stores its entries as they are; packed again, they shrink by half.
_MAX_EXPANSION = 100
_WEIGHTS = "model.weights.h5"
# What `keras.Model.save` writes. Keras also reads weights of other containers
# (`model.weights.npz`, shards), whose decoders nothing here bounds.
_ENTRIES = ("metadata.json", "config.json", _WEIGHTS)
# Keras nests one group per object: models within models, and their layers.
# HDF5 needs quadratic time for chains of groups.
_MAX_DEPTH = 64
# A segmenter creates up to 1.9 times its weights until it is built, since its
# backbone is a model that is copied; states such as seeds may not be saved.
_MAX_COPIES, _UNSAVED = 2, 2**20
_patching = threading.RLock()


def check_archive(path: PathLike) -> None:
    """Raises `ValueError` for a `.keras` that unpacks to more than it stores.

    Keras has such checks too, but only above 4 GiB.

    Args:
        path: the file.

    Raises:
        ValueError: the file is not a zip archive, or truncated; an entry is
            one that Keras does not write, duplicated, or expands more than a
            hundredfold; entries overlap; or weights are declared but missing,
            compressed, or nested too deep.
    """
    if not zipfile.is_zipfile(path):
        # Keras would report that the file does not exist.
        raise InputError("not a zip archive, or truncated")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name, count in collections.Counter(names).items():
            if name not in _ENTRIES and not name.startswith("assets/"):
                raise InputError(
                    f"it holds {name!r}; a `.keras` holds "
                    f"{', '.join(_ENTRIES)} and assets"
                )
            if count > 1:
                raise InputError(f"it holds {name!r} twice")
        if _WEIGHTS not in names:
            raise InputError(f"it holds no {_WEIGHTS}")
        for entry in archive.infolist():
            if entry.file_size > _MAX_EXPANSION * max(entry.compress_size, 1):
                raise InputError(
                    f"{entry.filename} expands from {entry.compress_size} to "
                    f"{entry.file_size} bytes"
                )
        # Python detects overlapping entries since 3.11.8 and 3.12.2 only.
        stored = sum(entry.compress_size for entry in archive.infolist())
        if stored > os.path.getsize(path):
            raise InputError("its entries overlap")
        _check_weights(io.BytesIO(archive.read(_WEIGHTS)))


def _check_weights(file):
    """Raises `ValueError` for HDF5 that needs more memory than its bytes."""
    with h5py.File(file, "r") as weights:
        groups = [(weights, 1)]
        while groups:
            group, depth = groups.pop()
            if depth > _MAX_DEPTH:
                raise InputError(
                    f"{_WEIGHTS} nests groups more than {_MAX_DEPTH} deep"
                )
            for name in group:
                if type(group.get(name, getlink=True)) is not h5py.HardLink:
                    fault = "is a link"
                else:
                    item = group[name]
                    # A second link could create a cycle, or 2^n paths.
                    linked = h5py.h5o.get_info(item.id).rc > 1
                    fault = "is linked twice" if linked else _fault(item)
                if fault:
                    raise InputError(
                        f"{_WEIGHTS}{group.name.rstrip('/')}/{name} {fault}"
                    )
                if isinstance(item, h5py.Group):
                    groups.append((item, depth + 1))


def _fault(item):
    """Returns the fault of an HDF5 data set as a predicate, or `None`."""
    if not isinstance(item, h5py.Dataset):
        return None
    # Unwritten chunks and data in external files occupy no bytes here.
    stored = 0 if item.external else item.id.get_storage_size()
    if item.nbytes > stored:
        return f"is {item.nbytes} bytes, of which {stored} are there"
    # Filters work on chunks, which may be declared larger than all the data.
    if item.id.get_create_plist().get_nfilters():
        return "is compressed"
    # Values of variable length may all refer to one large value.
    if item.dtype.hasobject:
        return "holds no numbers"
    return None


@contextlib.contextmanager
def _weights_within(path: PathLike) -> Iterator[None]:
    """Refuses to create more weights than a `.keras` stores bytes for.

    Its configuration declares shapes, and Keras allocates them before it
    reads a weight. No method of Keras counts them first, so this counts the
    variables that the thread creates, before each is allocated.
    """
    with zipfile.ZipFile(path) as archive:
        stored = archive.getinfo(_WEIGHTS).file_size
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
                f"{_WEIGHTS} holds {stored} bytes"
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
