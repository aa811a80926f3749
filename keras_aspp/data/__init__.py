"""Data sets: sources, augmentation, pipelines."""

from keras_aspp.data.decode import MAX_PIXELS, MAX_SCANS, check_image_bytes

__all__ = ["MAX_PIXELS", "MAX_SCANS", "check_image_bytes"]
