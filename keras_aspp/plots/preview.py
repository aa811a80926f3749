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
_SWATCH = 12
_MARGIN = 6
# Pixels of an entry beside its name: the swatch and the gaps around it.
_ENTRY = _SWATCH + 3 * _MARGIN


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
    widths = [round(font.getlength(name)) + _ENTRY for name in names]
    places, rows = _places(widths, pair.shape[1] - _MARGIN)
    sheet = Image.new(
        "RGB", (pair.shape[1], pair.shape[0] + rows * _ROW + 8), "white"
    )
    sheet.paste(Image.fromarray(pair))
    draw = ImageDraw.Draw(sheet)
    bare = unpainted_classes(spec)
    for label, name, (x, row) in zip(present, names, places, strict=True):
        x, y = x + _MARGIN, pair.shape[0] + _MARGIN + row * _ROW
        color = tuple(int(v) for v in color_labels(label, spec))
        draw.rectangle(
            (x, y, x + _SWATCH, y + _SWATCH),
            fill="white" if label in bare else color,
            outline="black",
        )
        draw.text((x + _SWATCH + _MARGIN, y), name, fill="black", font=font)
    sheet.save(path)


def _places(widths, width):
    """Places entries in columns, each as wide as its widest entry.

    Takes the fewest rows that fit, filled evenly: rows of 4 and 4 entries
    rather than 7 and 1.

    Args:
        widths: int, pixels of each entry.
        width: int, pixels of a row.

    Returns:
        `(places, rows)`: `(x, row)` of each entry, and the number of rows.
    """
    for rows in range(1, len(widths) + 1):
        columns = -(-len(widths) // rows)
        of_columns = [max(widths[i::columns]) for i in range(columns)]
        if sum(of_columns) <= width or columns == 1:
            x = np.cumsum([0, *of_columns]).tolist()
            places = [
                (x[k % columns], k // columns) for k in range(len(widths))
            ]
            return places, rows
    return [], 0
