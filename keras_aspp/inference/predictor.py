"""Predictor: prediction with `.keras`, SavedModel, `.tflite` and `.onnx`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_aspp.data.decode import read_image
from keras_aspp.data.resize import resize_image
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.inference.artefacts import (
    find_spec,
    find_threshold,
    resolve,
)
from keras_aspp.inference.runtimes import (
    KerasRuntime,
    LiteRTRuntime,
    ONNXRuntime,
    SavedModelRuntime,
    refuses_image,
)
from keras_aspp.inference.sliding_window import (
    SlidingWindow,
    probabilities,
)
from keras_aspp.inference.tta import MultiScale
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike, Size


class Predictor:
    """Segments images with a saved model or exported artefact.

    Threads may share a predictor; calls of a `.tflite` are serialized, since
    each uses all cores. After a fork only a `.tflite` works: open any other
    model in the worker process, or start workers by "spawn".

    Arguments other than `path` need a `.keras` model; exported files are fixed.

    Args:
        path: a `.keras`, `.tflite` or `.onnx` file, a SavedModel folder, a
            workdir (its `model.keras`) or an exported folder (its SavedModel,
            or what there is of `model.keras` and the other files).
        output_stride: int, a power of two, or `None` for the model's own.
        scales: floats > 0, image scales whose probabilities are averaged.
            Defaults to (1.0,).
        flip: bool. Also average over mirrored images. Defaults to `False`.
        window: int > 0: larger images are predicted in overlapping windows of
            this height and width, in pixels, and blended; or `None`.
        overlap: float in [0, 1). Share of a window that the next one predicts
            again. Defaults to 0.25.

    Attributes:
        spec: `DatasetSpec` of the training data, or `None`.
        num_classes: int, or `None` if unknown.
        image_size: `(height, width)` of an artefact of fixed size, or `None`
            for any size.
        has_scores: bool. True if `score_batch` and `probability_batch` work.
        threshold: float, probability above which a binary model labels the
            object; `None` for other models, and where it is unknown.

    Raises:
        FileNotFoundError: `path` contains no model.
        ValueError: it cannot be loaded, is not what the manifest beside it
            describes, or does not take these arguments.

    Example:
    ```python
    labels = ka.Predictor("saved_models/multiscale_shapes").predict("a.png")
    ```
    """

    def __init__(
        self,
        path: PathLike,
        output_stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: int | None = None,
        overlap: float = 0.25,
    ) -> None:
        self.path: Path = resolve(path)
        self.spec: DatasetSpec | None = find_spec(self.path)
        several = tuple(scales) != (1.0,) or flip
        if self.path.suffix == ".keras":
            engine = KerasRuntime(self.path, output_stride)
            if window is not None:
                engine = SlidingWindow(engine, window, overlap)
            if several:
                engine = MultiScale(engine, scales, flip)
            self._engine = engine
        elif output_stride is not None:
            raise InputError(
                "Only a .keras model can have another output stride. "
                f"Received: output_stride={output_stride}, {self.path}"
            )
        elif several or window is not None:
            raise InputError(
                "Only a .keras model can be averaged or predicted in windows. "
                "Received: "
                f"scales={tuple(scales)}, flip={flip}, window={window}, "
                f"{self.path}"
            )
        elif self.path.suffix == ".tflite":
            self._engine = LiteRTRuntime(self.path)
        elif self.path.suffix == ".onnx":
            self._engine = ONNXRuntime(self.path)
        else:
            self._engine = SavedModelRuntime(self.path)
        self._pid = os.getpid()
        self.threshold: float | None = self._engine.threshold
        if self.threshold is None:
            self.threshold = find_threshold(self.path)
        self.image_size: tuple[int, int] | None = self._engine.image_size
        self.has_scores: bool = hasattr(self._engine, "scores")
        described = self.spec.num_classes if self.spec else None
        self.num_classes: int | None = self._engine.num_classes or described
        if described not in (None, self.num_classes):
            raise InputError(
                f"The model has {self.num_classes} classes, the file beside "
                f"it describes {described}. Received: {self.path}"
            )

    def predict(
        self, image: np.ndarray | PathLike, return_scores: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predicts the labels of an image, at its own size.

        Args:
            image: uint8 array `[H, W, 3]` (RGB), or a path; a file's EXIF
                orientation is respected.
            return_scores: bool. Logits too, float32 `[H, W, K]`; see
                `score_batch`.

        Returns:
            int32 `[H, W]`, or `(labels, scores)`.

        Raises:
            ValueError: `image` is invalid, or the artefact has no scores.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image, exif=True)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                "`image` must be a uint8 array (height, width, 3) or a path. "
                f"Received: shape={image.shape}, dtype={image.dtype}"
            )
        if return_scores:
            if not self.has_scores:
                raise InputError(
                    "Only a .keras model has scores (and model_logits.tflite, "
                    "at its own size). "
                    f"Received: return_scores=True, {self.path}"
                )
            scores = self.score_batch(image[None])[0]
            return np.argmax(scores, -1).astype("int32"), scores
        return self.predict_batch(image[None])[0]

    def score_batch(self, images: np.ndarray) -> np.ndarray:
        """Computes logits float32 `[B, H, W, K]` of uint8 `[B, H, W, 3]`.

        With `scales` or `flip`, the logarithm of the mean probability. Needs
        a `.keras` model, or `model_logits.tflite` and images of its size.

        Raises:
            ValueError: `images` is not such an array, or is empty.
        """
        images = _check_batch(images)
        if self.image_size not in (None, images.shape[1:3]):
            raise InputError(
                f"Scores of {self.path.name} are for images of its own size, "
                f"{self.image_size}. Received: {images.shape[1:3]}"
            )
        return self._in_memory(self._engine.scores, images)

    def probability_batch(self, images: np.ndarray) -> np.ndarray:
        """Computes probabilities float32 `[B, H, W, K]` of classes.

        Of a binary model they are those of background and object, whatever its
        threshold is.

        Args:
            images: uint8 `[B, H, W, 3]`.

        Raises:
            ValueError: as `score_batch`.
        """
        return self.to_probabilities(self.score_batch(images))

    def to_probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Converts logits of `score_batch` to probabilities, float32."""
        if self.threshold is not None:
            # The background's logit is that of the threshold.
            shift = math.log(self.threshold / (1 - self.threshold))
            scores = scores - np.array([shift, 0], "float32")
        return probabilities(scores)

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Predicts labels int32 `[B, H, W]` of uint8 `[B, H, W, 3]`.

        Raises:
            ValueError: `images` is not such an array, or is empty.
        """
        images = _check_batch(images)
        if self.image_size is None:
            return self._labels(images)
        return np.stack(
            [self.predict_at(image, self.image_size) for image in images]
        )

    def predict_at(self, image: np.ndarray, size: Size | None) -> np.ndarray:
        """Predicts labels int32 `[H, W]` of an image at another size.

        Resizes the image (antialiased) and its labels back (nearest), as for
        an artefact of that size.

        Args:
            image: uint8 `[H, W, 3]`.
            size: `(height, width)`, or `None` for the image's own.
        """
        own = image.shape[:2]
        resized = image if size is None else resize_image(image, size)
        labels = self._labels(resized[None])[0]
        if labels.shape == own:
            return labels
        back = Image.fromarray(labels.astype("uint8")).resize(
            own[::-1], Image.Resampling.NEAREST
        )
        return np.array(back).astype("int32")

    def _in_memory(self, answer, images):
        """Computes `answer(images)`, one by one if memory is short."""
        self._check_process()
        count, height, width, _ = images.shape
        needed = self._engine.bytes_needed(count, height, width)
        if needed <= _memory_bytes():
            least = self._engine.smallest_side
            if min(height, width) < least:
                raise InputError(
                    f"The model needs images of at least {least}x{least} "
                    "pixels, or no feature cell is left of them; resize the "
                    f"image first. Received: size {height}x{width}"
                )
            try:
                return answer(images)
            except Exception as error:
                if not refuses_image(error):
                    raise
                raise InputError(
                    f"The model cannot take an image of {height}x{width} "
                    f"({_reason(error)}). Received: {self.path}"
                ) from error
        if count == 1:
            raise InputError(
                f"Predicting an image of {height}x{width} needs about "
                f"{needed / 1e9:.0f} GB, more than this machine has. Use a "
                ".keras model with window=1024 (--window 1024)."
            )
        return np.concatenate(
            [self._in_memory(answer, image[None]) for image in images]
        )

    def _check_process(self):
        """Raises `RuntimeError` if a forked process would hang."""
        if os.getpid() == self._pid:
            return
        if not self._engine.survives_fork:
            raise RuntimeError(
                "A Predictor does not work in a process that was forked after "
                "it was opened: the threads of its runtime stay behind. Open "
                "it in the worker process, or use "
                'multiprocessing.get_context("spawn"). '
                f"Received: {self.path}"
            )
        self._engine.reopen()
        self._pid = os.getpid()

    def _labels(self, images):
        answered = self._in_memory(self._engine.labels, images)
        labels = np.asarray(answered, "int32")
        most = (self.num_classes or 256) - 1
        if labels.size and not 0 <= labels.min() <= labels.max() <= most:
            raise InputError(
                f"The model answers with labels {labels.min()} to "
                f"{labels.max()}, not in 0..{most}. Received: {self.path}"
            )
        return labels


def _check_batch(images):
    images = np.asarray(images)
    if (
        images.ndim != 4
        or images.shape[3] != 3
        or images.dtype != np.uint8
        or not len(images)
    ):
        raise InputError(
            "`images` must be a uint8 array (batch, height, width, 3) with a "
            "batch of at least 1 image. "
            f"Received: shape={images.shape}, dtype={images.dtype}"
        )
    return images


def _reason(error):
    """An engine's message in one line, without the names of its nodes."""
    message = " ".join(str(error).split())
    failed = re.search(r"assertion failed: \[(.*?)\]", message)
    if failed:
        return failed.group(1)
    message = re.sub(r"\{\{.*?\}\}|\[\[.*", "", message)
    return message.strip() or type(error).__name__


def _memory_bytes():
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf
