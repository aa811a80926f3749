"""Subclasses of Segmenter: those of a user, and from earlier versions."""

import inspect
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, sample

from keras_aspp.layers import AtrousConv2D
from keras_aspp.models import LRASPP, DeepLabV3, DeepLabV3Plus, Segmenter
from keras_aspp.models.features import pick
from keras_aspp.utils.exceptions import InputError


@keras.saving.register_keras_serializable("test_segmenter")
class OneConv(Segmenter):
    """Backbone -> convolution -> classifier.

    Args:
        {common_arguments}
        filters: int > 0.
    """

    architecture = "one_conv"

    def __init__(self, num_classes, backbone, *, filters=4, **kwargs):
        super().__init__(num_classes, backbone, filters=filters, **kwargs)

    def build_head(self, features, builder, head):
        x = pick(features, builder.high_level)
        x = builder.conv(x, head.filters, name="conv")
        return builder.classify(x), builder.output_stride


def test_an_architecture_of_a_user(toy_backbone, tmp_path):
    model = OneConv(5, toy_backbone(padding=1), filters=6)
    assert model.get_layer("conv").filters == 6
    assert (model.name, model.atrous_rates) == ("one_conv", ())
    x = sample((1, 65, 50, 3))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert type(copy) is OneConv
    np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))


def test_common_arguments_are_documented_in_one_place():
    ours = inspect.getdoc(OneConv).split("    filters:")[0]
    shared = inspect.getdoc(Segmenter)
    for doc in (ours, shared):
        assert "\n    high_level: the feature that the head reads" in doc
    block = ours.partition("Args:\n")[2].strip()
    assert block in shared
    assert "{common_arguments}" not in ours


def test_hooks_by_their_former_names_work_with_a_warning(toy_backbone):
    with pytest.warns(DeprecationWarning) as warned:

        class Former(Segmenter):
            architecture = "former"

            def __init__(self, *args, factor=2, **kwargs):
                super().__init__(*args, factor=factor, **kwargs)

            def adapt(self, backbone, output_stride, factor):
                backbone.seen = (output_stride, factor)
                return backbone

            def decode(self, features, parts, factor):
                x = parts.conv(features["stride_32"], factor, name="conv")
                return parts.classify(x), parts.output_stride

    first, second = (str(w.message) for w in warned)
    assert "`Former.decode` is deprecated" in first
    assert "`build_head(self, features, builder, head)`" in first
    assert "`Former.adapt` is deprecated" in second
    assert "`modify_backbone(self, backbone, output_stride, head)`" in second
    assert {w.filename for w in warned} == {__file__}
    model = Former(5, toy_backbone(), factor=3)
    assert model.get_layer("conv").filters == 3
    assert model.backbone.seen == (16, 3)
    assert model(sample((1, 65, 50, 3))).shape == (1, 65, 50, 5)


def test_compile_fit_and_train_on_batch_have_the_signatures_of_keras():
    for name in ("compile", "fit", "train_on_batch"):
        ours, theirs = getattr(DeepLabV3, name), getattr(keras.Model, name)
        assert inspect.signature(ours) == inspect.signature(theirs)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("dropout", 1.0),
        ("batch_norm_momentum", 1.5),
        ("batch_norm_momentum", -0.1),
        ("batch_norm_epsilon", -0.1),
        ("input_shape", (64, 64)),
        ("input_shape", None),
        ("input_shape", (64, 0, 3)),
        ("input_shape", "64x64"),
        ("trained_output_stride", "16"),
        ("auxiliary_weight", "0.4"),
    ],
)
def test_arguments_out_of_range(toy_backbone, argument, value):
    received = re.escape(f"Received: {argument}={value!r}")
    with pytest.raises(InputError, match=received):
        LRASPP(3, toy_backbone(padding=1), **{argument: value})


def test_sizes_of_arrays_and_tensors_become_ints(toy_backbone):
    for shape in (tf.TensorShape([64, 48, 3]), (*np.array([64, 48]), 3)):
        model = LRASPP(
            3,
            toy_backbone(padding=1),
            output_stride=np.int64(16),
            input_shape=shape,
        )
        config = model.get_config()
        assert config["input_shape"] == (64, 48, 3)
        assert all(type(n) is int for n in config["input_shape"])
        assert type(config["output_stride"]) is int


def test_kernel_sizes_of_arrays_become_ints(toy_backbone):
    for sizes in (np.array([3, 1]), range(3, 0, -2), [np.int64(3), 1]):
        model = DeepLabV3Plus(3, toy_backbone(), decoder_kernel_sizes=sizes)
        assert model.get_config()["decoder_kernel_sizes"] == (3, 1)
        json.dumps(model.get_config()["decoder_kernel_sizes"])
    layer = AtrousConv2D(2, kernel_size=np.int64(3), atrous_rate=2)
    assert type(layer.get_config()["kernel_size"]) is int


@pytest.mark.parametrize("value", [None, 3, (), "33"])
def test_decoder_kernel_sizes_are_a_sequence(toy_backbone, value):
    with pytest.raises(InputError, match="`decoder_kernel_sizes` must be"):
        DeepLabV3Plus(3, toy_backbone(), decoder_kernel_sizes=value)


def test_channels_first_is_refused(toy_backbone):
    backbone = toy_backbone(padding=1)
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="data_format='channels_first'"):
            DeepLabV3(3, backbone)
    finally:
        keras.config.set_image_data_format("channels_last")
