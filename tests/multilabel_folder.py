"""A folder data set of two shapes that overlap, in every layout of masks."""

import json

import numpy as np
from PIL import Image

NAMES = ["box", "bar"]


def save_masks(folder, name, masks, layout, value=255):
    """Writes masks `[H, W, 2]` of 0 and 1 as a data set stores them."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = masks * np.uint8(value)
    if layout == "folders":
        for i, class_name in enumerate(NAMES):
            (folder / class_name).mkdir(exist_ok=True)
            path = folder / class_name / f"{name}.png"
            Image.fromarray(stored[..., i]).save(path)
        return
    if layout == "npy":
        np.save(folder / f"{name}.npy", masks)
        return
    import tifffile

    path = folder / f"{name}.tif"
    if layout == "pages":
        tifffile.imwrite(path, stored[..., 0])
        tifffile.imwrite(path, stored[..., 1], append=True)
    else:
        tifffile.imwrite(
            path, stored, photometric="minisblack", planarconfig="contig"
        )


def make_folder(
    root, layout="folders", splits=("train", "val"), value=255, count=3
):
    """Writes images of a red box and a green bar, which overlap in yellow."""
    rng = np.random.default_rng(5)
    for split in splits:
        images = root / "images" / split
        images.mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 90, (64, 96, 3)).astype("uint8")
            masks = np.zeros((64, 96, 2), "uint8")
            y, x = rng.integers(0, 30), rng.integers(0, 50)
            masks[y : y + 30, x : x + 30, 0] = 1
            masks[y + 8 : y + 24, x + 12 : x + 42, 1] = 1
            image[..., :2] += masks * np.uint8(130)
            name = f"{split}_{i}"
            Image.fromarray(image).save(images / f"{name}.png")
            save_masks(root / "masks" / split, name, masks, layout, value)
    content = {"class_names": NAMES, "task": "multilabel"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root
