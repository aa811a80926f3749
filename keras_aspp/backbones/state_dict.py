"""State dicts of torch, read without torch.

Only tensors are admitted: the unpickler knows `OrderedDict`, torch's storages
and its tensor rebuilders, and nothing else, so a file cannot run code.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.finite import check_finite
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

_MAGIC = 0x1950A86A20F9469CFC6C
# A pickle of 600 tensors is 100 kB; the costliest opcodes make 100 times as
# many bytes of objects.
_MAX_PICKLE = 2**20
# NumPy's own.
_MAX_RANK = 64
# torch's: nothing that makes an object by other ways than a call, or reserves
# room for what a number says.
_OPCODES = {
    getattr(pickle, name)[0]
    for name in (
        "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE "
        "INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS "
        "EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD "
        "BINPERSID PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
    ).split()
}
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.pth`, in torch's formats, or `.safetensors`.

    Reading takes at most six times the memory of the file, and 200 MB.

    Args:
        path: file path.

    Returns:
        dict: name -> NumPy array, in the order of the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is of another format, truncated, or holds anything but
            tensors, or tensors that are not finite.
    """
    tensors = _read(path)
    check_finite(tensors.items(), f"path={str(path)!r}")
    return tensors


def _read(path):
    with open(path, "rb") as file:
        try:
            if str(path).endswith(".safetensors"):
                return _read_safetensors(path)
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(archive)
            file.seek(0)
            return _read_legacy(file)
        except Exception as error:
            # What is raised depends on which byte is wrong, and may quote
            # the file at any length.
            reason = printable(str(error))[:200] or type(error).__name__
            raise InputError(
                "Not a state dict (tensors only, complete) in a format of "
                f"torch or safetensors. Received: path={str(path)!r} ({reason})"
            ) from error


def _read_safetensors(path):
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(str(error)) from error


