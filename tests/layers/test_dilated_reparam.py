"""DilatedReparamBlock against NumPy and PyTorch, before and after the merge."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    SHAPE,
    assert_close,
    compute_dtypes,
    np_batch_norm,
    np_depthwise,
    npy,
    randomize,
    sample,
    tensorflow_only,
)
from model_tester import run_tflite, write_logits

import keras_aspp as ka
from keras_aspp.analysis import receptive_fields
from keras_aspp.analysis.report import report
from keras_aspp.backbones import with_output_stride
from keras_aspp.layers import DilatedReparamBlock
from keras_aspp.layers.dilated_reparam import BRANCHES
from keras_aspp.layers.lowering import export_form
from keras_aspp.litert.describe import describe_tflite
from keras_aspp.models import fold_batch_norm


def built(**kwargs):
    layer = DilatedReparamBlock(**{"kernel_size": 7, **kwargs})
    layer.build(SHAPE)
    return randomize(layer)


def network(*layers, channels=5):
    inputs = x = keras.Input((None, None, channels))
    for layer in layers:
        x = layer(x)
    return randomize(keras.Model(inputs, x))


def merged(model):
    """The block in the folded copy of a model."""
    (block,) = (
        layer
        for layer in fold_batch_norm(model).layers
        if isinstance(layer, DilatedReparamBlock)
    )
    return block


def torch_block(layer):
    """The published training form, with the weights of `layer`."""
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed (2026-11-29)"
    )
    channels = layer.convolutions[0].kernel.shape[2]

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convs, self.norms = (torch.nn.ModuleList() for _ in range(2))
            for k, r in layer.parts:
                self.convs.append(
                    torch.nn.Conv2d(
                        channels,
                        channels,
                        k,
                        padding=r * (k - 1) // 2,
                        dilation=r,
                        groups=channels,
                        bias=False,
                    )
                )
                self.norms.append(torch.nn.BatchNorm2d(channels, eps=1e-3))

        def forward(self, x):
            return sum(
                norm(conv(x))
                for conv, norm in zip(self.convs, self.norms, strict=True)
            )

    block = Block().eval()
    with torch.no_grad():
        for ours, conv in zip(layer.convolutions, block.convs, strict=True):
            kernel = npy(ours.kernel).transpose(2, 3, 0, 1)
            conv.weight.copy_(torch.tensor(kernel))
        for ours, norm in zip(layer.norms, block.norms, strict=True):
            for name, value in {
                "weight": ours.gamma,
                "bias": ours.beta,
                "running_mean": ours.moving_mean,
                "running_var": ours.moving_variance,
            }.items():
                getattr(norm, name).copy_(torch.tensor(npy(value)))
    return lambda x: (
        block(torch.tensor(x.transpose(0, 3, 1, 2)))
        .detach()
        .numpy()
        .transpose(0, 2, 3, 1)
    )


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("atrous_rate", [1, (2, 1)])
def test_values(atrous_rate, batch_norm):
    x = sample()
    layer = built(atrous_rate=atrous_rate, batch_norm=batch_norm)
    expected = 0
    for i, (_, rate) in enumerate(((7, 1), *BRANCHES[7])):
        conv = layer.convolutions[i]
        rates = rate * np.array(atrous_rate)
        y = np_depthwise(x, npy(conv.kernel), rates * np.ones(2, int))
        if batch_norm:
            y = np_batch_norm(y, layer.norms[i])
        expected = expected + y + (0 if batch_norm else npy(conv.bias))
    assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel_size", BRANCHES)
def test_both_forms_are_the_published_training_form(kernel_size):
    block = DilatedReparamBlock(kernel_size)
    model = network(block)
    x = sample((2, 19, 15, 5))
    expected = torch_block(block)(x)
    assert_close(model(x), expected, 1e-5)
    plain = merged(model)
    # One plain depthwise K x K with a bias, and nothing else.
    (convolution,) = plain.convolutions
    assert plain.merged and not plain.norms
    assert convolution.kernel.shape == (kernel_size, kernel_size, 5, 1)
    assert len(plain.weights) == 2
    assert_close(plain(x), expected, 1e-5)
    assert_close(
        np_depthwise(x, npy(convolution.kernel)),
        expected - npy(convolution.bias),
        1e-5,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_norm": False},
        {"atrous_rate": (1, 2)},
        {"branches": [(3, 3), (1, 1), (5, 1)]},
        {"batch_norm": "freeze"},
    ],
)
def test_merge_absorbs_the_batch_norm_that_follows(arguments):
    model = network(
        DilatedReparamBlock(7, **arguments),
        ka.layers.BatchNormalization(),
        keras.layers.ReLU(),
    )
    folded = fold_batch_norm(model)
    assert [type(layer).__name__ for layer in folded.layers] == [
        "InputLayer",
        "DilatedReparamBlock",
        "ReLU",
    ]
    x = sample()
    assert_close(folded(x), model(x), 1e-5)
    again = fold_batch_norm(folded)
    np.testing.assert_array_equal(npy(again(x)), npy(folded(x)))


def test_start_of_training_gives_every_branch_the_same_variance():
    keras.utils.set_random_seed(0)
    layer = DilatedReparamBlock(13)
    layer.build((None, None, None, 64))
    x = sample((1, 40, 40, 64))
    for convolution in layer.convolutions:
        size = convolution.kernel_size[0] * convolution.dilation_rate[0]
        inner = npy(convolution(x))[:, size // 2 : -(size // 2), 13:-13]
        # He's variance is 2 for each of 64 kernels, also of 13 x 13.
        assert inner.var() == pytest.approx(2, rel=0.35)
    out = npy(layer(x, training=True))
    assert out.var() == pytest.approx(len(layer.parts), rel=0.25)


def test_training_updates_every_batch_norm_and_inference_none():
    layer = built()
    before = [npy(w) for w in layer.non_trainable_variables]
    layer(sample())
    for a, b in zip(before, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(a, npy(b))
    layer(sample(), training=True)
    for a, b in zip(before, layer.non_trainable_variables, strict=True):
        assert np.abs(a - npy(b)).max() > 1e-4


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_dtype_policy_reaches_every_sublayer(policy):
    layer = built(dtype=policy)
    assert set(compute_dtypes(layer).values()) == {policy[6:]}
    assert {w.dtype for w in layer.weights} == {"float32"}
    assert keras.backend.standardize_dtype(layer(sample()).dtype) == policy[6:]


@tensorflow_only
def test_xla_computes_the_same():
    layer = built()
    compiled = tf.function(lambda x: layer(x), jit_compile=True)
    assert_close(compiled(sample()), layer(sample()))


@pytest.mark.parametrize("merge", [False, True])
def test_save_and_load(merge, tmp_path):
    model = network(
        DilatedReparamBlock(
            9,
            branches=[(3, 4), (5, 2)],
            atrous_rate=(1, 2),
            batch_norm_momentum=0.7,
            batch_norm_epsilon=1e-4,
            kernel_initializer=keras.initializers.RandomUniform(-2, 2),
            name="block",
            dtype="mixed_bfloat16",
        )
    )
    if merge:
        model = fold_batch_norm(model)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    block = copy.get_layer("block")
    assert block.get_config() == model.get_layer("block").get_config()
    assert (block.merged, block.branches) == (merge, ((3, 4), (5, 2)))
    np.testing.assert_array_equal(npy(copy(sample())), npy(model(sample())))


def test_dense_backbone_dilates_the_block_and_takes_it_back():
    conv = {"strides": 2, "padding": "same"}
    model = network(
        ka.layers.Conv2D(6, 3, **conv),
        DilatedReparamBlock(5, atrous_rate=(1, 2), name="block"),
        ka.layers.Conv2D(6, 3, padding="same"),
        channels=3,
    )
    dense = with_output_stride(model, 1)
    assert dense.get_layer("block").atrous_rate == (2, 4)
    x = sample((1, 21, 33, 3))
    assert_close(npy(dense(x))[:, ::2, ::2], model(x))
    assert_close(fold_batch_norm(dense)(x), dense(x))
    back = with_output_stride(dense, 2)
    assert back.get_layer("block").get_config() == {
        **model.get_layer("block").get_config(),
    }
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


def test_inspect_reads_both_forms():
    model = network(DilatedReparamBlock(13, name="block"))
    training, plain = (
        report(model, (33, 31)),
        report(fold_batch_norm(model), (33, 31)),
    )
    assert [row["rate"] for row in training["atrous"]] == [2, 3, 4, 5]
    assert not plain["atrous"]
    taps = sum(k * k for k, _ in ((13, 1), *BRANCHES[13]))
    cells = 33 * 31 * 5
    assert training["cost"]["madds"] == cells * taps
    assert plain["cost"]["madds"] == cells * 13 * 13
    for one in (model, fold_batch_norm(model)):
        assert receptive_fields(one, (33, 31))[-1].size == (13, 13)


@tensorflow_only
@pytest.mark.slow  # TFLite
def test_exports_to_one_depthwise_convolution(tmp_path):
    model = fold_batch_norm(network(DilatedReparamBlock(13)))
    x = sample((1, 17, 15, 5))
    with export_form():
        write_logits(model, tmp_path / "one", x.shape)
    assert_close(run_tflite(tmp_path / "one", x), model(x))
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(tmp_path / "one"), signature_keys=["serve"]
    )
    (tmp_path / "one.tflite").write_bytes(converter.convert())
    described = describe_tflite(tmp_path / "one.tflite")
    assert described["operators"] == {"DEPTHWISE_CONV_2D": 1}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"kernel_size": 4}, "must be odd.*kernel_size=4"),
        ({"kernel_size": 19}, "pass yours.*kernel_size=19"),
        ({"branches": [(3, 4)]}, r"fits into 7x7.*branches=\[\(3, 4\)\]"),
        ({"branches": [(2, 1)]}, r"branches=\[\(2, 1\)\]"),
        ({"branches": [(3, 1), (3, 1)]}, "different pairs"),
        ({"branches": [3]}, r"branches=\[3\]"),
        ({"branches": 3}, "branches=3"),
        ({"batch_norm_epsilon": -1}, "Received: batch_norm_epsilon=-1"),
        ({"batch_norm": "group"}, "cannot be merged.*'group'"),
        ({"atrous_rate": 0}, "Received: atrous_rate=0"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DilatedReparamBlock(**{"kernel_size": 7, **kwargs})
