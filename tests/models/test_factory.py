"""Configuration meets models."""

import dataclasses
import inspect
import typing

import pytest

from keras_aspp.config.schema import ModelConfig
from keras_aspp.models import Segmenter
from keras_aspp.models.factory import ARCHITECTURES, build_model
from keras_aspp.preprocess import Preprocess

FIELDS = {field.name: field for field in dataclasses.fields(ModelConfig)}
COMMON = {name: field for name, field in FIELDS.items() if not field.metadata}
# Arguments without a field: the data set, the precision, or code sets them.
NO_FIELDS = {
    *("num_classes", "name", "dtype", "input_shape", "preprocess"),
    *("batch_norm_epsilon", "align_corners", "trained_output_stride"),
    *("rematerialize", "task", "threshold"),
}


def test_the_configuration_has_every_architecture():
    classes = all_subclasses(Segmenter)
    named = typing.get_type_hints(ModelConfig)["architecture"]
    assert sorted(typing.get_args(named)) == sorted(ARCHITECTURES)
    assert {c.architecture: c for c in classes} == ARCHITECTURES


def all_subclasses(base):
    ours = [c for c in base.__subclasses__() if "keras_aspp" in c.__module__]
    return [*ours, *(inner for c in ours for inner in all_subclasses(c))]


def test_every_common_argument_is_a_field():
    *arguments, _ = inspect.signature(Segmenter).parameters
    assert set(arguments) - NO_FIELDS == set(COMMON) - {"architecture"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_argument_of_a_head_is_a_field_with_the_same_default(name):
    arguments = ARCHITECTURES[name].__init__.__kwdefaults__
    fields = {
        field.name: field.default
        for field in FIELDS.values()
        if name in field.metadata.get("architectures", ())
    }
    assert set(fields) == set(arguments)
    # Separable convolutions are the default of configurations only.
    for argument in set(arguments) - {"separable"}:
        assert fields[argument] == arguments[argument], argument


def test_an_unknown_architecture():
    message = r"one of .*'lr_aspp'.*Received: model.architecture='deeplab_v4'"
    with pytest.raises(ValueError, match=message):
        build_model(ModelConfig("deeplab_v4"), 5)


@pytest.fixture
def given(monkeypatch):
    """Builds nothing; returns what the architecture would be given."""

    def given(**fields):
        taken = {}

        class Recorder(Segmenter):
            input_channels, preprocess = 3, Preprocess()

            def __init__(self, num_classes, *args, gate_filters=128, **kwargs):
                taken.update(kwargs, gate_filters=gate_filters)

        monkeypatch.setitem(ARCHITECTURES, "lr_aspp", Recorder)
        build_model(ModelConfig("lr_aspp", **fields), 5, dtype="float16")
        return taken

    return given


def test_an_architecture_gets_what_it_takes(given, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/there")
    taken = given(
        gate_filters=7,
        dropout=0.5,
        backbone_weights=None,
        weights="$WEIGHTS/model.keras",
    )
    assert (taken["gate_filters"], taken["dropout"]) == (7, 0.5)
    assert taken["backbone_weights"] is None
    assert taken["weights"] == "/there/model.keras"
    assert taken["dtype"] == "float16"
    assert not {"architecture", "aspp_filters", "separable"} & set(taken)


@pytest.mark.parametrize(
    "architecture, name, value",
    [
        ("lr_aspp", "separable", False),
        ("lr_aspp", "aspp_filters", 128),
        ("deeplab_v2", "image_pooling", False),
        ("deeplab_v3", "decoder_stride", 2),
        ("deeplab_v3_plus", "multi_grid", [1, 2, 4]),
        ("deeplab_v3_cascaded", "pyramid", "aspp_s"),
        ("dense_aspp", "fc_filters", 1024),
    ],
)
def test_a_field_that_an_architecture_does_not_have(architecture, name, value):
    config = ModelConfig(architecture=architecture, **{name: value})
    message = f"`{architecture}` has no `{name}`. Received: model.{name}="
    with pytest.raises(ValueError, match=message):
        build_model(config, 5)
