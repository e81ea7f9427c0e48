"""`persona learn gallery`: the gallery's own student learns the people who are enrolled.

1. of each person, some kept crops are held out; the others become a packed set in a private folder
2. `persona learn` teaches a copy of the student on that set. The result is a new model
3. the old and the new network are measured: on the held-out crops against the others (the gain),
   and on a set of other people (what was forgotten)
4. if the user agrees, all templates are made anew from the kept crops, in one transaction, with the
   new network's threshold. `persona gallery rollback` goes back

Nothing of the gallery is changed before step 4. The packed set is deleted at the end; it names
people by digests of their names. The set has all that may be learned, so nothing is taken up that
an earlier run kept: it may be faces of people who were forgotten since, or faces held out now.

Shapes: N photos, E embedding, P probes, K people.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from persona.config import LearnConfig, load_learn_config
from persona.data.align import align_whole
from persona.data.align.spec import AlignSpec, Crop, RawPhoto
from persona.data.journal import Chunk
from persona.data.pack import PackOptions, PhotoTask, pack_crop, pack_set, plan_photos
from persona.data.raw.base import Photo, RawDataset
from persona.data.sets import FaceSet
from persona.data.shards import Skipped
from persona.errors import CropsError, PersonaError, Preempted, SkipPhoto
from persona.evaluation.processes import join_processes
from persona.evaluation.thresholds import faces_of, threshold_at
from persona.figure_names import power
from persona.files import folder_lock
from persona.gallery.crops import read_crop
from persona.gallery.faces import Eyes, resized
from persona.gallery.people import load_named
from persona.gallery.store import (
    Facts,
    Store,
    StoredPhoto,
    Templates,
    Threshold,
    check_digest,
    unit,
)
from persona.gallery.upgrade import MOST_LOSS, carry_out, plan_upgrade
from persona.models.cards import Card, read_classes
from persona.models.sources import student_card
from persona.workers import tell_done
from persona.workspace import Workspace

FAR = 1e-3
"""False accept rate of the comparison, where the gallery's threshold has none."""
HELD_OUT = 0.2
"""Share of a person's photos that are held out: one at least, of people with two or more."""
CHANCE = 0.05
"""Largest p-value of a gain that is not taken for chance."""
PSEUDONYM = re.compile("person-[0-9a-f]{16}")
ANEW = "nothing of the gallery is changed; run the command again, and it begins anew"
FOLDER_MODE = 0o700
LOCKS = ".learning"
"""Folder of the locks of galleries that are learned from, beside the default gallery."""


