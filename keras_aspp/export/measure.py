"""Comparison of artefacts with the model, and their mean IoU."""

import tensorflow as tf

from keras_aspp.data.resize import resize_image
from keras_aspp.export import manifest as manifests
from keras_aspp.export import onnx, verify
from keras_aspp.export.formats import FILE_NAMES
from keras_aspp.inference import Predictor, serving
from keras_aspp.litert import describe
from keras_aspp.models import fold_batch_norm
from keras_aspp.utils.progress import timed


def _coarse_labels(model):
    """Function that labels a picture as a file of coarse labels should."""
    model = fold_batch_norm(model)
    label = tf.function(lambda images: serving.segment_coarsely(model, images))
    return lambda image: label(image[None])[0].numpy()


def measure_artefacts(
    artefacts, reference, model, images, evaluated, coarse_labels, progress
):
    """The manifest's entries, compared with Keras but not evaluated."""
    coarse = _coarse_labels(model) if coarse_labels else None
    least = None
    if None in model.input.shape[1:3]:
        least = serving.smallest_side(model)
    entries = []
    for kind, path in artefacts:
        with timed(progress, f"{path.name}: comparing with the model"):
            entries.append(
                _measure(
                    path, kind, reference, images, least, evaluated, coarse
                )
            )
    return entries


def _measure(path, kind, reference, images, least, evaluated, coarse):
    predictor = Predictor(path)
    entry = manifests.describe(path, kind, predictor)
    entry["output"]["range"] = [0, reference.num_classes - 1]
    entry["operators"] = entry["gpu_compatible"] = None
    if path.suffix == ".onnx":
        entry["operators"] = onnx.operators(path)
    if path.suffix == ".tflite":
        entry["gpu_compatible"] = (
            predictor.image_size is not None and describe.gpu_compatible(path)
        )
        entry["operators"] = describe.operators(path)
        describe.check_operators(entry["operators"], path)
    size = predictor.image_size
    if size is not None:
        images = [resize_image(image, size) for image in images]
    shown = images
    if size is None and least is not None:
        shown = [
            part for image in images for part in verify.sizes_of(image, least)
        ]
    label = reference.predict
    if coarse is not None and size is not None and kind != "tflite_logits":
        label = coarse
    value = verify.agreement(path, label, shown)
    verify.check_agreement(value, kind, path.name, evaluated)
    entry["mean_iou"] = entry["keras_mean_iou"] = None
    entry["loss_points"] = None
    entry["agreement_with_keras"] = value
    entry["max_abs_logit_difference"] = None
    if kind == "tflite_logits":
        entry["output"] |= {
            "name": "logits",
            "shape": [*entry["output"]["shape"], reference.num_classes],
            "dtype": "float32",
            "range": None,
        }
        entry["max_abs_logit_difference"] = verify.logit_difference(
            predictor, reference, images
        )
    entry["latency_ms"] = verify.latency_ms(predictor, images[0])
    return entry


def evaluate_artefacts(work, content, reference, examples, spec, progress):
    """Mean IoU of every artefact, and of Keras under the same protocol."""
    of_keras = {}
    for entry in content["artefacts"]:
        predictor = Predictor(work / entry["path"])
        size = predictor.image_size
        if size not in of_keras:
            shown = f" at {size[0]}x{size[1]}" if size else ""
            with timed(progress, f"{FILE_NAMES['keras']}: mean IoU{shown}"):
                of_keras[size] = verify.mean_iou(
                    lambda image, size=size: reference.predict_at(image, size),
                    examples,
                    spec,
                )
        found = of_keras[size]
        if entry["format"] != "keras":
            with timed(progress, f"{entry['path']}: mean IoU"):
                found = verify.mean_iou(predictor.predict, examples, spec)
        entry["mean_iou"] = round(found, 6)
        entry["keras_mean_iou"] = round(of_keras[size], 6)
        # Adding 0 takes the sign from nothing.
        entry["loss_points"] = round(100 * (of_keras[size] - found), 2) + 0.0
