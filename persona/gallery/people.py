"""Enrolling people in a gallery, and recognising them.

To enrol a person, each photo must show one clear face, and all photos of a name, old and new, must
show one person. Two photos are linked if their similarity reaches the threshold. A photo that no
chain of links joins to the others counts as another person. A new name must not look like anybody
who is enrolled, or one person would be there under two names.

A face is recognised as the nearest person if the similarity reaches the threshold. Otherwise it is
unknown.

A template is the stored embedding of one photo.

Shapes: N photos, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from persona.config import from_dict
from persona.data.align.spec import MIN_FACE_PX, AlignSpec, Crop, check_min_face
from persona.errors import PersonaError, SkipPhoto, unknown
from persona.evaluation.thresholds import SAME
from persona.figure_names import power
from persona.gallery import quality
from persona.gallery.liveness import NOT_LIVE, Liveness
from persona.gallery.store import (
    MATCHES,
    Facts,
    Nearest,
    Person,
    Store,
    StoredPhoto,
    Templates,
    Threshold,
    check_digest,
    check_name,
    open_store,
    unit,
)
from persona.models.cards import Card, is_of_zoo
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.gallery.faces import Eyes, Pixels, SeenFace
    from persona.gallery.photos import LookedAt
    from persona.gallery.unknown_faces import UnknownFaces
    from persona.models.sources import Named

CROP_PX = 160
"""Side in px of the crops for a network that takes any size; packed sets have it too."""


WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
SHOWN = 10
"""Number of photos that a message names at most."""


class DoubtError(PersonaError):
    """The photos may show another person than their name says. The user decides.

    The message ends with a semicolon and what to do at the command line.
    """

    kind: ClassVar[str]
    """Name of the doubt, for programs."""
    question: ClassVar[str]
    """Question to the user, with `{name}`. The answer yes enrols the photos."""

    def __init__(self, line: str, labels: Sequence[str] = ()) -> None:
        super().__init__(line)
        self.labels = tuple(labels)
        """Labels of the photos in doubt, if it is not about all of them."""


class TwoPeopleError(DoubtError):
    """The photos under one name look like two people."""

    kind = "two-people"
    question = "Enrol all of them as {name}?"


class DuplicateError(DoubtError):
    """The photos of a new name look like somebody who is enrolled."""

    kind = "duplicate"
    question = "Is {name} somebody else?"


class NoPhotoError(PersonaError):
    """None of the photos can be enrolled."""

    def __init__(self, line: str, refused: Sequence[str]) -> None:
        super().__init__(line)
        self.refused = tuple(refused)
        """The photos, each with its reason."""


@dataclass(frozen=True)
class Enrolled:
    """Result of enrolling a person."""

    name: str
    """The person's name, as it is stored."""
    added: int
    """Number of photos that were added."""
    refused: tuple[str, ...]
    """Photos that were refused, each with its reason."""
    already: int = 0
    """Number of photos that were enrolled before or given twice."""
    looks_like: str | None = None
    """Name of another person whose similarity reaches the threshold."""
    similarity: float | None = None
    """Cosine similarity to that person, in [-1, 1]."""


@dataclass(frozen=True)
class Sighting:
    """A face in a photo, and who it is."""

    box: tuple[float, float, float, float]
    """Box (x, y, width, height) in px of the photo."""
    name: str | None
    """Name of the person. None means that the face is unknown."""
    nearest: str | None
    """Name of the nearest person, also below the threshold. None means that the face was not
    compared, or that nobody is enrolled."""
    score: float | None
    """Cosine similarity to the nearest person, in [-1, 1]."""
    refused: str | None
    """Why the face was not compared. None means that it was."""


@dataclass(frozen=True)
class PersonPhoto:
    """What a gallery stores of one photo of a person, to be looked at."""

    number: int
    """Number of the photo in the gallery."""
    crop: bytes | None
    """Aligned crop as JPEG. None means that it was not kept."""
    similarity: float
    """Cosine similarity to the mean of the person's photos, in [-1, 1]."""


@dataclass(frozen=True)
class Moved:
    """Result of renaming, merging or splitting."""

    name: str
    """Name of the person who has the photos now."""
    photos: int
    """Number of photos that were moved."""


