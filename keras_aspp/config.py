"""Configuration: frozen dataclasses, read from YAML and the command line."""

import dataclasses
from typing import Literal

from keras_aspp.data.augment import AugmentConfig
from keras_aspp.data.folder import HELD_OUT


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Args:
        architecture: `deeplab_v2`, `deeplab_v3`, `deeplab_v3_cascaded`,
            `deeplab_v3_plus`, `dense_aspp` or `lr_aspp`. A field below that
            it does not have must keep its default.
        backbone: a name of `list_backbones()`.
        backbone_weights: `imagenet`, a weights file, or `none`. Environment
            variables in a path are expanded.
        weights: a saved segmenter to start from, or `none`.
        output_stride: 8, 16 or 32; pixels per cell at the ASPP.
        high_level: the feature under the head, e.g. `stride_16`, where the
            backbone then ends, or `none` for `stride_32`.
        input_scale: factor by which pictures are upsampled in front of the
            backbone; 2 finds smaller things at four times the cost.
        atrous_rates: ints > 0, in cells, or `auto`; `[]` for DeepLabV3's
            head for phones.
        aspp_filters: channels of the ASPP.
        separable: whether 3x3 convolutions of the head are separable.
        image_pooling: whether the ASPP has the image-level branch.
        dropout: rate before the classifier, in [0, 1).
        batch_norm: `train`; `freeze` to keep it as the weights have it;
            `sync`, over the devices of a strategy; `group` norm in the head,
            over a backbone that is frozen, or has group norm too if fresh.
        batch_norm_momentum: in [0, 1); short runs want a smaller one.
        decoder_filters: channels of DeepLabV3+'s decoder.
        decoder_kernel_sizes: of its convolutions.
        projection_filters: 1x1 channels on the low-level feature.
        decoder_stride: 4 or 2; pixels per score of DeepLabV3+.
        refine_filters: channels of a 3x3 convolution between DeepLabV3's ASPP
            and classifier, or `none`.
        multi_grid: rates within the last block, for DeepLabV3, or `none`.
        blocks: copies of the last block, for the cascade.
        pyramid: `large_fov`, `aspp_s` or `aspp_l`; the rates that `auto`
            means for DeepLabV2.
        fc_filters: channels of DeepLabV2's fc6 and fc7, or `none`.
        growth_filters: channels that each rate of DenseASPP adds.
        bottleneck_filters: channels before each rate of DenseASPP.
        gate_filters: channels that LR-ASPP gates.
    """

    architecture: Literal[
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
    atrous_rates: Literal["auto"] | list[int] = "auto"
    aspp_filters: int = 256
    separable: bool = True
    image_pooling: bool = True
    dropout: float = 0.1
    batch_norm: Literal["train", "freeze", "sync", "group"] = "train"
    batch_norm_momentum: float = 0.99
    decoder_filters: int = 256
    projection_filters: int = 48
    decoder_kernel_sizes: tuple[int, ...] = (3, 3)
    decoder_stride: int = 4
    refine_filters: int | None = None
    multi_grid: list[int] | None = None
    blocks: int = 3
    pyramid: Literal["large_fov", "aspp_s", "aspp_l"] = "aspp_l"
    fc_filters: int | None = None
    growth_filters: int = 64
    bottleneck_filters: int = 256
    gate_filters: int = 128


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pictures and masks come from.

    Args:
        root: folder of a folder data set, or `none`. Environment variables
            are expanded.
        tfds: name of a TFDS data set, or `none`. Exactly one of the two.
        data_dir: TFDS data directory, or `none` for TFDS' own.
        image_key: TFDS feature of the picture.
        mask_key: TFDS feature of the mask.
        class_names: for TFDS, and for a folder without `dataset.json`.
        ignore_label: label value that counts for nothing.
        label_map: stored value -> class or `ignore`.
        license: stands in the model card.
        train_split: split to train on.
        validation_split: split that selects the best model; `null` holds out
            images of `train_split`, where the data is a folder.
        test_split: split for the final number, or `none`.
        validation_fraction: in (0, 1), the share that is held out of a folder
            without split folders, or with `validation_split: null`.
        crop_size: `[height, width]` of training crops, multiples of 32.
        augment: random changes of training pictures.
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
    train_split: str = "train"
    validation_split: str | None = "val"
    test_split: str | None = None
    validation_fraction: float = 0.1
    crop_size: tuple[int, int] = (320, 320)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def __post_init__(self):
        if self.validation_split is None:
            object.__setattr__(self, "validation_split", HELD_OUT)
        if any(type(n) is not int or n < 32 or n % 32 for n in self.crop_size):
            raise ValueError(
                "`crop_size` must be two multiples of 32. "
                f"Received: crop_size={self.crop_size}"
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "`validation_fraction` must be in (0, 1). Received: "
                f"validation_fraction={self.validation_fraction}"
            )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimized: a sum of losses.

    Args:
        cross_entropy: weight of the cross entropy, >= 0.
        dice: weight of the Dice loss.
        tversky: weight of the Tversky loss.
        lovasz: weight of the Lovász-softmax loss.
        class_weights: of the cross entropy: one float for each class, or
            `median_frequency` or `effective_number` of the training split, or
            `none`.
        focal_gamma: of the cross entropy; 2 is the focal loss, 0 none.
        label_smoothing: of the cross entropy, in [0, 1).
        hard_share: share of the pixels that the cross entropy counts, those
            of the highest loss, in (0, 1].
        boundary_weight: by which the cross entropy counts pixels near another
            label.
        boundary_px: how near that is.
        tversky_alpha: price of false positives.
        tversky_beta: price of false negatives.
    """

    cross_entropy: float = 1.0
    dice: float = 0.0
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

    def __post_init__(self):
        weights = {
            name: getattr(self, name)
            for name in ("cross_entropy", "dice", "tversky", "lovasz")
        }
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(
                "Weights of losses must be >= 0, and one of them > 0. "
                f"Received: {weights}"
            )


