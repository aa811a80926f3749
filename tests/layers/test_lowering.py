"""Every form of an operation is the same operation."""

import contextlib
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import (
    ON_TENSORFLOW,
    assert_close,
    np_depthwise,
    np_dilated_conv,
    np_resize,
    npy,
    sample,
    tensorflow_only,
)
from keras import ops

from keras_aspp.layers import Conv2D, lowering

X = sample((2, 9, 7, 5))
# Standard deviations; measured 1.6e-6, 2.7e-2, an eighth of that and 5e-6 at
# most, times 10.
TOLERANCE = {
    "float32": 1.6e-5,
    "bfloat16": 0.27,
    "float16": 0.034,
    "resize": 5e-5,
}
FORMS = ["graph", "xla", "export"]


def run(how, function, *args):
    """Traces and runs `function` in one of the forms."""
    if not ON_TENSORFLOW:
        if how != "xla":
            pytest.skip("JAX knows one form, that of XLA")
        return function(*map(ops.convert_to_tensor, args))
    context = contextlib.nullcontext()
    if how == "export":
        context = lowering.export_form()
    with context:
        seen = []

        def noted(*args):
            seen.append(lowering.form())
            return function(*args)

        result = tf.function(noted, jit_compile=how == "xla")(*args)
    assert set(seen) == {how}
    return result


def run_tflite(function, x, **options):
    """Exports `function` and runs it where exports run.

    TensorFlow itself has no kernel for the exported form of a dilated
    depthwise convolution on every processor.
    """
    if not ON_TENSORFLOW:
        pytest.skip("TensorFlow alone makes TFLite files")
    with lowering.export_form(**options):
        traced = tf.function(function)
        concrete = traced.get_concrete_function(tf.TensorSpec(x.shape))
    convert = tf.lite.TFLiteConverter.from_concrete_functions(
        [concrete], traced
    )
    interpreter = Interpreter(model_content=convert.convert())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def with_gradients(function):
    """Value, and gradients of a loss that weighs every output differently."""

    def both(*args):
        with tf.GradientTape() as tape:
            tape.watch(args)
            y = tf.cast(function(*args), "float32")
            order = tf.reshape(tf.range(tf.size(y)), tf.shape(y))
            weights = 3 * tf.sin(tf.cast(order, "float32"))
            loss = tf.reduce_sum(y * weights)
        return y, *tape.gradient(loss, args)

    return both


def operations(function, *args, how="graph"):
    """Types of the operations that a traced function consists of."""
    context = contextlib.nullcontext()
    if how == "export":
        context = lowering.export_form()
    with context:
        traced = tf.function(function, jit_compile=how == "xla")
        graph = traced.get_concrete_function(*map(tf.constant, args)).graph
    return {op.type: op for op in graph.get_operations()}


@tensorflow_only
def test_form():
    seen = []

    def look(x):
        seen.append(lowering.form())
        return x

    inner = tf.function(lambda x: look(x) + 1)
    assert lowering.form() == "graph"
    tf.function(look)(1.0)
    tf.function(look, jit_compile=True)(1.0)
    tf.function(inner, jit_compile=True)(1.0)
    with lowering.export_form():
        assert lowering.form() == "export"
        with lowering.export_form():
            pass
        tf.function(look)(2)
    assert seen == ["graph", "xla", "xla", "export"]
    assert lowering.form() == "graph"


@tensorflow_only
def test_export_form_ends_with_an_error():
    with pytest.raises(KeyError), lowering.export_form():
        raise KeyError
    assert lowering.form() == "graph"


@tensorflow_only
def test_form_under_fit():
    seen = []

    class Look(keras.layers.Layer):
        def call(self, inputs):
            seen.append(lowering.form())
            return inputs

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(Look()(inputs)))
    for jit_compile in (False, True):
        seen.clear()
        model.compile("sgd", "mse", jit_compile=jit_compile)
        model.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))
        assert set(seen) == {"xla" if jit_compile else "graph"}