class Gallery:
    """Enrolled people and the network that embeds their faces. Any number of threads may use it."""

    def __init__(
        self,
        store: Store,
        eyes: Eyes,
        threshold: Threshold,
        *,
        match: str = "mean",
        keep_crops: bool = False,
        unknown: UnknownFaces | None = None,
        liveness: Liveness | None = None,
        follows: bool = False,
    ) -> None:
        self.store, self.eyes, self.calibration = store, eyes, threshold
        self.follows = follows
        """Whether a threshold that is stored meanwhile is taken. One given by hand stays."""
        self.match, self.keep_crops = match, keep_crops
        self.unknown = unknown
        """Keeps unknown faces for a limited time, or holds those that were kept before. None means
        that there are none."""
        self.liveness = liveness
        """Asked whether a face is live before it is recognised. None means that it is not asked."""

    @property
    def threshold(self) -> float:
        """Lowest cosine similarity at which a face counts as an enrolled person."""
        return self.calibration.value

    def renew_threshold(self) -> None:
        """Takes the threshold that the gallery has by now: a server may run for months."""
        facts = self.store.facts() if self.follows else None
        if facts is not None and facts.threshold and facts.digest == self.eyes.named.digest:
            self.calibration = facts.threshold

    def enroll(
        self,
        name: str,
        photos: Iterable[LookedAt | SkipPhoto],
        *,
        force: bool = False,
        accept: Collection[type[DoubtError]] = (),
        labels: Sequence[str] | None = None,
        claim: Callable[[], None] = lambda: None,
    ) -> Enrolled:
        """Adds photos of a person, who may be new or enrolled already.

        Args:
            name: the person's name, 1 to 200 characters.
            photos: decoded photos; for one that could not be read, the reason.
            force: whether to enrol whatever doubt there is.
            accept: doubts in spite of which to enrol.
            labels: names of the photos in messages. The default is photo 1, photo 2, ….
            claim: called last, before the transaction is committed. If it raises, nothing is
                stored.

        Raises:
            DoubtError: the photos look like two people, or like somebody who is enrolled.
            PersonaError: no photo can be used, or the name cannot be used.
        """
        name = check_name(name)
        self.store.check_writable()
        usable: list[tuple[str, SeenFace]] = []
        refused = []
        for place, photo in enumerate(photos):
            label = f"photo {place + 1}" if labels is None else labels[place]
            seen, reason = only_face(self.eyes, photo)
            if seen is None:
                refused.append(f"{label}: {reason}")
            else:
                usable.append((label, seen))
        crops = [seen.crop for _, seen in usable if seen.crop is not None]
        return self.enroll_templates(
            *(name, [label for label, _ in usable], self.eyes.embed(crops), crops),
            refused=refused,
            accept=(DoubtError,) if force else accept,
            claim=claim,
        )

    def enroll_templates(
        self,
        name: str,
        labels: Sequence[str],
        templates_NE: Templates,
        crops: Sequence[Crop | None],
        *,
        refused: Sequence[str] = (),
        accept: Collection[type[DoubtError]] = (),
        claim: Callable[[], None] = lambda: None,
    ) -> Enrolled:
        """Adds faces of a person that the gallery's network has embedded already.

        Args:
            name: the person's name.
            labels: names of the N photos in messages.
            templates_NE: (N, E) float32 templates of unit length.
            crops: the N crops, None where there is none. An empty list if there are none at all.
            refused: photos that were refused, each with its reason.
            accept: doubts in spite of which to enrol.
            claim: called last, before the transaction is committed.

        Raises:
            DoubtError: the photos look like two people, or like somebody who is enrolled.
            PersonaError: there is no template, or the name cannot be used.
        """
        name = check_name(name)
        self.store.check_writable()
        if not len(templates_NE):
            reasons = _some(refused, "; ") or "there is none"
            raise NoPhotoError(f"no photo of {name!r} can be used: {reasons}", refused)
        self.renew_threshold()
        # The first query builds the index. Outside the transaction no other writer waits for it.
        self.store.nearest(templates_NE[:1], self.match)
        with self.store.changing():
            enrolled = self._add(name, labels, crops, templates_NE, refused, tuple(accept))
            claim()
            return enrolled

    def _add(
        self,
        name: str,
        labels: Sequence[str],
        crops: Sequence[Crop | None],
        templates_NE: Templates,
        refused: Sequence[str],
        accept: tuple[type[DoubtError], ...],
    ) -> Enrolled:
        """Adds the photos that are not stored yet.

        It must run within `changing`: otherwise two callers may add the same photo.
        """
        old_NE = [photo.template for _, _, photo in self.store.photos(name)]
        fresh = _fresh(templates_NE, old_NE)
        already = len(labels) - len(fresh)
        if not fresh:
            return Enrolled(name, 0, tuple(refused), already)
        if not issubclass(TwoPeopleError, accept):
            self._check_one_person(
                name, [labels[n] for n in fresh], np.stack([*old_NE, *templates_NE[fresh]])
            )
        mean_1E = unit(templates_NE[fresh].mean(axis=0, keepdims=True))
        near = self.store.nearest(mean_1E, self.match, without=name)[0]
        alike = near if near is not None and near.score >= self.threshold else None
        if alike is not None and not old_NE and not issubclass(DuplicateError, accept):
            raise DuplicateError(
                f"{name!r} looks like {alike.name!r}, who is enrolled (similarity "
                f"{alike.score:.3f}); enrol the photos under that name, or --force if they are two "
                "people"
            )
        kept = [self._stored(templates_NE[n], crops[n] if crops else None) for n in fresh]
        self.store.add({name: kept}, self.eyes.named.digest)
        return Enrolled(
            name,
            len(kept),
            tuple(refused),
            already,
            looks_like=None if alike is None else alike.name,
            similarity=None if alike is None else alike.score,
        )

    def _stored(self, template: Templates, crop: Crop | None) -> StoredPhoto:
        if crop is None or not self.keep_crops:
            return StoredPhoto(template)
        return StoredPhoto(template, crop.jpeg, crop.landmarks_62, crop.align)

    def _check_one_person(self, name: str, labels: Sequence[str], all_NE: Templates) -> None:
        """Raises TwoPeopleError unless all templates are of one person.

        `labels` name the last templates; the templates before them are enrolled.
        """
        known = len(all_NE) - len(labels)
        odd = strangers(all_NE, known, self.threshold)
        if odd:
            whom = f"{name!r} as enrolled" if known else "the other photos"
            unlike = [labels[n] for n in odd]
            raise TwoPeopleError(
                f"these do not look like {whom} (similarity below {self.threshold:.3f}): "
                f"{_some(unlike, ', ')}; leave them out, or --force if it is one person",
                unlike,
            )

    def recognise(
        self, photo: Pixels, *, shrink: int = 1, claim: Callable[[], None] = lambda: None
    ) -> tuple[Sighting, ...]:
        """Recognises every face of an upright (H, W, 3) uint8 RGB photo, from left to right.

        Args:
            photo: the photo.
            shrink: factor by which the photo was decoded smaller. Reasons why a face is refused
                give sizes in px of the original; boxes are in px of `photo`.
            claim: called before unknown faces are kept, where the operator allows that. If it
                raises, none is kept.
        """
        self.renew_threshold()
        found = [seen for seen, _ in self.find_live(photo, shrink)]
        crops = [seen.crop for seen in found if seen.crop is not None and seen.flaw is None]
        templates_NE = self.eyes.embed(crops)
        matches = self.store.nearest(templates_NE, self.match) if crops else []
        strange = [n for n, match in enumerate(matches) if not self._knows(match)]
        if self.unknown is not None and self.unknown.hours is not None and strange:
            claim()
            chosen = [crops[n] for n in strange]
            digest, align = self.eyes.named.digest, self.eyes.align
            self.unknown.keep(templates_NE[strange], chosen, digest, align)
        answers = iter(matches)
        return tuple(self._sighting(seen, None if seen.flaw else next(answers)) for seen in found)

    def find_live(self, photo: Pixels, shrink: int = 1) -> list[tuple[SeenFace, float | None]]:
        """Detects every face of a photo, each with its liveness score in [0, 1].

        `shrink` is the factor by which the photo was decoded smaller. The score is None where the
        face has a flaw, or nobody is asked. A face whose score is below the threshold has the flaw
        NOT_LIVE.
        """
        found = self.eyes.find(photo, shrink=shrink)
        if self.liveness is None:
            return [(seen, None) for seen in found]
        clear = [seen.face for seen in found if seen.flaw is None and seen.crop is not None]
        scores = iter(self.liveness.scores(photo, clear))
        return [
            (seen, None)
            if seen.flaw is not None or seen.crop is None
            else self._judged(seen, next(scores))
            for seen in found
        ]

    def _judged(self, seen: SeenFace, score: float) -> tuple[SeenFace, float]:
        return (seen if self.is_live(score) else replace(seen, flaw=NOT_LIVE)), score

    def is_live(self, score: float) -> bool:
        """Whether a liveness score is that of a live face. It is, where nobody is asked."""
        return self.liveness is None or score >= self.liveness.threshold

    def _knows(self, match: Nearest | None) -> bool:
        return match is not None and match.score >= self.threshold

    def _sighting(self, seen: SeenFace, match: Nearest | None) -> Sighting:
        x0, y0, x1, y1 = seen.face.box
        box = (x0, y0, x1 - x0, y1 - y0)
        return Sighting(box, None, None, None, seen.flaw) if seen.flaw else self.answer(box, match)

    def answer(self, box: tuple[float, float, float, float], match: Nearest | None) -> Sighting:
        """Returns the sighting of a face whose nearest person is `match`.

        None means that nobody is enrolled.
        """
        if match is None:
            return Sighting(box, None, None, None, None)
        known = self._knows(match)
        return Sighting(box, match.name if known else None, match.name, match.score, None)

    def people(self) -> list[Person]:
        """Everybody who is enrolled, sorted by name."""
        return self.store.people()

    def forget(self, name: str) -> int:
        """Removes a person for good, and returns how many templates were removed.

        Kept unknown faces that look like the person are deleted, too. They are deleted first:
        without the person's templates, nobody could find them after a kill in between.

        Raises:
            NobodyError: nobody of that name is enrolled.
            OtherNetworkError: unknown faces are kept, and the gallery is another network's by now.
        """
        name = self.store.person(name).name
        if self.unknown is not None:
            from persona.gallery.unknown_faces import forget_alike

            check_digest(self.store.facts(), self.eyes.named.digest, self.store.place)
            templates = [photo.template for _, _, photo in self.store.photos(name)]
            if templates:
                forget_alike(self, self.unknown, np.stack(templates))
        return self.store.forget(name)

    def face(self, name: str) -> bytes | None:
        """Returns the oldest stored crop of a person as JPEG, or None if there is none."""
        return self.store.face(name)

    def photos(self, name: str) -> list[PersonPhoto]:
        """Returns the stored photos of a person, see `photos_of`."""
        return photos_of(self.store, name)

    def rename(self, name: str, to: str, *, claim: Callable[[], None] = lambda: None) -> Moved:
        """Gives a person another name, see `rename_person`."""
        return rename_person(self.store, name, to, claim=claim)

    def merge(
        self,
        name: str,
        into: str,
        *,
        photos: Collection[int] | None = None,
        force: bool = False,
        claim: Callable[[], None] = lambda: None,
    ) -> Moved:
        """Moves photos of a person to somebody who is enrolled, see `merge_people`."""
        self.renew_threshold()
        return merge_people(
            *(self.store, name, into, None if force else self.threshold), photos=photos, claim=claim
        )

    def split(
        self,
        name: str,
        photos: Collection[int],
        to: str,
        *,
        claim: Callable[[], None] = lambda: None,
    ) -> Moved:
        """Moves some photos of a person to a new one, see `split_person`."""
        return split_person(self.store, name, photos, to, claim=claim)

    def close(self) -> None:
        """Closes the store, and the file of unknown faces."""
        self.store.close()
        if self.unknown is not None:
            self.unknown.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def only_face(eyes: Eyes, photo: LookedAt | SkipPhoto) -> tuple[SeenFace | None, str | None]:
    """Returns the one clear face of a photo, or the reason why there is none."""
    if isinstance(photo, SkipPhoto):
        return None, str(photo)
    found = eyes.find(photo.pixels, shrink=photo.shrink)
    if not found:
        return None, "no face"
    if quality.several([seen.face for seen in found]):
        count = WORDS.get(len(found), str(len(found)))
        return None, f"{count} faces: cut out the one you mean"
    largest = max(found, key=lambda seen: quality.side_px(seen.face))
    return (None, largest.flaw) if largest.flaw else (largest, None)


