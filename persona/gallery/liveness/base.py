"""The base of liveness checks. Defining a class registers it under its name:

    class Blink(Liveness):
        name = "blink"

        def score(self, photo, faces):
            return [ask_a_network(photo, face.box) for face in faces]

A class of another package is announced by an entry point, and `--liveness blink` then names it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from persona.data.align.spec import FoundFace
from persona.errors import PersonaError
from persona.registry import LIVENESS
from persona.workspace import user_path

Pixels = npt.NDArray[np.uint8]

NOT_LIVE = "not live"
"""Why a face that is not live is not compared."""
PREFIX, SUFFIX = "onnx:", ".onnx"


class Liveness(ABC):
    """A liveness check. Any number of threads may use it at once."""

    name: ClassVar[str]
    """Name of the check, as `--liveness` takes it."""
    threshold: float = 0.5
    """Lowest score of a live face."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if getattr(cls, "name", None):
            LIVENESS.add(cls.name, cls)

    @abstractmethod
    def score(self, photo: Pixels, faces: Sequence[FoundFace]) -> Sequence[float]:
        """Returns for each face how surely it is live, in [0, 1].

        Args:
            photo: upright (H, W, 3) uint8 RGB photo.
            faces: faces that were detected in it: boxes (x0, y0, x1, y1) in px, and five landmarks.
        """

    def scores(self, photo: Pixels, faces: Sequence[FoundFace]) -> list[float]:
        """Returns the scores of faces, checked.

        Raises:
            PersonaError: there are not as many scores as faces, or one is not in [0, 1].
        """
        if not faces:
            return []
        found = [float(score) for score in self.score(photo, faces)]
        if len(found) != len(faces) or not all(
            math.isfinite(score) and 0 <= score <= 1 for score in found
        ):
            raise PersonaError(
                f"the liveness check {self.title} gives no score in [0, 1] for each face: mend it, "
                "or leave --liveness out"
            )
        return found

    @property
    def title(self) -> str:
        """Name of the check in messages."""
        return self.name


def open_liveness(what: str, threshold: float | None = None) -> Liveness:
    """Opens a liveness check.

    Args:
        what: the name of a check, or an ONNX file with its settings in a YAML file beside it.
        threshold: lowest score of a live face. None means the check's own.

    Raises:
        PersonaError: the name is unknown, its package is broken, the file does not fit its
            settings, or the threshold is out of range.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise PersonaError(f"--liveness-threshold {threshold:g}: choose 0 to 1")
    if what.startswith(PREFIX) or what.lower().endswith(SUFFIX):
        from persona.gallery.liveness.onnx import OnnxLiveness

        check: Liveness = OnnxLiveness(Path(user_path(what.removeprefix(PREFIX))))
    else:
        kind = LIVENESS.find(what, called="liveness check", where="or a FILE.onnx")
        try:
            check = kind()
        except PersonaError:
            raise
        except Exception as error:  # another package's code may raise anything
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise PersonaError(
                f"the liveness check {what!r} cannot be opened ({reason})"
            ) from error
    if threshold is not None:
        check.threshold = threshold
    return check
