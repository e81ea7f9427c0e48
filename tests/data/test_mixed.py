"""Several packed sets in one run: each batch is drawn from all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NO_ALIGN, SIZE_PX, jpeg, write_lfw, write_vggface2

from persona.data import samples
from persona.data.align import AlignSpec
from persona.data.mixed import KEYS, MixedSet, Part, open_mixed, read_parts
from persona.data.pack import pack_photos, pack_triplets
from persona.data.raw import open_dataset
from persona.data.samples import EpochPlan, Span, plan_epoch
from persona.data.sets import FaceSet
from persona.data.shards import NO_CLASS
from persona.data.stream import build_loader
from persona.data.triplets import make_triplets
from persona.errors import PersonaError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three sets: `vggface2-train` (30 photos), `lfw` (24) and `holiday` (9, unlabelled)."""
    raw, place = tmp_path / "raw", tmp_path / "shards"
    write_vggface2(raw)
    write_lfw(raw)
    for number in range(9):
        (raw / "holiday").mkdir(exist_ok=True)
        (raw / "holiday" / f"{number}.jpg").write_bytes(jpeg(5000 + number))
    unlabelled = open_dataset(f"folders:{raw / 'holiday'}", raw, unlabelled=True)
    for dataset in (open_dataset("vggface2", raw, "train"), open_dataset("lfw", raw), unlabelled):
        pack_photos(dataset, place / dataset.set_name, NO_ALIGN)
    return place


def keys_of(mix: MixedSet, **options: Any) -> list[int]:
    options = {"batch_size": 5, "training": True} | options
    return [key for batch in build_loader(mix, **options) for key in batch.keys.tolist()]


