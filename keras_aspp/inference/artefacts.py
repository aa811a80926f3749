"""Finds the model that a path holds, and its description."""

from __future__ import annotations

from pathlib import Path

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.layers.background_logit import check_threshold
from keras_aspp.layers.class_thresholds import check_thresholds
from keras_aspp.utils.exceptions import InputError, InputNotFoundError
from keras_aspp.utils.extras import is_installed
from keras_aspp.utils.files import sha256
from keras_aspp.utils.hub import fetch, is_address
from keras_aspp.utils.text import read_manifest
from keras_aspp.utils.types import PathLike

# What each runtime reads, by suffix; a SavedModel is a folder.
READS = {
    "keras": (".keras",),
    "saved_model": ("",),
    "litert": (".tflite",),
    "onnxruntime": (".onnx",),
    "openvino": (".tflite", ".onnx"),
}
RUNTIMES = (*READS, "auto")
_SAVED_MODEL = "saved_model"
# Files that represent a folder, the most exact first.
_CANDIDATES = (
    _SAVED_MODEL,
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
# Of a folder, for `runtime="auto"`: by the times in docs/performance.md; of
# equally fast ones the most exact. Files of 8 bits predict other labels.
_FASTEST = (
    "model_float32.tflite",
    "model.onnx",
    "model_float16.tflite",
    _SAVED_MODEL,
    "model_any_size.tflite",
    "model.keras",
)


def resolve(
    path: PathLike,
    keras_only: bool = False,
    runtime: str | None = None,
    precision: str = "float32",
) -> Path:
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
        runtime: of `RUNTIMES`. Of a folder, the most exact file that it reads,
            or for `"auto"` the fastest of those that compute in float and
            for which all is installed.
        precision: that of `Predictor`, which `"auto"` needs to know.

    Returns:
        `pathlib.Path`.

    Raises:
        FileNotFoundError: the path holds no model.
        ValueError: no such runtime, or it reads no file of the path.
        OSError: the Hub is needed and cannot be reached, or refuses access.
    """
    names = _candidates(runtime, precision)
    if is_address(path):
        files = [name for name in names if name != _SAVED_MODEL]
        path = fetch(path) if keras_only else fetch(path, files)
    path = Path(path)
    found = path
    if path.is_dir():
        if keras_only:
            names = ("model.keras", *names)
        found = next(filter(None, (_inside(path, n) for n in names)), path)
    elif path.suffix not in (".keras", ".tflite", ".onnx"):
        found = None
    if found is not None and (found.is_file() or _is_saved_model(found)):
        named = runtime not in (None, "auto")
        if named and suffix_of(found) not in READS[runtime]:
            raise _cannot_read(runtime, found)
        # Without a name of its own, the folder that holds the manifest is not
        # the path's parent.
        return found.resolve() if found.name in ("", "..") else found
    if runtime is not None and path.is_dir():
        for name in _CANDIDATES:
            if _inside(path, name):
                raise _cannot_read(runtime, path)
    raise InputNotFoundError(
        "A model must be a .keras, .tflite or .onnx file, a SavedModel, a "
        "workdir or "
        f"an exported folder. Received: {str(path)!r}"
        + ("" if path.exists() else ", which does not exist")
    )


def suffix_of(path: Path) -> str:
    """Returns the suffix of a model file, `""` of a SavedModel's folder."""
    return "" if path.is_dir() else path.suffix


def _candidates(runtime, precision):
    """Returns the names of a folder's models, those to take first."""
    if runtime is None:
        return _CANDIDATES
    if runtime == "auto":
        return _fastest(precision)
    if runtime not in READS:
        raise InputError(
            f"`runtime` must be one of {RUNTIMES}. Received: {runtime!r}"
        )
    return [n for n in _CANDIDATES if Path(n).suffix in READS[runtime]]


def _fastest(precision):
    """Returns the names of models for `"auto"`, of what is installed."""
    names = list(_FASTEST)
    if not (is_installed("onnx") and is_installed("onnxruntime")):
        names.remove("model.onnx")
    if precision != "float32":
        reads = READS["openvino"] if is_installed("openvino") else ()
        names = [n for n in names if Path(n).suffix in (*reads, ".keras")]
    return names


def _inside(folder, name):
    """Returns the path of a model in a folder, or `None`."""
    if name == _SAVED_MODEL:
        found = filter(_is_saved_model, (folder, folder / name))
        return next(found, None)
    return folder / name if (folder / name).is_file() else None


def _is_saved_model(path):
    return (path / "saved_model.pb").exists()


def _cannot_read(runtime, path):
    """Returns the error of a runtime without a file."""
    if runtime == "auto":
        return InputError(
            "The runtime auto takes none of the folder's files: those of 8 "
            "bits predict other labels, and others need another precision or "
            f"an extra; name a file instead. Received: {path}"
        )
    files = " or ".join(suffix or "a SavedModel" for suffix in READS[runtime])
    return InputError(f"The runtime {runtime} reads {files}. Received: {path}")


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
