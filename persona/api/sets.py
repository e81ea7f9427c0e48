"""A packed set as one object: `persona.open_set`."""

from __future__ import annotations

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
