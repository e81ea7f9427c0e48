"""Nearest class mean over a frozen embedding (Mensink et al. 2013; as a baseline of continual
learning Rebuffi et al. 2017, section 4.2): nothing is trained, so nothing is forgotten."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from persona.learning.means import ClassMeans
from persona.learning.methods.base import Method
from persona.learning.photos import Ints


class ByMeans(Method):
    """Names faces by the nearest class mean, `argmin_k || phi(x) - mu_k ||` (equation 4)."""

    means: ClassMeans

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.means = ClassMeans(self.context.student.embedding_size)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """The means of the new identities, as the student sees them now."""
        self.means.add(self.context.embed(photos), labels)

    def state(self) -> dict[str, Any]:
        """The means."""
        return {"means": self.means.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`."""
        self.means.load(state["means"])

    def kept_bytes(self) -> dict[str, int]:
        """The means."""
        return {"means": self.means.bytes}


class Ncm(ByMeans):
    """The frozen embedding."""

    name = "ncm"
    trains = False
