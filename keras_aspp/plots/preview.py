"""preview.png: an image beside its predicted labels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.pixels import to_rgb
from keras_aspp.plots.labels import (
    classes_shown,
    color_labels,
    legend_name,
    overlay,
    unpainted_classes,
)
from keras_aspp.utils.types import PathLike

_MIN_HEIGHT = 240
_ROW = 18
_GAP = 8
_MIN_COLUMN = 130
_SWATCH = 12


def write_preview(
    path: PathLike, image: np.ndarray, labels: np.ndarray, spec: DatasetSpec
) -> None:
    """Writes an image, its overlay and a legend of the classes that occur.

    Args:
        path: PNG file to write.
        image: `[H, W, C]`; see `to_rgb`.
        labels: as for `overlay`.
        spec: `DatasetSpec`.
    """
    image = to_rgb(image)
    zoom = max(1, -(-_MIN_HEIGHT // image.shape[0]))
    left, right = (
        part.repeat(zoom, axis=0).repeat(zoom, axis=1)
        for part in (image, overlay(image, labels, spec))
    )
    gap = np.full((left.shape[0], _GAP, 3), 255, "uint8")
    pair = np.concatenate([left, gap, right], axis=1)
    present = classes_shown(labels, spec)
    names = [legend_name(i, spec) for i in present]
    font = ImageFont.load_default()
    longest = max((font.getlength(name) for name in names), default=0)
    column = max(_MIN_COLUMN, round(longest) + 3 * _SWATCH)
    columns = max(1, pair.shape[1] // column)
    rows = -(-len(present) // columns)
    sheet = Image.new(
        "RGB", (pair.shape[1], pair.shape[0] + rows * _ROW + 8), "white"
    )
    sheet.paste(Image.fromarray(pair))
    draw = ImageDraw.Draw(sheet)
    bare = unpainted_classes(spec)
    for k, (label, name) in enumerate(zip(present, names, strict=True)):
        x = (k % columns) * column + 6
        y = pair.shape[0] + 6 + (k // columns) * _ROW
        color = tuple(int(v) for v in color_labels(label, spec))
        draw.rectangle(
            (x, y, x + _SWATCH, y + _SWATCH),
            fill="white" if label in bare else color,
            outline="black",
        )
        draw.text((x + 18, y), name, fill="black", font=font)
    sheet.save(path)
