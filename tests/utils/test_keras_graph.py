"""What the package relies on of Keras' private graph, on this Keras."""

import keras
import pytest

from keras_aspp.utils import keras_graph


@pytest.fixture
def model():
    inputs = keras.Input((8, 8, 3), name="image")
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1, name="inner")],
        name="nested",
    )
    x = keras.layers.Conv2D(3, 1, name="first")(inputs)
    y = inner(x)
    return keras.Model(inputs, keras.layers.Add(name="sum")([y[..., :2], y]))


def test_keras_is_a_version_that_was_verified():
    assert keras.__version__.startswith("3."), (
        "keras_graph reads private attributes; verify it with this Keras"
    )


def test_producer_and_consumers(model):
    first = model.get_layer("first")
    assert keras_graph.producer(first.output) is first
    (source,) = keras_graph.producers(first)
    assert isinstance(source, keras.layers.InputLayer)
    assert [c.name for c in keras_graph.consumers(first)] == ["nested"]


def test_nodes_are_in_the_order_of_computation(model):
    names = [node.operation.name for node in keras_graph.nodes_of(model)]
    assert names[:3] == ["image", "first", "nested"]
    assert names[-1] == "sum"
    nested = model.get_layer("nested")
    assert [n.operation.name for n in keras_graph.nodes_of(nested)][-1] == (
        "inner"
    )


def test_sublayers_are_found_at_any_depth(model):
    names = {layer.name for layer in keras_graph.sublayers(model)}
    assert {"first", "nested", "inner", "sum", model.name} <= names
    inside = keras_graph.sublayers(model.get_layer("nested"), False)
    assert "nested" not in {layer.name for layer in inside}
    assert "inner" in {layer.name for layer in inside}
    assert keras_graph.sublayers(keras_graph.nodes_of(model)[0]) == []


def test_layers_by_path(model):
    paths = [path for path, _ in keras_graph.layers_by_path(model)]
    assert "nested/inner" in paths
    assert "first" in paths


def test_layers_that_draw_random_numbers_themselves(model):
    dropout = keras.layers.Dropout(0.5)
    assert keras_graph.draws_random(dropout)
    assert keras_graph.draws_random(keras.layers.RandomContrast(0.5))
    for layer in (keras.Sequential([dropout]), *model.layers):
        assert not keras_graph.draws_random(layer)


def test_calls_are_forgotten(model):
    before = len(keras_graph.consumers(model.get_layer("first")))
    with keras_graph.calls_forgotten(model):
        model.get_layer("nested")(model.get_layer("first").output)
    assert len(keras_graph.consumers(model.get_layer("first"))) == before


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        pass

    with pytest.raises(TypeError, match="functional Keras model.*Own"):
        keras_graph.check_functional(Own())
