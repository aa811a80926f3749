"""Loss and class weights of a `LossConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_aspp import losses
from keras_aspp.config.schema import LossConfig
from keras_aspp.data.sources import Source
from keras_aspp.data.statistics import count_classes
from keras_aspp.utils.exceptions import InputError


def build_loss(
    config: LossConfig,
    ignore_label: int,
    class_weights: Sequence[float] | None = None,
    shared: bool = False,
    task: str = "semantic",
) -> keras.losses.Loss:
    """Builds the loss of a `LossConfig`.

    Args:
        config: `LossConfig`.
        ignore_label: int, label of ignored pixels.
        class_weights: floats, one for each class, of the cross entropy; see
            `resolve_class_weights`.
        shared: bool. Use losses of `keras_aspp.losses` only, which can be
            normalized over several devices.
        task: `"binary"` measures overlap of the object alone, by Dice,
            Tversky and the Lovász hinge; `"multilabel"` is the mean of that
            over classes, weighted by `class_weights`.

    Returns:
        `keras.losses.Loss` of labels (B, H, W) and logits (B, H, W, K); of a
        multilabel task, both are (B, H, W, K).
    """
    if task == "multilabel":
        of_class = build_loss(config, ignore_label, None, True, "binary")
        return losses.PerClass(of_class, class_weights)
    config = config.with_defaults(task)
    plain = config == LossConfig(dice=0.0) and class_weights is None
    if plain and not shared:
        return keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=ignore_label
        )
    cross_entropy = losses.CrossEntropy(
        ignore_label,
        class_weights=class_weights,
        focal_gamma=config.focal_gamma,
        label_smoothing=config.label_smoothing,
        hard_share=config.hard_share,
        boundary_weight=config.boundary_weight,
        boundary_px=config.boundary_px,
    )
    of_object = (0.0, 1.0) if task == "binary" else None
    lovasz = losses.LovaszSoftmax(ignore_label)
    if task == "binary":
        lovasz = losses.LovaszHinge(ignore_label)
    tversky = losses.Tversky(
        ignore_label, config.tversky_alpha, config.tversky_beta, of_object
    )
    parts = [
        (cross_entropy, config.cross_entropy),
        (losses.Dice(ignore_label, of_object), config.dice),
        (tversky, config.tversky),
        (lovasz, config.lovasz),
    ]
    # Losses of weight 0 are not computed.
    return losses.WeightedSum(
        *zip(*[(loss, weight) for loss, weight in parts if weight], strict=True)
    )


def resolve_class_weights(
    config: LossConfig, source: Source, split: str
) -> list[float] | None:
    """Resolves class weights to numbers.

    Args:
        config: `LossConfig`.
        source: `FolderSource` or `TfdsSource`.
        split: the training split, whose pixels are counted if needed.

    Returns:
        list of floats, or `None`.

    Raises:
        ValueError: weights are given, but not one for each class.
    """
    if config.class_weights == "median_frequency":
        counts = count_classes(source, split)
        weights = losses.median_frequency_weights(
            counts.pixels, counts.pixels_of_images
        )
    elif config.class_weights == "effective_number":
        counts = count_classes(source, split)
        weights = losses.effective_number_weights(counts.images)
    else:
        weights = config.class_weights
    if weights is None:
        return None
    if len(weights) != source.spec.num_classes:
        raise InputError(
            "`class_weights` must hold one weight for each class. Received: "
            f"{len(weights)} weights, classes={list(source.spec.class_names)}"
        )
    return [float(weight) for weight in weights]
