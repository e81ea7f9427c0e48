"""What a person looks at: `persona.write_report`, a page on models, and `persona.draw_lines`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from persona.api.model import Model
from persona.data.sets import FaceSet
from persona.errors import PersonaError, unknown
from persona.files import PRIVATE, check_writable, write_atomically
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
        models: models, or names of models and runs. Each network is opened anew by its name, so
            export a network of `persona.wrap` and name the file.
        faces: a packed set with pairs.
        out: the file to write.
        teacher: the name of a network to show beside the models.
        names: whether to show people's names beside their faces.
        form: html, pdf or png. None means the format of the file's suffix, or html where the
            suffix is another one.
        batch_size: photos per forward pass.
        workers: loader processes. None means a number that fits the device.
        workspace: where models and runs are stored. None means the workspace of the first of
            `models` that is no name, else `PERSONA_HOME`, or the current folder where it is not
            set.

    Returns:
        Warnings about the models that a reader of the figures should know.

    Raises:
        PersonaError: the file cannot be written, a model is unknown or not the one that its name
            stands for, the set has no pairs, Chromium is missing for PDF or PNG, or several
            processes were started.

    Example:
        persona.write_report([student, "onnx:mobilefacenet.onnx"], persona.open_set("lfw"))
    """
    place = workspace or _workspace_of(models)
    path = Path(out)
    form = form or format_of(path)
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    check_writable(path)  # before minutes of measuring
    if form != "html":
        from persona.report.browser import find_chromium

        find_chromium()

    from accelerate import Accelerator

    from persona.report.build import build_page, find_entries
    from persona.report.page import render

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise PersonaError("a report is made by one process: start it without accelerate launch")
    asked = [model if isinstance(model, str) else _name_of(model, place) for model in models]
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


def _workspace_of(models: Sequence[Model | str]) -> Workspace:
    own = (model.workspace for model in models if isinstance(model, Model))
    return next(own, None) or Workspace.locate()


def _name_of(model: Model, place: Workspace) -> str:
    """The name by which a model is opened again.

    Raises:
        PersonaError: it stands for no network, or for another one.
    """
    from persona.models.sources import network_digest
    from persona.models.wrapped import WrappedNetwork

    if isinstance(model.named.network, WrappedNetwork):
        raise PersonaError(
            f"a report opens {model.name} anew by its name, and a network of `persona.wrap` is in "
            "this process alone: export it, and name the file"
        )
    if network_digest(model.name, place.models) not in {None, model.named.digest}:
        raise PersonaError(
            f"{model.name} is the name of another network than the model that was given: load it "
            "again, or give the `workspace` that it was loaded from"
        )
    return model.name


def draw_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    title: str,
    axes: tuple[str, str],
    chance: float | None = None,
) -> None:
    """Draws curves as SVG, PDF or PNG, by the suffix of the path, for a paper or a notebook.

    Each line has its name at its end, and a colour, dash and symbol of its own.

    Args:
        lines: the x and y values of each line by its name. The name may give a figure, as
            `student 0.92`.
        path: the file to write.
        title: what the figure shows. It is read out, and not drawn: a paper has captions.
        axes: titles of the x and the y axis.
        chance: the y value of a network that guesses, drawn as a line of its own.

    Raises:
        PersonaError: there is no line, the suffix is unknown, or no Chromium is found.

    Example:
        persona.draw_lines({"loss": ([10, 20, 30], [0.9, 0.6, 0.5])}, "loss.svg",
                           title="the loss", axes=("step", "loss"))
    """
    from persona.report.plots import Line, line_plot, write_plot

    if not lines or not all(len(x) and len(x) == len(y) for x, y in lines.values()):
        raise PersonaError("lines: give at least one, each with as many x as y values")
    drawn = [Line(name, list(x), list(y)) for name, (x, y) in lines.items()]
    beside = None
    if chance is not None:
        places = [place for line in drawn for place in line.x]
        beside = Line("chance", [min(places), max(places)], [chance, chance], f"{chance:.3f}")
    write_plot(line_plot(title, drawn, axes, beside), Path(path))


def format_of(path: Path) -> str:
    """Returns the format that a file's suffix names, or html where it names none."""
    ending = path.suffix.lstrip(".").lower()
    return ending if ending in FORMATS else "html"
