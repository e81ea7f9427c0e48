"""What a training on a set of N photos takes: bytes, network and images a second. No torch.

Nothing is measured here. The rates are those of docs/measurements.md, or the user's own. A rate
that nobody has measured is unknown, and limits nothing. docs/scaling.md explains each figure.

1. A photo's bytes: its crop and metadata in a shard, and the teacher's embeddings of its views.
2. What each part of a training can give: the loader processes, the train step, each machine's
   network, and the storage. The lowest of them is the rate of the run.
3. What follows from it: the time of an epoch, and the bytes that the machines read a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from persona.config import AugmentConfig
from persona.data.pack import BYTES_PER_PIXEL, BYTES_PER_SHARD
from persona.data.tars import BLOCK
from persona.data.views import view_columns
from persona.errors import PersonaError

STREAMING = "docs/measurements.md, Streaming"
ALIGNMENT = "docs/measurements.md, Alignment"
PER_WORKER = 11_361.0
"""Images a second of one loader process, of crops of 160 px (docs/measurements.md, Streaming)."""
MEASURED_SIDE_PX = 160
DECODING = 74 / 85
"""Share of decoding in the time of such an image; it grows with the pixels, the rest does not."""
WORKER_MB = 359
"""Peak memory of a loader process in MB (docs/measurements.md, Streaming)."""
ALIGNED_PER_CORE = 178.0 / 2
"""Photos a second that `--align mtcnn` packs on one core (docs/measurements.md, Alignment)."""
METADATA_BYTES = BLOCK
"""Bytes of a sample's JSON in a tar: a few hundred, in one whole block."""
GPUS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Rate:
    """A rate with its source."""

    value: float | None
    """None means that it is unknown."""
    source: str


