"""Finds the model that a path holds, and its description."""

from __future__ import annotations

from pathlib import Path

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.layers.background_logit import check_threshold
from keras_aspp.layers.class_thresholds import check_thresholds
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.files import sha256
from keras_aspp.utils.hub import fetch, is_address
from keras_aspp.utils.text import read_manifest
from keras_aspp.utils.types import PathLike

# Files that represent a folder without a SavedModel, the most exact first.
_CANDIDATES = (
    "model.keras",
    "model_any_size.tflite",
    "model_float32.tflite",
    "model_float16.tflite",
    "model_int16x8.tflite",
    "model_dynamic_range.tflite",
    "model_int8.tflite",
    "model.onnx",
    "model_logits.tflite",
    "model_gpu.tflite",
)


def resolve(path: PathLike, keras_only: bool = False) -> Path:
    """Returns the model file or SavedModel folder of a path.

    Every command and `Predictor` open the same artefact of one path: of a
    workdir its `model.keras`, of an exported folder its SavedModel. A
    SavedModel is a program, so of a folder on the Hub it is `model.keras`, or
    what there is of the other files.

    Args:
        path: a `.keras`, `.tflite` or `.onnx` file, a SavedModel, a workdir or
            an exported folder; or `hf://user/name[@revision][/path]` of one,
            which is downloaded once.
        keras_only: bool. Of a folder, its `model.keras`: for what reads layers.

    Returns:
        `pathlib.Path`.

    Raises:
        FileNotFoundError: the path holds no model.
        OSError: the Hub is needed and cannot be reached, or refuses access.
    """
    if is_address(path):
        path = fetch(path) if keras_only else fetch(path, _CANDIDATES)
    path = Path(path)
    if path.is_dir():
        if keras_only and (path / "model.keras").is_file():
            return path / "model.keras"
        if (path / "saved_model.pb").exists():
            return path
        if (path / "saved_model" / "saved_model.pb").exists():
            return path / "saved_model"
        for name in _CANDIDATES:
            if (path / name).is_file():
                return path / name
    elif path.is_file() and path.suffix in (".keras", ".tflite", ".onnx"):
        return path
    raise InputNotFoundError(
        "A model must be a .keras, .tflite or .onnx file, a SavedModel, a "
        "workdir or "
        f"an exported folder. Received: {str(path)!r}"
        + ("" if path.exists() else ", which does not exist")
    )


def local_folder(path: PathLike) -> Path:
    """Returns a path, or the local folder of a model on the Hub.

    Args:
        path: path of a model, also `hf://...`.
    """
    return resolve(path).parent if is_address(path) else Path(path)


def find_spec(path: Path) -> DatasetSpec | None:
    """Reads the `DatasetSpec` beside an artefact, if any."""
    manifest = path.parent / "manifest.json"
    if manifest.is_file():
        content = read_manifest(manifest)
        _check_hash(path, content)
        try:
            return DatasetSpec(
                content["class_names"],
                content.get("ignore_label", 255),
                content.get("colormap"),
                task=content.get("task", "semantic"),
            )
        except ValueError as error:
            raise InputError(f"{error}. File: {manifest}") from None
    described = path.parent / "dataset.json"
    return DatasetSpec.from_file(described) if described.is_file() else None


def find_threshold(path: Path) -> float | tuple[float, ...] | None:
    """Reads the threshold of an artefact in the manifest beside it.

    Returns:
        float, or one for each class of a multilabel artefact, or `None`.
    """
    manifest = path.parent / "manifest.json"
    if not manifest.is_file():
        return None
    content = read_manifest(manifest)
    threshold = content.get("threshold")
    if threshold is None:
        return None
    if content.get("task") == "multilabel":
        return check_thresholds(threshold, len(content["class_names"]))
    return check_threshold(threshold)


def _check_hash(path, manifest):
    """Raises if an artefact differs from the one in its manifest."""
    for entry in manifest["artefacts"]:
        if entry["path"] == path.name and entry["sha256"] != sha256(path):
            raise InputError(
                "The artefact is not the one that manifest.json beside it was "
                "written for; export again, or take it out of this folder. "
                f"Received: {path}"
            )
