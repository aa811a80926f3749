"""Evaluation: all metrics of a split in one pass."""

from __future__ import annotations

import csv
import heapq
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.data.multilabel import mask_folders
from keras_aspp.data.pipeline import evaluation_dataset, names_of
from keras_aspp.data.sources import Source
from keras_aspp.data.spec import DatasetSpec, other_class
from keras_aspp.inference import Predictor
from keras_aspp.inference.sliding_window import decide
from keras_aspp.metrics import (
    BandIoU,
    BinaryCurve,
    BoundaryIoU,
    Calibration,
    SizeRecall,
    confusion_of,
)
from keras_aspp.metrics.binary import binary_scores
from keras_aspp.metrics.objects import regions
from keras_aspp.plots.evaluation import (
    confusion_figure,
    precision_recall_figure,
    reliability_figure,
)
from keras_aspp.plots.figure import save
from keras_aspp.plots.labels import caption, draw_sheet, unpainted_classes
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import make_folder, write_text
from keras_aspp.utils.numeric import as_int, check_int
from keras_aspp.utils.types import PathLike

# Images on the sheet of the worst: by default, and at most, since the worst
# are held in memory.
NUM_WORST, MAX_WORST = 8, 100


def evaluate(
    predictor: Predictor,
    source: Source,
    split: str,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    boundaries: bool = False,
    calibration: bool = False,
    objects: bool = False,
    figures: PathLike | None = None,
    worst: int | None = None,
) -> dict[str, Any]:
    """Evaluates each image of a split once, at its own size.

    Args:
        predictor: `Predictor`.
        source: `FolderSource` or `TfdsSource`.
        split: str.
        batch_size: int > 0, images of one size per call.
        progress: callable `(done, total)` or `None`.
        boundaries: bool. Boundary IoU, and IoU in bands around outlines.
        calibration: bool. Confidence against accuracy; needs scores.
        objects: bool. Recall by the size of objects, which are the connected
            regions of a label other than the background.
        figures: folder for the confusion matrix, the worst images and, with
            `calibration`, the confidences; created if needed. `None` draws
            nothing.
        worst: int in 1..100, number of images to list under `worst` and, with
            `figures`, in worst.csv and on the sheet, those of the lowest mean
            IoU first. `None` lists none, and draws 8.

    Returns:
        dict, the contents of `metrics.json`; undefined numbers are
        `None`. `artefact` is the path of the file that was measured,
        `runtime` and `precision` are those of the predictor.

    Raises:
        ValueError: model and data set differ in their number of classes,
            `calibration` is asked of a model without scores, or `batch_size`
            or `worst` is out of range.
        FileExistsError: `figures` is a file.
    """
    spec = source.spec
    resolve_num_classes(predictor, spec)
    _check_request(predictor, batch_size, calibration, worst)
    _check_measures(spec, boundaries, calibration, objects)
    if figures:
        # Before the evaluation, whose result would be lost if this fails.
        make_folder(figures)
    counted = spec.num_classes, spec.ignore_label
    matrix = confusion_of(spec.task, *counted)
    rims = [rim(*counted) for rim in (BoundaryIoU, BandIoU) if boundaries]
    confidence, recall = Calibration(spec.ignore_label), SizeRecall()
    curves = curves_of(predictor, spec)
    thresholds = thresholds_of(predictor, spec)
    worst_images = _Worst(spec, worst or (NUM_WORST if figures else 0))
    total, done = source.size(split), 0
    for images, labels, numbers in evaluation_dataset(
        source, split, batch_size, numbered=True
    ):
        if calibration or curves:
            scores = predictor.score_batch(images.numpy())
            predicted = decide(
                scores, thresholds if spec.is_multilabel else None
            )
            if calibration:
                confidence.update(
                    labels, _true_scores(predictor, scores), predicted
                )
            if curves:
                probabilities = predictor.to_probabilities(scores)
                update_curves(curves, labels, probabilities, spec)
        else:
            predicted = predictor.predict_batch(images.numpy())
        matrix.update_state(labels, predicted)
        # Padding of a batch is ignored as a whole.
        for image, one, guess, number in zip(
            images.numpy(),
            labels.numpy(),
            predicted,
            numbers.numpy(),
            strict=True,
        ):
            for rim in rims:
                rim.update(one, guess)
            if objects:
                recall.update(guess, *_objects(one, spec))
            worst_images.update(int(number), image, one, guess)
        done = min(done + len(images), total)
        if progress:
            progress(done, total)
    found = {**metrics_dict(matrix, spec), "num_images": total, "split": split}
    found |= measured_model(predictor, spec)
    found |= metrics_of_task(matrix, curves, thresholds, spec)
    if boundaries:
        found |= _of_outlines(*rims)
    if objects:
        found["recall_by_size_px"] = recall.result()
        found["objects_by_size_px"] = recall.counts()
    if calibration:
        found["calibration_error"] = _number(confidence.error())
        found["calibration"] = confidence.histogram()
    if worst:
        found["worst"] = worst_images.table(source, split)
    if figures:
        parts = matrix, spec, confidence if calibration else None, curves
        _draw(Path(figures), *parts, thresholds)
        _draw_worst(Path(figures), worst_images, found, source)
    return found


