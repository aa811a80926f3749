"""Backbones as a segmenter uses them: choice, features, alignment."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_aspp.backbones.cascade import LAST
from keras_aspp.backbones.inflate import with_channels
from keras_aspp.backbones.output_stride import (
    first_cell,
    output_strides,
    stage_ends,
    with_output_stride,
)
from keras_aspp.backbones.pyramid import (
    as_it_is,
    has_pyramid,
    pyramid_of,
    stated_strides,
)
from keras_aspp.backbones.rebuild import (
    configure,
    group_normalize,
    synchronize,
)
from keras_aspp.backbones.rematerialize import Rematerialized
from keras_aspp.backbones.zoo import create_backbone, preprocess_of
from keras_aspp.layers import BatchNormalization
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import sublayers

# Values of `batch_norm` under which that of the backbone is frozen.
FREEZING = ("freeze", "group")


def choose_backbone(
    backbone: str | keras.Model,
    weights: Any,
    saved: Any,
    config: Mapping[str, Any],
) -> tuple[keras.Model, Preprocess]:
    """Returns the dense backbone of a segmenter and its preprocessing.

    Args:
        backbone: name, or functional `keras.Model`.
        weights: `backbone_weights` of a name.
        saved: `Segmenter` whose weights are loaded, or `None`.
        config: the common arguments of `Segmenter`.

    Raises:
        ValueError: the name is unknown or not that of `saved`, or the backbone
            cannot have this output stride.
    """
    output_stride, preprocess = config["output_stride"], config["preprocess"]
    changes = {
        "batch_norm_momentum": config["batch_norm_momentum"],
        "dtype": config["dtype"],
    }
    if saved is not None:
        # The weights were trained on images preprocessed like this.
        preprocess = preprocess or saved.preprocess
    if not isinstance(backbone, str):
        model, backbone = backbone, as_features(backbone, output_stride)
        preprocess = preprocess or preprocess_of(model)
    elif saved is not None:
        # Padding and epsilon belong to the weights, so this is the backbone
        # of the file and not a new one of the same name.
        _check_name(backbone, saved.backbone)
        backbone = saved.backbone
        if isinstance(backbone, Rematerialized):
            backbone = keras.Model(
                backbone.input, backbone.output, name=backbone.name
            )
        backbone = configure(as_features(backbone, output_stride), **changes)
        before = saved._arguments["batch_norm"]
        _undo_batch_norm(backbone, before, config["batch_norm"])
        channels = config["input_shape"][-1]
        # 3 is the default.
        if channels not in (3, backbone.input.shape[-1]):
            backbone, preprocess = with_channels(backbone, channels, preprocess)
    else:
        backbone = create_backbone(
            backbone,
            output_stride,
            weights,
            (None, None, config["input_shape"][-1]),
            **changes,
        )
        preprocess = preprocess or backbone.preprocess
        if config["batch_norm"] == "group" and weights is None:
            backbone = group_normalize(backbone)
    if config["batch_norm"] == "sync":
        backbone = synchronize(backbone)
    return backbone, preprocess


def _undo_batch_norm(backbone, before, now):
    """Takes back what a former `batch_norm` of a segmenter set in a backbone.

    What a user froze layer by layer stays frozen.
    """
    for layer in sublayers(backbone):
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        if before in FREEZING and now not in FREEZING:
            if isinstance(layer, BatchNormalization):
                layer.frozen = False
            layer.trainable = True
        if before == "sync" and now != "sync":
            layer.synchronized = False


def _check_name(name, saved):
    """Raises `ValueError` for a name other than that of a saved backbone."""
    if saved.name != name.replace(".", "_"):
        raise InputError(
            f"`weights` were trained with backbone {saved.name}. "
            f"Received: backbone={name!r}"
        )


def resolve_input_shape(
    config: Mapping[str, Any], backbone: keras.Model
) -> tuple[int | None, int | None, int]:
    """Returns `input_shape` completed by the sizes of the backbone.

    Args:
        config: the common arguments of `Segmenter`.
        backbone: functional model of one input.

    Raises:
        ValueError: `input_shape` and the backbone differ in channels.
    """
    given, input_scale = config["input_shape"], config["input_scale"]
    *sizes, channels = backbone.input.shape[1:]
    # 3 is the default; the backbone overrides it.
    if given[2] not in (3, channels):
        raise InputError(
            "`input_shape` must have as many channels as the backbone, "
            f"{channels}. Received: input_shape={tuple(given)}"
        )
    # A backbone may be built for one size.
    own = [n and n // input_scale for n in sizes]
    height, width = (
        n if size is None else size
        for n, size in zip(own, given[:2], strict=True)
    )
    return height, width, channels


def shift_px(
    backbone: keras.Model,
    key: str,
    output_stride: int,
    trained_output_stride: int,
) -> tuple[float, float]:
    """Computes the shift that puts cells where the head saw them in training.

    Upsampling centers cell i of stride s at pixel i * s + (s - 1) / 2, also
    where the cell's receptive field has another center.

    Args:
        backbone: dense functional model with dict outputs.
        key: of the feature.
        output_stride: int, pixels per cell of the last feature.
        trained_output_stride: int, that of the training.

    Returns:
        `(down, right)`, in pixels.
    """
    if trained_output_stride == output_stride:
        return (0, 0)
    nominal = _nominal_strides(backbone)[key]
    (top, left), (trained_top, trained_left) = (
        [n * s + (s - 1) / 2 for n in first_cell(backbone, s, key)]
        for s in (
            min(nominal, output_stride),
            min(nominal, trained_output_stride),
        )
    )
    return trained_top - top, trained_left - left


def pick(features: Mapping[str, Any], key: str) -> Any:
    """Returns a feature; the error of an unknown key lists all keys."""
    if key not in features:
        raise InputError(
            f"The backbone has no feature `{key}`. "
            f"Received: features={sorted(features)}"
        )
    return features[key]


def as_features(model: keras.Model, output_stride: int) -> keras.Model:
    """Converts a functional model to a dense extractor with dict outputs.

    A keras-hub backbone has the features of its `pyramid_outputs`. A backbone
    with a pyramid that cannot be rewritten, e.g. with attention, is used as it
    is at its own stride.

    Args:
        model: functional `keras.Model`.
        output_stride: int, pixels per cell of the last feature map.

    Returns:
        `keras.Model`, images -> dict keyed by nominal stride.

    Raises:
        ValueError: the model has several inputs, or cannot have this output
            stride.
    """
    try:
        stated = model
        if has_pyramid(model):
            features = {**stage_ends(model), **pyramid_of(model)}
            stated = keras.Model(model.input, features, name=model.name)
        dense = with_output_stride(stated, output_stride)
    except InputError as error:
        dense = _as_it_is(model, output_stride, error)
    if len(dense.inputs) != 1:
        raise InputError(
            "A backbone must have one input, the image. Received: "
            f"{[tensor.name for tensor in dense.inputs]}"
        )
    if isinstance(dense.output, dict):
        return dense
    return keras.Model(dense.input, stage_ends(dense), name=dense.name)


def _as_it_is(model, output_stride, error):
    """Copies a backbone that cannot be rewritten, or raises `error`."""
    features = pyramid_of(model)
    own = [*features][-1:]
    if own == [f"stride_{output_stride}"]:
        return as_it_is(model)
    if own:
        raise InputError(
            f"{error} At its own stride, output_stride="
            f"{own[0].removeprefix('stride_')}, it is used as it is; "
            "models.DAFormer needs no other."
        ) from error
    raise error


def _nominal_strides(backbone):
    """Nominal stride of each feature, by its key."""
    return stated_strides(backbone) or output_strides(backbone)


def coarsest(backbone: keras.Model) -> str:
    """Returns `"stride_32"`, or else the key of the coarsest feature."""
    if LAST in backbone.output:
        return LAST
    if len(backbone.output) == 1:
        return next(iter(backbone.output))
    strides = _nominal_strides(backbone)
    return max(strides, key=strides.__getitem__)


def middle(
    backbone: keras.Model, high_level: str, key: str | None = None
) -> tuple[str, int]:
    """Returns the feature of an auxiliary head, and its nominal stride.

    Args:
        backbone: dense functional model with dict outputs.
        high_level: key of the feature that the head reads.
        key: of the feature to take, or `None` for the coarsest one that is
            finer than `high_level`: of stages down to stride 32, `stride_16`.

    Raises:
        ValueError: no such feature.
    """
    strides = _nominal_strides(backbone)
    if key is None:
        finer = [k for k in strides if strides[k] < strides[high_level]]
        if not finer:
            raise InputError(
                "An auxiliary head needs a feature of the backbone that is "
                f"finer than `{high_level}`. Received: features="
                f"{sorted(strides)}"
            )
        key = max(finer, key=strides.__getitem__)
    return key, pick(strides, key)


def end_at(backbone: keras.Model, key: str, output_stride: int) -> keras.Model:
    """Returns the backbone without the layers after a feature.

    Args:
        backbone: dense functional model with dict outputs.
        key: of the feature.
        output_stride: int, pixels per cell of the last feature map.

    Raises:
        ValueError: no such feature, or it is finer than `output_stride`.
    """
    pick(backbone.output, key)
    strides = _nominal_strides(backbone)
    if strides[key] < output_stride:
        raise InputError(
            "`output_stride` must be at most the stride of `high_level`. "
            f"Received: output_stride={output_stride}, high_level={key!r}"
        )
    kept = {
        name: tensor
        for name, tensor in backbone.output.items()
        if strides[name] <= strides[key]
    }
    return keras.Model(backbone.input, kept, name=backbone.name)
