"""Verification of artefacts on the same images as the Keras model.

Protocol: an artefact of any size predicts each image at its own size, and two
parts of it. An artefact of a fixed size predicts the image resized to that
size (on the host, antialiased), and so does Keras. Agreement is the share of
pixels with equal labels, for classes that may overlap of all classes.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.data.resize import resize_image
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tiff import without_gaps
from keras_aspp.inference import Predictor
from keras_aspp.inference.agreement import equal_pixels
from keras_aspp.inference.serving import (
    COARSE,
    COARSE_MASKS,
    MASK_LOGITS,
    full_scores,
)
from keras_aspp.metrics import confusion_of
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike

PROTOCOL = (
    "agreement_with_keras: share of equal labels over all pixels of the verify "
    "images, since these have no masks that could say which to ignore (where "
    "classes may overlap, all classes of a pixel must be equal); "
    "all but model.keras run in a process of their own, without keras_aspp. "
    "Artefacts of any size see each image at its own size, and two parts "
    "of it of odd sizes; artefacts of a fixed size see it resized to that "
    "size (on the host, antialiased), and Keras sees the same resized "
    "image. mean_iou: each image of the "
    "evaluation split once, labels compared at the image's own size (from "
    "a fixed-size artefact resized back, nearest), over all pixels but those "
    "of the ignore_label. keras_mean_iou: that of "
    "model.keras under the same protocol, on images resized to the artefact's "
    "size if it has one. loss_points: by how much mean_iou is below it, in "
    "points (hundredths). conversion_loss_points: the same against Keras with "
    "labels of the artefact's form; it differs where labels are coarse "
    "(coarse_labels). "
    "score_difference: mean and largest absolute difference of each further "
    "output (confidence, probabilities) from that of Keras, on the same "
    "images. "
    "latency_ms: wall time of one prediction: median, least and most, with as "
    "many threads as it says."
)
MIN_AGREEMENT = {
    "keras": 0.999,
    "saved_model": 0.999,
    "tflite_float32": 0.999,
    "tflite_float16": 0.995,
    "tflite_any_size": 0.999,
    "tflite_logits": 0.999,
    "tflite_gpu": 0.99,
    "onnx": 0.999,
}
_RUN_ALONE = str(Path(__file__).with_name("run_alone.py"))
# Formats of 8 bits are checked by their loss of mean IoU; where that is not
# measured, at least this share of pixels must agree.
_8_BITS = dict.fromkeys(
    ("tflite_dynamic_range", "tflite_int8", "tflite_int16x8"), 0.9
)
# Largest mean difference of confidence and probabilities from Keras'.
MAX_DIFFERENCE = {
    "tflite_float16": 0.01,
    **dict.fromkeys(_8_BITS, 0.1),
}
_EXACT = 1e-3
# Within this an artefact answers, also on a GPU in software.
_TIMEOUT_SECONDS = 1800
# What LiteRT says of a file that its GPU backend takes only in part. All else
# that goes wrong there is about the machine.
_PARTLY = "Some ops are not accelerated"
_NO_GPU = "no GPU that LiteRT can use"
_no_gpu = threading.Event()
# Smallest side of a part of an image.
_LEAST_PX = 33


def compare(
    answers: Iterable[dict[str, np.ndarray]],
    expect: Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]],
    images: Sequence[np.ndarray],
) -> tuple[float, dict[str, dict[str, float]]]:
    """Compares the outputs of an artefact with those of Keras.

    Args:
        answers: the artefact's outputs of each image, name -> array.
        expect: function of a uint8 image `[H, W, 3]` and names of outputs
            that computes these with the Keras model.
        images: list of uint8 `[H, W, 3]`, of the artefact's size if it has
            one.

    Returns:
        `(agreement, differences)`: share of pixels with equal labels, in
        [0, 1]; for each further output, `mean` and `max` absolute difference.
    """
    same = pixels = 0
    sums, counts, most = ({}, collections.Counter(), {})
    for image, found in zip(images, answers, strict=True):
        for coarse, name in ((COARSE, "logits"), (COARSE_MASKS, MASK_LOGITS)):
            if coarse in found:
                found = {name: full_scores(found[coarse], image.shape[:2])}
        if "logits" in found:
            found = {"labels": found["logits"].argmax(-1)}
        if MASK_LOGITS in found:
            found = {"labels": found[MASK_LOGITS] > 0}
        expected = expect(image, tuple(found))
        equal = equal_pixels(found.pop("labels"), expected["labels"])
        same += int(equal.sum())
        pixels += equal.size
        for name, values in found.items():
            difference = np.abs(values - expected[name])
            sums[name] = sums.get(name, 0.0) + float(difference.sum())
            counts[name] += difference.size
            # NaN stays, and fails the check.
            most[name] = float(np.maximum(most.get(name, 0), difference.max()))
    differences = {
        name: {
            "mean": round(sums[name] / counts[name], 6),
            "max": round(most[name], 6),
        }
        for name in sums
    }
    return same / pixels, differences


@dataclasses.dataclass(frozen=True)
class Run:
    """Outputs of an artefact in a process of its own.

    Attributes:
        outputs: dict, name of a runtime -> a dict of outputs for each image.
        fully_accelerated: bool. Whether the accelerator runs the whole graph,
            `None` without one.
    """

    outputs: dict[str, list[dict[str, np.ndarray]]]
    fully_accelerated: bool | None


def run_alone(
    path: PathLike, images: Sequence[np.ndarray], *runtimes: str
) -> Run:
    """Runs an artefact in a process that does not import keras_aspp.

    Args:
        path: the artefact.
        images: list of uint8 `[H, W, 3]`.
        *runtimes: of `run_alone.RUNTIMES`.

    Raises:
        ValueError: it does not run.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (
            os.path.join(folder, name) for name in ("images.npz", "out.npz")
        )
        np.savez(inputs, **{f"{i:05d}": x for i, x in enumerate(images)})
        command = [sys.executable, "-P", _RUN_ALONE, str(path)]
        try:
            done = subprocess.run(
                [*command, inputs, outputs, *runtimes],
                capture_output=True,
                text=True,
                # If there is a GPU, this process holds its memory.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise NotRunError(
                f"no answer within {_TIMEOUT_SECONDS} s of {path.name} in "
                f"{', '.join(runtimes)}"
            ) from None
        if done.returncode:
            raise NotRunError(
                f"{path.name} does not run without keras_aspp: "
                f"{_reason(done.stderr)}"
            )
        with np.load(outputs) as arrays:
            about = json.loads(str(arrays["about"]))
            found = {name: [{} for _ in images] for name in about["runtimes"]}
            for key in set(arrays.files) - {"about"}:
                runtime, image, name = key.split("/")
                found[runtime][int(image)][name] = arrays[key]
    return Run(found, about.get("fully_accelerated"))


