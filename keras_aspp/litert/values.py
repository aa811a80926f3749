"""Values of the tensors of a `.tflite`: those it stores and those of a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def run_with_values(
    content: bytes, images: Iterable[np.ndarray]
) -> Iterator[Iterator[tuple[int, np.ndarray]]]:
    """Runs a `.tflite` on images and yields the values of its tensors.

    Args:
        content: bytes of a `.tflite` of one size.
        images: iterable of arrays of the type and shape of its input.

    Yields:
        iterator over `(tensor, values)` for each image, of the first output
        of each operator. It must be read before the next image; values are
        copied one tensor at a time, since all would need much memory.
    """
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        # It warns that all tensors need memory; that is what they are for.
        warnings.filterwarnings("ignore", ".*preserve_all_tensors.*")
        interpreter = Interpreter(
            model_content=content,
            num_threads=os.cpu_count(),
            experimental_preserve_all_tensors=True,
        )
    # Before a delegate takes operators over.
    tensors = [o["outputs"][0] for o in operators_of(interpreter)]
    interpreter.allocate_tensors()
    (input_details,) = interpreter.get_input_details()
    for image in images:
        interpreter.set_tensor(input_details["index"], image)
        interpreter.invoke()
        yield ((i, interpreter.get_tensor(i)) for i in tensors)


def operators_of(interpreter: Any) -> list[dict[str, Any]]:
    """Returns `op_name`, `inputs` and `outputs` of each operator.

    Inputs and outputs are tensor indices; -1 is an absent input.

    Args:
        interpreter: LiteRT interpreter. A delegate replaces operators when
            tensors are allocated, so call it before, or open the file with
            `BUILTIN_WITHOUT_DEFAULT_DELEGATES`.
    """
    # Private, and the only way to an interpreter's operators; seen with
    # ai-edge-litert 2.3.
    return interpreter._get_ops_details()


def stored_floats(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `(name, array)` of the floats and scales that a file stores.

    Nothing else is read, so that it is quick for large files. A single -inf
    is left out: it pads max pooling.
    """
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {
        schema.TensorType.FLOAT32: "<f4",
        schema.TensorType.FLOAT16: "<f2",
    }
    model = schema.Model.GetRootAs(content)
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            name = tensor.Name().decode("utf-8", "replace")
            data = _data_of(model.Buffers(tensor.Buffer()), content)
            if tensor.Type() in dtypes and len(data):
                array = np.frombuffer(data, dtypes[tensor.Type()])
                if array.size > 1 or array[0] != -np.inf:
                    yield name, array
            quantization = tensor.Quantization()
            if quantization and quantization.ScaleLength():
                yield name, quantization.ScaleAsNumpy()


def _data_of(buffer, content):
    """Returns the bytes of a buffer, which may lie behind the graph."""
    if buffer.DataLength():
        return buffer.DataAsNumpy()
    start = buffer.Offset()  # 0 and 1 stand for none
    return content[start : start + buffer.Size()] if start > 1 else b""
