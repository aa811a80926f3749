"""Importers of public weights."""