def _some(items: Sequence[str], between: str) -> str:
    """Joins the first SHOWN items and says how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return between.join(items[:SHOWN]) + more


def _fresh(new_NE: Templates, old: Sequence[Templates]) -> list[int]:
    """Returns the indices of the templates that are not among the old ones and not repeated."""
    all_NE = np.stack([*old, *new_NE])
    same_NN = all_NE @ all_NE.T >= SAME
    return [n for n in range(len(new_NE)) if not same_NN[len(old) + n, : len(old) + n].any()]


def strangers(templates_NE: Templates, known: int, threshold: float) -> list[int]:
    """Returns the indices of the new templates that no chain of links joins to the others.

    Two templates are linked if their similarity reaches `threshold`. Chains start at the enrolled
    templates, or, where there are none, at the template with the most links.

    Args:
        templates_NE: (N, E) templates of unit length, the enrolled ones first.
        known: number of enrolled templates. Indices are counted from the first new template.
        threshold: lowest cosine similarity of a link.
    """
    linked_NN = templates_NE @ templates_NE.T >= threshold
    reached_N = np.zeros(len(templates_NE), bool)
    if known:
        reached_N[:known] = True
    else:
        reached_N[int(linked_NN.sum(axis=0).argmax())] = True
    while True:
        more_N = reached_N | linked_NN[reached_N].any(axis=0)
        if (more_N == reached_N).all():
            return [int(place) for place in np.flatnonzero(~reached_N[known:])]
        reached_N = more_N


def open_gallery(
    place: Path | str,
    network: str | None,
    workspace: Workspace,
    *,
    threshold: float | None = None,
    match: str = "mean",
    passphrase: bytes | None = None,
    keep_crops: bool | None = None,
    create: bool = True,
    min_face: int = MIN_FACE_PX,
) -> Gallery:
    """Opens a gallery with its network, or creates one.

    Args:
        place: a file, or a `postgresql://` URL.
        network: a model's ID, a teacher or `onnx:FILE`. None means the gallery's own network.
        workspace: where models are stored.
        threshold: cosine similarity to use instead of the gallery's calibrated threshold.
        match: how a probe is compared with a person: with the `mean` of the templates, or with
            each of them, of which the nearest counts (`max`).
        passphrase: passphrase of an encrypted gallery. A new gallery is encrypted with it.
        keep_crops: whether to store the aligned crops of new photos, for `rebuild`. None means as
            the gallery's user answered when it was new, or not.
        create: whether to create the gallery where there is none.
        min_face: side in px of the smallest face to look for in photos.

    Raises:
        PersonaError: the gallery cannot be opened, its templates are another network's, there
            is no threshold, or the detector cannot look for such faces.
    """
    if match not in MATCHES:
        raise unknown("match", match, MATCHES)
    check_min_face(min_face)
    store = open_store(place, passphrase=passphrase, create=create)
    try:
        eyes = open_eyes(store, network, workspace, min_face)
        facts = store.facts()
        chosen = None if facts is None else facts.threshold
        if threshold is not None:
            if not -1 <= threshold <= 1:
                raise PersonaError(f"threshold {threshold:g}: a similarity is between -1 and 1")
            chosen = Threshold(threshold, "given by hand")
        if chosen is None and is_of_zoo(eyes.named.name, workspace.models):
            chosen = card_threshold(eyes.named.name, workspace)
        if chosen is None:
            raise PersonaError(
                f"{store.place} has no threshold for {eyes.named.name}: choose one with `persona "
                "gallery calibrate --set SET --far 1e-3`, or give --threshold X"
            )
    except BaseException:
        store.close()
        raise
    keeps = _keeps(facts, keep_crops)
    follows = threshold is None
    return Gallery(store, eyes, chosen, match=match, keep_crops=keeps, follows=follows)


def open_eyes(
    store: Store, network: str | None, workspace: Workspace, min_face: int = MIN_FACE_PX
) -> Eyes:
    """Loads the network of a gallery. A gallery without photos is adopted by the network.

    A gallery from another machine names a file of that machine. If its name finds nothing here,
    the name that found the same network is stored instead.

    Raises:
        PersonaError: there is no such network, or the gallery belongs to another one.
    """
    from persona.gallery.faces import Eyes
    from persona.models.sources import network_digest, spell

    facts = store.facts()
    name = spell(network) if network else None if facts is None else facts.network
    if facts is not None and name is not None and store.people():
        # Checked before it is run: a gallery from elsewhere may name any file of this machine.
        digest = network_digest(name, workspace.models)
        if digest is not None:
            check_digest(facts, digest, store.place)
    named, fresh = load_named(name, workspace)
    store.adopt(fresh)
    if facts is None or facts.digest != fresh.digest:
        return Eyes(named, fresh.align, min_face)
    if facts.network != fresh.network and not _leads_to(facts, workspace):
        store.take_name(fresh.network, fresh.digest)
    return Eyes(named, facts.align, min_face)


def card_threshold(name: str, workspace: Workspace) -> Threshold | None:
    """The threshold on a model's card. None means that the network has no card, or none on it."""
    from persona.models.sources import source_of

    card = source_of(name, workspace.models).card(name, workspace.models)
    if card is None or card.threshold is None:
        return None
    return _threshold_on(card, *card.threshold)


