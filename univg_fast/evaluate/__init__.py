"""Held-out evaluation: protocols, parsers and metrics."""
