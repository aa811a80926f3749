"""DeepLabV3+."""

import pathlib

import keras
import numpy as np
import pytest
from helpers import assert_close, compute_dtypes, np_resize, npy, sample
from model_tester import ODD, SIZE, TOY, ModelTester

import keras_aspp as ka
from keras_aspp.models import DeepLabV3Plus

ROOT = pathlib.Path(__file__).parents[2]


class TestDeepLabV3Plus(ModelTester):
    architecture = DeepLabV3Plus
    parameters = TOY + 4_256 + 64 + 896 + 608 + 45
    auto = (12, 24, 36)
    head = {
        "atrous_rates": (1, 2),
        "aspp_filters": 8,
        "decoder_filters": 8,
        "projection_filters": 4,
    }
    changed = {
        "atrous_rates": (2, 5),
        "aspp_filters": 12,
        "separable": True,
        "image_pooling": False,
        "decoder_stride": 2,
        "decoder_filters": 12,
        "projection_filters": 6,
    }
    decoder_stride = 4
    dense = ({"image_pooling": False}, "aspp")

    @pytest.mark.parametrize(
        "size, output_stride, decoder_stride",
        [(SIZE, 8, 4), (ODD, 16, 4), (ODD, 8, 2), (SIZE, 16, 2)],
    )
    def test_decoder(self, build, size, output_stride, decoder_stride):
        model = build(
            output_stride=output_stride, decoder_stride=decoder_stride
        )
        x = sample((2, *size, 3))
        features = model.backbone(x)
        layer = model.get_layer
        decoded = npy(layer("aspp")(features["stride_32"]))
        stride = output_stride
        for level in (4, 2)[: 1 if decoder_stride == 4 else 2]:
            suffix = "" if level == 4 else "_stride_2"
            low = layer(f"low_level{suffix}")(features[f"stride_{level}"])
            grid = [n * stride // level for n in decoded.shape[1:3]]
            high = np_resize(decoded, grid)
            high = high[:, : low.shape[1], : low.shape[2]]
            decoded = np.concatenate([high, npy(low)], axis=-1)
            for name in ("decoder_1", "decoder_2"):
                decoded = npy(layer(name + suffix)(decoded))
            stride = level
        kernel, bias = map(npy, layer("classifier").weights)
        expected = decoded @ kernel[0, 0] + bias
        assert_close(self.at(model, "classifier")(x), expected)
        assert layer("logits").scale == decoder_stride

    def test_arguments_of_the_head(self, build):
        model = build(**self.changed, dropout=0.3)
        aspp = model.get_layer("aspp")
        assert (aspp.filters, aspp.atrous_rates) == (12, (2, 5))
        assert aspp.separable and not aspp.image_pooling
        assert aspp.drop.rate == 0.3
        for suffix in ("", "_stride_2"):
            low_level = model.get_layer(f"low_level{suffix}")
            assert (low_level.filters, low_level.separable) == (6, False)
            for i in (1, 2):
                decoder = model.get_layer(f"decoder_{i}{suffix}")
                assert (decoder.filters, decoder.separable) == (12, True)

    def test_a_backbone_denser_than_the_decoder(self, build):
        """At output stride 2 all features are that dense."""
        model = build(output_stride=2, image_pooling=False)
        assert model.get_layer("resize").scale == 1
        assert model.get_layer("logits").scale == 2
        assert model(sample((1, *ODD, 3))).shape == (1, *ODD, 5)

    def test_errors(self, build):
        with pytest.raises(ValueError, match="Received: decoder_stride=8"):
            build(decoder_stride=8)
        with pytest.raises(ValueError, match="Received: decoder='lite'"):
            build(decoder="lite")
        with pytest.raises(ValueError, match=r"decoder_kernel_sizes=\(1,\)"):
            build(decoder="light", decoder_kernel_sizes=(1,))

    @pytest.mark.parametrize("decoder_stride", [4, 2])
    def test_the_light_decoder_is_one_convolution_of_1x1(
        self, build, decoder_stride
    ):
        arguments = {"decoder_stride": decoder_stride, "output_stride": 16}
        plain = build(decoder_kernel_sizes=(1,), **arguments)
        light = build(decoder="light", **arguments)
        name = f"{light.name}/"
        of_plain = {
            w.path.removeprefix(f"{plain.name}/"): w for w in plain.weights
        }
        for weight in light.weights:
            weight.assign(of_plain.pop(weight.path.removeprefix(name)))
        assert not of_plain
        x = sample((2, *ODD, 3))
        assert_close(light(x), npy(plain(x)))
        # From another output stride, the coarse map is shifted.
        dense = [ka.models.with_output_stride(m, 8) for m in (light, plain)]
        assert_close(dense[0](x), npy(dense[1](x)))

    def test_the_paper_decoder_leaves_no_trace_in_the_file(self, build):
        assert "decoder" not in build().get_config()
        assert build(decoder="light").get_config()["decoder"] == "light"

    @pytest.mark.slow  # MobileNetV2
    def test_the_street_scene_model_keeps_its_logits(self):
        """Those of 56a5018, which wrote the file, to the last digits."""
        path = ROOT / "saved_models/camvid_mobilenet_v2/model.keras"
        model = keras.saving.load_model(path)
        logits = npy(model(sample((1, 97, 130, 3))))
        expected = (0.92789, 0.55456, -0.52756, -0.16935, -0.62155, 5.20429)
        np.testing.assert_allclose(logits[0, 48, 64, :6], expected, atol=2e-4)
        dense = ka.models.with_output_stride(model, 8)
        back = ka.models.with_output_stride(dense, 16)
        np.testing.assert_array_equal(
            npy(back(sample((1, 97, 130, 3)))), logits
        )

    def test_a_backbone_without_a_low_level(self, build):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, strides=16, padding="same")(inputs)
        features = {"stride_16": x, "stride_32": x}
        message = r"no feature `stride_4`.*\['stride_16', 'stride_32'\]"
        with pytest.raises(ValueError, match=message):
            build(backbone=keras.Model(inputs, features))

    def test_a_backbone_by_name(self, build):
        """Channels and dtype policy reach it."""
        model = build(
            backbone="mobilenet_v2_0.35",
            backbone_weights=None,
            input_shape=(None, None, 1),
            dtype="mixed_bfloat16",
        )
        dtypes = compute_dtypes(model.backbone)
        assert len(dtypes) > 100
        assert set(dtypes.values()) == {"bfloat16"}
        assert model.preprocess == model.backbone.preprocess
        shape = model.compute_output_shape((1, *SIZE, 1))
        assert shape == (1, *SIZE, 5)


@pytest.mark.slow  # every test of an architecture again
class TestLightDecoder(ModelTester):
    architecture = DeepLabV3Plus
    parameters = TOY + 4_256 + 64 + 128 + 45
    auto = TestDeepLabV3Plus.auto
    head = {**TestDeepLabV3Plus.head, "decoder": "light"}
    changed = {**TestDeepLabV3Plus.changed, "decoder": "light"}
    decoder_stride = TestDeepLabV3Plus.decoder_stride
    dense = TestDeepLabV3Plus.dense
