"""Cells broadcast over a map, reduced by windows of fixed size."""

import keras
import pytest
from equality import assert_dense
from helpers import npy, randomize, sample
from keras import ops

from keras_aspp.backbones import feature_strides, stage_ends, with_output_stride
from keras_aspp.layers import BilinearResize

L = keras.layers
SIZE = (32, 48)
HALF = (16, 24)  # of the map at stride 2, which the gate reduces
# Layers that reduce a map at stride 2 to one cell.
SQUEEZES = {
    "average": L.AveragePooling2D(HALF, name="squeeze"),
    "average_same": L.AveragePooling2D(HALF, padding="same", name="squeeze"),
    "max": L.MaxPooling2D(HALF, name="squeeze"),
    "depthwise": L.DepthwiseConv2D(HALF, name="squeeze"),
    "convolution": L.Conv2D(4, HALF, name="squeeze"),
    "operation": lambda x: ops.average_pool(x, HALF),
}


def conv(filters=4, **kwargs):
    return L.Conv2D(filters, 3, padding="same", activation="tanh", **kwargs)


def gated(gate, size=SIZE):
    """Strides 2 and 4; in between a gate."""
    inputs = keras.Input((*size, 3))
    x = conv(strides=2, name="first")(inputs)
    x = gate(x)
    x = conv(strides=2, name="last")(x)
    return randomize(keras.Model(inputs, conv(name="end")(x)))


def squeeze_and_excite(squeeze):
    def gate(x):
        cell = L.Conv2D(4, 1, activation="sigmoid", name="excite")(squeeze(x))
        return L.Multiply(name="gated")([x, cell])

    return gate


def fresh(squeeze):
    """A layer of its own for each model; an operation has no state."""
    if not isinstance(squeeze, L.Layer):
        return squeeze
    return type(squeeze).from_config(squeeze.get_config())


