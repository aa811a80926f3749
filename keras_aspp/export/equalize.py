"""equalize: every channel of a map made to use all of its 8 bits.

An int8 map has one scale for all of its channels, and a channel of small
values little resolution. But what a convolution writes larger, the ones that
read it can weigh less, and the network computes what it did. So a channel is
written by a factor larger and read by it smaller.

Source: Nagel et al., 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; here with the values that
occur instead of weights, for kernels have a scale per channel.
"""

import collections

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_CONV, _DEPTHWISE = "CONV_2D", "DEPTHWISE_CONV_2D"
# What a factor on a channel passes through, as long as it is not negative.
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
_LIMIT = 64.0


def equalize(content, pictures):
    """A float `.tflite` that loses less when it is quantized.

    Args:
        content: bytes of a `.tflite`, everything float32.
        pictures: iterable of float32 `[1, H, W, 3]`, of the file's size, that
            show which values occur.

    Returns:
        bytes of a `.tflite` that computes the same on them, but for rounding.
    """
    graph = _Graph(content)
    reach = _largest_values(content, pictures)
    factors = {}
    for maps in graph.maps_that_share_channels(reach):
        readers = [op for op in graph.convolutions if op.inputs[0] in maps]
        factor = _factor(
            np.maximum.reduce([reach[m] for m in maps]),
            [graph.array(op.inputs[1]) for op in readers if op.name == _CONV],
            any(m in graph.clipped_at_6 for m in maps),
        )
        factors |= dict.fromkeys(maps, factor)
    for op in graph.convolutions:
        kernel, bias = (graph.array(tensor) for tensor in op.inputs[1:3])
        kernel = kernel / factors.get(op.inputs[0], 1.0)
        if op.output in factors:
            factor = factors[op.output]
            bias = bias * factor
            # TFLite has filters first, and channels last where depthwise.
            by_filter = factor[:, None, None, None]
            kernel = kernel * (by_filter if op.name == _CONV else factor)
        graph.assign(op.inputs[1], kernel)
        graph.assign(op.inputs[2], bias)
    return packed(graph.model)


def packed(model):
    """Bytes of a `schema.ModelT`."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _factor(reach, kernels, clipped_at_6):
    """What the channels of a map are to be multiplied by, float (C,).

    Args:
        reach: float (C,), largest absolute value of each.
        kernels: float (F, h, w, C) that read them and have one scale for each
            filter; depthwise ones, with one for each channel, lose nothing.
        clipped_at_6: bool. Whether the map is one of ReLU6.
    """
    if not reach.max() > 0:
        return np.ones_like(reach)  # a map that is 0 everywhere
    reach = np.maximum(reach, 1e-4 * reach.max())
    factor = 1 / reach
    if kernels:
        # A channel made larger has smaller weights, which round too.
        weight = np.maximum.reduce([_shares(kernel) for kernel in kernels])
        least = 1e-3 * max(weight.max(), 1e-12)
        factor = np.sqrt(np.maximum(weight, least) / reach)
    factor = factor * (reach.max() / (factor * reach).max())
    factor = np.clip(factor, 1 / _LIMIT, _LIMIT)
    if clipped_at_6:
        # What is clipped stays where it is, and nothing is newly clipped.
        factor = np.clip(factor, 1.0, np.maximum(6 / reach, 1.0))
    return factor


def _shares(kernel):
    """Largest weight for each channel, in [0, 1] of its filter's largest."""
    size = np.abs(kernel)
    whole = np.maximum(size.max((1, 2, 3), keepdims=True), 1e-12)
    return (size / whole).max((0, 1, 2))


def _largest_values(content, pictures):
    """Map -> float (C,), the largest absolute value of each channel."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=(
            OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    interpreter.allocate_tensors()
    (door,) = interpreter.get_input_details()
    found = {}
    for picture in pictures:
        interpreter.set_tensor(door["index"], picture)
        interpreter.invoke()
        for operator in interpreter._get_ops_details():
            tensor = operator["outputs"][0]
            values = interpreter.get_tensor(tensor)
            if values.ndim == 4 and values.dtype == np.float32:
                largest = np.abs(values).max((0, 1, 2))
                found[tensor] = np.maximum(found.get(tensor, 0.0), largest)
    return found


class _Operator:
    """Name, tensors and fused activation of an operator."""

    def __init__(self, operator, codes):
        self.name = codes[operator.opcodeIndex]
        self.inputs = [int(i) for i in operator.inputs]
        self.output = int(operator.outputs[0])
        self.activation = getattr(
            operator.builtinOptions, "fusedActivationFunction", _NONE
        )
        if self.name == "RELU6":
            self.activation = _RELU6


class _Graph:
    """The graph of a float `.tflite`, its maps named by tensor."""

    def __init__(self, content):
        self.model = schema.ModelT.InitFromPackedBuf(content)
        (self.graph,) = self.model.subgraphs
        codes = [
            _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
            for code in self.model.operatorCodes
        ]
        self.operators = [_Operator(o, codes) for o in self.graph.operators]
        self.uses = collections.Counter(
            tensor for o in self.operators for tensor in o.inputs
        )
        self.convolutions = [o for o in self.operators if self._is_plain(o)]
        self.clipped_at_6 = {
            o.output for o in self.operators if o.activation == _RELU6
        }

    def array(self, tensor):
        """float64 values of a constant."""
        found = self.graph.tensors[tensor]
        data = np.asarray(self.model.buffers[found.buffer].data, "uint8")
        return data.view("float32").reshape(found.shape).astype("float64")

    def assign(self, tensor, values):
        """New values of a constant, in a buffer of its own."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.astype("float32").tobytes(), "uint8")
        self.model.buffers.append(buffer)
        self.graph.tensors[tensor].buffer = len(self.model.buffers) - 1

    def maps_that_share_channels(self, known):
        """Lists of maps whose channels can take a factor, one for all.

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
        """Whether it is a convolution whose channels can be told apart."""
        if operator.name not in (_CONV, _DEPTHWISE):
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
