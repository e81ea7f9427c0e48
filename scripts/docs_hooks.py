"""What MkDocs adds to docs/ when it builds the site: the pages that are made from other files.

The page on the command line is made from the Typer application, the design page from
ARCHITECTURE.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COMMANDS = """# Command line

Every command and option. `persona COMMAND --help` prints the same.

"""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages to the site."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "design.md", content=design_page()))
    return files


def commands_page() -> str:
    """The help of each command as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from persona.cli.app import app

    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="persona")
    text = get_docs_for_click(obj=command, ctx=context, name="persona")
    return COMMANDS + re.sub(r"^# `persona`$", "", text, flags=re.MULTILINE)


def design_page() -> str:
    """ARCHITECTURE.md with links that hold inside the site."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    text = text.replace("# Architecture", "# Design", 1).replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?:persona|scripts|tests|configs)/[^)]*\)", r"`\1`", text)
