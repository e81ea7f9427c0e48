"""Raw datasets, one file each. Importing this package registers them all."""

from persona.data.raw import (
    agedb,
    bins,
    casia,
    lfw,
    lists,
    parquet,
    recordio,
    synthetic,
    tars,
    vggface2,
)
from persona.data.raw.base import (
    Index,
    Pair,
    Photo,
    RawDataset,
    datasets,
    kinds,
    open_dataset,
)

__all__ = [
    "Index",
    "Pair",
    "Photo",
    "RawDataset",
    "agedb",
    "bins",
    "casia",
    "datasets",
    "kinds",
    "lfw",
    "lists",
    "open_dataset",
    "parquet",
    "recordio",
    "synthetic",
    "tars",
    "vggface2",
]