def _reason(said):
    """Returns the line of a process' log that says why it failed."""
    lines = said.strip().splitlines() or ["no message"]
    no_adapter = [line for line in lines if "adapters" in line.lower()]
    # LiteRT logs before the error, and its tear-down after it.
    raised = said.rpartition("Traceback (most recent call last):")[2]
    raised = [
        line for line in raised.splitlines() if line and "INFO:" not in line
    ]
    return (no_adapter or raised or lines)[-1].removeprefix("└ ")


class NotRunError(InputError):
    """An artefact does not run in a process of its own."""


class NoGPUError(Exception):
    """This machine's GPU, if there is one, says nothing about a file."""


def run_on_gpu(path: PathLike, image: np.ndarray) -> Run:
    """Runs a `.tflite` of one size on the machine's GPU.

    Vulkan finds it; `VK_ICD_FILENAMES` may name a driver in software.

    Args:
        path: the file.
        image: uint8 `[H, W, 3]` of its size.

    Raises:
        NoGPUError: there is none, or its driver fails.
        ValueError: the GPU does not take the file whole.
    """
    if _no_gpu.is_set():
        raise NoGPUError(_NO_GPU)
    try:
        return run_alone(path, [image], "gpu")
    except NotRunError as error:
        if _PARTLY in str(error):
            raise
        # For the following files too, which would only take time.
        _no_gpu.set()
        reason = str(error).rpartition(": ")[2]
        raise NoGPUError(f"{_NO_GPU} ({reason})") from None


