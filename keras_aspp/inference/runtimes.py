"""Runtimes of saved models: Keras, SavedModel, LiteRT, ONNX Runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_aspp.inference import serving
from keras_aspp.litert.sandbox import check_runs
from keras_aspp.models import with_output_stride
from keras_aspp.models.precision import in_float32
from keras_aspp.models.segmenter import check_rgb, load_saved
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.extras import require
from keras_aspp.utils.finite import check_finite
from keras_aspp.utils.native_log import filtered_once

# A whole network's activations and scores: DeepLabV3+ on MobileNetV2 takes
# 1260 for 11 classes, other backbones and more classes more.
_BYTES_PER_PIXEL = 2000


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
    num_classes: int | None = None
    smallest_side: int = 1  # of an image, in pixels
    output_stride: int = 1  # pixels by which an image may move with its labels
    survives_fork: bool = False
    threshold: float | None = None  # of a binary model

    def bytes_needed(self, count: int, height: int, width: int) -> int:
        """Estimates the memory for a batch of images, in bytes."""
        return count * height * width * _BYTES_PER_PIXEL


class KerasRuntime(Runtime):
    """A `.keras` model of any image size, with scores."""

    def __init__(self, path: Path, output_stride: int | None) -> None:
        model = in_float32(load_saved(path))
        check_rgb(model, "`Predictor`")
        if output_stride is not None:
            model = with_output_stride(model, output_stride)
        self.num_classes: int | None = model.num_classes
        self.smallest_side: int = serving.smallest_side(model)
        self.output_stride: int = model.output_stride
        if model.task == "binary":
            self.threshold = model.threshold
        # One trace for every size. A trace for any height at one width, which
        # TensorFlow would make of images of 500x375 and 500x333, fails in
        # its dilated depthwise convolutions.
        signature = [tf.TensorSpec((None, None, None, 3), "uint8")]
        self._labels = tf.function(
            lambda images: serving.segment(model, images), signature
        )
        self._scores = tf.function(
            lambda images: serving.score(model, images), signature
        )

    def labels(self, images: np.ndarray) -> np.ndarray:
        return self._labels(images).numpy()

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self._scores(images).numpy()


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
                "`image` uint8 [batch, height, width, 3] -> `labels`. "
                f"Received: {path} with {sorted(self._loaded.signatures)}"
            )
        check_finite(
            (
                (weight.name, weight.numpy())
                for weight in self._serve.variables
                if weight.dtype.is_floating
            ),
            str(path),
        )

    def labels(self, images: np.ndarray) -> np.ndarray:
        return self._serve(image=tf.constant(images))["labels"].numpy()


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
            if channels != 3:
                raise InputError(f"it takes images of {channels} channels")
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

    def labels(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                self._session.run(None, {self._input_name: image[None]})[0]
                for image in images
            ]
        )


def _is_ours(signature):
    """Returns True if a signature maps images to labels."""
    taken = signature.structured_input_signature[1]
    image = taken.get("image")
    return (
        list(taken) == ["image"]
        and image.dtype.name == "uint8"
        and image.shape.is_compatible_with((None, None, None, 3))
        and list(signature.structured_outputs) == ["labels"]
    )


def _tflite_weights(path):
    """`(name, array)` of the floats and scales of a `.tflite`, unread."""
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {
        schema.TensorType.FLOAT32: "<f4",
        schema.TensorType.FLOAT16: "<f2",
    }
    model = schema.Model.GetRootAs(Path(path).read_bytes())
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            name = tensor.Name().decode("utf-8", "replace")
            buffer = model.Buffers(tensor.Buffer())
            if tensor.Type() in dtypes and buffer.DataLength():
                array = buffer.DataAsNumpy().view(dtypes[tensor.Type()])
                # A single -inf pads max pooling.
                if array.size > 1:
                    yield name, array
            quantization = tensor.Quantization()
            if quantization and quantization.ScaleLength():
                yield name, quantization.ScaleAsNumpy()


class LiteRTRuntime(Runtime):
    """A `.tflite` file in the LiteRT interpreter."""

    survives_fork: bool = True

    def __init__(self, path: Path) -> None:
        check_runs(path)
        check_finite(_tflite_weights(path), str(path))
        self._path = path
        self.reopen()
        self._input_details = self._interpreter.get_input_details()[0]
        self._output_details = self._interpreter.get_output_details()[0]
        shape, given = (
            self._output_details["shape"],
            self._input_details["shape"],
        )
        if (
            len(shape) not in (3, 4)
            or len(given) != 4
            or given[[0, 3]].tolist() != [1, 3]
            or self._input_details["dtype"] is not np.uint8
        ):
            raise InputError(
                "A .tflite of ours takes uint8 [1, height, width, 3] and "
                "answers [1, height, width], or that with scores of classes. "
                f"Received: {path} with "
                f"{self._input_details['dtype'].__name__} "
                f"{given.tolist()} and {shape.tolist()}"
            )
        if len(shape) == 4:
            self.num_classes: int | None = int(shape[3])
            self.scores: Callable[[np.ndarray], np.ndarray] = self._answers
        self.image_size = tuple(int(n) for n in given[1:3])
        if -1 in self._input_details["shape_signature"]:
            self.image_size = None

    def reopen(self) -> None:
        """Makes an interpreter of this process."""
        from ai_edge_litert.interpreter import Interpreter

        # An interpreter holds the tensors of one call at a time.
        self._lock = threading.Lock()
        self._interpreter = Interpreter(
            model_path=str(self._path), num_threads=os.cpu_count()
        )
        # Without a fixed size, tensors are allocated per image.
        input_details = self._interpreter.get_input_details()[0]
        if -1 not in input_details["shape_signature"]:
            self._allocate()

    def _allocate(self):
        with filtered_once("XNNPACK"):
            self._interpreter.allocate_tensors()

    def labels(self, images: np.ndarray) -> np.ndarray:
        found = self._answers(images)
        return found if found.ndim == 3 else found.argmax(-1)

    def _answers(self, images):
        with self._lock:
            return np.concatenate([self._one(image[None]) for image in images])

    def _one(self, image):
        index = self._input_details["index"]
        if self.image_size is None:
            self._interpreter.resize_tensor_input(index, image.shape)
            try:
                self._allocate()
                details = self._interpreter.get_tensor_details()
                fits = all(0 not in tensor["shape"] for tensor in details)
            except RuntimeError:  # by XNNPACK, for maps without cells
                fits = False
            if not fits:
                raise InputError("no feature cell is left of it")
        self._interpreter.set_tensor(index, image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output_details["index"])
