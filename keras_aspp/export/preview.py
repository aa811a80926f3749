"""preview.png: a picture beside what the model sees in it."""

import numpy as np
from PIL import Image, ImageDraw

from keras_aspp.engine.pictures import color_labels, overlay

_MIN_HEIGHT = 240
_ROW = 18


def write_preview(path, image, labels, spec):
    """Writes picture, overlay and a legend of the classes that occur.

    Args:
        path: PNG file to write.
        image: uint8 `[H, W, 3]`.
        labels: int `[H, W]`.
        spec: `DatasetSpec`.
    """
    zoom = max(1, -(-_MIN_HEIGHT // image.shape[0]))
    pair = np.concatenate([image, overlay(image, labels, spec)], axis=1)
    pair = pair.repeat(zoom, axis=0).repeat(zoom, axis=1)
    present = [i for i in np.unique(labels) if i < spec.num_classes]
    columns = max(1, pair.shape[1] // 130)
    rows = -(-len(present) // columns)
    sheet = Image.new(
        "RGB", (pair.shape[1], pair.shape[0] + rows * _ROW + 8), "white"
    )
    sheet.paste(Image.fromarray(pair))
    draw = ImageDraw.Draw(sheet)
    for k, label in enumerate(present):
        x = (k % columns) * 130 + 6
        y = pair.shape[0] + 6 + (k // columns) * _ROW
        color = tuple(int(v) for v in color_labels(label, spec))
        draw.rectangle((x, y, x + 12, y + 12), fill=color, outline="black")
        draw.text((x + 18, y), spec.class_names[label], fill="black")
    sheet.save(path)