def card_threshold_at(named: Named, workspace: Workspace, far: float) -> Threshold:
    """The threshold on a network's card for a false accept rate (FAR).

    Raises:
        PersonaError: the card has none for this rate, or there is no card.
    """
    from persona.models.sources import known_source

    name = named.name
    source = known_source(name, workspace.models)
    card = None if source is None else source.card(name, workspace.models)
    known = {} if card is None else card.thresholds
    # The card may be another network's: a wrapped one has whatever name its user chose.
    if card is None or card.weights_sha256 != named.digest or not known:
        raise PersonaError(
            f"{name} has no thresholds of its own: name a set of people to choose one on"
        )
    for rate, value in known.items():
        if math.isclose(rate, far):
            return _threshold_on(card, value, rate)
    raise PersonaError(
        f"{name} has no threshold for a FAR of {power(far)}: its card has "
        f"{', '.join(map(power, known))}: choose one of these, or name a set of people to choose "
        "the threshold on"
    )


def _threshold_on(card: Card, value: float, far: float) -> Threshold:
    return Threshold(value, f"FAR {power(far)} on {card.threshold_from}", far)


def threshold_of(facts: Facts | None, workspace: Workspace) -> Threshold | None:
    """The threshold of a gallery: its own, or that on the card of a shipped model."""
    if facts is None:
        return None
    if facts.threshold is None and is_of_zoo(facts.network, workspace.models):
        return card_threshold(facts.network, workspace)
    return facts.threshold


