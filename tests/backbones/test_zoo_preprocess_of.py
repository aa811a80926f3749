"""Preprocessing of backbones that are given as models.

Expected numbers are those of each family's own `preprocess_input`, or of the
scaling that Keras builds into the same network.
"""

import warnings

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, randomize

import keras_aspp as ka
from keras_aspp import preprocess
from keras_aspp.backbones import create_backbone, with_output_stride
from keras_aspp.backbones.zoo import preprocess_of

APPLICATIONS = keras.applications
# Family -> module with its `preprocess_input`.
MODULES = {
    "VGG16": "vgg16",
    "ResNet50": "resnet",
    "ResNet50V2": "resnet_v2",
    "DenseNet121": "densenet",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Small": "mobilenet_v3",
    "MobileNetV3Large": "mobilenet_v3",
    "EfficientNetB0": "efficientnet",
    "EfficientNetV2B0": "efficientnet_v2",
    "EfficientNetV2B3": "efficientnet_v2",
    "EfficientNetV2S": "efficientnet_v2",
    "Xception": "xception",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "NASNetMobile": "nasnet",
    "ConvNeXtTiny": "convnext",
}
SCALED_WITHIN = [
    *("MobileNetV3Small", "MobileNetV3Large", "ConvNeXtTiny"),
    *("EfficientNetV2B0", "EfficientNetV2B3", "EfficientNetV2S"),
    "EfficientNetV2L",
]
# A thousand layers, and the scaling of a smaller one.
SCALED_AS = {"EfficientNetV2L": "EfficientNetV2S"}
FAST = ("VGG16", "MobileNetV2", "MobileNetV3Small")


def some_slow(names):
    return [
        pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow])
        for n in names
    ]


def build(name, **kwargs):
    return getattr(APPLICATIONS, name)(
        weights=None, include_top=False, **kwargs
    )


@pytest.fixture(scope="module")
def vgg():
    return randomize(build("VGG16"))


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (1, 40, 56, 3)).astype("float32")


def assert_preprocessed(model, image, expected):
    found = npy(preprocess_of(model)(image))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def assert_preprocessed_as_by_keras(model, name, image):
    module = getattr(APPLICATIONS, MODULES[name])
    assert_preprocessed(model, image, module.preprocess_input(image.copy()))


@pytest.mark.usefixtures("no_random_weights")
@pytest.mark.parametrize(
    "name", some_slow(n for n in MODULES if n not in SCALED_WITHIN)
)
def test_is_that_of_keras_applications(name, image):
    assert_preprocessed_as_by_keras(build(name), name, image)


@pytest.mark.usefixtures("no_random_weights")
@pytest.mark.parametrize("name", some_slow(SCALED_WITHIN))
def test_with_and_without_the_scaling_that_keras_builds_in(name, image):
    expected, scaled = image, build(SCALED_AS.get(name, name))
    if name in MODULES:
        assert_preprocessed_as_by_keras(scaled, name, image)
    for layer in scaled.layers:
        if isinstance(
            layer, (keras.layers.Rescaling, keras.layers.Normalization)
        ):
            expected = npy(layer(expected))
    assert expected.std() < 3
    model = build(name, include_preprocessing=False)
    assert_preprocessed(model, image, expected)


def renamed(model):
    def clone(layer):
        config = {**layer.get_config(), "name": f"rgb_{layer.name}_2"}
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


def nested(model):
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, model(inputs), name="mine")


FORMS = {
    "cut off": lambda m: keras.Model(
        m.inputs, m.get_layer("block2_pool").output, name="mine"
    ),
    "several outputs": lambda m: keras.Model(
        m.inputs, [m.get_layer(f"block{i}_pool").output for i in (2, 3)]
    ),
    "renamed": renamed,
    "nested": nested,
    "sequential": lambda m: keras.Sequential([keras.Input((None, None, 3)), m]),
    "dense": lambda m: with_output_stride(m, 8),
    "padded": lambda m: keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.ZeroPadding2D(3), m]
    ),
    "loaded": lambda m: type(m).from_config(m.get_config()),
}


