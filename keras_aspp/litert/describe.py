"""Description of `.tflite` files and SavedModels: tensors, operators, cost."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_aspp.litert.graph import operator_names, unpacked
from keras_aspp.litert.names import find_live_taps
from keras_aspp.litert.values import operators_of
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.text import read_manifest
from keras_aspp.utils.types import PathLike


def describe_tflite(path: PathLike) -> dict[str, Any]:
    """Describes the operators, tensors and multiply-adds of a `.tflite`.

    Args:
        path: file.

    Returns:
        dict that JSON can hold. `madds` are what the file computes, without
        the taps that it leaves out, `None` where it leaves a size open;
        `weights_bytes` as stored; `largest_activations` the five largest
        results of operators; `atrous` the dilated convolutions with their
        maps.

    Raises:
        ValueError: it is not a TFLite file.
    """
    from ai_edge_litert.interpreter import Interpreter

    content = Path(path).read_bytes()
    try:
        # A damaged file would be read past its end by the bare schema.
        Interpreter(model_content=content)
        described = _describe(content)
    except Exception as error:
        # What is raised depends on which byte is wrong.
        raise InputError(
            f"Not a loadable .tflite. Received: {path} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return {
        "format": "tflite",
        "path": str(path),
        **described,
        "manifest": _manifest(path),
    }


def _describe(content):
    model = unpacked(content)
    graph = model.subgraphs[0]
    names = operator_names(model)
    operators = [(names[op.opcodeIndex], op) for op in graph.operators]
    # A dequantized tensor is a weight.
    results = {
        i for n, op in operators for i in op.outputs if n != "DEQUANTIZE"
    }
    tensors = graph.tensors
    largest = sorted(results, key=lambda i: -_bytes(tensors[i], schema))[:5]
    is_open = any(
        -1
        in (tensor.shapeSignature if tensor.shapeSignature is not None else [])
        for tensor in tensors
    )
    return {
        "bytes": len(content),
        "weights_bytes": sum(
            len(b.data) for b in model.buffers if b.data is not None
        ),
        "inputs": [_tensor(tensors[i], schema) for i in graph.inputs],
        "outputs": [_tensor(tensors[i], schema) for i in graph.outputs],
        "operators": dict(sorted(Counter(n for n, _ in operators).items())),
        "madds": None
        if is_open
        else sum(_madds(name, op, tensors) for name, op in operators),
        "largest_activations": [_tensor(tensors[i], schema) for i in largest],
        "atrous": _rates(operators, tensors),
    }


def describe_saved_model(path: PathLike) -> dict[str, Any]:
    """Describes the signatures, parameters and bytes of a SavedModel.

    Args:
        path: folder.

    Returns:
        dict that JSON can hold.

    Raises:
        ValueError: it cannot be loaded.
    """
    path = Path(path)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(
            f"Not a loadable SavedModel. Received: {path} "
            f"({type(error).__name__})"
        ) from error
    signatures = {
        name: {
            "inputs": _specs(function.structured_input_signature[1]),
            "outputs": _specs(function.structured_outputs),
        }
        for name, function in loaded.signatures.items()
    }
    variables = {
        v.ref(): v for f in loaded.signatures.values() for v in f.variables
    }
    return {
        "format": "saved_model",
        "path": str(path),
        "bytes": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
        "parameters": sum(math.prod(v.shape) for v in variables.values()),
        "signatures": signatures,
        "manifest": _manifest(path),
    }


def _shape(tensor):
    signature = tensor.shapeSignature
    shape = tensor.shape if signature is None else signature
    return [] if shape is None else [int(n) for n in shape]


def _type_name(tensor, schema):
    names = {v: k for k, v in vars(schema.TensorType).items()}
    return names[tensor.type].lower()


def _bytes(tensor, schema):
    bits = "".join(filter(str.isdigit, _type_name(tensor, schema))) or "8"
    shape = [] if tensor.shape is None else tensor.shape
    return math.prod(map(int, shape)) * int(bits) // 8


def _name(tensor):
    """Returns the name of a tensor, empty where a file leaves names out."""
    return tensor.name.decode() if tensor.name else ""


def _tensor(tensor, schema):
    return {
        "name": _name(tensor),
        "shape": _shape(tensor),
        "dtype": _type_name(tensor, schema),
        "bytes": _bytes(tensor, schema),
    }


def _madds(name, operator, tensors):
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 0
    kernel = math.prod(map(int, tensors[operator.inputs[1]].shape))
    output = tensors[operator.outputs[0]].shape
    return kernel * math.prod(map(int, output[1:-1]))


def _rates(operators, tensors):
    found = Counter()
    for name, op in operators:
        rate = tuple(
            getattr(op.builtinOptions, f"dilation{axis}Factor", 1)
            for axis in "HW"
        )
        if max(rate) > 1:
            size = tuple(tensors[op.inputs[0]].shape[1:3].tolist())
            kernel = tuple(tensors[op.inputs[1]].shape[1:3].tolist())
            found[name, kernel, rate, size] += 1
    named = find_live_taps(map(_name, tensors))
    for numbers, count in sorted(named.items()):
        found["CONV_2D 1x1 of each live tap", *numbers] += count
    return [
        {
            "operator": name,
            "layers": count,
            "kernel_size": list(kernel),
            "rate": rate[0] if rate[0] == rate[1] else list(rate),
            "map": list(size),
        }
        for (name, kernel, rate, size), count in found.items()
    ]


def _specs(structure):
    return {
        name: {
            "shape": None if s.shape.rank is None else s.shape.as_list(),
            "dtype": np.dtype(s.dtype.as_numpy_dtype).name
            if s.dtype.name != "string"
            else "string",
        }
        for name, s in structure.items()
    }


def _manifest(path):
    """Returns the manifest entry of an artefact, or `None`."""
    file = Path(path).parent / "manifest.json"
    if not file.is_file():
        return None
    content = read_manifest(file)
    own = [a for a in content["artefacts"] if a["path"] == Path(path).name]
    keys = ("mean_iou", "agreement_with_keras", "latency_ms")
    return {
        **{k: content.get(k) for k in ("name", "num_classes", "output_stride")},
        **{k: own[0].get(k) for k in keys if own},
    }


# Kernels missing on phones, or that split a dilated convolution in three.
FORBIDDEN = ("Flex", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")


def operators(path: PathLike) -> dict[str, int]:
    """Counts the operators of a `.tflite` by name.

    Args:
        path: file.

    Returns:
        dict: name -> count, sorted by name.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        model_path=str(path), experimental_op_resolver_type=plain
    )
    counts = {}
    for operator in operators_of(interpreter):
        name = operator["op_name"]
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def gpu_compatible(path: PathLike) -> bool:
    """Returns True if TensorFlow's analyzer finds a `.tflite` GPU compatible.

    The GPU delegate takes no graph whose sizes are open.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        tf.lite.experimental.Analyzer.analyze(
            model_path=str(path), gpu_compatibility=True
        )
    return "looks compatible with GPU delegate" in said.getvalue()


def check_operators(found: Mapping[str, int], path: PathLike) -> None:
    """Raises `ValueError` if an operator is forbidden."""
    bad = sorted(n for n in found if n.startswith(FORBIDDEN))
    if bad:
        raise InputError(
            "A TFLite file must hold builtin operators only, and whole "
            f"dilated convolutions. Received: {', '.join(bad)} in "
            f"{Path(path).name}"
        )
