"""Augmentation of one picture and its mask, stateless.

Flip, brightness, contrast, saturation and hue are the deterministic halves
(`transform_images`) of Keras' layers, with parameters drawn here by
`tf.random.stateless_uniform`: Keras' own draws keep a state, which a resumed
run would not repeat. Blur is that of keras-cv's layer (`augment_image`).
Scaling and cropping with a fill of `ignore_label` is one projective transform
of ours: Keras and keras-cv fill masks with the picture's value, which is a
class (tests/data/test_augment.py shows which layer does what).
"""

import dataclasses
import math

import keras

# Outside the picture: mid-grey, which is about zero after preprocessing.
FILL = 127.5


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training pictures; every draw is uniform.

    Args:
        scale: `(low, high)`, factors > 0 on both sides of the picture.
        flip: bool. Left to right with probability 0.5.
        brightness: float in [0, 1], largest shift as a share of 255.
        contrast: float in [0, 1), largest relative change.
        saturation: float in [0, 1), largest relative change.
        hue: float in [0, 0.5], largest turn of the colour circle.
        blur: float in [0, 10], largest standard deviation of a Gaussian
            blur, in pixels of the crop. Off at 0.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    brightness: float = 0.1
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    blur: float = 0.0

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(
                "`scale` must be (low, high) with 0 < low <= high. "
                f"Received: scale={self.scale}"
            )
        limits = {"brightness": 1, "contrast": 1, "saturation": 1}
        for name, limit in {**limits, "hue": 0.5, "blur": 10}.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(
                    f"`{name}` must be in [0, {limit}]. "
                    f"Received: {name}={value}"
                )


class Augment:
    """`(image, labels, seed)` -> a random crop of them.

    Args:
        config: `AugmentConfig`.
        crop_size: `(height, width)` of the result, in pixels.
        ignore_label: int, label of what lies outside the picture.

    Call arguments:
        image: uint8 `[H, W, 3]`.
        labels: int32 `[H, W]`.
        seed: int `[2]`; the same seed gives the same crop.

    Returns:
        `(float32 [h, w, 3] in 0..255, int32 [h, w])`.
    """

    def __init__(self, config, crop_size, ignore_label):
        self.config, self.ignore_label = config, ignore_label
        self.crop_size = tuple(crop_size)
        self.flip = keras.layers.RandomFlip("horizontal")
        color = {"value_range": (0, 255)}
        self.brightness = keras.layers.RandomBrightness(1.0, **color)
        self.contrast = keras.layers.RandomContrast(0.5, **color)
        self.saturation = keras.layers.RandomSaturation(0.5, (0, 1))
        self.hue = keras.layers.RandomHue(0.5, **color)
        # Reaches three standard deviations to either side.
        self.blur_radius_px = math.ceil(3 * config.blur)
        if config.blur:
            import keras_cv

            self.blur = keras_cv.layers.RandomGaussianBlur(
                2 * self.blur_radius_px + 1, factor=config.blur
            )

    def __call__(self, image, labels, seed):
        import tensorflow as tf

        draw = tf.random.stateless_uniform((8,), seed)
        image, labels = self._crop(image, labels, draw[:3])
        if self.config.flip:
            flips = {"flips": tf.reshape(draw[3] < 0.5, (1, 1, 1))}
            image = self.flip.transform_images(image, flips)
            # Keras returns masks as float32; class ids below 2^24 survive.
            mask = self.flip.transform_segmentation_masks(
                labels[..., None], flips
            )
            labels = tf.cast(mask[..., 0], "int32")
        if self.config.blur:
            # A stream of its own: switched on, it changes no other draw.
            own_seed = tf.random.experimental.stateless_fold_in(seed, 1)
            image = self._blur(image, tf.random.stateless_uniform((), own_seed))
        return self._recolor(image, draw[4:] * 2 - 1), labels

    def _blur(self, image, draw):
        """`draw`: a number in [0, 1)."""
        import tensorflow as tf

        radius = self.blur_radius_px
        sigma = tf.maximum(draw * self.config.blur, keras.config.epsilon())
        kernel = self.blur.get_kernel(sigma, 2 * radius + 1)
        transformation = (
            tf.reshape(kernel, (-1, 1, 1, 1)),
            tf.reshape(kernel, (1, -1, 1, 1)),
        )
        # keras-cv pads with zeros, which would darken the rim.
        pad = [[radius, radius], [radius, radius], [0, 0]]
        image = tf.pad(image, pad, "SYMMETRIC")
        image = self.blur.augment_image(image, transformation=transformation)
        return image[radius:-radius, radius:-radius]

    def _crop(self, image, labels, draw):
        import tensorflow as tf

        low, high = self.config.scale
        scale = low + (high - low) * draw[0]
        size = tf.cast(tf.shape(labels), "float32") * scale
        room = size - tf.constant(self.crop_size, "float32")
        # A picture smaller than the crop is centred in it.
        offset = tf.where(room > 0, draw[1:3] * room, room / 2)
        # Half-pixel centres: output pixel i shows (i + 0.5 + o) / s - 0.5.
        shift = (offset + 0.5) / scale - 0.5
        zero = tf.zeros(())
        transform = tf.stack(
            [1 / scale, zero, shift[1], zero, 1 / scale, shift[0], zero, zero]
        )[None]
        parts = []
        for x, how, fill in (
            (image, "BILINEAR", FILL),
            (labels[..., None], "NEAREST", float(self.ignore_label)),
        ):
            part = tf.raw_ops.ImageProjectiveTransformV3(
                images=tf.cast(x, "float32")[None],
                transforms=transform,
                output_shape=self.crop_size,
                fill_value=fill,
                interpolation=how,
                fill_mode="CONSTANT",
            )[0]
            parts.append(part)
        image, mask = parts
        return image, tf.cast(mask[..., 0], "int32")

    def _recolor(self, image, draw):
        """`draw`: four numbers in [-1, 1]."""
        import tensorflow as tf

        config = self.config
        if config.brightness:
            delta = draw[0] * config.brightness * 255
            image = self.brightness.transform_images(
                image, {"rgb_delta": delta}
            )
        if config.contrast:
            factor = 1 + draw[1] * config.contrast
            image = self.contrast.transform_images(
                image, {"contrast_factor": factor}
            )
        if config.saturation:
            factor = 1 + draw[2] * config.saturation
            # This layer wants a batch, and leaves 0..1 in HSV to the caller.
            image = self.saturation.transform_images(
                image[None] / 255, {"factor": factor[None]}
            )[0]
            image = image * 255
        if config.hue:
            image = self.hue.transform_images(
                image[None], {"factor": draw[3:] * config.hue}
            )[0]
        return tf.clip_by_value(image, 0.0, 255.0)
