"""Export to SavedModel, TFLite and ONNX, verified against the model."""

from keras_aspp.export.exporter import export_model
from keras_aspp.export.formats import FORMATS
from keras_aspp.export.push import push_model
from keras_aspp.utils.progress import print_progress

__all__ = ["FORMATS", "export_model", "print_progress", "push_model"]
