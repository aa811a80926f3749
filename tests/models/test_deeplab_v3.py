"""DeepLabV3."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    assert_close,
    make_small_backbone,
    np_resize,
    npy,
    randomize,
    sample,
)
from model_tester import (
    KERAS,
    ODD,
    SIZE,
    TOY,
    ModelTester,
    run_tflite,
    write_logits,
)

import keras_aspp as ka
from keras_aspp.backbones.rebuild import configure
from keras_aspp.export.onnx import write_onnx
from keras_aspp.layers.lowering import export_form
from keras_aspp.losses import CrossEntropy
from keras_aspp.models import CascadedDeepLabV3, DeepLabV3, DeepLabV3Plus
from keras_aspp.preprocess import TORCHVISION


def from_config_twice(model):
    """The first must not take the configuration apart."""
    config = model.get_config()
    type(model).from_config(config)
    return type(model).from_config(config)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "json": lambda model: keras.models.model_from_json(model.to_json()),
    "config": from_config_twice,
    "object": lambda model: keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(model)
    ),
}


@keras.saving.register_keras_serializable("test_deeplab_v3")
def squared_error(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 2)


class TestDeepLabV3(ModelTester):
    architecture = DeepLabV3
    parameters = TOY + 4_256 + 45  # ASPP, classifier
    auto = (12, 24, 36)
    head = {"atrous_rates": (1, 2), "aspp_filters": 8}
    changed = {
        "atrous_rates": (2, 3, 5, 7),
        "aspp_filters": 12,
        "separable": True,
        "image_pooling": False,
        "multi_grid": [3],
    }
    dense = ({"image_pooling": False}, "classifier")

    def test_scores_are_the_classifier_on_aspp(self, build):
        model = build()
        x = sample((2, *SIZE, 3))
        features = model.backbone(x)["stride_32"]
        kernel, bias = map(npy, model.get_layer("classifier").weights)
        expected = npy(model.get_layer("aspp")(features)) @ kernel[0, 0] + bias
        assert_close(self.at(model, "classifier")(x), expected)

    def test_arguments_of_the_head(self, build):
        model = build(
            **self.changed,
            dropout=0.3,
            batch_norm_momentum=0.7,
            batch_norm_epsilon=1e-4,
        )
        aspp = model.get_layer("aspp")
        assert aspp.atrous_rates == (2, 3, 5, 7)
        assert (aspp.filters, aspp.drop.rate) == (12, 0.3)
        assert aspp.separable and not aspp.image_pooling
        assert aspp.projection.norm.momentum == 0.7
        assert aspp.projection.norm.epsilon == 1e-4

    def test_without_atrous_branches(self, build):
        """The head for phones: a 1x1 convolution and image pooling."""
        model = build(atrous_rates=())
        branches = model.get_layer("aspp").branches
        assert [b.name for b in branches] == ["point", "image_pooling"]
        assert ka.models.with_output_stride(model, 8).atrous_rates == ()
        with pytest.raises(ValueError, match=r"Received: atrous_rates=\(\)"):
            build(atrous_rates=(), image_pooling=False)

    def test_image_pooling_with_a_bias(self, build, tmp_path):
        model = randomize(build(image_pooling="bias"))
        pooling = model.get_layer("aspp").branches[-1].conv
        assert pooling.norm is None and pooling.conv.use_bias
        x = sample((2, *SIZE, 3))
        expected = npy(model(x))
        assert_close(ka.models.fold_batch_norm(model)(x), expected, 2e-4)
        model.save(tmp_path / "model.keras")
        copy = keras.saving.load_model(tmp_path / "model.keras")
        assert copy.get_layer("aspp").image_pooling == "bias"
        np.testing.assert_array_equal(npy(copy(x)), expected)

    def test_multi_grid(self, build, toy_backbone):
        plain = toy_backbone(padding=1, features=True)
        model = build(
            backbone=plain,
            multi_grid=(3,),
            atrous_rates=(),
            output_stride=8,
        )
        rates = {
            layer.name: layer.dilation_rate[0]
            for layer in model.backbone.layers
            if getattr(layer, "dilation_rate", (1, 1)) != (1, 1)
        }
        # Of the paper: the block's own rate times the grid's.
        assert rates == {"block3_inner": 2, "block4": 2, "block4_inner": 12}
        x = sample((1, *ODD, 3))
        coarse = ka.models.with_output_stride(model, 32)
        assert coarse.backbone.get_layer("block4_inner").dilation_rate == (3, 3)
        dense, at_32 = (
            npy(m.backbone(x)["stride_32"]) for m in (model, coarse)
        )
        assert_close(dense[:, ::4, ::4], at_32)

    @pytest.mark.parametrize("multi_grid", [(1, 2), (0,), (1.5,), 2])
    def test_multi_grid_of_another_length(self, build, multi_grid):
        message = r"last block: block4_inner\. Received: multi_grid="
        with pytest.raises(ValueError, match=message):
            build(multi_grid=multi_grid)

    # What follows is Segmenter's own, so one architecture is enough.

    def test_align_corners(self, build):
        model = build(align_corners=True)
        x = sample((1, 65, 97, 3))
        scores = npy(self.at(model, "classifier")(x))
        expected = np_resize(scores, (65, 97), align_corners=True)
        assert_close(model(x), expected)

    def test_weights(self, build, saved):
        model, path = saved
        x = sample((1, *SIZE, 3))
        for source in (path.parent, str(path)):
            copy = self.architecture(
                5,
                backbone=model.backbone,
                weights=source,
                name="another_name",
                **self.head,
            )
            np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))

    def test_weights_of_another_architecture(self, build, tmp_path):
        path = tmp_path / "other.keras"
        build(architecture=DeepLabV3Plus, aspp_filters=8).save(path)
        with pytest.raises(
            ValueError, match="other.keras.*another architecture"
        ):
            build(weights=path)

    def test_weights_of_another_backbone(self, saved, build):
        _, path = saved
        message = "trained with backbone toy. Received: backbone='resnet50'"
        with pytest.raises(ValueError, match=message):
            build(backbone="resnet50", weights=path)
        inputs = x = keras.Input((None, None, 3))
        for strides in (4, 8):
            x = keras.layers.Conv2D(24, 1, strides=strides)(x)
        other = keras.Model(inputs, x)
        with pytest.raises(ValueError, match="another architecture"):
            build(backbone=other, output_stride=32, weights=path)
        with pytest.raises(ValueError, match="another architecture.*aspp"):
            build(aspp_filters=12, weights=path)

    def test_weights_that_are_none(self, build, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing.keras"):
            build(weights=tmp_path / "nothing.keras")
        with pytest.raises(FileNotFoundError, match="not exist"):
            build(weights=tmp_path)
        text = tmp_path / "text.keras"
        text.write_text("no model")
        with pytest.raises(ValueError, match="Not a loadable .*text.keras"):
            build(weights=text)
        plain = tmp_path / "plain.keras"
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(plain)
        with pytest.raises(ValueError, match="no segmenter.*Sequential"):
            build(weights=plain)

    def test_what_belongs_to_the_weights_survives_weights(
        self, build, toy_backbone, tmp_path
    ):
        """Epsilon, padding and preprocess come from the file, not the name."""
        backbone = configure(
            toy_backbone(padding=KERAS, features=True),
            batch_norm_epsilon=0.05,
        )
        model = build(
            backbone=backbone, preprocess=TORCHVISION, output_stride=32
        )
        model.save(tmp_path / "model.keras")
        copy = build(
            backbone=backbone.name,
            weights=tmp_path / "model.keras",
            output_stride=16,
            dtype="mixed_bfloat16",
            batch_norm_momentum=0.7,
        )
        norm = copy.backbone.get_layer("stem_bn")
        assert (norm.epsilon, norm.momentum) == (0.05, 0.7)
        assert copy.backbone.get_layer("block1_depthwise_pad").padding == KERAS
        assert copy.preprocess == TORCHVISION
        stages = copy.backbone.output
        assert stages["stride_32"].dtype == "bfloat16"
        spec = keras.KerasTensor((1, *SIZE, 3))
        features = copy.backbone.compute_output_spec(spec)
        assert features["stride_32"].shape[1:3] == (4, 6)

    @pytest.mark.slow  # MobileNetV2 three times
    def test_torchvision_weights_survive_weights(self, shared, tmp_path):
        file = shared / "weights/mobilenet_v2-b0353104.pth"
        model = self.architecture(5, backbone_weights=file)
        assert model.preprocess == TORCHVISION
        model.save(tmp_path / "model.keras")
        with pytest.warns(UserWarning, match="classifier"):
            copy = self.architecture(7, weights=tmp_path / "model.keras")
        x = sample((1, *SIZE, 3))
        expected = model.backbone(x)
        for key, feature in copy.backbone(x).items():
            assert_close(feature, expected[key], 1e-6, least_std=0.05)
        assert copy.preprocess == TORCHVISION

    def test_frozen_batch_norm(self, build, tmp_path):
        build(batch_norm="freeze").save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
        model.compile("sgd", "mse")
        x = sample((2, *SIZE, 3))
        before = {w.path: npy(w).copy() for w in model.weights}
        model.train_on_batch(x, np.ones((2, *SIZE, 5), "float32"))
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        for weight in model.weights:
            same = np.array_equal(npy(weight), before[weight.path])
            if "seed" not in weight.path:
                assert same == weight.path.endswith(parts), weight.path

    def test_what_is_frozen_stays_frozen(self, build, toy_backbone, tmp_path):
        backbone = toy_backbone(padding=1, features=True)
        backbone.get_layer("stem_bn").trainable = False
        model = build(backbone=backbone)
        model.save(tmp_path / "model.keras")
        copy = keras.saving.load_model(tmp_path / "model.keras")
        for found in (model, copy):
            assert not found.backbone.get_layer("stem_bn").trainable
            assert found.backbone.get_layer("block2_bn").trainable

    @pytest.fixture(scope="class")
    def compiled(self, build):
        """A model with an optimizer after five steps; copies leave it alone."""
        model = build(batch_norm="freeze", preprocess=TORCHVISION, name="mine")
        model.get_layer("aspp").trainable = False
        model.compile(keras.optimizers.SGD(0.07), squared_error)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(5)
        return model

    @pytest.mark.parametrize("how", COPIES)
    def test_copies_of_keras_and_python(self, compiled, how):
        model = compiled
        found = COPIES[how](model)
        assert type(found) is DeepLabV3 and found is not model
        assert found.get_config() == model.get_config()
        assert (found.name, found.preprocess) == ("mine", TORCHVISION)
        assert len(found.trainable_weights) == len(model.trainable_weights)
        x = sample((1, *ODD, 3))
        if how in ("deepcopy", "pickle"):
            assert int(found.optimizer.iterations) == 5
        else:
            found.set_weights(model.get_weights())
        np.testing.assert_array_equal(npy(found(x)), npy(model(x)))
        if how != "config":
            assert found.compiled and found.loss is squared_error
            assert float(found.optimizer.learning_rate) == pytest.approx(0.07)

    def test_loaded_without_a_loss_that_keras_does_not_find(
        self, build, tmp_path
    ):
        def own_loss(y_true, y_pred):
            return keras.ops.mean(y_pred)

        model = build()
        model.compile("sgd", own_loss)
        model.save(tmp_path / "model.keras")
        message = "without its loss, optimizer and metrics.*own_loss"
        with pytest.warns(UserWarning, match=message):
            found = keras.saving.load_model(tmp_path / "model.keras")
        assert getattr(found, "optimizer", None) is None
        x = sample((1, *SIZE, 3))
        np.testing.assert_array_equal(npy(found(x)), npy(model(x)))

    def test_clone_model_with_functions_and_inputs_of_the_user(self, build):
        model = build()
        x = sample((1, *SIZE, 3))
        shared = keras.models.clone_model(
            model,
            input_tensors=keras.Input((*SIZE, 3)),
            clone_function=lambda layer: layer,
        )
        assert shared.output.shape == (None, *SIZE, 5)
        assert shared.weights[0] is model.weights[0]
        np.testing.assert_array_equal(npy(shared(x)), npy(model(x)))
        seen = []

        def call(layer, *args, **kwargs):
            seen.append(layer.name)
            return layer(*args, **kwargs)

        keras.models.clone_model(model, call_function=call, recursive=True)
        assert {"stem", "toy", "aspp", "logits"} <= set(seen)

    def test_unknown_batch_norm(self, build):
        with pytest.raises(ValueError, match="Received: batch_norm='thaw'"):
            build(batch_norm="thaw")

    def test_a_backbone_of_one_size(self, build, tmp_path):
        inputs = keras.Input((64, 96, 3))
        x = keras.layers.Conv2D(4, 3, 16, padding="same")(inputs)
        model = build(backbone=keras.Model(inputs, x))
        assert model.output.shape == (None, 64, 96, 5)
        model.save(tmp_path / "model.keras")
        copy = keras.saving.load_model(tmp_path / "model.keras")
        assert copy.input.shape == (None, 64, 96, 3)

    def test_a_backbone_of_two_images(self, build):
        left, right = (keras.Input((None, None, 3), name=n) for n in "lr")
        x = keras.layers.Add()([left, right])
        x = keras.layers.Conv2D(4, 3, 16, padding="same")(x)
        with pytest.raises(ValueError, match=r"one input.*\['l', 'r'\]"):
            build(backbone=keras.Model([left, right], x))

    def test_a_backbone_that_ends_early(self, build, toy_backbone):
        whole = toy_backbone(padding=1)
        end = whole.get_layer("block3_add").output
        model = build(backbone=keras.Model(whole.input, end))
        assert "stride_32" not in model.backbone.output
        x = sample((1, *ODD, 3))
        feature = model.backbone(x)["stride_16"]
        assert_close(
            model.get_layer("aspp")(feature), self.at(model, "aspp")(x)
        )

    @pytest.mark.parametrize(
        "first, expected",
        [
            (keras.layers.Rescaling(1 / 255), (0.0, 255.0)),
            (keras.layers.Normalization(mean=127, variance=99), (0.0, 255.0)),
            (keras.layers.ReLU(), (-1.0, 1.0)),
        ],
    )
    def test_pixels_are_rescaled_once(self, build, first, expected):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, 16, padding="same")(first(inputs))
        model = build(backbone=keras.Model(inputs, x))
        assert model.preprocess == ka.Preprocess(value_range=expected)

    def test_high_level(self, build, tmp_path):
        model = build(high_level="stride_8", output_stride=8, name="short")
        names = {layer.name for layer in model.backbone.layers}
        assert "block3_inner" not in names and "block2_relu" in names
        assert set(model.backbone.output) == {
            *("stride_2", "stride_4", "stride_8")
        }
        x = sample((1, *ODD, 3))
        feature = model.backbone(x)["stride_8"]
        assert_close(
            model.get_layer("aspp")(feature), self.at(model, "aspp")(x)
        )
        model.save(tmp_path / "model.keras")
        copy = keras.saving.load_model(tmp_path / "model.keras")
        assert copy.get_config()["high_level"] == "stride_8"
        np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))
        denser = ka.models.with_output_stride(model, 4)
        dense = npy(denser.backbone(x)["stride_8"])
        assert_close(dense[:, ::2, ::2], feature)

    @pytest.mark.parametrize(
        "high_level, message",
        [
            ("stride_9", "no feature `stride_9`.*stride_16.*stride_8"),
            ("stride_8", "at most the stride of `high_level`.*=16.*'stride_8'"),
        ],
    )
    def test_high_level_that_cannot_be(self, build, high_level, message):
        with pytest.raises(ValueError, match=message):
            build(high_level=high_level, output_stride=16)

    def test_features_of_a_nested_backbone(self, build, toy_backbone):
        inputs = keras.Input((None, None, 3))
        inner = toy_backbone(features=True)
        backbone = keras.Model(inputs, inner(inputs), name="outer")
        with pytest.raises(ValueError, match="at most the stride of"):
            build(backbone=backbone, high_level="stride_4", output_stride=16)
        model = build(backbone=backbone, auxiliary_weight=0.4)
        assert model.auxiliary_feature == "stride_16"

    def test_a_backbone_with_one_output(self, build, toy_backbone):
        whole = toy_backbone(padding=1)
        dicts = toy_backbone(padding=1, features=True)
        model = build(backbone=whole, output_stride=8)
        other = build(backbone=dicts, output_stride=8)
        assert set(model.backbone.output) == set(dicts.output)
        x = sample((1, *SIZE, 3))
        other.set_weights(model.get_weights())
        np.testing.assert_array_equal(npy(model(x)), npy(other(x)))
        assert model.preprocess == ka.Preprocess()

    def test_a_backbone_that_is_denser_already(self, build):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, strides=4, padding="same")(inputs)
        with pytest.raises(ValueError, match="already denser"):
            build(backbone=keras.Model(inputs, x))

    def test_warns_of_degenerate_rates(self, build):
        message = r"rates \(6, 12\) reach beyond the 4x6 map of a 64x96"
        with pytest.warns(UserWarning, match=message):
            build(input_shape=(*SIZE, 3), atrous_rates=(1, 6, 12))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build(input_shape=(*SIZE, 3), atrous_rates=(1, 5))
            build(atrous_rates=(100,))

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"num_classes": 0}, "Received: num_classes=0"),
            ({"num_classes": 1}, "background is a class.*num_classes=1"),
            ({"atrous_rates": (6, 0)}, r"Received: atrous_rates=\(6, 0\)"),
            ({"atrous_rates": (1.5,)}, r"Received: atrous_rates=\(1\.5,\)"),
            ({"output_stride": 0}, "Received: output_stride=0"),
            (
                {"input_shape": (64, 15, 3)},
                r"one cell.*input_shape=\(64, 15, 3\), output_stride=16",
            ),
            ({"output_stride": 12}, "Received: output_stride=12"),
            ({"aspp_filters": 0}, "Received: filters=0"),
            ({"backbone": "vgg"}, "Received: name='vgg'"),
            (
                {"output_stride": 64, "atrous_rates": "auto"},
                "Received: output_stride=64",
            ),
        ],
    )
    def test_errors(self, build, kwargs, message):
        with pytest.raises(ValueError, match=message):
            build(**kwargs)

    def test_one_class_saved_by_an_older_version_still_loads(self, build):
        config = {**build(num_classes=2).get_config(), "num_classes": 1}
        loaded = self.architecture.from_config(config)
        assert loaded.output.shape[-1] == loaded.num_classes == 1
        again = self.architecture.from_config(loaded.get_config())
        assert again.get_config()["num_classes"] == 1

    def test_weights_of_classes_are_the_loss_s(self, build):
        model = build(num_classes=2)
        model.compile("sgd", CrossEntropy())
        x, y = np.zeros((2, 32, 32, 3), "float32"), np.zeros((2, 32, 32), int)
        weights = {0: 1.0, 1: 2.0}
        message = r"class_weights=.*Received: class_weight=\{0: 1.0, 1: 2.0\}"
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, class_weight=weights)
        with pytest.raises(ValueError, match=message):
            model.fit(
                tf.data.Dataset.from_tensors((x, y)), class_weight=weights
            )
        with pytest.raises(ValueError, match=message):
            model.train_on_batch(x, y, None, weights)


class TestCascadedDeepLabV3(ModelTester):
    architecture = CascadedDeepLabV3
    parameters = TOY + 2 * 10_560 + 125  # two copies, classifier
    head = {"blocks": 2}
    changed = {"blocks": 1, "multi_grid": [3]}

    def test_each_copy_is_dilated_twice_as_much(self, build):
        model = build(blocks=3, multi_grid=(2,), output_stride=16)
        rates = {
            layer.name: layer.dilation_rate[0]
            for layer in model.backbone.layers
            if layer.name.endswith(("block4", "block4_inner"))
        }
        assert rates == {
            "block4": 1,
            "block4_inner": 4,
            "cascade_1_block4": 2,
            "cascade_1_block4_inner": 8,
            "cascade_2_block4": 4,
            "cascade_2_block4_inner": 16,
            "cascade_3_block4": 8,
            "cascade_3_block4_inner": 32,
        }
        assert list(model.backbone.output)[-3:] == [
            "stride_64",
            "stride_128",
            "stride_256",
        ]

    @pytest.mark.slow  # ResNet-50
    @pytest.mark.usefixtures("no_random_weights")
    def test_on_resnet_as_in_figure_3b(self):
        model = self.architecture(
            5, "resnet50", backbone_weights=None, blocks=3
        )
        rates = [
            layer.dilation_rate[0]
            for layer in model.backbone.layers
            if layer.name.endswith("conv5_block3_2_conv")
        ]
        assert rates == [2, 4, 8, 16]
        block = model.backbone.get_layer("cascade_3_conv5_block1_1_conv")
        assert block.strides == (1, 1)
        assert block.kernel.shape == (1, 1, 2048, 512)

    def test_the_copies_begin_as_the_block(self, toy_backbone):
        backbone = randomize(toy_backbone(padding=1, features=True))
        copy = self.architecture(5, backbone, blocks=1).backbone
        for name in ("block4_inner", "block4_bn"):
            for ours, theirs in zip(
                copy.get_layer(f"cascade_1_{name}").get_weights(),
                backbone.get_layer(name).get_weights(),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, theirs)
        # It sees 24 channels here, 16 there.
        kernel = copy.get_layer("cascade_1_block4").kernel
        assert kernel.shape == (3, 3, 24, 24)
        assert npy(kernel).std() > 0.01

    def test_no_branches_no_rates(self, build):
        message = r"no atrous branches.*Received: atrous_rates=\(6,\)"
        with pytest.raises(ValueError, match=message):
            build(atrous_rates=(6,))

    def test_errors(self, build):
        with pytest.raises(ValueError, match="Received: blocks=0"):
            build(blocks=0)
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, strides=32, padding="same")(inputs)
        message = r"between stride_16 and stride_32.*\['stride_32'\]"
        with pytest.raises(ValueError, match=message):
            build(
                backbone=keras.Model(inputs, {"stride_32": x}), output_stride=32
            )


@pytest.mark.parametrize("separable", [False, True])
def test_rates_of_both_axes_in_all_that_follows(toy_backbone, separable):
    model = randomize(
        DeepLabV3(
            3,
            toy_backbone(padding=1, features=True),
            atrous_rates=[(1, 3), 2, (4, 2)],
            aspp_filters=6,
            separable=separable,
        )
    )
    assert model.atrous_rates == ((1, 3), 2, (4, 2))
    dense = ka.models.with_output_stride(model, 8)
    assert dense.atrous_rates == ((2, 6), 4, (8, 4))
    x = sample((1, *SIZE, 3))
    conv = ("depthwise" if separable else "conv", (2, 6))
    branch = dense.get_layer("aspp").branches[1]
    assert getattr(branch, conv[0]).dilation_rate == conv[1]
    assert_close(ka.models.fold_batch_norm(dense)(x), dense(x))
    back = ka.models.with_output_stride(dense, 16)
    assert back.get_config() == model.get_config()
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(dense)
    )
    assert copy.atrous_rates == dense.atrous_rates


@pytest.mark.slow  # TFLite
@pytest.mark.parametrize("separable", [False, True])
def test_rates_of_both_axes_export_to_builtins(tmp_path, separable):
    model = randomize(
        DeepLabV3(
            3,
            make_small_backbone(),
            output_stride=8,
            atrous_rates=[(1, 3), (4, 2)],
            aspp_filters=6,
            separable=separable,
        )
    )
    x = sample((1, *SIZE, 3))
    with export_form():
        write_logits(model, tmp_path / "one", x.shape)
    assert_close(run_tflite(tmp_path / "one", x), model(x))
    for module in ("onnxruntime", "tf2onnx"):
        pytest.importorskip(
            module, reason="extra onnx is not installed (2026-11-29)"
        )
    write_onnx(model, tmp_path / "model.onnx", SIZE)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), "uint8")
    labels = ka.Predictor(tmp_path / "model.onnx").predict(image)
    expected = npy(model(model.preprocess(image[None])))[0].argmax(-1)
    assert (labels == expected).mean() > 0.999
