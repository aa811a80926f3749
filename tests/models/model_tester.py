"""What every segmenter must do; a test class per architecture inherits it."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import (
    assert_close,
    compute_dtypes,
    np_resize,
    npy,
    randomize,
    sample,
)

import keras_aspp as ka
from keras_aspp.preprocess import TORCHVISION

SIZE = (64, 96)
ODD = (99, 75)
KERAS = ((0, 1), (0, 1))  # zero padding; one cell is missing at odd sizes


class ModelTester:
    """Inherit it, set the class attributes, and add what is special.

    Attributes:
        kind: the `Segmenter`.
        other: another architecture.
        parameters: of `kind(21)` on MobileNetV2.
        head: arguments that make the head small.
        decoder_stride: pixels per score, `None` for the output stride.
    """

    kind = None
    other = None
    parameters = None
    head = {}
    decoder_stride = None

    @pytest.fixture
    def build(self, toy_backbone):
        def build(num_classes=5, kind=self.kind, **kwargs):
            kwargs = {
                "backbone": toy_backbone(padding=1, features=True),
                "atrous_rates": (1, 2),
                "aspp_filters": 8,
                **(self.head if kind is self.kind else {}),
                **kwargs,
            }
            return randomize(kind(num_classes, **kwargs))

        return build

    @pytest.fixture
    def saved(self, build, tmp_path):
        """A model on the toy backbone and the file it was saved to."""
        model = build()
        model.save(tmp_path / "model.keras")
        return model, tmp_path / "model.keras"

    @pytest.mark.parametrize("size, output_stride", [(SIZE, 16), (ODD, 8)])
    def test_logits_are_scores_upsampled_by_the_stride_and_cropped(
        self, build, size, output_stride
    ):
        model = build(output_stride=output_stride)
        x = sample((2, *size, 3))
        logits = model(x)
        assert logits.shape == (2, *size, 5)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        scores = npy(self.at(model, "classifier")(x))
        stride = self.decoder_stride or output_stride
        assert scores.shape[1:3] == tuple(-(-n // stride) for n in size)
        grid = [n * stride for n in scores.shape[1:3]]
        expected = np_resize(scores, grid)[:, : size[0], : size[1]]
        assert_close(logits, expected)
        # In a graph whose height and width are not known.
        assert_close(model.predict(x, verbose=0), expected)

    def at(self, model, name):
        return keras.Model(model.input, model.get_layer(name).output)

    @pytest.mark.parametrize("output_stride, padding", [(8, KERAS), (16, 1)])
    def test_any_size_at_any_stride(
        self, build, toy_backbone, output_stride, padding
    ):
        backbone = toy_backbone(padding=padding)
        model = build(backbone=backbone, output_stride=output_stride)
        for size in ((65, 97), ODD):
            logits = npy(model(sample((1, *size, 3))))
            assert logits.shape == (1, *size, 5)
            assert np.isfinite(logits).all()

    def test_one_xla_step_lowers_the_loss(self, build):
        model = build(dropout=0.0)
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 5, (2, *SIZE)).astype("int32")
        x = sample((2, *SIZE, 3))
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=255
        )
        eager = float(loss(labels, model(x, training=True)))
        model.compile(
            keras.optimizers.SGD(0.01),
            loss,
            jit_compile=True,
        )
        # Each step reports the loss of before it.
        before, after = (model.train_on_batch(x, labels) for _ in range(2))
        assert before == pytest.approx(eager, rel=1e-4)
        assert after < before

    def test_save_and_load(self, saved):
        model, path = saved
        x = sample((1, *ODD, 3))
        copy = keras.saving.load_model(path)
        assert type(copy) is self.kind
        assert copy.preprocess == model.preprocess
        np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))

    @pytest.mark.slow  # a second TensorFlow
    def test_load_with_nothing_but_the_package_imported(self, saved, tmp_path):
        model, path = saved
        x = sample((1, *ODD, 3))
        np.save(tmp_path / "x.npy", x)
        code = (
            "import sys, numpy as np\n"
            "import keras_aspp\n"
            "from keras.saving import load_model\n"
            "model = load_model(sys.argv[1])\n"
            "np.save(sys.argv[3], model(np.load(sys.argv[2])))\n"
        )
        files = (path, tmp_path / "x.npy", tmp_path / "y.npy")
        root = ka.__path__[0].removesuffix("keras_aspp")
        subprocess.run(
            [sys.executable, "-c", code, *files],
            check=True,
            timeout=300,
            cwd=root,
        )
        np.testing.assert_array_equal(np.load(files[2]), npy(model(x)))

    def test_parameter_count(self):
        model = self.kind(21, backbone_weights=None)
        assert model.count_params() == self.parameters
        assert model.output_stride == 16
        assert model.atrous_rates == (6, 12, 18)
        assert model.num_classes == 21
        assert model.input.shape == (None, None, None, 3)
        assert model.output.shape == (None, None, None, 21)

    def test_config_round_trip(self, build):
        model = build(
            output_stride=8,
            atrous_rates=[2, 3, 5, 7],
            aspp_filters=12,
            separable=True,
            image_pooling=False,
            dropout=0.3,
            batch_norm_momentum=0.7,
            batch_norm_epsilon=1e-4,
            preprocess=TORCHVISION,
            align_corners=True,
            dtype="mixed_bfloat16",
            name="mine",
        )
        config = model.get_config()
        # A configuration must not reach for files that have moved.
        assert not {"weights", "backbone_weights"} & set(config)
        copy = self.kind.from_config(config)
        assert copy.name == "mine"
        assert copy.preprocess == TORCHVISION
        aspp = copy.get_layer("aspp")
        assert aspp.atrous_rates == copy.atrous_rates == (2, 3, 5, 7)
        assert (aspp.filters, aspp.drop.rate) == (12, 0.3)
        assert aspp.separable and not aspp.image_pooling
        assert aspp.projection.norm.momentum == 0.7
        assert aspp.projection.norm.epsilon == 1e-4
        assert aspp.dtype_policy.name == "mixed_bfloat16"
        assert copy.get_layer("logits").align_corners
        assert copy.get_layer("logits").scale == model.get_layer("logits").scale
        assert {w.path: w.shape for w in copy.weights} == {
            w.path: w.shape for w in model.weights
        }
        copy.set_weights(model.get_weights())
        x = sample((1, 65, 97, 3))
        np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))

    def test_weights(self, build, saved):
        model, path = saved
        x = sample((1, *SIZE, 3))
        for source in (path.parent, str(path)):
            copy = self.kind(
                5,
                backbone=model.backbone,
                atrous_rates=(1, 2),
                aspp_filters=8,
                weights=source,
                name="another_name",
                **self.head,
            )
            np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))

    def test_weights_of_another_number_of_classes(self, saved):
        model, path = saved
        message = "2 tensors .*: classifier/kernel, classifier/bias$"
        with pytest.warns(UserWarning, match=message):
            copy = self.kind(
                7,
                backbone=model.backbone,
                atrous_rates=(1, 2),
                aspp_filters=8,
                weights=path,
                **self.head,
            )
        assert copy.output.shape[-1] == 7
        own = {w.path: w for w in copy.weights}
        assert len(own) == len(model.weights)
        for weight in model.weights:
            if "classifier" not in weight.path:
                np.testing.assert_array_equal(
                    npy(own[weight.path]), npy(weight)
                )

    def test_weights_of_another_architecture(self, build, tmp_path):
        path = tmp_path / "other.keras"
        build(kind=self.other).save(path)
        with pytest.raises(ValueError, match="other.keras.*another model"):
            build(weights=path)

    def test_dtype_policy_reaches_every_sublayer(self, build, toy_backbone):
        model = build(
            backbone=toy_backbone(padding=1, dtype="mixed_bfloat16"),
            separable=True,
            dtype="mixed_bfloat16",
        )
        dtypes = compute_dtypes(model)
        assert dtypes.pop("classifier") == "float32"
        assert dtypes.pop("logits") == "float32"
        assert len(dtypes) > 40
        assert set(dtypes.values()) == {"bfloat16"}
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

    def test_align_corners(self, build):
        model = build(align_corners=True)
        x = sample((1, 65, 97, 3))
        scores = npy(self.at(model, "classifier")(x))
        expected = np_resize(scores, (65, 97), align_corners=True)
        assert_close(model(x), expected)
