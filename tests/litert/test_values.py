"""Operators and stored values of a `.tflite`, beside those of its graph."""

import collections

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from helpers import ROOT

from keras_aspp.litert.graph import operator_names, unpacked
from keras_aspp.litert.values import operators_of, stored_floats

FOLDER = ROOT / "saved_models" / "camvid_mobile"


def test_operators_are_those_of_the_graph():
    path = FOLDER / "model_int8.tflite"
    model = unpacked(path.read_bytes())
    names = operator_names(model)
    (graph,) = model.subgraphs
    interpreter = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=(
            OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    found = operators_of(interpreter)
    assert [o["op_name"] for o in found] == [
        names[o.opcodeIndex] for o in graph.operators
    ]
    for one, other in zip(found, graph.operators, strict=True):
        assert list(one["inputs"]) == list(other.inputs)
        assert list(one["outputs"]) == list(other.outputs)


def test_stored_floats_are_weights_and_scales():
    content = (FOLDER / "model_gpu.tflite").read_bytes()
    model = unpacked(content)
    (graph,) = model.subgraphs
    expected = collections.Counter()
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.FLOAT32 and data is not None:
            values = np.asarray(data, "uint8").view("float32")
            if values.size > 1:
                expected[tensor.name.decode()] += float(np.abs(values).sum())
    found = collections.Counter()
    for name, values in stored_floats(content):
        found[name] += float(np.abs(values).sum())
    assert len(found) > 50
    assert found == expected

    content = (FOLDER / "model_int8.tflite").read_bytes()
    scales = [values for _, values in stored_floats(content)]
    assert len(scales) > 100
    assert all((values > 0).all() for values in scales if values.ndim)
