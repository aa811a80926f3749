"""Reader and editor of `.tflite` graphs."""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CONV, _DEPTHWISE = "CONV_2D", "DEPTHWISE_CONV_2D"
# Operators that commute with a non-negative factor on a channel.
_PASS = (
    "PAD",
    "RESIZE_BILINEAR",
    "MEAN",
    "BROADCAST_TO",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
    "RELU",
    "RELU6",
)
_ADD = "ADD"
_NAMES = {
    number: name
    for name, number in vars(schema.BuiltinOperator).items()
    if isinstance(number, int)
}
_NONE, _RELU, _RELU6 = (
    getattr(schema.ActivationFunctionType, name)
    for name in ("NONE", "RELU", "RELU6")
)


def unpacked(content: bytes) -> Any:
    """Reads a `schema.ModelT` whose buffers hold their data.

    Some writers put data behind the graph, where repacking would lose it.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 mean none
            data = content[buffer.offset : buffer.offset + buffer.size]
            buffer.data = np.frombuffer(data, "uint8")
            buffer.offset = buffer.size = 0
    return model


def packed(model: Any) -> bytes:
    """Serializes a `schema.ModelT`, without tensors and data of no use."""
    _prune(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _prune(model):
    """Removes the tensors and buffers that edits have left behind."""
    (graph,) = model.subgraphs
    ends = [graph.inputs, graph.outputs]
    ends += [x for o in graph.operators for x in (o.inputs, o.outputs)]
    # -1 means that an optional input is absent.
    used = sorted({int(i) for end in ends for i in end} - {-1})
    place = {-1: -1, **{old: new for new, old in enumerate(used)}}
    graph.tensors = [graph.tensors[i] for i in used]
    graph.inputs = [place[int(i)] for i in graph.inputs]
    graph.outputs = [place[int(i)] for i in graph.outputs]
    for operator in graph.operators:
        operator.inputs = [place[int(i)] for i in operator.inputs]
        operator.outputs = [place[int(i)] for i in operator.outputs]
    for signature in model.signatureDefs or []:
        for end in (*signature.inputs, *signature.outputs):
            end.tensorIndex = place[int(end.tensorIndex)]
    holders = [*graph.tensors, *(model.metadata or [])]
    # The first buffer is the empty one.
    kept = sorted({0, *(int(holder.buffer) for holder in holders)})
    model.buffers = [model.buffers[i] for i in kept]
    for holder in holders:
        holder.buffer = kept.index(int(holder.buffer))


def operator_names(model: Any) -> list[str]:
    """Returns the name of each operator code of a `schema.ModelT`."""
    return [
        # Codes from 127 on do not fit into the field of the first format.
        _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for code in model.operatorCodes
    ]


def float_operators(content: bytes) -> dict[str, int]:
    """Counts the operators of a `.tflite` that compute floats.

    Conversions of integers to floats are not among them.
    """
    model = unpacked(content)
    names = operator_names(model)
    (graph,) = model.subgraphs
    found = collections.Counter(
        names[operator.opcodeIndex]
        for operator in graph.operators
        if graph.tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
    )
    del found["DEQUANTIZE"]
    return dict(found)


class Operator:
    """Name, tensors and fused activation of an operator."""

    def __init__(self, operator: Any, codes: Sequence[str]) -> None:
        self.name: str = codes[operator.opcodeIndex]
        self.inputs: list[int] = [int(i) for i in operator.inputs]
        self.output: int = int(operator.outputs[0])
        self.activation: Any = getattr(
            operator.builtinOptions, "fusedActivationFunction", _NONE
        )
        if self.name == "RELU6":
            self.activation = _RELU6


class Graph:
    """Graph of a float `.tflite`; feature maps are tensor indices."""

    def __init__(self, content: bytes) -> None:
        self.model: Any = unpacked(content)
        (graph,) = self.model.subgraphs
        self.graph: Any = graph
        codes = operator_names(self.model)
        self.operators: list[Operator] = [
            Operator(o, codes) for o in self.graph.operators
        ]
        self.uses: collections.Counter[int] = collections.Counter(
            tensor for o in self.operators for tensor in o.inputs
        )
        self.convolutions: list[Operator] = [
            o for o in self.operators if self._is_plain(o)
        ]
        self.clipped_at_6: set[int] = {
            o.output for o in self.operators if o.activation == _RELU6
        }

    def array(self, tensor: int) -> np.ndarray:
        """Returns the values of a constant, float64."""
        found = self.graph.tensors[tensor]
        data = np.asarray(self.model.buffers[found.buffer].data, "uint8")
        return data.view("float32").reshape(found.shape).astype("float64")

    def assign(self, tensor: int, values: np.ndarray) -> None:
        """Assigns values to a constant, in a new buffer."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.astype("float32").tobytes(), "uint8")
        self.model.buffers.append(buffer)
        self.graph.tensors[tensor].buffer = len(self.model.buffers) - 1

    def maps_that_share_channels(
        self, known: Collection[int]
    ) -> list[list[int]]:
        """Groups maps whose channels can share a scaling factor.

        Args:
            known: maps of which values are known.
        """
        groups = {m: {m} for m in known}
        fixed = {*self.graph.inputs, *self.graph.outputs}
        plain = {id(o) for o in self.convolutions}
        for o in self.operators:
            maps = [m for m in (*o.inputs, o.output) if m in known]
            if o.activation not in (_NONE, _RELU, _RELU6):
                fixed.add(o.output)
            if id(o) in plain:
                continue
            # Inputs of the graph are not among the known.
            if not self._passes(o, maps):
                fixed.update(maps)
                continue
            joined = set().union(*(groups[m] for m in maps))
            groups |= dict.fromkeys(joined, joined)
        distinct = {id(group): group for group in groups.values()}
        return [sorted(g) for g in distinct.values() if not g & fixed]

    def _passes(self, operator, maps):
        channels = {self.graph.tensors[m].shape[-1] for m in maps}
        wanted = {_ADD: 3}.get(operator.name, 2)
        return (
            operator.name in (*_PASS, _ADD)
            and len(maps) == wanted
            and len(channels) == 1
        )

    def _is_plain(self, operator):
        """Returns True for a convolution with separable channels."""
        if operator.name not in (CONV, _DEPTHWISE):
            return False
        source, kernel, *bias = operator.inputs
        return (
            len(bias) == 1
            and all(
                self.uses[t] == 1 and self._is_float(t) for t in (kernel, *bias)
            )
            and self.graph.tensors[kernel].shape[-1]
            == self.graph.tensors[source].shape[-1]
        )

    def _is_float(self, tensor):
        found = self.graph.tensors[tensor]
        return (
            found.type == schema.TensorType.FLOAT32
            and self.model.buffers[found.buffer].data is not None
        )