def _keeps(facts: Facts | None, given: bool | None) -> bool:
    """Whether a gallery keeps crops: as it is told, or as its user answered when it was new."""
    return given if given is not None else facts is not None and bool(facts.keeps_crops)


def _leads_to(facts: Facts, workspace: Workspace) -> bool:
    """Whether the network's name finds the same network on this machine."""
    from persona.models.sources import network_digest

    try:
        return network_digest(facts.network, workspace.models) == facts.digest
    except (PersonaError, OSError):
        return False


def gallery_of(
    place: Path | str,
    eyes: Eyes,
    threshold: Threshold | None,
    workspace: Workspace,
    *,
    keep_crops: bool | None = None,
) -> Gallery:
    """Opens a gallery with a network that is loaded already, or creates one.

    Args:
        place: a file, or a `postgresql://` URL.
        eyes: the network and its alignment. A gallery of this network keeps its own alignment.
        threshold: threshold to use where the gallery has none of its own.
        workspace: where the network's name is looked up.
        keep_crops: whether to store the aligned crops of new photos, for `rebuild`. None means as
            the gallery's user answered when it was new, or not.

    Raises:
        PersonaError: the gallery cannot be opened, its templates are another network's, the
            network is untrained, or there is no threshold.
    """
    from persona.gallery.faces import Eyes

    named = eyes.named
    if not named.digest:
        raise PersonaError(
            f"{named.name} is untrained: it tells nobody apart; choose a trained network"
        )
    store = open_store(place, create=True)
    try:
        name = _full_name(named.name, workspace)
        store.adopt(Facts(name, named.digest, named.network.embedding_size, eyes.align))
        facts = store.facts()
        if facts is not None and facts.align != eyes.align:  # as in `open_eyes`
            eyes = Eyes(named, facts.align, eyes.min_face)
        chosen = (facts.threshold if facts is not None else None) or threshold
        if chosen is None:
            raise PersonaError(
                f"{place} has no threshold for {named.name}: give `threshold`, or choose one with "
                "`model.calibrate(set)`"
            )
    except BaseException:
        store.close()
        raise
    return Gallery(store, eyes, chosen, keep_crops=_keeps(facts, keep_crops), follows=True)


