"""Comparison of artefacts with the model, and their mean IoU."""

import dataclasses
import functools
from pathlib import Path

import tensorflow as tf

from keras_aspp.data.resize import resize_image
from keras_aspp.export import manifest as manifests
from keras_aspp.export import onnx, verify
from keras_aspp.export.formats import FILE_NAMES
from keras_aspp.inference import Predictor, serving
from keras_aspp.litert import describe
from keras_aspp.models import fold_batch_norm
from keras_aspp.utils.progress import timed


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported file or folder, opened once for all measurements.

    Attributes:
        format: str, a key of `FILE_NAMES`.
        path: `Path`.
        predictor: `Predictor` of it.
    """

    format: str
    path: Path
    predictor: Predictor


class Comparison:
    """Compares artefacts with the model that they are made of.

    Args:
        model: `Segmenter`.
        reference: `Predictor` of the exported `model.keras`.
        images: list of uint8 `[H, W, 3]`.
        evaluated: bool. Whether the mean IoU of the artefacts is measured.
        coarse_labels: bool; see `export_model`.
    """

    def __init__(self, model, reference, images, evaluated, coarse_labels):
        self.reference, self.images = reference, images
        self.evaluated = evaluated
        self.smallest_side = None
        if None in model.input.shape[1:3]:
            self.smallest_side = serving.smallest_side(model)
        self._answer = _answer_of(model, serving.answer)
        self._coarse_answer = None
        if coarse_labels:
            # Nearest cells are computed from the size.
            self._coarse_answer = _answer_of(
                fold_batch_norm(model), serving.answer_coarsely, any_size=False
            )

    def entry(self, artefact):
        """Measures an artefact.

        Args:
            artefact: `Artefact`.

        Returns:
            dict, its entry of the manifest; the mean IoU is `None`.

        Raises:
            ValueError: the artefact agrees too little, does not run without
                keras_aspp, or has operators that are not allowed.
        """
        kind, path = artefact.format, artefact.path
        predictor = artefact.predictor
        entry = manifests.describe(path, kind, predictor, self.reference.pixels)
        if not predictor.is_multilabel:
            entry["output"]["range"] = [0, self.reference.num_classes - 1]
        entry |= _operators(path, predictor)
        size, images = predictor.image_size, self.images
        if size is not None:
            images = [resize_image(image, size) for image in images]
        value, differences = verify.compare(
            path,
            self._expected(kind, size),
            self._with_parts(images, size),
            predictor.predict if kind == "keras" else None,
        )
        verify.check_agreement(value, kind, path.name, self.evaluated)
        verify.check_differences(differences, kind, path.name)
        entry |= {
            "mean_iou": None,
            "keras_mean_iou": None,
            "loss_points": None,
            "agreement_with_keras": value,
            "max_abs_logit_difference": None,
            "score_difference": differences or None,
        }
        if kind == "tflite_logits":
            entry["output"] |= {
                "name": "logits",
                "shape": [
                    *entry["output"]["shape"],
                    self.reference.num_classes,
                ],
                "dtype": "float32",
                "range": None,
            }
            entry["max_abs_logit_difference"] = verify.logit_difference(
                predictor, self.reference, images
            )
        entry["outputs"] = [
            entry["output"],
            *manifests.further_outputs(
                entry, differences, self.reference.num_classes
            ),
        ]
        entry["latency_ms"] = verify.latency_ms(predictor, images[0])
        return entry

    def _expected(self, kind, size):
        """Returns the function that answers as an artefact should."""
        if kind == "keras":
            # The file against the model in memory; all others against the
            # file, which is handed over with them.
            return self._answer
        coarse = size is not None and kind != "tflite_logits"
        if self._coarse_answer and coarse:
            return self._coarse_answer
        return self._reference_answer

    def _reference_answer(self, image, outputs):
        extra = [name for name in outputs if name != "labels"]
        options = {f"return_{name}": True for name in extra}
        found = self.reference.predict(image, **options)
        # In the order of `serving.OUTPUTS`.
        names = [name for name in serving.OUTPUTS if name in outputs]
        return dict(zip(names, found if extra else [found], strict=True))

    def _with_parts(self, images, size):
        """Returns the images, and parts of odd sizes where any size fits."""
        if size is not None or self.smallest_side is None:
            return images
        return [
            part
            for image in images
            for part in verify.sizes_of(image, self.smallest_side)
        ]


def _answer_of(model, answer, any_size=True):
    """Returns a function of an image and names of outputs of a model.

    Args:
        model: `Segmenter`.
        answer: function of `(model, images, outputs)`.
        any_size: bool. One trace for all sizes, or one for each.
    """
    signature = [serving.image_spec(model)]

    @functools.cache
    def graph(outputs):
        return tf.function(
            lambda images: answer(model, images, outputs),
            signature if any_size else None,
        )

    def answer_one(image, outputs):
        found = graph(outputs)(image[None])
        return {name: values[0].numpy() for name, values in found.items()}

    return answer_one


def _operators(path, predictor):
    operators = gpu_compatible = None
    if path.suffix == ".onnx":
        operators = onnx.operators(path)
    if path.suffix == ".tflite":
        gpu_compatible = (
            predictor.image_size is not None and describe.gpu_compatible(path)
        )
        operators = describe.operators(path)
        describe.check_operators(operators, path)
    return {"operators": operators, "gpu_compatible": gpu_compatible}


def evaluate_artefacts(artefacts, entries, reference, data, spec, progress):
    """Adds the mean IoU of each artefact, and of Keras in the same protocol.

    Args:
        artefacts: list of `Artefact`.
        entries: list of dict, their entries of the manifest, to be completed.
        reference: `Predictor` of the exported `model.keras`.
        data: iterable of `(uint8 [H, W, 3], int [H, W])`.
        spec: `DatasetSpec`.
        progress: see `export_model`.
    """
    of_keras = {}
    for artefact, entry in zip(artefacts, entries, strict=True):
        size = artefact.predictor.image_size
        if size not in of_keras:
            shown = f" at {size[0]}x{size[1]}" if size else ""
            with timed(progress, f"{FILE_NAMES['keras']}: mean IoU{shown}"):
                of_keras[size] = verify.mean_iou(
                    lambda image, size=size: reference.predict_at(image, size),
                    data,
                    spec,
                )
        found = of_keras[size]
        if artefact.format != "keras":
            with timed(progress, f"{artefact.path.name}: mean IoU"):
                found = verify.mean_iou(artefact.predictor.predict, data, spec)
        entry["mean_iou"] = round(found, 6)
        entry["keras_mean_iou"] = round(of_keras[size], 6)
        # Adding 0 turns -0.0 into 0.0.
        entry["loss_points"] = round(100 * (of_keras[size] - found), 2) + 0.0
