"""Whether two photos show one person: `persona.verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from persona.api.model import Face, Model, load
from persona.api.photos import PhotoLike
from persona.errors import PersonaError
from persona.figure_names import counted


@dataclass(frozen=True)
class Verdict:
    """Result of comparing two faces with `persona.verify`."""

    similarity: float
    """Cosine similarity of the two embeddings, in [-1, 1]."""
    same: bool | None
    """Whether `similarity` reaches `threshold`. None means that there is no threshold."""
    threshold: float | None
    """Lowest cosine similarity at which two faces count as one person."""
    far: float | None
    """False accept rate for which the threshold was chosen. None means that the threshold was
    given as a number, or that there is none."""
    source: str
    """Where the threshold comes from."""
    model: str
    """Name of the model that embedded the faces."""
    notes: tuple[str, ...] = ()
    """Reasons not to trust the similarity, a sentence each: a face too small or blurred, other
    faces in a photo, an untrained model."""

    def to_json(self) -> dict[str, object]:
        """Returns the fields as `persona verify --json` prints them."""
        return dict(vars(self))


def verify(
    a: Face | PhotoLike,
    b: Face | PhotoLike,
    *,
    model: Model | None = None,
    threshold: float | None = None,
) -> Verdict:
    """Compares the faces of two photos.

    Args:
        a: a photo that shows one face, or a `Face` from `model.find`.
        b: the other photo or face.
        model: the network that embeds them. None means `persona.load()`.
        threshold: lowest cosine similarity at which they count as one person. None means the
            model's own threshold.

    Raises:
        PersonaError: a photo cannot be read, shows no face, or shows several of similar size; or
            the threshold is outside [-1, 1].

    Example:
        >>> import persona
        >>> from persona.data.synthetic import draw_identity, draw_photo
        >>> a, b = (draw_photo(draw_identity(0, 1), n, 160) for n in (1, 2))
        >>> model = persona.load("mobilenet_v3_small")  # untrained
        >>> persona.verify(a, b, model=model, threshold=0.5).threshold
        0.5
    """
    model = model or load()
    if threshold is not None and not -1 <= threshold <= 1:
        raise PersonaError(f"threshold {threshold:g}: choose -1 to 1, it is a cosine")
    notes = [] if model.trained else [f"{model.name} is untrained and knows nobody"]
    faces = []
    for photo, what in ((a, "the first photo"), (b, "the second photo")):
        face, doubts = _face_of(photo, what, model)
        faces.append(face)
        notes += doubts
    one, other = (model.embed(face) for face in faces)
    similarity = float(one[0] @ other[0])
    chosen, far, source = threshold, None, "given by the caller"
    if threshold is None:
        own = model.threshold
        chosen, far = (None, None) if own is None else (own.value, own.far)
        source = (
            "none: choose one with `model.calibrate(set)`, or give `threshold`"
            if own is None
            else own.source
        )
    same = None if chosen is None else similarity >= chosen
    return Verdict(similarity, same, chosen, far, source, model.name, tuple(notes))


def _face_of(
    photo: Face | PhotoLike, what: str, model: Model
) -> tuple[Face | PhotoLike, list[str]]:
    """The face to compare, and reasons not to trust its embedding."""
    doubts = []
    if isinstance(photo, Face):
        face = photo
    else:
        if model.takes(photo):
            return photo, []
        named = isinstance(photo, str | Path)
        face = model.only_face(photo, "photo" if named else what)
        what = f"photo {photo!s}" if named else what
        if face.others:
            others = counted(face.others, "other face")
            doubts.append(f"{what} shows {others}: the largest face is compared")
    if face.flaw is not None:
        doubts.append(f"{what}: {face.flaw}")
    return face, doubts
