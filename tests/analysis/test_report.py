"""The report of a model, and the figures that are drawn of it."""

import json

import keras
import numpy as np
import pytest
from helpers import npy, randomize

import keras_aspp as ka
from keras_aspp.analysis import cost, receptive_fields, valid_taps
from keras_aspp.analysis.report import report
from keras_aspp.layers import rewritable
from keras_aspp.plots import figure, model_report

SIZE = (129, 97)


@pytest.fixture
def segmenter(toy_backbone):
    return ka.models.DeepLabV3Plus(
        4,
        backbone=randomize(toy_backbone(features=True, padding=1)),
        output_stride=8,
        atrous_rates=(2, 20),
        aspp_filters=6,
        decoder_filters=5,
    )


def own_network():
    """What a user might build of plain layers and our ASPP."""
    inputs = x = keras.Input((None, None, 1))
    for i, stride in enumerate((2, 2, 1)):
        x = keras.layers.SeparableConv2D(
            6, 3, strides=stride, padding="same", name=f"conv_{i}"
        )(x)
    for i in range(2):
        x = keras.layers.Conv2D(
            6, 3, dilation_rate=3, padding="same", name=f"dilated_{i}"
        )(x)
    x = ka.layers.ASPP(4, atrous_rates=(2, 4), name="pyramid")(x)
    x = keras.layers.UpSampling2D(4, interpolation="bilinear")(x)
    return keras.Model(inputs, x, name="own")


def test_stages_head_and_totals_of_a_segmenter(segmenter):
    found = report(segmenter, SIZE)
    json.dumps(found)
    stages = {row["name"]: row for row in found["stages"]}
    assert list(stages) == [f"stride_{2**n}" for n in range(1, 6)]
    assert stages["stride_32"]["shape"] == [17, 13, 24]
    assert stages["stride_32"]["stride"] == [8, 8]
    head = {row["name"]: row for row in found["head"]}
    assert list(head)[0] == "aspp/point"
    assert list(head)[-1] == "logits"
    assert "aspp/image_pooling/conv" not in head
    assert head["aspp/image_pooling"]["receptive_field"] is None
    assert head["logits"]["center"] == [-3.5, -3.5]
    last = receptive_fields(segmenter, SIZE)[-1]
    assert head["logits"]["receptive_field"] == list(last.size)
    costs = cost(segmenter, SIZE)
    for key in ("parameters", "madds", "activation_bytes"):
        assert found["cost"][key] == getattr(costs, key)
        for rows in (found["parts"], found["layers"]):
            assert sum(row[key] for row in rows) == getattr(costs, key)


def test_atrous_rows_and_degenerate_rates(segmenter):
    found = report(segmenter, SIZE)
    rows = {(row["name"], row["rate"]): row for row in found["atrous"]}
    assert rows["aspp/atrous_2", 20]["degenerate"]
    assert rows["aspp/atrous_2", 20]["valid_taps"] == pytest.approx(1 / 9)
    assert rows["aspp/atrous_1", 2]["spacing_px"] == 16
    assert rows["aspp/atrous_1", 2]["map"] == [17, 13]
    assert not rows["aspp/atrous_1", 2]["degenerate"]
    backbone = [key for key in rows if key[0] == "toy"]
    assert backbone == [("toy", 2), ("toy", 4)]
    (warning,) = (w for w in found["warnings"] if "rate 20" in w)
    assert "17x13 map" in warning


def dilated(padding="valid", **kwargs):
    arguments = {"dilation_rate": 6, "padding": padding, **kwargs}
    return rewritable.Conv2D(1, 3, use_bias=False, **arguments)


PADDED = {
    "valid": lambda x: dilated()(x),
    "same": lambda x: dilated("same")(x),
    "pads": lambda x: dilated(pads=((6, 0), (3, 9)))(x),
    "layer": lambda x: dilated()(keras.layers.ZeroPadding2D(6)(x)),
    "operation": lambda x: dilated()(
        keras.ops.pad(x, ((0, 0), (1, 8), (2, 3), (0, 0)))
    ),
    "mirrored": lambda x: dilated()(
        keras.ops.pad(x, ((0, 0), (6, 6), (6, 6), (0, 0)), mode="reflect")
    ),
}


