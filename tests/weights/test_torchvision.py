"""torchvision's networks: MobileNetV2 against NumPy, the others PyTorch."""

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, sample

from keras_aspp.backbones import create_backbone, torchvision
from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.models import DeepLabV3
from keras_aspp.weights import from_torchvision
from keras_aspp.weights import torchvision as segmenters

# Those of files replace them.
pytestmark = pytest.mark.usefixtures("no_random_weights")
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


def test_features_equal_a_forward_pass_in_numpy(path):
    state = read_state_dict(path)
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
    torchvision.fill_mobilenet(model, read_state_dict(path), path)
    tensors = [
        array
        for name, array in read_state_dict(path).items()
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


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("torch", reason="extra `peers` (2026-11-30)")
    import torch_networks

    return torch_networks


def assert_equal_to_torch(network, model, size, key=None):
    """Maximum difference of 1e-4 standard deviations."""
    import torch

    x = sample((2, *size, 3))
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2))
    actual = model(x, training=False)
    actual = actual if key is None else actual[key]
    assert_close(actual, expected.permute(0, 2, 3, 1).numpy(), 1e-4, 1e-3)


def saved(network, path):
    """A state dict as torchvision publishes it."""
    import torch

    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes",
    [
        ("resnet50", [(64, 96), (40, 72)]),
        ("mobilenet_v3_large", [(64, 96), (33, 50)]),
    ],
)
def test_backbones_equal_pytorch(networks, name, sizes, tmp_path):
    network = networks.randomized(networks.BACKBONES[name]())
    path = saved(network, tmp_path / "state.pth")
    model = create_backbone(name, 32, path)
    assert model.preprocess.mean == (0.485, 0.456, 0.406)
    for size in sizes:
        assert_equal_to_torch(network, model, size, "stride_32")


@pytest.fixture(scope="module")
def resnet_segmenter(networks, tmp_path_factory):
    """torchvision's network, its state dict, and the model made of it."""
    network = networks.SEGMENTERS["deeplabv3_resnet50"](num_classes=6)
    folder = tmp_path_factory.mktemp("resnet50")
    path = saved(networks.randomized(network), folder / "state.pth")
    return network, path, from_torchvision("deeplabv3_resnet50", path)


@pytest.mark.slow
def test_segmenter_on_resnet_equals_pytorch(resnet_segmenter):
    network, _, model = resnet_segmenter
    assert model.num_classes == 6
    for size in ((64, 96), (96, 48)):
        assert_equal_to_torch(network, model, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
)
def test_segmenter_on_mobilenet_equals_pytorch(networks, name, tmp_path):
    network = networks.randomized(networks.SEGMENTERS[name](num_classes=6))
    model = from_torchvision(name, saved(network, tmp_path / "state.pth"))
    for size in ((64, 96), (96, 48)):
        assert_equal_to_torch(network, model, size)
    # It comes back from a file as it was.
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal_to_torch(network, again, (64, 96))


def test_segmenters_are_of_the_published_backbones_and_strides():
    """The deeper ResNet takes the path of the other one, which is run."""
    assert segmenters._SEGMENTERS == {
        "deeplabv3_resnet50": ("resnet50", 8),
        "deeplabv3_resnet101": ("resnet101", 8),
        "deeplabv3_mobilenet_v3_large": ("mobilenet_v3_large", 16),
        "lraspp_mobilenet_v3_large": ("mobilenet_v3_large", 16),
    }


def test_tensors_of_lr_aspp_have_the_published_names(networks):
    """Number of parameters as torchvision's documentation states it."""
    network = networks.SEGMENTERS["lraspp_mobilenet_v3_large"](num_classes=21)
    assert sum(p.numel() for p in network.parameters()) == 3_221_538
    names = network.state_dict().keys()
    assert {
        "backbone.0.0.weight",
        "backbone.4.block.2.fc1.weight",
        "backbone.16.0.weight",
        "classifier.cbr.0.weight",
        "classifier.cbr.1.running_mean",
        "classifier.scale.1.weight",
        "classifier.low_classifier.bias",
        "classifier.high_classifier.weight",
    } <= names


