"""Lists which of the known raw datasets are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona.data.raw.base import DATASETS, RawDataset, find_root
from persona.errors import PersonaError


def survey(place: Path) -> list[dict[str, Any]]:
    """Looks for every known dataset and split below a folder.

    Returns:
        Plain rows: `dataset`, `split`, `path`, `state` (complete, partial or missing),
        `identities`, `photos`, and `detail`, which says what is missing.

    Example:
        >>> {row["state"] for row in survey(Path("/nowhere"))}
        {'missing'}
    """
    rows = []
    for name, kind in DATASETS.load_all().items():
        root = find_root(kind, place)
        for split in kind.splits:
            row = {"dataset": name, "split": split, "path": str(root or place / kind.folder)}
            rows.append(row | _state(kind, root, split))
    return rows


def _state(kind: type[RawDataset], root: Path | None, split: str) -> dict[str, Any]:
    """State, counts and details of one split."""
    row: dict[str, Any] = {
        "state": "missing",
        "identities": 0,
        "photos": 0,
        "detail": f"expected {kind.layout}; {kind.obtain}",
    }
    if root is None:
        return row
    try:
        dataset = kind(root, split)
        index = dataset.index()
        row |= {"identities": index.identities, "photos": len(index.photos)}
        lacking = len(index.classes) - index.identities
        row["state"], row["detail"] = "complete", ""
        if lacking or index.missing:
            row["state"] = "partial"
            row["detail"] = (
                f"{lacking} identities and {len(index.missing)} photos of its list are not there"
            )
        dataset.pairs()
    except PersonaError as error:
        row["state"] = "partial" if row["photos"] else "missing"
        row["detail"] = str(error)
    return row