@dataclass(frozen=True)
class Standing:
    """How well a network does for a gallery."""

    model: str
    recognised: float
    """Share of the held-out photos that are named rightly: the nearest person is the right one, and
    the similarity reaches the threshold."""
    rank_1: float
    """Share of the held-out photos whose nearest person is the right one."""
    tar: float
    """TAR at the false accept rate on the other people."""
    threshold: Threshold
    """Threshold of that rate on the other people."""
    known: tuple[bool, ...]
    """Whether each held-out photo is named rightly, as `recognised` counts it."""

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as `persona learn gallery --json` prints them."""
        shown = {name: value for name, value in vars(self).items() if name != "known"}
        return shown | {"threshold": vars(self.threshold)}


@dataclass(frozen=True)
class Outcome:
    """What learning from a gallery gave."""

    before: Standing
    after: Standing
    people: int
    """Number of people who were learned."""
    photos: int
    """Number of their photos."""
    held_out: int
    """Number of held-out photos."""
    test_set: str
    impostors: int
    """Number of pairs of two other people."""
    far: float

    @property
    def gain(self) -> float:
        """Gain in the share of held-out photos that are recognised."""
        return self.after.recognised - self.before.recognised

    @property
    def won(self) -> int:
        """Number of held-out photos that the new network alone names rightly."""
        return sum(new and not old for old, new in self._both())

    @property
    def lost(self) -> int:
        """Number of held-out photos that the old network alone names rightly."""
        return sum(old and not new for old, new in self._both())

    def _both(self) -> list[tuple[bool, bool]]:
        return list(zip(self.before.known, self.after.known, strict=True))

    @property
    def p(self) -> float:
        """Probability of such a gain or loss by chance: exact two-sided sign test (McNemar)."""
        changed, fewer = self.won + self.lost, min(self.won, self.lost)
        ways = sum(math.comb(changed, k) for k in range(fewer + 1))
        return min(1.0, ways / 2 ** (changed - 1)) if changed else 1.0

    @property
    def forgotten(self) -> float:
        """TAR that is lost on other people."""
        return self.before.tar - self.after.tar

    @property
    def is_better(self) -> bool:
        """Whether more is recognised than by chance and little is forgotten, as `--yes` asks."""
        return self.gain > 0 and self.p <= CHANCE and self.forgotten <= MOST_LOSS

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as `persona learn gallery --json` prints it."""
        shown = {**vars(self), "before": self.before.to_json(), "after": self.after.to_json()}
        names = ("gain", "won", "lost", "p", "forgotten")
        return shown | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Material:
    """The kept crops of a gallery, divided."""

    facts: Facts
    card: Card
    """Card of the gallery's student."""
    learned: Mapping[str, Sequence[StoredPhoto]]
    """Photos to learn from by name."""
    held_out: Mapping[str, Sequence[StoredPhoto]]

    @property
    def align(self) -> AlignSpec:
        """Alignment of the packed set. It is `none` if one of its crops has no landmarks."""
        method = self.facts.align.method
        if method in {"landmarks", "template"}:  # kept crops lie on the template already
            method = "template"
        elif method != "mtcnn" or self.lacking:
            method = "none"
        return AlignSpec(method, self.card.image_size, 0)

    @property
    def lacking(self) -> int:
        """Number of photos to learn from that have no landmarks."""
        photos = itertools.chain.from_iterable(self.learned.values())
        return sum(photo.landmarks_62 is None for photo in photos)


def learn_from_gallery(
    store: Store, faces: FaceSet, given: Mapping[str, Any], place: Workspace
) -> Outcome:
    """Teaches the gallery's student the people who are enrolled, and measures both networks.

    The gallery is not changed.

    Args:
        store: the open gallery.
        faces: packed set of other people, on which forgetting is measured and the threshold is
            chosen.
        given: values of `persona learn` by dotted name, with a method.
        place: the folders of sets, models and runs.

    Raises:
        PersonaError: a face is not kept, there are too few people or photos, the network is no
            student of Persona, or a value cannot be used.
    """
    store.check_writable()
    if given.get("method") == "joint":
        raise PersonaError(
            "method joint learns the photos of all whom the student knows, and a gallery has those "
            "of the people who are enrolled: choose finetune, which learns the same ones here"
        )
    material = divide(store, place)
    faces.manifest.check_labelled("--test-set")
    old, _ = load_named(material.facts.network, place)
    check_digest(material.facts, old.digest, store.place)
    far = FAR
    if material.facts.threshold is not None and material.facts.threshold.far is not None:
        far = material.facts.threshold.far
    # Before anything is learned: it finds a set that cannot resolve the rate.
    before, impostors = _stand(Eyes(old, material.facts.align), material, faces, far)
    with _packed(store, material, place) as name:
        config = _config({**given, "student": material.card.id, "on": name, "hold_out": 0.0})
        from persona.learning.run import learn

        try:
            learned = learn(config, place, forget=_forgotten(material, place))
        except CropsError:
            raise _no_teacher(store, material) from None
        except Preempted:
            raise PersonaError(f"learning was told to end: {ANEW}") from None
        except KeyboardInterrupt:
            # Not by --resume, unlike other runs: the packed faces are deleted.
            raise KeyboardInterrupt(f"interrupted: {ANEW}") from None
    new, fresh = load_named(learned, place)
    after, _ = _stand(Eyes(new, fresh.align), material, faces, far)
    return Outcome(
        before,
        after,
        people=len(material.learned),
        photos=sum(map(len, material.learned.values())),
        held_out=sum(map(len, material.held_out.values())),
        test_set=faces.name,
        impostors=impostors,
        far=far,
    )


