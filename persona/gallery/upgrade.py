"""Moving a gallery to another network.

Photos whose crop is kept get their template anew, where the new network wants crops of that
alignment. The templates of the others are mapped by an orthogonal map, which is fitted on the faces
of a packed set by both networks:

1. the people of the set are divided: most to fit on, the others are held out
2. the map W is the one with least ||A W - B|| (Schönemann 1966, "A generalized solution of the
   orthogonal Procrustes problem", Psychometrika 31): W = U Vᵀ of the singular vectors of Aᵀ B
3. what the map costs is measured on the held-out people: the TAR of mapped templates against faces
   by the new network, beside both networks alone
4. all templates are replaced in one transaction. Those of before are kept beside the new ones, so
   that `roll_back` can put them back

Shapes: N faces, A embedding of the old network, B embedding of the new one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.data.align.spec import AlignSpec, Crop
from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.evaluation.metrics import Ints, resolves
from persona.evaluation.processes import join_processes
from persona.evaluation.search import Embeddings
from persona.evaluation.thresholds import faces_of, threshold_at
from persona.gallery.faces import Eyes, carries
from persona.gallery.people import load_named
from persona.gallery.store import (
    Facts,
    OtherNetworkError,
    Store,
    StoredPhoto,
    Templates,
    Threshold,
    check_digest,
    unit,
)
from persona.names import public_name
from persona.workspace import Workspace

FAR = 1e-3
"""False accept rate at which the cost of a map is measured."""
HELD_OUT = 0.3
"""Share of a set's people who are held out."""
LEAST_FACES = 2
"""Least number of faces to fit on, as a multiple of the larger embedding size: of fewer, the map
turns noise into directions."""
MOST_LOSS = 0.05
"""Largest TAR that a map may lose against the weaker of both networks alone."""
SEED = 0


