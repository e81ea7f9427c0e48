"""The augmentations, one per file. `base` defines what an augmentation is."""

from persona.data.augmentations.base import AUGMENTATIONS, Augmentation, Column, Stage, per_photo

__all__ = ["AUGMENTATIONS", "Augmentation", "Column", "Stage", "per_photo"]
