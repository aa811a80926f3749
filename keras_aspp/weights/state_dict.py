"""State dicts of torch, read without torch.

Only tensors are admitted: the unpickler knows `OrderedDict`, torch's storages
and its tensor rebuilders, and nothing else, so a file cannot run code.
"""

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_OBJECT_OPCODES = (
    pickle.INST,
    pickle.OBJ,
    pickle.NEWOBJ,
    pickle.NEWOBJ_EX,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
)
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


def read_state_dict(path):
    """Tensors of a `.pth`, in either of torch's formats, or `.safetensors`.

    Args:
        path: file path.

    Returns:
        dict: name -> NumPy array, in the order of the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is of another format, truncated, or holds anything but
            tensors.
    """
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
            # What is raised depends on which byte is wrong.
            raise ValueError(
                "Not a state dict (tensors only, complete) in a format of "
                f"torch or safetensors. Received: path={str(path)!r} ({error})"
            ) from error


def _read_safetensors(path):
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_zip(archive):
    """Since torch 1.6: a pickle, and a file for each storage."""
    (pickled,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise pickle.UnpicklingError("big-endian data")
    unpickler = _TensorUnpickler(io.BytesIO(_entry(archive, pickled)))
    state = unpickler.load()
    for key, storage in unpickler.storages.items():
        data = _entry(archive, f"{folder}data/{key}")
        storage.array = np.frombuffer(data, storage.dtype)
    return _arrays(state, unpickler.storages)


def _entry(archive, name):
    entry = archive.getinfo(name)
    if entry.file_size > 2 * entry.compress_size:
        raise pickle.UnpicklingError("compressed data")
    return archive.read(entry)


def _read_legacy(file):
    if _TensorUnpickler(file).load() != _MAGIC:
        raise pickle.UnpicklingError("no torch magic number")
    _TensorUnpickler(file).load()  # protocol version
    system = _TensorUnpickler(file).load()
    if not system["little_endian"] or sys.byteorder != "little":
        raise pickle.UnpicklingError("big-endian data")
    unpickler = _TensorUnpickler(file)
    state = unpickler.load()
    for key in _TensorUnpickler(file).load():
        storage = unpickler.storages[key]
        (count,) = np.frombuffer(file.read(8), "<i8")
        data = file.read(int(count) * storage.itemsize)
        storage.array = np.frombuffer(data, storage.dtype, int(count))
    return _arrays(state, unpickler.storages)


def _arrays(state, storages):
    if any(type(tensor) is not _Tensor for tensor in state.values()):
        raise pickle.UnpicklingError("a value is not a tensor")
    # Tensors may share a storage: a thousand of them could all be the largest.
    held = sum(storage.array.nbytes for storage in storages.values())
    wanted = sum(tensor.nbytes for tensor in state.values())
    if wanted > 2 * held:
        raise pickle.UnpicklingError(f"{wanted} bytes of tensors out of {held}")
    return {name: tensor.read() for name, tensor in state.items()}


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
        numbers = (offset, *size, *stride)
        if type(storage) is not _Storage or {*map(type, numbers)} != {int}:
            raise pickle.UnpicklingError("a tensor's arguments are malformed")
        if min(numbers) < 0:
            raise pickle.UnpicklingError("a tensor lies outside its storage")
        self.storage, self.offset = storage, offset
        self.size, self.stride = tuple(size), tuple(stride)
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

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A function, so that a pickle never holds the class itself.
            return lambda *arguments: _Tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, saved):
        kind, storage_type, key = saved[:3]
        if kind != "storage" or type(key) is not str:
            raise pickle.UnpicklingError(f"persistent id {kind!r}, {key!r}")
        if key not in self.storages:
            self.storages[key] = _Storage(_STORAGES[storage_type])
        return self.storages[key]

    def load_build(self):
        """Drops the state of a dict (torch's `_metadata`), refuses others."""
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise pickle.UnpicklingError("attributes of a tensor are set")

    # Without the opcodes that make objects by other ways than a call.
    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in _OBJECT_OPCODES
    }
    dispatch[pickle.BUILD[0]] = load_build