@dataclass(frozen=True)
class Fitted:
    """A map between the spaces of two networks, and what it costs."""

    map: npt.NDArray[np.float64]
    """(A, B), orthogonal, or with orthonormal rows or columns if the sizes differ."""
    set: str
    faces: int
    """Number of faces that it was fitted on."""
    people: int
    """Number of their people."""
    held_out_faces: int
    held_out_people: int
    impostors: int
    """Number of held-out pairs of two people."""
    agreement: float
    """Mean cosine similarity of a held-out face's mapped and new embedding."""
    today: float
    """TAR at `FAR` of the old network alone."""
    mapped: float
    """TAR at `FAR` of mapped templates against faces by the new network."""
    anew: float
    """TAR at `FAR` of the new network alone, as if everybody were enrolled anew."""
    threshold: Threshold | None
    """Threshold of mapped templates against faces by the new network, for the false accept rate of
    the gallery's own. None if the held-out pairs cannot resolve that."""

    @property
    def loss(self) -> float:
        """TAR that is lost by the map itself: against the weaker of both networks alone."""
        return min(self.today, self.anew) - self.mapped

    def to_json(self) -> dict[str, Any]:
        """Returns all but the map, as `persona gallery upgrade --json` prints it."""
        shown = {name: value for name, value in vars(self).items() if name != "map"}
        chosen = self.threshold
        return shown | {"far": FAR, "loss": self.loss, "threshold": chosen and vars(chosen)}


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade will do. `carry_out` does it."""

    new: Facts
    eyes: Eyes
    """The new network."""
    anew: Mapping[int, Crop]
    """Kept crops that the new network can embed, by number of the photo."""
    to_map: Mapping[int, Templates]
    """Templates by number of the photo, which are mapped."""
    fitted: Fitted | None
    """The map. None if every photo has such a crop."""


def plan_upgrade(
    store: Store, network: str, place: Workspace, faces: FaceSet | None = None
) -> Upgrade:
    """Finds out what an upgrade to another network would do. The gallery is not changed.

    Args:
        store: the open gallery.
        network: the new network's name.
        place: the folders of sets and models.
        faces: the set to fit a map on. It is only needed if some photos have no crop, or one that
            was aligned in another way than the new network wants.

    Raises:
        PersonaError: the gallery cannot be written, has nobody, or is of that network already; a
            map is needed and there is no set, the gallery's own network is not here, the set has
            too few faces or people, or the map loses too much.
    """
    store.check_writable()
    with store.changing():  # templates that are those of the facts' network
        old, photos = store.facts(), list(store.photos())
    if old is None or not photos:
        raise PersonaError(f"{store.place} has nobody to upgrade")
    named, new = load_named(network, place)
    if new.digest == old.digest:
        raise PersonaError(f"{store.place} is of {new.network} already: nothing is to be done")
    eyes = Eyes(named, new.align)
    anew = usable_crops(photos, old.align, eyes)
    to_map = {number: photo.template for _, number, photo in photos if number not in anew}
    if to_map and faces is None:
        why = "were enrolled without --keep-crops"
        if any(photo.crop is not None for _, number, photo in photos if number in to_map):
            kept = [
                (photo.align or old.align).method
                for _, number, photo in photos
                if number in to_map and photo.crop is not None
            ]
            why = (
                f"have no face that is aligned as {new.network} wants it "
                f"({', '.join(sorted(set(kept)))}, not {new.align.method})"
            )
        raise PersonaError(
            f"{len(to_map)} of {len(photos)} photos of {store.place} {why}: give --fit-set SET, a "
            "packed set of people, to map their templates to the new network's"
        )
    fitted = None
    if to_map and faces is not None:
        fitted = _fit(store, old, eyes, place, faces)
    return Upgrade(new, eyes, anew, to_map, fitted)


def usable_crops(
    photos: Iterable[tuple[str, int, StoredPhoto]], align: AlignSpec, eyes: Eyes
) -> dict[int, Crop]:
    """Returns the kept crops that a network can embed, by number of the photo.

    Args:
        photos: name, number and photo, as `Store.photos` yields them.
        align: alignment of the crops of which nothing else is stored: that of the gallery's facts.
        eyes: the network.
    """
    return {
        number: photo.as_crop
        for _, number, photo in photos
        if photo.crop is not None and carries(photo.align or align, eyes)
    }


def _fit(store: Store, old: Facts, eyes: Eyes, place: Workspace, faces: FaceSet) -> Fitted:
    faces.manifest.check_labelled("--fit-set")
    before, fresh = load_named(old.network, place)
    try:
        check_digest(old, fresh.digest, store.place)
    except OtherNetworkError:
        raise PersonaError(
            f"{old.network} is not the network any more that made the templates of {store.place}: "
            "a map can only be fitted with that one"
        ) from None
    size = max(fresh.width, eyes.network.embedding_size)
    if faces.manifest.samples < LEAST_FACES * size:  # before they are embedded
        raise _too_few(faces.name, faces.manifest.samples, size)
    embedded = []
    for one in (Eyes(before, old.align), eyes):
        # As the gallery embeds faces, also where the network is in torch.
        named = replace(one.named, network=one.network)
        embedded.append(faces_of(named, faces, join_processes(one.network)))
    (a_NA, label_N), (b_NB, _) = embedded
    far = FAR if old.threshold is None or old.threshold.far is None else old.threshold.far
    # The clients of a server see the source of the threshold, and need not know its folders.
    return fit(a_NA, b_NB, label_N, faces.name, public_name(old.network), far)


def fit(
    a_NA: Embeddings, b_NB: Embeddings, label_N: Ints, where: str, network: str, far: float = FAR
) -> Fitted:
    """Fits a map on most people of a set, and measures it on the others.

    Args:
        a_NA: embeddings of unit length by the old network.
        b_NB: embeddings of the same faces by the new network.
        label_N: (N,) person of each face.
        where: name of the set.
        network: name of the old network, for the source of the threshold.
        far: false accept rate to choose the threshold for.

    Raises:
        PersonaError: there are too few faces to fit on, too few held-out pairs to resolve `FAR`, or
            the map loses too much.
    """
    people = np.unique(label_N)
    drawn = np.random.default_rng(SEED).permutation(people)
    held_N = np.isin(label_N, drawn[: round(HELD_OUT * len(people))])
    size = max(a_NA.shape[1], b_NB.shape[1])
    count = int((~held_N).sum())
    if count < LEAST_FACES * size:
        raise _too_few(where, count, size)
    map_AB = procrustes(a_NA[~held_N], b_NB[~held_N])
    mapped_NB, new_NB, person_N = unit(a_NA[held_N] @ map_AB), b_NB[held_N], label_N[held_N]
    held = f"the {len(np.unique(person_N))} held-out people of {where}"
    others = int(np.triu(person_N[:, None] != person_N, 1).sum())
    if not resolves(FAR, others):
        raise PersonaError(
            f"{held} give {others} pairs of two people, too few to measure a FAR of {FAR:g}: "
            "choose a larger --fit-set"
        )
    _, today, impostors = threshold_at(a_NA[held_N], person_N, FAR, held)
    _, after, _ = threshold_at(mapped_NB, person_N, FAR, held, probes_NE=new_NB)
    _, anew, _ = threshold_at(new_NB, person_N, FAR, held)
    fitted = Fitted(
        *(map_AB, where, count, len(people) - len(np.unique(person_N))),
        held_out_faces=int(held_N.sum()),
        held_out_people=len(np.unique(person_N)),
        impostors=impostors,
        agreement=float(np.einsum("nb,nb->n", mapped_NB, new_NB).mean()),
        today=today,
        mapped=after,
        anew=anew,
        threshold=_threshold(mapped_NB, new_NB, person_N, far, held, network),
    )
    if fitted.loss > MOST_LOSS:
        raise PersonaError(
            f"mapping the templates would lose too much: on {held}, the TAR at FAR {FAR:g} of "
            f"mapped templates is {after:.4f}, and that of both networks alone {today:.4f} and "
            f"{anew:.4f}; at most {MOST_LOSS:g} may be lost: fit on a larger set, or enrol "
            "everybody anew into another --store"
        )
    return fitted


def _too_few(where: str, count: int, size: int) -> PersonaError:
    return PersonaError(
        f"{where} has {count} faces to fit a map of {size} numbers on, without those of the "
        f"{HELD_OUT:.0%} of its people who are held out; {LEAST_FACES * size} are needed: choose a "
        "larger set"
    )


def procrustes(a_NA: Embeddings, b_NB: Embeddings) -> npt.NDArray[np.float64]:
    """(A, B) the orthogonal map W with the least ||A W - B||; see the top of this module."""
    left, _, right = np.linalg.svd(
        a_NA.astype(np.float64).T @ b_NB.astype(np.float64), full_matrices=False
    )
    return np.asarray(left @ right)


def _threshold(
    mapped_NB: Templates, new_NB: Templates, person_N: Ints, far: float, where: str, network: str
) -> Threshold | None:
    try:
        value, tar, impostors = threshold_at(mapped_NB, person_N, far, where, probes_NE=new_NB)
    except PersonaError:  # too few pairs for the gallery's own rate
        return None
    source = (
        f"FAR {far:g} on {where} ({impostors:,} pairs of two people, of which one is mapped from "
        f"{network}), TAR {tar:.4f}"
    )
    return Threshold(value, source, far)


def carry_out(store: Store, upgrade: Upgrade) -> int:
    """Replaces all templates in one transaction, and returns their number.

    Raises:
        PersonaError: the gallery was changed meanwhile, or cannot be written.
    """
    embedded_NB = upgrade.eyes.embed(list(upgrade.anew.values()))
    templates = dict(zip(upgrade.anew, embedded_NB, strict=True))
    facts = upgrade.new
    if upgrade.fitted is not None:
        old_NA = np.stack(list(upgrade.to_map.values()))
        mapped_NB = unit(old_NA @ upgrade.fitted.map)
        templates |= dict(zip(upgrade.to_map, mapped_NB, strict=True))
        facts = replace(facts, threshold=upgrade.fitted.threshold)
    store.replace(facts, templates)
    return len(templates)


@dataclass(frozen=True)
class Rollback:
    """What going back will do. `roll_back` does it."""

    facts: Facts
    """The facts that the gallery will have."""
    kept: Mapping[int, Templates]
    """Kept templates by number of the photo, which are put back bit for bit."""
    anew: Mapping[int, Crop]
    """Kept crops by number of the photo, of those that have no such template."""
    lacking: Mapping[str, int]
    """Number of photos that have neither, by name of the person."""
    eyes: Eyes | None
    """The network of before. None if nothing has to be embedded."""


def plan_rollback(store: Store, place: Workspace) -> Rollback:
    """Finds out how a gallery gets back to the network before. The gallery is not changed.

    Raises:
        PersonaError: the gallery cannot be written, has nobody, never moved, or has discarded the
            network before; or that network is not here or is another one by now.
    """
    store.check_writable()
    with store.changing():  # all three of one moment
        facts, photos = store.facts(), list(store.photos())
        kept = store.previous_templates()
    before = previous_of(facts, store.place)
    if not photos:
        raise PersonaError(f"{store.place} has nobody to go back with")
    named, fresh = load_named(before.network, place)
    if fresh.digest != before.digest:
        raise PersonaError(
            f"{before.network} is not the network any more that {store.place} had before: restore "
            "its file"
        )
    others = [(name, number, photo) for name, number, photo in photos if number not in kept]
    eyes = Eyes(named, before.align) if others else None
    assert facts is not None
    anew = {} if eyes is None else usable_crops(others, facts.align, eyes)
    return Rollback(
        # Its name is that under which it was found; it may lie in another folder by now.
        facts=replace(before, network=fresh.network),
        kept=kept,
        anew=anew,
        lacking=Counter(name for name, number, _ in others if number not in anew),
        eyes=eyes,
    )


def previous_of(facts: Facts | None, place: str) -> Facts:
    """Returns the facts before the gallery moved.

    Raises:
        PersonaError: it never moved, or they were discarded.
    """
    if facts is None or facts.previous is None:
        raise PersonaError(
            f"{place} never moved to another network, or discarded the one before: there is "
            "nothing to go back to"
        )
    return facts.previous


def roll_back(store: Store, plan: Rollback) -> int:
    """Moves a gallery back to the network and the threshold before, in one transaction.

    What it moves away from is kept in its turn, so another call moves it forward again.

    Returns:
        The number of templates.

    Raises:
        PersonaError: some photos have no template of that network and no crop, the gallery was
            changed meanwhile, or it cannot be written.
    """
    if plan.lacking:
        lacking = sum(plan.lacking.values())
        raise PersonaError(
            f"{lacking} of {lacking + len(plan.kept) + len(plan.anew)} photos of {store.place} "
            f"have neither a template of {plan.facts.network} nor a kept face to make one from: "
            "`persona gallery rollback --dry-run` names their people; forget them, go back and "
            "enrol them again, or use the copy that `persona gallery backup` made"
        )
    templates = dict(plan.kept)
    if plan.eyes is not None:
        embedded_NA = plan.eyes.embed(list(plan.anew.values()))
        templates |= dict(zip(plan.anew, embedded_NA, strict=True))
    store.replace(plan.facts, templates)
    return len(templates)


def discard_previous(store: Store) -> tuple[Facts, int]:
    """Removes the kept templates of the network before for good.

    Returns:
        The facts before, to which there is no way back now, and the number of templates.

    Raises:
        PersonaError: there is nothing to discard, the gallery cannot be written, or something of
            the templates is left.
    """
    store.check_writable()
    before = previous_of(store.facts(), store.place)
    return before, store.discard_previous()
