"""keras-cv's augmentation layers, seeded statelessly, masks by nearest.

keras-cv's layers draw from a state, which a resumed run does not repeat, and
fill masks with the image's value, which is a class. Here each draw comes from
the example's own seed, and a layer that moves or covers pixels runs twice
with equal draws: bilinearly on the image, and by nearest neighbor, with
`ignore_label` for uncovered pixels, on the mask.
docs/decisions/0010-keras-cv.md lists what each layer does on its own.
"""

import difflib
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import sublayers
from keras_aspp.utils.types import Size, Tensor

# Outside the image: mid-gray, which is about zero after preprocessing.
FILL = 128

# Layers that change colors only.
COLOR = frozenset(
    {
        "AutoContrast",
        "ChannelShuffle",
        "Equalization",
        "Grayscale",
        "Posterization",
        "RandAugment",
        "RandomBrightness",
        "RandomChannelShift",
        "RandomColorDegeneration",
        "RandomColorJitter",
        "RandomContrast",
        "RandomGaussianBlur",
        "RandomHue",
        "RandomJpegQuality",
        "RandomSaturation",
        "RandomSharpness",
        "Solarization",
    }
)
# Layers that move or cover pixels.
GEOMETRIC = frozenset(
    {
        "GridMask",
        "RandomCropAndResize",
        "RandomCutout",
        "RandomFlip",
        "RandomRotation",
        "RandomShear",
        "RandomTranslation",
        "RandomZoom",
    }
)
# Layers without a random draw: applied to every image, they would be a
# preprocessing that evaluation does not repeat.
FIXED = frozenset(
    {"AutoContrast", "Equalization", "Grayscale", "Posterization"}
)

_MIXES = "it mixes the images of a batch; use RandomCutout"
_WRAPS = "it wraps other layers; list those, each with a `probability`"
# Layers that are refused -> the reason, and what to use.
REFUSED = {
    "AugMix": "it averages class ids; use RandAugment",
    "Augmenter": _WRAPS,
    "CutMix": "it draws from a state; use `data.augment.cutmix`",
    "FourierMix": _MIXES,
    "JitteredResize": "it pads masks with class 0; use `data.augment.scale`",
    "MixUp": "it averages class ids; use RandomCutout",
    "Mosaic": "it mixes the images of a batch; use `data.augment.scale`",
    "RandomApply": _WRAPS,
    "RandomAspectRatio": "it cannot change masks; use RandomCropAndResize",
    "RandomAugmentationPipeline": _WRAPS,
    "RandomChoice": _WRAPS,
    "RandomCrop": "`data.crop_size` and `data.augment.scale` crop already",
    "RepeatedAugmentation": "it changes the size of the batch",
    "Rescaling": "the model's preprocessing rescales",
    "Resizing": "`data.augment.scale` resizes already",
}

# Arguments that follow from the rest of the configuration.
_GIVEN = {
    "bins": 256,
    "bounding_box_format": None,
    "channels": 3,
    "fill_mode": "constant",
    "geometric": False,
    "groups": 3,
    "output_channels": 3,
    "seed": None,
    "segmentation_classes": None,
    "value_range": (0, 255),
}
_LARGEST = {"augmentations_per_image": 10, "kernel_size": 63}


def check_layers(layers: Mapping[str, Any]) -> None:
    """Raises `ValueError` in one line for layers that cannot be used.

    Args:
        layers: dict, name of a layer -> dict of its arguments, and
            `probability`.
    """
    for name, arguments in layers.items():
        if name not in COLOR | GEOMETRIC:
            raise InputError(_explain_unknown(name))
        _check_arguments(name, arguments)
        # Builds the layer, so that its own checks are run.
        AugmentLayer(name, arguments, (32, 32), 255)


