"""Distillation: its numbers, and that the teacher only teaches."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    make_small_backbone,
    make_toy_backbone,
    npy,
    randomize,
    sample,
    set_seed,
    tensorflow_only,
)

from keras_aspp.losses import CrossEntropy
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.models import DeepLabV3, distill
from keras_aspp.models.auxiliary import training_terms
from keras_aspp.models.precision import compute_dtypes
from keras_aspp.pixels import PixelFormat
from keras_aspp.preprocess import KERAS_CAFFE, TORCHVISION

SIZE = (33, 50)


def build(num_classes=3, seed=1, **kwargs):
    set_seed(seed)
    arguments = {"atrous_rates": (1,), "aspp_filters": 4, "dropout": 0.0}
    if "backbone" not in kwargs:
        arguments["backbone"] = make_toy_backbone(padding=1, features=True)
    model = DeepLabV3(num_classes, **{**arguments, **kwargs})
    return randomize(model, seed=seed)


def student(**kwargs):
    return build(**{"batch_norm": "freeze", **kwargs})


def batch(size=SIZE, num_classes=3):
    x = 2 * sample((2, *size, 3))
    y = (x[..., 0] > 0).astype("int32")
    y += (x[..., 1] > 0) * (num_classes > 2)
    y[0, :3] = 255
    return x, y


def compiled(model, **kwargs):
    model.compile(
        keras.optimizers.SGD(0.1),
        CrossEntropy(),
        metrics=[ConfusionMatrix(model.num_classes)],
        **kwargs,
    )
    return model


def np_log_softmax(logits):
    logits = npy(logits).astype("float64")
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def np_divergence(student, teacher, weights, temperature=1.0):
    """Mean over the pixels of a weight, of the divergence."""
    p, q = (np_log_softmax(npy(x) / temperature) for x in (teacher, student))
    each = (np.exp(p) * (p - q)).sum(-1) * temperature**2
    return (each * weights).sum() / (weights > 0).sum()


@pytest.mark.parametrize(
    ("arguments", "temperature"),
    [
        ({}, 1.0),
        ({"input_scale": 2}, 3.0),
        ({"output_stride": 8}, 2.0),
        ({"preprocess": KERAS_CAFFE}, 1.0),
    ],
)
def test_the_loss_is_that_of_numpy(arguments, temperature):
    model = student(preprocess=TORCHVISION)
    teacher = build(seed=2, **{"preprocess": TORCHVISION, **arguments})
    images = np.random.default_rng(3).integers(0, 256, (2, *SIZE, 3))
    images = images.astype("uint8")
    x, y = npy(model.preprocess(images)), batch()[1]
    soft = npy(teacher(teacher.preprocess(images), training=False))
    weights = np.ones(y.shape) * np.reshape([1.0, 0.5], (2, 1, 1))
    divergence = np_divergence(
        model(x), soft, weights * (y != 255), temperature
    )
    logs = -np_log_softmax(model(x))
    valid = y != 255
    picked = np.take_along_axis(logs, np.where(valid, y, 0)[..., None], -1)
    labels = (picked[..., 0] * weights)[valid].mean()
    distill(model, teacher, 0.7, temperature)
    logs = compiled(model).train_on_batch(
        x, y, sample_weight=np.array([1.0, 0.5]), return_dict=True
    )
    assert logs["distillation_loss"] == pytest.approx(divergence, rel=1e-3)
    assert logs["loss"] == pytest.approx(labels + 0.7 * divergence, rel=1e-3)
    assert divergence > 0.01


@pytest.mark.parametrize(
    ("pixels", "teachers_pixels", "factor"),
    [
        # Images of one type: both read the stored values.
        (("uint16", (0, 10000)), ("uint16", (0, 4095)), 1.0),
        (("uint16", (0, [9000, 500, 100])), ("uint16", (5, 4095)), 1.0),
        (("uint8", None), ("uint8", (0, 128)), 1.0),
        # Of two types, as reflectance: white is white.
        (("uint16", (0, 10000)), ("float32", (0, 1)), 1e-4),
    ],
)
def test_a_teacher_of_another_value_range(pixels, teachers_pixels, factor):
    def preprocess(dtype, value_range):
        found = PixelFormat(dtype=dtype, value_range=value_range)
        return KERAS_CAFFE.of_images(found)

    model = student(preprocess=preprocess(*pixels))
    teacher = build(seed=2, preprocess=preprocess(*teachers_pixels))
    most = 256 if pixels[0] == "uint8" else 4096
    images = np.random.default_rng(3).integers(0, most, (2, *SIZE, 3))
    images = images.astype(pixels[0])
    x, y = npy(model.preprocess(images)), np.zeros((2, *SIZE), "int32")
    stored = (images * factor).astype(teachers_pixels[0])
    soft = npy(teacher(teacher.preprocess(stored), training=False))
    expected = np_divergence(model(x), soft, np.ones(y.shape))
    distill(model, teacher)
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0.01


def test_the_teacher_stays_as_it_is():
    """Weights and statistics, while the student's batch norm learns."""
    teacher = build(seed=2, dropout=0.5)
    before = [npy(v) for v in teacher.weights]
    model = student(batch_norm="train")
    distill(model, teacher)
    first = [npy(v) for v in model.weights]
    compiled(model)
    x, y = batch()
    losses = [
        model.train_on_batch(x, y, return_dict=True)["distillation_loss"]
        for _ in range(2)
    ]
    assert losses[0] != losses[1]
    for found in (teacher, model._teacher.model):
        for value, variable in zip(before, found.weights, strict=True):
            np.testing.assert_array_equal(value, npy(variable))
    changed = [
        (a != npy(b)).any() for a, b in zip(first, model.weights, strict=True)
    ]
    assert all(changed)


