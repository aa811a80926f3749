"""Formats of artefacts and their file names."""

FILE_NAMES = {
    "keras": "model.keras",
    "saved_model": "saved_model",
    "tflite_float32": "model_float32.tflite",
    "tflite_float16": "model_float16.tflite",
    "tflite_dynamic_range": "model_dynamic_range.tflite",
    "tflite_int8": "model_int8.tflite",
    "tflite_int16x8": "model_int16x8.tflite",
    "tflite_any_size": "model_any_size.tflite",
    "tflite_logits": "model_logits.tflite",
    "tflite_gpu": "model_gpu.tflite",
    "onnx": "model.onnx",
}
FORMATS = tuple(FILE_NAMES)[1:]
# Default formats. int8 needs calibration images, so it is not among them.
DEFAULT_FORMATS = FORMATS[:3]
