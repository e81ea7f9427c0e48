from __future__ import annotations

import errno
import multiprocessing
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NO_ALIGN, SIZE_PX
from PIL import Image
from torch import Tensor

from persona.data import samples, stream
from persona.data.pack import Packed, pack_photos, pack_triplets
from persona.data.raw import open_dataset
from persona.data.samples import EpochPlan, Span, read_batches
from persona.data.shards import tar_end, tar_sample
from persona.data.stream import SLABS, EpochLoader, build_loader
from persona.data.tars import ShardReader
from persona.data.transforms import normalise
from persona.data.triplets import make_triplets
from persona.errors import PersonaError


def keys_of(packed: Packed, **options) -> list[int]:
    loader = build_loader(packed.faces, **options)
    return [int(key) for batch in loader for key in batch.keys]


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [(1, 0), (1, 2), (1, 7), (2, 0), (2, 1), (2, 7), (3, 2), (5, 0), (5, 1)],
)
def test_every_sample_once_and_equal_batches(
    train_set: Packed, world_size: int, workers: int
) -> None:
    """Also with more ranks and workers than the set has shards (5)."""
    seen: Counter[int] = Counter()
    lengths = set()
    for rank in range(world_size):
        loader = build_loader(
            train_set.faces,
            batch_size=3,
            training=True,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )
        batches = list(loader)
        lengths.add(len(batches))
        assert len(batches) == len(loader)
        assert {len(batch.keys) for batch in batches} == {3}
        for batch in batches:
            seen.update(batch.keys.tolist())
    assert lengths == {30 // (3 * world_size)}
    assert set(seen.values()) == {1}
    assert len(seen) + loader.plan.dropped == 30


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 3), (2, 1), (4, 2), (40, 0)])
def test_evaluation_drops_and_doubles_nothing(
    train_set: Packed, world_size: int, workers: int
) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        seen.update(
            keys_of(
                train_set,
                batch_size=4,
                training=False,
                rank=rank,
                world_size=world_size,
                workers=workers,
            )
        )
    assert set(seen) == set(range(30))
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("world_size", [1, 2, 40])
def test_batches_without_torch_are_those_with(train_set: Packed, world_size: int) -> None:
    for rank in range(world_size):
        options: dict[str, Any] = {"batch_size": 4, "rank": rank, "world_size": world_size}
        expected = build_loader(train_set.faces, training=False, **options)
        for batch, found in zip(expected, read_batches(train_set.faces, **options), strict=True):
            np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), found.photos)
            np.testing.assert_array_equal(batch.keys.numpy(), found.keys)
            np.testing.assert_array_equal(batch.labels.numpy(), found.labels)
            np.testing.assert_array_equal(batch.landmarks.numpy(), found.landmarks)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three windows an epoch, each over several shards."""
    monkeypatch.setattr(samples, "SHUFFLE_BUFFER", 10)


def test_order_is_a_function_of_seed_epoch_rank_and_world(train_set: Packed) -> None:
    base = {"batch_size": 5, "training": True, "seed": 1, "epoch": 2, "workers": 2}
    first = keys_of(train_set, **base)
    assert keys_of(train_set, **base) == first
    assert sorted(first) == list(range(30))
    for change in ({"seed": 2}, {"epoch": 3}):
        assert keys_of(train_set, **base | change) != first


@pytest.mark.parametrize("training", [True, False])
def test_order_does_not_depend_on_workers(
    train_set: Packed, small_windows: None, training: bool
) -> None:
    orders = [
        keys_of(train_set, batch_size=4, training=training, workers=workers)
        for workers in (0, 1, 3, 9)
    ]
    assert orders[1:] == orders[:1] * 3


def test_ranks_see_other_shards_in_other_epochs(train_set: Packed) -> None:
    epochs = [
        frozenset(
            keys_of(train_set, batch_size=5, training=True, epoch=epoch, rank=0, world_size=2)
        )
        for epoch in range(4)
    ]
    assert len(set(epochs)) > 1


@pytest.mark.parametrize(
    ("skip", "workers"),
    [(0, 0), (0, 3), (1, 0), (1, 2), (4, 0), (4, 2), (4, 3), (9, 0), (9, 3), (10, 2)],
)
def test_resumed_epoch_goes_on_with_the_same_batches(
    train_set: Packed, small_windows: None, workers: int, skip: int
) -> None:
    """With another number of workers than it was begun with."""
    options = {"batch_size": 3, "training": True}
    whole = keys_of(train_set, workers=1, **options)
    assert keys_of(train_set, skip=skip, workers=workers, **options) == whole[3 * skip :]


def test_resuming_opens_no_shard_that_is_consumed(
    train_set: Packed, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Watched(ShardReader):
        def __init__(self, path: Path, *arguments: Any) -> None:
            opened.append(path.name)
            super().__init__(path, *arguments)

    monkeypatch.setattr(samples, "ShardReader", Watched)
    options = {"batch_size": 2, "training": True}
    keys_of(train_set, **options)
    order = list(opened)
    assert len(order) == len(set(order)) == 5  # each once, though windows share some
    opened.clear()
    keys_of(train_set, skip=12, **options)
    assert opened == order[-2:]  # samples 20 to 29 of shards of 7


def spans(*counts: tuple[int, int]) -> tuple[Span, ...]:
    """Whole shards, by number and samples, each read from another sample on."""
    return tuple(Span(shard, samples, shard, samples) for shard, samples in counts)


def test_windows_are_whole_batches_of_like_size() -> None:
    plan = EpochPlan((spans(*((shard, 10_000) for shard in range(7))),), 128, 1, 2, True)
    firsts = [plan.first_batch(window) for window in range(plan.windows + 1)]
    assert firsts[0] == 0
    assert firsts[-1] == plan.batches
    sizes = np.diff(firsts)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() * 128 <= samples.SHUFFLE_BUFFER + 128
    for batch in range(plan.batches):
        window = plan.window_of(batch)
        assert firsts[window] <= batch < firsts[window + 1]


def test_a_window_is_a_seeded_permutation() -> None:
    plan = EpochPlan((spans((3, 10), (1, 3), (2, 20)),), 4, 1, 2, True)

    def flat(*seeds: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in plan.window_samples(0, *seeds).tolist()]

    start, stop = plan.rank_range(plan.rank)
    everything = (
        [(3, n) for n in range(10)] + [(1, n) for n in range(3)] + [(2, n) for n in range(20)]
    )
    # As many of each shard, from some place on.
    found = flat(0, 0)
    assert set(found) <= set(everything) and len(set(found)) == len(found)
    wanted = Counter(shard for shard, _ in everything[start:stop])
    assert Counter(shard for shard, _ in found) == wanted
    assert flat(0, 0) == flat(0, 0) != sorted(flat(0, 0))
    assert flat(0, 1) != flat(0, 0) != flat(1, 0)


def test_batches_come_in_multiples_for_accumulation(train_set: Packed) -> None:
    loader = build_loader(train_set.faces, batch_size=4, training=True, multiple=3)
    assert len(loader) == len(list(loader)) == 6  # 7 batches of 4 fit, 6 are a multiple of 3
    assert loader.plan.dropped == 30 - 24


def test_pixels_labels_and_layout(train_set: Packed) -> None:
    loader = build_loader(train_set.faces, batch_size=8, training=False)
    batch = next(iter(loader))
    assert batch.images.shape == (8, 3, SIZE_PX, SIZE_PX)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    index = open_dataset("vggface2", train_set.folder.parents[1] / "raw").index()
    photo = index.photos[int(batch.keys[0])]
    assert train_set.manifest.classes[int(batch.labels[0])] == photo.identity
    with Image.open(train_set.folder.parents[1] / "raw/VGGFace2" / photo.source) as raw:
        expected = np.asarray(raw.convert("RGB"), np.float32)
    got = batch.images[0].permute(1, 2, 0).numpy().astype(np.float32)
    assert np.abs(got - expected).mean() < 3  # one JPEG generation apart


def test_triplets_come_three_in_a_row(raw: Path, tmp_path: Path) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    card = make_triplets(
        dataset.index(), 10, dataset="vggface2", split="test", seed=0, shards=shards
    )
    packed = pack_triplets(dataset, card.id, shards, NO_ALIGN)
    loader = build_loader(packed.faces, batch_size=4, training=True)
    batch = next(iter(loader))
    assert batch.images.shape == (12, 3, SIZE_PX, SIZE_PX)
    anchor, positive, negative = batch.labels.view(4, 3).T
    assert (anchor == positive).all()
    assert (anchor != negative).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_used_again_only_when_nobody_looks_at_it(workers: int) -> None:
    slabs = stream.Slabs(workers, photos=4, side=8)
    last = max(workers - 1, 0)

    def take() -> Tensor:
        slab, memory = slabs.take(last, 2)
        memory[:] = 7
        return slabs.look(slab, 2)

    first, second = take(), take()
    assert first.shape == second.shape == (2, 8, 8, 3)
    assert first.data_ptr() != second.data_ptr()
    part, place = first.permute(0, 3, 1, 2)[1:], first.data_ptr()
    del first
    assert take().data_ptr() != place
    del part
    held = [take() for _ in range(SLABS + 1)]  # one more than there is room for
    assert place in {image.data_ptr() for image in held}
    assert len({image.data_ptr() for image in held}) == SLABS + 1
    assert all((image == 7).all() for image in held)
    assert {image[0].data_ptr() % 32 for image in held} == {16}  # where decoding is fast


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_that_are_kept_stay_as_they_were(train_set: Packed, workers: int) -> None:
    def load() -> EpochLoader:
        return build_loader(train_set.faces, batch_size=3, training=True, workers=workers)

    kept = list(load())
    assert len(kept) > 2 * SLABS
    for batch, once in zip(kept, load(), strict=True):
        assert torch.equal(batch.keys, once.keys)
        assert torch.equal(batch.images, once.images)


def test_a_damaged_shard_is_one_clear_error(train_set: Packed) -> None:
    path = train_set.folder / "000002.tar"
    path.write_bytes(path.read_bytes()[:3000])
    for workers in (0, 2):
        with pytest.raises(PersonaError, match=r"000002\.tar is damaged") as error:
            keys_of(train_set, batch_size=3, training=True, workers=workers)
        assert "Traceback" not in str(error.value)
        # The trace that `error` holds keeps no loader process alive.
        assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"jpg": b"no jpeg", "json": b'{"class": 0, "landmarks": null}'}, "ValueError"),
        ({"jpg": b"", "json": b"{}"}, "KeyError"),
        ({"json": b'{"class": 0}'}, "no jpg"),
        ({"jpg": b"x", "json": b"[1"}, "JSONDecodeError"),
    ],
)
def test_foreign_samples_are_refused(train_set: Packed, parts: dict[str, bytes], what: str) -> None:
    data = b"".join(tar_sample(f"{n:08d}", parts) for n in range(7))
    (train_set.folder / "000000.tar").write_bytes(data + tar_end(len(data)))
    with pytest.raises(PersonaError, match=rf"000000\.tar is damaged \(sample 0+: {what}"):
        keys_of(train_set, batch_size=3, training=False)


@pytest.mark.parametrize("size_px", [16, 33, 4000])
def test_a_crop_of_another_size_is_refused(train_set: Packed, size_px: int) -> None:
    from conftest import jpeg

    data = b"".join(
        tar_sample(
            f"{n:08d}",
            {"jpg": jpeg(n, size_px if n == 3 else 32), "json": b'{"class": 0, "landmarks": null}'},
        )
        for n in range(7)
    )
    (train_set.folder / "000000.tar").write_bytes(data + tar_end(len(data)))
    with pytest.raises(PersonaError, match="sample 00000003"):
        keys_of(train_set, batch_size=7, training=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 31}, "30 samples, fewer than one step's 31: choose a smaller"),
        ({"batch_size": 8, "world_size": 4}, "on each of 4 processes"),
        ({"batch_size": 0}, "choose at least 1"),
        ({"batch_size": 4, "workers": -1}, "choose 0 or more"),
    ],
)
def test_impossible_loaders(train_set: Packed, options, message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        build_loader(train_set.faces, training=True, **options)


def test_normalise_is_facenets() -> None:
    images = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    expected = (images.double() - 127.5) / 128
    torch.testing.assert_close(normalise(images).double(), expected, rtol=0, atol=1e-7)


def test_large_sets_stream_in_flat_order(raw: Path, tmp_path: Path) -> None:
    """A rank that starts deep inside a shard gets exactly its own samples."""
    packed = pack_photos(open_dataset("lfw", raw), tmp_path / "s" / "one", NO_ALIGN)
    flat = keys_of(packed, batch_size=24, training=False)
    halves = [
        keys_of(packed, batch_size=5, training=False, rank=rank, world_size=2) for rank in (0, 1)
    ]
    assert [len(half) for half in halves] == [10, 14]  # 5 batches, cut between two of them
    assert halves[0] + halves[1] == flat


def test_no_photo_is_left_out_of_every_epoch_and_photos_change_ranks(raw: Path) -> None:
    """Also with one shard: what is dropped, and what is whose, is another each time."""
    dataset = open_dataset("vggface2", raw, "train")
    one = pack_photos(dataset, raw / "one", replace(NO_ALIGN, shard_size=100))
    assert len(one.manifest.shards) == 1 and one.manifest.samples == 30
    seen: set[int] = set()
    first: set[frozenset[int]] = set()
    for epoch in range(40):
        loader = build_loader(one.faces, batch_size=8, training=True, epoch=epoch, world_size=2)
        keys = frozenset(key for batch in loader for key in batch.keys.tolist())
        assert len(keys) == 8
        seen |= keys
        first.add(keys)
    assert len(seen) == 30 and len(first) > 6


def test_loaders_without_shared_memory_are_one_line(
    train_set: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch says where /dev/shm is too small, and the system where it is not there."""
    line = "share memory, for which /dev/shm is too small, not writable or not there: enlarge it"
    torchs = RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space")
    for error in (torchs, FileNotFoundError(errno.ENOENT, "No such file or directory")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched, pytest.raises(PersonaError, match=line):
            patched.setattr(torch.UntypedStorage, "_new_shared", fail)
            loader = build_loader(train_set.faces, batch_size=5, training=True, workers=1)
            next(iter(loader))


def test_loader_processes_leave_ctrl_c_to_their_parent(train_set: Packed) -> None:
    loader = build_loader(train_set.faces, batch_size=5, training=True, workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    masks = [
        int(line.split()[1], 16)
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        if line.startswith("SigBlk")
    ]
    assert masks[0] >> (signal.SIGINT - 1) & 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # this process listens
