"""torchvision's checkpoint, against a forward pass in NumPy."""

import os
import pickle
import zipfile

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, sample

from keras_aspp.backbones import create_backbone
from keras_aspp.weights import torchvision

NAME = "weights/mobilenet_v2-b0353104.pth"


@pytest.fixture
def path(shared):
    return shared / NAME


def convolve(x, kernel, stride=1):
    """Symmetric padding, kernel (F, C, kh, kw) as torch has it."""
    pad, size = kernel.shape[2] // 2, kernel.shape[2]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows = (x.shape[0] - size) // stride + 1
    columns = (x.shape[1] - size) // stride + 1
    total = 0.0
    for i in range(size):
        for j in range(size):
            tap = x[i::stride, j::stride][:rows, :columns]
            if kernel.shape[1] == 1 and kernel.shape[0] == x.shape[2]:
                total = total + tap * kernel[:, 0, i, j]
            else:
                total = total + tap @ kernel[:, :, i, j].T
    return total


class Forward:
    """torchvision's MobileNetV2 up to its last block, from its state dict."""

    def __init__(self, state):
        self.state, self.used = state, set()

    def take(self, name):
        self.used.add(name)
        return self.state[name].astype("float64")

    def unit(self, x, conv, norm, stride=1, activate=True):
        x = convolve(x, self.take(f"{conv}.weight"), stride)
        mean = self.take(f"{norm}.running_mean")
        variance = self.take(f"{norm}.running_var")
        x = (x - mean) / np.sqrt(variance + 1e-5)
        x = x * self.take(f"{norm}.weight") + self.take(f"{norm}.bias")
        return np.clip(x, 0, 6) if activate else x

    def block(self, x, name, stride, expand):
        y, inner = x, 0
        if expand:
            y, inner = self.unit(y, f"{name}.0.0", f"{name}.0.1"), 1
        y = self.unit(y, f"{name}.{inner}.0", f"{name}.{inner}.1", stride)
        last = (f"{name}.{inner + 1}", f"{name}.{inner + 2}")
        y = self.unit(y, *last, activate=False)
        return x + y if x.shape == y.shape else y

    def __call__(self, x):
        x = self.unit(x, "features.0.0", "features.0.1", stride=2)
        # Table 2 of Sandler et al., 2018: blocks of each stage, first stride.
        stages = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))
        number = 1
        for count, stride in stages:
            for i in range(count):
                x = self.block(
                    x,
                    f"features.{number}.conv",
                    stride if i == 0 else 1,
                    expand=number > 1,
                )
                number += 1
        return x


def test_read_state_dict(path):
    state = torchvision.read_state_dict(path)
    assert len(state) == 314
    assert list(state)[0] == "features.0.0.weight"
    assert state["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert state["classifier.1.weight"].shape == (1000, 1280)
    assert {str(array.dtype) for array in state.values()} == {
        "float32",
        "int64",
    }
    assert all(np.isfinite(array).all() for array in state.values())


def test_features_equal_a_forward_pass_in_numpy(path):
    state = torchvision.read_state_dict(path)
    x = sample((64, 96, 3))
    forward = Forward(state)
    expected = forward(x)
    model = create_backbone("mobilenet_v2", output_stride=32, weights=path)
    actual = npy(model(x[None])["stride_32"])[0]
    assert_close(actual, expected, 1e-4, least_std=0.05)
    # All that the features need was used: 52 convolutions and their norms.
    features = {
        name
        for name in state
        if name.startswith("features.")
        and not name.startswith("features.18.")
        and not name.endswith("num_batches_tracked")
    }
    assert forward.used == features
    assert len(features) == 51 * 5


def test_every_tensor_of_the_file_is_used_once(path):
    model = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    torchvision.load_mobilenet_v2(model, path)
    tensors = [
        array
        for name, array in torchvision.read_state_dict(path).items()
        if name.startswith("features.")
        and not name.endswith("num_batches_tracked")
    ]
    assert len(tensors) == len(model.weights) == 52 * 5
    for weight, tensor in zip(model.weights, tensors, strict=True):
        assert sorted(npy(weight).shape) == sorted(tensor.shape)
        # Sums over all and over the first axis of torch (filters) agree.
        if tensor.ndim == 4:
            axis = 2 if "depthwise" in weight.path else 3
            ours = npy(weight).sum(tuple({0, 1, 2, 3} - {axis}))
            np.testing.assert_allclose(
                ours, tensor.sum((1, 2, 3)), rtol=1e-3, atol=1e-4
            )
        else:
            np.testing.assert_array_equal(npy(weight), tensor)


def test_another_width_is_an_error(path):
    with pytest.raises(ValueError, match="features.*does not fit.*needed="):
        create_backbone("mobilenet_v2_0.5", weights=path)


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
        torchvision.read_state_dict(file)
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
        torchvision.read_state_dict(file)


@pytest.mark.parametrize("size", [0, 100, 5_000, 60_000, 14_000_000])
def test_a_truncated_file(path, tmp_path, size):
    file = tmp_path / "short.pth"
    file.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="complete.*short.pth"):
        torchvision.read_state_dict(file)


def test_a_zip_file(tmp_path):
    file = tmp_path / "new.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ValueError, match="new.pth.*zip format"):
        torchvision.read_state_dict(file)


@pytest.mark.parametrize(
    "text", ["hello, world\n", "Index,Name\n", "\n", "{}", "ImageNet weights"]
)
def test_a_text_file(tmp_path, text):
    file = tmp_path / "text.pth"
    file.write_text(text)
    with pytest.raises(ValueError, match="Received: path=.*text.pth"):
        torchvision.read_state_dict(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        torchvision.read_state_dict(tmp_path / "nothing.pth")


def tensor_file(offset=0, size=(2, 3), stride=(3, 1), count=6):
    """One float tensor over `count` numbers, written by hand."""
    # Protocol 0 pickle: the storage is a persistent id, not an object.
    body = (
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
    head, keys = legacy({}), pickle.dumps(["key"], protocol=2)
    head = head[: -len(pickle.dumps({}, 2)) - len(pickle.dumps([], 2))]
    numbers = np.arange(count, dtype="<f4").tobytes()
    return head + body + keys + np.int64(count).tobytes() + numbers


def test_a_tensor_is_a_window_into_its_storage(tmp_path):
    file = tmp_path / "small.pth"
    file.write_bytes(tensor_file())
    tensor = torchvision.read_state_dict(file)["w"]
    np.testing.assert_array_equal(tensor, np.arange(6.0).reshape(2, 3))
    file.write_bytes(tensor_file(offset=1, size=(2, 2), stride=(1, 2)))
    tensor = torchvision.read_state_dict(file)["w"]
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
        torchvision.read_state_dict(file)
