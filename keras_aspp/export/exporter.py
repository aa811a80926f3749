"""Export of a segmenter as a folder of verified artefacts."""

from __future__ import annotations

import collections
import datetime
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tiff import without_gaps
from keras_aspp.export import card, onnx, tflite, verify
from keras_aspp.export import manifest as manifests
from keras_aspp.export.checks import (
    check_repeatable,
    check_segmenter,
    check_size,
    checked_answers,
    checked_images,
)
from keras_aspp.export.formats import DEFAULT_FORMATS, FILE_NAMES, FORMATS
from keras_aspp.export.image_size import choose_image_size
from keras_aspp.export.measure import (
    Artefact,
    Comparison,
    evaluate_artefacts,
)
from keras_aspp.export.metadata import add_metadata
from keras_aspp.export.quantize import QUANTIZED
from keras_aspp.export.saved_model import write_saved_model
from keras_aspp.inference import Predictor
from keras_aspp.models import fold_batch_norm
from keras_aspp.models.precision import in_float32
from keras_aspp.models.saving import save_model
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.pixels import PixelFormat
from keras_aspp.plots.preview import write_preview
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import (
    check_output,
    replacing_folder,
    write_json,
    write_text,
)
from keras_aspp.utils.finite import check_weights
from keras_aspp.utils.progress import timed
from keras_aspp.utils.signals import stop_signals
from keras_aspp.utils.text import read_manifest
from keras_aspp.utils.types import PathLike, Size


