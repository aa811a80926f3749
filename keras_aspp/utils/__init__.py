"""Helpers independent of models."""