@pytest.mark.slow
def test_only_training_has_the_teacher(tmp_path):
    files, models = [], []
    for teacher in (None, build(seed=2)):
        keras.backend.clear_session()
        model = build()
        if teacher is not None:
            distill(model, teacher)
        model.save(tmp_path / "model.keras")
        files.append(
            [
                (entry.filename, entry.file_size)
                for entry in zipfile.ZipFile(tmp_path / "model.keras").filelist
                if entry.filename != "metadata.json"
            ]
        )
        models.append(model)
    assert files[0] == files[1]
    plain, model = models
    assert model.get_config() == plain.get_config()
    for name in ("variables", "weights", "trainable_variables"):
        assert len(getattr(model, name)) == len(getattr(plain, name))
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert training_terms(loaded) == []
    x, y = batch()
    np.testing.assert_array_equal(npy(model(x)), npy(plain(x)))
    compiled(model)
    assert "distillation_loss" not in model.test_on_batch(
        x, y, return_dict=True
    )
    assert "distillation_loss" in model.train_on_batch(x, y, return_dict=True)


class OwnStep:
    """Training as a guide of Keras shows it, with a sum over the logits."""

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            total = self.compute_loss(y=y, y_pred=y_pred)
            loss = total + 0.0 * tf.reduce_sum(y_pred)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights, strict=True)
        )
        return {**self.compute_metrics(x, y, y_pred), "total": total}


class InClass(DeepLabV3):
    train_step = OwnStep.train_step


class InMixin(OwnStep, DeepLabV3):
    pass


@tensorflow_only
def test_a_training_step_of_ones_own_has_the_terms():
    x, y = batch()
    found = {}
    for kind in (DeepLabV3, InClass, InMixin):
        set_seed(1)  # of the auxiliary head's dropout
        backbone = make_toy_backbone(padding=1, features=True)
        model = randomize(kind(3, backbone, auxiliary_weight=0.4))
        distill(model, build(seed=2), 0.7)
        found[kind] = compiled(model).train_on_batch(x, y, return_dict=True)
    theirs = found.pop(DeepLabV3)
    for own in found.values():
        assert own["total"] == pytest.approx(theirs["loss"], rel=1e-4)
        for name in ("auxiliary_loss", "distillation_loss"):
            assert own[name] == pytest.approx(theirs[name], rel=1e-4)
            assert own[name] > 0


@tensorflow_only
def test_a_training_step_that_does_not_call_the_model_is_named():
    class Odd(DeepLabV3):
        def train_step(self, data):
            return {"loss": self.compute_loss(data[0], data[1], data[0])}

    model = Odd(3, make_toy_backbone(padding=1, features=True))
    distill(model, build(seed=2))
    with pytest.raises(ValueError, match=r"Received: Odd\.train_step"):
        compiled(model).train_on_batch(*batch())


@pytest.mark.slow
def test_a_student_learns_its_teachers_scores_of_two_classes():
    """Binary: no threshold moves the probabilities that are learned."""
    arguments = {"num_classes": 2, "task": "binary"}
    x, y = batch(num_classes=2)
    losses = []
    for threshold in (0.5, 0.9):
        model = student(**arguments)
        distill(model, build(seed=2, threshold=threshold, **arguments))
        losses.append(compiled(model).train_on_batch(x, y, return_dict=True))
    assert losses[0] == losses[1]
    assert losses[0]["distillation_loss"] > 0.01


@pytest.mark.slow
def test_an_auxiliary_head_goes_with_a_teacher():
    model = student(auxiliary_weight=0.4)
    x, y = batch()
    alone = compiled(model).evaluate(x, y, verbose=0)[0]
    distill(model, build(seed=2), 0.5)
    logs = model.train_on_batch(x, y, return_dict=True)
    parts = 0.4 * logs["auxiliary_loss"] + 0.5 * logs["distillation_loss"]
    assert logs["loss"] == pytest.approx(alone + parts, rel=1e-3)


@pytest.mark.slow  # XLA compiles each
@pytest.mark.parametrize(
    "dtype", ["float32", "mixed_bfloat16", "mixed_float16"]
)
def test_it_trains_in_every_precision_under_xla(dtype):
    set_seed(1)
    model = DeepLabV3(
        3,
        make_small_backbone(dtype),
        atrous_rates=(1,),
        aspp_filters=4,
        dtype=dtype,
    )
    teacher = build(seed=2, backbone=make_small_backbone())
    distill(model, teacher, temperature=2.0)
    own = dtype.removeprefix("mixed_")
    assert own in compute_dtypes(model._teacher.model)
    x, y = batch((64, 64))
    compiled(model, jit_compile=True)
    first, *_, last = (
        model.train_on_batch(x, y, return_dict=True) for _ in range(8)
    )
    assert last["distillation_loss"] < first["distillation_loss"]


@pytest.mark.parametrize(
    ("teacher", "arguments", "message"),
    [
        ({"num_classes": 4}, {}, "3 of the student, 4 of the teacher"),
        (
            {"num_classes": 3, "task": "multilabel"},
            {},
            "one class per pixel.*Received: a student of task='semantic'",
        ),
        (
            {"num_classes": 2, "task": "binary"},
            {},
            "same `task`.*'binary' of the teacher",
        ),
        ({"input_shape": (64, 64, 3)}, {}, "a teacher of 64x64 images"),
        ({}, {"weight": 0}, "Received: weight=0"),
        ({}, {"weight": True}, "Received: weight=True"),
        ({}, {"temperature": 0.0}, "Received: temperature=0.0"),
        ({}, {"temperature": float("nan")}, "Received: temperature=nan"),
    ],
)
def test_what_is_refused(teacher, arguments, message):
    with pytest.raises(ValueError, match=message):
        distill(build(), build(seed=2, **teacher), **arguments)