def _no_teacher(store: Store, material: Material) -> PersonaError:
    """The error for a teacher that cannot take the kept faces."""
    kept = f"{material.card.image_size} px"
    if not material.align.has_landmarks:
        kept += f", {material.lacking} of {sum(map(len, material.learned.values()))} without points"
    return PersonaError(
        f"the teacher cannot take the faces that {store.place} keeps ({kept}): name another one "
        "with --teacher, or choose a method that asks none, such as --method lwf"
    )


def _forgotten(material: Material, place: Workspace) -> set[str]:
    """Those in the student's last layer who came from a gallery and are not enrolled here."""
    known = read_classes(material.card, place.models) if material.card.num_classes else ()
    enrolled = set(map(pseudonym, material.learned))
    return {name for name in known if PSEUDONYM.fullmatch(name)} - enrolled


def _config(given: Mapping[str, Any]) -> LearnConfig:
    return load_learn_config({"tracker": "none", **given}, base={})


def take_over(store: Store, outcome: Outcome, place: Workspace) -> int:
    """Moves the gallery to the network that has learned, and returns the number of templates.

    Raises:
        PersonaError: the gallery was changed meanwhile, or cannot be written.
    """
    plan = plan_upgrade(store, outcome.after.model, place)
    new = replace(plan.new, threshold=outcome.after.threshold)
    return carry_out(store, replace(plan, new=new))


def divide(store: Store, place: Workspace) -> Material:
    """Divides the kept crops of a gallery into those to learn from and those held out.

    Raises:
        PersonaError: a face is not kept, there are too few people or photos, or the network is no
            student of Persona.
    """
    facts = store.facts()
    photos: dict[str, list[StoredPhoto]] = defaultdict(list)
    for name, _, photo in store.photos():
        photos[name].append(photo)
    if facts is None or not photos:
        raise PersonaError(f"{store.place} has nobody to learn")
    card, models = student_card(facts.network, place.models)
    if models != place.models:
        raise PersonaError(
            f"{facts.network} is not in the model store, so it cannot learn: `persona models "
            "import` brings it there"
        )
    everything = [photo for own in photos.values() for photo in own]
    lacking = sum(photo.crop is None for photo in everything)
    if lacking:
        raise PersonaError(
            f"{lacking} of {len(everything)} photos of {store.place} were enrolled without "
            "--keep-crops: a network learns from faces; enrol these people anew with it"
        )
    # Kept from a network before, from which the templates were mapped.
    unlike = [one.align for one in everything if one.align and not one.align.resembles(facts.align)]
    if unlike:
        raise PersonaError(
            f"{len(unlike)} of {len(everything)} photos of {store.place} keep a face that is "
            f"aligned in another way ({unlike[0].method}) than {facts.network} wants it "
            f"({facts.align.method}): a network learns from faces; enrol these people anew with "
            "--keep-crops"
        )
    learned, held_out = {}, {}
    for name, own in photos.items():
        count = 0 if len(own) < 2 else max(1, round(HELD_OUT * len(own)))
        # By a hash, so that they stay the same when people and photos come and go: a photo that was
        # learned before would tell nothing.
        digests = [hashlib.sha256(photo.crop or b"").digest() for photo in own]
        chosen = set(sorted(range(len(own)), key=digests.__getitem__)[:count])
        learned[name] = [photo for n, photo in enumerate(own) if n not in chosen]
        if chosen:
            held_out[name] = [photo for n, photo in enumerate(own) if n in chosen]
    if len(learned) < 2 or not held_out:
        raise PersonaError(
            f"{store.place} has {len(learned)} people, {len(held_out)} of them with two photos or "
            "more: enrol at least two people, and two photos of one, so that the gain can be "
            "measured"
        )
    return Material(facts, card, learned, held_out)


