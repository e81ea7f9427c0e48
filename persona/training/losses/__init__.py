"""Loss terms, one a file, each citing its source."""

from persona.training.losses.hard_labels import HardLabels
from persona.training.losses.soft_targets import SoftTargets

__all__ = ["HardLabels", "SoftTargets"]