def assert_exact(model, output_stride=2):
    dense = with_output_stride(model, output_stride)
    x = sample((2, *SIZE, 3))
    assert_dense(dense(x), model(x), 4 // output_stride, 1e-5)
    # Back again: the layers remember what they were.
    back = with_output_stride(dense, 4)
    assert npy(back(x)) == pytest.approx(npy(model(x)), abs=1e-5)


@pytest.mark.parametrize("name", SQUEEZES)
def test_a_window_over_the_whole_map_before_the_trade_is_exact(name):
    assert_exact(gated(squeeze_and_excite(fresh(SQUEEZES[name]))))


@pytest.mark.parametrize("name", SQUEEZES)
def test_a_window_over_the_whole_map_adds_no_stride(name):
    model = gated(squeeze_and_excite(fresh(SQUEEZES[name])))
    strides = feature_strides(model)
    assert list(strides.values()) == [1, 2, 2, 2, 2, 4, 4]
    ends = stage_ends(model)
    assert {key: tuple(map_.shape[1:3]) for key, map_ in ends.items()} == {
        "stride_2": HALF,
        "stride_4": (8, 12),
    }


@pytest.mark.parametrize("name", SQUEEZES)
def test_a_window_over_the_whole_map_once_dense_is_refused(name):
    model = gated(squeeze_and_excite(fresh(SQUEEZES[name])))
    path = "average_pool" if name == "operation" else "squeeze"
    with pytest.raises(
        ValueError,
        match=f"`{path}.* fixed size.*stride 1. Use Global.*output stride 2",
    ):
        with_output_stride(model, 1)


def test_a_gate_within_a_nested_model():
    def gate(x):
        inputs = keras.Input((*HALF, 4))
        cell = fresh(SQUEEZES["average"])(inputs)
        inner = keras.Model(inputs, L.Conv2D(4, 1)(cell), name="inner")
        return L.Multiply()([x, inner(x)])

    model = gated(gate)
    assert_exact(model)
    with pytest.raises(ValueError, match="`inner/squeeze` reduces"):
        with_output_stride(model, 1)


def test_a_gate_by_two_windows():
    def squeeze(x):
        return L.DepthwiseConv2D((1, 24))(L.DepthwiseConv2D((16, 1))(x))

    assert_exact(gated(squeeze_and_excite(squeeze)))


@pytest.mark.parametrize("size", [SIZE, (None, None)])
def test_a_gate_of_unknown_size_is_refused(size):
    """The nested model does not know that it reduces the map to one cell."""

    def gate(x):
        inputs = keras.Input((None, None, 4))
        cell = L.AveragePooling2D(16)(inputs)
        return L.Multiply(name="gated")([x, keras.Model(inputs, cell)(x)])

    model = gated(gate, size)
    for output_stride in (1, 2):
        with pytest.raises(ValueError, match="`gated` joins .* density"):
            with_output_stride(model, output_stride)


@pytest.mark.parametrize("layer", [L.DepthwiseConv2D, L.AveragePooling2D])
@pytest.mark.parametrize(
    "size, message",
    [(SIZE, "`strip` reduces"), ((None, None), "`gated` joins .* size")],
)
def test_a_strip_is_exact_before_the_trade_and_refused_after(
    layer, size, message
):
    def gate(x):
        strip = layer((1, 24), name="strip", **strides)(x)
        return L.Multiply(name="gated")([strip, x])

    # A pool strides by its size, but a single column has no stride.
    strides = {} if size == SIZE else {"strides": 1}

    model = gated(gate, size)
    assert_exact(model)
    with pytest.raises(ValueError, match=message):
        with_output_stride(model, 1)


def test_of_two_strips_the_dense_one_is_named():
    inputs = x = keras.Input((*SIZE, 3))
    for name, columns in (("early", 24), ("late", 12)):
        x = conv(strides=2)(x)
        strip = L.DepthwiseConv2D((1, columns), name=name)(x)
        x = L.Multiply()([strip, x])
    with pytest.raises(ValueError, match="`late` reduces"):
        with_output_stride(keras.Model(inputs, x), 2)


def test_a_pooled_cell_that_is_spread_to_a_fixed_size():
    def gate(x):
        cell = L.GlobalAveragePooling2D(keepdims=True)(x)
        spread = L.UpSampling2D(HALF, name="spread")(cell)
        return L.Concatenate(name="join")([x, spread])

    model = gated(gate)
    assert_exact(model)
    with pytest.raises(ValueError, match="`join` joins `spread`.*stride 1"):
        with_output_stride(model, 1)


@pytest.mark.parametrize("shape", [(1, 1, 4), (4,)])
def test_a_vector_as_second_input(shape):
    inputs = [keras.Input((*SIZE, 3)), keras.Input(shape)]
    cell = L.Reshape((1, 1, 4))(inputs[1]) if len(shape) == 1 else inputs[1]
    x = L.Multiply()([conv(strides=2)(inputs[0]), cell])
    model = randomize(keras.Model(inputs, conv()(conv(strides=2)(x))))
    given = [sample((2, *SIZE, 3)), sample((2, *shape))]
    dense = with_output_stride(model, 1)
    assert_dense(dense(given), model(given), 4, 1e-5)


def test_a_map_upsampled_to_another_is_refused():
    """A convolution behind it has the stride of the larger map."""
    inputs = keras.Input((*SIZE, 3))
    fine = conv(strides=2)(inputs)
    x = BilinearResize(scale=2, name="up")(
        conv(strides=2)(fine), reference=fine
    )
    model = randomize(keras.Model(inputs, conv()(L.Add()([x, fine]))))
    with pytest.raises(ValueError, match="`up` joins .* density"):
        with_output_stride(model, 2)


def test_the_last_map_of_a_small_image_is_no_gate():
    """Its one cell is a map of one cell: nothing else is joined with it."""
    inputs = x = keras.Input((16, 16, 3))
    for _ in range(3):
        x = L.MaxPooling2D()(conv()(x))
    model = randomize(keras.Model(inputs, L.AveragePooling2D(2)(conv()(x))))
    assert model.output.shape[1:3] == (1, 1)
    assert list(stage_ends(model))[-1] == "stride_16"
    x = sample((2, 16, 16, 3))
    dense = npy(with_output_stride(model, 4)(x))
    assert dense.shape[1:3] == (4, 4)
    assert dense[:, 3:, 3:] == pytest.approx(npy(model(x)), abs=1e-5)


def test_a_small_map_that_is_resized_to_another_keeps_its_stride():
    inputs = x = keras.Input((32, 32, 3))
    maps = []
    for _ in range(5):
        x = conv(strides=2)(x)
        maps.append(x)
    up = BilinearResize(scale=2)(maps[-1], reference=maps[-2])
    model = keras.Model(inputs, L.Add()([up, maps[-2]]))
    assert list(stage_ends(model))[-1] == "stride_32"


def test_a_window_of_unequal_strides_on_several_rows_is_refused():
    """Networks that read text end in one row; it was made of three."""
    inputs = x = keras.Input((8, 32, 3))
    for _ in range(2):
        x = L.MaxPooling2D()(conv()(x))
    x = conv(strides=(2, 1), name="uneven")(x)
    with pytest.raises(ValueError, match="`uneven` has unequal strides"):
        with_output_stride(keras.Model(inputs, conv()(x)), 2)


@pytest.mark.parametrize(
    "pool, size",
    [
        (L.MaxPooling2D((1, 2)), (4, 32)),
        (L.MaxPooling2D((2, 1)), (32, 4)),
        (L.MaxPooling2D((2, 2), strides=(1, 2)), (8, 32)),
    ],
)
def test_strides_of_one_row_or_column(pool, size):
    inputs = x = keras.Input((*size, 3))
    for _ in range(2):
        x = conv(strides=2)(x)
    pool = type(pool).from_config(pool.get_config())
    model = randomize(keras.Model(inputs, conv()(pool(x))))
    dense = with_output_stride(model, 2)
    x = sample((2, *size, 3))
    back = with_output_stride(dense, 8)
    assert npy(back(x)) == pytest.approx(npy(model(x)), abs=1e-5)


@pytest.mark.parametrize("join", [L.Add, L.Concatenate])
def test_a_map_without_channels_as_second_input(join):
    images, depths = keras.Input((*SIZE, 3)), keras.Input(SIZE)
    depth = conv(strides=2)(L.Reshape((*SIZE, 1))(depths))
    x = join()([conv(strides=2)(images), depth])
    model = randomize(keras.Model([images, depths], conv()(conv(strides=2)(x))))
    given = [sample((2, *SIZE, 3)), sample((2, *SIZE))]
    dense = with_output_stride(model, 1)
    assert_dense(dense(given), model(given), 4, 1e-5)


def test_a_vector_that_was_not_pooled_is_no_map():
    class Shift(L.Layer):
        def call(self, x, vector):
            return x + vector[:, None, None]

        def compute_output_shape(self, x_shape, vector_shape):
            return x_shape

    inputs = keras.Input((*SIZE, 3))
    x = conv(strides=2)(inputs)
    vector = L.Dense(4)(L.Flatten()(x))
    x = conv(strides=2)(Shift()(x, vector))
    model = randomize(keras.Model(inputs, conv()(Shift()(x, vector))))
    given = sample((2, *SIZE, 3))
    dense = with_output_stride(model, 2)
    assert_dense(dense(given), model(given), 2, 1e-5)
