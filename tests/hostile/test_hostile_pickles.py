"""Valid pickles of hostile structure, as `.pth` files."""

import zipfile

import numpy as np
import pytest

from keras_aspp.weights.state_dict import read_state_dict

NUMBERS = np.arange(6, dtype="<f4")
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000tQ"
BUILD = b"}X\x08\0\0\0itemsizeI4096\nsb"


def tensor(storage=STORAGE, offset=b"I0\n", size=b"I6\n", stride=b"I1\n"):
    window = offset + b"(" + size + b"t(" + stride + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + window + b"tR"


def write(path, value):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"}X\x01\0\0\0w" + value + b"s.")
        archive.writestr("m/data/0", NUMBERS.tobytes())
    return path


def test_the_plain_pickle_is_read(tmp_path):
    state = read_state_dict(write(tmp_path / "m.pth", tensor()))
    np.testing.assert_array_equal(state["w"], NUMBERS)


@pytest.mark.parametrize(
    "value, message",
    [
        (tensor(STORAGE + BUILD), "attributes of a tensor"),
        (tensor() + BUILD, "attributes of a tensor"),
        (tensor(offset=b"I-1\n"), "outside its storage"),
        (tensor(size=b"I7\n"), "outside its storage|bytes of tensors"),
        (tensor(stride=b"I2\n"), "outside its storage"),
        (tensor(offset=b"I01\n"), "malformed"),
        (tensor(size=b"F6.0\n"), "malformed"),
        (tensor(storage=b"I0\n"), "malformed"),
        (STORAGE, "not a tensor"),
        (tensor(STORAGE.replace(b"X\x01\0\0\x000", b"I0\n")), "persistent id"),
        (b"(ccollections\nOrderedDict\no", "Not a state dict"),
        (b"(icollections\nOrderedDict\n", "Not a state dict"),
        (b"ccollections\nOrderedDict\n)\x81", "Not a state dict"),
    ],
)
def test_a_hostile_structure_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "m.pth", value))
