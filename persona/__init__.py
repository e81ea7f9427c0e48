"""Persona: distil a large face network into a small one, measure it, keep it learning."""

__version__ = "0.1.0"
