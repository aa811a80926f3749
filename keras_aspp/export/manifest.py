"""Entries of `manifest.json`."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from keras_aspp.inference import Predictor
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.files import files_of, sha256
from keras_aspp.utils.types import PathLike
from keras_aspp.version import __version__

_PACKAGES = (
    "keras",
    "tensorflow",
    "ai-edge-litert",
    "litert-quantizer",
    "numpy",
)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that made the artefacts."""
    found = {"keras_aspp": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        found[name] = metadata.version(name)
    return found


def describe(
    path: PathLike,
    format: str,
    predictor: Predictor,
    pixels: PixelFormat | None = None,
) -> dict[str, Any]:
    """Returns the manifest's entry of an artefact, before measurements.

    Args:
        path: file or folder.
        format: its format, a key of `FILE_NAMES`.
        predictor: `Predictor` of it.
        pixels: `PixelFormat` with the range of values of the images; `None`
            for 0..255.

    Returns:
        dict.
    """
    path = Path(path)
    size = list(predictor.image_size or ("height", "width"))
    batch = 1 if path.suffix in (".tflite", ".onnx") else "batch"
    return {
        "path": path.name,
        "format": format,
        "bytes": sum(f.stat().st_size for f in files_of(path)),
        "sha256": sha256(path),
        "input": {
            "name": "image",
            "shape": [batch, *size, predictor.pixels.channels],
            "dtype": predictor.pixels.dtype,
            "range": list((pixels and pixels.value_range) or (0, 255)),
        },
        "output": _labels_of(predictor, [batch, *size]),
    }


def _labels_of(predictor, shape):
    """Returns the description of the labels of an artefact."""
    count = predictor.num_classes
    if predictor.is_multilabel:
        shape, dtype, most = [*shape, count], "uint8", 1
    else:
        dtype, most = "int32", count and count - 1
    return {
        "name": "labels",
        "shape": shape,
        "dtype": dtype,
        "range": [0, most] if most else None,
    }


def further_outputs(
    entry: dict[str, Any], names: Iterable[str], num_classes: int
) -> list[dict[str, Any]]:
    """Returns the descriptions of an artefact's outputs beside `output`.

    Args:
        entry: dict, see `describe`.
        names: of `"confidence"` and `"probabilities"`.
        num_classes: int.

    Returns:
        list of dict. Those of a SavedModel name their signature.
    """
    # Of an image; labels of classes that may overlap have their axis, too.
    shape = entry["output"]["shape"][:3]
    signature = {}
    if entry["format"] == "saved_model":
        signature = {"signature": "serve_scores"}
    return [
        {
            "name": name,
            "shape": [*shape, num_classes]
            if name == "probabilities"
            else shape,
            "dtype": "float32",
            "range": [0, 1],
            **signature,
        }
        for name in names
    ]
