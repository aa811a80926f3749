"""The auxiliary head: its numbers, and that only training has it."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    assert_close,
    make_small_backbone,
    make_toy_backbone,
    np_batch_norm,
    np_dilated_conv,
    np_resize,
    npy,
    randomize,
    relu,
    sample,
    set_seed,
    tensorflow_only,
)

from keras_aspp.losses import CrossEntropy
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.models import DeepLabV3, DeepLabV3Plus, with_output_stride
from keras_aspp.models.precision import with_dtype

SIZE = (33, 50)
WEIGHT = 0.4


def build(auxiliary_weight=WEIGHT, **kwargs):
    set_seed(1)
    arguments = {"atrous_rates": (1,), "aspp_filters": 4, "dropout": 0.0}
    return DeepLabV3(
        3,
        make_toy_backbone(padding=1, features=True),
        auxiliary_weight=auxiliary_weight,
        **{**arguments, **kwargs},
    )


def build_random(**kwargs):
    """A model without a neutral weight, in the auxiliary head neither."""
    model = randomize(build(batch_norm="freeze", **kwargs))
    for i, layer in enumerate(model._auxiliary.layers):
        randomize(layer, seed=i)
    return model


def batch(size=SIZE):
    x = sample((2, *size, 3))
    y = (x[..., 0] > 0).astype("int32") + (x[..., 1] > 0)
    y[0, :3] = 255
    return x, y


def compiled(model, **kwargs):
    optimizer = keras.optimizers.SGD(0.1)
    metrics = [ConfusionMatrix(3)]
    model.compile(optimizer, CrossEntropy(), metrics=metrics, **kwargs)
    return model


def np_cross_entropy(logits, labels):
    logits = logits.astype("float64")
    logits -= logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = labels != 255
    return -logs[valid, labels[valid]].mean()


def np_head(model, feature, stride):
    """The auxiliary logits, computed from the feature map."""
    conv, _, classifier = model._auxiliary.layers
    x = np_dilated_conv(feature, npy(conv.conv.kernel))
    x = relu(np_batch_norm(x, conv.norm))
    x = x @ npy(classifier.kernel)[0, 0] + npy(classifier.bias)
    grid = [n * stride for n in x.shape[1:3]]
    return np_resize(x, grid)[:, : SIZE[0], : SIZE[1]]


@pytest.mark.parametrize(
    ("arguments", "feature", "stride"),
    [
        ({}, "stride_16", 16),
        ({"output_stride": 8}, "stride_16", 8),
        ({"high_level": "stride_16"}, "stride_8", 8),
        ({"auxiliary_feature": "stride_4"}, "stride_4", 4),
        ({"input_scale": 2}, "stride_16", 8),
    ],
)
def test_the_loss_is_that_of_numpy(arguments, feature, stride):
    model = compiled(build_random(**arguments))
    assert model.auxiliary_feature == feature
    x, y = batch()
    if arguments.get("input_scale"):
        magnified = model.get_layer("magnified")(x)
    else:
        magnified = x
    auxiliary = np_head(model, npy(model.backbone(magnified)[feature]), stride)
    found = model._auxiliary.model(x, training=True)
    assert_close(found["auxiliary"], auxiliary)
    np.testing.assert_allclose(
        npy(found["logits"]), npy(model(x)), rtol=1e-4, atol=1e-5
    )
    parts = [np_cross_entropy(a, y) for a in (npy(model(x)), auxiliary)]
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["auxiliary_loss"] == pytest.approx(parts[1], rel=1e-4)
    total = parts[0] + WEIGHT * parts[1]
    assert logs["loss"] == pytest.approx(total, rel=1e-4)
    assert abs(parts[0] - parts[1]) > 0.01


@tensorflow_only
def test_its_gradient_reaches_the_stages_before_its_feature_only():
    model = build_random()
    x, y = batch()
    variables = model.backbone.trainable_variables
    variables = [v for v in variables if v.path.endswith("kernel")]

    def loss():
        found = model._auxiliary.model(x, training=True)
        return CrossEntropy()(y, found["auxiliary"])

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [v.value for v in variables])
    reached = set()
    for variable, gradient in zip(variables, gradients, strict=True):
        before, step = npy(variable), 3e-4 * sample(variable.shape)
        variable.assign(before + step)
        change = float(loss())
        variable.assign(before - step)
        change -= float(loss())
        variable.assign(before)
        if gradient is None:
            assert change == 0, variable.path
            continue
        reached.add(variable.path.split("/")[-2])
        expected = 2 * (npy(gradient) * step).sum()
        assert change == pytest.approx(expected, rel=0.1, abs=2e-5)
        assert npy(gradient).std() > 0
    names = {v.path.split("/")[-2] for v in variables}
    assert names - reached == {"block4", "block4_inner"}


def contents(path):
    """The configuration and every weight of a `.keras` file."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
        archive.extract("model.weights.h5", path.parent)
    weights = {}
    with h5py.File(path.parent / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: weights.update(
                {name: item[()].tobytes()}
                if isinstance(item, h5py.Dataset)
                else {}
            )
        )
    return config, weights


