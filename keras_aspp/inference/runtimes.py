"""Runtimes of saved models: Keras, SavedModel, LiteRT, ONNX, OpenVINO."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_aspp.inference import serving
from keras_aspp.inference.artefacts import READS, suffix_of
from keras_aspp.inference.sliding_window import Threshold, from_scores
from keras_aspp.litert.sandbox import check_runs
from keras_aspp.litert.values import stored_floats
from keras_aspp.models import (
    fold_batch_norm,
    with_dtype,
    with_output_stride,
)
from keras_aspp.models.precision import in_float32
from keras_aspp.models.segmenter import load_saved
from keras_aspp.pixels import DTYPES, PixelFormat
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import is_installed, require
from keras_aspp.utils.finite import check_finite
from keras_aspp.utils.native_log import filtered_once

# A whole network's activations and scores: DeepLabV3+ on MobileNetV2 takes
# 1260 for 11 classes, other backbones and more classes more.
_BYTES_PER_PIXEL = 2000
# Of the arithmetic. Both store and return float32.
PRECISIONS = ("float32", "bfloat16")
_OF_16_BITS = ("keras", "openvino")


def refuses_image(error: BaseException) -> bool:
    """Returns True if a runtime, not our code around it, raised an exception.

    Args:
        error: exception of a call of a `Runtime`.
    """
    return (
        isinstance(error, (InputError, tf.errors.OpError))
        or type(error) is RuntimeError  # by LiteRT
        or type(error).__module__.startswith("onnxruntime.")
    )


class Runtime:
    """Base class of loaded models for `Predictor`."""

    image_size: tuple[int, int] | None = None
    pixels: PixelFormat = PixelFormat()  # of images
    num_classes: int | None = None
    smallest_side: int = 1  # of an image, in pixels
    output_stride: int = 1  # pixels by which an image may move with its labels
    survives_fork: bool = False
    threshold: Threshold = None
    # Labels are masks: uint8 (B, H, W, K).
    is_multilabel: bool = False
    outputs: tuple[str, ...] = ("labels",)  # of `serving.OUTPUTS`

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Computes outputs of a batch, at least those asked for."""
        raise NotImplementedError

    def bytes_needed(self, count: int, height: int, width: int) -> int:
        """Estimates the memory for a batch of images, in bytes."""
        return count * height * width * _BYTES_PER_PIXEL


class KerasRuntime(Runtime):
    """A `.keras` model of any image size, with scores; batch norm is folded.

    Args:
        path: file.
        output_stride: int, or `None` for the model's own.
        precision: of `PRECISIONS`.
    """

    outputs: tuple[str, ...] = serving.OUTPUTS

    def __init__(
        self,
        path: Path,
        output_stride: int | None,
        precision: str = "float32",
    ) -> None:
        model = load_saved(path)
        if precision == "float32":
            model = in_float32(model)
        else:
            model = with_dtype(model, f"mixed_{precision}")
        if output_stride is not None:
            model = with_output_stride(model, output_stride)
        self.num_classes: int | None = model.num_classes
        self.smallest_side: int = serving.smallest_side(model)
        self.output_stride: int = model.output_stride
        preprocess = model.preprocess
        self.pixels: PixelFormat = PixelFormat(
            model.input_channels, preprocess.input_dtype, preprocess.input_range
        )
        if model.task != "semantic":
            self.threshold = model.threshold
        if model.task == "multilabel":
            self.is_multilabel = True
            self.outputs = serving.MASK_OUTPUTS
        model = fold_batch_norm(model)
        # One trace for every size. A trace for any height at one width, which
        # TensorFlow would make of images of 500x375 and 500x333, fails in
        # its dilated depthwise convolutions.
        signature = [serving.image_spec(model)]
        # A graph per set of outputs: reading back all scores for their labels
        # would take longer than the argmax.
        self._graph = functools.cache(
            lambda outputs: tf.function(
                lambda images: serving.answer(model, images, outputs),
                signature,
                autograph=False,
            )
        )

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        found = self._graph(tuple(outputs))(images)
        return {name: values.numpy() for name, values in found.items()}

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self.answer(images, ("logits",))["logits"]


