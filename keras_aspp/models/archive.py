"""Bounds the memory that loading a `.keras` file needs."""

import collections
import io
import json
import os
import zipfile

import h5py
import keras

from keras_aspp.utils.exceptions import InputError, UserError

# Keras stores its entries as they are; packed again, they shrink by half.
_MAX_EXPANSION = 100
_WEIGHTS = "model.weights.h5"
# What `keras.Model.save` writes. Keras also reads weights of other containers
# (`model.weights.npz`, shards), whose decoders nothing here bounds.
_ENTRIES = ("metadata.json", "config.json", _WEIGHTS)
# Keras nests a group per object: models within models, and their layers. HDF5
# takes quadratic time for chains of groups.
_MAX_DEPTH = 64


def check_archive(path):
    """Raises where a `.keras` holds less than it would be unpacked to.

    Keras has such checks too, for what exceeds 4 GiB.

    Raises:
        ValueError: not a zip archive, or truncated; an entry that Keras does
            not write, twice the same, or that expands more than a hundredfold;
            entries that overlap; or weights that are declared but not there,
            compressed, or nested too deep.
    """
    if not zipfile.is_zipfile(path):
        # Keras calls it not found.
        raise InputError("no archive, or cut off")
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
        # Python finds entries of the same bytes since 3.11.8 and 3.12.2.
        stored = sum(entry.compress_size for entry in archive.infolist())
        if stored > os.path.getsize(path):
            raise InputError("its entries overlap")
        _check_weights(io.BytesIO(archive.read(_WEIGHTS)))


def _check_weights(file):
    """Raises `ValueError` for HDF5 that takes more memory than its bytes."""
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
                    # A second link could make a cycle, or 2^n paths.
                    linked = h5py.h5o.get_info(item.id).rc > 1
                    fault = "is linked twice" if linked else _fault(item)
                if fault:
                    raise InputError(
                        f"{_WEIGHTS}{group.name.rstrip('/')}/{name} {fault}"
                    )
                if isinstance(item, h5py.Group):
                    groups.append((item, depth + 1))


def _fault(item):
    """What is wrong with a data set: nothing, or a clause without subject."""
    if not isinstance(item, h5py.Dataset):
        return None
    # Chunks that were never written, and data kept elsewhere, take no room.
    stored = 0 if item.external else item.id.get_storage_size()
    if item.nbytes > stored:
        return f"is {item.nbytes} bytes, of which {stored} are there"
    # One chunk may be declared larger than all its data.
    if item.id.get_create_plist().get_nfilters():
        return "is compressed"
    # Values of variable length may all be the same large one.
    if item.dtype.hasobject:
        return "holds no numbers"
    return None


Refused = collections.namedtuple("Refused", "name layer_type error")


def refused_layer(path):
    """The layer that keeps a `.keras` from loading, or `None`.

    Keras names the outermost model, or no layer at all. Layers are made one by
    one here, without weights and as cautiously as in `load_model`.

    Args:
        path: a file that `check_archive` accepts.

    Returns:
        `Refused(name, layer_type, error)`, or `None`: each layer can be made.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        return _refused(config["config"], ())
    except Exception:
        # Then the configuration is at fault, of which Keras' error tells.
        return None


def _refused(config, layer):
    """The first of the objects in `config`, inner ones first, that fails."""
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
    # A model would make all its layers again, and their weights.
    if found or not layer or "layers" in within:
        return found
    try:
        keras.saving.deserialize_keras_object(config)
    except Exception as error:
        return Refused(*layer, error)
    return None


def load_keras(path):
    """Any Keras model out of a `.keras` file, not compiled.

    Raises:
        ValueError: it cannot be loaded; where one layer is why, it is named.
    """
    layer = None
    try:
        check_archive(path)
        try:
            return keras.saving.load_model(path, compile=False)
        except Exception:
            layer = refused_layer(path)
            raise
    except Exception as error:
        # What Keras raises here depends on which byte is wrong. Its
        # safe_mode, the default, refuses Lambdas and what is not registered.
        cause = error if layer is None else layer.error
        # It quotes the configuration, and below that the cause.
        text = str(cause).rpartition("Exception encountered: ")[2]
        reason = (text.strip().splitlines() or [""])[0][:400]
        named = ""
        if layer is not None:
            named = f"{layer.layer_type!s:.80} layer {layer.name!r:.80}: "
        if not isinstance(cause, UserError):
            named += f"{type(cause).__name__}: "
        raise InputError(
            f"Not a loadable `.keras` model. File: {path} ({named}{reason})"
        ) from error
