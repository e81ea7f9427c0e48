"""Figures of continual learning: pure functions of the accuracy matrix R, without torch.

`R[i, j]` is the accuracy on the test photos of experience j after learning experience i, both
counted from 0. Above the diagonal are experiences that have not been learned yet.

Shapes: T experiences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def average_accuracy(matrix_TT: npt.ArrayLike) -> float:
    """Average accuracy ACC, the mean of the last row.

    Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 2.
    """
    return float(_square(matrix_TT)[-1].mean())


def backward_transfer(matrix_TT: npt.ArrayLike) -> float | None:
    """Backward transfer BWT, `1/(T-1) sum_{i<T} R[T, i] - R[i, i]`. None with one experience.

    Lopez-Paz and Ranzato 2017, equation 3. Avalanche's StreamBWT gives the same value.
    """
    matrix = _square(matrix_TT)
    if len(matrix) < 2:
        return None
    return float((matrix[-1] - np.diag(matrix))[:-1].mean())


def forward_transfer(matrix_TT: npt.ArrayLike, start_T: npt.ArrayLike) -> float | None:
    """Forward transfer FWT, `1/(T-1) sum_{i>1} R[i-1, i] - b[i]`. None with one experience.

    Lopez-Paz and Ranzato 2017, equation 4. Avalanche's StreamForwardTransfer gives the same value.

    Args:
        matrix_TT: (T, T) accuracies R.
        start_T: (T,) the paper's `b`: accuracies of the network before the stream.

    Raises:
        ValueError: the shapes do not fit.
    """
    matrix, start = _square(matrix_TT), np.asarray(start_T, np.float64)
    if start.shape != matrix.shape[:1]:
        raise ValueError(f"{matrix.shape} accuracies and {start.shape} before the stream")
    if len(matrix) < 2:
        return None
    return float((np.diag(matrix, 1) - start[1:]).mean())


def forgetting(matrix_TT: npt.ArrayLike) -> float | None:
    """Forgetting `1/(T-1) sum_{j<T} max_{l<T} R[l, j] - R[T, j]`. None with one experience.

    Chaudhry et al. 2018, arXiv:1801.10112, equations 3 and 4, with l from j on, since j was not
    learned before. Avalanche's StreamForgetting takes R[j, j] in place of the maximum, which gives
    -BWT.
    """
    matrix = _square(matrix_TT)
    last = len(matrix) - 1
    if not last:
        return None
    return float(np.mean([matrix[j:last, j].max() - matrix[last, j] for j in range(last)]))


def incremental_accuracy(seen_T: Sequence[float]) -> float:
    """Incremental accuracy: the mean over experiences of the accuracy on all identities so far.

    Rebuffi et al. 2017, arXiv:1611.07725, section 4.
    """
    return float(np.mean(seen_T))


def _square(matrix_TT: npt.ArrayLike) -> Floats:
    matrix = np.asarray(matrix_TT, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"accuracies of shape {matrix.shape}: (T, T) is wanted")
    return matrix