class SavedModelRuntime(Runtime):
    """A SavedModel with our `serving_default` signature."""

    def __init__(self, path: Path) -> None:
        try:
            self._loaded = tf.saved_model.load(str(path))
        except Exception as error:
            # TensorFlow raises exceptions of many types here.
            raise InputError(
                f"Not a loadable SavedModel. Received: {path} "
                f"({type(error).__name__})"
            ) from error
        self._serve = self._loaded.signatures.get("serving_default")
        if self._serve is None or not _is_ours(self._serve):
            raise InputError(
                "A SavedModel of ours has the signature `serving_default`, "
                "`image` [batch, height, width, channels] -> `labels`. "
                f"Received: {path} with {sorted(self._loaded.signatures)}"
            )
        self._serve_scores = self._loaded.signatures.get("serve_scores")
        if self._serve_scores is not None:
            self.outputs = outputs_of(self._serve_scores.structured_outputs)
        labels = self._serve.structured_outputs["labels"]
        if labels.shape.rank == 4:
            self.is_multilabel = True
            self.num_classes: int | None = labels.shape[3]
        image = self._serve.structured_input_signature[1]["image"]
        self.pixels: PixelFormat = PixelFormat(image.shape[3], image.dtype.name)
        check_finite(
            (
                (weight.name, weight.numpy())
                for weight in self._serve.variables
                if weight.dtype.is_floating
            ),
            str(path),
        )

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        image = tf.constant(images)
        if tuple(outputs) == ("labels",):
            found = self._serve(image=image)
        else:
            share = {"min_confidence": tf.constant(0.0)}
            if self.is_multilabel:
                share = {}
            found = self._serve_scores(image=image, **share)
        return {name: values.numpy() for name, values in found.items()}


class ONNXRuntime(Runtime):
    """An `.onnx` file in ONNX Runtime; one image size."""

    def __init__(self, path: Path) -> None:
        require("An .onnx file", "onnx", "onnx", "onnxruntime")
        import onnx
        import onnxruntime

        try:
            graph = onnx.load(path).graph
            self._session = onnxruntime.InferenceSession(str(path))
            (input_details,) = self._session.get_inputs()
            _, *size, channels = input_details.shape
            dtype = _ONNX_DTYPES.get(input_details.type, input_details.type)
            self.pixels: PixelFormat = PixelFormat(channels, dtype)
        # Their errors have no common ancestor.
        except Exception as error:
            raise InputError(
                f"Not a loadable .onnx of ours. Received: {path} "
                f"({first_line(error)})"
            ) from error
        check_finite(
            (
                (weight.name, onnx.numpy_helper.to_array(weight))
                for weight in graph.initializer
                if weight.data_type == onnx.TensorProto.FLOAT
            ),
            str(path),
        )
        self._input_name = input_details.name
        self.image_size: tuple[int, int] | None = tuple(size)
        self._names = [out.name for out in self._session.get_outputs()]
        if len(self._names) == 1:
            # Earlier files may name it otherwise.
            self._names = ["labels"]
        self.outputs = outputs_of(self._names)
        shapes = [output.shape for output in self._session.get_outputs()]
        labels = dict(zip(self._names, shapes, strict=True)).get("labels", ())
        if len(labels) == 4:
            self.is_multilabel = True
            self.num_classes: int | None = labels[3]

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return joined(self._compute(image[None]) for image in images)

    def _compute(self, image):
        values = self._session.run(None, {self._input_name: image})
        return dict(zip(self._names, values, strict=True))


# Types of ONNX Runtime that are called otherwise in NumPy.
_ONNX_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(float)": "float32",
}


def outputs_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names that are outputs of artefacts, in their order."""
    return tuple(name for name in serving.OUTPUTS if name in set(names))


def joined(
    answers: Iterable[dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Concatenates the outputs of images."""
    answers = list(answers)
    return {
        name: np.concatenate([answer[name] for answer in answers])
        for name in answers[0]
    }


def _is_ours(signature):
    """Returns True if a signature maps images to labels."""
    taken = signature.structured_input_signature[1]
    image = taken.get("image")
    return (
        list(taken) == ["image"]
        and image.dtype.name in DTYPES
        and image.shape.rank == 4
        and image.shape[3] is not None
        and list(signature.structured_outputs) == ["labels"]
    )


# Names of scores of masks -> of those of one label.
_OF_MASKS = {
    serving.MASK_LOGITS: "logits",
    serving.COARSE_MASKS: serving.COARSE,
}


