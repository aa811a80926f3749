"""LiteRT files: graph, description, trial in a subprocess."""
