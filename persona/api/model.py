"""A face network that detects faces, embeds them and is evaluated: `persona.load`, `persona.wrap`.

Shapes: N faces, E embedding, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.api.photos import PhotoLike, Pixels, look
from persona.data.align.spec import (
    MIN_FACE_PX,
    AlignSpec,
    Box,
    Crop,
    FoundFace,
    check_min_face,
)
from persona.errors import PersonaError
from persona.extras import needing
from persona.gallery import quality
from persona.landmarks import Floats, template
from persona.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from persona.data.sets import FaceSet
    from persona.evaluation.protocols import Evaluation
    from persona.gallery.faces import Eyes, SeenFace
    from persona.gallery.store import Threshold
    from persona.models.sources import Named, NamedNetwork

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Face:
    """A face in a photo, as `Model.find` returns it."""

    box: Box
    """Box (x0, y0, x1, y1) in px of the upright photo."""
    landmarks: Floats | None
    """(5, 2) landmarks in px of the photo: eyes, tip of the nose and corners of the mouth; of each
    pair the left one in the photo comes first."""
    probability: float | None
    """Probability from the detector, in [0, 1]."""
    crop: Pixels
    """(H, W, 3) uint8 RGB crop, aligned as the model needs it."""
    flaw: str | None
    """Why the face is too poor to be recognised (small or blurred). None means that it is good
    enough."""
    _crop: Crop = field(repr=False, compare=False)
    others: int = 0
    """Number of other faces in the photo of which the detector is sure."""


CHECK_FACES = 64
"""Number of drawn faces on which an exported file is compared with the model."""

FacesLike = Face | PhotoLike | Sequence[Face | PhotoLike]


class Model:
    """A face network with its alignment. It detects faces, embeds them and is evaluated on sets.

    Make one with `persona.load` or `persona.wrap`. Any number of threads may use it at once.
    """

    def __init__(
        self,
        named: Named,
        align: AlignSpec,
        workspace: Workspace,
        threshold: Threshold | None = None,
        min_face: int = MIN_FACE_PX,
    ) -> None:
        check_min_face(min_face)
        self.named, self.align, self.workspace = named, align, workspace
        self._min_face = min_face
        self.threshold = threshold
        """Lowest cosine similarity at which two faces count as one person.

        A student has the threshold of its test set. `calibrate` chooses another.
        """
        self._eyes: Eyes | None = None

    @property
    def name(self) -> str:
        """The model's name, as `persona.load` and every command take it."""
        return self.named.name

    @property
    def trained(self) -> bool:
        """Whether its weights were trained. An architecture's name loads random ones."""
        return self.named.digest != ""

    @property
    def min_face(self) -> int:
        """Side in px of the smallest face that it looks for. `persona.load` sets it."""
        return self._min_face

    @property
    def embedding_size(self) -> int:
        """Width E of an embedding, for example 512."""
        return self.named.network.embedding_size

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.embedding_size}-d, crops of {self.align.image_size} px "
            f"by {self.align.method})"
        )

    def find(self, photo: PhotoLike, *, min_face: int | None = None) -> list[Face]:
        """Detects every face of a photo and returns them from left to right.

        Args:
            photo: a path, the bytes of an image file, a PIL image, or an upright (H, W, 3) uint8
                RGB array.
            min_face: side in px of the smallest face to look for, 12 to 1000. Larger is faster.
                None means the model's own, `Model.min_face`.

        Raises:
            PersonaError: the photo cannot be read, or the detector cannot look for such faces.

        Example:
            >>> import persona
            >>> model = persona.load("mobilenet_v3_small")  # untrained: it finds, and knows nobody
            >>> from PIL import Image
            >>> model.find(Image.new("RGB", (200, 200)))
            []
        """
        looked = look(photo)
        found = self.sight.find(looked.pixels, min_face, shrink=looked.shrink)
        sure = [(seen.face.probability or 0) >= quality.SURE for seen in found]
        return [
            _face(seen, looked.whole_face(seen.face), sum(sure) - certain)
            for seen, certain in zip(found, sure, strict=True)
            if seen.crop is not None
        ]

    def embed(self, faces: FacesLike) -> Embeddings:
        """Embeds faces as (N, E) float32 embeddings of unit length, one per face.

        Args:
            faces: one face or a sequence of them. A `Face` is embedded from its crop. An array of
                the size of the model's crops is taken as an aligned crop. Everything else is a
                photo that must show one face. If it shows several, the face that is more than
                twice as large as any other is used.

        Raises:
            PersonaError: a photo cannot be read, shows no face, or shows several of similar size.

        Example:
            >>> import persona
            >>> from persona.data.synthetic import draw_identity, draw_photo
            >>> photos = [draw_photo(draw_identity(0, 1), n, 160) for n in (1, 2)]
            >>> persona.load("persona-s").embed(photos).shape
            (2, 128)
        """
        many = faces if isinstance(faces, list | tuple) else [faces]
        return self.sight.embed([self._crop(face, n, len(many)) for n, face in enumerate(many)])

    def only_face(self, photo: PhotoLike, what: str = "photo") -> Face:
        """Returns the one face of a photo, or the largest where the others are small.

        Args:
            photo: a photo in any form that `find` takes.
            what: what to call the photo in an error.

        Raises:
            PersonaError: the photo shows no face, or several of which none is more than twice as
                large as every other.

        Example:
            >>> import persona
            >>> from persona.data.synthetic import draw_identity, draw_photo
            >>> photo = draw_photo(draw_identity(0, 1), 1, 160)
            >>> persona.load("persona-s").only_face(photo).landmarks.shape
            (5, 2)
        """
        found = self.find(photo)
        shown = f"{what} {photo}" if isinstance(photo, str | Path) else what
        if not found:
            raise PersonaError(f"{shown}: no face was found in it; turn it upright if it is turned")
        sighted = [face._crop.face for face in found]
        if quality.several([face for face in sighted if face is not None]):
            raise PersonaError(
                f"{shown}: {len(found)} faces were found in it; cut out the one that is meant, or "
                "choose one of `model.find(photo)`"
            )
        return max(found, key=lambda face: _side(face.box))

    def evaluate(self, faces: FaceSet, *, measure: str | None = None, **options: Any) -> Evaluation:
        """Evaluates the model on a set, as `persona evaluate` does.

        Args:
            faces: a packed set.
            measure: the protocol: verification, match, class, identification or templates. None
                means the one that the set is made for.
            options: options of the protocol, for example `resamples=1000`. Each protocol has a
                dataclass of them, its `config_class`.

        Returns:
            The protocol's dataclass of figures. `to_json` gives them by name.

        Raises:
            PersonaError: the set does not fit the protocol, its crops do not fit the model, or the
                protocol does not take an option.

        Example:
            found = model.evaluate(persona.open_set("lfw"), resamples=1000)
            print(found.to_json()["accuracy"])
        """
        from persona.evaluation.processes import join_processes
        from persona.evaluation.protocols import evaluate

        return evaluate(
            self.named,
            faces,
            join_processes(self.named.network),
            measure=measure,
            options=options,
            quiet=True,
        )

    def calibrate(self, faces: FaceSet | None = None, far: float = 1e-3) -> Threshold:
        """Chooses `threshold` for a false accept rate (FAR).

        Args:
            faces: a packed set of photos, all pairs of which are compared, or those of 20,000
                photos, two of each person first, if there are more. None takes the threshold
                that the model's card has for this rate: `persona-s` has 1e-2, 1e-3 and 1e-4.
            far: the largest share of pairs of two people that may be accepted.

        Raises:
            PersonaError: the set has too few pairs for this rate, or its crops do not fit the
                model; or no set is given, and the card has no threshold for the rate.

        Example:
            >>> import persona
            >>> model = persona.load("persona-s")
            >>> model.calibrate(far=1e-4).value > model.calibrate(far=1e-2).value
            True
        """
        from persona.evaluation.processes import join_processes
        from persona.gallery.calibrate import calibrate
        from persona.gallery.people import card_threshold_at

        if faces is None:
            self.threshold = card_threshold_at(self.named, self.workspace, far)
        else:
            processes = join_processes(self.named.network)
            self.threshold = calibrate(self.named, faces, processes, far)
        return self.threshold

    def export(self, path: str | Path, **options: Any) -> Path:
        """Writes a student, or a network of `persona.wrap`, as an ONNX file and returns its path.

        The file is checked on drawn faces.

        Args:
            path: the file to write.
            options: fields of `persona.deploy.exports.ExportOptions`, for example
                `precision="fp16"`.

        Raises:
            PersonaError: the model is neither, there is no such option, or the file's embeddings
                differ from the model's.

        Example:
            persona.load("persona-s").export("persona-s.onnx", precision="fp16")
        """
        with needing("exporting"):
            from persona.deploy.exporting import export_wrapped
            from persona.deploy.exports.base import build_options
            from persona.deploy.exports.onnx import Onnx
            from persona.models.wrapped import WrappedNetwork
        from persona.deploy.faces import drawn_faces
        from persona.models.sources import NamedNetwork, student_card

        models, target = self.workspace.models, Path(path)
        chosen = build_options(Onnx.name, options)
        named = self.named
        if isinstance(named, NamedNetwork) and isinstance(named.network, WrappedNetwork):
            return export_wrapped(named, self.align, target, chosen).path
        card, models = student_card(self.name, models)
        faces = drawn_faces(card.image_size, CHECK_FACES)
        Onnx().export(card, models, faces, target, chosen)
        return target

    def in_torch(self) -> NamedNetwork:
        """Returns the network as a torch module, for training and targets.

        Raises:
            PersonaError: torch is not installed.
        """
        from persona.models.sources import NamedNetwork, load_network

        if isinstance(self.named, NamedNetwork):
            return self.named
        return load_network(self.name, self.workspace.models)

    def takes(self, photo: PhotoLike) -> bool:
        """Whether a photo is taken as an aligned crop: an array of the size of the model's."""
        side = self.align.image_size
        return isinstance(photo, np.ndarray) and photo.shape == (side, side, 3)

    @property
    def sight(self) -> Eyes:
        """The detector and the network. They are built when the first photo is read."""
        if self._eyes is None:
            from persona.gallery.faces import Eyes

            self._eyes = Eyes(self.named, self.align, self.min_face)
        return self._eyes

    def _crop(self, face: Face | PhotoLike, place: int, count: int) -> Crop:
        if isinstance(face, Face):
            return face._crop
        if self.takes(face):
            return self._aligned(look(face).pixels)
        what = "photo" if count == 1 else f"photo {place + 1} of {count}"
        return self.only_face(face, what)._crop

    def _aligned(self, crop: Pixels) -> Crop:
        """Wraps a crop that the caller aligned; its landmarks are those of ArcFace's template."""
        file = io.BytesIO()
        Image.fromarray(crop).save(file, "PNG")
        points = np.vstack([template(self.align.image_size), (1.0, 1.0)])
        return Crop(file.getvalue(), None, points)


