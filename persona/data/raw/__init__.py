"""Raw datasets, one file each. Importing this package registers them all."""

from persona.data.raw import agedb, casia, lfw, synthetic, vggface2
from persona.data.raw.base import Index, Pair, Photo, RawDataset, datasets, open_dataset

__all__ = [
    "Index",
    "Pair",
    "Photo",
    "RawDataset",
    "agedb",
    "casia",
    "datasets",
    "lfw",
    "open_dataset",
    "synthetic",
    "vggface2",
]
