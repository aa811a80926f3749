"""Saving of models."""

import keras

from keras_aspp.backbones.rebuild import compute_dtypes
from keras_aspp.models.precision import with_dtype
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.utils.files import replacing
from keras_aspp.utils.types import PathLike


def save_model(model: keras.Model, path: PathLike) -> None:
    """Writes a `.keras` in float32 and without optimizer state, atomically.

    Precision and compilation belong to the run, not to the model. A segmenter
    that computes in another dtype, in any of its layers, is saved as a float32
    copy; any other model keeps its dtype.

    Args:
        model: `keras.Model`.
        path: the file.
    """
    if isinstance(model, Segmenter) and compute_dtypes(model) != {"float32"}:
        model = with_dtype(model, "float32")
    optimizer = getattr(model, "optimizer", None)
    compiled = model.compiled
    try:
        model.optimizer, model.compiled = None, False
        with replacing(path) as temporary:
            model.save(temporary)
    finally:
        model.optimizer, model.compiled = optimizer, compiled
