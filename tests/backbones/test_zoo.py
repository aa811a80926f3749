"""create_backbone, on a narrow MobileNetV2; the real ones are slow."""

import re

import h5py
import keras
import numpy as np
import pytest
from helpers import assert_close, compute_dtypes, npy, randomize, sample

from keras_aspp import preprocess
from keras_aspp.backbones import (
    create_backbone,
    families,
    feature_strides,
    list_backbones,
    padding,
    with_output_stride,
    zoo,
)
from keras_aspp.backbones.rebuild import rebuild
from keras_aspp.layers import MaxPooling2D, ZeroPadding2D

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


def check_dense(model, output_strides, offset=0, sizes=((64, 96),)):
    """Dense features, subsampled, equal those of `model` at stride 32."""
    images = [sample((1, *size, 3)) for size in sizes]
    originals = [model(x) for x in images]
    for output_stride in output_strides:
        dense = with_output_stride(model, output_stride)
        for x, original in zip(images, originals, strict=True):
            features = dense(x)
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
    assert {"vgg16", "efficientnet_v2_s", "convnext_xlarge"} <= set(names)
    # All of keras.applications that is a network, and each builds.
    builders = {
        family.builder
        for family in families.FAMILIES.values()
        if isinstance(family.builder, str)
    }
    assert builders == {
        name for name in dir(keras.applications) if name[0].isupper()
    }


@pytest.mark.slow
def test_feature_keys_and_sizes(narrow):
    for output_stride in (32, 16):
        model = with_output_stride(narrow, output_stride)
        for size in ((65, 97), (100, 75)):
            spec = keras.KerasTensor((1, *size, 3))
            features = model.compute_output_spec(spec)
            assert list(features) == KEYS
            assert sizes(features) == ceil_sizes(*size, output_stride)


def test_dense_features_of_symmetric_padding(narrow):
    check_dense(narrow, (16, 8), sizes=((64, 75),))


def test_padding_is_symmetric_without_weights(narrow):
    paddings = {
        layer.name: layer.padding
        for layer in narrow.layers
        if isinstance(layer, ZeroPadding2D)
    }
    assert len(paddings) == 5  # the stem and four strided blocks
    assert set(paddings.values()) == {((1, 1), (1, 1))}


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
@pytest.mark.usefixtures("no_random_weights")
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


@pytest.mark.slow
@pytest.mark.usefixtures("no_random_weights")
@pytest.mark.parametrize("dtype", ["S80", h5py.string_dtype()], ids=str)
def test_keras_published_weights_files(tmp_path, dtype):
    """The older layout, with names in attributes of either type.

    As `save_weights("NAME.h5")` of Keras 2 wrote it.
    """
    original = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False
    )
    randomize(original)
    path = tmp_path / "narrow.h5"
    layers = original.layers
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4"
        names = np.array([layer.name for layer in layers], "S")
        file.attrs["layer_names"] = names.astype(dtype)
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{weight.path}:0" for weight in layer.weights]
            # NumPy makes floats of an empty list.
            names = np.array(names, "S" if names else None)
            group.attrs["weight_names"] = (
                names.astype(dtype) if names.size else names
            )
            for weight in layer.weights:
                group[f"{weight.path}:0"] = npy(weight)
    model = create_backbone("mobilenet_v2_0.35", 32, weights=path)
    found = {weight.path: npy(weight) for weight in model.weights}
    expected = {weight.path: npy(weight) for weight in original.weights}
    assert len(found) > 200
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50_0.5", "mobilenet_v2_", "mobilenet_0", None]
)
def test_unknown_name(name):
    with pytest.raises(ValueError, match=f"Received: name={name!r}"):
        create_backbone(name, weights=None)


def test_near_names():
    with pytest.raises(ValueError, match="Did you mean efficientnet_b0 or"):
        create_backbone("efficientnetb0", weights=None)


@pytest.mark.parametrize(
    "input_shape",
    [
        (None, None),
        None,
        3,
        "abc",
        (0, 64, 3),
        (64, 64, 0),
        (64, 64, None),
        (64.0, 64, 3),
        (64, 64, True),
    ],
)
def test_input_shape_is_checked(input_shape):
    received = re.escape(f"Received: input_shape={input_shape!r}")
    with pytest.raises(ValueError, match=received):
        create_backbone("mobilenet_v2_0.35", 16, None, input_shape)


@pytest.mark.parametrize(
    "name, value",
    [
        ("batch_norm_epsilon", -1),
        ("batch_norm_epsilon", "x"),
        ("batch_norm_momentum", 2),
        ("dtype", "foo"),
    ],
)
def test_configuration_is_checked_before_weights_are_loaded(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}"):
        create_backbone("resnet50", 16, "imagenet", **{name: value})


