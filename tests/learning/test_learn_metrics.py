"""The figures against a matrix worked out by hand and against Avalanche's published formulas."""

from __future__ import annotations

import numpy as np
import pytest

from persona.learning import metrics

# Rows: after experience 0, 1, 2, 3. Columns: on experience 0, 1, 2, 3.
R = np.array(
    [
        [0.90, 0.30, 0.20, 0.10],
        [0.70, 0.80, 0.40, 0.20],
        [0.80, 0.60, 0.70, 0.30],
        [0.50, 0.65, 0.60, 0.90],
    ]
)
START = np.array([0.05, 0.10, 0.15, 0.20])


def avalanche(matrix: np.ndarray) -> tuple[float, float, float]:
    """Stream forgetting, BWT and forward transfer as Avalanche computes them.

    From avalanche/evaluation/metrics: forgetting_bwt.py keeps each experience's `initial` accuracy,
    measured just after it was learned, and the `last` one; `forgetting = initial - last`, of the
    experiences before the current one, and `BWT = -forgetting`; forward_transfer.py keeps the
    `previous` accuracy, measured before an experience is learned; `forward = previous - initial`,
    where `initial` is of the model at the start. The stream's figure is the mean.
    """
    initial = {number: matrix[number, number] for number in range(len(matrix))}
    last = {number: matrix[-1, number] for number in range(len(matrix))}
    forgets = [initial[number] - last[number] for number in range(len(matrix) - 1)]
    previous = {number: matrix[number - 1, number] for number in range(1, len(matrix))}
    forward = [previous[number] - START[number] for number in previous]
    return float(np.mean(forgets)), -float(np.mean(forgets)), float(np.mean(forward))


def test_a_matrix_by_hand() -> None:
    assert metrics.average_accuracy(R) == pytest.approx((0.50 + 0.65 + 0.60 + 0.90) / 4)
    # (0.50 - 0.90) + (0.65 - 0.80) + (0.60 - 0.70), over three.
    assert metrics.backward_transfer(R) == pytest.approx((-0.40 - 0.15 - 0.10) / 3)
    # (0.30 - 0.10) + (0.40 - 0.15) + (0.30 - 0.20), over three.
    assert metrics.forward_transfer(R, START) == pytest.approx((0.20 + 0.25 + 0.10) / 3)
    # The best before the last: 0.90, 0.80, 0.70.
    assert metrics.forgetting(R) == pytest.approx((0.40 + 0.15 + 0.10) / 3)
    assert metrics.incremental_accuracy([0.9, 0.75, 0.6]) == pytest.approx(0.75)


def test_parity_with_avalanche() -> None:
    forgets, backward, forward = avalanche(R)
    assert metrics.backward_transfer(R) == pytest.approx(backward)
    assert metrics.forward_transfer(R, START) == pytest.approx(forward)
    assert metrics.forgetting(R) == pytest.approx(forgets)


def test_forgetting_is_from_the_best_and_not_the_first() -> None:
    later = R.copy()
    later[2, 0] = 0.95  # better than just after it was learned
    assert metrics.forgetting(later) == pytest.approx((0.45 + 0.15 + 0.10) / 3)
    assert metrics.backward_transfer(later) == metrics.backward_transfer(R)


def test_the_paper_s_figures_are_of_two_experiences_or_more() -> None:
    one = [[0.5]]
    assert metrics.average_accuracy(one) == 0.5
    assert metrics.backward_transfer(one) is None
    assert metrics.forward_transfer(one, [0.1]) is None
    assert metrics.forgetting(one) is None


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\): \(T, T\) is wanted"):
        metrics.average_accuracy(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(4, 4\) accuracies and \(3,\) before the stream"):
        metrics.forward_transfer(R, START[:3])
