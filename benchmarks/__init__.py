"""Speed of keras_aspp beside keras-hub, keras-cv and PyTorch."""
