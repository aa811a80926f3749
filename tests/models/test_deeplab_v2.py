"""DeepLabV2."""

import keras
import pytest
from helpers import assert_close, np_dilated_conv, npy, relu, sample
from model_tester import ODD, TOY, ModelTester

from keras_aspp.models import DeepLabV2


class TestDeepLabV2(ModelTester):
    architecture = DeepLabV2
    parameters = TOY + 2 * (9 * 24 * 5 + 5)
    auto = (6, 12, 18, 24)
    head = {"atrous_rates": (1, 2)}
    changed = {
        "atrous_rates": (2, 3, 5),
        "pyramid": "aspp_s",
        "fc_filters": 6,
    }
    scores = "scores"
    dense = ({}, "scores")

    @pytest.mark.parametrize("fc_filters", [None, 7])
    @pytest.mark.parametrize("rates", [(1, 2, 4), (3,)])
    def test_scores_are_the_sum_of_branches(self, build, rates, fc_filters):
        model = build(atrous_rates=rates, fc_filters=fc_filters)
        x = sample((2, *ODD, 3))
        features = npy(model.backbone(x)["stride_32"])

        def conv(x, layer, rate=1):
            kernel, bias = map(npy, layer.weights)
            return np_dilated_conv(x, kernel, rate) + bias

        expected = 0
        for i, rate in enumerate(rates, start=1):
            branch = features
            if fc_filters:
                branch = relu(conv(branch, model.get_layer(f"fc6_{i}"), rate))
                branch = relu(conv(branch, model.get_layer(f"fc7_{i}")))
                rate = 1
            expected += conv(branch, model.get_layer(f"classifier_{i}"), rate)
        last = "scores" if len(rates) > 1 else "classifier_1"
        assert_close(self.at(model, last)(x), expected)

    @pytest.mark.parametrize(
        "pyramid, rates",
        [("large_fov", (12,)), ("aspp_s", (2, 4, 8, 12))],
    )
    def test_rates_of_the_pyramids(self, toy_backbone, pyramid, rates):
        model = DeepLabV2(5, toy_backbone(), output_stride=8, pyramid=pyramid)
        assert model.atrous_rates == rates

    def test_dropout_is_before_the_scores(self, build):
        assert build(dropout=0.3).get_layer("dropout").rate == 0.3
        model = build(dropout=0.3, fc_filters=6)
        drops = [
            layer.name
            for layer in model.layers
            if isinstance(layer, keras.layers.Dropout) and layer.rate == 0.3
        ]
        names = [f"fc{n}_{i}_dropout" for i in (1, 2) for n in (6, 7)]
        assert set(drops) == set(names)

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"pyramid": "aspp_m"}, "Received: pyramid='aspp_m'"),
            ({"atrous_rates": ()}, r"Received: atrous_rates=\(\)"),
            ({"fc_filters": 0}, "Received: filters=0"),
        ],
    )
    def test_errors(self, build, kwargs, message):
        with pytest.raises(ValueError, match=message):
            build(**kwargs)
