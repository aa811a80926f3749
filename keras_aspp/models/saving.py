"""Saving of segmenters."""

from keras_aspp.models import Segmenter, with_dtype
from keras_aspp.utils.files import replacing


def save_model(model, path):
    """Writes a `.keras` without optimizer state, then renames it."""
    # Precision and compilation belong to the run, not to the model.
    # (A functional model's own policy is always the global one.)
    if isinstance(model, Segmenter) and model.arguments()["dtype"] != "float32":
        model = with_dtype(model, "float32")
    optimizer = getattr(model, "optimizer", None)
    compiled = model.compiled
    try:
        model.optimizer, model.compiled = None, False
        with replacing(path) as temporary:
            model.save(temporary)
    finally:
        model.optimizer, model.compiled = optimizer, compiled