def load(
    name: str | None = None, *, workspace: Workspace | None = None, min_face: int = MIN_FACE_PX
) -> Model:
    """Loads a face network by its name.

    Args:
        name: a model's ID, `onnx:FILE`, `litert:FILE`, `facenet-vggface2`, the path of an ONNX or
            LiteRT file, `hf://OWNER/NAME`, or an architecture for an untrained student. None means
            the best student that was trained here, or else `persona-s` if Persona ships it.
        workspace: where models are stored. None means `PERSONA_HOME`, or the current folder where
            it is not set.
        min_face: side in px of the smallest face to look for in photos, 12 to 1000. Larger is
            faster. Everything that is done with the model uses it, a gallery as well.

    Raises:
        PersonaError: there is no such model, or its file is missing or damaged.

    Example:
        >>> import persona
        >>> persona.load("mobilenet_v3_small").embedding_size
        512
    """
    from persona.gallery.people import card_threshold, network_align
    from persona.models.cards import find_model
    from persona.models.sources import load_embedder, spell

    place = workspace or Workspace.locate()
    if name is None:
        name = find_model(None, place.models).id
    named = load_embedder(spell(name), place.models)
    threshold = card_threshold(named.name, place)
    return Model(named, network_align(named, place), place, threshold, min_face)


