"""Base of the export formats. A format writes a student as a file and checks it on faces.

A format of one file is a class with a `name`, a `suffix`, `convert` (from the ONNX graph to the
file's bytes) and `run` (faces through these bytes). Defining the class registers it:

    class Lite(FileFormat):
        name = "lite"
        suffix = ".lite"

        def convert(self, graph, student, options):
            return to_lite(graph)

        def run(self, data, faces_NHWC, options):
            return run_lite(data, graph_input(faces_NHWC))

Shapes: N faces, H W pixels, E embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persona import registry
from persona.config import build_chosen
from persona.data.views import PIXEL_MEAN, PIXEL_SCALE
from persona.deploy.graph import BOUNDS, ExportOptions, Faces, build_with_cost, refusing
from persona.deploy.likeness import compare
from persona.deploy.quantise import Kept, Quantised
from persona.errors import PersonaError
from persona.evaluation.spread import has_collapsed, spread, tell_collapse
from persona.files import write_atomically
from persona.landmarks import unit
from persona.models.cards import Card
from persona.models.student import Student
from persona.registry import Registry


@dataclass(frozen=True)
class Exported:
    """A file that was written, with the result of its check."""

    path: Path
    bytes: int
    """Size of the file in bytes."""
    worst_cosine: float
    """Lowest cosine similarity of the file's and PyTorch's embedding over the check faces."""
    faces: int
    """Number of check faces."""
    error: float = 0.0
    """Root mean square change of the similarity of two check faces, as a share of the standard
    deviation of these similarities."""
    layers: int = 0
    """Number of layers, for int8. 0 otherwise."""
    floats: tuple[Kept, ...] = ()
    """Layers that stay in float32, for int8. The layer with the largest error comes first."""
    model: str = ""
    """ID of the model. Empty where the caller knows it."""
    precision: str = "fp32"
    """Precision of the file, as far as `export_model` wrote it."""
    calibration_faces: int = 0
    """Number of faces that int8 was calibrated on."""


class ExportFormat(ABC):
    """A format that students are exported to."""

    name: ClassVar[str]
    """Name of the format, as `--format` takes it."""
    suffix: ClassVar[str]
    """End of the name of its file, or of its folder."""
    is_folder: ClassVar[bool] = False
    """Whether it writes a folder."""
    config_class: ClassVar[type[ExportOptions]] = ExportOptions
    """Dataclass of its options."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if getattr(cls, "name", None):
            EXPORTS.add(cls.name, cls)

    def check(self, options: Any) -> None:  # noqa: B027 - a format may have every option
        """Raises PersonaError if the format does not have what an option asks for."""

    @abstractmethod
    def export(
        self,
        card: Card,
        models: Path,
        faces_NHWC: Faces,
        path: Path,
        options: Any = None,
        *,
        calibration_NHWC: Faces | None = None,
        facts: dict[str, str] | None = None,
    ) -> Exported:
        """Writes a student of the model store.

        Args:
            card: card of the student.
            models: the model store.
            faces_NHWC: (N, H, W, 3) uint8 RGB crops of the student's size, to check it on.
            path: the file or folder to write.
            options: an instance of `config_class`. None takes the defaults.
            calibration_NHWC: crops to find the ranges of the tensors on, for int8.
            facts: further entries for the metadata.

        Raises:
            PersonaError: the student cannot be exported so, or the file's embeddings differ.
        """


EXPORTS: Registry[type[ExportFormat]] = registry.EXPORTS


def build_options(name: str, given: Mapping[str, Any]) -> ExportOptions:
    """Builds the options of a format from those that are given, by name.

    Raises:
        PersonaError: the format does not have such an option, or a value is of the wrong type.
    """
    options: ExportOptions = build_chosen(EXPORTS, name, given)
    return options


