"""Tests of every segmenter; a test class per architecture inherits them."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ON_TENSORFLOW,
    assert_close,
    compute_dtypes,
    make_small_backbone,
    np_resize,
    npy,
    randomize,
    sample,
)

import keras_aspp as ka
from keras_aspp.layers.lowering import export_form
from keras_aspp.litert.describe import FORBIDDEN
from keras_aspp.preprocess import TORCHVISION

SIZE = (64, 96)
ODD = (99, 75)
TOY = 13_920  # parameters of the toy backbone
KERAS = ((0, 1), (0, 1))  # zero padding; one cell is missing at odd sizes
SMALL_ASPP = {"atrous_rates": (1, 2), "aspp_filters": 8}
# Arguments that make the head of an architecture small.
SMALL_HEADS = {
    ka.models.DeepLabV2: {"atrous_rates": (1, 2)},
    ka.models.DeepLabV3: SMALL_ASPP,
    ka.models.CascadedDeepLabV3: {"blocks": 1},
    ka.models.DeepLabV3Plus: {
        **SMALL_ASPP,
        "decoder_filters": 8,
        "projection_filters": 4,
    },
    ka.models.DenseASPP: {
        "atrous_rates": (1, 2),
        "growth_filters": 4,
        "bottleneck_filters": 6,
    },
    ka.models.LRASPP: {"gate_filters": 8},
    ka.models.DAFormer: {
        "atrous_rates": (1, 2),
        "embed_filters": 6,
        "aspp_filters": 8,
        "output_stride": 16,
    },
}


class ModelTester:
    """Inherit it, set the class attributes, and add what is special.

    Attributes:
        architecture: the `Segmenter`.
        other: another architecture.
        parameters: of `architecture(5)` on the toy backbone with `head`.
        auto: the rates that `"auto"` means at output stride 8.
        head: arguments that make the head small.
        changed: arguments of the head with values that are no defaults.
        scores: name of the layer that gives the scores, if it is not the one
            named `classifier`.
        decoder_stride: pixels per score where this is not the output stride;
            the architecture's `scores_at_output_stride` is then `False`.
        rates_follow: whether rates are in cells of the output stride.
        dense: arguments and layer without which, or beyond which, features
            depend on their density: an average over cells, a resize.
    """

    architecture = None
    other = None
    parameters = None
    auto = ()
    head = {}
    changed = {}
    scores = "classifier"
    decoder_stride = None
    rates_follow = True
    dense = ({}, "classifier")

    @pytest.fixture(scope="class")
    def build(self, toy_backbone):
        toy = toy_backbone(padding=1, features=True)  # copied by each model

        def build(num_classes=5, architecture=self.architecture, **kwargs):
            kwargs = {
                "backbone": toy,
                **(self.head if architecture is self.architecture else {}),
                **kwargs,
            }
            return randomize(architecture(num_classes, **kwargs))

        return build

    @pytest.fixture(scope="class")
    def saved(self, build, tmp_path_factory):
        """A model and its file, for tests that change neither."""
        model = build()
        path = tmp_path_factory.mktemp("saved") / "model.keras"
        model.save(path)
        return model, path

    @pytest.mark.parametrize("size, output_stride", [(SIZE, 16), (ODD, 8)])
    def test_logits_are_scores_upsampled_by_the_stride_and_cropped(
        self, build, size, output_stride
    ):
        model = build(output_stride=output_stride)
        x = sample((2, *size, 3))
        logits = model(x)
        assert logits.shape == (2, *size, 5)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        scores = npy(self.at(model, self.scores)(x))
        stride = self.decoder_stride or output_stride
        assert scores.shape[1:3] == tuple(-(-n // stride) for n in size)
        grid = [n * stride for n in scores.shape[1:3]]
        expected = np_resize(scores, grid)[:, : size[0], : size[1]]
        assert_close(logits, expected)
        # In a graph whose height and width are not known.
        assert_close(in_graph_of_any_size(model)(x), expected)

    def at(self, model, name):
        return keras.Model(model.input, model.get_layer(name).output)

    def test_where_the_scores_are_is_declared(self):
        """The resize of the scores at another output stride depends on it."""
        declared = self.architecture.scores_at_output_stride
        assert declared == (self.decoder_stride is None), (
            f"{self.architecture.__name__}.scores_at_output_stride is "
            f"{declared}, and decoder_stride of its test {self.decoder_stride}"
        )

    def test_any_size_where_a_cell_is_missing(self, build, toy_backbone):
        model = build(backbone=toy_backbone(padding=KERAS), output_stride=8)
        for size in ((65, 97), ODD):
            logits = npy(model(sample((1, *size, 3))))
            assert logits.shape == (1, *size, 5)
            assert np.isfinite(logits).all()

    @pytest.mark.slow  # XLA, SavedModel and TFLite
    def test_export_ladder(self, build, tmp_path):
        few = {"backbone": make_small_backbone()}
        if self.architecture is ka.models.DeepLabV3:
            few = {}  # all layers of a backbone, once
        model = build(output_stride=8, **few)
        x = sample((1, *SIZE, 3))
        expected = npy(model(x))
        compiled = tf.function(
            lambda x: model(x, training=False), jit_compile=True
        )
        assert_close(compiled(x), expected)
        write_logits(model, tmp_path / "any", (None, None, None, 3))
        loaded = tf.saved_model.load(str(tmp_path / "any"))
        assert_close(loaded.serve(x), expected, 1e-5)
        with export_form():
            write_logits(model, tmp_path / "one", x.shape)
        assert_close(run_tflite(tmp_path / "one", x), expected)

    def test_another_output_stride(self, build):
        arguments, name = self.dense
        model = build(output_stride=16, **arguments)
        dense = ka.models.with_output_stride(model, 8)
        assert type(dense) is self.architecture
        assert (dense.name, dense.output_stride) == (model.name, 8)
        factor = 2 if self.rates_follow else 1
        rates = tuple(factor * r for r in model.atrous_rates)
        assert dense.atrous_rates == rates
        x = sample((2, *ODD, 3))
        assert_close(
            npy(self.at(dense, name)(x))[:, ::2, ::2], self.at(model, name)(x)
        )
        back = ka.models.with_output_stride(dense, 16)
        assert back.get_config() == model.get_config()
        np.testing.assert_array_equal(npy(back(x)), npy(model(x)))

    def test_rates_follow_the_output_stride(self, toy_backbone):
        small = {k: v for k, v in self.head.items() if k != "atrous_rates"}
        model = self.architecture(5, toy_backbone(), output_stride=8, **small)
        assert model.atrous_rates == self.auto

    def test_save_and_load(self, build, tmp_path):
        model = build(
            output_stride=8,
            dropout=0.3,
            batch_norm_momentum=0.7,
            batch_norm_epsilon=1e-4,
            preprocess=TORCHVISION,
            align_corners=True,
            dtype="mixed_bfloat16",
            name="mine",
            **self.changed,
        )
        config = model.get_config()
        # A configuration must not reach for files that have moved.
        assert not {"weights", "backbone_weights"} & set(config)
        model.save(tmp_path / "model.keras")
        copy = keras.saving.load_model(tmp_path / "model.keras")
        assert type(copy) is self.architecture
        saved = copy.get_config()
        backbones = [c.pop("backbone")["config"] for c in (config, saved)]
        assert len({len(b["layers"]) for b in backbones}) == 1
        assert saved == config
        for name, value in self.changed.items():
            assert config[name] == value
        assert (copy.name, copy.preprocess) == ("mine", TORCHVISION)
        assert (copy.output_stride, copy.num_classes) == (8, 5)
        assert copy.atrous_rates == model.atrous_rates
        assert copy.get_layer("logits").align_corners
        x = sample((1, 65, 97, 3))
        np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))

    def test_clone_model_of_keras(self, build):
        """The same graph with fresh weights, as a plain Keras model."""
        model = build(batch_norm="freeze", **self.changed)
        clone = keras.models.clone_model(model)
        assert {id(w) for w in clone.weights}.isdisjoint(map(id, model.weights))
        assert [w.path for w in clone.trainable_weights] == [
            w.path for w in model.trainable_weights
        ]
        clone.set_weights(model.get_weights())
        x = sample((1, *ODD, 3))
        np.testing.assert_array_equal(npy(clone(x)), npy(model(x)))

    def test_parameter_count(self, saved):
        model, _ = saved
        assert model.count_params() == self.parameters
        assert model.num_classes == 5
        assert model.input.shape == (None, None, None, 3)
        assert model.output.shape == (None, None, None, 5)

    def test_weights_of_another_number_of_classes(self, saved):
        model, path = saved
        message = "tensors keep their initial values: classifier"
        with pytest.warns(UserWarning, match=message) as warned:
            copy = self.architecture(
                7, backbone=model.backbone, weights=path, **self.head
            )
        assert copy.output.shape[-1] == 7
        # NumPy may warn too, of how Keras reads variables.
        (found,) = (w for w in warned if message in str(w.message))
        left = str(found.message).split(": ")[-1].split(", ")
        own = {w.path.removeprefix(f"{copy.name}/"): w for w in copy.weights}
        assert len(own) == len(model.weights)
        for weight in model.weights:
            name = weight.path.removeprefix(f"{model.name}/")
            assert (name in left) == (own[name].shape != weight.shape)
            if name not in left:
                np.testing.assert_array_equal(npy(own[name]), npy(weight))

    def test_the_signature_is_whole(self):
        """The common arguments in their order, then those of the head."""
        *common, _ = inspect.signature(ka.models.Segmenter).parameters.values()
        own = inspect.signature(self.architecture).parameters.values()
        own, head = list(own)[: len(common)], list(own)[len(common) :]
        names = [parameter.name for parameter in common]
        assert [parameter.name for parameter in own] == names
        for ours, shared in zip(own, common, strict=True):
            assert (ours.kind, ours.annotation) == (
                shared.kind,
                shared.annotation,
            )
            if ours.name != "output_stride":
                assert ours.default == shared.default
        assert {parameter.kind for parameter in head} == {
            inspect.Parameter.KEYWORD_ONLY
        }
        assert all(p.default is not p.empty for p in head)

    def test_the_docstring_lists_every_argument_once(self):
        text = inspect.getdoc(self.architecture)
        section = text.partition("Args:\n")[2].partition("\n\n")[0]
        listed = re.findall(r"^    (\w+): ", section, flags=re.MULTILINE)
        parameters = inspect.signature(self.architecture).parameters
        assert listed == list(parameters)

    def test_every_argument_is_passed_on(self, monkeypatch):
        names = list(inspect.signature(ka.models.Segmenter).parameters)[:-1]
        given = {name: object() for name in names}
        passed = {}
        monkeypatch.setattr(
            ka.models.Segmenter,
            "__init__",
            lambda self, *args, **kwargs: passed.update(
                zip(names, args, strict=False), **kwargs
            ),
        )
        self.architecture(*given.values())
        assert passed == {**given, **self.architecture.__init__.__kwdefaults__}

    def test_an_argument_of_another_head(self, build):
        with pytest.raises(TypeError, match="'no_such_thing'"):
            build(no_such_thing=3)

    def test_dtype_policy_reaches_every_sublayer(self, build, toy_backbone):
        model = build(
            backbone=toy_backbone(padding=1, dtype="mixed_bfloat16"),
            dtype="mixed_bfloat16",
            **self.changed,
        )
        dtypes = compute_dtypes(model)
        float32 = {n for n, dtype in dtypes.items() if dtype == "float32"}
        assert (
            {"logits", self.scores}
            <= float32
            <= {
                *("logits", "scores", "resize", "mean"),
                *(n for n in dtypes if n.startswith("classifier")),
            }
        )
        assert len(dtypes) > 30
        rest = {dtype for n, dtype in dtypes.items() if n not in float32}
        assert rest == {"bfloat16"}
        assert {w.dtype for w in model.weights} <= {"float32", "uint32"}
        assert model.output.dtype == "float32"

    def test_inference_leaves_batch_norm_alone_and_training_does_not(
        self, build
    ):
        model = build()
        moving = [w for w in model.weights if "moving_" in w.path]
        before = [npy(w) for w in moving]
        x = sample((2, *SIZE, 3))
        model(x)  # no `training` argument, on purpose
        for a, b in zip(before, moving, strict=True):
            np.testing.assert_array_equal(a, npy(b))
        model(x, training=True)
        for a, b in zip(before, moving, strict=True):
            assert np.abs(a - npy(b)).max() > 1e-5, b.path


def in_graph_of_any_size(model):
    if not ON_TENSORFLOW:
        return lambda x: model.predict(x, verbose=0)
    return tf.function(
        lambda x: model(x, training=False),
        [tf.TensorSpec((None, None, None, 3))],
        autograph=False,
    )


def write_logits(model, path, shape):
    """A SavedModel of the logits."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda x: model(x, training=False),
        [tf.TensorSpec(shape, tf.float32, "x")],
    )
    archive.write_out(str(path), verbose=False)


def run_tflite(path, x):
    """Output of a SavedModel converted to TFLite, builtin operators only."""
    from ai_edge_litert.interpreter import Interpreter

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(path), signature_keys=["serve"]
    )
    interpreter = Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    names = {d["op_name"] for d in interpreter._get_ops_details()}
    assert not [name for name in names if name.startswith(FORBIDDEN)]
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
