"""export_model: one folder with every artefact, each verified."""

import datetime
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path

import numpy as np

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.checkpoint import save_model
from keras_aspp.export import manifest as manifests
from keras_aspp.export import tflite, verify
from keras_aspp.export.preview import write_preview
from keras_aspp.export.saved_model import write_saved_model
from keras_aspp.inference import Predictor
from keras_aspp.models import fold_batch_norm

FORMATS = ("saved_model", "tflite_float32", "tflite_float16")
_NAMES = {
    "keras": "model.keras",
    "saved_model": "saved_model",
    "tflite_float32": "model_float32.tflite",
    "tflite_float16": "model_float16.tflite",
}


def export_model(
    model,
    directory,
    *,
    image_size,
    class_names,
    verify_images,
    calibration_images=None,
    evaluation_data=None,
    formats=FORMATS,
    overwrite=False,
    ignore_label=255,
    colormap=None,
    about=None,
    preview_image=None,
):
    """Writes a folder of artefacts and proves them equal to the model.

    Everything is written and checked under a temporary name; where a check
    fails, nothing is left.

    Args:
        model: `Segmenter`.
        directory: folder to make.
        image_size: `(height, width)` of the TFLite files, in pixels.
        class_names: one name per class.
        verify_images: uint8 pictures `[H, W, 3]`, at least one; every
            artefact must agree with Keras on them.
        calibration_images: for formats in integers; none of `FORMATS` is, so
            anything but `None` is an error.
        evaluation_data: iterable of `(uint8 [H, W, 3], int [H, W])` that can
            be walked repeatedly, for the mean IoU; or `None`.
        formats: of `FORMATS`; `model.keras` is always written.
        overwrite: bool. Replace `directory` if it exists.
        ignore_label: int, label value that counts for nothing.
        colormap: one RGB colour per class, or `None`.
        about: dict of str for the card: `trained_on`, `license`,
            `evaluated_on`, `command`, `preview`.
        preview_image: uint8 `[H, W, 3]` shown in `preview.png`; the first
            verify picture if `None`.

    Returns:
        dict, the contents of `manifest.json`.

    Raises:
        FileExistsError: `directory` exists and `overwrite` is not given.
        ValueError: an argument is not as above, or an artefact fails its
            check: operators, agreement.
    """
    directory = Path(directory)
    spec = DatasetSpec(class_names, ignore_label, colormap)
    _check(model, directory, spec, verify_images, formats, overwrite)
    if calibration_images is not None:
        raise ValueError(
            "`calibration_images` are for integer formats, and there is none "
            f"among formats={tuple(formats)}"
        )
    image_size = _check_size(image_size)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(
        tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.")
    )
    try:
        _write_artefacts(model, work, image_size, formats)
        os.chmod(work, 0o755)
        # The reference is the very file that is handed over.
        reference = Predictor(work / _NAMES["keras"])
        content = {
            "name": directory.name,
            "num_classes": model.num_classes,
            "class_names": list(spec.class_names),
            "ignore_label": ignore_label,
            "colormap": [list(c) for c in spec.colors()],
            "preprocess": model.preprocess.get_config(),
            "output_stride": model.output_stride,
            "versions": manifests.versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "date": datetime.date.today().isoformat(),
            "protocol": verify.PROTOCOL,
            "artefacts": [
                _measure(
                    work / _NAMES[kind],
                    kind,
                    reference,
                    verify_images,
                    evaluation_data,
                    spec,
                )
                for kind in ("keras", *formats)
            ],
        }
        (work / "labels.txt").write_text("\n".join(spec.class_names) + "\n")
        shown = verify_images[0] if preview_image is None else preview_image
        write_preview(
            work / "preview.png", shown, reference.predict(shown), spec
        )
        keys = ("trained_on", "license", "evaluated_on", "command", "preview")
        about = {**dict.fromkeys(keys, ""), **(about or {})}
        (work / "README.md").write_text(manifests.card(content, about))
        (work / "manifest.json").write_text(
            json.dumps(content, indent=1) + "\n"
        )
        _replace(work, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return content


def _check(model, directory, spec, verify_images, formats, overwrite):
    if directory.exists() and not overwrite:
        raise FileExistsError(
            "The folder exists; pass overwrite (--overwrite) to replace it. "
            f"Received: directory={str(directory)!r}"
        )
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"`class_names` must name the model's {model.num_classes} "
            f"classes. Received: {spec.num_classes} names"
        )
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise ValueError(
            f"`formats` must be among {FORMATS}. Received: {unknown}"
        )
    if len(verify_images) == 0:
        raise ValueError(
            "`verify_images` must hold at least one picture. Received: none"
        )
    for image in verify_images:
        image = np.asarray(image)
        if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != 3:
            raise ValueError(
                "`verify_images` must be uint8 arrays (height, width, 3). "
                f"Received: shape={image.shape}, dtype={image.dtype}"
            )


def _check_size(image_size):
    size = tuple(image_size)
    if len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(
            "`image_size` must be (height, width), ints > 0. "
            f"Received: image_size={image_size}"
        )
    return size


def _write_artefacts(model, work, image_size, formats):
    save_model(model, work / _NAMES["keras"])
    model = fold_batch_norm(model)
    if "saved_model" in formats:
        write_saved_model(model, work / _NAMES["saved_model"])
    wanted = [f for f in formats if f.startswith("tflite")]
    if wanted:
        for kind, data in tflite.convert(model, image_size, wanted).items():
            (work / _NAMES[kind]).write_bytes(data)


def _measure(path, kind, reference, images, evaluation_data, spec):
    predictor = Predictor(path)
    entry = manifests.describe(path, kind, predictor)
    entry["output"]["range"] = [0, spec.num_classes - 1]
    entry["operators"] = None
    if path.suffix == ".tflite":
        entry["operators"] = tflite.operators(path)
        tflite.check_operators(entry["operators"], path)
    value = verify.agreement(predictor, reference, images)
    verify.check_agreement(value, kind, path.name)
    entry["mean_iou"] = None
    if evaluation_data is not None:
        entry["mean_iou"] = verify.mean_iou(
            predictor, evaluation_data, spec.num_classes, spec.ignore_label
        )
    entry["agreement_with_keras"] = value
    entry["max_abs_logit_difference"] = None
    entry["latency_ms"] = verify.latency_ms(predictor, images[0])
    entry["gpu_compatible"] = None
    return entry


def _replace(work, directory):
    """Puts `work` in the place of `directory`; readers see one or the other."""
    old = None
    if directory.exists():
        old = Path(tempfile.mkdtemp(dir=directory.parent)) / "old"
        os.replace(directory, old)
    os.replace(work, directory)
    if old is not None:
        shutil.rmtree(old.parent)
