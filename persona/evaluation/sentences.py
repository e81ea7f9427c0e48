"""Figures in words: the sentence that closes an evaluation or a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona.figure_names import power

if TYPE_CHECKING:
    from persona.evaluation.compare import Difference

SIGNIFICANT = 0.05
"""p-value below which a difference counts as shown."""
ONE_IN = {
    "1e-1": "ten",
    "1e-2": "a hundred",
    "1e-3": "a thousand",
    "1e-4": "ten thousand",
    "1e-5": "a hundred thousand",
    "1e-6": "a million",
}
"""The rates that have a name in words."""
TOLD_RATE = "0.001"
"""Rate whose figure is told, if the trials resolve it."""


@dataclass(frozen=True)
class Sentence:
    """A sentence and its headline, the figure that a reader looks for."""

    headline: str
    after: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.before}{self.headline}{self.after}"


def spread_of(interval: tuple[float, float] | None) -> str:
    """The interval of a figure in brackets, such as ` (95 % 0.9500 to 0.9650)`, or nothing."""
    if interval is None:
        return ""
    low, high = interval
    return f" (95 % {ends(low, high, 1, 4)})"


def ends(low: float, high: float, factor: float, digits: int = 1) -> str:
    """Both ends of an interval, times a factor, such as `0.9 to 1.9`."""
    low, high = (round(end * factor, digits) + 0.0 for end in (low, high))  # no -0.0
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")


def rate_told(figures: Mapping[str, float | None] | None) -> tuple[str, float] | None:
    """Chooses the figure to tell among figures by rate: at 1e-3, or at the lowest resolved rate.

    Returns:
        The name of the rate in `figures` and the figure. None means that no rate is resolved.
    """
    known = {rate: value for rate, value in (figures or {}).items() if value is not None}
    if not known:
        return None
    rate = TOLD_RATE if TOLD_RATE in known else min(known, key=float)
    return rate, known[rate]


def one_in(rate: str, what: str) -> str:
    """A rate in words: `one false accept in a thousand`, or `a share of 5e-2 false accepts`."""
    words = ONE_IN.get(power(rate))
    return f"a share {power(rate)} of {what}s" if words is None else f"one {what} in {words}"


def tell_difference(
    first: str, second: str, of: str, found: Difference, *, is_teacher: bool = False
) -> Sentence:
    """The difference of the accuracies of two models in words, without a full stop.

    Args:
        first: name of the model that the sentence is about.
        second: name of the other.
        of: name of the set.
        found: the accuracy of the first minus that of the second.
        is_teacher: whether the second is the teacher of the first.

    Example:
        tell_difference("small", "large", "lfw", difference, is_teacher=True)
        # small is 1.4 points below its teacher large on lfw (95 % 0.9 to 1.9, p = 0.001)
    """
    other = f"its teacher {second}" if is_teacher else second
    points = abs(found.difference) * 100
    if not points:
        return Sentence("as many pairs", f" of {of} right as {other}", f"{first} decides ")
    sign = 1 if found.difference > 0 else -1
    digits = 1 if points >= 0.1 else 2
    facts = []
    if found.interval is not None:
        low, high = sorted(sign * end * 100 for end in found.interval)
        facts.append(f"95 % {ends(low, high, 1, digits)}")
    if found.p is not None:
        facts.append(f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{found.p:.2g}")
    proof = f" ({', '.join(facts)})" if facts else ""
    chance = "" if is_significant(found) else ", which may be chance"
    where = "above" if sign > 0 else "below"
    return Sentence(
        f"{points:.{digits}f} points {where}", f" {other} on {of}{chance}{proof}", f"{first} is "
    )


def is_significant(found: Difference) -> bool:
    """Whether neither the interval nor the permutations allow for no difference."""
    if found.interval is None or found.p is None:
        return False
    return found.interval.low * found.interval.high > 0 and found.p < SIGNIFICANT


def compare_sentence(
    first: str, second: str, of: str, found: Difference, *, collapsed: bool = False
) -> Sentence:
    """The sentence that closes a comparison.

    Args:
        first: name of network A.
        second: name of network B.
        of: name of the set.
        found: the accuracy of A minus that of B.
        collapsed: whether one of the networks has collapsed, so that figures say nothing.
    """
    if collapsed:
        return Sentence("Nothing can be said", ": a network that has collapsed tells nobody apart.")
    told = tell_difference(first, second, of, found)
    if is_significant(found):
        return Sentence(told.headline, f"{told.after}.", told.before)
    return Sentence("No difference can be shown", f": {told}.")