def _objects(labels, spec):
    """Returns the `regions` of a label map, those of the background aside."""
    background = np.isin(labels, unpainted_classes(spec))
    labels = np.where(background, spec.ignore_label, labels)
    return regions(labels, spec.ignore_label, spec.num_classes)


def _of_outlines(rim, bands):
    """Returns the entries of a `BoundaryIoU` and a `BandIoU`."""
    of_bands = {f"{px}": _number(iou) for px, iou in bands.mean().items()}
    return {"boundary_iou": _number(rim.mean()), "band_mean_iou": of_bands}


def measured_model(predictor: Predictor, spec: DatasetSpec) -> dict[str, Any]:
    """Returns the entries of metrics that tell what was measured.

    `precision` is the arithmetic that was asked of the runtime; a quantized
    file computes in integers nevertheless. `notes` is present if the model's
    classes have other names than those of the data.
    """
    # Predictors of users may have none of these.
    found = {
        "artefact": str(getattr(predictor, "path", "")) or None,
        "runtime": getattr(predictor, "runtime", None),
        "precision": getattr(predictor, "precision", None),
    }
    different = other_class(_class_names(predictor, spec), spec.class_names)
    if different:
        found["notes"] = [
            "the model's classes have other names than those of the data, "
            f"and are compared by their ids; {different}"
        ]
    return found


def _check_request(predictor, batch_size, calibration, worst):
    check_int("batch_size", batch_size)
    if calibration and not predictor.has_scores:
        raise InputError(
            "Only a .keras model has scores (and model_logits.tflite and "
            "model_gpu.tflite), which calibration needs. "
            f"Received: {predictor.path}"
        )
    if worst is not None and as_int(worst) not in range(1, MAX_WORST + 1):
        raise InputError(
            f"`worst` must be in 1..{MAX_WORST}. Received: worst={worst}"
        )