def _read_zip(archive):
    """Since torch 1.6: a pickle, and a file for each storage."""
    (pickled,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and _entry(archive, order) != b"little":
        raise pickle.UnpicklingError("big-endian data")
    # Python finds entries of the same bytes since 3.11.8 and 3.12.2.
    stored = sum(entry.compress_size for entry in archive.infolist())
    if stored > os.fstat(archive.fp.fileno()).st_size:
        raise pickle.UnpicklingError("entries overlap")
    pickles = _entry(archive, pickled, _MAX_PICKLE)
    unpickler = _TensorUnpickler(io.BytesIO(pickles))
    state = unpickler.load()
    for key, storage in unpickler.storages.items():
        data = _entry(archive, f"{folder}data/{key}")
        storage.array = np.frombuffer(data, storage.dtype)
    return _arrays(state, unpickler.storages)


def _entry(archive, name, most=math.inf):
    entry = archive.getinfo(name)
    if entry.file_size > 2 * entry.compress_size:
        raise pickle.UnpicklingError("compressed data")
    if entry.file_size > most:
        raise pickle.UnpicklingError(f"{name} is larger than {most} bytes")
    return archive.read(entry)


def _read_legacy(file):
    """Pickles, then each storage: its size, and its numbers."""
    pickles = io.BytesIO(file.read(_MAX_PICKLE))
    if _TensorUnpickler(pickles).load() != _MAGIC:
        raise pickle.UnpicklingError("no torch magic number")
    _TensorUnpickler(pickles).load()  # protocol version
    system = _TensorUnpickler(pickles).load()
    if not system["little_endian"] or sys.byteorder != "little":
        raise pickle.UnpicklingError("big-endian data")
    unpickler = _TensorUnpickler(pickles)
    state = unpickler.load()
    keys = _TensorUnpickler(pickles).load()
    if sorted(keys) != sorted(unpickler.storages):
        raise pickle.UnpicklingError("storages are not listed once each")
    left = os.fstat(file.fileno()).st_size - file.seek(pickles.tell())
    for key in keys:
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        left -= 8 + count * storage.itemsize
        if count < 0 or left < 0:
            raise pickle.UnpicklingError(f"a storage of {count} numbers")
        data = file.read(count * storage.itemsize)
        storage.array = np.frombuffer(data, storage.dtype)
    return _arrays(state, unpickler.storages)


def _arrays(state, storages):
    if not isinstance(state, dict) or any(
        type(tensor) is not _Tensor for tensor in state.values()
    ):
        raise pickle.UnpicklingError("a value is not a tensor")
    # Tensors may share a storage: a thousand of them could all be the largest.
    held = sum(storage.array.nbytes for storage in storages.values())
    wanted = sum(tensor.nbytes for tensor in state.values())
    if wanted > 2 * held:
        raise pickle.UnpicklingError(f"{wanted} bytes of tensors out of {held}")
    return {name: tensor.read() for name, tensor in state.items()}


# Numbers can be chosen such that all have one hash; the hash of a text is
# salted.
def _check_names(names):
    if {*map(type, names)} - {str}:
        raise pickle.UnpicklingError("a key is not a name")


class _Storage:
    """A flat block of numbers; filled after the pickle has been read."""

    __slots__ = ("array", "dtype", "itemsize")

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.itemsize = self.dtype.itemsize
        self.array = None


class _Tensor:
    """A strided window into a storage."""

    __slots__ = ("nbytes", "offset", "size", "storage", "stride")

    def __init__(self, storage, offset, size, stride, *_):
        # Of few numbers before any sum or product: a pickle can repeat them.
        if {type(size), type(stride)} != {tuple} or not (
            len(size) == len(stride) <= _MAX_RANK
        ):
            raise pickle.UnpicklingError("a tensor's arguments are malformed")
        numbers = (offset, *size, *stride)
        if type(storage) is not _Storage or {*map(type, numbers)} != {int}:
            raise pickle.UnpicklingError("a tensor's arguments are malformed")
        if not 0 <= min(numbers) <= max(numbers) < 2**63:
            raise pickle.UnpicklingError("a tensor lies outside its storage")
        self.storage, self.offset = storage, offset
        self.size, self.stride = size, stride
        self.nbytes = math.prod(self.size) * storage.itemsize

    def read(self):
        last = sum(
            (n - 1) * s for n, s in zip(self.size, self.stride, strict=True)
        )
        flat = self.storage.array[self.offset :]
        # A stride of 0 would make any size out of one number.
        count = math.prod(self.size)
        if count and max(last + 1, count) > flat.size:
            raise pickle.UnpicklingError("a tensor lies outside its storage")
        strides = [s * self.storage.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat, self.size, strides)
        return view.copy()


class _TensorUnpickler(pickle._Unpickler):
    """Knows tensors and nothing else.

    The one in C makes room for as many objects as a byte of the file says.
    """

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}
        self.copied = 0

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            # Functions, so that a pickle never holds a class itself.
            return self._ordered
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _Tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def _ordered(self, items=()):
        """Python 2 wrote a dict's items as an argument."""
        self._count(items)
        _check_names(name for name, _ in items)
        return OrderedDict(items)

    def persistent_load(self, saved):
        kind, storage_type, key = saved[:3]
        if kind != "storage" or {type(storage_type), type(key)} != {str}:
            raise pickle.UnpicklingError("a persistent id is no storage's")
        if key not in self.storages:
            self.storages[key] = _Storage(_STORAGES[storage_type])
        return self.storages[key]

    def load_build(self):
        """Drops the state of a dict (torch's `_metadata`), refuses others."""
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise pickle.UnpicklingError("attributes of a tensor are set")

    def _count(self, items):
        # Each call copies them, and a pickle can repeat it by a few bytes.
        self.copied += len(items)
        if self.copied > _MAX_PICKLE:
            raise pickle.UnpicklingError("too many arguments in all")

    def load_reduce(self):
        self._count(self.stack[-1])
        super().load_reduce()

    def load_put(self):
        index = int(self.readline())
        if not 0 <= index < _MAX_PICKLE:
            raise pickle.UnpicklingError("an object's number is out of range")
        self.memo[index] = self.stack[-1]

    def load_setitem(self):
        _check_names(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        _check_names(self.stack[::2])
        super().load_setitems()

    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code in _OPCODES
    }
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.PUT[0]] = load_put
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build