def _explain_unknown(name):
    if name in REFUSED:
        return (
            f"`layers` cannot use keras-cv's {name}: {REFUSED[name]}. "
            f"Received: layers={{{name}: ...}}"
        )
    names = sorted(COLOR | GEOMETRIC)
    near = difflib.get_close_matches(str(name), names, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return (
        f"`layers` must name layers of keras-cv. {hint}"
        f"Valid names: {', '.join(names)}. Received: {name!r}"
    )


def _check_arguments(name, arguments):
    if not isinstance(arguments, dict):
        raise InputError(
            f"`layers.{name}` must be a mapping of arguments, {{}} for none. "
            f"Received: {name}={arguments!r}"
        )
    for key, value in arguments.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        numbers = [n for n in items if isinstance(n, (int, float))]
        limit = _LARGEST.get(key, 255)
        if not all(abs(n) <= limit for n in numbers):
            raise InputError(
                f"`layers.{name}.{key}` must be in -{limit}..{limit}. "
                f"Received: {key}={value}"
            )
        if key == "kernel_size" and any(n % 2 != 1 for n in numbers):
            # An even kernel is off center: it moves the image, not the mask.
            raise InputError(
                f"`layers.{name}.{key}` must be odd. Received: {key}={value}"
            )
    probability = arguments.get("probability", 1.0)
    if not isinstance(probability, (int, float)) or not 0 < probability <= 1:
        raise InputError(
            f"`layers.{name}.probability` must be in (0, 1]. "
            f"Received: probability={probability!r}"
        )
    if name in FIXED and probability == 1:
        raise InputError(
            f"`layers.{name}` draws nothing at random and is not applied at "
            "evaluation; give it a `probability` below 1. "
            f"Received: {name}={arguments}"
        )


class AugmentLayer:
    """A layer of keras-cv, applied to an image and its mask.

    Args:
        name: str, one of `COLOR` or `GEOMETRIC`.
        arguments: dict, the layer's own arguments, and `probability`, the
            share of images that it is applied to, in (0, 1], 1 by default.
        crop_size: `(height, width)` of the image, in pixels.
        ignore_label: int, label of uncovered pixels.

    Call arguments:
        image: float32 `[h, w, 3]` in 0..255.
        labels: int32 `[h, w]`, or uint8 `[h, w, K]`.
        seed: int `[2]`; the same seed gives the same result.

    Returns:
        `(float32 [h, w, 3] in 0..255, labels)`.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        crop_size: Size,
        ignore_label: int,
    ) -> None:
        import tensorflow as tf

        arguments = dict(arguments)
        self.probability: float = arguments.pop("probability", 1.0)
        self.draws: _Draws = _Draws()
        given = {"target_size": tuple(crop_size)}
        image_only = {"fill_value": FILL, "interpolation": "bilinear"}
        mask_only = {"fill_value": ignore_label, "interpolation": "nearest"}
        self.image_layer: Any = _build(
            name, arguments, given | image_only, self.draws
        )
        self.mask_layer: Any = None
        if name in GEOMETRIC:
            self.mask_layer = _build(
                name, arguments, given | mask_only, self.draws
            )
        # It reads floats as 0..1, whatever their values.
        self.white: float = 255.0 if name == "RandomJpegQuality" else 1.0
        # It pads with zeros, which would darken the rim.
        self.rim_px: int = 0
        if name == "RandomGaussianBlur":
            self.rim_px = max(self.image_layer.x, self.image_layer.y) // 2
        # Branches that are not taken draw in a graph, and not in eager mode.
        self._traced: Any = tf.function(self._apply)

    def __call__(
        self, image: Tensor, labels: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        import tensorflow as tf

        if self.probability == 1:
            return self._traced(image, labels, seed)
        own_seed = tf.random.experimental.stateless_fold_in(seed, -1)
        return tf.cond(
            tf.random.stateless_uniform((), own_seed) < self.probability,
            lambda: self._traced(image, labels, seed),
            lambda: (image, labels),
        )

    def _apply(self, image, labels, seed):
        import tensorflow as tf

        shape, rim = image.shape, self.rim_px
        if rim:
            pad = [[rim, rim], [rim, rim], [0, 0]]
            image = tf.pad(image, pad, "SYMMETRIC")
        self.draws.restart(seed)
        image = self.image_layer(image / self.white) * self.white
        if rim:
            image = image[rim:-rim, rim:-rim]
        if self.mask_layer is not None:
            is_multilabel = len(labels.shape) == 3
            masks = tf.unstack(labels, axis=-1) if is_multilabel else [labels]
            masks = [self._moved(mask, seed, shape[:2]) for mask in masks]
            labels = tf.stack(masks, -1) if is_multilabel else masks[0]
        return tf.ensure_shape(image, shape), labels

    def _moved(self, mask, seed, shape):
        """Returns a mask, moved as the image of the same seed."""
        import tensorflow as tf

        self.draws.restart(seed)
        moved = self.mask_layer(tf.cast(mask, "float32")[..., None])
        return tf.ensure_shape(tf.cast(moved[..., 0], mask.dtype), shape)


def _build(name, arguments, given, draws):
    """A layer of keras-cv that draws from `draws`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras_cv
        import tensorflow as tf

    layer_type = getattr(keras_cv.layers, name)
    accepted = set(inspect.signature(layer_type).parameters) - {"kwargs"}
    given = {k: v for k, v in {**_GIVEN, **given}.items() if k in accepted}
    free = accepted - {*given, "auto_vectorize"}
    unknown = sorted(set(arguments) - free)
    if unknown:
        raise InputError(
            f"`layers.{name}` has no argument `{unknown[0]}`. Valid "
            f"arguments: {', '.join(sorted({*free, 'probability'}))}. "
            f"Received: {name}={arguments}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            # float32 under any global policy: masks are class ids.
            layer = layer_type(**arguments, **given, dtype="float32")
            _draw_from(layer, draws)
            # Keras calls a layer twice the first time, to build those in it.
            draws.restart(tf.constant([0, 0]))
            layer(tf.zeros((64, 64, 3)))
    except Exception as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"`layers.{name}` is refused by keras-cv: {message} "
            f"Received: {name}={arguments}"
        ) from None
    return layer


def _draw_from(layer, draws):
    """Replaces every source of random numbers in a layer by `draws`."""
    import keras_cv

    for inner in sublayers(layer):
        inner._random_generator = draws
        for key, value in [*vars(inner).items()]:
            if isinstance(value, keras_cv.core.FactorSampler):
                setattr(inner, key, draws.sampler(value))


class _Draws:
    """The part of `tf.random.Generator` that layers use, without a state.

    Each draw after `restart` has a seed of its own; two runs from one seed
    draw the same numbers.
    """

    def restart(self, seed):
        self._seed, self._count = seed, 0

    def _next_seed(self):
        import tensorflow as tf

        count, self._count = self._count, self._count + 1
        if not count:
            return self._seed
        # Out of the first seed, which branches of a graph can reach.
        return tf.random.experimental.stateless_fold_in(self._seed, count)

    def uniform(self, shape, minval=0, maxval=None, dtype="float32"):
        import tensorflow as tf

        maxval = 1 if maxval is None else maxval
        return tf.random.stateless_uniform(
            shape, self._next_seed(), minval, maxval, dtype
        )

    def normal(self, shape, mean=0.0, stddev=1.0, dtype="float32"):
        import tensorflow as tf

        return tf.random.stateless_normal(
            shape, self._next_seed(), mean, stddev, dtype
        )

    def sampler(self, factor):
        """A `keras_cv.core.FactorSampler` that draws from here."""
        import keras_cv
        import tensorflow as tf

        config = factor.get_config()

        def uniform(shape=(), dtype="float32"):
            return self.uniform(shape, config["lower"], config["upper"], dtype)

        def normal(shape=(), dtype="float32"):
            drawn = self.normal(shape, config["mean"], config["stddev"], dtype)
            return tf.clip_by_value(
                drawn, config["min_value"], config["max_value"]
            )

        core = keras_cv.core
        if isinstance(factor, core.UniformFactorSampler):
            return uniform
        return (
            normal if isinstance(factor, core.NormalFactorSampler) else factor
        )


def blur_arguments(sigma: float) -> dict[str, Any]:
    """Arguments of RandomGaussianBlur that reach three sigma to each side."""
    return {"kernel_size": 2 * math.ceil(3 * sigma) + 1, "factor": sigma}