class LiteRTRuntime(Runtime):
    """A `.tflite` file in the LiteRT interpreter."""

    survives_fork: bool = True

    def __init__(self, path: Path) -> None:
        check_runs(path)
        check_finite(stored_floats(Path(path).read_bytes()), str(path))
        self._path = path
        # An interpreter holds the tensors of one call at a time.
        self._lock = threading.Lock()
        self._interpreter = self._open()
        _opened.add(self)
        self._input_details = self._interpreter.get_input_details()[0]
        found = _output_indices(self._interpreter)
        self._indices = {_OF_MASKS.get(k, k): i for k, i in found.items()}
        if found.keys() & _OF_MASKS:
            self.is_multilabel = True
        details = self._interpreter.get_output_details()
        shape, given = details[0]["shape"], self._input_details["shape"]
        dtype = self._input_details["dtype"].__name__
        self._of_gpu = serving.COARSE in self._indices
        if self._of_gpu:
            # Its floats are RGB pixels of another scale.
            dtype = "uint8"
        # Files without our names of outputs: floats may be of another range.
        known = ("uint8",) if _is_unnamed(self._interpreter) else DTYPES
        if (
            not self._indices
            or len(given) != 4
            or given[0] != 1
            or dtype not in known
            or (known != DTYPES and given[3] != 3)
        ):
            raise InputError(
                "A .tflite of ours takes [1, height, width, channels] and "
                "answers [1, height, width], or that with scores of classes; "
                "one of other converters takes uint8 of 3 channels. "
                f"Received: {path} with {dtype} "
                f"{given.tolist()} and {shape.tolist()}"
            )
        self.pixels: PixelFormat = PixelFormat(int(given[3]), dtype)
        for one in details:
            if len(one["shape"]) == 4:
                self.num_classes: int | None = int(one["shape"][3])
                if one["index"] == self._indices.get("labels"):
                    self.is_multilabel = True
        self.outputs = outputs_of(self._indices)
        if self._has_scores():
            self.outputs = serving.OUTPUTS
            self.scores: Callable[[np.ndarray], np.ndarray] = self._scores
            if self.is_multilabel:
                self.outputs = serving.MASK_OUTPUTS
        self.image_size = tuple(int(n) for n in given[1:3])
        if -1 in self._input_details["shape_signature"]:
            self.image_size = None

    def _open(self):
        """Returns an interpreter of this process."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(
            model_path=str(self._path), num_threads=os.cpu_count()
        )
        # Without a fixed size, tensors are allocated per image.
        input_details = interpreter.get_input_details()[0]
        if -1 not in input_details["shape_signature"]:
            _allocate(interpreter)
        return interpreter

    def _leave_parent(self):
        """Drops, in a forked process, what depends on the parent's threads."""
        self._lock = threading.Lock()  # one of them may have held the other
        # The destructor of the interpreter would wait for the others, so this
        # reference keeps it for ever.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._interpreter))
        self._interpreter = None

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        if self._has_scores():
            scores = self._scores(images)
            return from_scores(
                scores, outputs, self.threshold, self.is_multilabel
            )
        return self._all(images)

    def _has_scores(self):
        return self._of_gpu or "logits" in self._indices

    def _scores(self, images):
        return self._all(images)["logits"]

    def _all(self, images):
        with self._lock:
            if self._interpreter is None:
                self._interpreter = self._open()
            return joined(self._one(image[None]) for image in images)

    def _one(self, image):
        index = self._input_details["index"]
        if self.image_size is None:
            self._interpreter.resize_tensor_input(index, image.shape)
            try:
                _allocate(self._interpreter)
                details = self._interpreter.get_tensor_details()
                fits = all(0 not in tensor["shape"] for tensor in details)
            except RuntimeError:  # by XNNPACK, for maps without cells
                fits = False
            if not fits:
                raise InputError("no feature cell is left of it")
        if self._of_gpu:
            image = serving.to_unit_pixels(image)
        found = self._compute(image)
        if self._of_gpu:
            scores = serving.full_scores(
                found[serving.COARSE][0], image.shape[1:3]
            )
            return {"logits": scores[None]}
        return found

    def _compute(self, image):
        self._interpreter.set_tensor(self._input_details["index"], image)
        self._interpreter.invoke()
        return {
            name: self._interpreter.get_tensor(i)
            for name, i in self._indices.items()
        }


def _allocate(interpreter):
    with filtered_once("XNNPACK"):
        interpreter.allocate_tensors()


_opened = weakref.WeakSet()


def _leave_parent():
    for runtime in _opened:
        runtime._leave_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_parent)


def _is_unnamed(interpreter):
    """Returns True for a file whose outputs do not have our names."""
    if not interpreter.get_signature_list():
        return True
    names = interpreter.get_signature_runner().get_output_details()
    ours = {*serving.OUTPUTS, "logits", serving.COARSE, *_OF_MASKS}
    return not set(names) <= ours


def _output_indices(interpreter):
    """Returns the tensor of each output of ours, `{}` for another model."""
    if not _is_unnamed(interpreter):
        details = interpreter.get_signature_runner().get_output_details()
        return {name: one["index"] for name, one in details.items()}
    # Files of other converters.
    details = interpreter.get_output_details()
    name = {3: "labels", 4: "logits"}.get(len(details[0]["shape"]))
    return {name: details[0]["index"]} if name and len(details) == 1 else {}