@pytest.mark.parametrize("name", PADDED)
def test_valid_taps_are_those_of_the_padding_that_a_layer_has(name):
    inputs = keras.Input((33, 21, 1))
    model = keras.Model(inputs, PADDED[name](inputs))
    model.set_weights([np.ones_like(w) for w in model.get_weights()])
    counts = npy(model(np.ones((1, 33, 21, 1), "float32")))
    found = report(model, (33, 21))
    (row,) = found["atrous"]
    assert row["valid_taps"] == pytest.approx(counts.mean() / 9)
    # Curves are of padding that keeps the size of the map.
    drawn = "valid_taps" in model_report.of_report(model, found)
    assert drawn == (name in ("same", "layer"))


def test_rows_of_convolutions_end_with_stages_and_parts(segmenter):
    found = report(segmenter, SIZE)
    rows = {row["name"]: row for row in found["gridding"]}
    assert rows["stride_32"]["rates"] == [1, 2, 2, 4]
    # The pyramid adds its widest branch, whose holes other branches may fill.
    assert rows["aspp"]["rates"] == [1, 2, 2, 4, 20]
    assert rows["aspp"]["unseen_share"] > 0
    assert not any("never see" in warning for warning in found["warnings"])


def test_what_users_built_is_explained():
    found = report(own_network(), (45, 33))
    assert [row["name"] for row in found["stages"]] == ["stride 2", "stride 4"]
    assert found["output_stride"] == 4
    assert "pyramid/atrous_2" in [row["name"] for row in found["head"]]
    (dilated, *_) = found["atrous"]
    assert dilated["name"] == "dilated_0 ... dilated_1"
    assert (dilated["layers"], dilated["rate"]) == (2, 3)
    (stack,) = found["gridding"]
    # conv_2, two of rate 3, and the pyramid's widest branch.
    assert stack["rates"] == [1, 3, 3, 4]
    assert stack["dilated_end"]["rates"] == [3, 3, 4]


def test_cost_by_stride_of_operations_and_shared_layers():
    """Each of their calls counts at the stride of its map."""
    inputs = x = keras.Input((None, None, 3))
    head = keras.layers.Conv2D(8, 3, padding="same")
    levels, expected = [], {}
    for level in (1, 2, 3):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(x)
        for _ in range(4):
            x = keras.ops.relu(x + keras.layers.Conv2D(8, 3, padding="same")(x))
        levels.append(head(x))
        cells = (64 >> level) * (96 >> level)
        channels = 3 if level == 1 else 8
        # Thirteen maps of a level, and the head's.
        expected[f"stride {2**level}"] = (
            cells * 9 * 8 * (channels + 5 * 8),
            14 * cells * 8 * 4,
        )
    parts = report(keras.Model(inputs, levels), (64, 96))["parts"]
    found = {p["name"]: (p["madds"], p["activation_bytes"]) for p in parts}
    assert found.pop("stride 1") == (0, 64 * 96 * 3 * 4)
    assert found == expected


def test_the_output_stride_is_the_longer_of_both_axes():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=(2, 1), padding="same")(inputs)
    x = keras.layers.Conv2DTranspose(4, 4, strides=(2, 1), padding="same")(x)
    x = keras.layers.MaxPooling2D((1, 4))(x)
    assert report(keras.Model(inputs, x), (64, 64))["output_stride"] == 4


def test_a_nested_backbone_of_one_output():
    picture = keras.Input((None, None, 3))
    x = picture
    for _ in range(2):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(x)
    backbone = keras.Model(picture, x, name="backbone")
    inputs = keras.Input((None, None, 3))
    x = keras.Sequential([keras.layers.Rescaling(0.5)], name="scale")(inputs)
    x = keras.layers.Conv2D(2, 3, padding="same", name="head")(backbone(x))
    found = report(keras.Model(inputs, x), (33, 21))
    assert found["backbone"] == "backbone"
    assert [s["name"] for s in found["stages"]] == ["stride 2", "stride 4"]
    assert [row["name"] for row in found["head"]][-1] == "head"
    assert found["stages"][-1]["receptive_field"] == [7, 7]