@tensorflow_only
@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize(
    "rate, dtype",
    [
        ((1, 1), "float32"),
        ((2, 3), "float32"),
        ((2, 2), "float32"),
        ((2, 2), "bfloat16"),
        ((2, 2), "float16"),
    ],
)
def test_convolution(rate, dtype, how):
    kernel = sample((3, 3, 5, 4), seed=1)
    args = [tf.cast(a, dtype) for a in (X, kernel)]

    def ours(x, k):
        return lowering.convolve(x, k, (1, 1), "same", rate)

    def plain(x, k):
        return ops.conv(x, k, padding="same", dilation_rate=rate)

    expected = with_gradients(plain)(*(tf.cast(a, "float32") for a in args))
    actual = run(how, with_gradients(ours), *args)
    for a, e in zip(actual, expected, strict=True):
        assert_close(tf.cast(a, "float32"), e, TOLERANCE[dtype])
    if rate[0] == rate[1] and dtype == "float32":
        assert_close(actual[0], np_dilated_conv(X, kernel, rate[0]))


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_strided_and_valid_convolution(padding, how):
    kernel = sample((3, 3, 5, 4), seed=1)
    for strides, rate in (((2, 2), (1, 1)), ((1, 1), (2, 1))):
        args = {"strides": strides, "padding": padding}
        expected = ops.conv(X, kernel, dilation_rate=rate, **args)
        actual = run(
            how,
            lambda x, k, rate=rate, args=args: lowering.convolve(
                x, k, atrous_rate=rate, **args
            ),
            X,
            kernel,
        )
        assert_close(actual, expected, TOLERANCE["float32"])


def test_grouped_convolution():
    x, kernel = sample((2, 9, 7, 6)), sample((3, 3, 2, 9), seed=1)
    expected = ops.conv(x, kernel, padding="same", dilation_rate=2)
    actual = lowering.convolve(x, kernel, (1, 1), "same", (2, 2))
    assert_close(actual, expected, TOLERANCE["float32"])


def test_convolution_without_onednn(monkeypatch):
    kernel = sample((3, 3, 5, 4), seed=1)
    monkeypatch.setattr(
        lowering, "_conv2d_has_dilated_gradient", lambda _: False
    )
    actual = lowering.convolve(X, kernel, (1, 1), "same", (2, 2))
    assert_close(actual, np_dilated_conv(X, kernel, 2))


# Wide enough for live taps; 37 % of the taps are on the map.
WIDE, WIDE_KERNEL = sample((2, 9, 7, 256)), sample((3, 3, 256, 128), seed=1)
WIDE_RATE = (5, 4)


def wide_convolution(x, kernel):
    return lowering.convolve(x, kernel, (1, 1), "same", WIDE_RATE)


@tensorflow_only
@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_convolution_of_a_small_map(dtype, how):
    args = [tf.cast(a, dtype) for a in (WIDE, WIDE_KERNEL)]

    def plain(x, k):
        return ops.conv(x, k, padding="same", dilation_rate=WIDE_RATE)

    expected = with_gradients(plain)(*(tf.cast(a, "float32") for a in args))
    actual = run(how, with_gradients(wide_convolution), *args)
    for a, e in zip(actual, expected, strict=True):
        assert_close(tf.cast(a, "float32"), e, TOLERANCE[dtype])


@tensorflow_only
def test_operations_on_a_small_map():
    gradients = with_gradients(wide_convolution)
    for dtype in ("float32", "bfloat16"):
        args = [tf.cast(a, dtype) for a in (WIDE, WIDE_KERNEL)]
        found = operations(gradients, *args, how="xla")
        assert not {name for name in found if name.startswith("Conv2D")}
    if lowering._conv2d_has_dilated_gradient("float32"):
        found = operations(gradients, WIDE, WIDE_KERNEL)
        assert {"Conv2D", "Conv2DBackpropInput", "MatMul"} <= set(found)
        assert "Conv2DBackpropFilter" not in found
    if lowering._conv2d_has_dilated_gradient("bfloat16"):
        # At any rate; in float32 only where enough taps are off the map.
        for dtype, is_plain in (("float32", True), ("bfloat16", False)):
            args = [tf.cast(a, dtype) for a in (WIDE, WIDE_KERNEL)]
            found = operations(
                with_gradients(
                    lambda x, k: lowering.convolve(x, k, (1, 1), "same", (2, 1))
                ),
                *args,
            )
            assert ("Conv2DBackpropFilter" in found) == is_plain, dtype
    found = operations(wide_convolution, WIDE, WIDE_KERNEL, how="export")
    assert found["Conv2D"].get_attr("dilations") == [1, *WIDE_RATE, 1]
    assert "MatMul" not in found


