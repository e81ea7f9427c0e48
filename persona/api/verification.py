"""Are two photos of one person? `persona.verify`."""

from __future__ import annotations

from dataclasses import dataclass

from persona.api.model import Face, Model, load
from persona.api.photos import PhotoLike
from persona.errors import PersonaError


@dataclass(frozen=True)
class Verdict:
    """What `persona.verify` says of two faces."""

    similarity: float
    """Cosine of the two embeddings, in [-1, 1]."""
    same: bool | None
    """Whether `similarity` reaches `threshold`; None: the model has no threshold."""
    threshold: float | None
    far: float | None
    """The false accept rate that the threshold was chosen for; None: it was given as a number."""
    source: str
    """Where the threshold is from."""
    model: str

    def to_json(self) -> dict[str, object]:
        """As `persona verify --json` prints it."""
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
        a: a photo that shows one face, or a `Face` of `model.find`.
        b: the other one.
        model: the network that compares them; None: `persona.load()`.
        threshold: the similarity from which on they are one person; None: the model's own.

    Raises:
        PersonaError: a photo cannot be read, shows no face, or shows several alike.

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
    one, other = (model.embed(photo) for photo in (a, b))
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
    return Verdict(similarity, same, chosen, far, source, model.name)
