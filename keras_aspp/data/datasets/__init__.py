"""TFDS builders of our own; import the module of the one you want."""
