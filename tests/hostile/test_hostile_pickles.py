"""Valid pickles of hostile structure, as `.pth` files."""

import copy
import itertools
import math
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from keras_aspp.backbones.state_dict import read_state_dict

NUMBERS = np.arange(6, dtype="<f4")
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000tQ"
BUILD = b"}X\x08\0\0\0itemsizeI4096\nsb"


def tensor(storage=STORAGE, offset=b"I0\n", size=b"I6\n", stride=b"I1\n"):
    window = offset + b"(" + size + b"t(" + stride + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + window + b"tR"


def write(path, value, numbers=NUMBERS, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"}X\x01\0\0\0w" + value + b"s.")
        archive.writestr("m/data/0", numbers.tobytes())
        for name, content in entries.items():
            archive.writestr(f"m/{name}", content, zipfile.ZIP_DEFLATED)
    return path


def legacy(state, keys=("0",), count=6, numbers=NUMBERS):
    """The format before torch 1.6: pickles in a row, then each storage."""
    magic = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    system = b"}X\x0d\0\0\0little_endian\x88s."
    listed = b"](" + b"".join(map(text, keys)) + b"e."
    state = b"}X\x01\0\0\0w" + state + b"s."
    storages = (struct.pack("<q", count) + numbers.tobytes()) * len(keys)
    return magic + b"I1001\n." + system + state + listed + storages


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


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
        # Eight gigabytes asked for by nine bytes.
        (b"\x96" + struct.pack("<Q", 2**33), "Not a state dict"),
        (b"}I7\nI7\ns", "a key is not a name"),
        (b"}(I7\nI7\nu", "a key is not a name"),
        (b"ccollections\nOrderedDict\n(]]I7\na]a2tR", "Not a state dict"),
        (b"Np99999999\n", "number is out of range"),
        # One list of 999 items, copied a thousand and two times.
        (
            b"]("
            + b"(X\x01\0\0\0aNt" * 999
            + b"e\x85q\0ccollections\nOrderedDict\nq\x01"
            + b"h\x01h\0R" * 1100,
            "too many arguments",
        ),
        # Numbers whose product takes hours.
        (
            tensor(size=b"\x8a\xff" + b"\x7f" * 255 + b"q\0" + b"h\0" * 9**4),
            "malformed",
        ),
        (tensor(size=b"\x8a\x09" + b"\x7f" * 9), "outside its storage"),
        (b"c" + b"m" * 9999 + b"\nn\n", "m{200}"),
    ],
)
def test_a_hostile_structure_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "m.pth", value))


def test_a_large_pickle_is_refused(tmp_path):
    path = write(tmp_path / "m.pth", b"N" + b"N0" * 2**19)
    with pytest.raises(ValueError, match="larger than 1048576 bytes"):
        read_state_dict(path)
    path.write_bytes(legacy(b"N" + b"N0" * 2**19))
    with pytest.raises(ValueError, match="Not a state dict"):
        read_state_dict(path)


def test_a_small_entry_that_expands_is_refused(tmp_path):
    path = write(tmp_path / "m.pth", tensor(), byteorder=bytes(10**6))
    with pytest.raises(ValueError, match="compressed data"):
        read_state_dict(path)


def test_entries_of_the_same_bytes_are_refused(tmp_path):
    """A hundred storages that are the same megabyte of the file."""
    storages = [
        STORAGE.replace(b"\x01\0\0\x000", text(f"{i:03}")[1:])
        for i in range(100)
    ]
    many = b"".join(text(str(i)) + tensor(s) for i, s in enumerate(storages))
    path = write(tmp_path / "m.pth", b"N", np.ones(2**18, "<f4"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("n/data.pkl", b"}(" + many + b"u.")
        del archive.NameToInfo["m/data.pkl"]
        held = archive.NameToInfo.pop("m/data/0")
        archive.filelist[:] = [archive.NameToInfo["n/data.pkl"]]
        for i in range(100):
            entry = copy.copy(held)
            entry.filename = f"n/data/{i:03}"
            archive.filelist.append(entry)
    with pytest.raises(ValueError, match="entries overlap"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"count": -1}, "a storage of -1 numbers"),
        ({"count": 7}, "a storage of 7 numbers"),
        ({"count": 2**60}, f"a storage of {2**60} numbers"),
        ({"keys": ("0", "0")}, "listed once each"),
        ({"keys": ()}, "listed once each"),
        ({"keys": ("1",)}, "listed once each"),
    ],
)
def test_the_legacy_format_lists_each_storage_once(changes, message, tmp_path):
    path = tmp_path / "m.pth"
    path.write_bytes(legacy(tensor()))
    np.testing.assert_array_equal(read_state_dict(path)["w"], NUMBERS)
    path.write_bytes(legacy(tensor(), **changes))
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


