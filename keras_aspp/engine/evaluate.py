"""evaluate: one pass over a split, and every number read from it."""

import math

from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.metrics import (
    BandIoU,
    BoundaryIoU,
    Calibration,
    ConfusionMatrix,
)


def evaluate(
    predictor,
    source,
    split,
    batch_size=8,
    progress=None,
    boundaries=False,
    calibration=False,
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

    Returns:
        dict, the contents of `metrics.json`; `None` for a number that is not
        defined.

    Raises:
        ValueError: model and data set differ in their number of classes, or
            the model has no scores.
    """
    spec = source.spec
    if predictor.num_classes not in (None, spec.num_classes):
        raise ValueError(
            f"The model has {predictor.num_classes} classes, the data set "
            f"{spec.num_classes}."
        )
    if calibration and not predictor.has_scores:
        raise ValueError(
            "Only a .keras model has scores, which calibration needs. "
            f"Received: {predictor.path}"
        )
    kinds, ignore = spec.num_classes, spec.ignore_label
    matrix = ConfusionMatrix(kinds, ignore)
    rims = ()
    if boundaries:
        rims = BoundaryIoU(kinds, ignore), BandIoU(kinds, ignore)
    confidence = Calibration(ignore)
    total, done = source.size(split), 0
    for images, labels in evaluation_dataset(source, split, batch_size):
        if calibration:
            scores = predictor.score_batch(images.numpy())
            confidence.update(labels, scores)
            predicted = scores.argmax(-1)
        else:
            predicted = predictor.predict_batch(images.numpy())
        matrix.update_state(labels, predicted)
        for one, guess in zip(labels.numpy(), predicted, strict=True):
            for rim in rims:
                # What fills a batch is ignored as a whole.
                rim.update(one, guess)
        done = min(done + len(images), total)
        if progress:
            progress(done, total)
    found = {**metrics_dict(matrix, spec), "num_images": total, "split": split}
    if boundaries:
        found["boundary_iou"] = _number(rims[0].mean())
        found["band_mean_iou"] = {
            f"{width}": _number(iou) for width, iou in rims[1].mean().items()
        }
    if calibration:
        found["calibration_error"] = _number(confidence.error())
        found["calibration"] = confidence.histogram()
    return found


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
