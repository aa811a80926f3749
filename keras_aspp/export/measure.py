"""Comparison of artefacts with the model, and their mean IoU."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_aspp.data.resize import resize_image
from keras_aspp.data.tiff import without_gaps
from keras_aspp.export import manifest as manifests
from keras_aspp.export import onnx, verify
from keras_aspp.export.formats import FILE_NAMES
from keras_aspp.export.quantize import QUANTIZED
from keras_aspp.inference import Predictor, serving
from keras_aspp.inference.predictor import answer_at
from keras_aspp.litert import describe
from keras_aspp.litert.float16 import (
    LARGEST,
    NotSimulatedError,
    run_in_float16,
)
from keras_aspp.litert.graph import float_operators
from keras_aspp.models import fold_batch_norm
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import is_installed
from keras_aspp.utils.progress import timed

# Of files by their suffix, names of `run_alone.RUNTIMES`.
_RUNTIMES = {".tflite": ("interpreter", "cpu"), ".onnx": ("onnx",)}
# GPUs may compute in float16, and files of 8 bits round otherwise there.
_LEAST_ON_GPU = 0.95


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
        format, path = artefact.format, artefact.path
        predictor = artefact.predictor
        entry = manifests.describe(
            path, format, predictor, self.reference.pixels
        )
        if not predictor.is_multilabel:
            entry["output"]["range"] = [0, self.reference.num_classes - 1]
        entry |= _operators(path, predictor)
        if format in QUANTIZED:
            entry["float_operators"] = float_operators(path.read_bytes())
        size, images = predictor.image_size, self.images
        if size is not None:
            images = [resize_image(image, size) for image in images]
        value, differences = self._compare(artefact, size, images, entry)
        entry |= {
            "mean_iou": None,
            "keras_mean_iou": None,
            "loss_points": None,
            "conversion_loss_points": None,
            "agreement_with_keras": value,
            "max_abs_logit_difference": None,
            "score_difference": differences or None,
        }
        if format == "tflite_gpu":
            described = describe.describe_tflite(path)
            entry["input"] |= {"dtype": "float32", "range": [-1, 1]}
            entry["output"] |= {
                "name": _coarse_name(predictor),
                "shape": described["outputs"][0]["shape"],
                "dtype": "float32",
                "range": None,
            }
        if format == "tflite_logits":
            entry["output"] |= {
                "name": serving.MASK_LOGITS
                if predictor.is_multilabel
                else "logits",
                "shape": [
                    *entry["output"]["shape"][:3],
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

    def _compare(self, artefact, size, images, entry):
        """Checks an artefact in each runtime; returns `verify.compare`'s."""
        format, path = artefact.format, artefact.path
        expect = self._expected(format, size)
        shown = self._with_parts(images, size)
        if format == "keras":
            runtimes = {
                "keras": [
                    {"labels": artefact.predictor.predict(image)}
                    for image in shown
                ]
            }
        else:
            names = _RUNTIMES.get(path.suffix, ("saved_model",))
            # An app compiles a file for one size. The buffers of LiteRT's
            # Python package take no uint16 (2.3.0).
            if size is None or artefact.predictor.pixels.dtype == "uint16":
                names = names[:1]
            runtimes = verify.run_alone(path, shown, *names).outputs
        found = {}
        for name, answers in runtimes.items():
            found[name] = verify.compare(answers, expect, shown)
            verify.check_agreement(
                found[name][0], format, path.name, self.evaluated
            )
            verify.check_differences(found[name][1], format, path.name)
        if "cpu" in found:
            gpu, compatible, reason = _on_gpu(artefact, images[0], expect)
            entry["compiled_model"] = {
                "cpu": {"agreement_with_keras": found["cpu"][0]},
                "gpu": gpu,
            }
            entry |= {"gpu_compatible": compatible, "gpu_reason": reason}
        if size is not None and is_installed("openvino"):
            entry["openvino"] = _in_openvino(artefact, images, expect)
        if format == "tflite_gpu":
            entry["float16"] = _in_float16(artefact, images, expect)
        return next(iter(found.values()))

    def _expected(self, format, size):
        """Returns the function that answers as an artefact should."""
        if format == "keras":
            # The file against the model in memory; all others against the
            # file, which is handed over with them.
            return self._answer
        if self.labels_coarsely(format, size):
            return self._coarse_answer
        return self._reference_answer

    def labels_coarsely(self, format, size):
        """Returns True for formats whose labels are those of `coarse_labels`.

        Args:
            format: str, a key of `FILE_NAMES`.
            size: `(height, width)` of the artefact, or `None`.
        """
        exact = format in ("tflite_logits", "tflite_gpu")
        coarse = self._coarse_answer is not None
        return coarse and size is not None and not exact

    def label_coarsely(self, image, size):
        """Labels an image as an artefact of that size with `coarse_labels`.

        Args:
            image: `[H, W, C]`.
            size: `(height, width)`.
        """

        def answer(resized):
            return {
                "labels": self._coarse_answer(resized, ("labels",))["labels"][
                    None
                ]
            }

        image, _ = without_gaps(np.asarray(image), None)
        return answer_at(image, size, answer)["labels"]

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
            autograph=False,
        )

    def answer_one(image, outputs):
        found = graph(outputs)(image[None])
        return {name: values[0].numpy() for name, values in found.items()}

    return answer_one


