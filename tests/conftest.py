"""Fixtures for every test."""

import gc
import os
import pathlib

# Read when TensorFlow is imported, so before Keras is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes on two cores: more threads would be in each other's way.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# XLA's own passes run as ever; LLVM's optimizations would take most of the
# time of compiling what runs a few times.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import pytest

from keras_aspp.cli.log import printed_messages

pytest.register_assert_rewrite("helpers", "model_tester")

pytest_plugins = ["tiny_run", "time_share"]
# Needs PyTorch, which looking for doctests in it would import.
collect_ignore = ["weights/torch_networks.py"]

# Half a million objects of TensorFlow need no collection, and graphs make
# millions more: the default thresholds cost a sixth of the CPU time.
gc.freeze()
gc.set_threshold(50_000, 10, 10)

ROOT = pathlib.Path(__file__).parents[1]
# They begin first, so that no process is left with a long file at the end.
LONG_FILES = [
    f"tests/{name}.py"
    for name in (
        "cli/test_demo",  # waits for the tiny run, which it builds
        "models/test_deeplab_v3",
        "export/test_exporter",
        "cli/test_main",
        "losses/test_losses",
        "backbones/test_atrous",
        "inference/test_predictor",
        "models/test_precision_matrix",
        "engine/test_resume_matrix",
        "backbones/test_families",
        "integration/test_kill",
        "integration/test_two_processes",
        "integration/test_jax",
        "integration/test_ablation",
        "weights/test_torchvision",
        "backbones/test_zoo",
        "backbones/test_preprocess_of",
        "models/test_published",
        "models/test_deeplab_v3_plus",
        "layers/test_lowering",
        "hostile/test_hostile_models",
        "inference/test_channels",
    )
]


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(items):
    for item in items:
        # Each of their examples builds a real backbone.
        if isinstance(item, pytest.DoctestItem) and (
            item.path.match("models/*") or item.path.match("backbones/*")
        ):
            item.add_marker(pytest.mark.slow)
    rank = {file: i for i, file in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


def pytest_xdist_make_scheduler(config, log):
    """File by file, so that what a module shares is built once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of tests
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(20180207)


@pytest.fixture(scope="session")
def shared():
    """The folder beside the project, which not every machine has."""
    path = os.environ.get("KERAS_ASPP_SHARED", ROOT.parent / "shared")
    path = pathlib.Path(path)
    if not path.is_dir():
        pytest.skip("shared/ is absent: set KERAS_ASPP_SHARED (2026-11-28)")
    return path


@pytest.fixture(scope="session")
def toy_backbone():
    """A factory of four-block networks down to stride 32."""
    return make_toy_backbone


def zero_padded_depthwise(x, padding, name, dtype):
    """ZeroPadding2D and a strided `valid` depthwise convolution."""
    x = keras.layers.ZeroPadding2D(padding, dtype=dtype, name=f"{name}_pad")(x)
    return keras.layers.DepthwiseConv2D(
        3, strides=2, use_bias=False, dtype=dtype, name=name
    )(x)


def make_toy_backbone(
    channels=3,
    padding=((0, 1), (0, 1)),
    features=False,
    dtype=None,
    size=None,
):
    """Functional model of plain Keras layers, strides 2, 4, 8, 16, 32.

    Args:
        channels: int, of the picture.
        padding: before the strided `valid` layers: Keras' own ((0, 1), (0, 1))
            or symmetric 1. With 1, no layer pads by the size of its input.
        features: bool. Dict outputs by nominal stride, or the last tensor.
        dtype: Keras dtype policy of every layer.
        size: height and width that it is made for, or any.
    """

    def unit(x, layer, name, activate=True):
        x = layer(x)
        x = keras.layers.BatchNormalization(dtype=dtype, name=f"{name}_bn")(x)
        if activate:
            x = keras.layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)
        return x

    def conv(filters, size, name, **kwargs):
        return keras.layers.Conv2D(
            filters, size, use_bias=False, dtype=dtype, name=name, **kwargs
        )

    def strided(x, filters, name):
        if padding != 1:
            layer = conv(filters, 3, name, strides=2, padding="same")
            return unit(x, layer, name)
        x = keras.layers.ZeroPadding2D(1, dtype=dtype, name=f"{name}_pad")(x)
        return unit(x, conv(filters, 3, name, strides=2), name)

    outputs = {}
    inputs = x = keras.Input((size, size, channels), name="picture")
    outputs["stride_2"] = x = strided(x, 8, "stem")
    x = zero_padded_depthwise(x, padding, "block1_depthwise", dtype)
    outputs["stride_4"] = x = unit(x, conv(12, 1, "block1"), "block1")
    outputs["stride_8"] = x = strided(x, 16, "block2")
    x = zero_padded_depthwise(x, padding, "block3_depthwise", dtype)
    x = short = unit(x, conv(16, 1, "block3"), "block3", activate=False)
    x = unit(x, conv(16, 3, "block3_inner", padding="same"), "block3_inner")
    add = keras.layers.Add(dtype=dtype, name="block3_add")
    outputs["stride_16"] = x = add([x, short])
    x = strided(x, 24, "block4")
    x = unit(x, conv(24, 3, "block4_inner", padding="same"), "block4_inner")
    outputs["stride_32"] = x
    return keras.Model(inputs, outputs if features else x, name="toy")


@pytest.fixture(autouse=True)
def messages_are_printed():
    """Prints what the package logs, as the command line does."""
    with printed_messages():
        yield