class FileFormat(ExportFormat):
    """A format of one file, which is converted from the ONNX graph."""

    @abstractmethod
    def convert(self, graph: bytes, student: Student, options: Any) -> bytes:
        """Returns the bytes of the file, from those of the ONNX file with its metadata."""

    @abstractmethod
    def run(self, data: bytes, faces_NHWC: Faces, options: Any) -> npt.NDArray[np.float32]:
        """(N, E) float32 embeddings that the bytes of a file give for uint8 crops."""

    def export(
        self,
        card: Card,
        models: Path,
        faces_NHWC: Faces,
        path: Path,
        options: Any = None,
        *,
        calibration_NHWC: Faces | None = None,
        facts: dict[str, str] | None = None,
    ) -> Exported:
        """Loads the student and writes it, see `ExportFormat.export`."""
        from persona.models.store import load_model

        more: Any = {"calibration_NHWC": calibration_NHWC, "facts": facts}
        return self.write(load_model(card, models), card, faces_NHWC, path, options, **more)

    def write(
        self,
        student: Student,
        card: Card,
        faces_NHWC: Faces,
        path: Path,
        options: Any = None,
        *,
        calibration_NHWC: Faces | None = None,
        facts: dict[str, str] | None = None,
    ) -> Exported:
        """Writes a student that is loaded. For fp16 its weights are rounded in place.

        The other arguments are those of `export`.

        Raises:
            PersonaError: the student has no logits but they are asked for, there are no faces,
                packages are missing, the student has collapsed, or the file's embeddings differ.
        """
        options = options or self.config_class()
        self.check(options)
        if not path.name.endswith(self.suffix):
            raise PersonaError(f"{path}: name the file something{self.suffix}")
        wanted_NE = _check(student, card, faces_NHWC, options, calibration_NHWC)
        graph, quantised = build_with_cost(
            student, card, options, facts or {}, calibration_NHWC, faces_NHWC
        )
        with refusing(card, f"a file of format {self.name}"):
            data = self.convert(graph, student, options)
            found_NE = self.run(data, faces_NHWC, options)
        return _write(path, data, card, options, wanted_NE, found_NE, quantised)


def _check(
    student: Student,
    card: Card,
    faces_NHWC: Faces,
    options: ExportOptions,
    calibration_NHWC: Faces | None,
) -> Tensor:
    """(N, E) embeddings that the file must give.

    Raises:
        PersonaError: the student cannot be exported with these options and faces.
    """
    if options.classifier and not student.num_classes:
        raise PersonaError(f"model {card.id} has no classifier: it was trained on embeddings alone")
    if not len(faces_NHWC):
        raise PersonaError("an export is checked on faces, and there is none")
    if options.precision == "int8" and (calibration_NHWC is None or not len(calibration_NHWC)):
        raise PersonaError("int8 is calibrated on faces, and there is none")
    wanted_NE = torch.cat(list(_embeddings(student, faces_NHWC)))
    # The later check compares cosines. A collapsed student has nearly the same embedding for every
    # face, so any file would pass. Each face counts as a person here: even two photos of one person
    # are further apart than different people are after a collapse.
    found = spread(wanted_NE.numpy(), np.arange(len(wanted_NE)))
    if has_collapsed(found):
        told = tell_collapse(f"model {card.id}", found, f"the {len(wanted_NE)} faces of the check")
        raise PersonaError(f"{told}; nothing was written")
    return wanted_NE


def _write(
    path: Path,
    data: bytes,
    card: Card,
    options: ExportOptions,
    wanted_NE: Tensor,
    found_NE: npt.NDArray[np.float32],
    quantised: Quantised | None,
) -> Exported:
    """Writes a file if it gives the expected embeddings.

    Raises:
        PersonaError: its embeddings differ; nothing is written.
    """
    alike = compare(unit(found_NE), wanted_NE.numpy())
    if not BOUNDS[options.precision].allow(alike):
        raise PersonaError(
            f"the {options.precision} file of {card.id} would differ from the model: worst cosine "
            f"{alike.cosine:.6f} and error {alike.error:.3f} over {len(found_NE)} faces, "
            f"{BOUNDS[options.precision]} is wanted; nothing was written"
        )
    write_atomically(path, data)
    exported = Exported(path, len(data), alike.cosine, len(found_NE), alike.error)
    if quantised is None:
        return exported
    return replace(exported, layers=quantised.layers, floats=tuple(quantised.floats))


@torch.inference_mode()
def _embeddings(student: Student, faces_NHWC: Faces) -> Iterator[Tensor]:
    """Yields the student's own embeddings in batches, computed as in evaluation."""
    student.eval()
    for batch in np.array_split(faces_NHWC, -(-len(faces_NHWC) // 64)):
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
        yield student.embed((pixels - PIXEL_MEAN) / PIXEL_SCALE)