@tensorflow_only
@pytest.mark.parametrize(
    "channels, size, rate, products",
    [
        (128, (3, 3), (5, 4), 9),  # 37 % of the taps are on the map
        (128, (3, 3), (6, 9), 3),  # the outer columns are dead
        (128, (1, 5), (1, 2), 5),
        (128, (3, 3), (9, 9), 1),  # so is all but the center
        (128, (3, 1), (2, 1), 1),  # 85 % are on the map
        (127, (3, 3), (5, 4), 1),
    ],
)
def test_live_taps_of_an_export(channels, size, rate, products):
    x = sample((1, 9, 7, channels))
    kernel = sample((*size, channels, 6), seed=1)

    def ours(x):
        return lowering.convolve(x, kernel, (1, 1), "same", rate)

    with lowering.export_form(live_taps=True):
        graph = tf.function(ours).get_concrete_function(x).graph
    made = [op for op in graph.get_operations() if op.type == "Conv2D"]
    assert len(made) == products
    if products > 1:
        assert {tuple(op.inputs[1].shape[:2]) for op in made} == {(1, 1)}
    expected = ops.conv(x, kernel, padding="same", dilation_rate=rate)
    actual = run_tflite(ours, x, live_taps=True)
    assert_close(actual, expected, TOLERANCE["float32"])


@tensorflow_only
@pytest.mark.parametrize("eager", [True, False])
def test_layer_on_a_small_map_learns(eager):
    layer = Conv2D(128, 3, padding="same", dilation_rate=WIDE_RATE)
    layer(WIDE)
    layer.kernel.assign(WIDE_KERNEL)

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(WIDE) ** 2)
        return tape.gradient(loss, layer.kernel.value)

    def plain(k):
        y = ops.conv(WIDE, k, padding="same", dilation_rate=WIDE_RATE)
        return tf.reduce_sum(y**2)

    actual = gradient() if eager else tf.function(gradient)()
    kernel = tf.constant(WIDE_KERNEL)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        loss = plain(kernel)
    expected = tape.gradient(loss, kernel)
    assert_close(actual, expected, TOLERANCE["float32"])


@tensorflow_only
@pytest.mark.parametrize("unknown", ["batch", "size"])
def test_a_small_map_of_unknown_shape(unknown):
    shape = {"batch": (None, 9, 7, 256), "size": (2, None, None, 256)}[unknown]
    traced = tf.function(
        with_gradients(wide_convolution),
        jit_compile=True,
        input_signature=[
            tf.TensorSpec(shape),
            tf.TensorSpec(WIDE_KERNEL.shape),
        ],
    )
    graph = traced.get_concrete_function().graph
    types = {op.type for op in graph.get_operations()}
    # Bands follow from the size; the batch may be any.
    assert ("MatMul" in types) == (unknown == "batch")
    expected = run("graph", with_gradients(wide_convolution), WIDE, WIDE_KERNEL)
    for a, e in zip(traced(WIDE, WIDE_KERNEL), expected, strict=True):
        assert_close(a, e, TOLERANCE["float32"])


@tensorflow_only
@pytest.mark.parametrize("how", FORMS)
def test_a_rate_beyond_the_map_is_a_small_kernel(how):
    kernel = sample((3, 3, 5, 4), seed=1)
    depthwise = sample((3, 3, 5, 1), seed=1)
    for rate, size in (((9, 7), (1, 1)), ((2, 8), (3, 1)), ((8, 6), (3, 3))):

        def conv(x, k, rate=rate):
            return lowering.convolve(x, k, (1, 1), "same", rate)

        def deep(x, rate=rate):
            return lowering.convolve_depthwise(
                x, depthwise, (1, 1), "same", rate
            )

        expected = ops.conv(X, kernel, padding="same", dilation_rate=rate)
        actual = run(how, conv, tf.constant(X), tf.constant(kernel))
        assert_close(actual, expected, TOLERANCE["float32"])
        native = operations(conv, X, kernel, how="export")["Conv2D"]
        assert tuple(native.inputs[1].shape[:2]) == size
        expected = ops.depthwise_conv(
            X, depthwise, padding="same", dilation_rate=rate
        )
        actual = run_tflite(deep, X) if how == "export" else run(how, deep, X)
        assert_close(actual, expected, TOLERANCE["float32"])


