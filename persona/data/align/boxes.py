"""A CSV file of face boxes, for any dataset.

    source,x,y,width,height
    Aaron_Eckhart/Aaron_Eckhart_0001.jpg,68.5,71,114,132

`source` is the photo's path below the dataset's folder. The other columns are px of the upright
photo.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from persona.data.align.spec import Box
from persona.errors import PersonaError
from persona.files import bounded_lines

COLUMNS = ["source", "x", "y", "width", "height"]


def read_boxes(path: Path) -> dict[str, Box]:
    """Reads the boxes by source. A box without area is kept: its photo is skipped later.

    Raises:
        PersonaError: If the file does not exist, or a line is not valid.
    """
    boxes: dict[str, Box] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(bounded_lines(file, path), strict=True)
            if [name.strip() for name in next(rows, [])] != COLUMNS:
                raise PersonaError(f"{path} line 1: expected the header {','.join(COLUMNS)}")
            for row in rows:
                if not row:
                    continue
                where = f"{path} line {rows.line_num}"
                try:
                    source, x, y, width, height = row[0].strip(), *map(float, row[1:])
                except ValueError:
                    raise PersonaError(
                        f"{where}: expected {','.join(COLUMNS)}, found {','.join(row)[:80]!r}"
                    ) from None
                if not source or not all(map(math.isfinite, (x, y, width, height))):
                    raise PersonaError(f"{where}: a source and four finite numbers are expected")
                if source in boxes:
                    raise PersonaError(f"{where}: {source} has a box already; keep one of them")
                boxes[source] = (x, y, x + width, y + height)
    except FileNotFoundError:
        raise PersonaError(f"--boxes {path}: there is no such file") from None
    except OSError as error:
        raise PersonaError(f"--boxes {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PersonaError(f"--boxes {path} is no UTF-8 text: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise PersonaError(f"{path} line {rows.line_num}: {error}") from None
    if not boxes:
        raise PersonaError(f"--boxes {path} has no box: expected {','.join(COLUMNS)} lines")
    return boxes
