"""Label maps as images: color maps, overlays, sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.pixels import to_rgb
from keras_aspp.utils.files import replacing
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

CELL_PX = 480  # of an image in a sheet, its longer side
MAX_RATIO = 4  # of height to width in a sheet; taller ones leave margins
LEGEND_CLASSES = 32  # with more, the legend names only those that occur


def spec_of(predictor: Any) -> DatasetSpec:
    """Returns the spec of a model, or one of generated class names."""
    count = predictor.num_classes or 255
    return predictor.spec or DatasetSpec(
        [f"class_{i}" for i in range(count)],
        task="multilabel"
        if getattr(predictor, "is_multilabel", False)
        else "semantic",
    )


def color_labels(
    labels: np.ndarray,
    spec: DatasetSpec,
    ignored: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Colors class ids.

    Args:
        labels: int `[..., H, W]`.
        spec: `DatasetSpec`.
        ignored: RGB color of ignored pixels. Defaults to black.

    Returns:
        uint8 `[..., H, W, 3]`.
    """
    table = np.zeros((256, 3), "uint8")
    table[: spec.num_classes] = spec.colors()
    if not spec.is_multilabel:  # there it is a value of masks, no class id
        table[spec.ignore_label] = ignored
    return table[np.asarray(labels)]


def ignored_color(spec: DatasetSpec) -> tuple[int, int, int]:
    """Returns an RGB color that no class has: light, as PASCAL VOC's void."""
    taken = set(spec.colors())
    free = ((224 - i, 224 - i, 192 - i) for i in range(len(taken) + 1))
    return next(color for color in free if color not in taken)


def index_image(labels: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """Converts labels `[H, W]` to a PIL image with their palette."""
    indexed = Image.fromarray(np.asarray(labels).astype("uint8"))
    indexed.putpalette(color_labels(np.arange(256), spec).ravel().tolist())
    return indexed


def unpainted_classes(spec: DatasetSpec) -> list[int]:
    """Returns the classes that an overlay leaves unpainted, a list of ints.

    Of a binary task it is class 0; else the class named "background",
    underscores aside. Without such a name it is the black class, if there is
    one: black would hide the image, and by the palette of PASCAL VOC it means
    "none of the others".
    """
    if spec.is_multilabel:
        return []
    if spec.task == "binary":
        return [0]
    named = [
        i
        for i, name in enumerate(spec.class_names)
        if name.strip("_ ").casefold() == "background"
    ]
    black = [i for i, color in enumerate(spec.colors()) if not any(color)]
    return named or black


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    spec: DatasetSpec,
    opacity: float = 0.55,
) -> np.ndarray:
    """Paints labels over an image, but not the background or ignored pixels.

    Where classes of a multilabel task overlap, the paint is their mean color,
    and each class keeps an outline in its own.

    Args:
        image: `[H, W, C]`; see `to_rgb`.
        labels: int `[H, W]`, or `[H, W, K]` of a multilabel task.
        spec: `DatasetSpec`.
        opacity: float in [0, 1], of the paint. Defaults to 0.55.

    Returns:
        uint8 `[H, W, 3]`.
    """
    image = to_rgb(image)
    if spec.is_multilabel:
        colors, bare = _overlapping_colors(labels == 1, spec)
    else:
        bare = np.isin(labels, [*unpainted_classes(spec), spec.ignore_label])
        colors = color_labels(labels, spec).astype("float32")
    blend = (1 - opacity) * image.astype("float32") + opacity * colors
    return np.where(bare[..., None], image, np.round(blend)).astype("uint8")


def _overlapping_colors(shown, spec):
    """Returns colors float32 `[H, W, 3]` of masks, and where there are none."""
    table = np.array(spec.colors(), "float32")
    count = shown.sum(-1, keepdims=True)
    colors = (shown.astype("float32") @ table) / np.maximum(count, 1)
    for class_id, color in enumerate(table):
        colors[_outline(shown[..., class_id])] = color
    return colors, count[..., 0] == 0


def _outline(mask):
    """Returns the pixels of a mask that have a neighbor outside of it."""
    framed = np.pad(mask, 1, mode="edge")
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1]
    inside &= framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside


def classes_shown(labels: np.ndarray, spec: DatasetSpec) -> list[int]:
    """Returns the classes that occur in labels, in rising order."""
    if spec.is_multilabel:
        masks = np.reshape(labels, (-1, spec.num_classes))
        return np.flatnonzero((masks == 1).any(0)).tolist()
    return [i for i in np.unique(labels).tolist() if i < spec.num_classes]


