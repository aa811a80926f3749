"""Float `.tflite` graphs that the GPUs of phones run whole."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_aspp.litert.edit import add_constant, add_tensor, operator_code
from keras_aspp.litert.graph import operator_names, packed, unpacked
from keras_aspp.utils.exceptions import InputError

# Operators that LiteRT's GPU backends refuse, always or in some versions.
_REFUSED = (
    "ARG_MAX",
    "BROADCAST_TO",
    "CAST",
    "DEQUANTIZE",
    "GATHER",
    "GATHER_ND",
    "QUANTIZE",
    "RELU_0_TO_1",
    "REVERSE_V2",
    "SELECT",
    "SELECT_V2",
)
_LARGEST_RANK = 4
_ROWS, _COLUMNS = 1, 2  # axes of a map


def for_gpu(content: bytes) -> bytes:
    """Returns a float `.tflite` of the same function that GPUs run well.

    A mean over a map becomes a mean of each row and then one of these, so that
    sums stay small enough for float16. A broadcast of one cell becomes a
    resize.

    Args:
        content: bytes of a `.tflite` of one size.

    Raises:
        ValueError: GPUs refuse an operator or a tensor that is left.
    """
    model = unpacked(content)
    (graph,) = model.subgraphs
    names = operator_names(model)
    operators = []
    for operator in graph.operators:
        name = names[operator.opcodeIndex]
        if name == "MEAN":
            operators += _mean_of_rows(model, graph, operator)
        if name == "BROADCAST_TO":
            _resize_instead(model, graph, operator)
        operators.append(operator)
    graph.operators = operators
    _check(graph, operator_names(model))
    return packed(model)


def _check(graph, names):
    """Raises `ValueError` if GPUs refuse an operator or a tensor of a graph."""
    bad = {names[o.opcodeIndex] for o in graph.operators} & set(_REFUSED)
    bad |= {
        f"{names[o.opcodeIndex]} of rank {len(graph.tensors[i].shape)}"
        for o in graph.operators
        for i in o.outputs
        if len(graph.tensors[i].shape) > _LARGEST_RANK
    }
    if bad:
        raise InputError(
            "A tflite_gpu file must hold operators that GPUs take. "
            f"Received: {', '.join(sorted(bad))}"
        )


def _mean_of_rows(model, graph, operator):
    """Puts a mean over columns before one over a whole map."""
    source, axes = (graph.tensors[int(i)] for i in operator.inputs)
    over = model.buffers[axes.buffer].data
    over = np.asarray(over, "uint8").view("int32") % len(source.shape)
    if sorted(over.tolist()) != [_ROWS, _COLUMNS]:
        return []
    shape = [int(n) for n in source.shape]
    shape[_COLUMNS] = 1
    first = schema.OperatorT()
    first.opcodeIndex = operator.opcodeIndex
    columns = add_constant(model, graph, np.int32([_COLUMNS]))
    first.inputs = [int(operator.inputs[0]), columns]
    first.outputs = [add_tensor(graph, source.name + b"/rows", source)]
    graph.tensors[first.outputs[0]].shape = shape
    first.builtinOptionsType = schema.BuiltinOptions.ReducerOptions
    first.builtinOptions = schema.ReducerOptionsT()
    first.builtinOptions.keepDims = True
    operator.inputs = [first.outputs[0], int(operator.inputs[1])]
    return [first]


def _resize_instead(model, graph, operator):
    """Makes a resize of the broadcast of a map of one cell."""
    source = graph.tensors[int(operator.inputs[0])]
    result = graph.tensors[int(operator.outputs[0])]
    before, after = list(source.shape), list(result.shape)
    one_cell = len(before) == 4 and before[1:3] == [1, 1]
    if not one_cell or [before[0], before[3]] != [after[0], after[3]]:
        return
    size = add_constant(model, graph, np.int32(after[1:3]))
    operator.opcodeIndex = operator_code(model, "RESIZE_BILINEAR")
    operator.inputs = [int(operator.inputs[0]), size]
    operator.builtinOptionsType = schema.BuiltinOptions.ResizeBilinearOptions
    operator.builtinOptions = schema.ResizeBilinearOptionsT()
