"""Measures what docs/data.md states: pictures per second, and memory.

    python -m docs.data speed --count 2000
    python -m docs.data memory --count 20000
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from keras_aspp.data.convert import convert_folder
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tfds import TfdsSource


def write_pictures(root, count, size, distinct=50):
    """A folder data set of `count` files, `distinct` of them different."""
    rng = np.random.default_rng(0)
    height, width = size
    contents = []
    for _ in range(min(count, distinct)):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), "uint8")
        image = Image.fromarray(coarse).resize((width, height))
        labels = Image.fromarray(coarse[..., 0] % 3).resize((width, height), 0)
        contents.append((image, labels))
    for part in ("images", "masks"):
        (root / part / "val").mkdir(parents=True)
    for i in range(count):
        image, labels = contents[i % len(contents)]
        name = f"{i:07d}"
        image.save(root / "images/val" / f"{name}.jpg", quality=90)
        labels.save(root / "masks/val" / f"{name}.png")
    DatasetSpec(["a", "b", "c"]).to_file(root / "dataset.json")
    return root


def forget_cached_pages(root):
    """Drops files from the page cache, so that reading them is reading."""
    for path in root.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pictures_per_second(dataset, count):
    start = time.perf_counter()
    seen = sum(1 for _ in dataset)
    assert seen == count
    return count / (time.perf_counter() - start)