def test_files_and_copies_are_those_of_a_model_without(tmp_path):
    files, models = [], []
    for weight in (0, WEIGHT):
        keras.backend.clear_session()
        model = build(weight)
        model.save(tmp_path / f"{weight}.keras")
        files.append(contents(tmp_path / f"{weight}.keras"))
        models.append(model)
    assert files[0] == files[1]
    assert len(files[0][1]) > 50
    plain, model = models
    assert model.count_params() == plain.count_params()
    assert len(model.weights) == len(plain.weights)
    assert len(model.trainable_variables) == len(plain.trainable_variables) + 5
    assert model.get_config() == plain.get_config()
    copies = [
        keras.saving.load_model(tmp_path / f"{WEIGHT}.keras"),
        with_dtype(model, "float32"),
        with_output_stride(model, 16),
        build(weights=tmp_path / "0.keras"),
    ]
    x = batch()[0]
    for copy in copies:
        np.testing.assert_array_equal(npy(copy(x)), npy(plain(x)))
    assert [c.auxiliary_weight for c in copies] == [0, 0, 0, WEIGHT]


@pytest.mark.slow  # two conversions
@tensorflow_only
def test_an_export_is_that_of_a_model_without():
    from keras_aspp.export.tflite import convert

    files = []
    for weight in (0, WEIGHT):
        keras.backend.clear_session()
        model = build(weight)
        files.append(convert(model, (64, 64), ["tflite_float32"]))
    assert files[0] == files[1]


@pytest.mark.slow  # XLA compiles each
@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "mixed_bfloat16", "rematerialize": True},
        {"dtype": "mixed_float16", "batch_norm": "group", "aspp_filters": 12},
        {"task": "binary", "num_classes": 2, "threshold": 0.3},
    ],
    ids=["bfloat16 rematerialized", "float16 group norm", "binary"],
)
def test_it_trains_in_every_mode(arguments):
    set_seed(1)
    arguments = {"num_classes": 3, "aspp_filters": 4, **arguments}
    make = make_small_backbone
    if "rematerialize" in arguments:  # by parts, of which it has one
        make = make_toy_backbone
    model = DeepLabV3Plus(
        backbone=make(dtype=arguments.get("dtype")),
        atrous_rates=(1,),
        decoder_filters=4,
        auxiliary_weight=WEIGHT,
        **arguments,
    )
    x, y = batch((64, 64))
    y[y == 2] = 1
    model.compile(keras.optimizers.SGD(0.1), CrossEntropy(), jit_compile=True)
    before = [npy(v) for v in model._auxiliary.variables if v.trainable]
    first, *_, last = (
        model.train_on_batch(x, y, return_dict=True) for _ in range(6)
    )
    assert last["auxiliary_loss"] < first["auxiliary_loss"]
    assert last["loss"] < first["loss"]
    after = [npy(v) for v in model._auxiliary.variables if v.trainable]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    assert npy(model(x)).shape == (2, 64, 64, arguments["num_classes"])


@pytest.mark.slow
def test_within_another_model_only_the_logits_are_trained():
    """Two steps of an outer model are those of a segmenter without it."""
    x, y = batch()
    losses = []
    for weight in (0, WEIGHT):
        inner = build(weight)
        image = keras.Input((*SIZE, 3))
        for outer in (
            keras.Model(image, inner(image)),
            keras.Sequential([image, build(weight)]),
        ):
            assert outer(x, training=True).shape == (2, *SIZE, 3)
            compiled(outer)
            losses.append([outer.train_on_batch(x, y)[0] for _ in range(2)])
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-4)
    assert "auxiliary_loss" in compiled(inner).train_on_batch(
        x, y, return_dict=True
    )


def fit(model):
    data = tf.data.Dataset.from_tensor_slices(batch((64, 64))).batch(1)
    return model.fit(
        data.repeat(),
        validation_data=data,
        steps_per_epoch=2,
        epochs=2,
        shuffle=False,
        verbose=0,
    ).history


@tensorflow_only
@pytest.mark.slow
def test_several_steps_in_one_execution_give_the_same_numbers():
    expected = fit(compiled(build()))
    assert "val_auxiliary_loss" not in expected
    assert "auxiliary_loss" not in compiled(build()).test_on_batch(
        *batch(), return_dict=True
    )
    found = fit(compiled(build(), steps_per_execution=2))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"auxiliary_weight": -1}, "Received: auxiliary_weight=-1"),
        ({"auxiliary_weight": float("nan")}, "Received: auxiliary_weight=nan"),
        ({"auxiliary_weight": True}, "Received: auxiliary_weight=True"),
        (
            {"auxiliary_weight": 0, "auxiliary_feature": "stride_8"},
            "needs `auxiliary_weight` > 0",
        ),
        ({"auxiliary_feature": "stride_3"}, "no feature `stride_3`"),
        ({"high_level": "stride_2", "output_stride": 2}, "finer than `stride"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_loss_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="keras.losses.Loss.*Received: loss="):
        build().compile(loss="sparse_categorical_crossentropy")
