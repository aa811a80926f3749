"""evaluate: one pass over a split, and every number read from it."""

import heapq
import math
from pathlib import Path

from keras_aspp.data.pipeline import evaluation_dataset, names_of
from keras_aspp.metrics import (
    BandIoU,
    BoundaryIoU,
    Calibration,
    ConfusionMatrix,
    SizeRecall,
)
from keras_aspp.metrics.objects import regions
from keras_aspp.plots.evaluation import confusion_figure, reliability_figure
from keras_aspp.plots.figure import save
from keras_aspp.plots.labels import caption, draw_sheet
from keras_aspp.utils.exceptions import InputError

# Pictures on the sheet of the worst.
NUM_WORST = 8


def evaluate(
    predictor,
    source,
    split,
    batch_size=8,
    progress=None,
    boundaries=False,
    calibration=False,
    objects=False,
    figures=None,
):
    """Counts every picture of a split once, at its own size.

    Args:
        predictor: `Predictor`.
        source: `FolderSource` or `TfdsSource`.
        split: str.
        batch_size: int > 0, pictures of one size per call.
        progress: callable `(done, total)` or `None`.
        boundaries: bool. Boundary IoU, and IoU in bands around outlines.
        calibration: bool. Confidence against accuracy; needs scores.
        objects: bool. Recall by the size of objects, which are the connected
            regions of a label.
        figures: folder, made if need be, or `None`: the confusion matrix, the
            worst pictures, and with `calibration` the confidences.

    Returns:
        dict, the contents of `metrics.json`; `None` for a number that is not
        defined.

    Raises:
        ValueError: model and data set differ in their number of classes, or
            the model has no scores.
    """
    spec = source.spec
    resolve_num_classes(predictor, spec)
    if calibration and not predictor.has_scores:
        raise InputError(
            "Only a .keras model has scores (and model_logits.tflite), which "
            "calibration needs. "
            f"Received: {predictor.path}"
        )
    if figures:
        # Before the work, which a file of this name would bring to nothing.
        Path(figures).mkdir(parents=True, exist_ok=True)
    counted = spec.num_classes, spec.ignore_label
    ignore = spec.ignore_label
    matrix = ConfusionMatrix(*counted)
    rims = ()
    if boundaries:
        rims = BoundaryIoU(*counted), BandIoU(*counted)
    confidence, recall = Calibration(ignore), SizeRecall()
    worst = _Worst(spec, NUM_WORST if figures else 0)
    total, done = source.size(split), 0
    for images, labels, numbers in evaluation_dataset(
        source, split, batch_size, numbered=True
    ):
        if calibration:
            scores = predictor.score_batch(images.numpy())
            confidence.update(labels, scores)
            predicted = scores.argmax(-1)
        else:
            predicted = predictor.predict_batch(images.numpy())
        matrix.update_state(labels, predicted)
        # What fills a batch is ignored as a whole.
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
                recall.update(guess, *regions(one, *counted[::-1]))
            worst.update(int(number), image, one, guess)
        done = min(done + len(images), total)
        if progress:
            progress(done, total)
    found = {**metrics_dict(matrix, spec), "num_images": total, "split": split}
    if boundaries:
        found["boundary_iou"] = _number(rims[0].mean())
        found["band_mean_iou"] = {
            f"{width}": _number(iou) for width, iou in rims[1].mean().items()
        }
    if objects:
        found["recall_by_size_px"] = recall.result()
        found["objects_by_size_px"] = recall.counts()
    if calibration:
        found["calibration_error"] = _number(confidence.error())
        found["calibration"] = confidence.histogram()
    if figures:
        folder = Path(figures)
        save(
            confusion_figure(matrix.matrix(), spec),
            folder,
            "confusion_matrix",
            ("png",),
        )
        if calibration:
            figure = reliability_figure(confidence)
            save(figure, folder, "confidence", ("png",))
        worst.draw(folder / "worst_pictures.png", source, split)
    return found


class _Worst:
    """The pictures of the lowest mean IoU, each over its own classes."""

    def __init__(self, spec, count):
        self.spec, self.count, self.heap = spec, count, []

    def update(self, number, image, labels, predicted):
        if not self.count or number < 0:
            return
        matrix = ConfusionMatrix(self.spec.num_classes, self.spec.ignore_label)
        matrix.update_state(labels[None], predicted[None])
        score = matrix.mean_iou()
        if math.isnan(score):
            return
        # The best of the worst is on top, and goes.
        heapq.heappush(self.heap, (-score, -number, image, labels, predicted))
        if len(self.heap) > self.count:
            heapq.heappop(self.heap)

    def draw(self, path, source, split):
        if not self.heap:
            return
        worst = sorted(self.heap, reverse=True, key=lambda item: item[:2])
        names = names_of(source, split, [-number for _, number, *_ in worst])
        cells = [
            (
                f"{caption(name, labels)}  mean IoU {-score:.3f}",
                image,
                labels,
                predicted,
            )
            for name, (score, _, image, labels, predicted) in zip(
                names, worst, strict=True
            )
        ]
        title = f"{split}, the lowest mean IoU: picture, label, prediction"
        draw_sheet(path, title, cells, self.spec)


def resolve_num_classes(predictor, spec):
    """Raises `ValueError` where model and data set differ in their classes.

    A file that does not say how many it has must answer with the data set's.
    """
    if predictor.num_classes is None:
        predictor.num_classes = spec.num_classes
    if predictor.num_classes != spec.num_classes:
        raise InputError(
            f"The model has {predictor.num_classes} classes, the data set "
            f"{spec.num_classes}. Received: {predictor.path}"
        )


def metrics_dict(matrix, spec):
    """The numbers of a `ConfusionMatrix`, JSON-ready."""
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
