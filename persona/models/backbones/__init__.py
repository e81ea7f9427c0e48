"""Backbones, the convolutions of a student, one kind per file. `base` defines what one is."""

from persona.models.backbones.base import BACKBONES, Backbone, NoOptions

__all__ = ["BACKBONES", "Backbone", "NoOptions"]
