"""keras-hub's DeepLabV3+ as a model of ours: the same logits."""

import json

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

import keras_aspp as ka
from benchmarks.peers import keras_hub_encoder

pytestmark = pytest.mark.slow  # a ResNet-50 of theirs and one of ours
keras_hub = pytest.importorskip("keras_hub", reason="needs the extra `peers`")


def build(
    encoder=None, scale=(0.01, 0.02, 0.03), offset=(-1.0, 0.5, 0.25), **kwargs
):
    arguments = {
        "spatial_pyramid_pooling_key": "P5",
        "low_level_feature_key": "P2",
        "upsampling_size": 8,
        "dilation_rates": [6, 12, 18],
        **kwargs,
    }
    converter = keras_hub.layers.DeepLabV3ImageConverter(
        scale=scale, offset=offset
    )
    return randomize(
        keras_hub.models.DeepLabV3ImageSegmenter(
            backbone=keras_hub.models.DeepLabV3Backbone(
                encoder or keras_hub_encoder(), **arguments
            ),
            num_classes=4,
            preprocessor=keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(
                converter
            ),
        )
    )


@pytest.fixture(scope="module")
def theirs():
    """The layout of deeplab_v3_plus_resnet50_pascalvoc, random weights."""
    model = build()
    # That preset's number of parameters, of a classifier of 21 classes.
    assert model.backbone.count_params() + 21 * 256 == 39_190_656 + 21 * 256
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    return ka.weights.from_keras_hub(theirs)


def assert_same_logits(ours, theirs, x):
    # Without `training=False`, their projection trains its batch norm.
    expected = npy(theirs(x, training=False))
    error = np.abs(npy(ours(x)) - expected).max() / expected.std()
    assert error < 1e-4, error


@pytest.mark.parametrize("size", [(64, 96), (160, 128)])
def test_logits_are_theirs(theirs, ours, size):
    x = sample((2, *size, 3))
    assert_same_logits(ours, theirs, x)


def test_it_is_the_light_decoder_and_changes_form_by_its_configuration(ours):
    """The public form is what a user gets, weight for weight."""
    assert ours.get_config()["decoder"] == "light"
    plain = ka.models.DeepLabV3Plus(
        **{
            **ours.arguments(),
            "decoder": "paper",
            "decoder_kernel_sizes": (1,),
            "name": "plain",
        }
    )
    plain.set_weights(ours.get_weights())
    assert_same_logits(ours, plain, sample((1, 64, 96, 3)))


def test_preprocess_is_that_of_their_converter(theirs, ours):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3))
    expected = theirs.preprocessor.image_converter(pixels.astype("float32"))
    found = ours.preprocess(pixels)
    np.testing.assert_allclose(npy(found), npy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, (0.01, 0.02, 0.03, 0.04)])
def test_preprocess_of_four_channels(scale):
    shape = {"image_shape": (None, None, 4)}
    encoder = keras_hub.models.ResNetBackbone(
        *([8], [7], [64, 8, 8, 8], [1] * 4, [1, 2, 2, 2], "bottleneck_block"),
        **shape,
    )
    theirs = build(encoder, scale=scale, offset=None, **shape)
    ours = ka.weights.from_keras_hub(theirs)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 4))
    np.testing.assert_allclose(
        npy(ours.preprocess(pixels)), pixels * np.array(scale), rtol=1e-4
    )


def test_it_lives_without_keras_hub(ours, tmp_path):
    ours.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    x = sample((1, 65, 97, 3))
    np.testing.assert_array_equal(npy(copy(x)), npy(ours(x)))
    assert "keras_hub" not in json.dumps(copy.get_config(), default=str)
    finer = ka.models.with_output_stride(copy, 16)
    assert finer.atrous_rates == (12, 24, 36)
    assert finer(x).shape == (1, 65, 97, 4)


def test_a_preset_in_a_folder(theirs, ours, tmp_path):
    theirs.save_to_preset(str(tmp_path / "preset"))
    model = ka.weights.from_keras_hub(tmp_path / "preset")
    for a, b in zip(model.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(npy(a), npy(b))
    assert model.preprocess == ours.preprocess


def test_what_is_none(theirs, tmp_path):
    with pytest.raises(ValueError, match="cannot read this preset.*nowhere"):
        ka.weights.from_keras_hub(tmp_path / "nowhere")
    for key in (None, "P3"):
        with pytest.raises(ValueError, match=f"low_level_feature_key={key!r}"):
            ka.weights.from_keras_hub(build(low_level_feature_key=key))
    for other in (keras.Sequential([keras.layers.Dense(1)]), theirs.backbone):
        with pytest.raises(ValueError, match="Not a DeepLabV3"):
            ka.weights.from_keras_hub(other)


def test_a_pyramid_that_ends_sooner():
    theirs = build(spatial_pyramid_pooling_key="P4", upsampling_size=4)
    ours = ka.weights.from_keras_hub(theirs)
    assert ours.output_stride == 16
    assert_same_logits(ours, theirs, sample((1, 64, 96, 3)))


def test_a_level_before_the_last_of_its_stride_is_refused():
    encoder = keras_hub_encoder()
    levels = encoder.pyramid_outputs
    # As of an encoder whose last level is dilated instead of strided.
    encoder.pyramid_outputs = {
        **levels,
        "P5": keras.layers.ReLU()(levels["P4"]),
    }
    theirs = build(encoder, spatial_pyramid_pooling_key="P4")
    with pytest.raises(ValueError, match="last level of its stride.*'P4' of"):
        ka.weights.from_keras_hub(theirs)


def test_an_encoder_whose_pyramid_starts_at_stride_2():
    count = 7
    encoder = keras_hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1] * count,
        stackwise_input_filters=[8, 8, 8, 12, 16, 20, 24],
        stackwise_output_filters=[8, 8, 12, 16, 20, 24, 32],
        stackwise_expansion_ratios=[1] + [2] * (count - 1),
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_squeeze_and_excite_ratios=[0.25] * count,
        stackwise_block_types=["v1"] * count,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_shape=(None, None, 3),
    )
    assert "P1" in encoder.pyramid_outputs
    theirs = build(encoder)
    ours = ka.weights.from_keras_hub(theirs)
    assert ours.output_stride == 32
    assert_same_logits(ours, theirs, sample((1, 64, 96, 3)))
