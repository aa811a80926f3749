"""Multiscale shapes: a generated data set that requires context.

Figures of one kind come at more than ten sizes, and figures and background
wear textures of one and the same family. A pixel's color and texture thus say
nothing about its class: inside a large figure, only features that reach its
outline do. Nothing is downloaded; every example is drawn from the seeds
`(split, index)` alone, so that it does not depend on how many there are.
`multiscale_shapes_large` is the same at twice the size.

    import keras_aspp.data.datasets.multiscale_shapes  # registers the name
    tfds.load("multiscale_shapes", split="train", as_supervised=True)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from keras_aspp.utils.deprecation import renamed_arguments
from keras_aspp.utils.exceptions import InputError

CLASS_NAMES = (
    "background",
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
)
IMAGE_SIZE_PX = 128
SIZES_PX = (9.0, 96.0)  # diameter of the enclosing circle, log-uniform
MAX_FIGURES = 5
MIN_VISIBLE = 0.4  # of each figure's own area, border and occlusion together
MAX_CUT = 0.2  # of the diameter, beyond each border of the image
MIN_CONTRAST = 50.0  # RGB distance; see draw_textures
NOISE = 4.0  # standard deviation of the sensor noise, in gray levels

_SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}
_SUPERSAMPLE = 3
_BLOCK_PX = 4  # contrast is measured between means over blocks of this side
_PLACEMENTS = 40  # tried before a figure is dropped


def _rotated_grid(rng, side):
    """Pixel coordinates under a random rotation and a random shift."""
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, 100)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    grid = np.arange(side, dtype=np.float32) - side / 2
    x, y = grid[None, :], grid[:, None]
    return cos * x + sin * y + shift, cos * y - sin * x + shift


def _wave(x, period):
    """Signed distance in pixels, nearly, to the edges of a square wave."""
    return np.sin(x * (2 * np.pi / period)) * (period / (2 * np.pi))


def _soft_step(distance_px):
    """Returns an anti-aliased edge: 0 below, 1 above, one pixel wide."""
    return np.clip(distance_px + 0.5, 0, 1)


# The patterns: the share of the second color, (side, side) in [0, 1].


def _flat(rng, side):
    """The first color everywhere."""
    return np.zeros((side, side), np.float32)


def _gradient(rng, side):
    """From one color to the other over the image, in any direction."""
    x, _ = _rotated_grid(rng, side)
    return (x - x.min()) / (x.max() - x.min())


def _stripes(rng, side):
    """Parallel stripes; both colors equally wide."""
    x, _ = _rotated_grid(rng, side)
    return _soft_step(_wave(x, rng.uniform(4, 12)))


def _checker(rng, side):
    """A checkerboard of squares."""
    x, y = _rotated_grid(rng, side)
    period = rng.uniform(5, 12)
    # The wave with the smaller magnitude has the nearer edge.
    a, b = _wave(x, period), _wave(y, period)
    return _soft_step(np.sign(a * b) * np.minimum(np.abs(a), np.abs(b)))


def _dots(rng, side):
    """Discs on a square lattice, smaller than the smallest figure."""
    x, y = _rotated_grid(rng, side)
    period = rng.uniform(4, 9)
    radius = period * rng.uniform(0.25, 0.4)
    x, y = ((z / period % 1 - 0.5) * period for z in (x, y))
    return _soft_step(radius - np.hypot(x, y))


def _smooth_noise(rng, side):
    """Value noise: a coarse random lattice, interpolated smoothly."""
    cells = rng.integers(4, 12)
    position = np.linspace(0, cells, side, dtype=np.float32)
    distance = np.abs(position[:, None] - np.arange(cells + 1))
    weight = np.clip(1 - distance, 0, 1)
    weight = weight * weight * (3 - 2 * weight)
    lattice = rng.random((cells + 1, cells + 1), dtype=np.float32)
    noise = weight @ lattice @ weight.T
    return (noise - noise.min()) / (noise.max() - noise.min())


def _fine_noise(rng, side):
    """Independent pixels, or squares of 2 x 2 of them."""
    grain = rng.integers(1, 3)
    noise = rng.random((side // grain,) * 2, dtype=np.float32)
    return noise.repeat(grain, axis=0).repeat(grain, axis=1)


_PATTERNS = (
    _flat,
    _gradient,
    _stripes,
    _checker,
    _dots,
    _smooth_noise,
    _fine_noise,
)


def _block_mean(array, side):
    """Means over square blocks of the last two axes."""
    # Whole slices are added: NumPy is slow at means over four elements.
    rows = sum(array[..., i::side, :] for i in range(side))
    return sum(rows[..., i::side] for i in range(side)) / side**2


def _star(u, v):
    # The five lines of a pentagram: its points lie beyond one of them at most.
    angles = np.arange(5, dtype=np.float32) * np.float32(0.4 * np.pi)
    beyond = sum(
        (np.cos(a) * u + np.sin(a) * v > np.cos(0.4 * np.pi)).view(np.int8)
        for a in angles
    )
    return beyond <= 1


def _disc(u, v, radius):
    return u * u + v * v <= radius**2


# Each in coordinates where the smallest enclosing circle is the unit circle.
_OUTLINES = {
    "circle": lambda u, v: _disc(u, v, 1),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.5**0.5,
    "triangle": lambda u, v: (
        np.maximum(v, 0.75**0.5 * np.abs(u) - v / 2) <= 0.5
    ),
    "star": _star,
    "cross": lambda u, v: (
        (np.minimum(np.abs(u), np.abs(v)) <= 0.28)
        & (np.maximum(np.abs(u), np.abs(v)) <= 0.96)
    ),
    "ring": lambda u, v: _disc(u, v, 1) & ~_disc(u, v, 0.55),
    "crescent": lambda u, v: _disc(u, v, 1) & ~_disc(u - 0.45, v, 0.75),
}


def draw_texture(
    rng: np.random.Generator, side: int = IMAGE_SIZE_PX
) -> np.ndarray:
    """Draws a texture that covers the image: a pattern of two colors.

    Args:
        rng: `np.random.Generator`.
        side: int, height and width in pixels, even. Defaults to 128.

    Returns:
        float32 array `(3, side, side)` in [0, 255]; planes are faster to
        blend.
    """
    first, second = rng.uniform(0, 255, (2, 3, 1, 1)).astype(np.float32)
    amount = _PATTERNS[rng.integers(len(_PATTERNS))](rng, side)
    return first + amount.astype(np.float32) * (second - first)


def draw_textures(
    rng: np.random.Generator, count: int, side: int = IMAGE_SIZE_PX
) -> list[np.ndarray]:
    """Draws textures that contrast wherever they meet.

    In every block of 4 x 4 pixels the mean colors of any two of them are at
    least `MIN_CONTRAST` apart. They come back shuffled, since the order decides
    which one is the background: the first is drawn freely and the last fits
    the others, so its color would tell the background from figures.

    Args:
        rng: `np.random.Generator`.
        count: int > 0.
        side: int, height and width in pixels, a multiple of 4. Defaults to
            128.

    Returns:
        list of `count` float32 arrays `(3, side, side)`.
    """
    textures, all_means = [], []
    while len(textures) < count:
        texture = draw_texture(rng, side)
        means = _block_mean(texture, _BLOCK_PX)
        if all(
            np.square(means - other).sum(0).min() >= MIN_CONTRAST**2
            for other in all_means
        ):
            textures.append(texture)
            all_means.append(means)
    return [textures[i] for i in rng.permutation(count)]


@renamed_arguments(kind="class_name")
def draw_outline(
    class_name: str,
    size_px: float,
    angle: float = 0.0,
    shift: Sequence[float] = (0.0, 0.0),
) -> np.ndarray:
    """Draws the coverage of one figure, in a square that just holds it.

    Args:
        class_name: str. One of `CLASS_NAMES`, but not "background".
        size_px: float > 0. Diameter of the enclosing circle.
        angle: float, in radians. Defaults to 0.
        shift: two floats in [-0.5, 0.5], in pixels: y, x. Defaults to none.

    Returns:
        float32 array `(side, side)` in [0, 1], `side = ceil(size_px) + 2`: the
        share of each pixel that the figure covers.

    Raises:
        ValueError: `class_name` is not a figure.
    """
    if class_name not in _OUTLINES:
        raise InputError(
            f"`class_name` must be one of {', '.join(CLASS_NAMES[1:])}. "
            f"Received: class_name={class_name!r}"
        )
    side = int(np.ceil(size_px)) + 2
    grid = (np.arange(side * _SUPERSAMPLE) + 0.5) / _SUPERSAMPLE - side / 2
    y, x = ((grid - z) * 2 / size_px for z in shift)
    x, y = x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    inside = _OUTLINES[class_name](cos * x + sin * y, cos * y - sin * x)
    return _block_mean(inside.astype(np.float32), _SUPERSAMPLE)


def _place(rng, coverage, size_px, side):
    """Places a figure at random, cut slightly by the border at most."""
    extent = len(coverage)
    margin = 1 + int(MAX_CUT * size_px)  # room for the cut-off part
    most = side - extent + margin
    top, left = rng.integers(-margin, most, 2, endpoint=True) + margin
    canvas = np.zeros((side + 2 * margin,) * 2, np.float32)
    canvas[top : top + extent, left : left + extent] = coverage
    return canvas[margin:-margin, margin:-margin]


def _lay_out(rng, count, side):
    """Draws overlapping outlines, each sufficiently visible.

    A figure that hides too much, or too much of which is cut off, is moved,
    and at last dropped. Its class and size stay, so that these do not depend
    on the crowd.

    Returns:
        the alphas of the figures, the instance map, and the objects.
    """
    sizes_px = np.array(SIZES_PX) * (side / IMAGE_SIZE_PX)
    instances = np.zeros((side, side), np.uint8)
    alphas, objects, areas_px, visible_px = [], [], [], []
    for _ in range(count):
        class_id = int(rng.integers(1, len(CLASS_NAMES)))
        size_px = float(np.exp(rng.uniform(*np.log(sizes_px))))
        angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5, 2)
        coverage = draw_outline(CLASS_NAMES[class_id], size_px, angle, shift)
        areas = [*areas_px, np.count_nonzero(coverage >= 0.5)]
        number = len(areas)
        for _ in range(_PLACEMENTS):
            alpha = _place(rng, coverage, size_px, side)
            painted = np.where(alpha >= 0.5, np.uint8(number), instances)
            visible = np.bincount(painted.ravel(), minlength=number + 1)[1:]
            if np.all(visible >= MIN_VISIBLE * np.array(areas)):
                instances, areas_px, visible_px = painted, areas, visible
                alphas.append(alpha)
                objects.append({"kind": class_id, "size_px": size_px})
                break
    for figure, visible in zip(objects, visible_px, strict=True):
        figure["visible_px"] = int(visible)
    return alphas, instances, objects


def draw_scene(
    rng: np.random.Generator, side: int = IMAGE_SIZE_PX
) -> dict[str, Any]:
    """Draws one image with its masks.

    Args:
        rng: `np.random.Generator`. All randomness comes from it.
        side: int, height and width in pixels, a multiple of 4, in which the
            figures grow; textures stay as fine. Defaults to 128.

    Returns:
        dict of `image` `(side, side, 3)`, `segmentation_mask` and `instances`
        `(side, side, 1)`, all uint8, and `objects`, a list in the order of
        painting of dicts of `kind` (int), `size_px` (float) and `visible_px`
        (int). Instance `i` is `objects[i - 1]`.
    """
    count = rng.integers(1, MAX_FIGURES, endpoint=True)
    image, *textures = draw_textures(rng, count + 1, side)
    alphas, instances, objects = _lay_out(rng, count, side)
    for alpha, texture in zip(alphas, textures, strict=False):
        image = image + alpha * (texture - image)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = np.clip(np.rint(image + NOISE * noise), 0, 255)
    class_ids = np.array([0, *(figure["kind"] for figure in objects)], np.uint8)
    return {
        "image": np.moveaxis(image, 0, -1).astype(np.uint8, order="C"),
        "segmentation_mask": class_ids[instances][..., None],
        "instances": instances[..., None],
        "objects": objects,
    }


class MultiscaleShapes(tfds.core.GeneratorBasedBuilder):
    """Drawn figures of seven kinds at ten scales, for segmentation."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    NUM_EXAMPLES = {"train": 2400, "validation": 300, "test": 300}
    SIDE_PX = IMAGE_SIZE_PX

    def _info(self):
        side = self.SIDE_PX
        low, high = (px * side / IMAGE_SIZE_PX for px in SIZES_PX)
        mask = tfds.features.Image(
            shape=(side, side, 1),
            dtype=np.uint8,
            encoding_format="png",
            use_colormap=True,
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"Figures of seven kinds, {low:g} to {high:g} pixels in "
                f"diameter, on images of {side} x {side}. Figures and "
                "background share one family of textures, so that only the "
                "outline tells the class."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(
                        shape=(side, side, 3), encoding_format="png"
                    ),
                    "segmentation_mask": mask,
                    "instances": mask,
                    "objects": tfds.features.Sequence(
                        {
                            "kind": tfds.features.ClassLabel(names=CLASS_NAMES),
                            "size_px": np.float32,
                            "visible_px": np.int32,
                        }
                    ),
                }
            ),
            supervised_keys=("image", "segmentation_mask"),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split) for split in self.NUM_EXAMPLES
        }

    def _generate_examples(self, split):
        for index in range(self.NUM_EXAMPLES[split]):
            name = f"{split}_{index:05d}"
            rng = np.random.default_rng([_SPLIT_SEEDS[split], index])
            yield name, {"id": name, **draw_scene(rng, self.SIDE_PX)}


class MultiscaleShapesLarge(MultiscaleShapes):
    """The same figures at twice the size, on images twice as large."""

    SIDE_PX = 2 * IMAGE_SIZE_PX
