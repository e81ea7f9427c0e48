"""How like two sets of embeddings of the same faces are, and how like a file must be to its model.

A quantised file may move every embedding a little. What counts is whether it moves the similarities
of faces by much, compared with how far these lie apart.

Shapes: N faces, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

SMALLEST = 1e-6
"""Smallest standard deviation that errors are divided by."""
MARGIN, ERROR_MARGIN = 0.002, 0.01
"""By how much a graph is better than its bounds, since another runtime rounds differently."""


@dataclass(frozen=True)
class Likeness:
    """How like the embeddings of a file are to those of its model."""

    cosine: float
    """Lowest cosine similarity of the two embeddings of a face."""
    error: float
    """Root mean square of the change of the similarity of two faces, as a share of the standard
    deviation of these similarities. 0 if there are fewer than three faces."""


@dataclass(frozen=True)
class Tolerance:
    """How like a file must be to its model."""

    cosine: float
    """Lowest allowed `Likeness.cosine`."""
    error: float = np.inf
    """Largest allowed `Likeness.error`. 0.2 makes the similarities of different people spread 2 %
    wider: the square root of 1 + 0.2 squared."""

    def allow(self, found: Likeness) -> bool:
        """Whether a file is like enough. One that gives numbers that are not finite is not."""
        return found.cosine >= self.cosine and found.error <= self.error

    def tighter(self) -> Tolerance:
        """These bounds less the margin for other runtimes."""
        return Tolerance(self.cosine + MARGIN, self.error - ERROR_MARGIN)

    def __str__(self) -> str:
        """The bounds in words, for messages."""
        wanted = f"a worst cosine of at least {self.cosine:g}"
        return wanted + (f" and an error of at most {self.error:g}" if self.error < np.inf else "")


def compare(found_NE: Vectors, wanted_NE: Vectors) -> Likeness:
    """Compares the embeddings of a file with those of its model, both of unit length."""
    cosine = float((found_NE * wanted_NE).sum(axis=1).min())
    pairs = np.triu_indices(len(wanted_NE), 1)
    found, wanted = ((vectors @ vectors.T)[pairs] for vectors in (found_NE, wanted_NE))
    if len(wanted) < 3:
        return Likeness(cosine, 0.0)
    change = float(np.sqrt(np.square(found - wanted).mean()))
    return Likeness(cosine, change / max(float(wanted.std()), SMALLEST))
