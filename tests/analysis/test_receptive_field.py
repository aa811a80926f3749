"""Receptive fields against brute force, and against published figures."""

import keras
import numpy as np
import pytest
from helpers import Counter, npy, tensorflow_only

import keras_aspp as ka
from keras_aspp.analysis import receptive_fields, trace
from keras_aspp.analysis.receptive_field import as_text

L = keras.layers
SAME = {"padding": "same"}
ONES = np.ones((3, 1, 1, 2), "float32")
POINT = np.ones((1, 1, 2, 2), "float32")

CHAINS = {
    "strided same": [L.Conv2D(2, 3, strides=2, **SAME)] * 2,
    "strided valid": [L.Conv2D(2, 3, strides=2), L.Conv2D(2, (5, 3))],
    "even kernel": [L.Conv2D(2, 4, **SAME), L.Conv2D(2, 2, strides=2)],
    "dilated": [
        L.Conv2D(2, 3, dilation_rate=2, **SAME),
        L.DepthwiseConv2D(3, dilation_rate=(3, 1), **SAME),
    ],
    "separable": [
        L.SeparableConv2D(3, 3, strides=2, **SAME),
        L.SeparableConv2D(3, 3, dilation_rate=2),
    ],
    "pooled": [
        L.MaxPooling2D(3, 2, **SAME),
        L.AveragePooling2D(2),
        L.Conv2D(2, 3, **SAME),
    ],
    "padded": [L.ZeroPadding2D(((0, 1), (2, 1))), L.Conv2D(2, 3, strides=2)],
    "cropped": [L.Conv2D(2, 3), L.Cropping2D(((1, 2), (3, 0)))],
    "center crop": [L.Conv2D(2, 3, strides=2), L.CenterCrop(5, 4)],
    "transposed": [
        L.Conv2D(2, 3, strides=2, **SAME),
        L.Conv2DTranspose(2, 3, strides=2, **SAME),
    ],
    "transposed, wide": [
        L.Conv2D(2, 3, strides=4, **SAME),
        L.Conv2DTranspose(2, 5, strides=2, **SAME),
        L.Conv2DTranspose(2, (4, 6), strides=2, **SAME),
    ],
    "transposed valid": [
        L.AveragePooling2D(3),
        L.Conv2DTranspose(2, 5, strides=3),
        L.Conv2D(2, 3, **SAME),
    ],
    "transposed, of a given size": [
        L.Conv2D(2, 3, strides=2, **SAME),
        L.Conv2DTranspose(2, 3, strides=2, output_padding=0, **SAME),
        L.Conv2DTranspose(2, 4, strides=3, output_padding=2, **SAME),
    ],
    "nearest": [
        L.Conv2D(2, 3, strides=2, **SAME),
        L.UpSampling2D(3),
        L.Conv2D(2, 3, strides=2, **SAME),
    ],
    "bilinear": [
        L.Conv2D(2, 3, strides=4, **SAME),
        L.UpSampling2D(2, interpolation="bilinear"),
        L.Conv2D(2, 3, **SAME),
        L.UpSampling2D(2, interpolation="bilinear"),
    ],
    "resized": [
        L.Conv2D(2, 3, strides=2, **SAME),
        L.Resizing(31, 9),
        L.Conv2D(2, 3, **SAME),
    ],
    "ours": [
        L.Conv2D(2, 3, strides=2, **SAME),
        ka.layers.AtrousConv2D(2, atrous_rate=2, separable=True),
        ka.layers.BilinearResize(scale=2),
    ],
    "moved": [
        L.Conv2D(2, 3, strides=2, **SAME),
        ka.layers.BilinearResize(scale=1, shift=(0.5, -0.5)),
        ka.layers.BilinearResize(scale=4, shift=(-2, 1)),
    ],
    "aligned corners": [
        L.Conv2D(2, 3, strides=2, **SAME),
        ka.layers.BilinearResize(size=(25, 33), align_corners=True),
    ],
    "operations": [
        L.Lambda(lambda x: keras.ops.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)))),
        L.Lambda(lambda x: x[:, 1::2, ..., :1]),
        L.Lambda(lambda x: keras.ops.max_pool(x, 2, padding="same")),
        L.Lambda(lambda x: keras.ops.average_pool(x, (3, 2), 1)),
        L.Lambda(lambda x: keras.ops.conv(x, ONES, (1, 2))),
        L.Lambda(lambda x: keras.ops.image.resize(x, (19, 11))),
    ],
    "nearest, of fewer cells": [
        L.Resizing(18, 13, "nearest"),
        L.Lambda(lambda x: keras.ops.image.resize(x, (7, 5), "nearest")),
    ],
    "operations with two kernels, or transposed": [
        L.Lambda(
            lambda x: keras.ops.separable_conv(
                x, np.ones((5, 3, 2, 1), "float32"), POINT, 2, "same"
            )
        ),
        L.Lambda(
            lambda x: keras.ops.conv_transpose(
                x, np.ones((3, 4, 2, 2), "float32"), 2, "same"
            )
        ),
    ],
}