def export_model(
    model: Segmenter,
    directory: PathLike,
    *,
    image_size: Size | None = None,
    class_names: Sequence[str],
    verify_images: Iterable[np.ndarray],
    calibration_images: Iterable[np.ndarray] | None = None,
    evaluation_data: Iterable[tuple[np.ndarray, np.ndarray]] | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    overwrite: bool = False,
    ignore_label: int = 255,
    colormap: Sequence[Sequence[int]] | None = None,
    about: Mapping[str, str] | None = None,
    preview_image: np.ndarray | None = None,
    max_int8_loss: float = 1.0,
    int8_in_float: Sequence[str] = (),
    more_image_sizes: Sequence[Size] = (),
    coarse_labels: bool = False,
    outputs: Sequence[str] = ("labels",),
    progress: Callable[[str, float | None], None] | None = None,
) -> dict[str, Any]:
    """Writes a folder of artefacts and compares each with the model.

    Everything is written and checked in a temporary folder, which takes the
    name of an earlier export in one step. If a check fails, nothing is left.

    Args:
        model: `Segmenter`. One that computes in 16 bits (`mixed_float16`,
            `mixed_bfloat16`) is exported in float32, with the same weights.
        directory: folder to create.
        image_size: `(height, width)` of the TFLite files, in pixels. `None`
            chooses the median of `verify_images`, at most 1024, in multiples
            of 32, or the model's own size.
        class_names: one name per class.
        verify_images: images `[H, W, C]` in the model's type, at least one;
            every artefact must agree with Keras on them.
        calibration_images: images `[H, W, C]` in the model's type that
            calibrate the ranges of `"tflite_int8"` and `"tflite_int16x8"`; of
            the training split, so that the evaluation is fair. `None`
            without these formats.
        evaluation_data: iterable of `([H, W, C], int [H, W])` that can
            be iterated repeatedly (so no generator), for the mean IoU; or
            `None`. Labels of a multilabel model are `[H, W, K]`.
        formats: of `"saved_model"`, `"tflite_float32"`, `"tflite_float16"`
            (these are the default), `"tflite_dynamic_range"` (weights in 8
            bits), `"tflite_int8"` (weights and activations in 8 bits),
            `"tflite_int16x8"` (activations in 16 bits, for NPUs),
            `"tflite_any_size"` (float32, resized by the interpreter) and
            `"tflite_logits"` (float32 scores, with the metadata that
            MediaPipe needs), `"tflite_gpu"` (for the GPUs of phones: float32
            RGB in [-1, 1] in, float32 scores at the decoder's stride out,
            of which all sizes must be multiples; with the same metadata),
            `"onnx"` (one size; extra `onnx`); `model.keras` is always
            written.
        overwrite: bool. Replace an earlier export in `directory`.
        ignore_label: int, label of ignored pixels.
        colormap: one RGB color per class, or `None`.
        about: dict of str for the card: `dataset` (its name), `trained_on`,
            `license`, `evaluated_on`, `command`, `preview`.
        preview_image: `[H, W, C]` in the model's type, shown in
            `preview.png`; the first of `verify_images` if `None`.
        max_int8_loss: float, largest loss of mean IoU on `evaluation_data`
            against Keras, in points, of the formats of 8 and 16 bits; with
            `coarse_labels`, against Keras doing the same. Without that data
            they must agree on 90% of the pixels.
        int8_in_float: operators that `"tflite_int8"` leaves in float, by the
            names of `ka.export.explain_int8`.
        more_image_sizes: further sizes; the files of one size are written
            for each, under names that end in `_HxW`.
        coarse_labels: bool. Files of one size label the scores at their own
            stride and repeat the labels, instead of resizing scores: faster,
            with outlines in steps of that stride. They must agree with Keras
            doing the same; `loss_points` contains the cost,
            `conversion_loss_points` does not.
        outputs: `"labels"`, and of `"confidence"` (probability of the label)
            and `"probabilities"` what artefacts return beside them, float32
            in 0..1. A SavedModel returns these by signatures of their own,
            with confidence in any case; `"tflite_logits"` is unchanged. A
            multilabel model has no confidence; in its files of scores, a
            class is where its score is above 0.
        progress: function of `(phase, seconds)`, such as
            `ka.export.print_progress`, called when each phase begins (`None`
            seconds) and ends; `None` for a silent export.

    Returns:
        dict, the contents of `manifest.json`.

    Raises:
        FileExistsError: `directory` exists, and `overwrite` is False or it
            holds no export or is the current folder.
        ValueError: an argument is invalid; an artefact fails its check of
            operators, agreement or mean IoU; or the extra `onnx` is missing.
    """
    check_segmenter(model)
    directory = Path(os.path.abspath(directory))  # "." has no name
    spec = DatasetSpec(class_names, ignore_label, colormap, task=model.task)
    _check(model, directory, spec, formats, overwrite)
    images, shown = _checked_images(model, verify_images, preview_image)
    check_repeatable(evaluation_data)
    answers = checked_answers(model, coarse_labels, outputs)
    model = in_float32(model)
    calibration = _checked_calibration(
        calibration_images, formats, model, int8_in_float
    )
    sizes = _image_sizes(model, image_size, more_image_sizes, images)
    if "tflite_gpu" in formats:
        _check_for_gpu(model, sizes)
    with stop_signals(_interrupt), replacing_folder(directory) as work:
        written = _write_artefacts(
            model, work, sizes, formats, calibration, answers, spec, progress
        )
        if _is_rgb(model):
            # MediaPipe reads no other images.
            add_metadata(
                written, directory.name, spec.class_names, spec.is_multilabel
            )
        # The reference is the very file that is handed over.
        reference = Predictor(work / FILE_NAMES["keras"])
        evaluated = evaluation_data is not None
        comparison = Comparison(
            model, reference, images, evaluated, coarse_labels
        )
        artefacts, entries = _compared(written, comparison, progress)
        if evaluated:
            evaluate_artefacts(
                artefacts, entries, comparison, evaluation_data, spec, progress
            )
            for entry in entries:
                verify.check_loss(entry, max_int8_loss)
        content = {
            "name": directory.name,
            "num_classes": model.num_classes,
            "class_names": list(spec.class_names),
            "ignore_label": ignore_label,
            "colormap": [list(c) for c in spec.colors()],
            "preprocess": model.preprocess.get_config(),
            "output_stride": model.output_stride,
            **_task_entries(model),
            "versions": manifests.versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "date": datetime.date.today().isoformat(),
            "protocol": verify.PROTOCOL,
            "calibration_images": len(calibration.images),
            "artefacts": entries,
        }
        _write_texts(work, content, spec, about)
        _write_preview(work, shown, reference, spec)
        write_json(work / "manifest.json", content)
    return content


