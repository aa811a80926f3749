"""Figures and label overlays."""
