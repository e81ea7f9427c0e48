"""Packages beside Persona, as an installer would leave them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(site: Path, name: str, points: Mapping[str, Mapping[str, str]]) -> None:
    """Writes the metadata of a package whose modules lie in `site`, a folder of sys.path.

    `points` are its entry points: of each group, name to `module:object`.
    """
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, named in points.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in named.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