@dataclass(frozen=True)
class Plan:
    """A set and the machines that train on it. The defaults are those of the other commands."""

    photos: int
    image_size: int = 112
    """Side of the crops in px."""
    crop_bytes: int | None = None
    """Bytes of a crop as JPEG. None estimates them from its pixels, as `persona shard` does."""
    shard_size: int | None = None
    """Samples of a shard. None means as many as make about 100 MB."""
    embedding_size: int = 512
    """Size of the teacher's embeddings."""
    views: int = 2
    """Kept views of each photo. 0 means that no targets are kept."""
    batch_size: int = 128
    """Samples in a batch of one GPU."""
    workers: int = 4
    """Loader processes of each GPU."""
    gpus_per_machine: int = 8
    loader_rate: float | None = None
    """Images a second of one loader process. None takes the measured rate."""
    step_rate: float | None = None
    """Images a second of a train step on one GPU. It is not among the measured rates."""
    network_gbit: float | None = None
    """Gbit/s that a machine reads from the storage."""
    storage_gb: float | None = None
    """GB/s that the storage gives to all machines together."""
    teacher_rate: float | None = None
    """Faces a second of the teacher on one GPU, for `persona targets`."""
    align_rate: float | None = None
    """Photos a second that one core packs. None takes the measured rate of MTCNN."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            PersonaError: one of them is not possible.
        """
        for name, value in vars(self).items():
            least = 0 if name == "views" else 1 if isinstance(value, int) else math.ulp(0.0)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise PersonaError(
                    f"{name.replace('_', ' ')} {value}: choose a number "
                    + (f"of at least {least}" if isinstance(value, int) else "above 0")
                )

    # --- bytes ---------------------------------------------------------------------------------

    @property
    def jpeg_bytes(self) -> int:
        """Bytes of a crop."""
        return self.crop_bytes or round(BYTES_PER_PIXEL * self.image_size**2)

    @property
    def sample_bytes(self) -> int:
        """Bytes of a photo in a shard: two headers of the tar, the crop and the JSON."""
        return 2 * BLOCK + -(-self.jpeg_bytes // BLOCK) * BLOCK + METADATA_BYTES

    @property
    def target_bytes(self) -> int:
        """Bytes of a photo's kept targets: of each view the embedding (float16) and its numbers."""
        columns = len(view_columns(AugmentConfig()))
        return self.views * (2 * self.embedding_size + 4 * columns)

    @property
    def shard_samples(self) -> int:
        """Samples of a shard."""
        return self.shard_size or max(
            1, int(BYTES_PER_SHARD / (BYTES_PER_PIXEL * self.image_size**2))
        )

    def set_figures(self) -> dict[str, float | int | None]:
        """What the set takes, whatever trains on it.

        Hours of the teacher are those of one GPU, and hours of packing those of one core.
        """
        teacher = self.teacher_rate
        per_photo = max(self.views, 1)
        return {
            "photos": self.photos,
            "sample_bytes": self.sample_bytes,
            "target_bytes": self.target_bytes,
            "shard_bytes": self.photos * self.sample_bytes,
            "targets_bytes": self.photos * self.target_bytes,
            "shards": -(-self.photos // self.shard_samples),
            "packing_core_hours": self.photos / (self.align_rate or ALIGNED_PER_CORE) / 3600,
            "teacher_gpu_hours": teacher and self.photos * per_photo / teacher / 3600,
        }

    # --- rates ---------------------------------------------------------------------------------

    def rates(self) -> dict[str, Rate]:
        """The rates that the plan uses, each with its source."""
        pixels = (self.image_size / MEASURED_SIDE_PX) ** 2
        loader = PER_WORKER / (DECODING * pixels + 1 - DECODING)
        scaled = "" if self.image_size == MEASURED_SIDE_PX else ", by the pixels of a crop"
        measured = {
            "loader process, images/s": Rate(loader, STREAMING + scaled),
            "packing on a core, photos/s": Rate(ALIGNED_PER_CORE, f"{ALIGNMENT} (--align mtcnn)"),
        }
        own = {
            "loader process, images/s": self.loader_rate,
            "train step on a GPU, images/s": self.step_rate,
            "teacher on a GPU, faces/s": self.teacher_rate,
            "packing on a core, photos/s": self.align_rate,
            "network of a machine, Gbit/s": self.network_gbit,
            "storage, GB/s": self.storage_gb,
        }
        unknown = Rate(None, "not known")
        return {
            name: measured.get(name, unknown) if value is None else Rate(value, "given")
            for name, value in own.items()
        }

    def on(self, gpus: int) -> dict[str, float | int | str]:
        """What a run on so many GPUs does.

        Returns:
            `images_per_s` of all GPUs and the part that limits them (`limited_by`), `epoch_s`,
            `network_gbit` of each machine and `storage_gb_per_s` of all at that rate, `read_bytes`
            of an epoch from a remote set, `read_factor` of these over the set's bytes, `dropped`
            (samples that at most are left out of an epoch), and `loader_gb` of memory of each
            machine.

        Raises:
            PersonaError: there is no GPU, or not one batch for each.
        """
        if gpus < 1:
            raise PersonaError(f"{gpus} GPUs: choose 1 or more")
        if self.photos < gpus * self.batch_size:
            raise PersonaError(
                f"{self.photos} photos are fewer than a batch of {self.batch_size} on each of "
                f"{gpus} GPUs: choose fewer GPUs or a smaller batch size"
            )
        machines = -(-gpus // self.gpus_per_machine)
        on_each = min(gpus, self.gpus_per_machine)
        # Shards of a remote set are downloaded whole. A cut between two ranks lies in one shard,
        # which both download.
        shards = -(-self.photos // self.shard_samples)
        factor = (shards + gpus - 1) / shards
        whole = self.photos * (self.sample_bytes + self.target_bytes)
        per_image = factor * (self.sample_bytes + self.target_bytes)
        loader = self.rates()["loader process, images/s"].value
        assert loader is not None
        limits = {"loader": gpus * self.workers * loader}
        if self.step_rate is not None:
            limits["train step"] = gpus * self.step_rate
        if self.network_gbit is not None:
            limits["network"] = machines * self.network_gbit * 1e9 / 8 / per_image
        if self.storage_gb is not None:
            limits["storage"] = self.storage_gb * 1e9 / per_image
        limited_by = min(limits, key=lambda name: limits[name])
        rate = limits[limited_by]
        return {
            "gpus": gpus,
            "machines": machines,
            "images_per_s": rate,
            "limited_by": limited_by,
            "epoch_s": self.photos / rate,
            "network_gbit": rate * per_image * 8 / 1e9 / machines,
            "storage_gb_per_s": rate * per_image / 1e9,
            "read_bytes": round(factor * whole),
            "read_factor": factor,
            "dropped": gpus * self.batch_size - 1,
            "loader_gb": on_each * self.workers * WORKER_MB / 1000,
        }
