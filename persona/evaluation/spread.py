"""Spread of embeddings, which shows whether a network has collapsed.

A collapsed network gives every face nearly the same embedding. Other figures do not show this:
accuracy, AUC and TAR depend only on the order of the similarities, and similarities that differ in
the sixth digit have an order too.

Take one embedding x of each of K people, and the largest eigenvalue λ of the mean of x xᵀ. The
spread is (1 - λ) K / (K - 1); the factor makes it independent of K. It is 1 if the embeddings of
all people are orthogonal, and 0 if they all lie on one line, in either direction. For two people it
is 1 - |cosine|. For people with nearly the same embedding it is the mean of 1 - cosine over all
pairs.

Shapes: N photos, K people, E embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COLLAPSED = 0.01
"""A smaller spread is a collapse. Different people then have a cosine of 0.99 or more, which leaves
no room for a threshold. An untrained student has a spread of 0.12 on drawn faces, a trained one at
least 0.5."""
MAX_PEOPLE = 4096
"""Most people that the spread is computed over. More do not change it noticeably."""


def spread(embeddings_NE: npt.NDArray[Any], labels_N: npt.NDArray[Any]) -> float | None:
    """The spread in [0, 1] over one photo of each person. None if there are fewer than two people.

    Args:
        embeddings_NE: (N, E) embeddings of unit length. If one that is used is not finite, the
            spread is 0. Rows of zeros add nothing to it.
        labels_N: (N,) identity of each photo.
    """
    _, first = np.unique(labels_N, return_index=True)
    if len(first) < 2:
        return None
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), MAX_PEOPLE)).round().astype(int)]
    people_KE = np.asarray(embeddings_NE[chosen], np.float64)
    if not np.isfinite(people_KE).all():
        return 0.0
    # Both products have the same eigenvalues other than 0. The smaller one is cheaper.
    wide = people_KE.shape[1] > len(people_KE)
    product = people_KE @ people_KE.T if wide else people_KE.T @ people_KE
    off_line = float(np.trace(product) - np.linalg.eigvalsh(product)[-1])
    return max(off_line, 0.0) / (len(people_KE) - 1)


def has_collapsed(value: float | None) -> bool:
    """Whether a spread is that of a collapsed network. False for None, a spread not known."""
    return value is not None and not value >= COLLAPSED


def tell_collapse(name: str, value: float | None, where: str) -> str:
    """Message that a network has collapsed, and what to do about it."""
    return (
        f"{name} has collapsed: it gives the people of {where} nearly one embedding (spread "
        f"{value:.1e}, a network of use has at least {COLLAPSED:g}), so its similarities tell "
        "nobody apart, whatever its figures say: train a student of a few steps for longer, "
        "another one anew with a lower --lr or -o optim.clip_norm=1, check the settings of a file"
    )
