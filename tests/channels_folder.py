"""A data set of four bands of 16 bits, as a sensor writes them."""

import json

import numpy as np
import tifffile
from PIL import Image

RANGE = {"channels": 4, "dtype": "uint16", "value_range": [1000, 9000]}


def write_bands(
    root, channels=4, dtype="uint16", spec=RANGE, size=(64, 96), num_train=2
):
    """TIFFs in which the last band alone says what is a box."""
    rng = np.random.default_rng(3)
    for split, count in (("train", num_train), ("val", 2)):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(1000, 4000, (*size, channels))
            mask = np.zeros(size, "uint8")
            y, x = rng.integers(3, size[0] - 35), rng.integers(3, size[1] - 35)
            image[y : y + 30, x : x + 30, -1] = 8500
            mask[y : y + 30, x : x + 30] = 1
            tifffile.imwrite(
                root / "images" / split / f"{split}_{i}.tif",
                image.astype(dtype),
                photometric="minisblack",
                planarconfig="contig",
                compression="deflate",
            )
            path = root / "masks" / split / f"{split}_{i}.png"
            Image.fromarray(mask).save(path)
    described = {"class_names": ["ground", "box"], **spec}
    (root / "dataset.json").write_text(json.dumps(described))
    return root
