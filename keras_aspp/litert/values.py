"""Values of all tensors of a `.tflite` while it runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator

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
    tensors = [o["outputs"][0] for o in interpreter._get_ops_details()]
    interpreter.allocate_tensors()
    (input_details,) = interpreter.get_input_details()
    for image in images:
        interpreter.set_tensor(input_details["index"], image)
        interpreter.invoke()
        yield ((i, interpreter.get_tensor(i)) for i in tensors)