def _stand(eyes: Eyes, material: Material, faces: FaceSet, far: float) -> tuple[Standing, int]:
    """Measures a network: on the held-out photos, and on other people."""
    # As the gallery embeds faces, also where the network is in torch.
    named = replace(eyes.named, network=eyes.network)
    embedding_NE, label_N = faces_of(named, faces, join_processes(eyes.network))
    value, tar, impostors = threshold_at(embedding_NE, label_N, far, faces.name)
    source = f"FAR {power(far)} on {faces.name} ({impostors:,} pairs of two people), TAR {tar:.4f}"
    names = list(material.learned)
    mean_KE = np.stack([unit(_embed(eyes, material.learned[n]).mean(axis=0)) for n in names])
    right: list[bool] = []
    known: list[bool] = []
    for name, photos in material.held_out.items():
        score_PK = _embed(eyes, photos) @ mean_KE.T
        nearest_P = score_PK.argmax(axis=1)
        hits = nearest_P == names.index(name)
        right += hits.tolist()
        known += (hits & (score_PK.max(axis=1) >= np.float32(value))).tolist()
    standing = Standing(
        eyes.named.name,
        float(np.mean(known)),
        float(np.mean(right)),
        tar,
        Threshold(value, source, far),
        tuple(known),
    )
    return standing, impostors


def _embed(eyes: Eyes, photos: Sequence[StoredPhoto]) -> Templates:
    return eyes.embed([photo.as_crop for photo in photos])


class _KeptCrops(RawDataset):
    """Kept crops as a dataset in memory, so that no face lies in a file beside the packed set."""

    def __init__(self, root: Path, material: Material) -> None:
        self.name = "gallery"
        self.align = material.align
        self.photos = {
            f"{pseudonym(person)}/{number:06d}.jpg": photo
            for person, photos in material.learned.items()
            for number, photo in enumerate(photos)
        }
        super().__init__(root)

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos under the digests of their people's names."""
        for source in self.photos:
            yield Photo(source, identity=source.partition("/")[0])

    def pack(self, tasks: Sequence[PhotoTask]) -> Chunk:
        """Packs crops as they are kept, with their landmarks. Nothing is detected."""
        data: list[bytes] = []
        labels: set[int] = set()
        skipped: list[Skipped] = []
        for task in tasks:
            try:
                data.append(pack_crop(task, self._crop(self.photos[task.photo.source])))
                labels.add(task.label)
            except SkipPhoto as reason:
                skipped.append(Skipped(task.photo.source, str(reason)))
        tell_done(len(tasks))
        return Chunk(b"".join(data), len(data), tuple(sorted(labels)), tuple(skipped))

    def _crop(self, photo: StoredPhoto) -> Crop:
        jpeg = photo.crop or b""
        crop = align_whole(RawPhoto(lambda: jpeg), self.align)
        if self.align.method != "mtcnn":
            return crop
        factor = self.align.image_size / read_crop(jpeg).width
        return replace(crop, landmarks_62=resized(photo.landmarks_62, factor))


@contextlib.contextmanager
def _packed(store: Store, material: Material, place: Workspace) -> Iterator[str]:
    """Packs the crops to learn from as a set, and deletes it at the end; gives its name.

    All files lie in the folder of the set. What a killed process, on whichever machine, has left of
    the same gallery is therefore deleted first.

    Raises:
        PersonaError: another process learns from this gallery.
    """
    path = Path(store.place)  # as it was typed, so perhaps relative
    where = str(path.absolute()) if path.exists() else store.place
    name = f"gallery-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    folder = place.shards / name
    lock = place.gallery.parent / LOCKS / name
    with folder_lock(lock, doing="learning from the gallery of"):
        _remove(folder)
        folder.mkdir(parents=True, mode=FOLDER_MODE)
        try:
            dataset = _KeptCrops(folder, material)
            options = PackOptions(align=material.align, workers=0)
            packing = plan_photos(dataset, folder, options)
            packer = replace(packing, build=lambda: dataset.pack, arguments=lambda _: ())
            pack_set(packer, options)
            yield name
        finally:
            _remove(folder)
            _remove(lock)


def pseudonym(name: str) -> str:
    """What a set and a model call a person: a digest that is the same each time."""
    return f"person-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
