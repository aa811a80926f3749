"""Predictor: prediction with `.keras`, SavedModel, `.tflite` and `.onnx`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_aspp.data.decode import read_fitting
from keras_aspp.data.resize import resize_image
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tiff import without_gaps
from keras_aspp.inference import serving
from keras_aspp.inference.artefacts import (
    find_spec,
    find_threshold,
    resolve,
)
from keras_aspp.inference.runtimes import (
    choose,
    joined,
    open_runtime,
    refuses_image,
)
from keras_aspp.inference.sliding_window import (
    SlidingWindow,
    Threshold,
    alignment,
    from_scores,
    label_probability,
    true_probabilities,
)
from keras_aspp.inference.tta import MultiScale, checked_scales
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import PathLike, Size


class Predictor:
    """Segments images with a saved model or exported artefact.

    Threads may share a predictor; calls of a `.tflite` are serialized, since
    each uses all cores. After a fork only a `.tflite` works: open any other
    model in the worker process, or start workers by "spawn".

    `output_stride`, `scales`, `flip` and windows need a `.keras` model, since
    exported files are fixed.

    Args:
        path: a `.keras`, `.tflite` or `.onnx` file, a SavedModel folder, a
            workdir (its `model.keras`) or an exported folder (its SavedModel,
            or what there is of `model.keras` and the other files); or
            `hf://user/name[@revision][/path]` of one on the Hugging Face Hub
            (its `model.keras`, or what there is of the other files).
        output_stride: int, a power of two, or `None` for the model's own.
        scales: floats > 0, image scales whose probabilities are averaged.
            Defaults to (1.0,).
        flip: bool. Also average over mirrored images. Defaults to `False`.
        window: int > 0: larger images are predicted in overlapping windows of
            this height and width, in pixels, and blended; or `None`.
        overlap: float in [0, 1). Share of a window that the next one predicts
            again. Defaults to 0.25.
        min_confidence: float in [0, 1). Pixels whose confidence, the highest
            probability, is below it get the ignore label: they are unsure.
            Needs a model with confidence. Defaults to 0: none is unsure.
        runtime: `"keras"`, `"saved_model"`, `"litert"`, `"onnxruntime"` or
            `"openvino"` (extra `openvino`; reads `.tflite` and `.onnx`); of a
            folder, the file that it reads. `"auto"` takes the fastest of what
            is installed and the folder holds. Defaults to that of the file.
        precision: `"float32"` or `"bfloat16"` of the arithmetic; the latter
            for the runtimes `"keras"` and `"openvino"`. Faster on processors
            with AVX512-BF16 or AMX, slower on all others.

    Attributes:
        runtime: str, the runtime that was taken.
        precision: str, as given.
        spec: `DatasetSpec` of the training data, or `None`.
        num_classes: int, or `None` if unknown.
        image_size: `(height, width)` of an artefact of fixed size, or `None`
            for any size.
        pixels: `PixelFormat` of the images: channels and type.
        window: int or `None`, as given.
        overlap: float, as given.
        has_scores: bool. True if `score_batch` works, and, with
            `has_probabilities`, `probability_batch`.
        has_confidence: bool. True if `predict` can return confidence.
        has_probabilities: bool. True if `predict` can return probabilities.
        ignore_label: int, label of unsure pixels and of those without data:
            that of `spec`, or 255.
        threshold: float, probability above which a binary model labels the
            object; of a multilabel model a tuple, one for each class; `None`
            for other models, and where it is unknown. Logits contain it: a
            file of logits without a manifest has no probabilities then.
        is_multilabel: bool. True if labels are masks of classes that may
            overlap, uint8 `[H, W, K]` of 0 and 1.

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
        min_confidence: float = 0.0,
        runtime: str | None = None,
        precision: str = "float32",
    ) -> None:
        scales = checked_scales(scales)
        check_number("overlap", overlap, "[0, 1)")
        several = scales != (1.0,) or flip
        alone = several or output_stride or window
        if runtime == "auto" and alone:
            runtime = "keras"  # which alone can
        self.path: Path = resolve(path, runtime=runtime, precision=precision)
        self.runtime: str = choose(self.path, runtime, precision)
        self.precision: str = precision
        self.window: int | None = window
        self.overlap: float = overlap
        self.spec: DatasetSpec | None = find_spec(self.path)
        if self.runtime != "keras":
            self._check_fixed(output_stride, scales, flip, window)
        engine = open_runtime(self.path, self.runtime, precision, output_stride)
        if window is not None:
            engine = SlidingWindow(engine, window, overlap)
        if several:
            engine = MultiScale(engine, scales, flip)
        self._engine = engine
        self._pid = os.getpid()
        self.is_multilabel: bool = self._engine.is_multilabel
        self.threshold: Threshold = self._engine.threshold
        if self.threshold is None or self.runtime != "keras":
            self.threshold = find_threshold(self.path) or self.threshold
            self._engine.threshold = self.threshold
        if self.spec and self.spec.is_multilabel != self.is_multilabel:
            raise InputError(
                "The task of the model is not that of the file beside it, "
                f"{self.spec.task}. Received: {self.path}"
            )
        self.image_size: tuple[int, int] | None = self._engine.image_size
        self.pixels: PixelFormat = self._engine.pixels
        self.has_scores: bool = hasattr(self._engine, "scores")
        if self._has_unknown_threshold():
            self._engine.outputs = ("labels",)
        outputs = self._engine.outputs
        self.has_probabilities: bool = "probabilities" in outputs
        self.has_confidence: bool = not self.is_multilabel and (
            self.has_probabilities or "confidence" in outputs
        )
        self.ignore_label: int = self.spec.ignore_label if self.spec else 255
        self.min_confidence: float = self._checked_confidence(min_confidence)
        described = self.spec.num_classes if self.spec else None
        self.num_classes: int | None = self._engine.num_classes or described
        if described not in (None, self.num_classes):
            raise InputError(
                f"The model has {self.num_classes} classes, the file beside "
                f"it describes {described}. Received: {self.path}"
            )

    def predict(
        self,
        image: np.ndarray | PathLike,
        return_scores: bool = False,
        *,
        return_confidence: bool = False,
        return_probabilities: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        """Predicts the labels of an image, at its own size.

        An artefact of another size predicts the resized image; each pixel
        takes the values of the nearest one.

        Args:
            image: array `[H, W, C]` of the type of `pixels`, usually uint8
                RGB, or a path; a file's EXIF orientation is respected.
            return_scores: bool. Logits too, float32 `[H, W, K]`; see
                `score_batch`.
            return_confidence: bool. The probability of each label too,
                float32 `[H, W]` in 0..1.
            return_probabilities: bool. Probabilities too, float32
                `[H, W, K]`, which sum to 1 over the classes.

        Returns:
            int32 `[H, W]`, or a tuple: labels, then scores, confidence and
            probabilities, as far as they are asked for. Where the image has
            no data (NaN or infinity in any channel of floats; what a file
            declares), the label is `ignore_label` and all else NaN. For a
            multilabel model, labels are uint8 `[H, W, K]`, 1 where a class
            is, and probabilities of classes are independent.

        Raises:
            ValueError: `image` is invalid, or the artefact does not compute
                what is asked for.
        """
        if isinstance(image, (str, os.PathLike)):
            bands = read_fitting(image, None, True, self.pixels)
            image, valid = bands.values, bands.valid
        else:
            image, valid = _checked_images(image, self.pixels)
        if return_scores:
            if not self.has_scores:
                raise InputError(
                    "Only a .keras model has scores (and model_logits.tflite "
                    "and model_gpu.tflite, at their own size). "
                    f"Received: return_scores=True, {self.path}"
                )
            scores = self.score_batch(image[None])
        wanted = ["labels"]
        if return_confidence:
            self._require("confidence", "return_confidence=True")
            wanted.append("confidence")
        if return_probabilities:
            self._require("probabilities", "return_probabilities=True")
            wanted.append("probabilities")
        if return_scores:
            names = {*wanted, *self._for_labels()}
            found = from_scores(
                scores, sorted(names), self.threshold, self.is_multilabel
            )
            found = self._finished(found)
            found = {name: values[0] for name, values in found.items()}
            found["scores"] = scores[0]
            wanted.insert(1, "scores")
        else:
            found = self._answer_at(image, self.image_size, wanted)
        fills = {"labels": self.ignore_label}
        answered = tuple(
            with_gaps(found[name], valid, fills.get(name, np.nan))
            for name in wanted
        )
        return answered if len(answered) > 1 else answered[0]

    def probabilities(self, image: np.ndarray | PathLike) -> np.ndarray:
        """Predicts the probabilities of an image, at its own size.

        Args:
            image: uint8 array `[H, W, 3]` (RGB), or a path.

        Returns:
            float32 `[H, W, K]`, which sum to 1 over the classes unless
            classes may overlap; NaN where the image has no data.

        Raises:
            ValueError: `image` is invalid, or the artefact has no
                probabilities (`has_probabilities`).
        """
        return self.predict(image, return_probabilities=True)[1]

    def align_windows(self, window: int) -> int:
        """Returns the pixels of which windows should start at multiples."""
        return alignment(self._engine, window)

    def score_batch(self, images: np.ndarray) -> np.ndarray:
        """Computes logits float32 `[B, H, W, K]` of images `[B, H, W, C]`.

        With `scales` or `flip`, the logarithm of the mean probability. Pixels
        without data are read as 0. Needs a `.keras` model, or
        `model_logits.tflite` or `model_gpu.tflite` and images of its size.

        Raises:
            ValueError: `images` is not such an array, or is empty.
        """
        images, _ = _checked_images(images, self.pixels, batch=True)
        if self.image_size not in (None, images.shape[1:3]):
            raise InputError(
                f"Scores of {self.path.name} are for images of its own size, "
                f"{self.image_size}. Received: {images.shape[1:3]}"
            )
        return self._in_memory(
            lambda images: {"scores": self._engine.scores(images)}, images
        )["scores"]

    def probability_batch(self, images: np.ndarray) -> np.ndarray:
        """Computes probabilities float32 `[B, H, W, K]` of classes.

        For a binary model they are those of background and object, whatever
        its threshold is; for a multilabel model those of independent classes.

        Args:
            images: uint8 `[B, H, W, 3]`.

        Raises:
            ValueError: as `score_batch`.
        """
        return self.to_probabilities(self.score_batch(images))

    def to_probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Converts logits of `score_batch` to probabilities, float32.

        Raises:
            ValueError: the thresholds that the logits contain are unknown.
        """
        self._require("probabilities", "scores")
        return true_probabilities(scores, self.threshold)

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Predicts labels of images `[B, H, W, C]`.

        Returns:
            int32 `[B, H, W]`, or uint8 `[B, H, W, K]`; see `predict`.

        Raises:
            ValueError: `images` is not such an array, or is empty.
        """
        images, valid = _checked_images(images, self.pixels, batch=True)
        if self.image_size is None:
            labels = self._answers(images)["labels"]
        else:
            labels = np.stack(
                [
                    self._answer_at(image, self.image_size)["labels"]
                    for image in images
                ]
            )
        return with_gaps(labels, valid, self.ignore_label)

    def predict_at(self, image: np.ndarray, size: Size | None) -> np.ndarray:
        """Predicts labels of an image at another size.

        Resizes the image (antialiased) and its labels back (nearest), as for
        an artefact of that size.

        Args:
            image: `[H, W, C]`.
            size: `(height, width)`, or `None` for the image's own.
        """
        image, valid = _checked_images(image, self.pixels)
        labels = self._answer_at(image, size)["labels"]
        return with_gaps(labels, valid, self.ignore_label)

    def _answer_at(self, image, size, wanted=("labels",)):
        """Computes outputs of an image at another size, resized back."""
        return answer_at(
            image, size, lambda resized: self._answers(resized[None], wanted)
        )

    def _in_memory(self, answer, images):
        """Computes `answer(images)`, a dict, one by one if memory is short."""
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
        return joined(self._in_memory(answer, image[None]) for image in images)

    def _check_fixed(self, output_stride, scales, flip, window):
        """Raises `ValueError` for what only a `.keras` model does."""
        if output_stride is not None:
            raise InputError(
                "Only a .keras model can have another output stride. "
                f"Received: output_stride={output_stride}, {self.path}"
            )
        if scales != (1.0,) or flip or window is not None:
            raise InputError(
                "Only a .keras model can be averaged or predicted in windows. "
                "Received: "
                f"scales={scales}, flip={flip}, window={window}, "
                f"{self.path}"
            )

    def _check_process(self):
        """Raises `RuntimeError` if a forked process would hang."""
        if os.getpid() != self._pid and not self._engine.survives_fork:
            raise RuntimeError(
                "A Predictor does not work in a process that was forked after "
                "it was opened: the threads of its runtime stay behind. Open "
                "it in the worker process, or use "
                'multiprocessing.get_context("spawn"). '
                f"Received: {self.path}"
            )

    def _checked_confidence(self, value):
        value = check_number("min_confidence", value, "[0, 1)")
        if value:
            self._require("confidence", f"min_confidence={value}")
        return value

    def _has_unknown_threshold(self):
        """Returns True for logits that contain thresholds of no manifest."""
        known = self.threshold is not None or self.runtime == "keras"
        if known or not self.has_scores:
            return False
        if self.spec is not None:
            return self.spec.task != "semantic"
        # Two classes may be background and object of a binary model.
        return self.is_multilabel or self._engine.num_classes == 2

    def _require(self, output, received):
        """Raises `ValueError` if the artefact does not compute an output."""
        has = {
            "confidence": self.has_confidence,
            "probabilities": self.has_probabilities,
        }
        if self.is_multilabel and output == "confidence":
            raise InputError(
                "Classes that may overlap have probabilities, but no common "
                f"confidence. Received: {received}, {self.path}"
            )
        if not has[output] and self.has_scores:
            raise InputError(
                f"The artefact has no {output}: its logits contain thresholds "
                "that its manifest.json states; keep it beside the file. "
                f"Received: {received}, {self.path}"
            )
        if not has[output]:
            raise InputError(
                f"The artefact has no {output}; a .keras model has, or export "
                f'it with --export.outputs "[labels, {output}]". '
                f"Received: {received}, {self.path}"
            )

    def _for_labels(self):
        """Returns the outputs on which labels depend."""
        return ("labels", "confidence") if self.min_confidence else ("labels",)

    def _answers(self, images, wanted=("labels",)):
        """Computes outputs of a batch at its size, checked."""
        names = {*wanted, *self._for_labels()}
        if "confidence" in names and "confidence" not in self._engine.outputs:
            names = names - {"confidence"} | {"probabilities"}
        names = [name for name in serving.OUTPUTS if name in names]
        return self._finished(
            self._in_memory(
                lambda images: self._engine.answer(images, names), images
            )
        )

    def _finished(self, found):
        """Checks labels, and marks unsure pixels."""
        if self.is_multilabel:
            return self._finished_masks(found)
        labels = np.asarray(found["labels"], "int32")
        if "confidence" not in found and "probabilities" in found:
            found["confidence"] = label_probability(
                found["probabilities"], labels
            )
        most = (self.num_classes or 256) - 1
        if labels.size and not 0 <= labels.min() <= labels.max() <= most:
            raise InputError(
                f"The model answers with labels {labels.min()} to "
                f"{labels.max()}, not in 0..{most}. Received: {self.path}"
            )
        if self.min_confidence:
            # NaN is never sure.
            unsure = ~(found["confidence"] >= self.min_confidence)
            labels = np.where(unsure, np.int32(self.ignore_label), labels)
        return {**found, "labels": labels}

    def _finished_masks(self, found):
        """Checks the labels of classes that may overlap."""
        labels = np.asarray(found["labels"])
        if labels.ndim != 4 or (labels.size and labels.max() > 1):
            raise InputError(
                "The model answers with other values than 0 and 1. Received: "
                f"{self.path}"
            )
        return {**found, "labels": labels.astype("uint8", copy=False)}


def answer_at(
    image: np.ndarray,
    size: Size | None,
    answer: Callable[[np.ndarray], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Computes outputs of an image at another size, resized back.

    Args:
        image: `[H, W, C]`.
        size: `(height, width)`, or `None` for the image's own.
        answer: function of an image of that size that returns outputs, each
            `[1, height, width, ...]`.

    Returns:
        dict, name -> array `[H, W, ...]`; each pixel takes the values of the
        nearest one.
    """
    resized = image if size is None else resize_image(image, size)
    found = {name: values[0] for name, values in answer(resized).items()}
    if resized.shape == image.shape:
        return found
    rows, columns = map(_nearest, resized.shape[:2], image.shape[:2])
    return {name: values[rows][:, columns] for name, values in found.items()}


def with_gaps(
    values: np.ndarray, valid: np.ndarray | None, fill: float
) -> np.ndarray:
    """Returns values, with `fill` at pixels without data.

    Args:
        values: `[..., H, W]` or `[..., H, W, K]`.
        valid: bool `[..., H, W]`, or `None` if there is data everywhere.
        fill: number.
    """
    if valid is None:
        return values
    valid = np.expand_dims(valid, tuple(range(valid.ndim, values.ndim)))
    return np.where(valid, values, values.dtype.type(fill))


def _nearest(there, here):
    """Returns, for each of `here` pixels, the nearest of `there`."""
    ramp = Image.fromarray(np.arange(there, dtype="int32")[None])
    return np.array(ramp.resize((here, 1), Image.Resampling.NEAREST))[0]


def fits_dtype(dtype: np.dtype, wanted: str) -> bool:
    """Returns True for images that a model of type `wanted` takes."""
    # Integers of 16 bits are floats without loss; of others nobody knows.
    return dtype == wanted or (
        wanted == "float32" and dtype in ("uint8", "uint16", "int16")
    )


def _checked_images(images, pixels, batch=False):
    """Returns images in the type of a model, and where they have data.

    Returns:
        `(images, valid)` of `without_gaps`.

    Raises:
        ValueError: an array of another shape or type, or without a pixel.
    """
    images = np.asarray(images)
    name, rest = "`image`", " or a path, of at least 1 pixel"
    shape = f"(height, width, {pixels.channels})"
    if batch:
        name, rest = "`images`", " with a batch of at least 1 image and pixel"
        shape = f"(batch, {shape[1:]}"
    dtype = images.dtype
    if (
        images.ndim != 3 + batch
        or images.shape[-1] != pixels.channels
        or not fits_dtype(dtype, pixels.dtype)
        or not images.size
    ):
        raise InputError(
            f"{name} must be a {pixels.dtype} array {shape}{rest}. "
            f"Received: shape={images.shape}, dtype={dtype}"
        )
    return without_gaps(images.astype(pixels.dtype, copy=False), None)


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