@tensorflow_only
@pytest.mark.parametrize(
    "kernel_size, groups", [((2, 4), 1), ((3, 3), 2), ((4, 4), 1)]
)
def test_even_and_grouped_kernels_keep_the_plain_form(kernel_size, groups):
    kernel = sample((*kernel_size, 256 // groups, 8), seed=1)

    def plain(x, k):
        return ops.conv(x, k, padding="same", dilation_rate=WIDE_RATE)

    expected = with_gradients(plain)(tf.constant(WIDE), tf.constant(kernel))
    actual = run("graph", with_gradients(wide_convolution), WIDE, kernel)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, TOLERANCE["float32"])


@pytest.mark.slow  # a second TensorFlow
def test_dilated_gradient_on_a_processor_without_onednn():
    code = (
        "import keras, keras_aspp as ka, tensorflow as tf\n"
        "layer = ka.layers.AtrousConv2D(2, atrous_rate=2)\n"
        "with tf.GradientTape() as tape:\n"
        "    y = tf.reduce_sum(layer(tf.random.normal((1, 9, 7, 3))))\n"
        "assert tape.gradient(y, layer.trainable_weights[0]) is not None\n"
    )
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, timeout=300
    )


@tensorflow_only
@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize(
    "multiplier, rate, dtype",
    [
        (1, (1, 1), "float32"),
        (2, (3, 3), "float32"),
        (1, (2, 3), "float32"),
        (1, (2, 3), "bfloat16"),
        (1, (2, 3), "float16"),
    ],
)
def test_depthwise(multiplier, rate, dtype, how):
    kernel = sample((3, 3, 5, multiplier), seed=1)
    args = [tf.cast(a, dtype) for a in (X, kernel)]

    def ours(x, k):
        return lowering.convolve_depthwise(x, k, (1, 1), "same", rate)

    def plain(x, k):
        return ops.depthwise_conv(x, k, padding="same", dilation_rate=rate)

    expected = with_gradients(plain)(*(tf.cast(a, "float32") for a in args))
    actual = run(how, with_gradients(ours), *args)
    for a, e in zip(actual, expected, strict=True):
        assert_close(tf.cast(a, "float32"), e, TOLERANCE[dtype])
    if rate[0] == rate[1] and dtype == "float32":
        assert_close(actual[0], np_depthwise(X, kernel, rate[0]))


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize(
    "strides, padding, size, rate",
    [
        ((2, 2), "same", 3, (1, 1)),
        ((2, 2), "valid", 3, (1, 1)),
        ((1, 1), "valid", 3, (2, 2)),
        ((1, 1), "same", 4, (1, 1)),
        ((1, 1), "same", 3, (2, 2)),
        ((1, 1), "same", 3, (3, 2)),
    ],
)
def test_other_depthwise(strides, padding, size, rate, how):
    kernel = sample((size, size, 5, 1), seed=1)
    expected = ops.depthwise_conv(
        X, kernel, strides=strides, padding=padding, dilation_rate=rate
    )

    def ours(x):
        return lowering.convolve_depthwise(x, kernel, strides, padding, rate)

    actual = run_tflite(ours, X) if how == "export" else run(how, ours, X)
    assert_close(actual, expected, TOLERANCE["float32"])


@tensorflow_only
def test_large_depthwise_kernels_are_no_taps_under_xla(monkeypatch):
    used = []
    monkeypatch.setattr(
        lowering,
        "depthwise_taps",
        lambda x, *args: used.append(args) or x,
    )
    for size, taps in ((7, True), (9, False)):
        used.clear()
        kernel = sample((size, size, 5, 1), seed=1)

        def ours(x, kernel=kernel):
            return lowering.convolve_depthwise(
                x, kernel, (1, 1), "same", (1, 1)
            )

        actual = run("xla", ours, X)
        assert bool(used) == taps
    assert_close(actual, np_depthwise(X, kernel))


@tensorflow_only
def test_depthwise_taps_of_a_dynamic_size():
    kernel = sample((3, 3, 5, 1), seed=1)
    signature = [tf.TensorSpec((None, None, None, 5))]

    @tf.function(jit_compile=True, input_signature=signature)
    def ours(x):
        return lowering.convolve_depthwise(x, kernel, (1, 1), "same", (2, 2))

    assert_close(ours(X), np_depthwise(X, kernel, 2))


