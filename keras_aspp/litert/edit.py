"""Additions to a `.tflite` graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_aspp.litert.graph import operator_names

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
}


def operator_code(model: Any, name: str) -> int:
    """Returns the index of an operator code, added if it is missing."""
    names = operator_names(model)
    if name in names:
        return names.index(name)
    code: Any = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = code.builtinCode
    code.version = 1
    model.operatorCodes.append(code)
    return len(names)


def add_constant(
    model: Any, graph: Any, values: np.ndarray, name: bytes = b""
) -> int:
    """Adds a constant, float32 or int32; returns its tensor."""
    buffer: Any = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), "uint8")
    model.buffers.append(buffer)
    tensor: Any = schema.TensorT()
    tensor.shape, tensor.type = list(values.shape), _TYPES[values.dtype.name]
    found = add_tensor(graph, name, tensor)
    graph.tensors[found].buffer = len(model.buffers) - 1
    return found


def add_tensor(graph: Any, name: bytes, like: Any) -> int:
    """Adds a tensor without values; returns its index.

    Args:
        graph: `schema.SubGraphT`.
        name: bytes.
        like: `schema.TensorT` of the same shape and type.
    """
    tensor: Any = schema.TensorT()
    tensor.name, tensor.type = name, like.type
    tensor.shape = [int(n) for n in like.shape]
    tensor.buffer = 0  # the empty one
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
