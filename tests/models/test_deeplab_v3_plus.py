"""DeepLabV3+."""

import keras
import numpy as np
import pytest
from helpers import assert_close, compute_dtypes, np_resize, npy, sample
from model_tester import ODD, SIZE, ModelTester

from keras_aspp.models import DeepLabV3, DeepLabV3Plus


class TestDeepLabV3Plus(ModelTester):
    kind = DeepLabV3Plus
    other = DeepLabV3
    parameters = 5_851_797
    head = {"decoder_filters": 8, "projection_filters": 4}
    decoder_stride = 4

    @pytest.mark.parametrize("output_stride", [8, 16])
    @pytest.mark.parametrize("size", [SIZE, ODD])
    def test_decoder(self, build, size, output_stride):
        model = build(output_stride=output_stride)
        x = sample((2, *size, 3))
        features = model.backbone(x)
        layer = model.get_layer
        high = npy(layer("aspp")(features["stride_32"]))
        low = npy(layer("low_level")(features["stride_4"]))
        grid = [n * output_stride // 4 for n in high.shape[1:3]]
        high = np_resize(high, grid)[:, : low.shape[1], : low.shape[2]]
        decoded = np.concatenate([high, low], axis=-1)
        for name in ("decoder_1", "decoder_2"):
            decoded = layer(name)(decoded)
        kernel, bias = map(npy, layer("classifier").weights)
        expected = npy(decoded) @ kernel[0, 0] + bias
        assert_close(self.at(model, "classifier")(x), expected)

    def test_arguments_of_the_decoder(self, build):
        model = build(separable=True, decoder_filters=12, projection_filters=6)
        copy = DeepLabV3Plus.from_config(model.get_config())
        for name, filters in (
            ("low_level", 6),
            ("decoder_1", 12),
            ("decoder_2", 12),
        ):
            assert copy.get_layer(name).filters == filters
        assert copy.get_layer("decoder_1").separable
        assert not copy.get_layer("low_level").separable

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
        assert model(sample((1, *SIZE, 1))).shape == (1, *SIZE, 5)
