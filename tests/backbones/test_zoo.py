"""create_backbone, on a narrow MobileNetV2; the real ones are slow."""

import keras
import numpy as np
import pytest
from helpers import assert_close, compute_dtypes, npy, randomize, sample

from keras_aspp import preprocess
from keras_aspp.backbones import (
    create_backbone,
    list_backbones,
    with_output_stride,
)
from keras_aspp.layers import ZeroPadding2D

KEYS = ["stride_2", "stride_4", "stride_8", "stride_16", "stride_32"]
TORCHVISION = "weights/mobilenet_v2-b0353104.pth"


@pytest.fixture(scope="module")
def narrow():
    """Down to stride 32, symmetric padding."""
    model = create_backbone("mobilenet_v2_0.35", 32, weights=None)
    return randomize(model)


def sizes(features):
    return {key: tuple(map(int, f.shape[1:3])) for key, f in features.items()}


def ceil_sizes(height, width, output_stride):
    return {
        key: (-(-height // stride), -(-width // stride))
        for key in KEYS
        for stride in [min(int(key.split("_")[1]), output_stride)]
    }


def check_dense(model, output_strides, offset=0, size=(64, 96)):
    """Dense features, subsampled, equal those of `model` at stride 32."""
    x = sample((1, *size, 3))
    original = model(x)
    for output_stride in output_strides:
        features = with_output_stride(model, output_stride)(x)
        assert list(features) == KEYS
        for key in KEYS:
            step = max(int(key.split("_")[1]) // output_stride, 1)
            start = offset * (step - 1)
            kept = features[key][:, start::step, start::step]
            # Trained features are small on noise.
            assert_close(kept, original[key], 1e-4, least_std=0.05)


def test_list_backbones():
    names = list_backbones()
    assert names == sorted(names)
    assert {"mobilenet_v2", "mobilenet_v2_0.35", "resnet50"} <= set(names)


def test_feature_keys_and_sizes(narrow):
    for output_stride in (32, 16):
        model = with_output_stride(narrow, output_stride)
        for size in ((65, 97), (100, 75)):
            spec = keras.KerasTensor((1, *size, 3))
            features = model.compute_output_spec(spec)
            assert list(features) == KEYS
            assert sizes(features) == ceil_sizes(*size, output_stride)


def test_dense_features_of_symmetric_padding(narrow):
    check_dense(narrow, (16, 8), size=(64, 75))


def test_padding_is_symmetric_without_weights(narrow):
    paddings = {
        layer.name: layer.padding
        for layer in narrow.layers
        if isinstance(layer, ZeroPadding2D)
    }
    assert len(paddings) == 5  # the stem and four strided blocks
    assert set(paddings.values()) == {((1, 1), (1, 1))}


@pytest.mark.parametrize("weights", ["imagenet", "some.weights.h5"])
def test_one_input_channel_with_weights(weights):
    message = r"three input channels.*input_shape=\(None, None, 1\), weights="
    with pytest.raises(ValueError, match=message):
        create_backbone(
            "mobilenet_v2", weights=weights, input_shape=(None, None, 1)
        )


def test_arguments_of_every_layer():
    model = create_backbone(
        "mobilenet_v2_0.35",
        output_stride=8,
        weights=None,
        input_shape=(64, 96, 1),
        batch_norm_epsilon=2e-5,
        batch_norm_momentum=0.7,
        dtype="mixed_bfloat16",
    )
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) > 40
    assert {layer.epsilon for layer in norms} == {2e-5}
    assert {layer.momentum for layer in norms} == {0.7}
    assert set(compute_dtypes(model).values()) == {"bfloat16"}
    assert model.input.shape == (None, 64, 96, 1)
    assert sizes(model.output) == ceil_sizes(64, 96, 8)
    assert model.name == "mobilenet_v2_0_35"


def test_arguments_left_alone(narrow):
    norm = narrow.get_layer("bn_Conv1")
    assert (norm.epsilon, norm.momentum) == (1e-3, 0.999)
    assert narrow.preprocess == preprocess.KERAS_TF


@pytest.mark.slow
def test_keras_weights_file(tmp_path):
    """Padding, epsilon and values follow the file's own model."""
    original = keras.applications.MobileNetV2(
        alpha=0.35,
        weights=None,
        include_top=False,
        input_shape=(None, None, 3),
    )
    randomize(original)
    path = tmp_path / "narrow.weights.h5"
    original.save_weights(path)
    model = create_backbone("mobilenet_v2_0.35", 32, weights=path)
    assert model.preprocess == preprocess.KERAS_TF
    inner = keras.Model(
        original.input, original.get_layer("block_16_project_BN").output
    )
    for size in ((64, 96), (65, 97)):
        x = sample((1, *size, 3))
        assert_close(model(x)["stride_32"], inner(x), 1e-5)
    # Keras pads a map of unknown size by (0, 1): the odd samples stay.
    check_dense(model, (16, 8), offset=1)


def test_unknown_name():
    for name in ("resnet18", "resnet50_0.5", "mobilenet_v2_", None):
        with pytest.raises(ValueError, match=f"Received: name={name!r}"):
            create_backbone(name, weights=None)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.h5.*not exist"):
        create_backbone("resnet50", weights=tmp_path / "nothing.h5")


def test_weights_that_do_not_fit(tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    path = tmp_path / "other.weights.h5"
    other.save_weights(path)
    with pytest.raises(ValueError, match="mobilenet_v2_0.35.*other.weights"):
        create_backbone("mobilenet_v2_0.35", weights=path)


def test_no_importer(tmp_path):
    path = tmp_path / "resnet50.pth"
    path.touch()
    with pytest.raises(ValueError, match="No importer.*resnet50"):
        create_backbone("resnet50", weights=path)


@pytest.mark.slow
def test_torchvision_weights_are_dense_at_every_stride(shared):
    path = shared / TORCHVISION
    model = create_backbone("mobilenet_v2", 32, weights=path)
    assert model.preprocess == preprocess.TORCHVISION
    check_dense(model, (16, 8, 4))
    check_dense(model, (16, 8), size=(129, 195))
    features = create_backbone("mobilenet_v2", 16, path)(sample((1, 65, 97, 3)))
    assert sizes(features) == ceil_sizes(65, 97, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_resnets_are_dense_at_every_stride(name):
    model = randomize(create_backbone(name, 32, weights=None))
    check_dense(model, (16, 8))
    check_dense(model, (16,), size=(65, 97))
    features = model(sample((1, 65, 97, 3)))
    assert sizes(features) == ceil_sizes(65, 97, 32)
    assert model.preprocess == preprocess.KERAS_CAFFE


@pytest.mark.slow
def test_resnet_weights_file(tmp_path):
    original = keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    randomize(original)
    path = tmp_path / "resnet50.weights.h5"
    original.save_weights(path)
    model = create_backbone("resnet50", 32, weights=path)
    x = sample((1, 65, 97, 3))
    np.testing.assert_allclose(
        npy(model(x)["stride_32"]), npy(original(x)), rtol=1e-5, atol=1e-5
    )