def load_named(network: str | None, workspace: Workspace) -> tuple[Named, Facts]:
    """Loads a network by name, with the facts that a gallery stores about it.

    None means the best student of the newest run.

    Raises:
        PersonaError: there is no such network, or it is untrained.
    """
    from persona.models.cards import find_model
    from persona.models.sources import load_embedder, spell

    name = spell(network) if network else find_model(None, workspace.models).id
    named = load_embedder(name, workspace.models)
    if not named.digest:
        raise PersonaError(f"{name} is untrained: it tells nobody apart; choose a trained network")
    return named, Facts(
        network=_full_name(named.name, workspace),
        digest=named.digest,
        width=named.network.embedding_size,
        align=network_align(named, workspace),
    )


def _full_name(name: str, workspace: Workspace) -> str:
    """A network's name as a gallery keeps it, which may be opened from another folder.

    A wrapped network may have a name that means nothing elsewhere. It is kept as it is.
    """
    from persona.models.sources import known_source

    source = known_source(name, workspace.models)
    return name if source is None else source.full_name(name)


def network_align(named: Named, workspace: Workspace) -> AlignSpec:
    """Returns the alignment of a network's crops, which is that of its training photos.

    The model's card holds it, also in an exported file. For an older card, which does not, it is
    read from the training set where that is on this machine.
    """
    from persona.data.shards import holds_set, read_manifest

    folder = workspace.shards / named.trained_on
    align = None
    if named.alignment is not None:
        align = from_dict(AlignSpec, named.alignment, where=f"the card of {named.name}")
    elif holds_set(folder):
        align = read_manifest(folder).align
    if align is not None and align.has_landmarks:
        return align.of_photos
    side_px = CROP_PX if align is None else align.image_size
    return AlignSpec(image_size=named.image_size or side_px)


