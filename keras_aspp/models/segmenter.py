"""Segmenter: the base class of every architecture.

Shape legend: B batch, H x W pixels, h x w feature cells, K `num_classes`.
"""

import copy
import functools
import inspect
import os
import textwrap
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import keras

from keras_aspp.backbones.rematerialize import rematerialize as recomputed
from keras_aspp.labels import check_num_classes, check_task
from keras_aspp.layers.background_logit import (
    BackgroundLogit,
    check_threshold,
)
from keras_aspp.layers.batch_norm import freeze_batch_norm
from keras_aspp.layers.checks import (
    check_atrous_rates,
    check_batch_norm_numbers,
    check_channels_last,
    check_input_shape,
)
from keras_aspp.layers.class_thresholds import (
    ClassThresholds,
    check_thresholds,
)
from keras_aspp.models.archive import load_keras
from keras_aspp.models.auxiliary import (
    AuxiliaryHead,
    AuxiliaryTraining,
    check_auxiliary,
)
from keras_aspp.models.features import (
    FREEZING,
    choose_backbone,
    coarsest,
    end_at,
    middle,
    resolve_input_shape,
    shift_px,
)
from keras_aspp.models.head import HeadBuilder
from keras_aspp.models.quantize_aware import QuantizedTraining
from keras_aspp.models.rates import degenerate_note, whole_rates
from keras_aspp.models.transfer import (
    freeze_layers,
    frozen_layers,
    load_matching,
)
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.deprecation import warn_renamed
from keras_aspp.utils.docstrings import insert_text
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.finite import check_weights
from keras_aspp.utils.hub import fetch, is_address
from keras_aspp.utils.numeric import check_int, check_number
from keras_aspp.utils.types import PathLike, Rate

# Policy -> `batch_norm` of `AtrousConv2D`, for the layers of the head.
BATCH_NORM: dict[str, bool | str] = {
    "train": True,
    "freeze": "freeze",
    "sync": "sync",
    "group": "group",
}

_BACKGROUND, _THRESHOLDS = "background", "class_thresholds"

# In the docstring of an architecture, the place of the arguments below.
COMMON_ARGUMENTS = "{common_arguments}"

# Former names of the hooks, which took `**head`, and their signatures now.
_FORMER_HOOKS = {
    "decode": "build_head(self, features, builder, head)",
    "adapt": "modify_backbone(self, backbone, output_stride, head)",
}


class _SavedCount(int):
    """`num_classes` of a saved model, which older versions let be 1."""