@pytest.mark.slow
def test_lr_aspp_without_a_tensor_names_it(networks, tmp_path):
    import torch

    name = "lraspp_mobilenet_v3_large"
    state = networks.SEGMENTERS[name](num_classes=6).state_dict()
    for tensor in ("cbr.0.weight", "scale.1.weight"):
        less = {k: v for k, v in state.items() if not k.endswith(tensor)}
        torch.save(less, tmp_path / "state.pth")
        with pytest.raises(ValueError, match=f"Missing tensor {tensor}"):
            from_torchvision(name, tmp_path / "state.pth")


@pytest.mark.slow
def test_fine_tuning_on_other_classes(resnet_segmenter, tmp_path):
    _, _, voc = resnet_segmenter
    voc.save(tmp_path / "voc.keras")
    with pytest.warns(
        UserWarning, match="except for the classifier: 2 tensors"
    ):
        mine = DeepLabV3(
            3,
            "resnet50",
            8,
            (12, 24, 36),
            weights=tmp_path / "voc.keras",
            refine_filters=256,
        )
    assert mine.preprocess.mean == (0.485, 0.456, 0.406)
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    mine.compile("sgd", loss, run_eagerly=True)
    labels = np.zeros((2, 32, 32), "int32")
    mine.train_on_batch(sample((2, 32, 32, 3)), labels)


@pytest.mark.slow
def test_an_auxiliary_head_is_left_with_a_warning(networks, tmp_path):
    name = "deeplabv3_mobilenet_v3_large"
    state = dict(networks.SEGMENTERS[name](num_classes=6).state_dict())
    state["aux_classifier.0.weight"] = state["classifier.1.weight"]
    import torch

    torch.save(state, tmp_path / "state.pth")
    with pytest.warns(UserWarning, match="Left: 1 tensors of aux_classifier"):
        from_torchvision(name, tmp_path / "state.pth")


@pytest.mark.slow
def test_tensors_that_do_not_fit(resnet_segmenter, tmp_path):
    network, _, _ = resnet_segmenter
    state = {k: v.numpy() for k, v in network.backbone.state_dict().items()}
    for change, message in (
        (
            {"more.weight": np.ones(3)},
            "Unexpected tensors in the file: 1, for example more.w",
        ),
        ({"bn1.bias": np.ones(3)}, "bn1.bias of 'a state dict' does not fit"),
        ({"bn1.bias": None}, "Missing tensor bn1.bias"),
    ):
        changed = {**state, **change}
        changed = {k: v for k, v in changed.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            create_backbone("resnet50", weights=changed)
    with pytest.raises(ValueError, match="one for mobilenet_v2, .*vgg16"):
        create_backbone("vgg16", weights=state)
    with pytest.raises(ValueError, match="Received: architecture='fcn'"):
        from_torchvision("fcn", tmp_path / "nothing.pth")


@pytest.mark.slow
def test_download_checks_the_file(tmp_path, monkeypatch, shared):
    calls = []

    def get_file(name, origin, **_):
        calls.append(origin)
        return str(tmp_path / name)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    file = tmp_path / "mobilenet_v2-b0353104.pth"
    file.write_bytes(b"an error page")
    with pytest.raises(ValueError, match="not the published one.*mobilenet"):
        torchvision.download("mobilenet_v2")
    file.write_bytes((shared / NAME).read_bytes())
    assert torchvision.download("mobilenet_v2") == str(file)
    base = "https://download.pytorch.org/models/"
    assert set(calls) == {f"{base}mobilenet_v2-b0353104.pth"}
    # The published weights, through the name that downloads them.
    model = create_backbone("mobilenet_v2", weights="torchvision")
    same = create_backbone("mobilenet_v2", weights=shared / NAME)
    for a, b in zip(model.weights, same.weights, strict=True):
        np.testing.assert_array_equal(npy(a), npy(b))


def test_without_a_network(monkeypatch):
    def get_file(*_, **__):
        raise Exception("URL fetch failure")  # noqa: TRY002 - as Keras does

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(OSError, match="pass its path.*URL fetch failure"):
        create_backbone("resnet50", weights="torchvision")
