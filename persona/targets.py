"""Writes a teacher's embeddings beside a packed set: `persona targets SET --teacher NAME`.

1. Each of n processes takes every n-th shard. Shards with finished files are skipped.
2. The teacher embeds all views of the shard's photos, into memory-mapped arrays on disk. Progress
   is noted after each batch, so that a killed run can continue from there.
3. The main process hashes the files and writes the card. Without the card there are no targets.

The format is in persona/data/kept_targets.py. On several processes: `accelerate launch -m persona
targets …`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from persona.config import PRECISIONS, AugmentConfig, Checked, among, between, to_dict
from persona.data.align.spec import AlignSpec
from persona.data.kept_targets import (
    CARD,
    HEAD,
    MAX_VIEWS,
    Features,
    TargetFile,
    Targets,
    check_targets,
    file_names,
    photo_views,
    photos_of,
    read_targets,
    short_name,
    targets_folder,
    write_targets,
)
from persona.data.sets import FaceSet, of_shards
from persona.data.shards import key_of
from persona.data.storage import on_disk
from persona.data.stream import Batch, build_loader
from persona.data.transforms import apply_views, normalise, view_landmarks
from persona.data.views import FLIP_ONLY, Views, view_columns
from persona.errors import PersonaError
from persona.evaluation.sanity import check_teacher
from persona.files import LARGEST_LIST, folder_lock, read_json, sha256_file, write_json
from persona.memory import keep_freed_memory
from persona.models.output import freeze
from persona.models.sources import NamedNetwork, load_network, spell, teacher_names
from persona.models.store import save_head
from persona.progress import progress_bar
from persona.workers import in_threads

log = logging.getLogger(__name__)

PLAN = ".plan.json"
KINDS: tuple[type[np.floating[Any]], ...] = (np.float16, np.float32)
"""Dtypes of the two files of a shard: embeddings and views."""


@dataclass(frozen=True)
class TargetOptions(Checked):
    """Options of the targets."""

    views: int = 2
    """Views per photo. The first two are the photo and its mirror image."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the third and further views."""
    seed: int = between(0, 2**31 - 1, default=0)
    """Seed of the third and further views."""
    batch_size: int = between(1, 1_000_000, default=128)
    """Views per forward pass of one process."""
    workers: int = between(0, 1024, default=1)
    precision: str = among(PRECISIONS, default="no")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.views <= MAX_VIEWS:
            raise PersonaError(f"{self.views} views: choose 2 (photo and mirror) to {MAX_VIEWS}")
        if self.views > 2 and not self.augment.beyond_flip:
            raise PersonaError(
                f"{self.views} views of a recipe that only mirrors: name one with `augment` by "
                "--config, or leave --views out"
            )

    @property
    def drawn_by(self) -> AugmentConfig:
        """The augmentation whose columns the views have."""
        return self.augment if self.views > 2 else FLIP_ONLY


def check_teacher_exists(teacher: str, models: Path, align: AlignSpec) -> None:
    """Checks, before hours of packing, that a teacher exists and fits the crops.

    Raises:
        PersonaError: there is no such teacher, or it needs other crops.
    """
    _check_is_teacher(teacher, models)
    named = load_network(spell(teacher), models)
    if named.network.uses_landmarks and not align.has_landmarks:
        raise PersonaError(
            f"{teacher} wants five points of each face: pack with --align mtcnn, landmarks "
            "or template"
        )
    if named.image_size not in {None, align.image_size}:
        raise PersonaError(
            f"{teacher} was trained on {named.image_size} px: pack with --image-size "
            f"{named.image_size}"
        )


def keep_targets(
    faces: FaceSet,
    teacher: str,
    models: Path,
    options: TargetOptions | None = None,
) -> tuple[Targets, bool, bool]:
    """Makes the targets of a teacher given by name. All processes of the launcher call it.

    Returns:
        The card, whether anything was done, and whether this is the main process.

    Raises:
        PersonaError: there is no such teacher, it needs other crops, it does not tell the people of
            the set apart, or `make_targets` fails.
    """
    _check_is_teacher(teacher, models)
    accelerator = Accelerator()
    named = load_network(spell(teacher), models)
    faces.manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)
    named.network.eval().to(accelerator.device)
    if named.network.from_elsewhere:
        check_teacher(named, faces, accelerator)
    targets, fresh = make_targets(faces, named, options or TargetOptions(), accelerator)
    main = accelerator.is_main_process
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return targets, fresh, main


