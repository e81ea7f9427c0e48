"""Backbones, the convolutions of a student, one kind per file. `base` defines what one is."""

from persona.models.backbones.base import BACKBONES, Backbone, make_backbone

__all__ = ["BACKBONES", "Backbone", "make_backbone"]
