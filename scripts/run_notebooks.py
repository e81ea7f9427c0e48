#!/usr/bin/env python
"""Runs notebooks one after the other in one home, as scripts/notebooks asks for.

With --write their outputs are kept, without what differs between runs or tells of this machine:
bars and notes on stderr, times, and the paths of the home.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from nbclient import NotebookClient

from persona.files import write_atomically

TIMEOUT_S = 1200
"""Longest time of a cell."""
LARGEST = 400_000
"""Bytes of a notebook with its outputs."""


def load(path: Path) -> Any:
    """The notebook in a file."""
    import nbformat

    return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]


def dumps(notebook: Any) -> str:
    """The text of a notebook's file."""
    import nbformat

    return str(nbformat.writes(notebook, version=4))  # type: ignore[no-untyped-call]


def clean(notebook: Any) -> None:
    """Takes from the outputs what is no result."""
    home = os.environ.get("PERSONA_HOME", "")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.outputs:
            if "text" in output and home:
                output.text = output.text.replace(home, ".")
    notebook.metadata["language_info"] = {"name": "python"}


def main() -> None:
    """Runs the notebooks that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebooks")
    parser.add_argument("notebooks", type=Path, nargs="+")
    chosen = parser.parse_args()
    for path in chosen.notebooks:
        began = time.monotonic()
        notebook = load(path)
        place = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=TIMEOUT_S, resources=place).execute()
        print(f"{path}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        if chosen.write:
            clean(notebook)
            text = dumps(notebook)
            if len(text.encode()) > LARGEST:
                sys.exit(f"{path} would have {len(text.encode()):,} bytes: show less in it")
            write_atomically(path, f"{text.rstrip()}\n".encode())


if __name__ == "__main__":
    main()
