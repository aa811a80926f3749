"""Segments image files and writes masks and overlays."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_aspp.annotations.writer import (
    FORMATS,
    MIN_AREA_PX,
    COCOWriter,
    write_labelme,
)
from keras_aspp.data.decode import read_fitting
from keras_aspp.data.multilabel import mask_folders
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tiff import Bands
from keras_aspp.inference.predictor import Predictor, with_gaps
from keras_aspp.inference.scenes import is_predicted_by_window, predict_scene
from keras_aspp.plots.labels import (
    color_labels,
    hatched,
    ignored_color,
    index_image,
    spec_of,
)
from keras_aspp.utils.errors import is_user_error, one_line
from keras_aspp.utils.exceptions import (
    InputError,
    OutputExistsError,
    UserError,
)
from keras_aspp.utils.files import WrittenFiles, make_folder, replacing
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

_UNSURE = "unsure"


def predict_files(
    predictor: Predictor,
    images: Sequence[PathLike],
    output: PathLike,
    progress: Callable[[int, int], None] | None = None,
    annotation_format: str | None = None,
    min_area: int = MIN_AREA_PX,
    scores: bool = False,
    windows: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[str, Path, str]], list[str]]:
    """Segments files one by one; an unreadable file does not stop the rest.

    A TIFF with a georeference, or of more pixels than an image may have, is a
    scene: see `predict_scene`, which writes `NAME_labels.tif` and, with
    `scores`, `NAME_probabilities.tif`.

    For a multilabel model, `masks/CLASS/NAME.png` replace labels and colors:
    255 where the class is, else 0, as a data set stores them.

    Of images of equal name from several folders, the first by its path keeps
    the name, and the others are `NAME_2`, `NAME_3` and so on.

    Args:
        predictor: `Predictor`.
        images: paths.
        output: folder to write to; created if missing. Files that an earlier
            call wrote and nobody changed are replaced, as `.predict.sha256`
            in the folder records. All others are kept: nothing is predicted
            if one of them is in the way.
        progress: function of `(done, total)`, or `None`.
        annotation_format: `"coco"` also writes `predictions.json`, in which
            names that repeat have folders; `"labelme"` one `NAME.json` per
            image; `None` neither.
        min_area: pixels; annotations leave out smaller regions.
        scores: bool. Write `NAME_confidence.png` (8 bits, 255 is 1; not of
            classes that may overlap) too and, if the model has them,
            `NAME_probabilities.npz` (`probabilities`, float16 `[H, W, K]`,
            and `class_names`); 0 and NaN where there is no data. A scene is
            refused with `annotation_format`.
        windows: function of `(done, total)` windows of a scene, or `None`.

    Returns:
        `(rows, messages)`: name, overlay and largest classes of each image
        done; one line for each that failed.

    Raises:
        ValueError: an unknown `annotation_format`, or a model without
            confidence, which `scores` needs.
        FileExistsError: a file would be replaced that this function did not
            write, or that was changed since; or `output` is a data set, to
            which a multilabel model would add masks.
    """
    if scores:
        check_scores(predictor)
    if annotation_format not in (None, *FORMATS):
        raise InputError(
            f"`annotation_format` must be one of {FORMATS}. "
            f"Received: {annotation_format!r}"
        )
    spec = spec_of(predictor)
    stems = _stems(images)
    written = WrittenFiles(output, "predict")
    files = [
        _files_of(name, stem, spec, scores, annotation_format)
        for name, stem in zip(images, stems, strict=True)
    ]
    common = ["predictions.json"] if annotation_format == "coco" else []
    written.check(itertools.chain(*files, common))
    if spec.is_multilabel:
        check_no_data_set(output, (Path(output) / "dataset.json").exists())
    output = make_folder(output)
    collected = COCOWriter(spec, min_area)
    rows, messages = [], []
    names = _names_in_coco(images)
    for done, (name, stem) in enumerate(zip(images, stems, strict=True), 1):
        try:
            written.begin(files[done - 1])
            if is_predicted_by_window(name):
                _check_scene(name, annotation_format)
                path = output / f"{stem}_labels.tif"
                shares = _predict_raster(
                    predictor, name, path, spec, scores, windows
                )
            else:
                path = output / f"{stem}_overlay.png"
                labels = _predict_image(predictor, name, path, spec, scores)
                shares = _shares_of(labels, spec)
                if annotation_format == "coco":
                    collected.add(names[done - 1], labels)
                elif annotation_format == "labelme":
                    write_labelme(
                        output / f"{stem}.json",
                        os.path.relpath(name, output),
                        labels,
                        spec,
                        min_area,
                    )
            rows.append((Path(name).name, path, _largest(shares)))
        except Exception as error:
            if not is_user_error(error):
                raise
            message, shown = one_line(error), printable(name)
            if shown not in message:  # an error of the model
                message = f"{message} Image: {shown}"
            messages.append(message)
        finally:
            # On a full disk they stay begun.
            with contextlib.suppress(UserError):
                written.add(files[done - 1])
        if progress is not None:
            progress(done, len(images))
    if annotation_format == "coco":
        written.begin(common)
        collected.write(output / "predictions.json")
        written.add(common)
    return rows, messages


def check_no_data_set(output: PathLike, is_data_set: bool) -> None:
    """Raises `FileExistsError` for masks that would be those of a data set.

    Args:
        output: folder.
        is_data_set: bool. It holds a dataset.json.
    """
    if is_data_set:
        raise OutputExistsError(
            "A multilabel model writes masks/CLASS/NAME.png, which a data set "
            "reads as its own; name a folder without dataset.json. "
            f"Received: {printable(output)}"
        )


def check_scores(predictor: Predictor) -> None:
    """Raises `ValueError` if a model has no confidence, or probabilities."""
    if predictor.is_multilabel:
        has_scores = predictor.has_probabilities
        outputs = '"[labels, probabilities]"'
    else:
        has_scores = predictor.has_confidence
        outputs = '"[labels, confidence]" or "[labels, probabilities]"'
    if not has_scores:
        raise InputError(
            "--scores needs a .keras model, or an artefact that was exported "
            f"with --export.outputs {outputs}; model_logits.tflite and "
            "model_gpu.tflite need their manifest.json beside them. "
            f"Received: {predictor.path}"
        )


def predict_bands(
    predictor: Predictor,
    bands: Bands,
    ignore_label: int,
    scores: bool = False,
) -> tuple[np.ndarray, dict[str, bytes]]:
    """Segments an image and encodes its scores.

    Args:
        predictor: `Predictor`, with confidence if `scores` is True.
        bands: `Bands` in the predictor's format.
        ignore_label: int, label of pixels without a value.
        scores: bool; see `predict_files`.

    Returns:
        `(labels, files)`; the dict maps the end of a file's name to its
        content.
    """
    if not scores:
        labels = predictor.predict_batch(bands.values[None])[0]
        return with_gaps(labels, bands.valid, ignore_label), {}
    with_confidence = not predictor.is_multilabel
    labels, *found = predictor.predict(
        bands.values,
        return_confidence=with_confidence,
        return_probabilities=predictor.has_probabilities,
    )
    labels = with_gaps(labels, bands.valid, ignore_label)
    found = [with_gaps(values, bands.valid, np.nan) for values in found]
    files = {}
    if with_confidence:
        confidence, *found = found
        files["confidence.png"] = io.BytesIO()
        # 8 bits have no NaN.
        shares = np.where(np.isnan(confidence), 0, confidence)
        gray = Image.fromarray(np.round(255 * shares).astype("uint8"))
        gray.save(files["confidence.png"], format="PNG")
    if found:
        files["probabilities.npz"] = io.BytesIO()
        np.savez_compressed(
            files["probabilities.npz"],
            # 11 significant bits: an error of 0.0003 at most.
            probabilities=found[0].astype("float16"),
            class_names=np.array(spec_of(predictor).class_names),
        )
    return labels, {name: file.getvalue() for name, file in files.items()}


def _predict_raster(predictor, name, path, spec, scores, windows):
    """Writes labels and scores of a scene; returns `_shares`."""
    probabilities = None
    if scores:
        stem = path.name.removesuffix("_labels.tif")
        probabilities = path.with_name(f"{stem}_probabilities.tif")
    counts = predict_scene(predictor, name, path, windows, probabilities)
    total = counts.sum(-1).max()
    if spec.is_multilabel:
        counts = counts[:, 1]
    return _shares(counts, total, spec)


def _predict_image(predictor, name, path, spec, scores):
    """Writes labels, colors and overlay of an image; returns the labels."""
    bands = read_fitting(name, None, True, predictor.pixels)
    labels, files = predict_bands(predictor, bands, spec.ignore_label, scores)
    stem = path.name.removesuffix("_overlay.png")
    for end, content in files.items():
        with replacing(path.with_name(f"{stem}_{end}"), False) as temporary:
            temporary.write_bytes(content)
    for place, drawn in drawings(bands.values, labels, spec, stem).items():
        file = path.parent / place
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, durable=False) as temporary:
            drawn.save(temporary, format="PNG")
    return labels


def drawings(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, stem: str
) -> dict[str, Image.Image]:
    """Draws what is written of an image: labels or masks, and the overlay.

    Pixels of the ignore label, unsure or without a value, have a color of
    their own and are hatched in the overlay.

    Args:
        image: `[H, W, C]`.
        labels: int `[H, W]`, or `[H, W, K]` of a multilabel task.
        spec: `DatasetSpec`.
        stem: str, name of the image.

    Returns:
        dict: place within the output folder -> PIL image; see
        `predict_files`.
    """
    if spec.is_multilabel:
        found = {
            f"masks/{folder}/{stem}.png": Image.fromarray(
                np.where(labels[..., i] == 1, 255, 0).astype("uint8")
            )
            for i, folder in enumerate(mask_folders(spec))
        }
    else:
        found = {
            f"{stem}_labels.png": index_image(labels, spec),
            f"{stem}_color.png": Image.fromarray(
                color_labels(labels, spec, ignored_color(spec))
            ),
        }
    painted = Image.fromarray(hatched(image, labels, spec))
    return {**found, f"{stem}_overlay.png": painted}


def _check_scene(name, annotation_format):
    """Raises `ValueError` for outputs that a scene does not have."""
    if annotation_format:
        raise InputError(
            "`--format` does not support scenes (TIFFs with a georeference, "
            f"or too large to decode). File: {printable(name)}"
        )


def _names_in_coco(images):
    """Returns the names of images; those that repeat have folders, too."""
    paths = [Path(os.path.abspath(image)) for image in images]
    counts = collections.Counter(path.name for path in paths)
    repeated = [path for path in paths if counts[path.name] > 1]
    if not repeated:
        return [path.name for path in paths]
    root = os.path.commonpath([path.parent for path in repeated])
    return [
        os.path.relpath(path, root) if counts[path.name] > 1 else path.name
        for path in paths
    ]


def _stems(images):
    """Returns the name of the files of each image, in any order the same."""
    groups = collections.defaultdict(list)
    for i, image in enumerate(images):
        groups[Path(image).stem].append((os.fspath(image), i))
    stems = [None] * len(images)
    for stem, places in groups.items():
        # Names of other images are left to them.
        free = (
            name
            for name in (f"{stem}_{n}" for n in itertools.count(2))
            if name not in groups
        )
        for (_, i), name in zip(
            sorted(places), itertools.chain([stem], free), strict=False
        ):
            stems[i] = name
    return stems


def _files_of(name, stem, spec, scores, annotation_format):
    """Returns the files of an image within the folder."""
    try:
        is_raster = is_predicted_by_window(name)
    except UserError:  # reported when its turn comes
        return []
    if is_raster:
        ends = ["labels.tif", *["probabilities.tif"] * scores]
        return [f"{stem}_{end}" for end in ends]
    ends = ["overlay.png"]
    if scores:
        ends += ["confidence.png", "probabilities.npz"]
    if spec.is_multilabel:
        folders = mask_folders(spec)
        masks = [f"masks/{folder}/{stem}.png" for folder in folders]
    else:
        masks, ends = [], [*ends, "labels.png", "color.png"]
    annotations = [f"{stem}.json"] if annotation_format == "labelme" else []
    return [*masks, *(f"{stem}_{end}" for end in ends), *annotations]


def _shares_of(labels, spec):
    """Returns class names and their shares of the pixels of an image."""
    if spec.is_multilabel:
        counts = spec.count_pixels(labels)[:-1]
    else:
        counts = np.bincount(labels.ravel(), minlength=256)
    return _shares(counts, np.prod(labels.shape[:2]), spec)


def _shares(counts, total, spec):
    """Returns names and shares of labels by their pixels, largest first."""
    order = counts.argsort(kind="stable")[::-1]
    names = {spec.ignore_label: _UNSURE, **dict(enumerate(spec.class_names))}
    return [(names[i], counts[i] / total) for i in order.tolist() if counts[i]]


def _largest(shares):
    """Formats the largest labels, and how many pixels are unsure."""
    shown = shares[:3]
    shown += [pair for pair in shares[3:] if pair[0] == _UNSURE]
    return ", ".join(f"{name} {_percent(share)}" for name, share in shown)


def _percent(share):
    return "<1%" if share < 0.005 else f"{share:.0%}"