def counts_of(keys: list[int]) -> list[int]:
    """How many of the keys are of each set."""
    found = Counter(key // KEYS for key in keys)
    return [found[part] for part in range(max(found) + 1)]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SHUFFLE_BUFFER", 15)


MIX = "vggface2-train,lfw*2,holiday*0.5"
"""30 + 48 + 4 samples an epoch."""


def test_weights_say_how_often_photos_come(shards: Path) -> None:
    mix = open_mixed(MIX, shards)
    found = [Counter(keys_of(mix, batch_size=1, epoch=epoch)) for epoch in (0, 1)]
    for once in found:
        assert counts_of(list(once.elements())) == [30, 48, 4]
        assert {once[key] for key in once if key < KEYS} == {1}
        assert {once[key] for key in once if key // KEYS == 1} == {2}
    # Half of the photos come in one epoch, the others in the next one.
    halves = [{key for key in once if key // KEYS == 2} for once in found]
    assert len(halves[0] | halves[1]) == 8


@pytest.mark.parametrize("weight", [0.3, 1, 1.7, 3, 25])
def test_photos_come_evenly_over_epochs(shards: Path, weight: float) -> None:
    mix = MixedSet([Part(open_mixed("holiday", shards).parts[0].faces, weight)])
    seen: Counter[int] = Counter()
    for epoch in range(10):
        seen.update(keys_of(mix, batch_size=1, epoch=epoch))
    assert max(seen.values()) - min(seen[key] for key in range(9)) <= 1
    assert sum(seen.values()) == 10 * round(weight * 9)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_epoch_and_every_window_has_its_share(
    shards: Path, small_windows: None, world_size: int
) -> None:
    mix = open_mixed("vggface2-train,lfw*2", shards)
    ranks = [keys_of(mix, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(keys) for keys in ranks}) == 1
    together = Counter(key for keys in ranks for key in keys)
    assert max(together[key] for key in together if key < KEYS) == 1
    assert max(together.values()) == 2
    for rank, keys in enumerate(ranks):
        plan = build_loader(mix, batch_size=5, training=True, rank=rank, world_size=world_size).plan
        for window in range(plan.windows):
            part = keys[5 * plan.first_batch(window) : 5 * plan.first_batch(window + 1)]
            one, two = counts_of(part)
            assert abs(one - len(part) * 30 / 78) < 2 and one + two == len(part)


def test_shares_of_any_stretch_are_right_and_add_up() -> None:
    """The sets are of very different sizes, down to one sample."""
    sizes = (100_003, 1, 20_000, 7, 60_000)
    plan = EpochPlan(
        tuple((Span(n, size, 0, size),) for n, size in enumerate(sizes)), 64, 0, 3, True
    )
    total, before = sum(sizes), np.zeros(5)
    starts = np.cumsum([0, *sizes[:-1]])
    for position in [*range(0, total, 977), *range(50_000, 50_100), total]:
        shares = np.array(plan._places(position)) - starts
        assert shares.sum() == position
        assert (np.abs(shares - np.array(sizes) * position / total) < 5).all()
        if position:
            assert (shares >= before).all() or position == 50_000
        before = shares
    assert before.tolist() == list(sizes)


@pytest.mark.parametrize("names", ["vggface2-train", "vggface2-train,lfw*2", MIX])
@pytest.mark.parametrize(
    "parts",  # of each the number of processes, and the batches of each; None goes to the end
    [
        *([(2, 1), (1, None)], [(2, 3), (1, None)], [(1, 2), (2, None)], [(1, 6), (2, None)]),
        *([(2, 1), (3, None)], [(2, 2), (3, 1), (1, None)], [(2, 2), (2, 1), (3, None)]),
    ],
    ids=str,
)
def test_the_rest_of_an_epoch_is_shared_by_another_number_of_processes(
    shards: Path, small_windows: None, names: str, parts: list[tuple[int, int | None]]
) -> None:
    """Every sample of the epoch is seen exactly once over all parts, or dropped and counted."""
    mix, batch_size = open_mixed(names, shards), 3
    whole = Counter(keys_of(mix, batch_size=1, epoch=1))
    seen: Counter[int] = Counter()
    earlier: list[list[int]] = []
    dropped = -1
    for ranks, batches in parts:
        lengths = set()
        for rank in range(ranks):
            options: dict[str, Any] = {"rank": rank, "world_size": ranks, "earlier": earlier}
            loader = build_loader(mix, batch_size=batch_size, training=True, epoch=1, **options)
            dropped = loader.plan.dropped
            lengths.add(len(loader))
            keys = [batch.keys.tolist() for batch in loader][:batches]
            assert batches is None or len(keys) == batches
            seen.update(key for batch in keys for key in batch)
            # A part can be resumed, with any number of workers.
            resumed = keys_of(mix, batch_size=batch_size, epoch=1, skip=1, workers=2, **options)
            assert resumed[: 3 * len(keys) - 3] == [key for batch in keys[1:] for key in batch]
        assert len(lengths) == 1
        earlier = [*earlier, [ranks, batches or 0]]
    assert not seen - whole
    assert (whole - seen).total() == dropped < batch_size * parts[-1][0]


def test_what_an_epoch_left_is_too_little_for_a_batch_of_each(shards: Path) -> None:
    mix = open_mixed("vggface2-train", shards)
    loader = build_loader(
        *(mix,), batch_size=7, training=True, world_size=3, workers=2, earlier=[[2, 2]]
    )
    assert (list(loader), loader.plan.dropped) == ([], 2)


def test_windows_of_the_rest_open_the_shards_that_they_read(
    shards: Path, small_windows: None
) -> None:
    mix = open_mixed("vggface2-train", shards)
    plan = build_loader(mix, batch_size=3, training=True, earlier=[[2, 1]]).plan
    assert (plan.samples, plan.batches, plan.windows) == (24, 8, 2)
    rests = [plan.window_samples(window, 0, 0).tolist() for window in range(2)]
    assert len({tuple(row) for rest in rests for row in rest}) == 24
    assert plan.window_samples(0, 0, 0).tolist() == rests[0]
    assert plan.window_samples(0, 1, 0).tolist() != rests[0]
    for window, rest in enumerate(rests):
        read = {shard for shard, _ in rest}
        assert set(plan.shards_of(window)) == read
        assert read <= set(plan.shards_ahead(window))
    assert plan.shards_ahead(0)[-1] in plan.shards_of(1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("skip", [0, 1, 6, 15, 16])
def test_a_mixed_epoch_is_resumed_exactly_with_any_number_of_workers(
    shards: Path, small_windows: None, workers: int, skip: int
) -> None:
    mix = open_mixed(MIX, shards)
    whole = keys_of(mix, epoch=1)
    assert len(whole) == 80
    assert keys_of(mix, epoch=1, skip=skip, workers=workers) == whole[5 * skip :]


def test_one_set_alone_is_read_as_ever(shards: Path) -> None:
    faces = open_mixed("lfw", shards).parts[0].faces
    plain = [
        key
        for batch in build_loader(faces, batch_size=5, training=True, seed=3)
        for key in batch.keys.tolist()
    ]
    assert keys_of(open_mixed("lfw*1", shards), seed=3) == plain


def test_labels_are_kept_apart(shards: Path) -> None:
    mix = open_mixed("vggface2-train,holiday,lfw", shards)
    names = mix.identities
    assert names == (*mix.parts[0].faces.identities, *mix.parts[2].faces.identities)
    metas = [part.faces.metas() for part in mix.parts]
    for batch in build_loader(mix, batch_size=21, training=True):
        for key, label in zip(batch.keys.tolist(), batch.labels.tolist(), strict=True):
            part, own = divmod(key, KEYS)
            identity = metas[part][own]["identity"]
            assert (label == NO_CLASS) if identity is None else names[label] == identity
    with pytest.raises(PersonaError, match="loss arcface wants identities, and set holiday was"):
        mix.check_labelled("loss arcface")


def test_a_name_of_two_sets_is_told_apart(shards: Path) -> None:
    one = open_mixed("lfw", shards).parts[0].faces
    first, *rest = one.manifest.shards
    other = replace(one.manifest, name="more", shards=(replace(first, sha256="0" * 64), *rest))
    mix = MixedSet([Part(one), Part(FaceSet(one.folder, other))])
    assert mix.identities[0] == "lfw/Person_A" and mix.identities[6] == "more/Person_A"
    assert len(set(mix.identities)) == 12
    twice = replace(other, name="lfw")
    mix = MixedSet([Part(one), Part(FaceSet(one.folder, twice))])
    assert (mix.identities[6], mix.spell(KEYS + 7)) == ("lfw#2/Person_A", "lfw#2/00000007")
    assert open_mixed("lfw", shards).spell(7) == 7


def test_what_a_resumed_run_compares(shards: Path) -> None:
    plain, weighted = open_mixed("lfw", shards), open_mixed("lfw*2, holiday", shards)
    digests = [part.faces.digest for part in weighted.parts]
    assert plain.origin == digests[0]
    assert weighted.origin == {"0": f"{digests[0]} * 2.0", "1": f"{digests[1]} * 1.0"}
    assert weighted.name == "lfw*2,holiday" and len(weighted) == 33 and weighted.people == 6


def test_a_damaged_label_names_the_shard_of_its_set(shards: Path) -> None:
    """A label that is valid in another set of the mix is not valid in this one."""
    mix = open_mixed("lfw,holiday", shards, verify=False)
    path = shards / "holiday" / "000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"class":-1', b'"class":2 '))
    with pytest.raises(PersonaError, match=r"holiday/000000\.tar is damaged \(a class index"):
        keys_of(mix)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("lfw,lfw", r"lfw and lfw are the same photos: .*with a weight \(lfw\*2\)"),
        ("lfw,vggface2,lfw*2", r"lfw and lfw\*2 are the same photos"),
        ("lfw*0", r"^lfw\*0: a train set\'s weight .*choose a number above 0"),
        ("lfw*-1,holiday", r"^lfw\*-1: "),
        ("holiday,lfw*nan", r"^lfw\*nan: "),
        ("lfw*inf", r"^lfw\*inf: "),
        ("lfw*1e9", r"^lfw\*1e9: .* at most 1000"),
        ("lfw*two", r"^lfw\*two: "),
        ("lfw*", r"^lfw\*: "),
        ("lfw,,holiday", "'lfw,,holiday' lacks a name"),
        ("*2", "lacks a name"),
        ("", "lacks a name"),
        ("lfw,nobody*2", "unknown set 'nobody'"),
        ("lfw,holiday*0.01", r"set holiday\*0\.01 has 9 photos .*choose a larger weight"),
    ],
)
def test_texts_that_are_refused(shards: Path, names: str, message: str) -> None:
    with pytest.raises(PersonaError, match=message) as error:
        plan_epoch(open_mixed(names, shards), batch_size=2, training=True)
    assert "\n" not in str(error.value)


def test_a_folder_may_have_any_name(shards: Path) -> None:
    (shards / "lfw").rename(shards / "a*2,b")
    for names in ("a*2,b", str(shards / "a*2,b")):
        assert read_parts(names, shards) == [(names, 1.0)]
        assert open_mixed(names, shards).name == "lfw"


def test_a_text_may_be_longer_than_the_name_of_a_file(shards: Path) -> None:
    names = ",".join(f"set{number}" for number in range(100))
    assert [name for name, _ in read_parts(names, shards)] == names.split(",")


def test_crops_that_differ_are_not_mixed(shards: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    larger = replace(NO_ALIGN, align=AlignSpec("none", 2 * SIZE_PX, 0))
    pack_photos(open_dataset("vggface2", raw, "test"), shards / "large", larger)
    with pytest.raises(
        PersonaError, match=r"lfw and large cannot be mixed: .* 32 px .* 64 px"
    ) as e:
        open_mixed("lfw,large", shards)
    assert "\n" not in str(e.value)
    faces = open_mixed("lfw", shards).parts[0].faces

    def packed(method: str, min_face: int = 20, **facts: Any) -> Part:
        align = AlignSpec(method, SIZE_PX, 0, min_face)
        first, *rest = faces.manifest.shards
        changed = (replace(first, sha256=f"{len(method) + min_face:064d}"), *rest)
        manifest = replace(faces.manifest, name=method, align=align, shards=changed, **facts)
        return Part(FaceSet(faces.folder, manifest))

    with pytest.raises(PersonaError, match="none and mtcnn cannot be mixed"):
        MixedSet([packed("none"), packed("mtcnn")])
    with pytest.raises(PersonaError, match=r"faces from 20 px, and .* faces from 40 px; pack one"):
        MixedSet([packed("mtcnn"), packed("mtcnn", 40)])
    with pytest.raises(PersonaError, match="one holds triplets and the other photos"):
        MixedSet([packed("landmarks"), packed("template", kind="triplets")])
    assert MixedSet([packed("landmarks"), packed("template")]).name == "landmarks,template"


def test_triplets_are_mixed_too(tmp_path: Path) -> None:
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    write_vggface2(raw)
    names = []
    for split in ("train", "test"):
        dataset = open_dataset("vggface2", raw, split)
        card = make_triplets(
            dataset.index(), 10, dataset="vggface2", split=split, seed=0, shards=shards
        )
        pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
        pack_triplets(dataset, card.id, shards, NO_ALIGN)
        names.append(card.id)
    mix = open_mixed(",".join(names), shards)
    batches = list(build_loader(mix, batch_size=4, training=True))
    assert mix.roles == 3 and len(batches) == 5
    for batch in batches:
        anchor, positive, negative = batch.labels.view(4, 3).T
        assert (anchor == positive).all() and (anchor != negative).all()
        own = batch.keys.numpy() // KEYS
        assert ((anchor.numpy() >= len(mix.parts[0].faces.identities)) == own).all()
