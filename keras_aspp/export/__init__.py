"""Export: SavedModel and TFLite, checked against the model they come from."""

from keras_aspp.export.exporter import export_model
from keras_aspp.export.formats import FORMATS
from keras_aspp.utils.progress import print_progress

__all__ = ["FORMATS", "export_model", "print_progress"]
