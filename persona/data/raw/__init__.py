"""Raw datasets, one file each. `base` defines what a raw dataset is."""

from persona.data.raw.base import (
    DATASET_KINDS,
    DATASETS,
    Index,
    Photo,
    RawDataset,
    open_dataset,
)

__all__ = [
    "DATASETS",
    "DATASET_KINDS",
    "Index",
    "Photo",
    "RawDataset",
    "open_dataset",
]