def _compared(written, comparison, progress):
    """Opens the artefacts; returns them and their entries of the manifest."""
    artefacts, entries = [], []
    for format, path in written:
        with timed(progress, f"{path.name}: comparing with the model"):
            predictor = comparison.reference
            if format != "keras":
                predictor = Predictor(path)
            artefacts.append(Artefact(format, path, predictor))
            entries.append(comparison.entry(artefacts[-1]))
    return artefacts, entries


def _is_rgb(model):
    """Returns True for a model of RGB images of 8 bits."""
    dtype = model.preprocess.input_dtype
    return PixelFormat(model.input_channels, dtype) == PixelFormat()


def _task_entries(model):
    """Returns the manifest's entries of a binary or multilabel model."""
    if model.task == "semantic":
        return {}
    threshold = model.threshold
    if isinstance(threshold, tuple):
        threshold = list(threshold)
    return {"task": model.task, "threshold": threshold}


def _write_texts(work, content, spec, about):
    """Writes the class names and the model card."""
    write_text(work / "labels.txt", "\n".join(spec.class_names) + "\n")
    about = {**dict.fromkeys(card.ABOUT, ""), **(about or {})}
    write_text(work / "README.md", card.card(content, about))


def _write_preview(work, shown, reference, spec):
    """Writes an image and its labels."""
    # For pixels without data; there is no manifest yet that names it.
    reference.ignore_label = spec.ignore_label
    labels = reference.predict(shown)
    image, _ = without_gaps(shown, None)
    write_preview(work / "preview.png", image, labels, spec)


def _image_sizes(model, image_size, more_image_sizes, images):
    """Returns all image sizes of the files of one size, the first one first."""
    if image_size is None:
        image_size, _ = choose_image_size(
            collections.Counter(image.shape[:2] for image in images),
            model.input.shape[1:3],
        )
    sizes = [
        check_size("image_size", image_size, model),
        *(
            check_size("more_image_sizes", size, model)
            for size in more_image_sizes
        ),
    ]
    if len(set(sizes)) < len(sizes):
        raise InputError(
            "`image_size` and `more_image_sizes` must all differ. "
            f"Received: {sizes}"
        )
    return sizes


def _check(model, directory, spec, formats, overwrite):
    check_output(directory, overwrite, _is_exported, "keras-aspp export")
    check_weights(model, f"model {model.name!r}")
    if spec.num_classes != model.num_classes:
        raise InputError(
            f"`class_names` must name the model's {model.num_classes} "
            f"classes. Received: {spec.num_classes} names"
        )
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InputError(
            f"`formats` must be among {FORMATS}. Received: {unknown}"
        )
    if "onnx" in formats:
        onnx.check_installed()


def _checked_images(model, verify_images, preview_image):
    """Returns the images to verify, and the one to show as it is."""
    verify_images = list(verify_images)
    images = checked_images("verify_images", verify_images, model)
    if not images:
        raise InputError(
            "`verify_images` must hold at least one image. Received: none"
        )
    if preview_image is None:
        return images, np.asarray(verify_images[0])
    checked_images("preview_image", [preview_image], model)
    return images, np.asarray(preview_image)