def wrap(
    network: nn.Module,
    *,
    image_size: int,
    alignment: str = "mtcnn",
    mean: float | Sequence[float] = 127.5,
    std: float | Sequence[float] = 128.0,
    name: str = "a wrapped network",
    workspace: Workspace | None = None,
    min_face: int = MIN_FACE_PX,
) -> Model:
    """Makes a `Model` from the user's own torch network.

    Args:
        network: a module from (B, 3, image_size, image_size) float32 RGB to (B, E) embeddings,
            which need not have unit length.
        image_size: side of the crops in px.
        alignment: `mtcnn` (the detector's box with a margin) or `landmarks` (five-point landmarks
            warped to ArcFace's template).
        mean: value subtracted from pixels in [0, 255], one for all channels or one for each.
        std: value by which they are then divided, one for all channels or one for each.
        name: name of the model in messages.
        workspace: where sets and models are stored. None means `PERSONA_HOME`, or the current
            folder where it is not set.
        min_face: side in px of the smallest face to look for in photos, as in `persona.load`.

    Raises:
        PersonaError: the network does not return (B, E) embeddings.

    Example:
        >>> import persona
        >>> from torch import nn
        >>> own = nn.Sequential(nn.AvgPool2d(16), nn.Flatten())
        >>> persona.wrap(own, image_size=112, alignment="landmarks").embedding_size
        147
    """
    from persona.models.sources import NamedNetwork

    with needing("a wrapped network"):
        from persona.models.wrapped import WrappedNetwork

    wrapped = WrappedNetwork(network, image_size, mean, std)
    margin = 0 if alignment == "landmarks" else AlignSpec().margin
    trained_on = "a network of the user's own"
    named = NamedNetwork(name, wrapped, trained_on, (), image_size, wrapped.digest())
    align = AlignSpec(alignment, image_size, margin)
    return Model(named, align, workspace or Workspace.locate(), min_face=min_face)


def _face(seen: SeenFace, face: FoundFace, others: int) -> Face:
    assert seen.crop is not None
    with Image.open(io.BytesIO(seen.crop.jpeg)) as image:
        pixels = np.array(image.convert("RGB"))
    return Face(face.box, face.landmarks_52, face.probability, pixels, seen.flaw, seen.crop, others)


def _side(box: Box) -> float:
    x0, y0, x1, y1 = box
    return min(x1 - x0, y1 - y0)
