"""Backbones: the convolutions of a student, one kind a file; what one is stands in `base`."""

from persona.models.backbones.base import BACKBONES, Backbone, NoOptions

__all__ = ["BACKBONES", "Backbone", "NoOptions"]