@tensorflow_only
def test_operations_of_each_form():
    conv, depthwise = sample((3, 3, 5, 4)), sample((3, 3, 5, 1))

    def wide(x, k):
        return lowering.convolve(x, k, (1, 1), "same", (2, 2))

    def deep(x, k):
        return lowering.convolve_depthwise(x, k, (1, 1), "same", (2, 2))

    has_gradient = lowering._conv2d_has_dilated_gradient("float32")
    for how in FORMS if has_gradient else FORMS[1:]:
        found = operations(wide, X, conv, how=how)
        assert found["Conv2D"].get_attr("dilations") == [1, 2, 2, 1]
        assert "SpaceToBatchND" not in found
    assert "SpaceToBatchND" in operations(deep, X, depthwise, how="graph")
    assert not {"SpaceToBatchND", "DepthwiseConv2dNative"} & set(
        operations(deep, X, depthwise, how="xla")
    )
    found = operations(deep, X, depthwise, how="export")
    native = found["DepthwiseConv2dNative"]
    assert native.get_attr("dilations") == [1, 2, 2, 1]
    assert "SpaceToBatchND" not in found


@tensorflow_only
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize(
    "size, grid",
    [((36, 28), (36, 28)), ((33, 26), (36, 28)), ((5, 3), (5, 3))],
)
def test_resize(size, grid, how, align_corners):
    def ours(x):
        return lowering.resize_bilinear(x, size, grid, align_corners)

    def plain(x):
        # TensorFlow's own op is the reference for the gradient.
        y = tf.raw_ops.ResizeBilinear(
            images=x,
            size=grid,
            align_corners=align_corners,
            half_pixel_centers=not align_corners,
        )
        return y[:, : size[0], : size[1]]

    actual = run(how, with_gradients(ours), tf.constant(X))
    expected = with_gradients(plain)(tf.constant(X))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, TOLERANCE["resize"])
    oracle = np_resize(X, grid, align_corners)[:, : size[0], : size[1]]
    assert_close(actual[0], oracle, TOLERANCE["resize"])


@pytest.mark.parametrize("how", FORMS)
def test_resize_is_in_float32(how):
    half = tf.cast(X, "bfloat16")
    y = run(
        how, lambda x: lowering.resize_bilinear(x, (18, 14), (18, 14)), half
    )
    assert y.dtype == "float32"
    exact = np_resize(npy(tf.cast(half, "float32")), (18, 14))
    assert_close(y, exact, TOLERANCE["resize"])


@tensorflow_only
def test_operations_of_resize():
    def resize(x):
        return lowering.resize_bilinear(x, (18, 14), (18, 14))

    for how in ("graph", "export"):
        assert "ResizeBilinear" in operations(resize, X, how=how)
    assert "ResizeBilinear" not in operations(resize, X, how="xla")


@tensorflow_only
@pytest.mark.parametrize("how", ["graph", "xla"])
def test_resize_of_a_dynamic_size(how):
    signature = [tf.TensorSpec((None, None, None, 5))]

    @tf.function(jit_compile=how == "xla", input_signature=signature)
    def ours(x):
        grid = [2 * n for n in ops.shape(x)[1:3]]
        size = [n - 1 for n in grid]
        y = lowering.resize_bilinear(x, size, grid)
        assert y.shape[-1] == 5  # which losses read
        return y

    assert_close(
        ours(X), np_resize(X, (18, 14))[:, :17, :13], TOLERANCE["resize"]
    )


@tensorflow_only
@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("is_static", [True, False])
def test_crop(is_static, how):
    def cut(x):
        height, width = (
            x.shape[1:3] if is_static else tf.unstack(tf.shape(x))[1:3]
        )
        return lowering.crop(x, (height - 4, width - 1), (1, 0))

    x = tf.constant(X)
    np.testing.assert_array_equal(run(how, cut, x), X[:, 1:6, :6])
    slope = run(how, with_gradients(cut), x)[1]
    pulled = 3 * np.sin(np.arange(2 * 5 * 6 * 5, dtype="float32"))
    expected = np.zeros_like(X)
    expected[:, 1:6, :6] = pulled.reshape(2, 5, 6, 5)
    assert_close(slope, expected)


@tensorflow_only
def test_gradients_of_crops_are_no_strided_slices():
    """Their kernel takes 7 to 10 times as long on a CPU."""

    def resize(x):
        return lowering.resize_bilinear(x, (17, 13), (18, 14))

    def pool(x):
        return lowering.pool_max(x, (3, 3), (1, 1), "same", (2, 2))

    for function in (resize, pool):
        found = operations(with_gradients(function), X)
        assert "StridedSliceGrad" not in found
        assert "Slice" in found