class Pickles:
    """Valid pickles of random structure: each method pushes one object."""

    INTS = (0, 1, 1, 2, 2, 3, 3, 5, 6, -1, 7, 2**31, 2**63, 2**900)

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.memo = 0

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def int(self):
        value = int(self.pick(self.INTS))
        return b"I%d\n" % value

    def ints(self):
        return (
            b"("
            + b"".join(self.int() for _ in range(self.pick((1, 1, 2, 3))))
            + b"t"
        )

    def name(self):
        return text(self.pick(("w", "0", "1", "read", "itemsize", "array")))

    def function(self):
        return self.pick(
            (
                b"ctorch._utils\n_rebuild_tensor_v2\n",
                b"ctorch._utils\n_rebuild_parameter\n",
                b"ccollections\nOrderedDict\n",
                b"ctorch\nLongStorage\n",
            )
        )

    def storage(self):
        kind = self.pick((b"Float", b"Float", b"Double", b"Half", b"Long"))
        key = text(self.pick(("0", "0", "0", "1", "2")))
        parts = text("storage"), kind, key
        return b"(%sctorch\n%sStorage\n%stQ" % parts

    def tensor(self):
        """Of six numbers in most cases, some with one argument replaced."""
        window = self.pick(((0, (6,), (1,)), (1, (2, 2), (1, 2)), (5, (), ())))
        offset, *shape = window
        parts = [
            self.storage(),
            b"I%d\n" % offset,
            *(b"(" + b"".join(b"I%d\n" % n for n in ns) + b"t" for ns in shape),
        ]
        if self.rng.random() < 0.5:
            index = self.rng.integers(4)
            kinds = (self.storage, self.int, self.ints, self.ints)
            parts[index] = self.pick((kinds[index], self.any))()
        made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(parts) + b"tR"
        if self.rng.random() < 0.2:
            made += b"}" + self.name() + self.any(3) + b"sb"
        return made

    def any(self, depth=0):
        """An object of any kind, maybe with state set, kept or repeated."""
        kinds = [self.int, self.ints, self.name, self.function, self.storage]
        if depth < 4:
            within = lambda: self.any(depth + 1)  # noqa: E731
            kinds += [
                self.tensor,
                lambda: b"(" + within() + within() + b"t",
                lambda: b"]" + within() + b"a",
                lambda: b"}" + self.name() + within() + b"s",
                lambda: within() + within() + b"a",
                lambda: within() + self.name() + within() + b"s",
                lambda: within() + b"}" + self.name() + within() + b"sb",
                lambda: self.function() + within() + b"\x85R",
                lambda: self.function() + b"(" + within() + within() + b"tR",
            ]
            if self.memo:
                kinds.append(lambda: b"h%c" % self.rng.integers(self.memo))
        made = self.pick(kinds)()
        if self.memo < 200 and self.rng.random() < 0.2:
            made += b"q%c" % self.memo
            self.memo += 1
        return made


def test_valid_pickles_of_random_structure(tmp_path):
    """Refused, or what is read is in the file and takes little memory."""
    path = tmp_path / "m.pth"
    numbers = np.arange(1, 7, dtype="<f4")
    values = {
        float(value)
        for kind in ("f4", "f8", "f2", "i8")
        for value in np.frombuffer(numbers.tobytes(), f"<{kind}")
    }
    read = 0
    tracemalloc.start()
    try:
        for seed in range(500):
            make = Pickles(seed)
            value = make.pick((make.tensor, make.tensor, make.any))()
            if seed % 2:
                path.write_bytes(legacy(value, numbers=numbers))
            else:
                write(path, value, numbers)
            tracemalloc.reset_peak()
            try:
                state = read_state_dict(path)
            except ValueError as error:
                assert "Not a state dict" in str(error), seed
            else:
                read += 1
                assert set(np.ravel(state["w"]).tolist()) <= values, seed
            assert tracemalloc.get_traced_memory()[1] < 2**22, seed
    finally:
        tracemalloc.stop()
    assert read > 20


def test_windows_of_random_shape_are_read_as_counted(tmp_path):
    """Each index by hand; what leaves the storage is refused."""
    path, rng = tmp_path / "m.pth", np.random.default_rng(5)
    outcomes = set()
    for _ in range(200):
        rank = rng.integers(1, 4)
        size, stride = rng.integers(0, 4, (2, rank)).tolist()
        offset = int(rng.integers(0, 4))
        indices = [
            offset + sum(i * s for i, s in zip(index, stride, strict=True))
            for index in itertools.product(*map(range, size))
        ]
        fits = max(indices, default=0) < 6 and math.prod(size) <= 6 - offset
        write(
            path,
            tensor(
                STORAGE,
                b"I%d\n" % offset,
                *(
                    b"".join(b"I%d\n" % n for n in part)
                    for part in (size, stride)
                ),
            ),
        )
        outcomes.add(fits)
        if fits:
            found = read_state_dict(path)["w"]
            assert found.shape == tuple(size)
            assert found.ravel().tolist() == NUMBERS[indices].tolist()
        else:
            with pytest.raises(ValueError, match="outside|bytes of tensors"):
                read_state_dict(path)
    assert outcomes == {True, False}
