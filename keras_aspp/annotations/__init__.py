"""Annotations of labeling tools: imported as a folder data set, and written."""

from keras_aspp.annotations.importer import ImportReport, import_annotations
from keras_aspp.annotations.readers import FORMATS

__all__ = ["FORMATS", "ImportReport", "import_annotations"]
