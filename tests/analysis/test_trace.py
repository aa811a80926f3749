"""Following a model: order, sizes, opened layers, no traces left."""

import keras
import pytest
from helpers import sample

import keras_aspp as ka
from keras_aspp.analysis import trace


@keras.saving.register_keras_serializable(package="tests")
class Twice(keras.layers.Layer):
    """A user's composite layer, one part called twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(
            5, 3, strides=2, padding="same", name="conv"
        )

    def call(self, inputs):
        return keras.ops.relu(self.conv(self.conv(inputs)))


class Backend(keras.layers.Layer):
    """A user's layer whose `call` leaves `keras.ops`."""

    def call(self, inputs):
        import tensorflow as tf

        return tf.nn.relu(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


def of_layers(layers, size, channels=5):
    inputs = keras.Input((None, None, channels), name="picture")
    return trace(keras.Model(inputs, keras.Sequential(layers)(inputs)), size)


def test_composite_layers_are_opened_to_their_parts():
    found = of_layers([Twice(name="twice")], (21, 13))
    steps = [(s.path.split("/", 1)[-1], s.shape) for s in found.steps[1:]]
    assert steps == [
        ("twice/conv", (11, 7, 5)),
        ("twice/conv", (6, 4, 5)),
        ("twice/relu", (6, 4, 5)),
        ("twice", (6, 4, 5)),
        (found.steps[-1].path, (6, 4, 5)),
    ]
    assert [s.opened for s in found.steps[-2:]] == [True, True]
    assert len(found.leaves) == 4


def test_sizes_are_those_of_the_computation(toy_backbone):
    model = ka.models.DeepLabV3Plus(
        4,
        backbone=toy_backbone(features=True),
        output_stride=8,
        aspp_filters=6,
        atrous_rates=(1, 3),
    )
    found = trace(model, (75, 53))
    by_path = {step.path: step.shape for step in found.steps}
    assert by_path["aspp/image_pooling/conv/conv"] == (1, 1, 6)
    backbone = model.backbone(sample((1, 75, 53, 3)))
    assert by_path["aspp"] == (*backbone["stride_32"].shape[1:3], 6)
    assert found.outputs[0].shape == (1, 75, 53, 4)
    assert not any(step.opaque for step in found.steps)


def test_tracing_leaves_no_nodes_behind(toy_backbone):
    model = toy_backbone()
    layers = list(model._flatten_layers())
    before = [
        (len(layer._inbound_nodes), len(layer._outbound_nodes))
        for layer in layers
    ]
    trace(model, (64, 64))
    assert before == [
        (len(layer._inbound_nodes), len(layer._outbound_nodes))
        for layer in layers
    ]
    with pytest.raises(ValueError, match="size would be zero or negative"):
        trace(_valid_convolutions(), (3, 9))


def test_a_layer_outside_keras_ops_stays_closed_and_says_so():
    found = of_layers([Backend(name="backend")], (9, 7))
    (closed,) = (step for step in found.steps if step.opaque)
    assert closed.path.endswith("backend")
    assert closed.shape == (9, 7, 5)


def _valid_convolutions():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(2, 3)(inputs)
    return keras.Model(inputs, keras.layers.AveragePooling2D(2)(x))


@pytest.mark.parametrize("size", [(0, 9), (9,), (9.0, 9), 9, "99", (-1, 3)])
def test_image_size_must_be_two_ints(size):
    with pytest.raises(ValueError, match="Received: image_size="):
        trace(_valid_convolutions(), size)


@pytest.mark.parametrize("size", [(2, 9), (3, 3)])
def test_a_picture_smaller_than_a_cell_is_named(size):
    with pytest.raises(ValueError, match=r"Received: image_size=\(\d, \d\)"):
        trace(_valid_convolutions(), size)


def test_a_size_the_model_is_not_built_for():
    inputs = keras.Input((9, 7, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match="built for images of 9x7"):
        trace(model, (9, 9))


def test_other_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="functional Keras model"):
        trace(Subclassed(), (9, 9))
    a, b = keras.Input((9, 7, 3)), keras.Input((9, 7, 3))
    with pytest.raises(ValueError, match="one input"):
        trace(keras.Model([a, b], keras.layers.Add()([a, b])), (9, 7))
