"""`--teacher A,B`: opens several teachers as one, their kept targets or their networks.

If all members have kept targets of the set, these are read. Otherwise all members run online. The
projection is read from beside the set, or fitted once by the main process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState

from persona.config import DistillConfig
from persona.data.ensembles import (
    FIT_PHOTOS,
    EnsembleTargets,
    Vectors,
    check_same_views,
    fit_projection,
    joined_digest,
    kept_embeddings,
    projection_path,
    read_projection,
    write_projection,
)
from persona.data.kept_targets import Targets
from persona.data.sets import FaceSet
from persona.data.stream import build_loader
from persona.data.transforms import normalise
from persona.models import sources
from persona.models.ensemble import EnsembleNetwork
from persona.models.output import freeze
from persona.models.sources import NamedNetwork

log = logging.getLogger(__name__)

FIT_BATCH = 64
FindKept = Callable[[DistillConfig], Targets | None]


def open_ensemble(
    config: DistillConfig,
    names: tuple[str, ...],
    models: Path,
    train: FaceSet,
    find_kept: FindKept,
) -> tuple[NamedNetwork | None, EnsembleTargets | None]:
    """Opens several teachers as one: the network, or the targets that are kept of all members.

    Args:
        config: the recipe.
        names: the names of the teachers.
        models: the model store.
        train: the train set.
        find_kept: finds the kept targets of the teacher of a recipe.

    Raises:
        PersonaError: a teacher is unknown or does not fit the set, or the set is remote.
    """
    kept: list[Targets] = []
    for name in names:
        found = find_kept(dataclasses.replace(config, teacher=name))
        if found is None:
            sources.check_named(name, models)
            if kept:
                log.info("the set keeps no targets of %s: all teachers run online", name)
            break
        kept.append(found)
    size = config.student.embedding_size
    if len(kept) == len(names):
        check_same_views(kept)
        sizes = [targets.embedding_size for targets in kept]
        projection = find_projection(
            *(train, [targets.weights_sha256 for targets in kept], sizes, size),
            embeddings=lambda: kept_embeddings(train, kept),
        )
        return None, EnsembleTargets(tuple(kept), projection)
    for name in names:  # all of them, before any is loaded
        sources.check_named(name, models)
    members = [sources.load_network(name, models) for name in names]
    for member in members:
        train.manifest.check_crops(member.name, member.image_size, member.network.uses_landmarks)
    network = EnsembleNetwork(members)
    digests = [member.digest for member in members]
    sizes = [member.network.embedding_size for member in members]
    projection = find_projection(
        *(train, digests, sizes, size),
        embeddings=lambda: online_embeddings(train, network),
    )
    network.project_by(torch.from_numpy(projection))
    digest = joined_digest(digests, projection)
    return NamedNetwork(config.teacher, network, "embeddings alone", (), None, digest), None


def find_projection(
    train: FaceSet,
    digests: list[str],
    sizes: list[int],
    wanted: int | None,
    *,
    embeddings: Callable[[], Iterable[Vectors]],
) -> Vectors:
    """Reads the projection of these teachers from beside the set; fits it if there is none.

    Args:
        train: the train set.
        digests: digests of the teachers' weights.
        sizes: the teachers' embedding sizes.
        wanted: size of the joined embedding. None means that of the widest teacher.
        embeddings: yields the concatenated embeddings to fit it on.

    Raises:
        PersonaError: the set is remote, or the file is damaged.
    """
    size = min(wanted or max(sizes), sum(sizes))
    path = projection_path(train, digests, size)
    with PartialState().main_process_first():
        found = read_projection(path, sum(sizes), size)
        if found is None:
            found = fit_projection(embeddings(), size)
            write_projection(path, found)
            log.info("fitted the projection of %d teachers to %d dimensions", len(sizes), size)
    return found


@torch.inference_mode()
def online_embeddings(train: FaceSet, network: EnsembleNetwork) -> Iterator[Vectors]:
    """Yields the concatenated embeddings of the set's first photos, from the networks."""
    device = PartialState().device
    freeze(network).to(device)
    loader = build_loader(train, batch_size=FIT_BATCH, training=False)
    left = FIT_PHOTOS
    for batch in loader:
        found = network.concatenated(normalise(batch.images.to(device)), batch.landmarks)
        yield found[:left].cpu().numpy()
        left -= len(found)
        if left <= 0:
            break
