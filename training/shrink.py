"""Copies a folder data set at a smaller size, for trials that take minutes.

python -m training.shrink ../shared/data/camvid runs/camvid_180x240 180 240
"""

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image

from keras_aspp.cli.main import guarded
from keras_aspp.data.decode import open_image, read_image
from keras_aspp.data.resize import resize_image
from keras_aspp.utils.exceptions import (
    InputError,
    InputNotFoundError,
    OutputExistsError,
)


def run(arguments):
    """Resizes images (antialiased) and masks (nearest)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    flags = parser.parse_args(arguments)
    size = (flags.height, flags.width)
    if min(size) < 1:
        raise InputError(f"Sizes must be ints > 0. Received: size={size}")
    files = sorted(p for p in flags.root.glob("*/*/*") if p.is_file())
    if not files:
        raise InputNotFoundError(
            "ROOT must hold images/SPLIT/ and masks/SPLIT/. "
            f"Received: {str(flags.root)!r}"
        )
    if flags.output.exists():
        raise OutputExistsError(
            f"OUTPUT must not exist. Received: {str(flags.output)!r}"
        )
    work = flags.output.with_name(f".{flags.output.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    for file in files:
        target = work / file.relative_to(flags.root).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.parts[-3] == "masks":
            with open_image(file) as mask:
                # A palette stays one: its indices are the classes.
                mask.resize(size[::-1], Image.Resampling.NEAREST).save(target)
        else:
            Image.fromarray(resize_image(read_image(file), size)).save(target)
    for described in flags.root.glob("dataset.json"):
        shutil.copy(described, work)
    work.replace(flags.output)
    print(f"{len(files)} files in {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
