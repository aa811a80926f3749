"""Descriptions of `.tflite` files."""

import numpy as np
import tensorflow as tf

from keras_aspp.litert.describe import describe_tflite
from keras_aspp.litert.graph import packed, unpacked
from tests.litert.test_float16 import converted

KERNEL = np.ones((3, 3, 4, 5), "float32")


def test_a_file_without_names_is_described(tmp_path):
    """The schema makes them optional."""
    content = converted(
        lambda x: tf.nn.conv2d(x, KERNEL, 1, "SAME", dilations=2), (1, 8, 7, 4)
    )
    model = unpacked(content)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = None
    path = tmp_path / "bare.tflite"
    path.write_bytes(packed(model))
    found = describe_tflite(path)
    assert found["inputs"][0]["name"] == ""
    assert found["madds"] == KERNEL.size * 8 * 7
    (row,) = found["atrous"]
    assert (row["operator"], row["rate"], row["map"]) == ("CONV_2D", 2, [8, 7])
