"""State dicts: what is read, and that nothing else is."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from keras_aspp.backbones.state_dict import read_state_dict

NAME = "weights/mobilenet_v2-b0353104.pth"


@pytest.fixture
def path(shared):
    return shared / NAME


def test_read_state_dict(path):
    state = read_state_dict(path)
    assert len(state) == 314
    assert list(state)[0] == "features.0.0.weight"
    assert state["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert state["classifier.1.weight"].shape == (1000, 1280)
    assert {str(array.dtype) for array in state.values()} == {
        "float32",
        "int64",
    }
    assert all(np.isfinite(array).all() for array in state.values())


STATE = {
    "conv.weight": np.arange(24, dtype="float32").reshape(2, 3, 2, 2),
    "bn.num_batches_tracked": np.array(7),
    "half": np.array([1.5, -2.0], "float16"),
}


@pytest.mark.parametrize("legacy_format", [False, True], ids=["zip", "legacy"])
def test_files_that_torch_writes(tmp_path, legacy_format):
    torch = pytest.importorskip("torch", reason="extra `peers` (2026-11-30)")
    file = tmp_path / "state.pth"
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    # A view, and a parameter, are pickled in ways of their own.
    state["view"] = state["conv.weight"].permute(1, 0, 2, 3)[1:]
    state["parameter"] = torch.nn.Parameter(torch.ones(3))
    torch.save(state, file, _use_new_zipfile_serialization=not legacy_format)
    found = read_state_dict(file)
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())
        assert found[name].dtype == tensor.detach().numpy().dtype


def test_safetensors(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "state.safetensors"
    save_file(STATE, file)
    found = read_state_dict(file)
    assert found.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_array_equal(found[name], array)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="state.safetensors"):
        read_state_dict(file)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def legacy(state):
    """A file in torch's legacy layout around any object."""
    parts = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"little_endian": True, "protocol_version": 1001},
        state,
        [],
    )
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


@pytest.mark.parametrize("wrap", [pickle.dumps, legacy])
def test_a_hostile_pickle_does_not_run(tmp_path, wrap):
    target = tmp_path / "was_here"
    file = tmp_path / "hostile.pth"
    file.write_bytes(wrap({"features": Hostile(target)}))
    with pytest.raises(ValueError, match="system is not a tensor"):
        read_state_dict(file)
    assert not target.exists()
    # The same bytes would have run elsewhere, so the test bites.
    pickle.loads(pickle.dumps(Hostile(target)))
    assert target.exists()


@pytest.mark.parametrize(
    "state",
    [
        {"a": 1},
        ["a"],
        {"a": np.ones(3)},
    ],
)
def test_anything_but_tensors(tmp_path, state):
    file = tmp_path / "odd.pth"
    file.write_bytes(legacy(state))
    with pytest.raises(ValueError, match="tensors only.*odd.pth"):
        read_state_dict(file)


@pytest.mark.parametrize("size", [0, 100, 5_000, 60_000, 14_000_000])
def test_a_truncated_file(path, tmp_path, size):
    file = tmp_path / "short.pth"
    file.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="complete.*short.pth"):
        read_state_dict(file)


def zipped(file, pickled, compression=zipfile.ZIP_STORED, **storages):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return file


def test_a_hostile_zip_does_not_run(tmp_path):
    target = tmp_path / "was_here"
    pickled = pickle.dumps({"features": Hostile(target)})
    file = zipped(tmp_path / "hostile.pth", pickled)
    with pytest.raises(ValueError, match="system is not a tensor"):
        read_state_dict(file)
    assert not target.exists()


def test_a_zip_bomb(tmp_path):
    # What torch writes is not compressed.
    file = zipped(
        tmp_path / "bomb.pth",
        PICKLED,
        zipfile.ZIP_DEFLATED,
        key=bytes(4 * 10**7),
    )
    assert file.stat().st_size < 10**5
    with pytest.raises(ValueError, match="compressed data"):
        read_state_dict(file)


@pytest.mark.parametrize("storages", [{}, {"key": b"1234"}, {"k": bytes(24)}])
def test_a_zip_without_its_numbers(tmp_path, storages):
    file = zipped(tmp_path / "short.pth", PICKLED, **storages)
    with pytest.raises(ValueError, match="complete.*short.pth"):
        read_state_dict(file)


def test_an_empty_zip(tmp_path):
    file = zipped(tmp_path / "new.pth", b"")
    with pytest.raises(ValueError, match="new.pth"):
        read_state_dict(file)


@pytest.mark.parametrize(
    "text", ["hello, world\n", "Index,Name\n", "\n", "{}", "ImageNet weights"]
)
def test_a_text_file(tmp_path, text):
    file = tmp_path / "text.pth"
    file.write_text(text)
    with pytest.raises(ValueError, match="Received: path=.*text.pth"):
        read_state_dict(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        read_state_dict(tmp_path / "nothing.pth")


def tensor_pickle(offset=0, size=(2, 3), stride=(3, 1)):
    """One float tensor in a state dict, written by hand."""
    # Protocol 0 pickle: the storage is a persistent id, not an object.
    return (
        b"ccollections\nOrderedDict\n(tRp0\n0g0\n"
        b"Vw\n"
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        b"(Vstorage\nctorch\nFloatStorage\nVkey\nVcpu\nI6\nNtQ"
        + b"I%d\n" % offset
        + b"("
        + b"".join(b"I%d\n" % n for n in size)
        + b"t"
        + b"("
        + b"".join(b"I%d\n" % n for n in stride)
        + b"t"
        + b"I00\nNtR"
        b"s."
    )


PICKLED = tensor_pickle()


def tensor_file(count=6, **window):
    """The same in torch's legacy layout, over `count` numbers."""
    body = tensor_pickle(**window)
    head, keys = legacy({}), pickle.dumps(["key"], protocol=2)
    head = head[: -len(pickle.dumps({}, 2)) - len(pickle.dumps([], 2))]
    numbers = np.arange(count, dtype="<f4").tobytes()
    return head + body + keys + np.int64(count).tobytes() + numbers


def test_a_tensor_is_a_window_into_its_storage(tmp_path):
    file = tmp_path / "small.pth"
    file.write_bytes(tensor_file())
    tensor = read_state_dict(file)["w"]
    np.testing.assert_array_equal(tensor, np.arange(6.0).reshape(2, 3))
    file.write_bytes(tensor_file(offset=1, size=(2, 2), stride=(1, 2)))
    tensor = read_state_dict(file)["w"]
    np.testing.assert_array_equal(tensor, [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    "window",
    [
        {"offset": 1},
        {"offset": 7, "size": (1, 1)},
        {"offset": -3, "size": (1, 1)},
        {"size": (10**12,), "stride": (0,)},
        {"size": (3, 3)},
        {"stride": (300, 1)},
        {"stride": (-3, 1)},
        {"size": (-2, 3)},
        {"size": (2, 3, 4)},
    ],
)
def test_a_window_that_leaves_its_storage(tmp_path, window):
    file = tmp_path / "wild.pth"
    file.write_bytes(tensor_file(**window))
    with pytest.raises(ValueError, match="wild.pth"):
        read_state_dict(file)
