"""Segmenter: what every architecture shares.

Shape legend: B batch, H x W pixels, h x w feature cells, K `num_classes`.
"""

import copy
import functools
import inspect
import os
import re
import warnings

import keras

from keras_aspp.backbones.rebuild import configure, group_normalize, synchronize
from keras_aspp.backbones.rematerialize import rematerialize as recomputed
from keras_aspp.backbones.zoo import create_backbone, preprocess_of
from keras_aspp.labels import check_num_classes
from keras_aspp.layers.batch_norm import freeze_batch_norm
from keras_aspp.layers.checks import check_atrous_rates, check_positive_int
from keras_aspp.models.archive import load_keras
from keras_aspp.models.features import as_features, coarsest, end_at, shift_px
from keras_aspp.models.head import CLASSIFIER, HeadBuilder
from keras_aspp.models.rates import (
    OFFSETS_PX,
    atrous_rates_at,
    degenerate_rates,
)
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.finite import check_weights

# Policy -> `batch_norm` of `AtrousConv2D`, for the layers of the head.
BATCH_NORM = {
    "train": True,
    "freeze": "freeze",
    "sync": "sync",
    "group": "group",
}


class _SavedCount(int):
    """`num_classes` of a saved model, which older versions let be 1."""


class Segmenter(keras.Model):
    """Pictures in, class scores of every pixel out.

    A subclass sets `architecture`, names the arguments of its head in its
    constructor, and builds it in `decode`. Scores are computed at the stride
    of the last feature map; only they are resized.

    Args:
        num_classes: int > 1. Label values counted, background included.
        backbone: a name of `list_backbones()`, or a functional `keras.Model`.
            Dict outputs (`"stride_4"`, ...) are used as they are; of a model
            with one output, the last tensor of each nominal stride is taken.
            It is copied and made dense to `output_stride`.
        output_stride: int, a power of two; pixels per cell at the ASPP.
            Defaults to 16.
        atrous_rates: ints > 0, in feature cells, or `"auto"` for those of the
            paper at `output_stride`; none where the head has no atrous
            branches. Defaults to `"auto"`.
        backbone_weights: see `create_backbone`; without meaning for a
            backbone that is a model. Defaults to `"imagenet"`.
        weights: `None`, or the path of a saved segmenter of this architecture
            (`.keras`, or a folder that holds `model.keras`). With another
            `num_classes`, all but the classifier is loaded, with a warning
            that names what is left.
        input_shape: `(height, width, channels)`; sizes may be `None`, which
            means any that the backbone takes, and are at least one cell. A
            backbone that is a model brings its channels. `Predictor`, exports
            and the command line need three. Defaults to `(None, None, 3)`.
        preprocess: `Preprocess`, or `None` for that of the backbone's weights.
            Of a backbone that is a model and not ours, `None` leaves pixels
            as they are, 0..255, if it begins by scaling or shifting them;
            else it is that of `keras.applications` if the model is one of
            its networks, whole or cut off; else -1..1.
        dropout: float in [0, 1), before the classifier. Defaults to 0.1.
        batch_norm_momentum: float in [0, 1), in backbone and head. Defaults to
            0.99.
        batch_norm_epsilon: float > 0, in the head; that of the backbone
            follows its weights. Defaults to 1e-3.
        align_corners: bool. Resize convention of ported weights. Defaults to
            `False`.
        batch_norm: `"train"`; `"freeze"`: training leaves statistics, scales
            and offsets of batch norm, in backbone and head, as they are,
            which small batches and ported weights want. It holds after
            `model.backbone.trainable = True` too; `layer.frozen = False`
            trains a layer again. `"sync"`: statistics of the batch on all
            devices of a `tf.distribute` strategy (on JAX, where they are so
            anyway, it is refused); `"group"`: the head has group norm, which
            small batches do not harm, the backbone too if
            `backbone_weights=None` makes a fresh one, and else its batch norm
            is frozen. A layer of the backbone that is `frozen`, or not
            `trainable`, stays so in any case. Defaults to `"train"`.
        trained_output_stride: int or `None`: the output stride at which the
            weights of the head were trained, if it is another one. A head
            learns where its cells are drawn; `with_output_stride` sees to it
            that they are drawn there again. Defaults to `None`.
        high_level: the feature that the head stands on, by nominal stride,
            e.g. `"stride_16"`; the backbone ends there. `None` is
            `"stride_32"`, or the coarsest there is. Defaults to `None`.
        input_scale: int > 0. Pictures are upsampled by this factor in front
            of the backbone, and scores resized to the picture's own size. 2
            finds smaller things at four times the cost; see
            training/README.md. Defaults to 1.
        rematerialize: bool. Training keeps few of the backbone's activations
            and computes the others twice: less memory, more time. Defaults to
            `False`.
        dtype: Keras dtype or policy, or `None` for the global one.
        name: str or `None`.
        **head: arguments of the architecture, e.g. `decoder_filters`.

    Input shape:
        `(batch_size, height, width, channels)`, float, as `model.preprocess`
        returns it; any height and width.

    Output shape:
        `(batch_size, height, width, num_classes)`, float32 logits.

    Raises:
        ValueError: an argument is not as above.
        FileNotFoundError: a weights file does not exist.
    """

    architecture = None
    scores_at_output_stride = True  # or the head resizes before it scores

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            # All arguments by name, for `help`. And by `*args, **kwargs` Keras
            # recognizes constructors that take inputs and outputs, with which
            # `clone_model` would call ours.
            cls.__init__.__signature__ = _whole_signature(cls)

    def __init__(
        self,
        num_classes,
        backbone="mobilenet_v2",
        output_stride=16,
        atrous_rates="auto",
        backbone_weights="imagenet",
        weights=None,
        input_shape=(None, None, 3),
        preprocess=None,
        dropout=0.1,
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
        align_corners=False,
        trained_output_stride=None,
        high_level=None,
        batch_norm="train",
        input_scale=1,
        rematerialize=False,
        dtype=None,
        name=None,
        **head,
    ):
        if not isinstance(num_classes, _SavedCount):
            num_classes = check_num_classes(num_classes)
        _check_input_scale(input_scale, align_corners)
        check_positive_int("output_stride", output_stride)
        policy = keras.dtype_policies.get(
            dtype or keras.config.dtype_policy().name
        )
        if batch_norm not in BATCH_NORM:
            raise InputError(
                f"`batch_norm` must be one of {tuple(BATCH_NORM)}. "
                f"Received: batch_norm={batch_norm!r}"
            )
        atrous_rates = self._rates(atrous_rates, output_stride, head)
        _check_one_cell(input_shape, output_stride)
        saved = None if weights is None else load_saved(weights)
        if isinstance(backbone, str) and saved is not None:
            # Padding and epsilon belong to the weights: take them along.
            preprocess = preprocess or saved.preprocess
            backbone = configure(
                as_features(_same_backbone(saved, backbone), output_stride),
                batch_norm_momentum=batch_norm_momentum,
                dtype=policy,
            )
        elif isinstance(backbone, str):
            backbone = create_backbone(
                backbone,
                output_stride,
                backbone_weights,
                (None, None, input_shape[-1]),
                batch_norm_momentum=batch_norm_momentum,
                dtype=policy,
            )
            preprocess = preprocess or backbone.preprocess
            if batch_norm == "group" and backbone_weights is None:
                backbone = group_normalize(backbone)
        else:
            features = as_features(backbone, output_stride)
            # Weights of a file were trained with the preprocessing of it.
            preprocess = (
                preprocess
                or (saved and saved.preprocess)
                or preprocess_of(backbone)
            )
            backbone = features
        if batch_norm == "sync":
            backbone = synchronize(backbone)
        # A backbone may be made for one size.
        *size, channels = backbone.input.shape[1:]
        own_shape = (*(n and n // input_scale for n in size), channels)
        _check_channels(input_shape, channels)
        *sizes, _ = (
            own if given is None else given
            for own, given in zip(own_shape, input_shape, strict=True)
        )
        input_shape = (*sizes, channels)
        if high_level is not None:
            backbone = end_at(backbone, high_level, output_stride)
        backbone = self.adapt(backbone, output_stride, **head)
        if rematerialize:
            backbone = recomputed(backbone)
        high_level_key = high_level or coarsest(backbone)
        if trained_output_stride is None:
            trained_output_stride = (
                saved.trained_output_stride if saved else output_stride
            )
        config = {
            "num_classes": num_classes,
            "output_stride": output_stride,
            "atrous_rates": atrous_rates,
            "input_shape": input_shape,
            "preprocess": preprocess,
            "dropout": dropout,
            "batch_norm_momentum": batch_norm_momentum,
            "batch_norm_epsilon": batch_norm_epsilon,
            "align_corners": align_corners,
            "trained_output_stride": trained_output_stride,
            "high_level": high_level,
            "batch_norm": batch_norm,
            "input_scale": input_scale,
            "rematerialize": bool(rematerialize),
            "dtype": policy.name,
            **head,
        }
        _warn_of_degenerate_rates(
            atrous_rates,
            output_stride,
            [n and n * input_scale for n in input_shape[:2]],
        )
        images = keras.Input(input_shape, name="image")
        parts = HeadBuilder(
            num_classes=num_classes,
            output_stride=output_stride,
            high_level=high_level_key,
            atrous_rates=atrous_rates,
            dropout=dropout,
            align_corners=align_corners,
            shift_px=shift_px(
                backbone,
                high_level_key,
                output_stride,
                trained_output_stride,
            ),
            batch_norm=BATCH_NORM[batch_norm],
            batch_norm_momentum=batch_norm_momentum,
            batch_norm_epsilon=batch_norm_epsilon,
            dtype=policy,
        )
        seen = parts.magnify(images, input_scale)
        scores, stride = self.decode(backbone(seen), parts, **head)
        if stride % input_scale:
            raise InputError(
                f"`input_scale` must divide the {stride} pixels between two "
                f"scores. Received: input_scale={input_scale}"
            )
        logits = parts.resize(
            scores,
            stride // input_scale,
            images,
            name="logits",
            dtype="float32",
            high_level_to=(
                input_scale if self.scores_at_output_stride else None
            ),
        )  # (B, H, W, K)
        super().__init__(images, logits, name=name or self.architecture)
        self.backbone = backbone
        backbone.preprocess = preprocess
        if batch_norm in ("freeze", "group"):
            freeze_batch_norm(backbone)
        self.preprocess = preprocess
        self.num_classes = num_classes
        self.output_stride = output_stride
        self.trained_output_stride = trained_output_stride
        self.atrous_rates = atrous_rates
        self.input_scale = input_scale
        self._arguments = config
        if saved is not None:
            load_matching(self, saved, weights)

    def compile(
        self, optimizer="rmsprop", *args, auto_scale_loss=True, **kwargs
    ):
        # Keras looks at the model's own policy for it, which is the global
        # one in any functional model.
        optimizer = keras.optimizers.get(optimizer)
        scaled = keras.optimizers.LossScaleOptimizer
        if (
            auto_scale_loss
            and self._arguments["dtype"] == "mixed_float16"
            and not isinstance(optimizer, scaled)
        ):
            optimizer = scaled(optimizer)
        super().compile(
            optimizer, *args, auto_scale_loss=auto_scale_loss, **kwargs
        )

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        _refuse_class_weight(super().fit, args, kwargs)
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        _refuse_class_weight(super().train_on_batch, args, kwargs)
        return super().train_on_batch(*args, **kwargs)

    def compile_from_config(self, config):
        # Keras leaves a model with a `compile` of its own uncompiled.
        try:
            config = keras.saving.deserialize_keras_object(config)
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                "The model is loaded without its loss, optimizer and metrics; "
                f"call `compile` again. ({reason})",
                stacklevel=2,
            )
            return
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def decode(self, features, parts, **head):
        """Builds the head.

        Args:
            features: dict of feature maps, by nominal stride.
            parts: `Head`, which makes the layers.
            **head: arguments of the architecture.

        Returns:
            `(scores, stride)`: float32 (B, h, w, K) and their pixels per cell.
        """
        raise NotImplementedError

    def adapt(self, backbone, output_stride, **head):
        """The backbone as the architecture needs it; here, as it is.

        A reloaded model brings its adapted backbone, so a second call must
        change nothing.
        """
        return backbone

    def offsets_name(self, **head):
        """The key of `OFFSETS_PX` that `atrous_rates="auto"` means."""
        return self.architecture

    def _rates(self, atrous_rates, output_stride, head):
        name = self.offsets_name(**head)
        if atrous_rates == "auto":
            return atrous_rates_at(name, output_stride)
        atrous_rates = check_atrous_rates(atrous_rates, allow_empty=True)
        if atrous_rates and not OFFSETS_PX[name]:
            raise InputError(
                f"The head of {name} has no atrous branches; leave "
                "`atrous_rates` at 'auto'. "
                f"Received: atrous_rates={atrous_rates}"
            )
        return atrous_rates

    def arguments(self):
        """The constructor's arguments that make this model again."""
        return {
            **self._arguments,
            "preprocess": self.preprocess,
            "backbone": self.backbone,
            "name": self.name,
        }

    def get_config(self):
        config = self.arguments()
        config["preprocess"] = self.preprocess.get_config()
        config["backbone"] = keras.saving.serialize_keras_object(self.backbone)
        frozen = [
            layer.name
            for layer in self.layers
            if layer is not self.backbone and not layer.trainable
        ]
        if frozen:
            config["frozen_layers"] = frozen
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Keras takes the backbone's own apart.
        config = copy.deepcopy(config)
        frozen = config.pop("frozen_layers", ())
        # A file that is loaded must not make us load others, or fetch some.
        if config.keys() & {"weights", "backbone_weights"} or not isinstance(
            config["backbone"], dict
        ):
            raise InputError(
                "A saved segmenter holds its backbone and weights, not where "
                f"they come from. Received: backbone={config['backbone']!r}"
            )
        if config["num_classes"] == 1:
            config["num_classes"] = _SavedCount(1)
        config["preprocess"] = Preprocess.from_config(config["preprocess"])
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects=custom_objects
        )
        model = cls(**config)
        for name in frozen:
            model.get_layer(name).trainable = False
        return model


