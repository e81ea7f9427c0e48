"""`persona demo`: draw faces, distil a student and evaluate it, with the commands of a user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.output import JsonFlag, TableColumn, human_bytes, note, print_json, print_table


def demo_command(
    home: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "demo"
    ),
    json: JsonFlag = False,
) -> None:
    """Draw faces, pack them, distil a student and compare it: a few minutes, nothing downloaded."""
    from persona.demo import REPORT, SHEET, run_demo, untrained_people

    rows = run_demo(home, note)
    if json:
        print_json(rows)
        return
    print_table(
        [
            TableColumn("model"),
            TableColumn("parameters", right=True),
            TableColumn("size", right=True),
            TableColumn("match accuracy", right=True),
            TableColumn("verification accuracy", right=True),
            TableColumn("AUC", right=True),
        ],
        [
            [
                row["role"],
                f"{row['parameters']:,}",
                human_bytes(row["bytes"]),
                f"{row['match']['accuracy']:.3f}",
                f"{row['verification']['accuracy']:.3f} ± "
                f"{row['verification']['accuracy_std']:.3f}",
                f"{row['verification']['auc']:.3f}",
            ]
            for row in rows
        ],
    )
    typer.echo(
        f"{untrained_people()} people that no model was trained on; chance is 0.5. Look at "
        f"{home / REPORT} and {home / SHEET}."
    )
