"""A report that compares models on one page: `persona.write_report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from persona.api.model import Model
from persona.data.sets import FaceSet
from persona.errors import PersonaError, unknown
from persona.workspace import Workspace

FORMATS = ("html", "pdf", "png")


def write_report(
    models: Sequence[Model | str],
    faces: FaceSet,
    out: str | Path = "report.html",
    *,
    teacher: str | None = None,
    names: bool = False,
    form: str | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    workspace: Workspace | None = None,
) -> list[str]:
    """Writes one page that compares models: their curves, worst mistakes and training.

    The page loads nothing from the network. It shows faces of the set, so protect it as you
    protect the photos.

    Args:
        models: models, or names of models and runs.
        faces: a packed set with pairs.
        out: the file to write.
        teacher: the name of a network to show beside the models.
        names: whether to show people's names beside their faces.
        form: html, pdf or png. None means the format of the file's suffix, or html where the
            suffix is another one.
        batch_size: photos per forward pass.
        workers: loader processes. None means a number that fits the device.
        workspace: where models and runs are stored. None means `PERSONA_HOME`, or the current
            folder where it is not set.

    Returns:
        Warnings about the models that a reader of the figures should know.

    Raises:
        PersonaError: a model is unknown, the set has no pairs, Chromium is missing for PDF or
            PNG, or several processes were started.

    Example:
        persona.write_report([student, "onnx:mobilefacenet.onnx"], persona.open_set("lfw"))
    """
    place = workspace or Workspace.locate()
    path = Path(out)
    form = form or format_of(path)
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form != "html":
        from persona.report.browser import find_chromium

        find_chromium()  # before minutes of measuring

    from accelerate import Accelerator

    from persona.files import PRIVATE, write_atomically
    from persona.report.build import build_page, find_entries
    from persona.report.page import render

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise PersonaError("a report is made by one process: start it without accelerate launch")
    asked = [model if isinstance(model, str) else model.name for model in models]
    page = build_page(
        find_entries(asked, teacher, place),
        *(place, faces, accelerator),
        names=names,
        batch_size=batch_size,
        workers=workers,
    )
    html = render(page)
    data = html.encode()
    if form != "html":
        from persona.report.browser import open_browser, print_page, run_apart

        def printed() -> bytes:
            with open_browser() as browser:
                return print_page(browser, html, form)

        data = run_apart(printed)
    write_atomically(path, data, PRIVATE)
    return list(page.notices)


def format_of(path: Path) -> str:
    """Returns the format that a file's suffix names, or html where it names none."""
    ending = path.suffix.lstrip(".").lower()
    return ending if ending in FORMATS else "html"
