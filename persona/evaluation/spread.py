"""Whether a network tells people apart at all, or has collapsed: every face has one embedding.

The other figures do not show it. Accuracy, AUC and TAR depend on the order of the similarities
alone, and similarities that differ in the sixth digit have an order too.

The spread is 1 - λ, where λ is the largest eigenvalue of the mean of x xᵀ over one embedding x of
each of N people, times N / (N - 1), so that it does not depend on N. It is 1 if all people are
orthogonal, and 0 if all embeddings lie on one line, whichever way they point. Of two people it is
1 - |cosine|, and of people who all point nearly the same way the mean of 1 - cosine over the pairs.

Shapes: N photos, E embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COLLAPSED = 0.01
"""A smaller spread is a collapse: people are then nearer to each other than an exported file in
integers may be to its model (cosine 0.99), and a threshold has no room between them. An untrained
student has 0.12 on drawn faces, a trained one 0.5 and more."""
MAX_PEOPLE = 4096
"""More change no digit that counts."""


def spread(embeddings_NE: npt.NDArray[Any], labels_N: npt.NDArray[Any]) -> float | None:
    """The spread in [0, 1] over one photo of each person; None: there are not two people.

    Args:
        embeddings_NE: (N, E) of unit length. Rows that are not finite make it 0; rows of zeros add
            nothing to it.
        labels_N: (N,) whom each photo shows.
    """
    _, first = np.unique(labels_N, return_index=True)
    if len(first) < 2:
        return None
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), MAX_PEOPLE)).round().astype(int)]
    people_KE = np.asarray(embeddings_NE[chosen], np.float64)
    if not np.isfinite(people_KE).all():
        return 0.0
    # Of the two products with the same eigenvalues the smaller.
    wide = people_KE.shape[1] > len(people_KE)
    product = people_KE @ people_KE.T if wide else people_KE.T @ people_KE
    off_line = float(np.trace(product) - np.linalg.eigvalsh(product)[-1])
    return max(off_line, 0.0) / (len(people_KE) - 1)


def has_collapsed(value: float | None) -> bool:
    """Whether a spread is that of a network that has collapsed; not where it is not known."""
    return value is not None and not value >= COLLAPSED


def tell_collapse(name: str, value: float | None, where: str) -> str:
    """One sentence for a person on a network that has collapsed, and what to do."""
    return (
        f"{name} has collapsed: it gives the people of {where} nearly one embedding (spread "
        f"{value:.1e}, a network of use has at least {COLLAPSED:g}), so its similarities tell "
        "nobody apart, whatever its figures say: train a student anew with a lower --lr or -o "
        "optim.clip_norm=1, check the settings of a file"
    )