def _draw_worst(folder, worst_images, found, source):
    """Draws the worst images, and writes worst.csv if they are listed."""
    split = found["split"]
    worst_images.draw(folder / "worst_images.png", source, split)
    if "worst" not in found:
        return
    with io.StringIO(newline="") as text:
        writer = csv.DictWriter(text, _WORST_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in found["worst"]:
            digits = {k: f"{v:.6f}" for k, v in row.items() if k in _SHARES}
            writer.writerow({**row, **digits})
        write_text(folder / "worst.csv", text.getvalue())


_WORST_COLUMNS = (
    "image",
    "mean_iou",
    "wrong_share",
    "worst_class",
    "worst_class_iou",
)
_SHARES = ("mean_iou", "wrong_share", "worst_class_iou")


def _draw(folder, matrix, spec, confidence, curves, thresholds):
    """Draws the confusion matrix, and confidences and curves if there are any.

    Classes that may overlap are not confused with each other.
    """
    if not spec.is_multilabel:
        figure = confusion_figure(matrix.matrix(), spec)
        save(figure, folder, "confusion_matrix", ("png",))
    if confidence is not None:
        save(reliability_figure(confidence), folder, "confidence", ("png",))
    _draw_curves(folder, curves, spec, thresholds)


def _draw_curves(folder, curves, spec, thresholds):
    """Draws precision and recall of an object, or of each class."""
    names = spec.class_names[-len(curves) :]
    ends = [""]
    if spec.is_multilabel:
        # File systems take names of 255 bytes.
        ends = [
            f"_{name if len(name.encode()) <= 200 else class_id}"
            for class_id, name in enumerate(mask_folders(spec))
        ]
    rows = zip(curves, names, thresholds, ends, strict=False)
    for curve, name, threshold, end in rows:
        figure = precision_recall_figure(curve, name, threshold)
        save(figure, folder, f"precision_recall{end}", ("png",))


def thresholds_of(predictor, spec):
    """Returns the threshold of the object, or of each class, `None` without."""
    if not spec.is_multilabel:
        return (predictor.threshold,)
    return predictor.threshold or (None,) * spec.num_classes


def _true_scores(predictor, scores):
    """Returns logits of the probabilities, without a binary threshold."""
    if predictor.threshold is None:
        return scores
    return np.log(np.maximum(predictor.to_probabilities(scores), 1e-30))


def _check_measures(spec, boundaries, calibration, objects):
    """Raises for measures that classes which may overlap do not have."""
    asked = {
        "boundaries": boundaries,
        "calibration": calibration,
        "objects": objects,
    }
    for name, value in asked.items():
        if value and spec.is_multilabel:
            raise InputError(
                f"`{name}` measures labels of which a pixel has one; classes "
                "that may overlap have IoU, Dice, precision, recall and "
                f"average precision. Received: {name}=True"
            )


def curves_of(predictor, spec):
    """Returns a `BinaryCurve` for the object, or for each class.

    Empty for a semantic task and without scores. Scores of a file of one size
    do not fit the labels of other sizes.
    """
    if (
        spec.task == "semantic"
        or not predictor.has_scores
        or predictor.image_size is not None
    ):
        return []
    return new_curves(spec)


def new_curves(spec):
    """Returns an empty `BinaryCurve` for the object, or for each class."""
    count = spec.num_classes if spec.is_multilabel else 1
    return [BinaryCurve(spec.ignore_label) for _ in range(count)]


def update_curves(curves, labels, probabilities, spec):
    """Counts a batch in the curve of the object, or of each class."""
    if not spec.is_multilabel:
        curves[0].update(labels, probabilities[..., 1])
        return
    labels = np.asarray(labels)
    for class_id, curve in enumerate(curves):
        curve.update(labels[..., class_id], probabilities[..., class_id])


def _with_curve(scores, threshold, curve=None):
    """Returns the measures of an object, ready for JSON."""
    found = {name: _number(value) for name, value in scores.items()}
    found["threshold"] = threshold
    if curve is not None:
        found["average_precision"] = _number(curve.average_precision())
        found["best_threshold"] = _number(curve.best_threshold())
    return found


def metrics_of_task(matrix, curves, thresholds, spec):
    """Returns the entries of a binary or multilabel task, ready for JSON."""
    if spec.is_multilabel:
        return _multilabel_metrics(matrix, curves, thresholds, spec)
    if spec.task == "binary":
        return {"binary": binary_metrics(matrix, *thresholds, *curves)}
    return {}


def binary_metrics(matrix, threshold, curve=None):
    """Returns the measures of the object, ready for JSON."""
    return _with_curve(binary_scores(matrix.matrix()), threshold, curve)


def _multilabel_metrics(matrix, curves, thresholds, spec):
    """Returns the measures of each class, and their means over classes."""
    count = spec.num_classes
    rows = [
        _with_curve(scores, threshold, *curve)
        for scores, threshold, curve in zip(
            matrix.per_class(),
            thresholds,
            [[curve] for curve in curves] or [[]] * count,
            strict=True,
        )
    ]
    means = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        if "threshold" not in name:
            means[name] = round(float(np.mean(values)), 6) if values else None
    named = dict(zip(spec.class_names, rows, strict=True))
    return {"multilabel": {"per_class": named, "mean": means}}


def choose_threshold(
    predictor: Predictor, source: Source, split: str, batch_size: int = 8
) -> float | tuple[float, ...]:
    """Returns the threshold of the best F1, and so the best IoU, of a split.

    It is 0.5 for a split without the object.

    Args:
        predictor: `Predictor` of a binary or multilabel model with scores.
        source: `FolderSource` or `TfdsSource`.
        split: str.
        batch_size: int > 0.

    Returns:
        float, or one for each class of a multilabel model.
    """
    spec = source.spec
    curves = curves_of(predictor, spec)
    for images, labels in evaluation_dataset(source, split, batch_size):
        found = predictor.probability_batch(images.numpy())
        update_curves(curves, labels, found, spec)
    best = [curve.best_threshold() for curve in curves]
    best = tuple(0.5 if math.isnan(one) else one for one in best)
    return best if spec.is_multilabel else best[0]


class _Worst:
    """Keeps the images of the lowest mean IoU, each over its own classes."""

    def __init__(self, spec, count):
        self.spec, self.count, self.heap = spec, count, []

    def update(self, number, image, labels, predicted):
        if not self.count or number < 0:
            return
        matrix = self._counted(labels, predicted)
        score = matrix.mean_iou()
        if math.isnan(score):
            return
        # The heap's top is the best of the worst images, and is removed.
        heapq.heappush(self.heap, (-score, -number, image, labels, predicted))
        if len(self.heap) > self.count:
            heapq.heappop(self.heap)

    def _counted(self, labels, predicted):
        spec = self.spec
        matrix = confusion_of(spec.task, spec.num_classes, spec.ignore_label)
        matrix.update_state(labels[None], predicted[None])
        return matrix

    def _sorted(self, source, split):
        """Returns `(name, (-mean IoU, ...))` of each image, worst first."""
        worst = sorted(self.heap, reverse=True, key=lambda item: item[:2])
        names = names_of(source, split, [-number for _, number, *_ in worst])
        return list(zip(names, worst, strict=True))

    def table(self, source, split):
        """Returns a dict of `_WORST_COLUMNS` for each image, worst first."""
        rows = []
        for name, (score, _, _, labels, predicted) in self._sorted(
            source, split
        ):
            matrix = self._counted(labels, predicted)
            of_classes = np.asarray(matrix.per_class_iou())
            class_id = int(np.nanargmin(of_classes))
            values = (
                name,
                _number(-score),
                _number(1 - matrix.pixel_accuracy()),
                self.spec.class_names[class_id],
                _number(of_classes[class_id]),
            )
            rows.append(dict(zip(_WORST_COLUMNS, values, strict=True)))
        return rows

    def draw(self, path, source, split):
        if not self.heap:
            return
        cells = [
            (
                f"{caption(name, labels)}  mean IoU {-score:.3f}",
                image,
                labels,
                predicted,
            )
            for name, (score, _, image, labels, predicted) in self._sorted(
                source, split
            )
        ]
        title = f"{split}, the lowest mean IoU: image, label, prediction"
        draw_sheet(path, title, cells, self.spec)


def resolve_num_classes(predictor, spec):
    """Raises `ValueError` if model and data set differ in classes or bands.

    A file that does not state its number of classes gets that of the data set.
    """
    if predictor.min_confidence:
        raise InputError(
            "Metrics count a prediction for every pixel, so `min_confidence` "
            f"must be 0. Received: min_confidence={predictor.min_confidence}"
        )
    # Predictors of users do not know masks that overlap.
    if getattr(predictor, "is_multilabel", False) != spec.is_multilabel:
        raise InputError(
            'Classes may overlap either in both model and data set ("task": '
            f'"multilabel") or in neither. Received: {predictor.path}, data '
            f"of task {spec.task}"
        )
    described = getattr(predictor, "spec", None)
    if described and described.task == "binary" and spec.task == "semantic":
        # Their masks may hold 255 for the object, which would be ignored.
        raise InputError(
            'The model is binary and the data set is not: put "task": '
            f'"binary" into its dataset.json. Received: {predictor.path}, '
            f"data of task {spec.task}"
        )
    if predictor.num_classes is None:
        predictor.num_classes = spec.num_classes
    if predictor.num_classes != spec.num_classes:
        raise InputError(
            f"The model has {predictor.num_classes} classes, the data set "
            f"{spec.num_classes}. Received: {predictor.path}"
        )
    _check_order(predictor, spec)
    pixels = getattr(predictor, "pixels", spec.pixels)
    if pixels.channels != spec.channels or pixels.dtype not in (
        spec.dtype,
        "float32",
    ):
        raise InputError(
            f"The model predicts images of {pixels.describe()}, those of the "
            f"data set have {spec.pixels.describe()}. "
            f"Received: {predictor.path}"
        )


def _class_names(predictor, spec):
    """Returns the model's class names, or those of the data if unstated."""
    # Predictors of users have no `spec`.
    described = getattr(predictor, "spec", None) or spec
    return described.class_names


def _check_order(predictor, spec):
    """Raises `ValueError` for the same classes in another order."""
    names = _class_names(predictor, spec)
    different = other_class(names, spec.class_names)
    if different is None or {*names} != {*spec.class_names}:
        return
    fix = "put `class_names` of dataset.json in the model's order"
    if not spec.is_multilabel:
        fix += ", and map the stored values to it by `label_map`"
    raise InputError(
        "The data set has the model's classes in another order, and metrics "
        f"compare class ids: {fix}. Received: {predictor.path}; {different}"
    )


def metrics_dict(matrix, spec):
    """Returns the metrics of a `ConfusionMatrix`, ready for JSON."""
    return {
        "mean_iou": _number(matrix.mean_iou()),
        "per_class_iou": {
            name: _number(iou)
            for name, iou in zip(
                spec.class_names, matrix.per_class_iou(), strict=True
            )
        },
        "pixel_accuracy": _number(matrix.pixel_accuracy()),
        "mean_accuracy": _number(matrix.mean_accuracy()),
        "frequency_weighted_iou": _number(matrix.frequency_weighted_iou()),
        "boundary_iou": None,
    }


def _number(value):
    return None if math.isnan(value) else round(float(value), 6)
