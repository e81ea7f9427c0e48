"""Raw datasets, one file each; what one is stands in `base`."""

from persona.data.raw.base import (
    DATASET_KINDS,
    DATASETS,
    Index,
    Pair,
    Photo,
    RawDataset,
    open_dataset,
)

__all__ = [
    "DATASETS",
    "DATASET_KINDS",
    "Index",
    "Pair",
    "Photo",
    "RawDataset",
    "open_dataset",
]