@pytest.mark.parametrize("form", FORMS)
def test_of_any_form_of_a_network(vgg, form, image):
    expected = APPLICATIONS.vgg16.preprocess_input(image.copy())
    assert_preprocessed(FORMS[form](vgg), image, expected)


def documented(preprocess_input, model):
    """As the documentation of `preprocess_input` builds a model."""
    inputs = keras.Input((None, None, 3), dtype="uint8")
    x = preprocess_input(keras.ops.cast(inputs, "float32"))
    return keras.Model(inputs, model(x))


@pytest.mark.parametrize("module", ["vgg16", "mobilenet", "densenet"])
def test_pixels_preprocessed_within_the_model_stay_as_they_are(
    vgg, module, image
):
    preprocess_input = getattr(APPLICATIONS, module).preprocess_input
    model = documented(preprocess_input, vgg)
    assert_preprocessed(model, image, image)


def test_a_cast_of_pixels_is_no_preprocessing(vgg, image):
    expected = APPLICATIONS.vgg16.preprocess_input(image.copy())
    assert_preprocessed(documented(lambda x: x, vgg), image, expected)


def test_features_of_a_segmenter_are_those_of_the_network(vgg, image):
    model = ka.models.DeepLabV3(
        3, vgg, output_stride=32, atrous_rates=(1,), aspp_filters=4
    )
    theirs = keras.Model(vgg.inputs, vgg.get_layer("block5_conv3").output)
    image = np.round(image)
    expected = theirs([APPLICATIONS.vgg16.preprocess_input(image.copy())])
    assert_close(model.backbone(model.preprocess(image))["stride_16"], expected)
    # Another segmenter on its backbone sees the same pixels.
    assert preprocess_of(model.backbone) == preprocess.KERAS_CAFFE


def test_other_channels_have_no_published_mean():
    model = build("VGG16", input_shape=(64, 64, 1))
    assert preprocess_of(model) == preprocess.KERAS_TF


def test_a_network_of_ones_own(toy_backbone):
    assert preprocess_of(toy_backbone()) == preprocess.KERAS_TF
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(inputs)
    assert preprocess_of(keras.Model(inputs, x)) == preprocess.KERAS_TF


def test_an_attribute_of_that_name_that_is_something_else(toy_backbone):
    model = toy_backbone()
    model.preprocess = lambda image: image / 255
    assert preprocess_of(model) == preprocess.KERAS_TF


def bare(name, **kwargs):
    """A backbone of ours in a new model, which does not say its origin."""
    model = create_backbone(name, 32, None, **kwargs)
    return keras.Model(model.input, model.output)


def test_backbones_of_ours_keep_it_when_made_dense():
    model = create_backbone("mobilenet_v2_0.35", 32, None)
    model.preprocess = preprocess.TORCHVISION
    assert with_output_stride(model, 16).preprocess == preprocess.TORCHVISION


@pytest.mark.slow
def test_torchvision_weights_are_recognized():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bare("mobilenet_v2_0.35")
        assert preprocess_of(model) == preprocess.KERAS_TF
        model = bare("mobilenet_v2_0.35", batch_norm_epsilon=1e-5)
        assert preprocess_of(model) == preprocess.TORCHVISION


@pytest.mark.slow
def test_torchvision_resnets_are_recognized():
    from keras_aspp.backbones.rebuild import rebuild
    from keras_aspp.backbones.torchvision import resnet_changes

    model = build("ResNet50")
    changes = resnet_changes(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            changes[layer.name] = {"epsilon": 1e-5}
    model = rebuild(model, changes, carry=lambda layer, copy: None)
    assert preprocess_of(model) == preprocess.TORCHVISION


@pytest.mark.slow
def test_a_pixel_range_that_cannot_be_told_is_warned_of():
    model = bare("mobilenet_v3_large")
    message = "mobilenet_v3_large of Keras and of .* torchvision.*`preprocess=`"
    with pytest.warns(UserWarning, match=message):
        assert preprocess_of(model) == preprocess.KERAS_TF
