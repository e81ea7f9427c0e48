"""The one spelling of each figure and count, in terminal, pages and documents.

A label (a row or column of a table, an axis, a card) has the rate attached: `TAR@FAR=1e-3`. In a
sentence it is `TAR at FAR 1e-3`. JSON, CSV and Python keep the names of the fields.
"""

from __future__ import annotations

LABELS = {
    "auc": "AUC",
    "eer": "EER",
    "rank_1": "rank-1",
    "rank_5": "rank-5",
    "top_5": "top-5",
}
"""Label of each figure whose name is not its label."""
RATES = {"tar": "TAR@FAR", "tpir": "TPIR@FPIR"}
"""Label of each kind of figure at a rate."""


def label_of(figure: str) -> str:
    """The label of a figure by the name of its field: `TAR@FAR=1e-3` for `tar@0.001`."""
    kind, _, rate = figure.partition("@")
    if kind in RATES and rate:
        return f"{RATES[kind]}={power(rate)}"
    return LABELS.get(figure, figure.replace("_", " "))


def power(rate: str | float) -> str:
    """A rate such as a FAR as text: `1e-3` for `0.001`. Text that is no number stays as it is."""
    try:
        mantissa, _, exponent = f"{float(rate):e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    except ValueError:  # infinity has no exponent
        return str(rate)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things as text.

    Args:
        number: how many.
        one: the word, or words, for one of them.
        many: those for several. None adds an s.

    >>> counted(1, "photo"), counted(7701, "photo"), counted(0, "person", "people")
    ('1 photo', '7,701 photos', '0 people')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
