"""verify: every artefact on the same pictures as the Keras model.

Protocol: an artefact of any size sees each picture at its own size, and two
parts of it. One of fixed size sees it resized to that size (on the host,
antialiased); Keras sees the same resized picture. Agreement is the share of
pixels with equal labels.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_aspp.data.resize import resize_image
from keras_aspp.inference.predictor import Predictor
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.utils.exceptions import InputError

PROTOCOL = (
    "agreement_with_keras: share of equal labels over the verify pictures; "
    "all but model.keras run in a process of their own, without keras_aspp. "
    "Artefacts of any size see each picture at its own size, and two parts "
    "of it of odd sizes; artefacts of a fixed size see it resized to that "
    "size (on the host, antialiased), and Keras sees the same resized "
    "picture. mean_iou: every picture of the "
    "evaluation split once, labels compared at the picture's own size (from "
    "a fixed-size artefact resized back, nearest). keras_mean_iou: that of "
    "model.keras under the same protocol, on images resized to the artefact's "
    "size if it has one. loss_points: by how much mean_iou is below it, in "
    "points (hundredths). "
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
    "onnx": 0.999,
}
_RUN_ALONE = str(Path(__file__).with_name("run_alone.py"))
# What 8 bits cost is told in points of mean IoU; where that is not measured, at
# least this much must agree.
_8_BITS = {"tflite_dynamic_range": 0.9, "tflite_int8": 0.9}
# No part of a picture is looked at that is smaller.
_LEAST_PX = 33


def agreement(path, label, images):
    """Share of pixels on which an artefact agrees with Keras, in [0, 1].

    Args:
        path: the artefact; what is no `.keras` runs in a process of its own,
            which does not import keras_aspp.
        label: function of a uint8 picture `[H, W, 3]` that labels it with
            the Keras model.
        images: list of uint8 `[H, W, 3]`, of the artefact's size if it has
            one.

    Raises:
        ValueError: the artefact does not run alone.
    """
    if path.suffix == ".keras":
        predictor = Predictor(path)
        found = [predictor.predict(image) for image in images]
    else:
        found = _labels_alone(path, images)
    same = [
        labels == label(image)
        for labels, image in zip(found, images, strict=True)
    ]
    return sum(int(s.sum()) for s in same) / sum(s.size for s in same)


def _labels_alone(path, images):
    """Labels of pictures by an artefact in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pictures, labels = (
            os.path.join(folder, name) for name in ("pictures.npz", "out.npz")
        )
        np.savez(pictures, **{f"{i:05d}": x for i, x in enumerate(images)})
        done = subprocess.run(
            [sys.executable, "-P", _RUN_ALONE, str(path), pictures, labels],
            capture_output=True,
            text=True,
            # This process holds the memory of a GPU, if there is one.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise InputError(
                f"{path.name} does not run without keras_aspp: {reason}"
            )
        with np.load(labels) as arrays:
            return [arrays[name] for name in sorted(arrays.files)]


def sizes_of(image, least=1):
    """An image and two parts of it, of odd height and width.

    Args:
        image: `[H, W, 3]`.
        least: int > 0, the least side that the model segments, in pixels.
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


def check_agreement(value, kind, name, evaluated):
    """Raises `ValueError` where an artefact agrees too little."""
    least = MIN_AGREEMENT.get(kind, 0.0 if evaluated else _8_BITS.get(kind))
    if not value >= least:
        raise InputError(
            f"{name} must agree with Keras on at least {least:.1%} of pixels. "
            f"Received: {value:.3%}"
        )


def mean_iou(predict, examples, spec):
    """Mean IoU over examples, in [0, 1].

    Args:
        predict: function of a uint8 picture `[H, W, 3]` that labels it.
        examples: iterable of `(uint8 [H, W, 3], int [H, W])`.
        spec: `DatasetSpec`.
    """
    matrix = ConfusionMatrix(spec.num_classes, spec.ignore_label)
    for image, labels in examples:
        matrix.update_state(labels, predict(image))
    return matrix.mean_iou()


def logit_difference(predictor, reference, images):
    """Largest difference of two predictors' logits, at the first's size.

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


def check_loss(entry, max_int8_loss):
    """Raises `ValueError` where an artefact of 8 bits has lost too much."""
    lost = entry["loss_points"]
    if entry["format"] in _8_BITS and not lost <= max_int8_loss:
        raise InputError(
            f"{entry['path']} may lose {max_int8_loss} points of mean IoU "
            f"against Keras. Received: {lost:.2f} (more calibration pictures "
            "help; --export.max_int8_loss accepts more)"
        )


def latency_ms(predictor, image, runs=10):
    """Median wall time of one prediction and its spread, in milliseconds.

    Every engine has as many threads as the machine has cores.

    Args:
        predictor: `Predictor`.
        image: uint8 `[H, W, 3]`.
        runs: int > 1, after two to warm up.
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