def test_attention_is_global_and_said_to_be_uncounted():
    inputs = keras.Input((8, 6, 4))
    tokens = keras.layers.Reshape((48, 4))(inputs)
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    x = keras.layers.Reshape((8, 6, 4))(attention(tokens, tokens))
    found = report(keras.Model(inputs, x), (8, 6))
    assert "attention/query" in found["cost"]["uncounted"]
    assert any("lower bound" in warning for warning in found["warnings"])
    assert found["layers"][-1]["global"]


def test_holes_are_warned_of():
    inputs = x = keras.Input((None, None, 1))
    for _ in range(3):
        x = keras.layers.Conv2D(2, 3, dilation_rate=2, padding="same")(x)
    x = keras.layers.AveragePooling2D(2)(x)
    for _ in range(2):
        x = keras.layers.Conv2D(2, 3, dilation_rate=3, padding="same")(x)
    found = report(keras.Model(inputs, x), (33, 37))
    (stack,) = found["gridding"]
    assert stack["rates"] == [3, 3]
    assert stack["unseen_share"] == pytest.approx(1 - (5 / 13) ** 2)
    (warning,) = (w for w in found["warnings"] if "never see" in w)
    assert str(stack["suggestion"]) in warning


def warns_of_holes(x, inputs):
    found = report(keras.Model(inputs, x), (128, 160))
    assert found["gridding"]
    return any("never see" in warning for warning in found["warnings"])


def test_holes_that_another_branch_fills_are_not_warned_of():
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, 3, strides=2, padding="same")(inputs)

    def conv(x, rate=1):
        return keras.layers.Conv2D(2, 3, padding="same", dilation_rate=rate)(x)

    pyramid = ka.layers.ASPP(2, (2, 4, 6))(x)
    assert not warns_of_holes(conv(pyramid), inputs)
    by_hand = keras.layers.Add()([conv(x, rate) for rate in (2, 3, 5)])
    assert not warns_of_holes(conv(by_hand), inputs)
    even = keras.layers.Add()([conv(x, rate) for rate in (2, 4)])
    assert warns_of_holes(conv(even, 2), inputs)
    # A shortcut sees less than what it passes by.
    shortcut = keras.layers.Add()([x, conv(conv(x, 2), 2)])
    assert warns_of_holes(conv(shortcut, 2), inputs)
    # After a stride nothing of it is left.
    x = keras.layers.MaxPooling2D(2)(by_hand)
    assert warns_of_holes(conv(conv(x, 2), 2), inputs)


def test_outputs_in_a_dict_of_dicts_are_named_by_their_paths():
    inputs = keras.Input((32, 32, 3))
    fine = keras.layers.Conv2D(4, 3, strides=2)(inputs)
    coarse = keras.layers.Conv2D(4, 3, strides=2)(fine)
    outputs = {"b": fine, "a": {"deep": coarse, "both": [fine, coarse]}}
    found = report(keras.Model(inputs, outputs), (32, 32))
    stages = {row["name"]: row["shape"][0] for row in found["stages"]}
    assert stages == {"b": 15, "a/deep": 7, "a/both/0": 15, "a/both/1": 7}


def test_unequal_rates_and_kernels_do_not_stop_it():
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, (3, 1), dilation_rate=(2, 1), padding="same")(
        inputs
    )
    x = keras.layers.Conv2D(2, 4, dilation_rate=2, padding="same")(x)
    x = keras.layers.Conv1D(2, 3, dilation_rate=2)(
        keras.ops.reshape(x, (-1, 99, 2))
    )
    found = report(keras.Model(inputs, x), (11, 9))
    tall, even = found["atrous"]
    assert (tall["kernel_size"], tall["rate"]) == ([3, 1], [2, 1])
    assert (even["kernel_size"], even["rate"]) == ([4, 4], 2)
    assert tall["valid_taps"] is even["valid_taps"] is None


