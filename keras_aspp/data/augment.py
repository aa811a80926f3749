"""Augmentation of one image and its mask, stateless.

Scale, flip and crop are one sampling of the image as it was decoded, and all
changes of color one linear map: pixels outside the crop cost nothing. Blur, and
whatever else `AugmentConfig.layers` lists, are keras-cv's layers
(`augment_layers`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_aspp.data.augment_layers import (
    COLOR,
    FILL,
    AugmentLayer,
    blur_arguments,
    check_layers,
)
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Size, Tensor

# Crops larger than the images by this factor of area are reported.
TIMES_TOO_LARGE = 1.5

# Streams of random numbers, apart from those of `AugmentConfig.layers`.
_VERTICAL_FLIP, _RARE_CLASS, _ROTATION, _ERASING, _MIX = range(1001, 1006)
# Share of a crop's height and width that `AugmentConfig.erasing` covers.
_ERASED = {"height_factor": (0.1, 0.5), "width_factor": (0.1, 0.5)}

# Images of up to this many times the area of a crop are cast to float32.
_CAST_UP_TO = 4

# RGB to luma and the two axes of color (NTSC).
_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]],
    "float32",
)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; every draw is uniform.

    Args:
        scale: `[low, high]`, range of the resize factor, > 0.
        flip: mirror left to right with probability 0.5.
        brightness: largest shift as a share of 255, in [0, 1].
        contrast: largest relative change about the mean of the crop, in
            [0, 1).
        saturation: largest relative change about the luma, in [0, 1).
        hue: largest rotation of the color wheel at constant luma, in
            [0, 0.5].
        blur: largest standard deviation of a Gaussian blur, in pixels of the
            crop, in [0, 10]; 0 turns it off.
        layers: layers of keras-cv, applied in this order to crops: name ->
            their arguments, and `probability`, the share of crops that they
            change, 1 by default, e.g. `{RandomHue: {factor: 0.1}}`, or `null`.
            docs/data.md lists them.
        vertical_flip: mirror top to bottom with probability 0.5.
        rotation: largest angle to either side, in degrees, in [0, 180];
            uncovered pixels are ignored.
        erasing: probability that a rectangle of a crop, of 10 to 50 % of its
            height and width, is covered and ignored.
        rare_class_crops: probability that a crop is placed around a pixel of
            a class drawn from those in its image, all equally likely: a class
            of few pixels is as likely to be shown as a large one.
        cutmix: probability that a rectangle is replaced by that of the next
            crop of the batch, with its labels.
        classmix: probability that half of the classes of the next crop of the
            batch are pasted, with their labels; of classes that overlap, the
            union of their masks, with the labels of all classes there.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    brightness: float = 0.1
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    blur: float = 0.0
    layers: dict[str, dict[str, Any]] | None = None
    vertical_flip: bool = False
    rotation: float = 0.0
    erasing: float = 0.0
    rare_class_crops: float = 0.0
    cutmix: float = 0.0
    classmix: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise InputError(
                "`scale` must be (low, high) with 0 < low <= high. "
                f"Received: scale={self.scale}"
            )
        shares = (
            *("brightness", "contrast", "saturation", "erasing"),
            *("rare_class_crops", "cutmix", "classmix"),
        )
        limits = {**dict.fromkeys(shares, 1), "hue": 0.5, "blur": 10}
        for name, limit in {**limits, "rotation": 180}.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise InputError(
                    f"`{name}` must be in [0, {limit}]. "
                    f"Received: {name}={value}"
                )
        check_layers(self.layers or {})


def padding_note(
    sizes: Mapping[tuple[int, int], int],
    crop_size: Size,
    scale: Sequence[float],
) -> str | None:
    """Returns a note if crops are mostly padding.

    Args:
        sizes: dict, `(height, width)` -> how many images have it.
        crop_size: `(height, width)`.
        scale: `AugmentConfig.scale`.

    Returns:
        str, or `None` if a smaller crop would cost about as much.
    """
    if not sizes:
        return None
    median = np.median(np.repeat([*sizes], [*sizes.values()], axis=0), axis=0)
    enlarged = median * sum(scale) / 2
    fitting = np.minimum(32 * np.ceil(enlarged / 32).astype(int), crop_size)
    times = np.prod(crop_size) / np.prod(fitting)
    if times < TIMES_TOO_LARGE:
        return None
    stored, shown, crop, better = (
        f"{height:.0f}x{width:.0f}"
        for height, width in (median, enlarged, crop_size, fitting)
    )
    return (
        f"images of {stored} (median), {shown} after an average "
        f"`data.augment.scale`, leave crops of {crop} mostly padding; a step "
        f"takes about {times:.1f} times as long as with {better}: "
        f"`--data.crop_size [{fitting[0]},{fitting[1]}]`"
    )


class Augment:
    """Random crop and recoloring of an image and its labels.

    Args:
        config: `AugmentConfig`.
        crop_size: `(height, width)` of the result, in pixels.
        ignore_label: int, label of pixels outside the image.

    Call arguments:
        image: `[H, W, C]` on the scale of 0..255; uint8, or float32 that may
            exceed it.
        labels: int32 `[H, W]`, or uint8 `[H, W, K]` of a multilabel task.
        seed: int `[2]`; the same seed gives the same crop.

    Returns:
        `(float32 [h, w, C], labels [h, w] or [h, w, K])`; pixels of a uint8
        image in 0..255. Saturation, hue and `layers` change RGB only.
    """

    def __init__(
        self, config: AugmentConfig, crop_size: Size, ignore_label: int
    ) -> None:
        self.config: AugmentConfig = config
        self.ignore_label: int = ignore_label
        self.crop_size: tuple[int, ...] = tuple(crop_size)
        blur = config.blur and (
            "RandomGaussianBlur",
            blur_arguments(config.blur),
        )
        # Each has a stream of random numbers of its own: switched on, it
        # changes no other draw.
        chosen = dict(enumerate([blur, *(config.layers or {}).items()], 1))
        chosen[_ROTATION] = config.rotation and (
            "RandomRotation",
            {"factor": config.rotation / 360},
        )
        chosen[_ERASING] = config.erasing and (
            "RandomCutout",
            {**_ERASED, "probability": config.erasing},
        )
        self.layers: dict[int, AugmentLayer] = {
            stream: AugmentLayer(*layer, self.crop_size, ignore_label)
            for stream, layer in chosen.items()
            if layer
        }

    def __call__(
        self, image: Tensor, labels: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        import tensorflow as tf

        draw = tf.random.stateless_uniform((8,), seed)
        if image.shape[-1] != 3 or image.dtype != tf.uint8:
            self._check_layers(image)
        # A range of values that excludes extremes must not clip them in
        # training alone.
        clip = image.dtype == tf.uint8
        image, labels = self._crop(image, labels, draw[:4], seed)
        for stream, layer in self.layers.items():
            own_seed = tf.random.experimental.stateless_fold_in(seed, stream)
            image, labels = layer(image, labels, own_seed)
        return self._recolor(image, draw[4:] * 2 - 1, clip), labels

    def _check_layers(self, image):
        """Raises for layers that take RGB in 0..255 only."""
        layers = (self.config.layers or {}).keys()
        colored = sorted(layers & COLOR - {"RandomGaussianBlur"})
        if colored:
            raise InputError(
                "`data.augment.layers` may change colors of 8-bit RGB only; "
                "brightness, contrast, blur and layers of geometry change "
                f"other images. Received: {', '.join(colored)} for "
                f"{image.shape[-1]} bands of {image.dtype.name}"
            )

    def _crop(self, image, labels, draw, seed):
        """`draw`: four numbers in [0, 1): scale, row, column, flip."""
        import tensorflow as tf

        low, high = self.config.scale
        scale = low + (high - low) * draw[0]
        size = tf.cast(tf.shape(labels)[:2], "float32")
        crop = tf.constant(self.crop_size, "float32")
        room = size * scale - crop
        # An image smaller than the crop is centered in it.
        offset = draw[1:3] * room
        if self.config.rare_class_crops:
            offset = self._around_class(labels, scale, room, offset, seed)
        offset = tf.where(room > 0, offset, room / 2)
        # Half-pixel centers: output pixel i shows (i + 0.5 + o) / s - 0.5; a
        # rim of one pixel lets the fill begin where the image ends.
        first, last = (
            ((i + 0.5 + offset) / scale + 0.5) / (size + 1)
            for i in (0.0, crop - 1)
        )
        across = self.config.flip and draw[3] < 0.5
        down = self.config.vertical_flip and (
            tf.random.stateless_uniform((), _stream(seed, _VERTICAL_FLIP)) < 0.5
        )
        turn = tf.stack([tf.cast(down, "float32"), tf.cast(across, "float32")])
        box = tf.concat(
            [first + turn * (last - first), last + turn * (first - last)], 0
        )
        is_multilabel = len(labels.shape) == 3
        mask = labels if is_multilabel else tf.cast(labels, "uint8")[..., None]
        image = self._sample(image, box, "bilinear", FILL)
        mask = self._sample(mask, box, "nearest", self.ignore_label)
        mask = mask if is_multilabel else mask[..., 0]
        return image, tf.cast(mask, labels.dtype)

    def _sample(self, x, box, method, fill):
        """Resizes the box of `x` to the crop; `fill` surrounds `x`."""
        import tensorflow as tf

        x = tf.pad(x, [[1, 1], [1, 1], [0, 0]], constant_values=fill)

        def sample(x):
            return tf.image.crop_and_resize(
                x[None],
                box[None],
                [0],
                self.crop_size,
                method=method,
                extrapolation_value=fill,
            )[0]

        if method == "nearest":
            return sample(x)
        # The kernel samples float32 faster, with the same result. The cast
        # costs more than that in images much larger than the crop.
        area = tf.reduce_prod(tf.shape(x, "int64")[:2])
        return tf.cond(
            area <= _CAST_UP_TO * math.prod(self.crop_size),
            lambda: sample(tf.cast(x, "float32")),
            lambda: sample(x),
        )

    def _around_class(self, labels, scale, room, offset, seed):
        """Moves a crop to a pixel of a class, at a random place in the crop.

        `offset / room` stays that place: 0 shows the pixel at the end of the
        crop that is nearest to the image's origin.
        """
        import tensorflow as tf

        draw = tf.random.stateless_uniform((3,), _stream(seed, _RARE_CLASS))
        if len(labels.shape) == 3:
            present = tf.reduce_any(labels == 1, axis=(0, 1))
        else:
            flat = tf.reshape(labels, [-1])
            counts = tf.math.bincount(flat, minlength=256, maxlength=256)
            # A boolean mask of the classes, without the ignored label.
            present = (counts > 0) & (tf.range(256) != self.ignore_label)
        classes = tf.where(present)[:, 0]

        def around_pixel():
            class_id = _pick(classes, draw[1])
            if len(labels.shape) == 3:
                pixels = tf.where(tf.gather(labels, class_id, axis=-1) == 1)
            else:
                pixels = tf.where(tf.cast(labels, "int64") == class_id)
            pixel = tf.cast(_pick(pixels, draw[2]), "float32")
            place = tf.math.divide_no_nan(offset, room)
            crop = tf.constant(self.crop_size, "float32")
            around = (pixel + 0.5) * scale - place * crop
            return tf.clip_by_value(around, 0.0, tf.maximum(room, 0.0))

        chosen = draw[0] < self.config.rare_class_crops
        return tf.cond(
            chosen & (tf.size(classes) > 0), around_pixel, lambda: offset
        )

    def mix(
        self, images: Tensor, labels: Tensor, seeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pastes parts of each next crop of a batch: CutMix and ClassMix.

        Args:
            images: float32 `[B, h, w, channels]`.
            labels: int32 `[B, h, w]`, or uint8 `[B, h, w, K]`.
            seeds: int `[B, 2]`, those of the crops.

        Returns:
            The same shapes. Without `cutmix` and `classmix`, the arguments.

        References:
            [Yun et al., 2019](https://arxiv.org/abs/1905.04899): a rectangle
            of a uniform share of the area, clipped to the image.
            [Olsson et al., 2021](https://arxiv.org/abs/2007.07936), here with
            ground truth instead of pseudo-labels. For classes that overlap,
            which it does not cover, the pixels of any chosen class are
            pasted, with their labels of all classes; pixels of no class stay.
        """
        import tensorflow as tf

        if not self.mixes:
            return images, labels
        other_images, other_labels = (
            tf.roll(x, -1, axis=0) for x in (images, labels)
        )
        draws = tf.map_fn(
            lambda seed: tf.random.stateless_uniform(
                (_NUM_MIX_DRAWS,), _stream(seed, _MIX)
            ),
            seeds,
            fn_output_signature="float32",
        )
        cut = _rectangles(draws[:, :3], self.crop_size)
        cut &= (draws[:, 3] < self.config.cutmix)[:, None, None]
        is_multilabel = len(labels.shape) == 4
        if is_multilabel:
            of_class = _masks_of_half(other_labels, draws[:, 5:])
        else:
            of_class = _half_of_classes(
                other_labels, draws[:, 5:], self.ignore_label
            )
        of_class &= (draws[:, 4] < self.config.classmix)[:, None, None]
        pasted = cut | of_class
        return (
            tf.where(pasted[..., None], other_images, images),
            tf.where(
                pasted[..., None] if is_multilabel else pasted,
                other_labels,
                labels,
            ),
        )

    @property
    def mixes(self) -> bool:
        """True if `mix` changes batches."""
        return bool(self.config.cutmix or self.config.classmix)

    def _recolor(self, image, draw, clip):
        """`draw`: four numbers in [-1, 1]."""
        import tensorflow as tf

        config = self.config
        shift = draw[0] * config.brightness * 255
        stretch = 1 + draw[1] * config.contrast
        # Contrast scales about the mean after the brightness shift.
        mean = tf.reduce_mean(image, axis=(0, 1))
        moved = mean * (1 - stretch) + shift
        if image.shape[-1] != 3:
            image = image * stretch + moved
            return _clip(image) if clip else image
        vivid = 1 + draw[2] * config.saturation
        angle = draw[3] * config.hue * 2 * math.pi
        along, across = vivid * tf.cos(angle), vivid * tf.sin(angle)
        turn = tf.stack(
            [1.0, 0.0, 0.0, 0.0, along, -across, 0.0, across, along]
        )
        colors = np.linalg.inv(_YIQ) @ tf.reshape(turn, (3, 3)) @ _YIQ
        image = tf.tensordot(image, stretch * tf.transpose(colors), 1)
        # A row at a time, since TensorFlow broadcasts three channels slowly.
        shift = tf.linalg.matvec(colors, moved)
        image += tf.broadcast_to(shift, tf.shape(image)[1:])
        return _clip(image) if clip else image