class _OpenVINO:
    """Computes the outputs of a file in OpenVINO instead of its own runtime.

    The own runtime opens the file too: it checks the file, and knows the names
    and types of its tensors.
    """

    survives_fork: bool = False

    def _compile(self, path, precision, names):
        """Compiles a file for this processor.

        Args:
            path: file.
            precision: of `PRECISIONS`.
            names: names of the file's outputs, in its order.
        """
        require("The runtime openvino", "openvino", "openvino")
        import openvino

        core = openvino.Core()
        hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
        try:
            # By itself it would compute in bfloat16 where a processor can.
            self._compiled = core.compile_model(
                core.read_model(str(path)),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "PERFORMANCE_HINT": "LATENCY",
                },
            )
        except RuntimeError as error:
            raise InputError(
                f"OpenVINO cannot read the file. Received: {path} "
                f"({first_line(error)})"
            ) from error
        if len(self._compiled.outputs) != len(names):
            raise InputError(
                "OpenVINO reads other outputs than the file has. "
                f"Received: {path}"
            )
        self._output_names = names
        # A request holds the tensors of one call at a time.
        self._compute_lock = threading.Lock()
        self._request = self._compiled.create_infer_request()

    def _compute(self, image):
        with self._compute_lock:
            found = self._request.infer({0: np.ascontiguousarray(image)})
            return {
                name: np.array(found[i])
                for i, name in enumerate(self._output_names)
            }


class OpenVINOLiteRTRuntime(_OpenVINO, LiteRTRuntime):
    """A `.tflite` file in OpenVINO.

    Args:
        path: file.
        precision: of `PRECISIONS`.
    """

    def __init__(self, path: Path, precision: str) -> None:
        super().__init__(path)
        names = {index: name for name, index in self._indices.items()}
        details = self._interpreter.get_output_details()
        names = [names[one["index"]] for one in details]
        self._compile(path, precision, names)


class OpenVINOONNXRuntime(_OpenVINO, ONNXRuntime):
    """An `.onnx` file in OpenVINO.

    Args:
        path: file.
        precision: of `PRECISIONS`.
    """

    def __init__(self, path: Path, precision: str) -> None:
        super().__init__(path)
        self._compile(path, precision, self._names)


def choose(path: Path, runtime: str | None, precision: str) -> str:
    """Returns the name of the runtime of a file.

    Args:
        path: model file, or folder of a SavedModel.
        runtime: of `artefacts.RUNTIMES`; `"auto"` takes OpenVINO where it is
            installed and was measured to be faster: for an `.onnx`, and in
            bfloat16. `None` for the file's own.
        precision: of `PRECISIONS`.

    Raises:
        ValueError: the runtime does not compute in that precision.
    """
    own = next(name for name in READS if suffix_of(path) in READS[name])
    found = own if runtime in (None, "auto") else runtime
    # LiteRT is the fastest for a .tflite in float32.
    gains = own == "onnxruntime" or (
        own == "litert" and precision == "bfloat16"
    )
    if runtime == "auto" and gains and is_installed("openvino"):
        found = "openvino"
    if precision not in PRECISIONS:
        raise InputError(
            f"`precision` must be one of {PRECISIONS}. Received: {precision!r}"
        )
    if precision != "float32" and found not in _OF_16_BITS:
        raise InputError(
            f"Only the runtimes {' and '.join(_OF_16_BITS)} (pip install "
            f"'keras-aspp[openvino]') compute in {precision}. Received: "
            f"precision={precision!r}, "
            f"runtime={found!r}, {path}"
        )
    return found


def open_runtime(
    path: Path, runtime: str, precision: str, output_stride: int | None = None
) -> Runtime:
    """Opens a model in a runtime that `choose` returned.

    Args:
        path: model file, or folder of a SavedModel.
        runtime: of `artefacts.READS`.
        precision: of `PRECISIONS`.
        output_stride: of a `.keras` model; `None` for its own.
    """
    if runtime == "keras":
        return KerasRuntime(path, output_stride, precision)
    if runtime == "openvino":
        if path.suffix == ".onnx":
            return OpenVINOONNXRuntime(path, precision)
        return OpenVINOLiteRTRuntime(path, precision)
    if runtime == "litert":
        return LiteRTRuntime(path)
    if runtime == "onnxruntime":
        return ONNXRuntime(path)
    return SavedModelRuntime(path)