def _check_is_teacher(teacher: str, models: Path) -> None:
    if teacher == "none":
        raise PersonaError("targets are a teacher's: name one with --teacher")
    names = teacher_names(teacher, models)
    if len(names) > 1:
        raise PersonaError(
            f"targets are kept of one teacher: run the command for each of {', '.join(names)}, and "
            "`persona distill --teacher` with the list then reads them all"
        )


def make_targets(
    faces: FaceSet,
    teacher: NamedNetwork,
    options: TargetOptions,
    accelerator: Accelerator,
) -> tuple[Targets, bool]:
    """Computes the targets that are missing; returns the card and whether anything was done.

    Raises:
        PersonaError: there are other targets of this teacher, another process is making them, or
            an embedding is not finite in float16.
    """
    manifest = faces.manifest
    place = targets_folder(on_disk(faces.folder, "keeping targets"), teacher.name)
    head = teacher.network.head() if teacher.network.num_classes else None
    plan = {
        "weights": teacher.digest,
        "views": options.views,
        "augment": to_dict(options.augment) if options.views > 2 else None,
        "seed": options.seed if options.views > 2 else None,
        "precision": options.precision,
        "shards": [shard.sha256 for shard in manifest.shards],
    }
    rank, world = accelerator.process_index, accelerator.num_processes
    place.mkdir(parents=True, exist_ok=True)
    with folder_lock(place / f"rank-{rank}", doing="making targets in"):
        finished = _claim(place, plan, write=accelerator.is_main_process)
        if finished is not None:
            check_targets(faces, finished, deep=False)
            return finished, False
        accelerator.wait_for_everyone()
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        freeze(teacher.network).to(accelerator.device)
        total = manifest.samples * photos_of(manifest) * options.views
        mine = range(rank, len(manifest.shards), world)
        with progress_bar(
            f"targets of {teacher.name}",
            total=-(-total // world),
            unit="views",
            enabled=accelerator.is_main_process,
        ) as advance:
            for number in mine:
                for done in _embed_shard(faces, teacher, options, accelerator, number):
                    advance(done)
        accelerator.wait_for_everyone()
    targets = Targets(
        teacher=short_name(teacher.name),
        weights_sha256=teacher.digest,
        embedding_size=teacher.network.embedding_size,
        head=head.kind if head is not None else "none",
        num_classes=teacher.network.num_classes,
        trained_on=teacher.trained_on,
        classes=teacher.classes,
        views=options.views,
        augment=options.drawn_by,
        seed=options.seed,
        files=(),
    )
    if accelerator.is_main_process:
        head_sha256 = None
        if head is not None:
            save_head(place / HEAD, head)
            head_sha256 = sha256_file(place / HEAD)
        files = []
        for number, shard in enumerate(manifest.shards):
            features, views = (place / name for name in file_names(number))
            photos = shard.samples * photos_of(manifest)
            files.append(
                TargetFile(shard.sha256, photos, sha256_file(features), sha256_file(views))
            )
        targets = replace(targets, files=tuple(files), head_sha256=head_sha256)
        # Files of an earlier run may have changed since. Incomplete targets must get no card.
        check_targets(faces, targets, deep=False)
        write_targets(place, targets)
        for lock in place.glob("rank-*/.lock"):
            lock.unlink()
            lock.parent.rmdir()
    accelerator.wait_for_everyone()
    return read_targets(place), True


def _claim(place: Path, plan: dict[str, object], *, write: bool) -> Targets | None:
    """Returns the targets of this plan if they are finished, else reserves the folder for the plan.

    Raises:
        PersonaError: the folder holds targets of another plan.
    """
    known = place / PLAN
    if known.is_file():
        earlier = read_json(known, what="plan of targets", limit=LARGEST_LIST)
        if not isinstance(earlier, dict):
            raise PersonaError(f"{known} is damaged: remove {place} and make the targets again")
        differing = sorted(name for name in plan if earlier.get(name) != plan[name])
        if differing:
            raise PersonaError(
                f"{place} holds targets that differ in {', '.join(differing)}: remove that folder "
                "to make them again"
            )
        return read_targets(place) if (place / CARD).is_file() else None
    if (place / CARD).is_file():
        raise PersonaError(f"{place} holds targets from elsewhere: remove that folder first")
    if write:
        write_json(known, plan)
    return None


def _embed_shard(
    faces: FaceSet,
    teacher: NamedNetwork,
    options: TargetOptions,
    accelerator: Accelerator,
    number: int,
) -> Iterator[int]:
    """Fills the two files of one shard; yields the number of views done since the last yield."""
    place = targets_folder(on_disk(faces.folder, "keeping targets"), teacher.name)
    final = [place / name for name in file_names(number)]
    roles, shard = photos_of(faces.manifest), faces.manifest.shards[number]
    photos = shard.samples * roles
    if all(path.is_file() for path in final):
        yield photos * options.views
        return
    partial = [path.with_name(f".{path.name}.partial") for path in final]
    journal = place / f".{number:06d}.done"
    shapes = (
        (photos, options.views, teacher.network.embedding_size),
        (photos, options.views, len(view_columns(options.drawn_by))),
    )
    done = _resume(partial, shapes, journal)
    if not done:
        # Killed between the two renamings, a run leaves a journal of arrays that are full.
        journal.unlink(missing_ok=True)
        for path, kind, shape in zip(partial, KINDS, shapes, strict=True):
            _reserve(path, kind, shape)
    features, views = (np.lib.format.open_memmap(path, mode="r+") for path in partial)
    # As many samples as fill one forward pass with their views.
    size = max(1, options.batch_size // (options.views * roles))
    skip = done // (size * roles) if done < photos else shard.samples
    row = min(skip * size * roles, photos)
    yield row * options.views
    loader = build_loader(
        of_shards(faces, slice(number, number + 1)),
        batch_size=size,
        training=False,
        skip=skip,
        workers=options.workers,
    )

    def embed(batch: Batch) -> tuple[Views, Features]:
        drawn = np.stack(
            [
                photo_views(options.drawn_by, options.views, options.seed, key, role)
                for key in batch.keys.tolist()
                for role in range(roles)
            ]
        )
        return drawn, _features(teacher, batch, drawn, accelerator, options)

    # While a network with a runtime of its own works, a second thread prepares the next photos.
    own = teacher.network.computes_itself and accelerator.device.type == "cpu"
    for drawn, embedded in in_threads(embed, loader, 2) if own else map(embed, loader):
        count = len(drawn)
        rows = slice(row, row + count)
        views[rows], features[rows] = drawn, embedded
        row += count
        views.flush()
        features.flush()
        journal.write_text(str(row))
        yield count * options.views
    del features, views
    for source, target in zip(partial, final, strict=True):
        source.replace(target)
    journal.unlink(missing_ok=True)


def _reserve(path: Path, kind: type[np.floating[Any]], shape: tuple[int, ...]) -> None:
    """Creates an array of zeros on disk and allocates all its space.

    If the disk filled up under a memory-mapped file, SIGBUS would kill the process. Allocating the
    space first raises an OSError instead.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
        size = math.prod(shape) * np.dtype(kind).itemsize
        os.posix_fallocate(file.fileno(), 0, file.tell() + size)


def _resume(partial: list[Path], shapes: tuple[tuple[int, ...], ...], journal: Path) -> int:
    """The number of photos of this shard that a killed run had finished."""
    try:
        done = int(journal.read_text())
        kept = [np.load(path, mmap_mode="r", allow_pickle=False).shape for path in partial]
    except (OSError, ValueError):
        return 0
    return done if kept == list(shapes) and 0 < done <= shapes[0][0] else 0


@torch.inference_mode()
def _features(
    teacher: NamedNetwork,
    batch: Batch,
    views_PVN: Views,
    accelerator: Accelerator,
    options: TargetOptions,
) -> Features:
    """Computes the features of a batch's photos, (photos, views, E) float16.

    A forward pass has at most `batch_size` views.
    """
    photos, views = views_PVN.shape[:2]
    images = batch.images.to(accelerator.device).repeat_interleave(views, dim=0)
    rows = np.ascontiguousarray(views_PVN.reshape(photos * views, -1))
    landmarks = batch.landmarks.repeat_interleave(views, dim=0)
    landmarks = view_landmarks(landmarks, rows, images.shape[2], options.drawn_by)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)
    parts = []
    for start in range(0, len(images), options.batch_size):
        part = slice(start, start + options.batch_size)
        # In float32, as in training: student and teacher must see the same pixels.
        pixels = normalise(apply_views(images[part], rows[part], options.drawn_by))
        with torch.autocast(accelerator.device.type, dtype=dtype, enabled=dtype is not None):
            parts.append(teacher.network.features(pixels, landmarks[part]).float().cpu())
    features = torch.cat(parts)
    finite = torch.isfinite(features.half()).all(dim=1)
    if not finite.all():
        roles = photos // len(batch.keys)
        sample = int(finite.logical_not().nonzero()[0]) // (views * roles)
        raise PersonaError(
            f"teacher {teacher.name} gives numbers that are not finite in float16 for sample "
            f"{key_of(int(batch.keys[sample]))}: is it the right network, and are its settings?"
        )
    return features.half().numpy().reshape(photos, views, -1)