# Area, row and column of CutMix, the chances of both, an order of 256 classes.
_NUM_MIX_DRAWS = 5 + 256


def _clip(image):
    """Clips to 0..255, in one pass unlike `tf.clip_by_value`."""
    import tensorflow as tf

    return tf.raw_ops.ClipByValue(
        t=image, clip_value_min=0.0, clip_value_max=255.0
    )


def _stream(seed, stream):
    """A seed of its own for each kind of draw."""
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(seed, stream)


def _pick(items, draw):
    """Item of a nonempty tensor, by a number in [0, 1)."""
    import tensorflow as tf

    count = tf.shape(items)[0]
    index = tf.cast(draw * tf.cast(count, "float32"), "int32")
    return items[tf.minimum(index, count - 1)]


def _rectangles(draws, size):
    """Bool `[B, h, w]` from `[B, 3]`: share of the area, row, column."""
    import tensorflow as tf

    inside = True
    for axis, length in enumerate(size):
        half = tf.sqrt(draws[:, 0]) * length / 2
        center = draws[:, 1 + axis] * length
        cells = tf.range(length, dtype="float32") + 0.5
        near = tf.abs(cells - center[:, None]) < half[:, None]
        inside &= near[:, :, None] if axis == 0 else near[:, None, :]
    return inside


