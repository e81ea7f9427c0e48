"""A CSV file of face boxes, for any dataset.

    source,x,y,width,height
    Aaron_Eckhart/Aaron_Eckhart_0001.jpg,68.5,71,114,132

`source` is the photo's path below the dataset's folder. The other columns are px of the upright
photo.
"""

from __future__ import annotations

import math
from pathlib import Path

from persona.data.align.spec import Box
from persona.errors import PersonaError
from persona.files import iter_csv

COLUMNS = ["source", "x", "y", "width", "height"]


def read_boxes(path: Path) -> dict[str, Box]:
    """Reads the boxes by source. A box without area is kept: its photo is skipped later.

    Raises:
        PersonaError: If the file does not exist, or a line is not valid.
    """
    boxes: dict[str, Box] = {}
    layout = ",".join(COLUMNS)
    lines = iter_csv(path, f"a CSV of {layout}")
    if [name.strip() for name in next(lines, (1, []))[1]] != COLUMNS:
        raise PersonaError(f"{path} line 1: expected the header {layout}")
    for number, row in lines:
        where = f"{path} line {number}"
        try:
            # A spreadsheet may write a decimal comma.
            source, x, y, width, height = (
                row[0].strip(),
                *(float(text.replace(",", ".")) for text in row[1:]),
            )
        except ValueError:
            raise PersonaError(
                f"{where}: expected {layout}, found {','.join(row)[:80]!r}"
            ) from None
        if not source or not all(map(math.isfinite, (x, y, width, height))):
            raise PersonaError(f"{where}: a source and four finite numbers are expected")
        if source in boxes:
            raise PersonaError(f"{where}: {source} has a box already; keep one of them")
        boxes[source] = (x, y, x + width, y + height)
    if not boxes:
        raise PersonaError(f"--boxes {path} has no box: expected {layout} lines")
    return boxes
