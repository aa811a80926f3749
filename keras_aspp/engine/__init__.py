"""Training and evaluation around `model.fit`."""