def ignored_pixels(labels: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns bool `[H, W]`, True where every label is ignored."""
    ignored = labels == spec.ignore_label
    return ignored.all(-1) if spec.is_multilabel else ignored


def legend_name(class_id: int, spec: DatasetSpec) -> str:
    """Returns the name of a class in the legend of overlays."""
    name = spec.class_names[class_id]
    bare = class_id in unpainted_classes(spec)
    return f"{name} (not painted)" if bare else name


def draw_sheet(
    output: PathLike,
    title: str,
    examples: Sequence[tuple[Any, ...]],
    spec: DatasetSpec,
) -> None:
    """Writes images beside their labels as one PNG, atomically.

    Args:
        output: path of the PNG.
        title: str.
        examples: list of `(caption, [H, W, C], *label maps)`, each map
            as for `overlay`; all have as many.
        spec: `DatasetSpec`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [_cell(image, maps, spec) for _, image, *maps in examples]
    columns = min(3 if len(examples[0]) == 3 else 2, len(cells))
    rows = -(-len(cells) // columns)
    shape = np.median([cell.shape[:2] for cell in cells], axis=0)
    width = 4.6 * columns  # inches
    row_height = 4.6 * min(shape[0] / shape[1], MAX_RATIO) + 0.25
    handles = _legend(examples, spec)
    legend_rows = -(-len(handles) // max(1, int(width / 1.5)))
    legend_height = 0.24 * legend_rows + 0.3
    height = row_height * rows + legend_height + 0.45
    # No pyplot: it would keep the figure, and may want a display.
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.01,
        right=0.99,
        top=1 - 0.65 / height,
        bottom=legend_height / height,
        wspace=0.03,
        hspace=0.25 / (row_height - 0.25),
    )
    for i, (cell, (text, *_)) in enumerate(zip(cells, examples, strict=True)):
        axes = figure.add_subplot(grid[i])
        axes.imshow(cell, interpolation="lanczos")
        axes.axis("off")
        axes.set_title(text, fontsize=8, color="0.3", pad=3, parse_math=False)
    figure.suptitle(
        title, fontsize=12, y=1 - 0.12 / height, va="top", parse_math=False
    )
    legend = figure.legend(
        handles=handles,
        loc="lower center",
        ncols=-(-len(handles) // legend_rows),
        fontsize=9,
        frameon=False,
        handlelength=1.4,
        handleheight=1.1,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def caption(name: str, labels: np.ndarray) -> str:
    """Formats the shortened name of an image and its size."""
    name = printable(Path(name.split(", ")[-1]).name)
    short = name if len(name) < 48 else f"{name[:22]}...{name[-22:]}"
    return f"{short}  {labels.shape[0]}x{labels.shape[1]}"


def _cell(image, maps, spec):
    """Joins an image and its overlays side by side."""
    from PIL import Image

    image = to_rgb(image)
    scale = min(1, CELL_PX / max(image.shape))
    size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
    gap = np.full((size[1], max(2, size[0] // 60), 3), 255, "uint8")
    parts = []
    for part in (image, *(hatched(image, labels, spec) for labels in maps)):
        small = Image.fromarray(part).resize(size, Image.Resampling.LANCZOS)
        parts += [np.asarray(small), gap]
    return np.concatenate(parts[:-1], axis=1)


def hatched(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec
) -> np.ndarray:
    """Returns the overlay of labels, with ignored pixels hatched."""
    over = overlay(image, labels, spec)
    ignored = ignored_pixels(labels, spec)
    if not ignored.any():
        return over
    y, x = np.indices(labels.shape[:2])
    stripe_px = max(2, max(labels.shape[:2]) // 80)
    stripes = ((x + y) // stripe_px % 2)[..., None]
    hatched = np.where(stripes, 235, 150).astype("uint8")
    return np.where(ignored[..., None], hatched, over)


def _legend(examples, spec):
    from matplotlib.patches import Patch

    maps = [one for _, _, *maps in examples for one in maps]
    shown = range(spec.num_classes)
    if spec.num_classes > LEGEND_CLASSES:
        shown = sorted({i for one in maps for i in classes_shown(one, spec)})
    colors = np.array(spec.colors()) / 255
    bare = unpainted_classes(spec)
    handles = [
        Patch(
            facecolor="none" if i in bare else colors[i],
            edgecolor="0.5",
            label=legend_name(i, spec),
        )
        for i in shown
    ]
    if any(ignored_pixels(one, spec).any() for one in maps):
        handles.append(
            Patch(
                facecolor="0.92",
                edgecolor="0.55",
                hatch="////",
                label="ignored",
            )
        )
    return handles
