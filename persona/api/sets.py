"""A packed set as one object: `persona.open_set`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from persona.data import sets
from persona.extras import needing
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.api.model import Model
    from persona.data.kept_targets import Targets


class FaceSet(sets.FaceSet):
    """A packed set of aligned crops: a folder of tar shards, on this machine or behind a URL.

    Make one with `persona.open_set`.
    """

    def targets(self, teacher: str) -> Targets | None:
        """Returns a teacher's embeddings from beside the set, or None if none are stored."""
        from persona.models.sources import spell

        return super().targets(spell(teacher))

    def keep_targets(
        self,
        teacher: Model,
        *,
        views: int = 2,
        recipe: str | Path | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> Targets:
        """Stores a teacher's embeddings beside the set, so that training can run without it.

        Args:
            teacher: the teacher. Embeddings that are stored already are not made again.
            views: number of views per photo. The first two are the photo and its mirror image.
            recipe: a YAML file whose `augment` draws the further views. More than two views need
                one.
            batch_size: photos per forward pass.
            seed: seed for drawing the views after the first two.

        Raises:
            PersonaError: the crops do not fit the teacher, or the targets that are there do not
                belong to it.

        Example:
            teacher = persona.load("onnx:mobilefacenet.onnx")
            persona.open_set("faces").keep_targets(teacher)
        """
        with needing("keeping targets"):
            from accelerate import Accelerator

            from persona.config import load_config
            from persona.targets import TargetOptions, make_targets

        named = teacher.in_torch()
        self.manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)
        named.network.eval()
        augment = load_config(None if recipe is None else Path(recipe), {}).augment
        options = TargetOptions(views=views, seed=seed, batch_size=batch_size, augment=augment)
        targets, _ = make_targets(self, named, options, Accelerator())
        return targets


def shard_dataset(
    dataset: str,
    *,
    split: str | None = None,
    align: str = "mtcnn",
    image_size: int | None = None,
    min_face: int = 20,
    unlabelled: bool = False,
    workers: int | None = None,
    out: Path | None = None,
    workspace: Workspace | None = None,
) -> FaceSet:
    """Aligns the photos of a raw dataset once and packs them into shards; this is `persona.shard`.

    Call it again after an interruption and it continues. A set that is complete is only opened.

    Args:
        dataset: a known dataset (`lfw`), or `KIND:PATH` for your own photos (`folders:DIR`).
        split: one split of a dataset that has several. None means the first.
        align: `mtcnn`, `landmarks`, `template`, `boxes` or `none`, as in `persona shard --align`.
        image_size: side of the square crops in px. None means 160 px, or 112 px with `template`.
        min_face: side in px of the smallest face to look for, with `mtcnn` and `landmarks`.
        unlabelled: whether to take the photos without identities.
        workers: worker processes. None means one per core; with 0, this process does the work.
        out: the set's folder. None means a folder of the set's name in the workspace's shards.
        workspace: where raw datasets and sets are stored. None means `PERSONA_HOME`, or the
            current folder where it is not set.

    Raises:
        PersonaError: there is no such dataset, it holds nothing to pack, or the folder holds
            another set.

    Example:
        faces = persona.shard("folders:photos", align="landmarks", image_size=112)
    """
    from persona.data.align import AlignSpec, default_size
    from persona.data.pack import PackOptions, pack_photos
    from persona.data.raw import open_dataset

    place = workspace or Workspace.locate()
    source = open_dataset(dataset, place.raw, split, unlabelled=unlabelled)
    size_px = default_size(align) if image_size is None else image_size
    spec = AlignSpec(align, size_px, min_face=min_face)
    packed = pack_photos(
        source,
        out.resolve() if out else place.shards / source.set_name,
        PackOptions(align=spec, workers=workers),
    )
    return FaceSet(packed.folder, packed.manifest)


def draw_faces(
    people: int = 240, *, workers: int | None = None, workspace: Workspace | None = None
) -> tuple[str, str]:
    """Draws synthetic faces on which Persona can be tried; this is `persona.draw_faces`.

    The figures of a student that was trained on them say nothing about real faces.

    Args:
        people: number of identities for training. An eighth as many identities, at least 2, are
            drawn for its test split, and a quarter as many, at least 20, for a set of verification
            pairs like LFW's.
        workers: worker processes. None means one per core.
        workspace: where raw datasets are stored. None means `PERSONA_HOME`, or the current folder
            where it is not set.

    Returns:
        The names of two raw datasets as `persona.shard` takes them: one to train on, and one with
        pairs to test on.

    Example:
        train, test = persona.draw_faces(24)
        faces = persona.shard(train, image_size=64)
    """
    from persona.data.raw.synthetic import Population, Synthetic, SyntheticLFW, draw_datasets

    place = workspace or Workspace.locate()
    tested = max(20, people // 4)
    population = Population(people, max(2, people // 8), tested, pairs_per_fold=min(40, tested))
    draw_datasets(place.raw, population, workers or len(os.sched_getaffinity(0)))
    return Synthetic.name, SyntheticLFW.name


def load_set(
    name: str, *, cache: Path | None = None, workspace: Workspace | None = None
) -> FaceSet:
    """Opens a packed set; this is `persona.open_set`.

    Args:
        name: the set's name, the dataset's name, a folder, or a URL.
        cache: folder that keeps the shards of a set behind a URL. None means that shards are
            deleted after reading.
        workspace: where sets are stored. None means `PERSONA_HOME`, or the current folder where it
            is not set.

    Raises:
        PersonaError: there is no such set (`NotPacked`); the message names the command that makes
            it.

    Example:
        >>> import persona
        >>> persona.open_set("nowhere")
        Traceback (most recent call last):
        ...
        persona.errors.NotPacked: ...
    """
    place = workspace or Workspace.locate()
    found = sets.open_set(name, place.shards, cache)
    return FaceSet(found.folder, found.manifest)