def positive(model):
    """Positive kernels, neutral norms: then nothing cancels."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "kernel" in weight.path:
            weight.assign(rng.uniform(0.5, 1, weight.shape))
    return model


def of(layers, channels=2):
    inputs = x = keras.Input((None, None, channels))
    for layer in layers:
        x = (
            type(layer).from_config({**layer.get_config(), "name": None})(x)
            if not isinstance(layer, L.Lambda)
            else layer(x)
        )
    return positive(keras.Model(inputs, x))


def moved_by_force(model, size, axis):
    """Which line of pixels moves which cell: `(line, row, column)`."""
    lines = np.arange(size[axis])
    pictures = np.zeros((len(lines), *size, model.inputs[0].shape[-1]))
    if axis == 0:
        pictures[lines, lines] = 1
    else:
        pictures[lines, :, lines] = 1
    outputs = model(pictures.astype("float32"), training=False)
    return npy(outputs).sum(axis=-1) > 0


def assert_as_by_force(model, size):
    field = receptive_fields(model, size)[-1]
    height, width = field.shape[:2]
    # Neighbours, since upsampled cells differ from one to the next.
    inner = {(height // 2 + i, width // 2 + i) for i in range(-2, 2)}
    for axis in (0, 1):
        moved = moved_by_force(model, size, axis)
        for cell in inner | {(0, 0), (height - 1, width - 1)}:
            low, high = field.axes[axis].pixels(cell[axis])
            found = np.flatnonzero(moved[:, cell[0], cell[1]])
            if cell in inner:
                expected = max(low, 0), min(high, size[axis] - 1)
                assert expected == (found[0], found[-1]), (cell, axis)
            # What a corner sees may be padding, or dropped by a `valid`.
            assert ((low <= found) & (found <= high)).all(), (cell, axis)
    assert not field.assumed


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [(37, 26)])
def test_chains_by_force(name, size):
    assert_as_by_force(of(CHAINS[name]), size)


@tensorflow_only  # no other backend resizes by area
def test_averages_of_areas_by_force():
    chain = [
        L.Conv2D(2, 3, strides=2, **SAME),
        L.Resizing(8, 5, "area"),
        L.Resizing(12, 10, "area"),
    ]
    assert_as_by_force(of(chain), (37, 26))


def test_branches_by_force():
    inputs = keras.Input((None, None, 2))
    x = L.Conv2D(3, 3, strides=2, padding="same")(inputs)
    left = L.Conv2D(3, (3, 1), dilation_rate=3, padding="same")(x)
    right = L.ZeroPadding2D(((3, 0), (2, 0)))(x)
    right = L.Conv2D(3, (4, 3))(right)
    low = L.UpSampling2D(2, interpolation="bilinear")(
        L.MaxPooling2D(2, padding="same")(x)
    )
    low = ka.layers.BilinearResize(scale=2)(
        L.AveragePooling2D(2, padding="same")(x), reference=x
    )
    outputs = L.Concatenate()([L.Add()([left, right]), low])
    assert_as_by_force(positive(keras.Model(inputs, outputs)), (38, 27))


@pytest.mark.parametrize("padding", [1, ((0, 1), (0, 1))])
def test_dense_backbones_by_force(toy_backbone, padding):
    dense = ka.backbones.with_output_stride(toy_backbone(padding=padding), 8)
    assert_as_by_force(positive(dense), (101, 74))


def test_dense_pooling_by_force():
    layers = [
        L.Conv2D(2, 3, strides=2, **SAME),
        L.MaxPooling2D(3, 2, **SAME),
        L.SeparableConv2D(2, 3, strides=2, **SAME),
        L.AveragePooling2D(2),
        L.Conv2D(2, 3, **SAME),
    ]
    dense = ka.backbones.with_output_stride(of(layers), 2)
    assert_as_by_force(positive(dense), (61, 54))


def test_a_whole_segmenter_by_force(toy_backbone):
    model = ka.models.DeepLabV3Plus(
        3,
        backbone=toy_backbone(features=True),
        output_stride=8,
        image_pooling=False,
        aspp_filters=4,
        decoder_filters=4,
        atrous_rates=(1, 2),
        separable=True,
    )
    assert_as_by_force(positive(model), (101, 90))


@pytest.mark.parametrize("output_stride", [8, 4])
def test_a_segmenter_made_denser_by_force(toy_backbone, output_stride):
    model = ka.models.DeepLabV3(
        3,
        backbone=toy_backbone(),
        output_stride=16,
        image_pooling=False,
        aspp_filters=4,
        atrous_rates=(1,),
    )
    dense = ka.models.with_output_stride(model, output_stride)
    assert_as_by_force(positive(dense), (120, 104))


def test_cells_are_centered_on_multiples_of_the_stride(toy_backbone):
    symmetric = receptive_fields(toy_backbone(padding=1), (64, 64))[-1]
    assert symmetric.stride == (32, 32)
    assert symmetric.center == (0, 0)
    keras_own = receptive_fields(toy_backbone(), (64, 64))[-1]
    assert keras_own.center == (31, 31)


def test_dense_features_see_what_the_strided_ones_see(toy_backbone):
    strided = receptive_fields(toy_backbone(padding=1), (64, 96))[-1]
    dense = ka.backbones.with_output_stride(toy_backbone(padding=1), 8)
    field = receptive_fields(dense, (64, 96))[-1]
    assert (field.size, field.center) == (strided.size, strided.center)
    assert (field.stride, strided.stride) == ((8, 8), (32, 32))
    last = next(
        f for f in receptive_fields(dense, (64, 96)) if f.path == "block4_inner"
    )
    assert (last.kernel_size, last.dilation) == ((3, 3), (4, 4))


def test_the_whole_picture_is_global():
    inputs = keras.Input((None, None, 4))
    x = L.Conv2D(4, 3, padding="same", name="conv")(inputs)
    gate = L.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = L.Conv2D(4, 1, activation="sigmoid", name="excite")(gate)
    gated = L.Multiply(name="gated")([x, gate])
    pooled = ka.layers.ImagePooling(4, name="pooled")(gated)
    model = keras.Model(inputs, L.Add(name="sum")([pooled, gated]))
    said = {
        field.path: as_text(field) for field in receptive_fields(model, (9, 7))
    }
    assert said["conv"] == "3x3"
    assert said["squeeze"] == said["excite"] == said["pooled"] == "global"
    assert said["gated"] == said["sum"] == "3x3 + global"
    dense = keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling2D()(gated)))
    assert as_text(receptive_fields(dense, (9, 7))[-1]) == "global"
    norm = keras.Model(inputs, L.GroupNormalization(2)(inputs))
    assert as_text(receptive_fields(norm, (9, 7))[-1]) == "1x1 + global"


@pytest.mark.parametrize(
    "squeeze",
    [
        L.AveragePooling2D((9, 7)),
        L.MaxPooling2D((9, 7)),
        L.DepthwiseConv2D((9, 7)),
        L.Lambda(lambda x: keras.ops.average_pool(x, (9, 7))),
    ],
)
def test_a_cell_of_a_window_over_the_whole_map_is_global(squeeze):
    inputs = keras.Input((9, 7, 4))
    x = L.Conv2D(4, 3, padding="same")(inputs)
    cell = L.Conv2D(4, 1, activation="sigmoid")(squeeze(x))
    model = keras.Model(inputs, L.Multiply()([cell, x]))
    field = receptive_fields(model, (9, 7))[-1]
    assert as_text(field) == "3x3 + global"
    assert not field.assumed


STRIPS = {
    "rows": lambda x, rows, columns: L.Add()([x, rows]),
    "columns": lambda x, rows, columns: L.Add()([columns, x]),
    "both": lambda x, rows, columns: L.Add()([x, rows, columns]),
    "no map": lambda x, rows, columns: L.Add()([rows, columns]),
    "operations": lambda x, rows, columns: x + (columns + rows),
}


@pytest.mark.parametrize("name", STRIPS)
@pytest.mark.parametrize("upsampled", [False, True])
def test_strips_by_force(name, upsampled):
    inputs = keras.Input((19, 26, 2))
    x = L.Conv2D(2, 3, strides=2, padding="same")(inputs)
    if upsampled:
        x = L.Resizing(15, 17, "nearest")(x)
    height, width = x.shape[1:3]
    rows = L.AveragePooling2D((1, width))(x)
    columns = L.DepthwiseConv2D((height, 1))(x)
    x = STRIPS[name](x, rows, columns)
    model = positive(keras.Model(inputs, x))
    assert_as_by_force(model, (19, 26))
    wider = L.Conv2D(2, 3, padding="same")(x)
    assert_as_by_force(positive(keras.Model(inputs, wider)), (19, 26))


def test_a_window_behind_a_strip_adds_its_own_pixels():
    inputs = keras.Input((16, 24, 3))
    x = L.Conv2D(2, 3, padding="same")(inputs)
    x = L.Add()([x, L.AveragePooling2D((1, 24))(x)])
    field = receptive_fields(
        keras.Model(inputs, L.Conv2D(2, 3, padding="same")(x)), (16, 24)
    )[-1]
    # The strip has 24 columns, and its convolution two more; then two more.
    assert as_text(field) == "5x28"


def test_unknown_layers_are_marked():
    class Own(L.Layer):
        def call(self, inputs):
            import tensorflow as tf

            return tf.nn.avg_pool2d(inputs, 3, 1, "SAME")

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((None, None, 4))
    x = Own()(L.Conv2D(4, 3)(inputs))
    field = receptive_fields(keras.Model(inputs, L.ReLU()(x)), (9, 7))[-1]
    assert (field.size, field.assumed) == ((3, 3), True)
    swapped = L.Permute((2, 1, 3))(inputs)
    field = receptive_fields(keras.Model(inputs, swapped), (9, 7))[-1]
    assert (field.size, field.assumed) == (None, True)


def axial_attention(x):
    scores = keras.ops.matmul(x, keras.ops.transpose(x, (0, 1, 3, 2)))
    return keras.ops.matmul(keras.ops.softmax(scores), x)


class Noisy(L.Layer):
    """Adds a constant of the size of the map, then takes the logarithm."""

    def build(self, shape):
        self.noise = self.add_weight(shape=shape[1:], initializer="ones")

    def call(self, x):
        return keras.ops.log(x + self.noise)


MIXING = {
    "flip": lambda x: keras.ops.flip(x, 2),
    "roll": lambda x: keras.ops.roll(x, 5, 2),
    "cumsum": lambda x: keras.ops.cumsum(x, axis=2),
    "sort": lambda x: keras.ops.sort(x, axis=2),
    "slice": lambda x: x[:, :, ::-1],
    "transposed": L.Permute((2, 1, 3)),
    "softmax": L.Softmax(axis=2),
    "norm": L.UnitNormalization(axis=[1, 2]),
    "attention": axial_attention,
    "blur": lambda x: keras.ops.image.gaussian_blur(x, (5, 5), (1.0, 1.0)),
    "patches": lambda x: keras.ops.image.extract_patches(
        x, 3, strides=1, padding="same"
    ),
    "antialias": lambda x: keras.ops.image.resize(x, (8, 8), antialias=True),
    "cut": L.Resizing(8, 4, crop_to_aspect_ratio=True),
}
ALONE = {
    "relu": keras.ops.relu,
    "softmax": L.Softmax(),
    "gelu": L.Activation("gelu"),
    "prelu": L.PReLU(shared_axes=[1, 2]),
    "norm": L.UnitNormalization(),
    "dropout": L.SpatialDropout2D(0.5),
    "constant": Noisy(),
    "whole": lambda x: x[:, :, ::1],
    "mean": lambda x: x - keras.ops.mean(x, axis=-1, keepdims=True),
}


def read_by(model, size, cell):
    """Which pixels a cell reads, by its gradient."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    image = tf.Variable(rng.normal(size=(1, *size, 4)).astype("float32"))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(image)[(0, *cell)] ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(value, image))
    return (npy(gradient)[0] != 0).any(axis=-1)