def describe_person(store: Store, name: str) -> dict[str, Any]:
    """What a gallery keeps of a person, and how alike their photos are.

    Args:
        store: the open gallery.
        name: the person's name.

    Returns:
        The fields of `Person`, the number of stored `crops`, and `least_similarity` and
        `mean_similarity` over all pairs of the person's photos, None if there is only one photo.

    Raises:
        PersonaError: nobody of that name is enrolled.
    """
    person = store.person(name)
    photos = [photo for _, _, photo in store.photos(person.name)]
    templates_NE = np.stack([photo.template for photo in photos])
    pairs_P = (templates_NE @ templates_NE.T)[np.triu_indices(len(photos), 1)]
    return {
        **vars(person),
        "crops": sum(photo.crop is not None for photo in photos),
        "least_similarity": float(pairs_P.min()) if len(pairs_P) else None,
        "mean_similarity": float(pairs_P.mean()) if len(pairs_P) else None,
    }


def photos_of(store: Store, name: str) -> list[PersonPhoto]:
    """Returns the stored photos of a person, in the order of enrolment.

    Raises:
        NobodyError: nobody of that name is enrolled.
    """
    rows = list(store.photos(store.person(name).name))
    if not rows:
        return []
    templates_NE = np.stack([photo.template for _, _, photo in rows])
    mean_E = unit(templates_NE.mean(axis=0))
    return [
        PersonPhoto(number, photo.crop, float(photo.template @ mean_E)) for _, number, photo in rows
    ]


def rename_person(
    store: Store, name: str, to: str, *, claim: Callable[[], None] = lambda: None
) -> Moved:
    """Gives a person another name. Nothing of the old name is left in the gallery's files.

    Args:
        store: the open gallery.
        name: the person's name.
        to: the new name, 1 to 200 characters.
        claim: called last, before the transaction is committed. If it raises, nothing is changed.

    Raises:
        NobodyError: nobody of that name is enrolled.
        TakenError: somebody has the new name.
        PersonaError: the new name cannot be used.
    """
    old, to = store.person(name).name, check_name(to)
    if old == to:
        raise PersonaError(f"{old!r} has this name already: choose another one")
    return Moved(to, store.move(old, to, new=True, check=claim))