@pytest.mark.parametrize("rows, columns", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_extend_edge(rows, columns):
    pad = ((0, 0), (0, rows), (0, columns), (0, 0))
    expected = np.pad(X, pad, "edge")
    np.testing.assert_array_equal(
        npy(lowering.extend_edge(tf.constant(X), rows, columns)), expected
    )
    dynamic = lowering.extend_edge(X, tf.constant(rows), tf.constant(columns))
    np.testing.assert_array_equal(npy(dynamic), expected)


@tensorflow_only
@pytest.mark.parametrize("rows, columns", [(0, 1), (1, 0), (1, 1)])
def test_extend_edge_of_a_dynamic_size_in_an_export(rows, columns):
    more = (tf.constant(rows), tf.constant(columns))
    actual = run("export", lowering.extend_edge, tf.constant(X), *more)
    expected = np.pad(X, ((0, 0), (0, rows), (0, columns), (0, 0)), "edge")
    np.testing.assert_array_equal(npy(actual), expected)


def np_pool(x, reduce, size, rate, pads):
    """Dilated pooling at stride 1; what is beyond the map does not count."""
    p = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=np.nan)
    h, w = (
        n - (k - 1) * r
        for n, k, r in zip(p.shape[1:3], size, rate, strict=True)
    )
    taps = [
        p[:, i * rate[0] :, j * rate[1] :][:, :h, :w]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return reduce(np.stack(taps), axis=0)


POOLS = [
    (lowering.pool_max, np.nanmax),
    (lowering.pool_average, np.nanmean),
]


@pytest.mark.parametrize("pool, reduce", POOLS)
@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize(
    "size, rate, padding, pads",
    [
        ((3, 3), (2, 2), "same", ((2, 2), (2, 2))),
        ((2, 4), (3, 1), "same", ((0, 3), (1, 2))),
        ((3, 2), (2, 3), "valid", ((0, 0), (0, 0))),
        ((3, 3), (1, 1), "valid", ((2, 0), (1, 1))),
        ((2, 2), (4, 2), "valid", ((4, 0), (0, 2))),
    ],
)
def test_pooling(pool, reduce, how, size, rate, padding, pads):
    given = pads if padding == "valid" else None

    def pooled(x):
        return pool(x, size, (1, 1), padding, rate, given)

    actual = run(how, pooled, tf.constant(X))
    expected = np_pool(X, reduce, size, rate, pads)
    assert_close(actual, expected, TOLERANCE["float32"])


@tensorflow_only
@pytest.mark.parametrize("pool, reduce", POOLS)
def test_pooling_of_any_size(pool, reduce):
    pooled = tf.function(
        lambda x: pool(x, (3, 3), (1, 1), "same", (2, 2)),
        input_signature=[tf.TensorSpec((None, None, None, 5))],
    )
    # A map smaller than the holes too.
    for size in ((9, 7), (1, 2)):
        x = sample((2, *size, 5))
        expected = np_pool(x, reduce, (3, 3), (2, 2), ((2, 2), (2, 2)))
        assert_close(pooled(x), expected, TOLERANCE["float32"])


@tensorflow_only
@pytest.mark.parametrize("pool, reduce", POOLS)
def test_pooling_is_plain_operators(pool, reduce):
    def pooled(x):
        return pool(x, (3, 3), (1, 1), "same", (2, 2))

    for how in FORMS:
        if how == "xla":
            continue
        types = operations(pooled, X, how=how)
        assert not {t for t in types if "Batch" in t or "Pool" in t}


@tensorflow_only
def test_pooling_gradient():
    def loss(x):
        # Each window's maximum is one cell, which alone is pulled at.
        return lowering.pool_max(x, (3, 3), (1, 1), "same", (2, 2))

    y, slope = with_gradients(loss)(tf.constant(X))
    assert np.isfinite(npy(slope)).all()
    assert (npy(slope) != 0).sum() < X.size
    assert set(npy(y).ravel()) <= set(X.ravel())


def test_as_many_groups_as_channels():
    """ConvNeXt's way to write a depthwise convolution."""
    kernel = sample((3, 3, 1, 5), seed=1)
    actual = lowering.convolve(X, kernel, (1, 1), "same", (2, 2))
    expected = np_depthwise(X, kernel.transpose(0, 1, 3, 2), 2)
    assert_close(actual, expected, TOLERANCE["float32"])


def test_an_export_in_one_thread_leaves_other_threads_alone():
    forms = []
    with lowering.export_form():
        thread = threading.Thread(target=lambda: forms.append(lowering.form()))
        thread.start()
        thread.join()
        forms.append(lowering.form())
    if keras.backend.backend() == "tensorflow":
        assert forms == ["graph", "export"]
    assert lowering.form() != "export"