def _whole_signature(kind):
    """Signature of a segmenter with the arguments of its base classes."""
    parameters = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Segmenter) and "__init__" in vars(base):
            own = inspect.signature(vars(base)["__init__"]).parameters
            parameters |= own
    named = [
        parameter
        for parameter in parameters.values()
        if parameter.kind
        not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return inspect.Signature(sorted(named, key=lambda p: p.kind))


def load_saved(path):
    """A saved segmenter, from a `.keras` file or a folder that holds one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no segmenter of ours, or weights that are not
            finite.
    """
    file = os.path.join(path, "model.keras") if os.path.isdir(path) else path
    if not os.path.isfile(file):
        raise InputNotFoundError(
            "A saved model must be a `.keras` file or a folder with "
            f"model.keras. Received: {str(path)!r}, which does not exist"
        )
    model = load_keras(file)
    if not isinstance(model, Segmenter):
        raise InputError(
            "The file holds no segmenter of keras_aspp. "
            f"Received: {str(file)!r} with a {type(model).__name__}"
        )
    check_weights(model, repr(str(file)))
    return model


def _same_backbone(saved, name):
    if saved.backbone.name != name.replace(".", "_"):
        raise InputError(
            f"`weights` were trained with backbone {saved.backbone.name}. "
            f"Received: backbone={name!r}"
        )
    return saved.backbone


def load_matching(model, saved, path):
    """Takes a saved segmenter's weights, the classifier only if it fits.

    Args:
        model: `Segmenter` to fill.
        saved: `Segmenter` to take from.
        path: where it comes from, for messages.

    Raises:
        ValueError: it is another architecture.
    """
    ours, theirs = _weights_by_name(model), _weights_by_name(saved)
    left = [
        name
        for name in ours
        if name not in theirs or theirs[name].shape != ours[name].shape
    ]
    wrong = [name for name in left if not name.startswith(CLASSIFIER)]
    wrong += [name for name in theirs if name not in ours]
    if wrong:
        raise InputError(
            f"The weights of {str(path)!r} are those of another model. "
            f"Received: {len(wrong)} tensors that do not fit, first {wrong[0]}"
        )
    for name, weight in ours.items():
        if name not in left:
            weight.assign(theirs[name])
    if left:
        warnings.warn(
            f"Loaded {str(path)!r} but for the classifier: {len(left)} "
            f"tensors are left as they were: {', '.join(left)}",
            stacklevel=3,
        )


def _weights_by_name(model):
    """Weights by names that are equal in models of one architecture."""
    found = {}
    for weight in model.weights:
        name = weight.path.removeprefix(f"{model.name}/")
        # Keras numbers weights without a name over all models of a process,
        # such as the LayerScale of ConvNeXt.
        name = re.sub(r"/variable_\d+$", "/variable", name)
        while name in found:
            name += "+"
        found[name] = weight
    return found


def _refuse_class_weight(method, args, kwargs):
    """Raises if a call of Keras' method gives weights of classes."""
    given = inspect.signature(method).bind_partial(*args, **kwargs).arguments
    if given.get("class_weight") is not None:
        raise InputError(
            "`class_weight` weighs whole examples by their one class, which "
            "label maps do not have. Give the loss weights of classes, e.g. "
            "CrossEntropy(class_weights=[1.0, 2.0]), or weigh pixels by "
            f"`sample_weight`. Received: class_weight={given['class_weight']}"
        )


def _check_input_scale(input_scale, align_corners):
    check_positive_int("input_scale", input_scale)
    if input_scale > 1 and align_corners:
        raise InputError(
            "`input_scale` goes with half-pixel centres only. Received: "
            f"input_scale={input_scale}, align_corners={align_corners}"
        )


def check_rgb(model, user):
    """Raises `ValueError` for models of other than three input channels.

    Args:
        model: `Segmenter`.
        user: str, what needs three channels.
    """
    channels = model.input.shape[-1]
    if channels != 3:
        raise InputError(
            f"{user} needs a model of three input channels (RGB). Train and "
            "call other models in Python; docs/backbones.md shows how. "
            f"Received: a model of {channels} input channels"
        )


def _check_channels(input_shape, channels):
    # 3 is the default, so it does not contradict.
    if input_shape[2] not in (3, channels):
        raise InputError(
            "`input_shape` must have as many channels as the backbone, "
            f"{channels}. Received: input_shape={tuple(input_shape)}"
        )


def _check_one_cell(input_shape, output_stride):
    sizes = [n for n in input_shape[:2] if n is not None]
    if min(sizes, default=output_stride) < output_stride:
        raise InputError(
            "Pictures must be at least one cell, `output_stride` pixels, high "
            f"and wide. Received: input_shape={tuple(input_shape)}, "
            f"output_stride={output_stride}"
        )


def _warn_of_degenerate_rates(rates, output_stride, input_shape):
    if None in input_shape[:2]:
        return
    lost, cells = degenerate_rates(rates, output_stride, input_shape[:2])
    if lost:
        warnings.warn(
            f"Atrous rates {lost} reach beyond the {cells[0]}x{cells[1]} map "
            f"of a {input_shape[0]}x{input_shape[1]} picture at output stride "
            f"{output_stride}: their 3x3 convolutions act as 1x1.",
            stacklevel=4,
        )