def sizes_of(image: np.ndarray, least: int = 1) -> list[np.ndarray]:
    """Returns an image and two parts of it, of odd height and width.

    Args:
        image: `[H, W, 3]`.
        least: int > 0, smallest side that the model segments, in pixels.
    """
    least = max(_LEAST_PX, least | 1)
    height, width = image.shape[:2]
    parts = [
        image[: max(int(height * a) | 1, least)][
            :, : max(int(width * b) | 1, least)
        ]
        for a, b in ((0.7, 0.5), (0.4, 0.8))
    ]
    return [image, *parts]


def check_agreement(
    value: float, format: str, name: str, evaluated: bool
) -> None:
    """Raises `ValueError` if an artefact agrees too little."""
    least = MIN_AGREEMENT.get(format, 0.0 if evaluated else _8_BITS.get(format))
    if not value >= least:
        raise InputError(
            f"{name} must agree with Keras on at least {least:.1%} of pixels. "
            f"Received: {value:.3%}"
        )


def check_differences(
    differences: dict[str, dict[str, float]], format: str, name: str
) -> None:
    """Raises `ValueError` if scores differ too much from Keras'."""
    least = MAX_DIFFERENCE.get(format, _EXACT)
    for output, found in differences.items():
        if not found["mean"] <= least:
            raise InputError(
                f"{output} of {name} may differ from Keras' by {least} on the "
                f"average. Received: {found['mean']}"
            )


def mean_iou(
    predict: Callable[[np.ndarray], np.ndarray],
    examples: Iterable[tuple[np.ndarray, np.ndarray]],
    spec: DatasetSpec,
) -> float:
    """Returns the mean IoU over examples, in [0, 1].

    Args:
        predict: function of a uint8 image `[H, W, 3]` that labels it.
        examples: iterable of `(uint8 [H, W, 3], int [H, W])`, or labels
            `[H, W, K]` of a multilabel task.
        spec: `DatasetSpec`.
    """
    matrix = confusion_of(spec.task, spec.num_classes, spec.ignore_label)
    for image, labels in examples:
        valid = without_gaps(np.asarray(image), None)[1]
        labels, predicted = np.array(labels), np.array(predict(image))
        if valid is not None:
            # Not counted; predictors return the ignore label there.
            labels[~valid], predicted[~valid] = spec.ignore_label, 0
        matrix.update_state(labels, predicted)
    return matrix.mean_iou()


def logit_difference(
    predictor: Predictor, reference: Predictor, images: Iterable[np.ndarray]
) -> float:
    """Returns the largest difference of two predictors' logits.

    Images are resized to the size of the first.

    Args:
        predictor: `Predictor` of an artefact of fixed size.
        reference: `Predictor` of the Keras model.
        images: list of uint8 `[H, W, 3]`.
    """
    worst = 0.0
    for image in images:
        image = resize_image(image, predictor.image_size)[None]
        difference = predictor.score_batch(image) - reference.score_batch(image)
        worst = max(worst, float(np.abs(difference).max()))
    return worst


def check_loss(entry: dict[str, Any], max_int8_loss: float) -> None:
    """Raises `ValueError` if an artefact of 8 bits has lost too much."""
    lost = entry["conversion_loss_points"]
    if entry["format"] in _8_BITS and not lost <= max_int8_loss:
        raise InputError(
            f"{entry['path']} may lose {max_int8_loss} points of mean IoU "
            "against Keras with labels of the same form. Received: "
            f"{lost:.2f} (more calibration images "
            "help; --export.max_int8_loss accepts more)"
        )


def latency_ms(
    predictor: Predictor, image: np.ndarray, runs: int = 10
) -> dict[str, float]:
    """Measures the wall time of one prediction, in milliseconds.

    Every runtime uses as many threads as the machine has cores.

    Args:
        predictor: `Predictor`.
        image: uint8 `[H, W, 3]`.
        runs: int > 1, after two warm-up runs.

    Returns:
        dict: median, minimum and maximum, and how they were measured.
    """
    if predictor.image_size is not None:
        image = resize_image(image, predictor.image_size)
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        predictor.predict(image)
        times.append((time.perf_counter() - start) * 1000)
    times = np.sort(times[2:])
    return {
        "median": round(statistics.median(times), 2),
        "min": round(float(times[0]), 2),
        "max": round(float(times[-1]), 2),
        "runs": runs,
        "threads": os.cpu_count(),
        "image_size": list(image.shape[:2]),
    }
