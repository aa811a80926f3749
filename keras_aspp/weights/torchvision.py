"""torchvision's state dicts, read without torch."""

import math
import pickle
import sys
from collections import OrderedDict

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


def read_state_dict(path):
    """Tensors of a `.pth` file in torch's legacy (pre-1.6) format.

    Only tensors are admitted: the unpickler knows `OrderedDict`, torch's
    storages and its tensor rebuilder, and nothing else, so a file cannot run
    code.

    Args:
        path: file path.

    Returns:
        dict: name -> NumPy array, in the order of the file.

    Raises:
        ValueError: the file is of another format, truncated, or holds
            anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read_legacy(file)
    except (
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(
            "Not a torch state dict in the legacy format (tensors only, "
            f"complete). Received: path={str(path)!r} ({error})"
        ) from error


def load_mobilenet_v2(model, path):
    """Puts torchvision's `mobilenet_v2` weights into Keras' MobileNetV2.

    Args:
        model: `keras.applications.MobileNetV2` without top, width 1.0.
        path: torchvision's `mobilenet_v2-*.pth`.

    Raises:
        ValueError: the tensors are not those of the model.
    """
    tensors = [
        (name, array)
        for name, array in read_state_dict(path).items()
        if not name.endswith("num_batches_tracked")
        and not name.startswith("classifier.")
    ]
    # Both list their layers in the order of the forward pass, and batch norm
    # as scale, offset, mean, variance.
    weights = model.weights
    converted = []
    for (name, array), weight in zip(tensors, weights, strict=False):
        if array.ndim == 4:
            depthwise = "depthwise" in weight.path
            array = array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        if array.shape != tuple(weight.shape):
            raise ValueError(
                f"Tensor {name} of {str(path)!r} does not fit {weight.path}. "
                f"Received: shape={array.shape}, needed={tuple(weight.shape)}"
            )
        converted.append(array)
    if len(tensors) != len(weights):
        raise ValueError(
            f"The model has {len(weights)} tensors. Received: {len(tensors)} "
            f"in {str(path)!r}"
        )
    model.set_weights(converted)


def _read_legacy(file):
    if file.read(4) == b"PK\x03\x04":
        raise pickle.UnpicklingError("torch's zip format is not read yet")
    file.seek(0)
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
    return {name: tensor.read() for name, tensor in state.items()}


class _Storage:
    """A flat block of numbers; filled after the pickle has been read."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.itemsize = self.dtype.itemsize
        self.array = None


class _Tensor:
    """A strided window into a storage."""

    def __init__(self, storage, offset, size, stride, *_):
        self.storage, self.offset = storage, offset
        self.size, self.stride = tuple(size), tuple(stride)

    def read(self):
        numbers = (self.offset, *self.size, *self.stride)
        last = sum(
            (n - 1) * s for n, s in zip(self.size, self.stride, strict=True)
        )
        flat = self.storage.array[self.offset :]
        # A stride of 0 would make any size out of one number.
        count = math.prod(self.size)
        if min(numbers) < 0 or count and max(last + 1, count) > flat.size:
            raise pickle.UnpicklingError("a tensor lies outside its storage")
        strides = [s * self.storage.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat, self.size, strides)
        return view.copy()


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors and nothing else."""

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, saved):
        kind, storage_type, key = saved[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"persistent id {kind!r}")
        if key not in self.storages:
            self.storages[key] = _Storage(_STORAGES[storage_type])
        return self.storages[key]
