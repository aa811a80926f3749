"""The backend that Keras runs on."""

from keras_aspp.utils.exceptions import InputError


def require_tensorflow(what: str) -> None:
    """Raises `ValueError` if Keras runs on another backend.

    Args:
        what: str, the feature that needs TensorFlow, for the message.
    """
    import keras

    backend = keras.config.backend()
    if backend != "tensorflow":
        raise InputError(
            f"{what} needs TensorFlow; set KERAS_BACKEND=tensorflow, whatever "
            f"the model was trained on. Received: the backend {backend}"
        )