def test_rates_of_both_axes_are_reported_and_drawn(tmp_path):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.MaxPooling2D(2)(inputs)
    for rate in ((2, 3), (2, 9)):
        x = keras.layers.Conv2D(2, 3, dilation_rate=rate, padding="same")(x)
    model = keras.Model(inputs, x)
    found = report(model, (34, 18))
    json.dumps(found)
    first, last = found["atrous"]
    assert (first["rate"], first["spacing_px"]) == ([2, 3], [4, 6])
    assert (first["map"], first["degenerate"]) == ([17, 9], False)
    assert first["valid_taps"] == valid_taps((2, 3), (17, 9)).mean
    # Beyond the map along one axis: still a column of three taps.
    assert last["valid_taps"] == pytest.approx((3 * 17 - 4) / 17 / 9)
    (stack,) = found["gridding"]
    assert stack["rates"] == [[2, 3], [2, 9]]
    assert stack["field_cells"] == [9, 25]
    assert any("never see" in w and "9x25" in w for w in found["warnings"])
    assert set(model_report.of_report(model, found)) >= {"gridding"}


def test_figures_of_what_users_built(tmp_path):
    model = own_network()
    drawn = model_report.of_report(model, report(model, (45, 33)))
    assert set(drawn) == {
        "receptive_fields",
        "effective_fields",
        "valid_taps",
        "gridding",
        "cost",
    }
    path = figure.save(drawn["gridding"], tmp_path, "name")
    assert path == tmp_path / "name.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "name.svg").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_classifier_has_fewer_figures():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((33, 37, 2)),
            layers.Conv2D(3, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    found = report(model, (33, 37))
    assert [row["name"] for row in found["stages"]] == ["stride 1"]
    assert found["layers"][-1]["receptive_field"] is None
    assert set(model_report.of_report(model, found)) == {
        "receptive_fields",
        "effective_fields",
        "cost",
    }


def test_figures_say_what_the_table_says():
    inputs = keras.Input((64, 64, 3))
    x = inputs
    for rate, size in ((1, 5), (2, 5), (18, 3)):
        x = keras.layers.Conv2D(2, size, dilation_rate=rate, padding="same")(x)
    model = keras.Model(inputs, x)
    found = report(model, (64, 64))
    row = found["gridding"][0]
    assert row["kernel_sizes"] == [5, 5, 3]
    drawn = model_report.of_report(model, found)
    title = drawn["gridding"].axes[0].get_title()
    size, share = row["field_cells"], row["unseen_share"]
    assert "kernels 5, 5, 3" in title
    assert f"{share:.0%} of {size}x{size} cells" in title
    # Curves are of 3x3 kernels, so the 5x5 is not marked on them.
    texts = {text.get_text() for text in drawn["valid_taps"].axes[0].texts}
    assert texts == {"18"}


def test_a_dilated_kernel_that_is_not_square_has_no_curve():
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(2, (1, 7), dilation_rate=2, padding="same")(inputs)
    model = keras.Model(inputs, x)
    found = report(model, (64, 64))
    assert found["atrous"]
    assert "valid_taps" not in model_report.of_report(model, found)


def test_curves_of_valid_taps_are_the_counts():
    figure = model_report.valid_taps_curves((65, 65), most=70)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    nine = lines["9 valid taps"].get_ydata()
    np.testing.assert_allclose(nine[:2], [63**2 / 65**2, 61**2 / 65**2])
    assert lines["1 valid tap"].get_ydata()[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "DenseNet121", "VGG16"])
def test_whole_networks(name):
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    found = report(model, (224, 160))
    assert found["stages"][-1]["stride"] == [32, 32]
    assert sum(p["madds"] for p in found["parts"]) == found["cost"]["madds"]
    assert found["stages"][-1]["global"] == (name == "EfficientNetB0")