def merge_people(
    store: Store,
    name: str,
    into: str,
    threshold: float | None,
    *,
    photos: Collection[int] | None = None,
    claim: Callable[[], None] = lambda: None,
) -> Moved:
    """Moves photos of a person to somebody who is enrolled, who must look alike.

    Args:
        store: the open gallery.
        name: name of the person, who is removed if all photos are moved.
        into: name of the person who gets the photos.
        threshold: lowest cosine similarity of two photos of one person. None means that the photos
            are not compared.
        photos: numbers of the photos. None means all.
        claim: called last, before the transaction is committed. If it raises, nothing is changed.

    Raises:
        NobodyError: one of the two is not enrolled.
        TwoPeopleError: the photos do not look like the other person.
        PersonaError: both names are one person's, or no photo is given.
    """
    old, new = store.person(name).name, store.person(into).name
    if old == new:
        raise PersonaError(f"{old!r} cannot be merged with themselves: name two people")
    _check_chosen(photos)

    def check() -> None:
        if threshold is not None:
            _check_alike(store, old, new, threshold, photos)
        claim()

    return Moved(new, store.move(old, new, new=False, photos=photos, check=check))


def _check_chosen(photos: Collection[int] | None) -> None:
    if photos is not None and not photos:
        raise PersonaError("no photo is chosen: choose one or more")


def _check_alike(
    store: Store, name: str, into: str, threshold: float, photos: Collection[int] | None
) -> None:
    """Raises TwoPeopleError unless the photos to move look like the person who gets them."""
    moving = [
        photo.template
        for _, number, photo in store.photos(name)
        if photos is None or number in photos
    ]
    there = [photo.template for _, _, photo in store.photos(into)]
    if not moving or not there:
        return
    odd = strangers(np.stack([*there, *moving]), len(there), threshold)
    if odd:
        raise TwoPeopleError(
            f"{len(odd)} of {len(moving)} photos of {name!r} do not look like {into!r} (similarity "
            f"below {threshold:.3f}); leave them apart, or --force if it is one person"
        )


def split_person(
    store: Store,
    name: str,
    photos: Collection[int],
    to: str,
    *,
    claim: Callable[[], None] = lambda: None,
) -> Moved:
    """Moves some photos of a person to a new one.

    Args:
        store: the open gallery.
        name: the person's name.
        photos: numbers of the photos. The person must keep one or more.
        to: name of the new person, 1 to 200 characters.
        claim: called last, before the transaction is committed. If it raises, nothing is changed.

    Raises:
        NobodyError: nobody of that name is enrolled.
        TakenError: somebody has the new name.
        PersonaError: no photo or all photos are given, or the new name cannot be used.
    """
    old, to = store.person(name).name, check_name(to)
    _check_chosen(photos)

    def check() -> None:
        if all(number in photos for _, number, _ in store.photos(old)):
            raise PersonaError(f"these are all photos of {old!r}: leave one, or rename the person")
        claim()

    return Moved(to, store.move(old, to, new=True, photos=photos, check=check))


def rebuild(store: Store, network: str, workspace: Workspace) -> int:
    """Makes all templates anew with another network from the stored crops.

    The templates of the network before are kept, see `Store.replace`.

    Returns:
        The number of templates.

    Raises:
        PersonaError: nobody is enrolled, some photos have no crop, or the network cannot be used.
    """
    from persona.gallery.faces import Eyes, carries

    store.check_writable()
    facts = store.facts()
    photos = list(store.photos())
    if facts is None or not photos:
        raise PersonaError(f"{store.place} has nobody to rebuild")
    lacking = sorted({name for name, _, photo in photos if photo.crop is None})
    if lacking:
        raise PersonaError(
            f"{len(lacking)} of {len({name for name, *_ in photos})} people were enrolled without "
            "--keep-crops: forget them, or enrol all anew into another --store"
        )
    named, fresh = load_named(network, workspace)
    eyes = Eyes(named, fresh.align)
    aligns = [photo.align or facts.align for _, _, photo in photos]
    unlike = [align.method for align in aligns if not carries(align, eyes)]
    if unlike:
        count = "" if len(unlike) == len(photos) else f"{len(unlike)} of {len(photos)} of "
        raise PersonaError(
            f"{fresh.network} wants faces that are aligned in another way ({fresh.align.method}) "
            f"than {count}those that {store.place} keeps ({', '.join(sorted(set(unlike)))}): map "
            "the templates with `persona gallery upgrade --fit-set SET`, or enrol all anew into "
            "another --store"
        )
    templates_NE = eyes.embed([photo.as_crop for _, _, photo in photos])
    numbers = [number for _, number, _ in photos]
    store.replace(fresh, dict(zip(numbers, templates_NE, strict=True)))
    return len(numbers)
