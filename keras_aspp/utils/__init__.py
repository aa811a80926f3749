"""Helpers without knowledge of models."""
