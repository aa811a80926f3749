"""DeepLabV3."""

import warnings

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, randomize, sample
from model_tester import KERAS, ODD, SIZE, ModelTester

import keras_aspp as ka
from keras_aspp.backbones.zoo import configure
from keras_aspp.models import DeepLabV3, DeepLabV3Plus
from keras_aspp.preprocess import TORCHVISION


class TestDeepLabV3(ModelTester):
    kind = DeepLabV3
    other = DeepLabV3Plus
    parameters = 4_558_165

    def test_scores_are_the_classifier_on_aspp(self, build):
        model = build()
        x = sample((2, *SIZE, 3))
        features = model.backbone(x)["stride_32"]
        kernel, bias = map(npy, model.get_layer("classifier").weights)
        expected = npy(model.get_layer("aspp")(features)) @ kernel[0, 0] + bias
        assert_close(self.at(model, "classifier")(x), expected)

    # What follows is Segmenter's own, so one architecture is enough.

    def test_the_head_sees_the_same_cells_at_every_stride(
        self, build, toy_backbone
    ):
        # Rates beyond every map and no image pooling: ASPP is a 1x1, so its
        # dense map, subsampled, is the one of stride 32.
        backbone = randomize(toy_backbone(padding=1, features=True))
        x = sample((1, *ODD, 3))

        def aspp(output_stride):
            model = build(
                backbone=backbone,
                output_stride=output_stride,
                atrous_rates=(1000,),
                image_pooling=False,
            )
            return npy(self.at(model, "aspp")(x))

        coarse = aspp(32)
        assert_close(aspp(16)[:, ::2, ::2], coarse)
        assert_close(aspp(8)[:, ::4, ::4], coarse)

    def test_weights_of_another_backbone(self, saved, build):
        _, path = saved
        message = "trained with backbone toy. Received: backbone='resnet50'"
        with pytest.raises(ValueError, match=message):
            build(backbone="resnet50", weights=path)
        inputs = x = keras.Input((None, None, 3))
        for strides in (4, 8):
            x = keras.layers.Conv2D(24, 1, strides=strides)(x)
        other = keras.Model(inputs, x)
        with pytest.raises(ValueError, match="another model"):
            build(backbone=other, output_stride=32, weights=path)
        with pytest.raises(ValueError, match="another model.*aspp"):
            build(aspp_filters=12, weights=path)

    def test_weights_that_are_none(self, build, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing.keras"):
            build(weights=tmp_path / "nothing.keras")
        with pytest.raises(FileNotFoundError, match="not exist"):
            build(weights=tmp_path)
        text = tmp_path / "text.keras"
        text.write_text("no model")
        with pytest.raises(ValueError, match="Not a loadable .*text.keras"):
            build(weights=text)
        plain = tmp_path / "plain.keras"
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(plain)
        with pytest.raises(ValueError, match="no segmenter.*Sequential"):
            build(weights=plain)

    def test_what_belongs_to_the_weights_survives_weights(
        self, build, toy_backbone, tmp_path
    ):
        """Epsilon, padding and preprocess come from the file, not the name."""
        backbone = configure(
            toy_backbone(padding=KERAS, features=True),
            batch_norm_epsilon=0.05,
        )
        model = build(
            backbone=backbone, preprocess=TORCHVISION, output_stride=32
        )
        model.save(tmp_path / "model.keras")
        copy = build(
            backbone=backbone.name,
            weights=tmp_path / "model.keras",
            output_stride=16,
            dtype="mixed_bfloat16",
            batch_norm_momentum=0.7,
        )
        norm = copy.backbone.get_layer("stem_bn")
        assert (norm.epsilon, norm.momentum) == (0.05, 0.7)
        assert copy.backbone.get_layer("block1_depthwise_pad").padding == KERAS
        assert copy.preprocess == TORCHVISION
        stages = copy.backbone.output
        assert stages["stride_32"].dtype == "bfloat16"
        spec = keras.KerasTensor((1, *SIZE, 3))
        features = copy.backbone.compute_output_spec(spec)
        assert features["stride_32"].shape[1:3] == (4, 6)

    @pytest.mark.slow  # MobileNetV2 three times
    def test_torchvision_weights_survive_weights(self, shared, tmp_path):
        file = shared / "weights/mobilenet_v2-b0353104.pth"
        model = self.kind(5, backbone_weights=file)
        assert model.preprocess == TORCHVISION
        model.save(tmp_path / "model.keras")
        with pytest.warns(UserWarning, match="classifier"):
            copy = self.kind(7, weights=tmp_path / "model.keras")
        x = sample((1, *SIZE, 3))
        expected = model.backbone(x)
        for key, feature in copy.backbone(x).items():
            assert_close(feature, expected[key], 1e-6, least_std=0.05)
        assert copy.preprocess == TORCHVISION

    def test_a_backbone_with_one_output(self, build, toy_backbone):
        whole = toy_backbone(padding=1)
        dicts = toy_backbone(padding=1, features=True)
        model = build(backbone=whole, output_stride=8)
        other = build(backbone=dicts, output_stride=8)
        assert set(model.backbone.output) == set(dicts.output)
        x = sample((1, *SIZE, 3))
        other.set_weights(model.get_weights())
        np.testing.assert_array_equal(npy(model(x)), npy(other(x)))
        assert model.preprocess == ka.Preprocess()

    def test_a_backbone_that_is_denser_already(self, build):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, strides=4, padding="same")(inputs)
        with pytest.raises(ValueError, match="already denser"):
            build(backbone=keras.Model(inputs, x))
        with pytest.raises(ValueError, match="has no feature `stride_32`"):
            build(backbone=keras.Model(inputs, x), output_stride=4)

    def test_warns_of_degenerate_rates(self, build):
        message = r"rates \(6, 12\) reach beyond the 4x6 map of a 64x96"
        with pytest.warns(UserWarning, match=message):
            build(input_shape=(*SIZE, 3), atrous_rates=(1, 6, 12))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build(input_shape=(*SIZE, 3), atrous_rates=(1, 5))
            build(atrous_rates=(100,))

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"num_classes": 0}, "Received: num_classes=0"),
            ({"atrous_rates": ()}, r"Received: atrous_rates=\(\)"),
            ({"output_stride": 12}, "Received: output_stride=12"),
            ({"aspp_filters": 0}, "Received: filters=0"),
            ({"backbone": "vgg"}, "Received: name='vgg'"),
            (
                {"output_stride": 64, "atrous_rates": "auto"},
                "Received: output_stride=64",
            ),
        ],
    )
    def test_errors(self, build, kwargs, message):
        with pytest.raises(ValueError, match=message):
            build(**kwargs)