def _half_of_classes(labels, order, ignore_label):
    """Bool `[B, h, w]`: pixels of half the classes of each, rounded up."""
    import tensorflow as tf

    flat = tf.reshape(labels, [tf.shape(labels)[0], -1])
    counts = tf.math.bincount(
        flat, minlength=256, maxlength=256, axis=-1, binary_output=True
    )
    present = (counts > 0) & (tf.range(256) != ignore_label)
    return tf.gather(_half_of(present, order), labels, batch_dims=1)


def _masks_of_half(labels, order):
    """Returns the union of the masks of half of the classes.

    Args:
        labels: `[B, h, w, K]`.
        order: float32 `[B, >= K]`; see `_half_of`.
    """
    import tensorflow as tf

    shown = labels == 1
    present = tf.reduce_any(shown, (1, 2))
    chosen = _half_of(present, order[:, : labels.shape[-1]])
    return tf.reduce_any(shown & chosen[:, None, None], -1)


def _half_of(present, order):
    """Bool `[B, K]`: half of the classes that are present, rounded up."""
    import tensorflow as tf

    order = tf.where(present, order, 2.0)
    num_chosen = (tf.reduce_sum(tf.cast(present, "int32"), -1) + 1) // 2
    rank = tf.argsort(tf.argsort(order, axis=-1), axis=-1)
    return present & (rank < num_chosen[:, None])
