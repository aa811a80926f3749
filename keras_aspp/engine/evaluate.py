"""evaluate: one confusion matrix over a whole split."""

import math

from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.metrics import ConfusionMatrix


def evaluate(predictor, source, split, batch_size=8, progress=None):
    """Counts every picture of a split once, at its own size.

    Args:
        predictor: `Predictor`.
        source: `FolderSource` or `TfdsSource`.
        split: str.
        batch_size: int > 0, pictures of one size per call.
        progress: callable `(done, total)` or `None`.

    Returns:
        dict, the contents of `metrics.json`; `None` for a number that is not
        defined.

    Raises:
        ValueError: model and data set differ in their number of classes.
    """
    spec = source.spec
    if predictor.num_classes not in (None, spec.num_classes):
        raise ValueError(
            f"The model has {predictor.num_classes} classes, the data set "
            f"{spec.num_classes}."
        )
    matrix = ConfusionMatrix(spec.num_classes, spec.ignore_label)
    total, done = source.size(split), 0
    for images, labels in evaluation_dataset(source, split, batch_size):
        predicted = predictor.predict_batch(images.numpy())
        matrix.update_state(labels, predicted)
        done = min(done + len(images), total)
        if progress:
            progress(done, total)
    return {**metrics_dict(matrix, spec), "num_images": total, "split": split}


def metrics_dict(matrix, spec):
    """The numbers of a `ConfusionMatrix`, JSON-ready."""

    def number(value):
        return None if math.isnan(value) else round(float(value), 6)

    return {
        "mean_iou": number(matrix.mean_iou()),
        "per_class_iou": {
            name: number(iou)
            for name, iou in zip(
                spec.class_names, matrix.per_class_iou(), strict=True
            )
        },
        "pixel_accuracy": number(matrix.pixel_accuracy()),
        "mean_accuracy": number(matrix.mean_accuracy()),
        "frequency_weighted_iou": number(matrix.frequency_weighted_iou()),
        "boundary_iou": None,
    }