# Fields of TrainConfig of which exactly one is given.
DURATIONS = ("total_epochs", "total_steps", "total_examples")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How it is trained.

    Args:
        total_epochs: passes over the training split; exactly one of the three
            durations is given.
        total_steps: optimizer batches.
        total_examples: pictures seen.
        batch_size: pictures per step, of all devices together.
        accumulate_steps: steps whose gradients are averaged to one update.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        loss: see `LossConfig`.
        learning_rate: peak of the schedule.
        schedule_power: of the polynomial decay to 0.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled, per update as a share of the learning rate;
            not on batch norm and biases.
        backbone_learning_rate_factor: learning rate of the backbone's
            weights, relative; needs `optimizer: sgd`.
        ema_momentum: of a moving average of the weights, which is what is
            validated and kept, in (0, 1), or `none`.
        recalibrate_steps: batches of which the best model's batch-norm
            statistics are taken anew at the end; they are kept if validation
            is no worse.
        lr_finder: instead of training, try learning rates and plot the loss
            over them.
        jit_compile: XLA: `auto` (on a GPU only), `true` or `false`.
        precision: Keras dtype policy.
        rematerialize: compute the backbone's activations twice instead of
            keeping them: less memory, more time.
        strategy: devices that share each batch: `none`, one; `mirrored`, all of
            this machine; `multi_worker`, all of several machines.
        seed: of weights, batches and augmentation.
        early_stopping_epochs: epochs without a better validation mean IoU
            after which the run ends, or `none`.
        validate_every_epochs: epochs between two validations.
        keep_checkpoints: how many of the newest stay.
        checkpoint_steps: steps between two checkpoints within an epoch, or
            `none` for those at the end of epochs only.
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
    recalibrate_steps: int = 0
    lr_finder: bool = False
    jit_compile: Literal["auto"] | bool = "auto"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    rematerialize: bool = False
    strategy: Literal["none", "mirrored", "multi_worker"] = "none"
    seed: int = 0
    early_stopping_epochs: int | None = None
    validate_every_epochs: int = 1
    keep_checkpoints: int = 2
    checkpoint_steps: int | None = None

    def __post_init__(self):
        given = {d: v for d in DURATIONS if (v := getattr(self, d)) is not None}
        if len(given) != 1:
            raise ValueError(
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
                ["checkpoint_steps"]
                if self.checkpoint_steps is not None
                else []
            ),
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be > 0. "
                    f"Received: {name}={getattr(self, name)}"
                )
        for name in ("learning_rate", "backbone_learning_rate_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` must be > 0. "
                    f"Received: {name}={getattr(self, name)}"
                )

        if self.ema_momentum is not None and not 0 < self.ema_momentum < 1:
            raise ValueError(
                "`ema_momentum` must be in (0, 1), or none. "
                f"Received: ema_momentum={self.ema_momentum}"
            )
        if self.recalibrate_steps < 0:
            raise ValueError(
                "`recalibrate_steps` must be >= 0. "
                f"Received: recalibrate_steps={self.recalibrate_steps}"
            )

    def duration(self, num_examples):
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
        return epochs, -(-steps // epochs)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What leaves the house.

    Args:
        image_size: `[height, width]` of the TFLite files.
        formats: of `saved_model`, `tflite_float32`, `tflite_float16`,
            `tflite_dynamic_range`, `tflite_int8`, `tflite_any_size`,
            `tflite_logits` (for MediaPipe), `onnx`.
        calibration_images: how many pictures of the training split, spread
            over it, `tflite_int8` takes its ranges from.
        max_int8_loss: points of mean IoU that `tflite_int8` may lose.
        more_image_sizes: further sizes of the TFLite files, `_HxW` in their
            names.
        coarse_labels: label the scores and repeat labels, instead of resizing
            scores: faster, for fractions of a point.
        verify_images: how many pictures artefacts are compared on.
        preview_image: picture for `preview.png`, or `none` for one of the
            data set.
        preview_note: what the card says of it (its author and licence).
    """

    image_size: tuple[int, int] = (513, 513)
    formats: tuple[
        Literal[
            "saved_model",
            "tflite_float32",
            "tflite_float16",
            "tflite_dynamic_range",
            "tflite_int8",
            "tflite_any_size",
            "tflite_logits",
            "onnx",
        ],
        ...,
    ] = ("saved_model", "tflite_float32", "tflite_float16")
    calibration_images: int = 64
    max_int8_loss: float = 1.0
    more_image_sizes: list[tuple[int, int]] = dataclasses.field(
        default_factory=list
    )
    coarse_labels: bool = False
    verify_images: int = 8
    preview_image: str | None = None
    preview_note: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Args:
        model: see `ModelConfig`.
        data: see `DataConfig`.
        train: see `TrainConfig`.
        export: see `ExportConfig`.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(total_epochs=30)
    )
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
