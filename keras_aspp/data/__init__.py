"""Data sets: sources, augmentation, pipelines."""