def applied(function, size=(16, 16)):
    inputs = keras.Input((*size, 4))
    return keras.Model(inputs, function(inputs))


def field_and_others(function):
    """The field of a function, and which cells one reads besides itself."""
    model = applied(function)
    others = read_by(model, (16, 16), (2, 3))
    others[2, 3] = False
    return receptive_fields(model, (16, 16))[-1], others


@tensorflow_only
@pytest.mark.parametrize("name", MIXING)
def test_operations_that_mix_cells_are_marked(name):
    field, others = field_and_others(MIXING[name])
    assert others.any()
    assert field.assumed


@tensorflow_only
@pytest.mark.parametrize("name", ALONE)
def test_operations_on_each_cell_alone_are_known(name):
    field, others = field_and_others(ALONE[name])
    assert not others.any()
    assert (field.size, field.assumed) == ((1, 1), False)


def test_layers_named_as_operations_are_no_operations():
    class Conv(L.Layer):
        def call(self, inputs):
            import tensorflow as tf

            return tf.nn.relu(inputs)

        def compute_output_shape(self, input_shape):
            return input_shape

    field = receptive_fields(applied(Conv()), (16, 16))[-1]
    assert (field.size, field.assumed) == ((1, 1), True)


def test_one_field_for_each_step(toy_backbone):
    model = toy_backbone(features=True)
    steps = trace(model, (65, 97)).steps
    fields = receptive_fields(model, (65, 97))
    assert [f.path for f in fields] == [s.path for s in steps]


def test_a_layer_that_assigns_is_left_alone():
    inputs = keras.Input((None, None, 3))
    layer = Counter()
    model = keras.Model(inputs, layer(L.Conv2D(2, 3)(inputs)))
    field = receptive_fields(model, (33, 33))[-1]
    assert field.size == (3, 3) and not field.assumed
    assert float(layer.calls) == 0


# Araujo et al., 2019, "Computing receptive fields of convolutional neural
# networks" (Distill), table of architectures; center 0 is symmetric padding.
PUBLISHED = {
    "ResNet50": 483,
    "ResNet101": 1027,
    "ResNet152": 1507,
    "VGG16": 212,
    "MobileNet": 315,
    "InceptionV3": 1311,
    "InceptionResNetV2": 3039,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_receptive_fields(name):
    import time

    model = getattr(keras.applications, name)(weights=None, include_top=False)
    start = time.process_time()
    field = receptive_fields(model, (513, 385))[-1]
    assert time.process_time() - start < 5
    assert field.size == (PUBLISHED[name],) * 2
    assert not field.assumed
