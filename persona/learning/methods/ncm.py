"""Nearest class mean over a frozen network (Mensink et al. 2013).

Rebuffi et al. 2017, section 4.2, use it as a baseline of continual learning. Nothing is trained, so
nothing is forgotten.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from persona.learning.means import ClassMeans
from persona.learning.methods.base import Method
from persona.learning.photos import Ints


class ByMeans(Method):
    """Base of the methods that classify a face by the nearest class mean.

    The class is `argmin_k || phi(x) - mu_k ||` (equation 4).
    """

    means: ClassMeans

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.means = ClassMeans(self.context.student.embedding_size)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Adds the photos' embeddings, by the current student, to the class means."""
        self.means.add(self.context.embed(photos), labels)

    def state(self) -> dict[str, Any]:
        """State of the class means."""
        return {"means": self.means.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.means.load(state["means"])

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of the class means."""
        return {"means": self.means.bytes}


class Ncm(ByMeans):
    """Class means over the frozen student."""

    name = "ncm"
    trains = False