def test_sizes_that_must_be_known(tmp_path):
    path = tmp_path / "nasnet.weights.h5"
    path.touch()
    message = r"nasnet_mobile.*both sizes.*input_shape=\(None, 224, 3\)"
    with pytest.raises(ValueError, match=message):
        create_backbone(
            "nasnet_mobile", weights=path, input_shape=(None, 224, 3)
        )


@pytest.mark.parametrize(
    "name, channels",
    [("mobilenet_0.25", 1), ("efficientnet_b0", 4), ("efficientnet_lite0", 4)],
)
def test_another_number_of_channels(name, channels):
    """Published means are of three channels."""
    shape = (None, None, channels)
    model = create_backbone(name, 32, None, input_shape=shape)
    assert model.input.shape[1:] == shape
    assert model.preprocess == preprocess.KERAS_TF
    image = np.zeros((1, 4, 4, channels))
    assert model.preprocess(image).shape == image.shape


@pytest.mark.parametrize(
    "name, module",
    [
        ("vgg16", "vgg16"),
        ("vgg19", "vgg19"),
        ("resnet152", "resnet"),
        ("resnet50_v2", "resnet_v2"),
        ("mobilenet", "mobilenet"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("xception", "xception"),
        ("densenet169", "densenet"),
        ("inception_v3", "inception_v3"),
        ("inception_resnet_v2", "inception_resnet_v2"),
        ("nasnet_large", "nasnet"),
    ],
)
def test_preprocess_is_that_of_keras(name, module):
    image = np.random.default_rng(0).uniform(0, 255, (1, 5, 7, 3))
    image = image.astype("float32")
    theirs = getattr(keras.applications, module).preprocess_input(image.copy())
    ours = families.FAMILIES[name].preprocess(image)
    np.testing.assert_allclose(npy(ours), npy(theirs), atol=1e-4)


def scaled(image, scaling):
    for layer in scaling:
        image = layer(image)
    return npy(image)


def test_scaling_is_taken_out_of_the_graph():
    """EfficientNet's, with the numbers of its weights."""
    layers = keras.layers
    scaling = [
        layers.Rescaling(1 / 255),
        layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3]),
        layers.Rescaling([1.5, 2.0, 2.5]),
    ]
    inputs = x = keras.Input((None, None, 3))
    for layer in [*scaling, layers.Conv2D(4, 3), layers.Rescaling(2.0)]:
        x = layer(x)
    model = randomize(keras.Model(inputs, x))
    bare, own = zoo._without_preprocessing(model, preprocess.KERAS_TF)
    assert [type(layer).__name__ for layer in bare.layers] == [
        "InputLayer",
        "Conv2D",
        "Rescaling",
    ]
    image = np.random.default_rng(0).uniform(0, 255, (1, 9, 7, 3))
    np.testing.assert_allclose(
        npy(own(image)), scaled(image, scaling), rtol=1e-4, atol=1e-4
    )
    assert_close(bare(own(image)), model(image), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "efficientnet_v2_b0",
        "efficientnet_v2_s",
        "convnext_tiny",
    ],
)
def test_preprocess_is_that_within_the_model(name):
    family = families.FAMILIES[name]
    model = getattr(keras.applications, family.builder)(
        weights=None, include_top=False
    )
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    scaling = [layer for layer in model.layers if isinstance(layer, kinds)]
    image = np.random.default_rng(0).uniform(0, 255, (1, 9, 7, 3))
    expected = scaled(image.astype("float32"), scaling)
    np.testing.assert_allclose(
        npy(family.preprocess(image)), expected, rtol=1e-4, atol=1e-4
    )