class Segmenter(QuantizedTraining, AuxiliaryTraining, keras.Model):
    """Semantic segmentation model: images in, logits of every pixel out.

    The base class of all architectures: a dense backbone, a head, and a
    bilinear resize of the head's scores to the size of the image. A subclass
    sets `architecture`, names the arguments of its head in its constructor,
    passes them on to this one, and builds the head in `build_head`.

    Args:
        num_classes: int > 1. Number of classes, background included; 1 and 2
            mean the same with `task="binary"`. With `task="multilabel"`, int
            > 0, and no background.
        backbone: a name of `list_backbones()`, or a functional `keras.Model`.
            Dict outputs (`"stride_4"`, ...) are used as they are; of a model
            with one output, the last tensor of each nominal stride is used.
            The model is copied and made dense to `output_stride`. Defaults to
            `"mobilenet_v2"`.
        output_stride: int, a power of two; pixels per cell of the feature map
            that the head reads, counted in the image that the backbone reads
            (see `input_scale`). The signature shows the default of the
            architecture.
        atrous_rates: ints > 0 or pairs `(height, width)`, in feature cells, or
            `"auto"` for the rates of the paper, scaled to `output_stride`. A
            head without atrous branches accepts only `"auto"`. Defaults to
            `"auto"`.
        backbone_weights: `"imagenet"`, `"torchvision"`, the path of a weights
            file, or `None` for random weights; see `create_backbone`. Ignored
            for a backbone that is a model. Defaults to `"imagenet"`.
        weights: `None`, or the path of a saved segmenter of this architecture
            (`.keras`, or a folder that contains `model.keras`). With another
            `num_classes`, everything but the classifier is loaded, with a
            warning that names the remaining tensors. Defaults to `None`.
        input_shape: `(height, width, channels)`. A height or width of `None`
            accepts any size of at least one cell. A backbone that is a model
            determines the channels; pretrained weights of a named one are
            spread over other channels than three, see
            `backbones.inflate.inflate`. Defaults to `(None, None, 3)`.
        preprocess: `Preprocess`, or `None` for the one that belongs to the
            backbone's weights. For a user's own model, `None` keeps pixels in
            0..255 if the model begins by scaling or shifting them; else it is
            that of `keras.applications` if the model is one of its networks,
            whole or truncated; else -1..1. Defaults to `None`.
        dropout: float in [0, 1), before the classifier. Defaults to 0.1.
        batch_norm_momentum: float in [0, 1), in the head and in a backbone
            given by name; a model keeps its own. Defaults to 0.99.
        batch_norm_epsilon: float > 0, in the head; the epsilon of the backbone
            belongs to its weights. Defaults to 1e-3.
        align_corners: bool. Resize convention, for ported weights. Defaults to
            `False`.
        trained_output_stride: int or `None`: the output stride at which the
            weights of the head were trained, where it differs from
            `output_stride`. Features are then shifted to where the head saw
            them in training; `with_output_stride` sets it. Defaults to `None`.
        high_level: the feature that the head reads, by nominal stride, e.g.
            `"stride_16"`; the backbone ends there. `None` is `"stride_32"`, or
            the coarsest feature of the backbone. Defaults to `None`.
        batch_norm: `"train"` updates batch norm. `"freeze"` keeps statistics,
            scales and offsets of batch norm fixed in backbone and head, for
            small batches and ported weights, also after
            `model.backbone.trainable = True`; `layer.frozen = False` trains a
            layer again. `"sync"` computes statistics over all devices of a
            `tf.distribute` strategy; it is refused on JAX, which always does.
            `"group"` uses group norm in the head, which suits small batches,
            and in a backbone with `backbone_weights=None`; any other backbone
            is frozen. Layers of the backbone that are `frozen`, or not
            `trainable`, stay so, but for those that the `batch_norm` of
            loaded `weights` froze. Defaults to `"train"`.
        input_scale: int > 0. Factor by which images are upsampled before the
            backbone; logits keep the size of the image. With 2, a cell covers
            half as many pixels of the image as `output_stride` says, which
            finds smaller objects at four times the cost; see
            training/README.md. Defaults to 1.
        rematerialize: bool. Training stores few of the backbone's activations
            and computes the others twice: less memory, more time. Defaults to
            `False`.
        dtype: Keras dtype or policy, or `None` for the global one. A backbone
            that is a model keeps its own; `with_dtype` converts the whole
            segmenter. Defaults to `None`.
        name: str, or `None` for the name of the architecture. Defaults to
            `None`.
        task: `"semantic"`: the head has a logit for each class. `"binary"`: it
            has one, that of the object; the background's is fixed
            (`layers.BackgroundLogit`), so that losses, metrics and exports of
            two classes fit. `"multilabel"`: each class has a logit, which is
            above 0 where the class is predicted
            (`layers.ClassThresholds`); classes may overlap. Defaults to
            `"semantic"`.
        threshold: float in (0, 1), probability above which a binary model
            labels a pixel as object, and a multilabel one predicts a class;
            of the latter also one for each class. `model.threshold = 0.3`
            changes it. Defaults to 0.5.
        auxiliary_weight: float >= 0, factor of the loss of an auxiliary head,
            which training adds to that of the logits; 0.4 is usual, 0 builds
            no such head. Only `fit` and `train_on_batch` of the model compute
            it; the model within another one has its logits only. Files,
            copies and exports of the model do not contain it, nor does
            `model.weights` (`model.trainable_variables` does). Defaults to 0.
        auxiliary_feature: the feature that the auxiliary head reads, by
            nominal stride, or `None` for the coarsest one that is finer than
            `high_level`, which is `"stride_16"` as a rule. Defaults to `None`.
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

    architecture: str | None = None
    # What arguments are where a saved file does not have them.
    absent_arguments: Mapping[str, Any] = {}
    # False for heads that upsample features before the classifier.
    scores_at_output_stride: bool = True

    backbone: keras.Model
    preprocess: Preprocess
    num_classes: int
    output_stride: int
    trained_output_stride: int
    atrous_rates: tuple[Rate, ...]
    input_scale: int
    task: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _insert_common_arguments(cls)
        _accept_former_hooks(cls)

    def __init__(
        self,
        num_classes: int,
        backbone: str | keras.Model = "mobilenet_v2",
        output_stride: int = 16,
        atrous_rates: Literal["auto"] | Sequence[Rate] = "auto",
        backbone_weights: PathLike | None = "imagenet",
        weights: PathLike | None = None,
        input_shape: tuple[int | None, int | None, int] = (None, None, 3),
        preprocess: Preprocess | None = None,
        dropout: float = 0.1,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        align_corners: bool = False,
        trained_output_stride: int | None = None,
        high_level: str | None = None,
        batch_norm: Literal["train", "freeze", "sync", "group"] = "train",
        input_scale: int = 1,
        rematerialize: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        task: Literal["semantic", "binary", "multilabel"] = "semantic",
        threshold: float | Sequence[float] = 0.5,
        auxiliary_weight: float = 0.0,
        auxiliary_feature: str | None = None,
        **head: Any,
    ) -> None:
        num_classes, threshold = _resolve_task(num_classes, task, threshold)
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
            "task": task,
            "threshold": threshold,
            "dtype": keras.dtype_policies.get(
                dtype or keras.config.dtype_policy().name
            ),
            **head,
        }
        arguments = types.SimpleNamespace(**head)
        _check_arguments(config)
        config["atrous_rates"] = self._resolve_rates(config, arguments)
        saved = None if weights is None else load_saved(weights)
        backbone, config["preprocess"] = choose_backbone(
            backbone, backbone_weights, saved, config
        )
        config["input_shape"] = resolve_input_shape(config, backbone)
        self._warn_of_degenerate_rates(config, arguments)
        config["trained_output_stride"] = _trained_output_stride(config, saved)
        backbone = self._adapt_backbone(backbone, config, arguments)
        images = keras.Input(config["input_shape"], name="image")
        builder = _head_builder(backbone, config)
        features = backbone(builder.upsample_input(images, input_scale))
        logits = self._build_logits(
            images, features, builder, config, arguments
        )
        # After the head, whose initial weights stay those without it.
        auxiliary = _build_auxiliary(
            auxiliary_weight,
            auxiliary_feature,
            *(images, logits, features, backbone, builder, config),
        )
        super().__init__(images, logits, name=name or self.architecture)
        self._attach(backbone, config, auxiliary)
        if saved is not None:
            load_matching(self, saved, weights)

    @property
    def input_channels(self) -> int:
        """Channels of the images."""
        return self.input.shape[-1]

    def _resolve_rates(self, config, head):
        """Returns the atrous rates as a tuple, `"auto"` replaced."""
        offsets_px = self.branch_offsets_px(head)
        if config["atrous_rates"] == "auto":
            return whole_rates(
                offsets_px, self.branch_stride(config["output_stride"], head)
            )
        rates = check_atrous_rates(config["atrous_rates"], allow_empty=True)
        if rates and not offsets_px:
            raise InputError(
                f"The head of {self.architecture} has no atrous branches; "
                "leave `atrous_rates` at 'auto'. "
                f"Received: atrous_rates={rates}"
            )
        return rates

    def _dilated_rates(self, config):
        """Returns the rates of the head's dilated convolutions."""
        return config["atrous_rates"]

    def _warn_of_degenerate_rates(self, config, head):
        height, width, _ = config["input_shape"]
        if height is None or width is None:
            return
        note = degenerate_note(
            self._dilated_rates(config),
            self.branch_stride(config["output_stride"], head),
            (height, width),
            config["input_scale"],
        )
        if note:
            warnings.warn(
                f"Atrous {note}: their 3x3 convolutions act as 1x1.",
                stacklevel=4,
            )

    def _adapt_backbone(self, backbone, config, head):
        """Ends the backbone at the head's feature and modifies it."""
        output_stride = config["output_stride"]
        if config["high_level"] is not None:
            backbone = end_at(backbone, config["high_level"], output_stride)
        backbone = self.modify_backbone(backbone, output_stride, head)
        return recomputed(backbone) if config["rematerialize"] else backbone

    def _build_logits(self, images, features, builder, config, head):
        """Builds the head; returns logits of the images' size."""
        input_scale = config["input_scale"]
        scores, stride = self.build_head(features, builder, head)
        if config["task"] == "binary":
            scores = BackgroundLogit(
                config["threshold"], dtype="float32", name=_BACKGROUND
            )(scores)
        elif config["task"] == "multilabel":
            scores = ClassThresholds(
                config["threshold"], dtype="float32", name=_THRESHOLDS
            )(scores)
        return builder.resize(
            scores,
            _in_pixels(stride, input_scale),
            images,
            name="logits",
            dtype="float32",
            high_level_to=(
                input_scale if self.scores_at_output_stride else None
            ),
        )  # (B, H, W, K)

    def _attach(self, backbone, config, auxiliary):
        """Sets the attributes, once the Keras model exists."""
        self._auxiliary = auxiliary
        self.backbone = backbone
        backbone.preprocess = config["preprocess"]
        if config["batch_norm"] in FREEZING:
            freeze_batch_norm(backbone)
        self.preprocess = config["preprocess"]
        self.num_classes = config["num_classes"]
        self.output_stride = config["output_stride"]
        self.trained_output_stride = config["trained_output_stride"]
        self.atrous_rates = self._dilated_rates(config)
        self.input_scale = config["input_scale"]
        self.task = config["task"]
        self._arguments = {**config, "dtype": config["dtype"].name}

    @property
    def threshold(self) -> float | tuple[float, ...]:
        """Probability above which a binary model labels a pixel as object.

        One for each class of a multilabel model.
        """
        threshold = self._arguments["threshold"]
        return tuple(threshold) if isinstance(threshold, list) else threshold

    @threshold.setter
    def threshold(self, threshold: float | Sequence[float]) -> None:
        if self.task == "binary":
            threshold = check_threshold(threshold)
            self.get_layer(_BACKGROUND).threshold = threshold
        elif self.task == "multilabel":
            threshold = check_thresholds(threshold, self.num_classes)
            self.get_layer(_THRESHOLDS).thresholds = threshold
            threshold = list(threshold)
        else:
            raise InputError(
                "Only a model of `task='binary'` or 'multilabel' has a "
                f"threshold. Received: a model of task={self.task!r}"
            )
        self._arguments["threshold"] = threshold
        # Compiled steps hold the former threshold.
        self.train_function = self.test_function = None
        self.predict_function = None

    @functools.wraps(keras.Model.compile)
    def compile(
        self,
        optimizer: Any = "rmsprop",
        *args: Any,
        auto_scale_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        # Keras reads the policy of the model itself for it, which is the
        # global one in every functional model.
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
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        _refuse_class_weight(super().fit, args, kwargs)
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        _refuse_class_weight(super().train_on_batch, args, kwargs)
        return super().train_on_batch(*args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras does not compile a loaded model whose class overrides
        # `compile`.
        try:
            config = keras.saving.deserialize_keras_object(config)
        except (TypeError, ValueError) as error:
            warnings.warn(
                "The model is loaded without its loss, optimizer and metrics; "
                f"call `compile` again. ({first_line(error)})",
                stacklevel=2,
            )
            return
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def build_head(
        self,
        features: Mapping[str, keras.KerasTensor],
        builder: HeadBuilder,
        head: types.SimpleNamespace,
    ) -> tuple[keras.KerasTensor, int]:
        """Builds the head.

        Args:
            features: feature maps of the backbone, by nominal stride.
            builder: `HeadBuilder`, which makes the layers and has the common
                arguments.
            head: the arguments of the architecture, as attributes.

        Returns:
            `(scores, stride)`: float32 (B, h, w, K) and their pixels per cell,
            of the upsampled image.
        """
        raise NotImplementedError

    def modify_backbone(
        self,
        backbone: keras.Model,
        output_stride: int,
        head: types.SimpleNamespace,
    ) -> keras.Model:
        """Returns the backbone with the changes that the architecture needs.

        A loaded model contains the modified backbone, so the second call must
        return it unchanged. The default changes nothing.

        Args:
            backbone: dense functional model with dict outputs.
            output_stride: int, pixels per cell of its last feature map.
            head: the arguments of the architecture, as attributes.
        """
        return backbone

    def branch_stride(
        self, output_stride: int, head: types.SimpleNamespace
    ) -> int:
        """Returns the pixels per cell of the map that atrous branches read.

        They are pixels of the image upsampled by `input_scale`, as those of
        `output_stride`, which is the default.

        Args:
            output_stride: int.
            head: the arguments of the architecture, as attributes.
        """
        return output_stride

    @property
    def atrous_stride(self) -> int:
        """Pixels per cell of the map that atrous branches read.

        Counted, as `output_stride`, in the image upsampled by `input_scale`;
        divide by it for pixels of the image.
        """
        head = types.SimpleNamespace(**self._arguments)
        return self.branch_stride(self.output_stride, head)

    def branch_offsets_px(
        self, head: types.SimpleNamespace
    ) -> tuple[Rate, ...]:
        """Returns the pixels between taps of each atrous branch in the paper.

        `atrous_rates="auto"` divides them by `branch_stride`. Empty for a
        head without atrous branches, the default.

        Args:
            head: the arguments of the architecture, as attributes.
        """
        return ()

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments that build this model again."""
        return {
            **self._arguments,
            "preprocess": self.preprocess,
            "backbone": self.backbone,
            "name": self.name,
        }

    def get_config(self) -> dict[str, Any]:
        config = self.arguments()
        config["preprocess"] = self.preprocess.get_config()
        if self.task == "semantic":
            # Earlier versions load the file, too.
            del config["task"], config["threshold"]
        config["backbone"] = keras.saving.serialize_keras_object(self.backbone)
        if frozen := frozen_layers(self):
            config["frozen_layers"] = frozen
        return config

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        # Keras changes the backbone's own configuration in place.
        config = {**cls.absent_arguments, **copy.deepcopy(config)}
        frozen = config.pop("frozen_layers", ())
        # Loading a file must not read other files, or download any.
        if config.keys() & {"weights", "backbone_weights"} or not isinstance(
            config["backbone"], dict
        ):
            raise InputError(
                "A saved segmenter contains its backbone and weights, not "
                "paths or names of them. "
                f"Received: backbone={config['backbone']!r}"
            )
        if config["num_classes"] == 1 and "task" not in config:
            config["num_classes"] = _SavedCount(1)
        config["preprocess"] = Preprocess.from_config(config["preprocess"])
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects=custom_objects
        )
        model = cls(**config)
        freeze_layers(model, frozen)
        return model


def _insert_common_arguments(architecture):
    """Replaces `COMMON_ARGUMENTS` in a docstring by those of `Segmenter`."""
    # Python has no docstrings under -OO.
    text = inspect.cleandoc(Segmenter.__doc__ or "")
    text = text.partition("Args:\n")[2].partition("    **head:")[0]
    text = textwrap.dedent(text).strip()
    insert_text(architecture, COMMON_ARGUMENTS, text)


def _accept_former_hooks(architecture):
    """Lets a subclass define hooks by their former names, with a warning."""
    for former, hook in _FORMER_HOOKS.items():
        method = vars(architecture).get(former)
        if method is None:
            continue
        warn_renamed(f"{architecture.__name__}.{former}", hook, stacklevel=4)

        def call(self, first, second, head, method=method):
            return method(self, first, second, **vars(head))

        setattr(architecture, hook.partition("(")[0], call)


def load_saved(path: PathLike) -> Segmenter:
    """Loads a segmenter from a `.keras` file or a folder that contains one.

    Args:
        path: the file, or a folder with a `model.keras`; also of the Hub,
            `hf://user/name[@revision][/path]`.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the Hub is needed and cannot be reached, or refuses access.
        ValueError: the file contains another model, or weights that are not
            finite.
    """
    if is_address(path):
        path = fetch(path)
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


def check_rgb(model: keras.Model, user: str) -> None:
    """Raises `ValueError` for models of other than three input channels.

    Args:
        model: `Segmenter`.
        user: str, what needs three channels.
    """
    channels = model.input.shape[-1]
    if channels != 3:
        raise InputError(
            f"{user} needs a model of three input channels (RGB). "
            f"Received: a model of {channels} input channels"
        )


def _refuse_class_weight(method, args, kwargs):
    """Raises `ValueError` for a call of Keras' method with `class_weight`."""
    given = inspect.signature(method).bind_partial(*args, **kwargs).arguments
    if given.get("class_weight") is not None:
        raise InputError(
            "`class_weight` weights whole examples by their class, but every "
            "pixel has its own. Pass weights of classes to the loss, e.g. "
            "CrossEntropy(class_weights=[1.0, 2.0]), or weights of pixels as "
            f"`sample_weight`. Received: class_weight={given['class_weight']}"
        )


def _resolve_task(num_classes, task, threshold):
    """Returns the number of classes, background included, and threshold."""
    check_task(task)
    if task == "multilabel":
        num_classes = check_int("num_classes", num_classes)
        return num_classes, list(check_thresholds(threshold, num_classes))
    threshold = check_threshold(threshold)
    if task == "binary":
        if num_classes not in (1, 2):
            raise InputError(
                "`num_classes` must be 1 or 2 with task='binary', an object "
                f"before its background. Received: num_classes={num_classes!r}"
            )
        return 2, threshold
    if threshold != 0.5:
        raise InputError(
            "`threshold` needs task='binary' or 'multilabel'. "
            f"Received: threshold={threshold!r}"
        )
    if isinstance(num_classes, _SavedCount):
        return num_classes, threshold
    return check_num_classes(num_classes), threshold


def _check_arguments(config):
    """Raises `ValueError` for common arguments that are out of range.

    Ints of NumPy become ints.
    """
    for name in ("input_scale", "output_stride"):
        config[name] = check_int(name, config[name])
    input_scale, align_corners = config["input_scale"], config["align_corners"]
    if input_scale > 1 and align_corners:
        raise InputError(
            "`input_scale` needs half-pixel centers, `align_corners=False`. "
            f"Received: input_scale={input_scale}, "
            f"align_corners={align_corners}"
        )
    output_stride = config["output_stride"]
    check_number("dropout", config["dropout"], "[0, 1)")
    check_batch_norm_numbers(
        config["batch_norm_momentum"], config["batch_norm_epsilon"]
    )
    check_channels_last(keras.config.image_data_format())
    if config["batch_norm"] not in BATCH_NORM:
        raise InputError(
            f"`batch_norm` must be one of {tuple(BATCH_NORM)}. "
            f"Received: batch_norm={config['batch_norm']!r}"
        )
    input_shape = check_input_shape(config["input_shape"])
    config["input_shape"] = input_shape
    sizes = [n for n in input_shape[:2] if n is not None]
    if min(sizes, default=output_stride) < output_stride:
        raise InputError(
            "Images must be at least one cell, `output_stride` pixels, high "
            f"and wide. Received: input_shape={input_shape}, "
            f"output_stride={output_stride}"
        )


def _trained_output_stride(config, saved):
    """Returns the stride given, or that of the saved model, or its own."""
    given = config["trained_output_stride"]
    if given is not None:
        return check_int("trained_output_stride", given)
    if saved is not None:
        return saved.trained_output_stride
    return config["output_stride"]


def _head_builder(backbone, config):
    """Returns the `HeadBuilder` of a backbone and the common arguments."""
    high_level = config["high_level"] or coarsest(backbone)
    shift_of = functools.partial(
        shift_px,
        backbone,
        output_stride=config["output_stride"],
        trained_output_stride=config["trained_output_stride"],
    )
    return HeadBuilder(
        num_classes=1 if config["task"] == "binary" else config["num_classes"],
        output_stride=config["output_stride"],
        high_level=high_level,
        atrous_rates=config["atrous_rates"],
        dropout=config["dropout"],
        align_corners=config["align_corners"],
        shift_px=shift_of(high_level),
        shift_of=shift_of,
        batch_norm=BATCH_NORM[config["batch_norm"]],
        batch_norm_momentum=config["batch_norm_momentum"],
        batch_norm_epsilon=config["batch_norm_epsilon"],
        dtype=config["dtype"],
    )


def _build_auxiliary(
    weight, feature, images, logits, features, backbone, builder, config
):
    """Returns an `AuxiliaryHead`, or `None` for weight 0."""
    check_auxiliary(weight, feature)
    if not weight:
        return None
    feature, stride = middle(backbone, builder.high_level, feature)
    stride = min(stride, config["output_stride"])
    return AuxiliaryHead(
        images,
        logits,
        features,
        feature,
        _in_pixels(stride, config["input_scale"]),
        builder,
        config["task"],
        float(weight),
    )


def _in_pixels(stride, input_scale):
    """Returns the stride of scores in pixels of the image."""
    if stride % input_scale:
        raise InputError(
            f"`input_scale` must divide the {stride} pixels between two "
            f"scores. Received: input_scale={input_scale}"
        )
    return stride // input_scale
