"""Binary segmenters: one logit, whose threshold travels with the file."""

import keras
import numpy as np
import pytest
from helpers import make_toy_backbone

from keras_aspp import losses
from keras_aspp.models import LRASPP, DeepLabV3Plus
from keras_aspp.models.factory import ARCHITECTURES
from keras_aspp.models.segmenter import load_saved


def build(architecture=DeepLabV3Plus, **arguments):
    if architecture.architecture == "deeplab_v3_cascaded":
        arguments["backbone"] = "resnet50"
        arguments["backbone_weights"] = None
    arguments.setdefault("backbone", make_toy_backbone())
    return architecture(1, task="binary", **arguments)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build(threshold=0.3)


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (2, 65, 81, 3)).astype("float32")


@pytest.mark.parametrize("architecture", [DeepLabV3Plus, LRASPP])
def test_a_head_has_one_logit_beside_the_backgrounds(architecture):
    model = build(architecture, threshold=0.3)
    scores = keras.ops.convert_to_numpy(model(images()))
    assert scores.shape == (2, 65, 81, 2)
    np.testing.assert_allclose(scores[..., 0], np.log(0.3 / 0.7), rtol=1e-5)
    assert np.ptp(scores[..., 1]) > 0
    kernels = [
        weight.shape[-1]
        for weight in model.weights
        if "classifier" in weight.path and weight.name == "kernel"
    ]
    assert kernels and set(kernels) == {1}


def test_the_file_keeps_task_and_threshold(model, tmp_path):
    model.save(tmp_path / "m.keras")
    loaded = load_saved(tmp_path / "m.keras")
    assert (loaded.task, loaded.threshold) == ("binary", 0.3)
    assert loaded.num_classes == 2
    x = images()
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-5)
    loaded.threshold = 0.8
    loaded.save(tmp_path / "n.keras")
    again = load_saved(tmp_path / "n.keras")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(again(x))[..., 0], np.log(4), rtol=1e-5
    )


def test_a_semantic_model_is_saved_as_before():
    model = DeepLabV3Plus(3, backbone=make_toy_backbone())
    assert not {"task", "threshold"} & set(model.get_config())
    with pytest.raises(ValueError, match="Only a model of `task='binary'`"):
        model.threshold = 0.3


def test_cross_entropy_is_that_of_the_sigmoid(model):
    rng = np.random.default_rng(1)
    model.threshold = 0.5
    scores = keras.ops.convert_to_numpy(model(images()))
    labels = rng.integers(0, 2, scores.shape[:3])
    labels[0, :9] = 255
    z, valid = scores[..., 1].astype("float64"), labels != 255
    p = 1 / (1 + np.exp(-z))
    wanted = -np.where(labels == 1, np.log(p), np.log1p(-p))[valid].mean()
    found = float(losses.CrossEntropy()(labels, scores))
    assert found == pytest.approx(wanted, rel=1e-5)
    focal = np.where(labels == 1, (1 - p) ** 2, p**2)
    wanted = np.where(labels == 1, np.log(p), np.log1p(-p)) * -focal
    found = float(losses.CrossEntropy(focal_gamma=2.0)(labels, scores))
    assert found == pytest.approx(wanted[valid].mean(), rel=1e-4)
    hit = (p * (labels == 1))[valid].sum()
    areas = p[valid].sum() + (labels == 1).sum()
    found = float(losses.Dice(class_weights=(0, 1))(labels, scores))
    assert found == pytest.approx(1 - 2 * hit / areas, rel=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "binar"}, "`task` must be"),
        ({"threshold": 1.0}, r"must be in \(0, 1\)"),
        ({"task": "semantic", "threshold": 0.4}, "needs task='binary'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    arguments = {"task": "binary", **arguments}
    classes = 2
    with pytest.raises(ValueError, match=message):
        DeepLabV3Plus(classes, backbone=make_toy_backbone(), **arguments)
    with pytest.raises(ValueError, match="must be 1 or 2 with task='binary'"):
        DeepLabV3Plus(3, backbone=make_toy_backbone(), task="binary")
    with pytest.raises(ValueError, match=r"or pass task='binary'"):
        DeepLabV3Plus(1, backbone=make_toy_backbone())


@pytest.mark.usefixtures("no_random_weights")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_binary(name):
    model = build(ARCHITECTURES[name])
    assert model(images()).shape == (2, 65, 81, 2)