def _check_for_gpu(model, sizes):
    """Raises `ValueError` where an app would resize scores to elsewhere."""
    if not _is_rgb(model):
        raise InputError(
            "tflite_gpu is for models of RGB images of 8 bits. Received: "
            f"{model.input_channels} bands of {model.preprocess.input_dtype}"
        )
    resize = model.get_layer("logits")
    if resize.align_corners:
        raise InputError(
            "tflite_gpu returns scores before the last resize, which apps do "
            "by half-pixel centers. Leave it out, or take tflite_logits. "
            "Received: a model with align_corners=True"
        )
    if any(resize.shift):
        raise InputError(
            "tflite_gpu returns scores before the last resize, which apps do "
            "without a shift. Export the output stride of the training, or "
            "take tflite_logits. Received: a model that shifts scores by "
            f"{resize.shift} pixels"
        )
    scale = resize.scale
    cells = keras.Model(model.input, resize.input[0])
    for size in sizes:
        shape = (1, *size, model.input_channels)
        found = cells.compute_output_shape(shape)[1:3]
        if tuple(n * scale for n in found) != size:
            raise InputError(
                "tflite_gpu returns scores of cells, which apps resize to the "
                f"image: cells of {scale}x{scale} pixels must fill it. Use "
                f"multiples of {scale}, or take tflite_logits. Received: "
                f"{size[0]}x{size[1]} pixels, {found[0]}x{found[1]} cells"
            )


def _is_exported(folder):
    """Returns True for an exported folder, or one of `explain_int8` alone."""
    if [path.name for path in folder.iterdir()] == ["int8_operators.json"]:
        return True
    try:
        return bool(read_manifest(folder / "manifest.json"))
    except (OSError, ValueError):
        return False


class _Calibration(NamedTuple):
    """Images that calibrate integers, and operators that stay in float."""

    images: list[np.ndarray]
    in_float: tuple[str, ...]


def _checked_calibration(images, formats, model, in_float):
    images = checked_images(
        "calibration_images", [] if images is None else images, model
    )
    if in_float and "tflite_int8" not in formats:
        raise InputError(
            "`int8_in_float` is for tflite_int8, which is not among the "
            f"formats. Received: int8_in_float={list(in_float)}"
        )
    wanted = bool({*QUANTIZED} & {*formats})
    if wanted and not images:
        raise InputError(
            "`calibration_images` must hold images of the training split "
            f"for {' and '.join(QUANTIZED)}. Received: none"
        )
    if images and not wanted:
        raise InputError(
            f"`calibration_images` are for {' and '.join(QUANTIZED)}, which "
            f"are not among the formats. Received: {len(images)} images, "
            f"formats={tuple(formats)}"
        )
    return _Calibration(images, tuple(in_float))


def _write_artefacts(
    model, work, sizes, formats, calibration, answers, spec, progress
):
    """Writes the artefacts; returns `(format, path)` of each."""

    def writing(path):
        return timed(progress, f"{path.name}: converting")

    written = [("keras", work / FILE_NAMES["keras"])]
    save_model(model, written[0][1])
    model = fold_batch_norm(model)
    if "saved_model" in formats:
        written.append(("saved_model", work / FILE_NAMES["saved_model"]))
        with writing(written[1][1]):
            write_saved_model(
                model, written[1][1], answers["outputs"], spec.ignore_label
            )
    wanted = [f for f in formats if f.startswith("tflite")]
    for size in sizes:
        paths = {
            format: _of_size(format, work, size, sizes) for format in FILE_NAMES
        }
        if "onnx" in formats:
            written.append(("onnx", paths["onnx"]))
            with writing(paths["onnx"]):
                onnx.write_onnx(model, paths["onnx"], size, **answers)
        files = tflite.convert(
            model,
            size,
            wanted,
            calibration.images,
            phase=lambda format, paths=paths: writing(paths[format]),
            in_float=calibration.in_float,
            **answers,
        )
        for format, data in files.items():
            written.append((format, paths[format]))
            paths[format].write_bytes(data)
        wanted = [f for f in wanted if f != "tflite_any_size"]
    return written


def _of_size(format, work, size, sizes):
    path = work / FILE_NAMES[format]
    if size == sizes[0]:
        return path
    return path.with_stem(f"{path.stem}_{size[0]}x{size[1]}")


def _interrupt(number, frame):
    """Handler that ends an export, which removes its temporary folder."""
    raise KeyboardInterrupt("Interrupted. Nothing was exported.")
