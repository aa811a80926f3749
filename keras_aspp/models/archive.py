"""Bounds the memory that loading a `.keras` file needs."""

import io
import zipfile

import h5py

# Keras stores its entries as they are; packed again, they shrink by half.
_MAX_EXPANSION = 100
_WEIGHTS = "model.weights.h5"
# What `keras.Model.save` writes. Keras also reads weights of other containers
# (`model.weights.npz`, shards), whose decoders nothing here bounds.
_ENTRIES = ("metadata.json", "config.json", _WEIGHTS)


def check_archive(path):
    """Raises where a `.keras` holds less than it would be unpacked to.

    Keras has such checks too, for what exceeds 4 GiB.

    Raises:
        ValueError: not a zip archive, or truncated; an entry that Keras does
            not write, twice the same, or that expands more than a hundredfold;
            or weights that are declared but not there.
    """
    if not zipfile.is_zipfile(path):
        # Keras calls it not found.
        raise ValueError("no archive, or cut off")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if name not in _ENTRIES and not name.startswith("assets/"):
                raise ValueError(
                    f"it holds {name!r}; a `.keras` holds "
                    f"{', '.join(_ENTRIES)} and assets"
                )
            if names.count(name) > 1:
                raise ValueError(f"it holds {name!r} twice")
        if _WEIGHTS not in names:
            raise ValueError(f"it holds no {_WEIGHTS}")
        for entry in archive.infolist():
            if entry.file_size > _MAX_EXPANSION * max(entry.compress_size, 1):
                raise ValueError(
                    f"{entry.filename} expands from {entry.compress_size} to "
                    f"{entry.file_size} bytes"
                )
        _check_weights(io.BytesIO(archive.read(_WEIGHTS)))


def _check_weights(file):
    """Chunks that were never written, and data kept elsewhere, take no room."""

    def link_of(name, link):
        if not isinstance(link, h5py.HardLink):
            return f"{_WEIGHTS}/{name} is a link"

    def absent_of(name, item):
        if not isinstance(item, h5py.Dataset):
            return None
        stored = 0 if item.external else item.id.get_storage_size()
        if item.nbytes > stored:
            return (
                f"{_WEIGHTS}/{name} is {item.nbytes} bytes, of which {stored} "
                "are there"
            )

    with h5py.File(file, "r") as weights:
        # h5py wants an answer: errors do not get through it.
        fault = weights.visititems_links(link_of) or weights.visititems(
            absent_of
        )
    if fault:
        raise ValueError(fault)