WINDOWS = {
    "same": lambda k: [k.Conv2D(4, 3, 2, "same"), k.DepthwiseConv2D(3)],
    "zeros": lambda k: [
        k.ZeroPadding2D(((1, 2), (1, 2))),
        k.Conv2D(4, 5, 2),
        k.ZeroPadding2D(((0, 1), (0, 1))),
        k.MaxPooling2D(3, 2),
    ],
    "valid": lambda k: [
        k.Conv2D(4, 3, 2),
        k.SeparableConv2D(4, 3),
        k.MaxPooling2D(3, 2),
    ],
    "pools": lambda k: [
        k.MaxPooling2D(2, 2),
        k.MaxPooling2D(3, 2, "same"),
        k.AveragePooling2D(2, 2),
    ],
    "patches": lambda k: [k.Conv2D(4, 4, 4), k.Conv2D(4, 2, 2)],
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_symmetric_padding(kind):
    """ceil(picture / stride) cells, the first of them at cell 0."""
    inputs = x = keras.Input((None, None, 3))
    for layer in WINDOWS[kind](keras.layers):
        x = layer(x)
    model = keras.Sequential(
        [inputs, keras.Model(inputs, x, name="inner"), keras.layers.ReLU()]
    )
    model = randomize(rebuild(model, *padding.symmetric_padding(model)))
    stride = max(feature_strides(model).values())
    dense = with_output_stride(model, 1)
    for height, width in ((24, 33), (23, 31), (25, 26), (22, 28)):
        x = sample((1, height, width, 3))
        expected = npy(model(x))
        assert expected.shape[1:3] == (
            -(-height // stride),
            -(-width // stride),
        )
        assert dense(x).shape[1:3] == (height, width)
        kept = npy(dense(x))[:, ::stride, ::stride]
        assert_close(kept, expected, 1e-5)


def test_symmetric_padding_of_a_pool_counts_for_nothing():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.MaxPooling2D(3, 2, "same", name="pool")(inputs)
    model = keras.Model(inputs, x)
    model = rebuild(model, *padding.symmetric_padding(model))
    assert type(model.get_layer("pool")) is MaxPooling2D
    x = -1 - np.abs(sample((1, 8, 6, 3)))
    assert npy(model(x)).max() < -1


@pytest.mark.slow
@pytest.mark.usefixtures("no_random_weights", "two_equal_blocks")
@pytest.mark.parametrize(
    "name",
    ["vgg16", "mobilenet_0.25", "xception", "convnext_tiny", "nasnet_mobile"],
)
def test_symmetric_families_are_dense_at_every_stride(name):
    model = randomize(create_backbone(name, 32, weights=None))
    x = sample((1, 75, 97, 3))
    original, dense = model(x), with_output_stride(model, 8)(x)
    wanted = ceil_sizes(75, 97, 32)
    assert sizes(original) == {key: wanted[key] for key in original}
    for key in original:
        step = max(int(key.split("_")[1]) // 8, 1)
        kept = npy(dense[key]).astype("float64")[:, ::step, ::step]
        assert_close(kept, original[key], 1e-4, least_std=0.05)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.h5.*not exist"):
        create_backbone("resnet50", weights=tmp_path / "nothing.h5")
    # 0 is an open file to the operating system.
    for weights in (0, []):
        with pytest.raises(FileNotFoundError, match="Received: weights="):
            create_backbone("resnet50", weights=weights)


def test_weights_that_do_not_fit(tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    path = tmp_path / "other.weights.h5"
    other.save_weights(path)
    with pytest.raises(ValueError, match="mobilenet_v2_0.35.*other.weights"):
        create_backbone("mobilenet_v2_0.35", weights=path)


def test_no_importer(tmp_path):
    path = tmp_path / "vgg16.pth"
    path.touch()
    with pytest.raises(ValueError, match="No importer.*vgg16.*resnet50"):
        create_backbone("vgg16", weights=path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_random_weights")
def test_torchvision_weights_are_dense_at_every_stride(shared):
    path = shared / TORCHVISION
    model = create_backbone("mobilenet_v2", 32, weights=path)
    assert model.preprocess == preprocess.TORCHVISION
    check_dense(model, (4,))
    check_dense(model, (16, 8), sizes=((64, 96), (65, 99)))
    features = create_backbone("mobilenet_v2", 16, path)(sample((1, 65, 97, 3)))
    assert sizes(features) == ceil_sizes(65, 97, 16)


@pytest.mark.slow
@pytest.mark.usefixtures("no_random_weights")
def test_resnets_are_dense_at_every_stride():
    """The deeper ones have more of the same blocks."""
    model = randomize(create_backbone("resnet50", 32, weights=None))
    check_dense(model, (16, 8), sizes=((64, 96), (65, 97)))
    features = model(sample((1, 65, 97, 3)))
    assert sizes(features) == ceil_sizes(65, 97, 32)
    assert model.preprocess == preprocess.KERAS_CAFFE


@pytest.mark.slow
@pytest.mark.usefixtures("no_random_weights")
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


def test_depthwise_kernels_of_a_fresh_backbone_have_their_own_fans():
    model = create_backbone("mobilenet_v2_0.35", 16, weights=None)
    kernels = [
        npy(layer.kernel)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.DepthwiseConv2D)
    ]
    assert len(kernels) == 17
    # Glorot's variance 2 / (fan in + fan out), nine taps in and nine out.
    stacked = np.concatenate([kernel.ravel() for kernel in kernels])
    assert stacked.var() == pytest.approx(2 / 18, rel=0.05)