def _operators(path, predictor):
    found = {"operators": None, "gpu_compatible": None}
    if path.suffix == ".onnx":
        found["operators"] = onnx.operators(path)
    if path.suffix == ".tflite":
        found["operators"] = describe.operators(path)
        describe.check_operators(found["operators"], path)
        found["gpu_reason"] = "an app compiles files of one size only"
        if predictor.image_size is not None:
            found["gpu_static_verdict"] = {
                "compatible": describe.gpu_compatible(path),
                "by": f"analyzer of TensorFlow {tf.__version__}",
            }
    return found


def _on_gpu(artefact, image, expect):
    """Tries a `.tflite` on this machine's GPU.

    One image, since a driver in software takes a minute for a large one.

    Returns:
        `(found, compatible, reason)`: agreement and acceleration, `None`
        where it did not run; whether the GPU computes it, `None` without a
        GPU; why not, or `None`.
    """
    format, path = artefact.format, artefact.path
    found = reason = None
    try:
        run = verify.run_on_gpu(path, image)
    except verify.NoGPUError as error:
        return None, None, str(error)
    except InputError as error:
        reason = str(error)
    else:
        value, _ = verify.compare(run.outputs["gpu"], expect, [image])
        found = {
            "agreement_with_keras": value,
            "is_fully_accelerated": run.fully_accelerated,
        }
        if not run.fully_accelerated:
            reason = "the GPU runs a part of it"
        elif value < _LEAST_ON_GPU:
            reason = f"the GPU agrees with Keras on {value:.1%} of the pixels"
    if reason and format == "tflite_gpu":
        raise InputError(
            "A tflite_gpu file must run on this machine's GPU. "
            f"Received: {path.name}, {reason}"
        )
    return found, reason is None, reason


def _in_openvino(artefact, images, expect):
    """Returns the agreement of a file in OpenVINO, which may not read it."""
    try:
        run = verify.run_alone(artefact.path, images, "openvino")
    except verify.NotRunError as error:
        return {"agreement_with_keras": None, "reason": str(error)}
    value, _ = verify.compare(run.outputs["openvino"], expect, images)
    return {"agreement_with_keras": value}


def _coarse_name(predictor):
    """Returns the name of the output of a `tflite_gpu`."""
    if predictor.is_multilabel:
        return serving.COARSE_MASKS
    return serving.COARSE


def _in_float16(artefact, images, expect):
    """Returns the entry of a `tflite_gpu` under float16 arithmetic."""
    content = artefact.path.read_bytes()
    runs = []
    try:
        for image in images:
            unit = serving.to_unit_pixels(image[None])
            runs.append(run_in_float16(content, unit))
    except NotSimulatedError as error:
        return {"agreement_with_keras": None, "reason": str(error)}
    value, _ = verify.compare(
        [{_coarse_name(artefact.predictor): run.output[0]} for run in runs],
        expect,
        images,
    )
    largest = max(run.largest_sum for run in runs)
    if largest > LARGEST:
        raise InputError(
            f"Sums of a tflite_gpu file must stay below {LARGEST:.0f}, the "
            f"largest float16. Received: {largest:.0f} (smaller images help)"
        )
    verify.check_agreement(
        value, artefact.format, f"{artefact.path.name} in float16", False
    )
    return {"agreement_with_keras": value, "largest_sum": round(largest, 3)}


def evaluate_artefacts(artefacts, entries, comparison, data, spec, progress):
    """Adds the mean IoU of each artefact, and of Keras in the same protocol.

    Args:
        artefacts: list of `Artefact`.
        entries: list of dict, their entries of the manifest, to be completed.
        comparison: `Comparison` that made the entries.
        data: iterable of `(uint8 [H, W, 3], int [H, W])`.
        spec: `DatasetSpec`.
        progress: see `export_model`.
    """

    @functools.cache
    def of_keras(size, coarse):
        shown = f" at {size[0]}x{size[1]}" if size else ""
        shown += " with coarse labels" if coarse else ""
        label = comparison.reference.predict_at
        if coarse:
            label = comparison.label_coarsely
        with timed(progress, f"{FILE_NAMES['keras']}: mean IoU{shown}"):
            return verify.mean_iou(lambda x: label(x, size), data, spec)

    for artefact, entry in zip(artefacts, entries, strict=True):
        size = artefact.predictor.image_size
        coarse = comparison.labels_coarsely(artefact.format, size)
        found = of_keras(size, False)
        if artefact.format != "keras":
            with timed(progress, f"{artefact.path.name}: mean IoU"):
                found = verify.mean_iou(artefact.predictor.predict, data, spec)
        if math.isnan(found):
            raise InputError(
                "`evaluation_data` must have labeled pixels each time it is "
                f"read. Received: none for {artefact.path.name}"
            )
        entry["mean_iou"] = round(found, 6)
        entry["keras_mean_iou"] = round(of_keras(size, False), 6)
        entry["loss_points"] = _points(of_keras(size, False) - found)
        entry["conversion_loss_points"] = _points(
            of_keras(size, coarse) - found
        )


def _points(share):
    # Adding 0 turns -0.0 into 0.0.
    return round(100 * share, 2) + 0.0
