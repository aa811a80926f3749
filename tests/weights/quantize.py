"""A float TFLite file as the uint8 file that its publishers would make of it.

Ranges are those of one picture; everything is per tensor and asymmetric, as
in the quantized DeepLabs of the TensorFlow model zoo.
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

_CONVOLUTIONS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
)
# Kernels of these want one scale before and behind.
_KEEPS = (
    schema.BuiltinOperator.RESIZE_BILINEAR,
    schema.BuiltinOperator.AVERAGE_POOL_2D,
    schema.BuiltinOperator.RESHAPE,
)


def write_quantized(path, picture, output):
    """Writes `output`, the uint8 twin of the float file `path`."""
    with open(path, "rb") as file:
        content = file.read()
    ranges = _ranges(content, picture)

    def quantize(graph, model):
        _quantize(graph, model, ranges)

    return rewrite(path, output, quantize)


def _quantize(graph, model, ranges):
    codes = [
        max(code.builtinCode, code.deprecatedBuiltinCode)
        for code in model.operatorCodes
    ]
    for operator in reversed(graph.operators):
        if codes[operator.opcodeIndex] in _KEEPS:
            # Backwards, so that a chain of them ends with one range.
            first, last = operator.inputs[0], operator.outputs[0]
            low, high = zip(ranges[first], ranges[last], strict=True)
            ranges[first] = ranges[last] = (min(low), max(high))
    for operator in graph.operators:
        if codes[operator.opcodeIndex] in _KEEPS:
            ranges[operator.outputs[0]] = ranges[operator.inputs[0]]
    biases = {
        operator.inputs[2]: operator.inputs[:2]
        for operator in graph.operators
        if codes[operator.opcodeIndex] in _CONVOLUTIONS
    }
    for i, tensor in enumerate(graph.tensors):
        if tensor.type == schema.TensorType.FLOAT32 and i not in biases:
            _to_uint8(model, tensor, *ranges[i])
    for i, parts in biases.items():
        scale = np.prod([graph.tensors[k].quantization.scale for k in parts])
        buffer = model.buffers[graph.tensors[i].buffer]
        values = np.frombuffer(bytes(buffer.data), "float32")
        _replace(buffer, np.round(values / scale).astype("int32"))
        graph.tensors[i].type = schema.TensorType.INT32
        graph.tensors[i].quantization = _parameters(scale, 0)


def write_hybrid(path, output):
    """Writes the float file with int8 kernels, per channel, and no more."""

    def quantize(graph, model):
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            if kind in _CONVOLUTIONS:
                axis = 0 if kind == schema.BuiltinOperator.CONV_2D else 3
                _to_int8(model, graph.tensors[operator.inputs[1]], axis)

    return rewrite(path, output, quantize)


def rewrite(path, output, change):
    """Writes a file after `change(graph, model)`."""
    with open(path, "rb") as file:
        model = schema.ModelT.InitFromPackedBuf(file.read())
    (graph,) = model.subgraphs
    change(graph, model)
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    output.write_bytes(bytes(builder.Output()))
    return output


def _ranges(content, picture):
    """`(low, high)` of every float tensor, 0 within."""
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=(
            OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    interpreter.set_tensor(entry["index"], picture)
    interpreter.invoke()
    found = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] is np.float32 and detail["shape"].size:
            values = interpreter.get_tensor(detail["index"])
            found[detail["index"]] = (
                min(float(values.min()), 0.0),
                max(float(values.max()), 1e-3),
            )
    found[entry["index"]] = (-1.0, 1.0)
    return found


def _to_int8(model, tensor, axis):
    buffer = model.buffers[tensor.buffer]
    kernel = np.frombuffer(bytes(buffer.data), "float32")
    kernel = np.moveaxis(kernel.reshape(tensor.shape), axis, -1)
    scales = np.abs(kernel).max((0, 1, 2)) / 127 + 1e-9
    levels = np.moveaxis(np.round(kernel / scales), -1, axis)
    _replace(buffer, levels.astype("int8"))
    tensor.type = schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = [float(scale) for scale in scales]
    tensor.quantization.zeroPoint = [0] * len(scales)
    tensor.quantization.quantizedDimension = axis


def _to_uint8(model, tensor, low, high):
    scale = (high - low) / 255
    zero = int(np.clip(round(-low / scale), 0, 255))
    buffer = model.buffers[tensor.buffer]
    if buffer.data is not None:
        values = np.frombuffer(bytes(buffer.data), "float32")
        levels = np.clip(np.round(values / scale) + zero, 0, 255)
        _replace(buffer, levels.astype("uint8"))
    tensor.type = schema.TensorType.UINT8
    tensor.quantization = _parameters(scale, zero)


def _replace(buffer, values):
    buffer.data = np.frombuffer(values.tobytes(), "uint8")


def _parameters(scale, zero):
    parameters = schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = [float(scale)], [zero]
    return parameters
