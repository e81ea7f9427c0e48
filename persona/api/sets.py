"""A packed set as one object: `persona.open_set`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.data.shards import Manifest, PairTable, open_set, read_metas, read_pairs
from persona.data.shards import verify_set as verify_shards
from persona.data.storage import SetFolder
from persona.errors import PersonaError
from persona.extras import needing
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.api.model import Model
    from persona.data.stream import EpochLoader
    from persona.data.targets import Targets


class FaceSet:
    """A packed set of aligned faces: a folder of tar shards, here or behind a URL.

    Make one with `persona.open_set`.
    """

    def __init__(self, folder: SetFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @property
    def name(self) -> str:
        """As commands take it."""
        return self.manifest.name

    @property
    def digest(self) -> str:
        """SHA-256 over its shards: equal digests mean equal photos in equal order."""
        return self.manifest.digest

    @property
    def identities(self) -> tuple[str, ...]:
        """Its people, sorted; a label is a place in this list."""
        return self.manifest.classes

    def __len__(self) -> int:
        return self.manifest.samples

    def __repr__(self) -> str:
        align = self.manifest.align
        return (
            f"FaceSet({self.name!r}, {len(self):,} samples, {self.manifest.identities:,} "
            f"identities, crops of {align.image_size} px by {align.method})"
        )

    def place(self, workspace: Workspace) -> str:
        """As the set is named in a run: by its name where it lies among the packed sets."""
        own = workspace.shards / self.name
        return self.name if str(self.folder) == str(own) else str(self.folder)

    def loader(
        self,
        *,
        batch_size: int,
        training: bool = False,
        seed: int = 0,
        epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> EpochLoader:
        """The batches of one epoch.

        A batch's `images` are (B, 3, H, W) uint8, channels last in memory; `labels` are (B,) int64
        places in `identities`; `keys` say which samples they are.

        Args:
            batch_size: samples a batch on each rank.
            training: shuffle and drop the tail that fills no batch; else keep order and everything.
            seed: of the shuffling.
            epoch: its number; another number is another order.
            skip: batches to leave out at the beginning, to resume an epoch.
            rank: this process.
            world_size: how many processes read the set together.
            workers: loader processes; 0 decodes in this one.

        Raises:
            PersonaError: there is not one batch for every rank.
        """
        with needing("a loader of batches"):
            from persona.data.stream import build_loader

        return build_loader(
            self.folder,
            self.manifest,
            batch_size=batch_size,
            training=training,
            seed=seed,
            epoch=epoch,
            skip=skip,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )

    def pairs(self) -> PairTable:
        """Its verification pairs, as columns of folds, keys and whether they are one person.

        Raises:
            PersonaError: the set has none.
        """
        if not self.manifest.pairs:
            raise PersonaError(f"set {self.name} has no pairs: choose a set with pairs, like lfw")
        return read_pairs(self.folder, self.manifest)

    def metas(self) -> dict[int, dict[str, Any]]:
        """What the set knows of each sample (identity, source, box), by key."""
        return read_metas(self.folder, self.manifest)

    def verify(self) -> None:
        """Reads every byte of the set against its checksums.

        Raises:
            PersonaError: naming every file that is missing or damaged.
        """
        verify_shards(self.folder, self.manifest)

    def targets(self, teacher: str) -> Targets | None:
        """What is kept of a teacher's embeddings beside the set; None: nothing."""
        from persona.data.targets import find_targets

        return find_targets(self.folder, teacher)

    def keep_targets(
        self, teacher: Model, *, views: int = 2, batch_size: int = 128, seed: int = 0
    ) -> Targets:
        """Keeps a teacher's embeddings beside the set; training then runs without the teacher.

        Args:
            teacher: the network; embeddings that are there already are not made again.
            views: of each photo; the first two are the photo and its mirror image.
            batch_size: photos a forward.
            seed: of the views from the third on.

        Raises:
            PersonaError: the crops are not the teacher's, or targets of another teacher are there.
        """
        with needing("keeping targets"):
            from accelerate import Accelerator

            from persona.targets import TargetOptions, make_targets

        named = teacher.in_torch()
        self.manifest.check_crops(named.name, named.image_size, named.network.uses_landmarks)
        named.network.eval()
        options = TargetOptions(views=views, seed=seed, batch_size=batch_size)
        targets, _ = make_targets(self.folder, self.manifest, named, options, Accelerator())
        return targets

    def webdataset(self) -> Any:
        """The same set as a plain `webdataset.WebDataset`, in order and undecoded."""
        with needing("a plain webdataset"):
            import webdataset

        count = range(len(self.manifest.shards))
        paths = [str(self.manifest.shard_path(self.folder, number)) for number in count]
        return webdataset.WebDataset(paths, shardshuffle=False)


def shard_dataset(
    dataset: str,
    *,
    split: str | None = None,
    align: str = "mtcnn",
    image_size: int | None = None,
    unlabelled: bool = False,
    workers: int | None = None,
    out: Path | None = None,
    workspace: Workspace | None = None,
) -> FaceSet:
    """Aligns a raw dataset once and packs it into shards; this is `persona.shard`.

    Interrupted and called again, it goes on where it was; a set that is there is opened.

    Args:
        dataset: a known dataset (`lfw`), or `KIND:PATH` for photos of your own (`folders:DIR`).
        split: of a dataset that has several; None: the first.
        align: `mtcnn`, `landmarks`, `template`, `boxes` or `none`, as `persona shard --align`.
        image_size: side of the square crops, px; None: 160, or 112 with `template`.
        unlabelled: take the photos without identities.
        workers: processes; None: one a core, 0: this process alone.
        out: the set's folder; None: one of the set's name below the workspace's shards.
        workspace: where raw datasets and sets lie; None: `PERSONA_HOME`, else the current folder.

    Raises:
        PersonaError: no such dataset, nothing to pack, or the folder holds another set.

    Example:
        faces = persona.shard("folders:photos", align="landmarks", image_size=112)
    """
    from persona.data.align import AlignSpec, default_size
    from persona.data.pack import PackOptions, pack_photos
    from persona.data.raw import open_dataset

    place = workspace or Workspace.locate()
    source = open_dataset(dataset, place.raw, split, unlabelled=unlabelled)
    spec = AlignSpec(align, image_size or default_size(align))
    packed = pack_photos(
        source,
        out.resolve() if out else place.shards / source.set_name,
        PackOptions(align=spec, workers=workers),
    )
    return FaceSet(packed.folder, packed.manifest)


def draw_faces(
    people: int = 240, *, workers: int | None = None, workspace: Workspace | None = None
) -> tuple[str, str]:
    """Draws faces to try Persona on; this is `persona.draw_faces`.

    They are drawings: what a student learns of them says nothing of real people.

    Args:
        people: identities to train on; an eighth as many more are drawn to test on, and a quarter
            as many, at least 20, with verification pairs as LFW has them.
        workers: processes; None: one a core.
        workspace: where raw datasets lie; None: `PERSONA_HOME`, else the current folder.

    Returns:
        The names of two raw datasets, to train and to test on, as `persona.shard` takes them.

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
        name: its name, a dataset's name, its folder, or its URL.
        cache: where the shards of a set behind a URL stay; None: they are deleted after reading.
        workspace: where sets lie; None: `PERSONA_HOME`, else the current folder.

    Raises:
        PersonaError: there is no such set, with the command that makes it.

    Example:
        >>> import persona
        >>> persona.open_set("nowhere")
        Traceback (most recent call last):
        ...
        persona.errors.PersonaError: ...
    """
    place = workspace or Workspace.locate()
    return FaceSet(*open_set(name, place.shards, cache))
