"""Predictor: the same answer from `.keras`, SavedModel, `.tflite`, `.onnx`."""

import math
import os
import re
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from keras_aspp import textfile
from keras_aspp.data.decode import read_image
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.extras import need
from keras_aspp.finite import check_finite
from keras_aspp.native_log import filtered_once
from keras_aspp.trial import try_out


class Predictor:
    """Segments pictures with whatever `path` holds.

    Threads may share a predictor; calls of a `.tflite` wait for each other,
    since each uses all cores. After a fork only a `.tflite` goes on: open any
    other model in the worker process, or start workers by "spawn".

    Args:
        path: a `.keras`, `.tflite` or `.onnx` file, a SavedModel folder, a
            workdir (its `model.keras`) or an exported folder (its SavedModel,
            or what there is of `model.keras` and the other files).
        output_stride: int, a power of two, or `None` for the model's own.
        scales: floats > 0, at which pictures are looked at; probabilities are
            averaged. Defaults to (1.0,).
        flip: bool. Average over mirrored pictures too. Defaults to `False`.
        window: int > 0: larger images are predicted in overlapping windows of
            this height and width, in pixels, and blended; or `None`.
        overlap: float in [0, 1). Share of a window that the next one predicts
            again. Defaults to 0.25.

        All but `path` are for a `.keras` model only: what is exported is
        fixed.

    Attributes:
        spec: `DatasetSpec` of what it was trained on, or `None`.
        num_classes: int, or `None` where neither model nor spec says it.
        image_size: `(height, width)` of an artefact of fixed size, else
            `None`: it answers at any size.
        has_scores: bool.

    Raises:
        FileNotFoundError: nothing at `path` can be used.
        ValueError: it cannot be loaded, is not what the manifest beside it
            describes, or does not take these arguments.

    Example:
    ```python
    labels = ka.Predictor("saved_models/multiscale_shapes").predict("a.png")
    ```
    """

    def __init__(
        self,
        path,
        output_stride=None,
        scales=(1.0,),
        flip=False,
        window=None,
        overlap=0.25,
    ):
        self.path = _find(Path(path))
        self.spec = _find_spec(self.path)
        several = tuple(scales) != (1.0,) or flip
        if self.path.suffix == ".keras":
            # They need `resize_image`, below.
            from keras_aspp.inference.sliding_window import SlidingWindow
            from keras_aspp.inference.tta import MultiScale

            engine = _Keras(self.path, output_stride)
            if window is not None:
                engine = SlidingWindow(engine, window, overlap)
            if several:
                engine = MultiScale(engine, scales, flip)
            self._engine = engine
        elif output_stride is not None:
            raise ValueError(
                "Only a .keras model can have another output stride. "
                f"Received: output_stride={output_stride}, {self.path}"
            )
        elif several or window is not None:
            raise ValueError(
                "Only a .keras model can be averaged or predicted in windows. "
                "Received: "
                f"scales={tuple(scales)}, flip={flip}, window={window}, "
                f"{self.path}"
            )
        elif self.path.suffix == ".tflite":
            self._engine = _TFLite(self.path)
        elif self.path.suffix == ".onnx":
            self._engine = _ONNX(self.path)
        else:
            self._engine = _SavedModel(self.path)
        self._pid = os.getpid()
        self.image_size = self._engine.image_size
        self.has_scores = hasattr(self._engine, "scores")
        described = self.spec.num_classes if self.spec else None
        self.num_classes = self._engine.num_classes or described
        if described not in (None, self.num_classes):
            raise ValueError(
                f"The model has {self.num_classes} classes, the file beside "
                f"it describes {described}. Received: {self.path}"
            )

    def predict(self, image, return_scores=False):
        """Labels of one picture, at its own size.

        Args:
            image: uint8 array `[H, W, 3]` (RGB), or a path; a file's EXIF
                orientation is respected.
            return_scores: bool. Logits too, float32 `[H, W, K]`; see
                `score_batch`.

        Returns:
            int32 `[H, W]`, or `(labels, scores)`.

        Raises:
            ValueError: not such a picture, or scores are asked of an
                artefact that has none.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image, exif=True)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                "`image` must be a uint8 array (height, width, 3) or a path. "
                f"Received: shape={image.shape}, dtype={image.dtype}"
            )
        if return_scores:
            if not self.has_scores:
                raise ValueError(
                    "Only a .keras model has scores (and model_logits.tflite, "
                    "at its own size). "
                    f"Received: return_scores=True, {self.path}"
                )
            scores = self.score_batch(image[None])[0]
            return np.argmax(scores, -1).astype("int32"), scores
        return self.predict_batch(image[None])[0]

    def score_batch(self, images):
        """float32 `[B, H, W, K]` logits of uint8 `[B, H, W, 3]` pictures.

        Of an average, the logarithm of the mean probability. From `.keras`,
        and from `model_logits.tflite` for pictures of its own size.

        Raises:
            ValueError: `images` is no such array, or its batch is empty.
        """
        images = _check_batch(images)
        if self.image_size not in (None, images.shape[1:3]):
            raise ValueError(
                f"Scores of {self.path.name} are for pictures of its own size, "
                f"{self.image_size}. Received: {images.shape[1:3]}"
            )
        return self._in_memory(self._engine.scores, images)

    def predict_batch(self, images):
        """int32 `[B, H, W]` labels of uint8 `[B, H, W, 3]` pictures.

        Raises:
            ValueError: `images` is no such array, or its batch is empty.
        """
        images = _check_batch(images)
        if self.image_size is None:
            return self._labels(images)
        return np.stack(
            [self.predict_at(image, self.image_size) for image in images]
        )

    def predict_at(self, image, size):
        """int32 `[H, W]` labels of a picture that is seen at another size.

        It is resized (antialiased), and its labels back (nearest), as with an
        artefact of that size.

        Args:
            image: uint8 `[H, W, 3]`.
            size: `(height, width)`, or `None` for the picture's own.
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
        """`answer(images)`, one by one where all are too many at once."""
        self._check_process()
        count, height, width, _ = images.shape
        needed = self._engine.bytes_needed(count, height, width)
        if needed <= _memory_bytes():
            least = self._engine.smallest_side
            if min(height, width) < least:
                raise ValueError(
                    f"The model needs images of at least {least}x{least} "
                    "pixels, or no feature cell is left of them; resize the "
                    f"image first. Received: size {height}x{width}"
                )
            try:
                return answer(images)
            except Exception as error:
                # What an engine raises depends on the engine.
                raise ValueError(
                    f"The model cannot take a picture of {height}x{width} "
                    f"({_reason(error)}). Received: {self.path}"
                ) from error
        if count == 1:
            raise ValueError(
                f"Predicting an image of {height}x{width} needs about "
                f"{needed / 1e9:.0f} GB, more than this machine has. Use a "
                ".keras model with window=1024 (--window 1024)."
            )
        return np.concatenate(
            [self._in_memory(answer, image[None]) for image in images]
        )

    def _check_process(self):
        """Raises `RuntimeError` where a forked process would hang."""
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
            raise ValueError(
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
        raise ValueError(
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


def resize_image(image, size):
    """uint8 `[H, W, 3]` resized to `(height, width)`, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    picture = Image.fromarray(image)
    return np.array(
        picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    )


# What stands for a folder without a SavedModel, the most exact first.
_CANDIDATES = (
    "model.keras",
    "model_any_size.tflite",
    "model_float32.tflite",
    "model_float16.tflite",
    "model_dynamic_range.tflite",
    "model_int8.tflite",
    "model.onnx",
    "model_logits.tflite",
)


def _find(path):
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return path
        if (path / "saved_model" / "saved_model.pb").exists():
            return path / "saved_model"
        for name in _CANDIDATES:
            if (path / name).is_file():
                return path / name
    elif path.is_file() and path.suffix in (".keras", ".tflite", ".onnx"):
        return path
    raise FileNotFoundError(
        "A model must be a .keras, .tflite or .onnx file, a SavedModel, a "
        "workdir or "
        f"an exported folder. Received: {str(path)!r}"
        + ("" if path.exists() else ", which does not exist")
    )


def _find_spec(path):
    """The spec beside an artefact: a manifest's, or a workdir's."""
    manifest = path.parent / "manifest.json"
    if manifest.is_file():
        content = textfile.read_manifest(manifest)
        _check_hash(path, content)
        try:
            return DatasetSpec(
                content["class_names"],
                content.get("ignore_label", 255),
                content.get("colormap"),
            )
        except ValueError as error:
            raise ValueError(f"{error}. File: {manifest}") from None
    described = path.parent / "dataset.json"
    return DatasetSpec.from_file(described) if described.is_file() else None


def _check_hash(path, manifest):
    """Raises where an artefact is not the one that its manifest describes."""
    from keras_aspp.export.manifest import sha256

    for entry in manifest["artefacts"]:
        if entry["path"] == path.name and entry["sha256"] != sha256(path):
            raise ValueError(
                "The artefact is not the one that manifest.json beside it was "
                "written for; export again, or take it out of this folder. "
                f"Received: {path}"
            )


# A whole network's activations and scores: DeepLabV3+ on MobileNetV2 takes
# 1260 for 11 classes, other backbones and more classes more.
_BYTES_PER_PIXEL = 2000


class _Engine:
    image_size = None
    num_classes = None
    smallest_side = 1  # of an image, in pixels
    output_stride = 1  # pixels by which an image may move with its labels
    survives_fork = False

    def bytes_needed(self, count, height, width):
        """What it takes to see pictures at once, about."""
        return count * height * width * _BYTES_PER_PIXEL


class _Keras(_Engine):
    def __init__(self, path, output_stride):
        import tensorflow as tf

        from keras_aspp.export import serving
        from keras_aspp.models import with_output_stride
        from keras_aspp.models.precision import in_float32
        from keras_aspp.models.segmenter import check_rgb, load_saved

        model = in_float32(load_saved(path))
        check_rgb(model, "`Predictor`")
        if output_stride is not None:
            model = with_output_stride(model, output_stride)
        self.num_classes = model.num_classes
        self.smallest_side = serving.smallest_side(model)
        self.output_stride = model.output_stride
        # One trace for every size. A trace for any height at one width, which
        # TensorFlow would make of pictures of 500x375 and 500x333, fails in
        # its dilated depthwise convolutions.
        pictures = [tf.TensorSpec((None, None, None, 3), "uint8")]
        self._labels = tf.function(
            lambda images: serving.segment(model, images), pictures
        )
        self._scores = tf.function(
            lambda images: serving.score(model, images), pictures
        )

    def labels(self, images):
        return self._labels(images).numpy()

    def scores(self, images):
        return self._scores(images).numpy()


class _SavedModel(_Engine):
    def __init__(self, path):
        import tensorflow as tf

        try:
            self._loaded = tf.saved_model.load(str(path))
        except Exception as error:
            # What TensorFlow raises depends on which byte is wrong.
            raise ValueError(
                f"Not a loadable SavedModel. Received: {path} "
                f"({type(error).__name__})"
            ) from error
        self._serve = self._loaded.signatures.get("serving_default")
        if self._serve is None or not _is_ours(self._serve):
            raise ValueError(
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

    def labels(self, images):
        import tensorflow as tf

        return self._serve(image=tf.constant(images))["labels"].numpy()


class _ONNX(_Engine):
    def __init__(self, path):
        need("An .onnx file", "onnx", "onnxruntime")
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(str(path))
            (door,) = self._session.get_inputs()
            _, *size, channels = door.shape
            if channels != 3:
                raise ValueError(f"it takes images of {channels} channels")
        # Their errors have no common ancestor.
        except Exception as error:
            raise ValueError(
                f"Not a loadable .onnx of ours. Received: {path} "
                f"({str(error).splitlines()[0]})"
            ) from error
        self._door, self.image_size = door.name, tuple(size)

    def labels(self, images):
        return np.concatenate(
            [
                self._session.run(None, {self._door: image[None]})[0]
                for image in images
            ]
        )


def _is_ours(signature):
    """Whether a SavedModel's signature takes pictures and gives labels."""
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

    kinds = {schema.TensorType.FLOAT32: "<f4", schema.TensorType.FLOAT16: "<f2"}
    model = schema.Model.GetRootAs(Path(path).read_bytes())
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            name = tensor.Name().decode("utf-8", "replace")
            buffer = model.Buffers(tensor.Buffer())
            if tensor.Type() in kinds and buffer.DataLength():
                array = buffer.DataAsNumpy().view(kinds[tensor.Type()])
                # Alone, -inf is what pads a max pooling.
                if array.size > 1:
                    yield name, array
            quantization = tensor.Quantization()
            if quantization and quantization.ScaleLength():
                yield name, quantization.ScaleAsNumpy()


class _TFLite(_Engine):
    survives_fork = True

    def __init__(self, path):
        try_out(path)
        check_finite(_tflite_weights(path), str(path))
        self._path = path
        self.reopen()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]
        shape, given = self._output["shape"], self._input["shape"]
        if (
            len(shape) not in (3, 4)
            or len(given) != 4
            or given[[0, 3]].tolist() != [1, 3]
            or self._input["dtype"] is not np.uint8
        ):
            raise ValueError(
                "A .tflite of ours takes uint8 [1, height, width, 3] and "
                "answers [1, height, width], or that with scores of classes. "
                f"Received: {path} with {self._input['dtype'].__name__} "
                f"{given.tolist()} and {shape.tolist()}"
            )
        if len(shape) == 4:
            self.num_classes = int(shape[3])
            self.scores = self._answers
        self.image_size = tuple(int(n) for n in given[1:3])
        if -1 in self._input["shape_signature"]:
            self.image_size = None

    def reopen(self):
        """Makes an interpreter of this process."""
        from ai_edge_litert.interpreter import Interpreter

        # An interpreter holds the tensors of one call at a time.
        self._lock = threading.Lock()
        self._interpreter = Interpreter(
            model_path=str(self._path), num_threads=os.cpu_count()
        )
        # What has no size of its own gets that of an image.
        door = self._interpreter.get_input_details()[0]
        if -1 not in door["shape_signature"]:
            self._allocate()

    def _allocate(self):
        with filtered_once("XNNPACK"):
            self._interpreter.allocate_tensors()

    def labels(self, images):
        found = self._answers(images)
        return found if found.ndim == 3 else found.argmax(-1)

    def _answers(self, images):
        with self._lock:
            return np.concatenate([self._one(image[None]) for image in images])

    def _one(self, image):
        index = self._input["index"]
        if self.image_size is None:
            self._interpreter.resize_tensor_input(index, image.shape)
            try:
                self._allocate()
                details = self._interpreter.get_tensor_details()
                fits = all(0 not in tensor["shape"] for tensor in details)
            except RuntimeError:  # of XNNPACK, where it finds no cell
                fits = False
            if not fits:
                raise ValueError("no feature cell is left of it")
        self._interpreter.set_tensor(index, image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"])
