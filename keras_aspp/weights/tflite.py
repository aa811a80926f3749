"""Public TFLite DeepLabs, back as Keras models."""

from __future__ import annotations

import logging

import keras
import numpy as np

from keras_aspp.backbones import create_backbone
from keras_aspp.litert.sandbox import check_runs
from keras_aspp.litert.values import operators_of
from keras_aspp.models import DeepLabV3
from keras_aspp.preprocess import KERAS_TF
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.finite import check_weights
from keras_aspp.utils.types import PathLike

_log = logging.getLogger(__name__)

# What the converter did to it is undone by one transposition for both.
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_BLOCKS = range(17)
_HEAD = ("aspp0", "image_pooling", "concat_projection", "logits/semantic")
# A sound import differs by rounding; another graph by the logits' own size.
_TOLERANCE = 1e-3
# A quantized file rounds in every layer; another graph agrees by chance.
_AGREEMENT = 0.5


def from_tflite(path: PathLike) -> DeepLabV3:
    """A public mobile DeepLabV3 `.tflite` as a Keras model of ours.

    Read are files of the TensorFlow model zoo's MobileNetV2 DeepLabV3 without
    atrous branches, at any width, size and output stride, such as
    `deeplabv3_257_mv_gpu.tflite`. Before it is returned the model is compared
    with the file on an image of noise. Quantized files come dequantized: the
    model computes what their weights say, in float, so that its labels differ
    here and there from the file's; how often is logged.

    Their converter folded batch norm into the convolutions, so its statistics
    are gone. The model has batch norm that does nothing but add the biases,
    and `batch_norm="freeze"` keeps it so in training.

    Args:
        path: file path.

    Returns:
        `DeepLabV3` with `align_corners=True`; exact at the file's own size.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not such a model, or computes something else.

    Example:
        model = ka.weights.from_tflite("deeplabv3_257_mv_gpu.tflite")
        logits = model(model.preprocess(images))
    """
    interpreter, layers = _read(path)
    backbone = _names_of_backbone()
    missing = [name for name in (*backbone, *_HEAD) if name not in layers]
    left = sorted(layers.keys() - {*backbone, *_HEAD})
    if missing or left:
        raise InputError(
            "Not a mobile DeepLabV3 on MobileNetV2. Received: "
            f"{str(path)!r}, missing {missing[:1]}, unknown {left[:1]}"
        )
    point, pooling, projection, logits = (layers[name] for name in _HEAD)
    height = interpreter.get_input_details()[0]["shape"][1]
    if logits.cells[0] < 2:
        raise InputError(
            "The output stride cannot be told from a single row of logits. "
            f"Received: {str(path)!r}, for images {height} pixels high"
        )
    output_stride = int((height - 1) // (logits.cells[0] - 1))
    model = DeepLabV3(
        len(logits.bias),
        backbone=_with_filters(
            create_backbone("mobilenet_v2", output_stride, None),
            {
                ours: layers[name].kernel.shape
                for name, ours in backbone.items()
            },
        ),
        output_stride=output_stride,
        atrous_rates=(),
        preprocess=KERAS_TF,
        aspp_filters=len(point.bias),
        align_corners=True,
        batch_norm="freeze",
    )
    for name, ours in backbone.items():
        norm = "bn_Conv1" if ours == "Conv1" else f"{ours}_BN"
        _assign(
            layers[name],
            model.backbone.get_layer(ours),
            model.backbone.get_layer(norm),
        )
    aspp = model.get_layer("aspp")
    # They concatenate the pooled branch first, we last.
    projection.kernel = np.roll(projection.kernel, len(point.bias), axis=2)
    for found, layer in (
        (point, aspp.branches[0]),
        (pooling, aspp.branches[1].conv),
        (projection, aspp.projection),
    ):
        _assign(found, layer.conv, layer.norm)
    model.get_layer("classifier").set_weights([logits.kernel, logits.bias])
    check_weights(model, repr(str(path)))
    quantized = any(layer.quantized for layer in layers.values())
    _compare(model, interpreter, path, quantized)
    return model


class _Convolution:
    """Kernel as Keras has it, bias, and `(height, width)` of its map."""

    def __init__(self, kernel, bias, cells, quantized):
        self.kernel = kernel.transpose(1, 2, 3, 0)
        self.bias, self.cells, self.quantized = bias, cells, quantized


def _read(path):
    """The interpreter of a file, and its convolutions by layer name."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with open(path, "rb") as file:
        content = file.read()
    check_runs(path)
    try:
        interpreter = Interpreter(
            model_content=content,
            # A delegate would take the operators, and their names, away.
            experimental_op_resolver_type=(
                OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"Not a loadable TFLite file. Received: {str(path)!r} ({error})"
        ) from error
    tensors = {d["index"]: d for d in interpreter.get_tensor_details()}
    layers = {}
    for operator in operators_of(interpreter):
        if operator["op_name"] not in _CONVOLUTIONS:
            continue
        _, kernel, *rest = operator["inputs"]
        name = tensors[kernel]["name"]
        if len(rest) != 1 or rest[0] < 0:
            raise InputError(
                "Every convolution of a mobile DeepLabV3 has a bias. "
                f"Received: {str(path)!r}, {name} without one"
            )
        for ending in ("/depthwise_weights", "/weights"):
            name = name.removesuffix(ending)
        layers[name] = _Convolution(
            *(
                _real(interpreter.get_tensor(i), tensors[i], path)
                for i in (kernel, *rest)
            ),
            tuple(tensors[operator["outputs"][0]]["shape"][1:3]),
            tensors[kernel]["dtype"] is not np.float32,
        )
    return interpreter, layers


def _real(values, tensor, path):
    """Returns the dequantized values of a tensor, float32."""
    if values.dtype == np.float32:
        return values
    quantized = tensor["quantization_parameters"]
    if not quantized["scales"].size:
        raise InputError(
            "Weights must be float32, or integers with a scale. Received: "
            f"{str(path)!r}, {tensor['name']} of {values.dtype}"
        )
    shape = np.ones(values.ndim, int)
    if quantized["scales"].size > 1:
        shape[quantized["quantized_dimension"]] = -1
    scale, zero = (
        quantized[key].reshape(shape) for key in ("scales", "zero_points")
    )
    return ((values - zero.astype("float64")) * scale).astype("float32")


def _names_of_backbone():
    """Their names of MobileNetV2's convolutions -> Keras' names."""
    names = {"MobilenetV2/Conv": "Conv1"}
    for block in _BLOCKS:
        theirs = f"MobilenetV2/expanded_conv{f'_{block}' if block else ''}"
        ours = f"block_{block}" if block else "expanded_conv"
        for part in ("expand", "depthwise", "project")[block == 0 :]:
            names[f"{theirs}/{part}"] = f"{ours}_{part}"
    return names


def _with_filters(backbone, shapes):
    """The same graph with as many channels as these kernels have.

    The zoo's widths are not Keras': half of 24 is 12 there and 16 here.
    """

    def clone(layer):
        config = layer.get_config()
        if "filters" in config:
            config["filters"] = shapes[layer.name][-1]
        return type(layer).from_config(config)

    return keras.models.clone_model(backbone, clone_function=clone)


def _assign(found, convolution, norm):
    needed = tuple(convolution.kernel.shape)
    if found.kernel.shape != needed:
        raise InputError(
            f"A kernel does not fit `{convolution.name}`. Received: "
            f"shape={found.kernel.shape}, needed={needed}"
        )
    convolution.set_weights([found.kernel])
    ones = np.ones_like(found.bias)
    norm.set_weights([ones, found.bias, 0 * ones, ones - norm.epsilon])


def _compare(model, interpreter, path, quantized=False):
    """Raises where model and file differ by more than rounding."""
    (input_details,) = interpreter.get_input_details()
    (output_details,) = interpreter.get_output_details()
    pixels = np.random.default_rng(0).integers(0, 256, input_details["shape"])
    noise = model.preprocess(pixels.astype("float32"))
    given = np.asarray(noise)
    if input_details["dtype"] is not np.float32:
        scale, zero = input_details["quantization"]
        limits = np.iinfo(input_details["dtype"])
        given = np.clip(np.round(given / scale) + zero, limits.min, limits.max)
    interpreter.set_tensor(
        input_details["index"], given.astype(input_details["dtype"])
    )
    interpreter.invoke()
    expected = _real(
        interpreter.get_tensor(output_details["index"]), output_details, path
    )
    found = np.asarray(model(noise, training=False))
    if found.shape != expected.shape:
        worst = f"shapes {found.shape} and {expected.shape}"
    elif quantized:
        agreement = np.mean(found.argmax(-1) == expected.argmax(-1))
        if agreement >= _AGREEMENT:
            _log.warning(
                "%s: dequantized; on an image of noise %.1f%% of the labels "
                "are the file's.",
                path,
                100 * agreement,
            )
            return
        worst = f"{agreement:.1%} of the labels agree"
    else:
        worst = np.abs(found - expected).max() / expected.std()
        if worst <= _TOLERANCE:
            return
        worst = f"a difference of {worst:.2g} standard deviations"
    raise InputError(
        "The file computes something else than the DeepLabV3 that its layers "
        f"are named for. Received: {str(path)!r}, {worst}"
    )
