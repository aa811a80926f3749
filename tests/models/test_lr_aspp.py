"""LR-ASPP."""

import numpy as np
import pytest
from helpers import assert_close, np_resize, npy, sample
from model_tester import ODD, SIZE, TOY, ModelTester

from keras_aspp.models import LRASPP


class TestLRASPP(ModelTester):
    architecture = LRASPP
    parameters = TOY + 224 + 24 * 8 + 85 + 45
    head = {"gate_filters": 8}
    changed = {"gate_filters": 12}
    scores = "scores"
    decoder_stride = 8
    dense = ({}, "high_level")

    @pytest.mark.parametrize("size, output_stride", [(SIZE, 8), (ODD, 16)])
    def test_scores_as_torchvision_computes_them(
        self, build, size, output_stride
    ):
        """It resizes 128 gated channels, where we resize the scores."""
        model = build(output_stride=output_stride)
        x = sample((2, *size, 3))
        features = model.backbone(x)
        low, high = (npy(features[key]) for key in ("stride_8", "stride_32"))
        (gate,) = map(npy, model.get_layer("gate").weights)
        gate = high.mean((1, 2), keepdims=True) @ gate[0, 0]
        gate = 1 / (1 + np.exp(-gate))
        assert gate.std() > 0.1
        high = npy(model.get_layer("high_level")(high)) * gate
        high = np_resize(
            high, [n * output_stride // 8 for n in high.shape[1:3]]
        )
        expected = 0
        for x_, name in ((low, "low"), (high, "high")):
            kernel, bias = map(
                npy, model.get_layer(f"classifier_{name}").weights
            )
            x_ = x_[:, : low.shape[1], : low.shape[2]]
            expected = expected + x_ @ kernel[0, 0] + bias
        assert_close(self.at(model, "scores")(x), expected)

    def test_arguments_of_the_head(self, build):
        model = build(gate_filters=12, dropout=0.3)
        assert model.get_layer("high_level").filters == 12
        assert model.get_layer("gate").filters == 12
        assert model.get_layer("dropout").rate == 0.3

    def test_a_backbone_denser_than_the_low_level(self, build):
        model = build(output_stride=4)
        assert model.get_layer("resize").scale == 1
        assert model.get_layer("logits").scale == 4
        assert model(sample((1, *ODD, 3))).shape == (1, *ODD, 5)

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"gate_filters": 0}, "Received: filters=0"),
            ({"atrous_rates": (6,)}, r"no atrous.*atrous_rates=\(6,\)"),
        ],
    )
    def test_errors(self, build, kwargs, message):
        with pytest.raises(ValueError, match=message):
            build(**kwargs)
