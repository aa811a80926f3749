"""Export to SavedModel, TFLite and ONNX, verified against the model."""

from keras_aspp.export.explain import OperatorCost
from keras_aspp.export.exporter import export_model
from keras_aspp.export.formats import FORMATS
from keras_aspp.export.push import push_model
from keras_aspp.export.tflite import explain_int8
from keras_aspp.utils.progress import print_progress

__all__ = [
    "FORMATS",
    "OperatorCost",
    "explain_int8",
    "export_model",
    "print_progress",
    "push_model",
]
