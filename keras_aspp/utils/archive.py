"""Bounds the memory that loading Keras' files needs: `.keras` and HDF5."""

import collections
import io
import math
import os
import re
import zipfile

import h5py

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike

WEIGHTS = "model.weights.h5"
# Keras stores its entries as they are; packed again, they shrink by half.
_MAX_EXPANSION = 100
# What `keras.Model.save` writes. Keras also reads weights of other containers
# (`model.weights.npz`, shards), whose decoders nothing here bounds.
_ENTRIES = ("metadata.json", "config.json", WEIGHTS)
# Keras nests one group per object: models within models, and their layers.
# HDF5 needs quadratic time for chains of groups.
_MAX_DEPTH = 64
# Names of older files that are read, in bytes.
_MAX_TEXT_BYTES = 2**28
# Attributes by which older files name their groups and weights.
_LISTS = ("layer_names", "weight_names")


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
        if WEIGHTS not in names:
            raise InputError(f"it holds no {WEIGHTS}")
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
        _check_weights(io.BytesIO(archive.read(WEIGHTS)), WEIGHTS)


def check_weights_file(path: PathLike) -> None:
    """Raises `ValueError` for HDF5 that needs more memory than its bytes.

    Args:
        path: file of weights, of Keras' current layout or an older one.

    Raises:
        ValueError: weights are declared but missing, compressed, no numbers,
            links, nested too deep, or named twice.
        OSError: not an HDF5 file, or a damaged one.
    """
    with open(path, "rb") as file:
        _check_weights(file, os.path.basename(path))


def _check_weights(file, shown):
    longest = _longest_text(file)
    with h5py.File(file, "r") as weights:
        groups = [(weights, 1)]
        while groups:
            group, depth = groups.pop()
            _check_names(group, shown, longest)
            if depth > _MAX_DEPTH:
                raise InputError(
                    f"{shown} nests groups more than {_MAX_DEPTH} deep"
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
                        f"{shown}{group.name.rstrip('/')}/{name} {fault}"
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


def _check_names(group, shown, longest):
    """Raises `ValueError` if attributes would read weights more than once.

    Keras' older files list the weights to read, in parts named `layer_names0`,
    `layer_names1` and so on if they are many.
    """
    for listed in _LISTS:
        found = []
        for attribute in group.attrs:
            if not re.fullmatch(rf"{listed}\d*", attribute):
                continue
            held = group.attrs.get_id(attribute)
            count = math.prod(held.shape)
            # Texts of variable length may all be one long text.
            if held.dtype.hasobject and count * longest > _MAX_TEXT_BYTES:
                raise InputError(
                    f"{shown}{group.name}: {attribute} holds {count} texts "
                    f"of up to {longest} bytes"
                )
            found += [
                name.decode() if isinstance(name, bytes) else str(name)
                for name in group.attrs[attribute].ravel().tolist()
            ]
        # "a", "a/" and "./a" are one name.
        parts = [part for name in found for part in name.split("/")]
        if len({*found}) < len(found) or {"", "."} & {*parts}:
            raise InputError(
                f"{shown}{group.name}: {listed} must be names, each once"
            )


def _longest_text(file):
    """Returns the most bytes of a text of variable length in HDF5.

    Such texts lie in heaps, which begin with their signature, version and
    size.
    """
    found, before = 0, b""
    while block := file.read(2**20):
        block = before + block
        for heap in re.finditer(rb"GCOL\x01\0{3}(.{8})", block, re.DOTALL):
            found = max(found, int.from_bytes(heap[1], "little"))
        before = block[-15:]  # of a heap's 16 bytes
    return found
