"""Protocols on small packed sets, against figures worked out plainly from the embeddings."""

from __future__ import annotations

import csv
import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import NO_ALIGN, SIZE_PX, jpeg, write_lfw, write_vggface2
from torch import Tensor

from persona.data.align import AlignSpec
from persona.data.pack import Packed, pack_photos
from persona.data.raw import Photo, open_dataset
from persona.data.raw.annotations import annotate
from persona.data.raw.lfw import LFW
from persona.data.sets import FaceSet
from persona.data.shards import PAIRS, Manifest, encode_pairs, write_manifest
from persona.data.stream import build_loader
from persona.errors import PersonaError
from persona.evaluation.embed import embed_set
from persona.evaluation.groups import group_figures
from persona.evaluation.metrics import Folds, cosine_scores
from persona.evaluation.overlap import trained_identities
from persona.evaluation.pairs import PairScores, names_across
from persona.evaluation.protocols import (
    PROTOCOLS,
    Options,
    base,
    build_options,
    check_measure,
    default_measure,
    evaluate,
)
from persona.evaluation.protocols.verification import VerificationOptions
from persona.evaluation.thresholds import faces_of
from persona.models.output import ClassifierHead, FaceNetwork
from persona.models.sources import NamedNetwork


class Pixels(FaceNetwork):
    """A network without luck: the crop, reduced to 4 x 4."""

    embedding_size = 48

    def __init__(self, classes: int = 0, broken: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.broken = classes, broken
        self.last = ClassifierHead(48, classes, "linear") if classes else None

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        found = torch.nn.functional.adaptive_avg_pool2d(images_BCHW, 4).flatten(1)
        return found * torch.nan if self.broken else found

    def classify(self, features_BE: Tensor) -> Tensor:
        assert self.last is not None
        logits: Tensor = self.last(features_BE)
        return logits


@pytest.fixture
def cpu() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def pixels(packed: Packed | None = None, classes: int = 0, broken: bool = False) -> NamedNetwork:
    known = packed.manifest.classes if packed else ()
    return NamedNetwork("pixels", Pixels(classes, broken), "these", known, SIZE_PX)


def measure(packed: Packed, cpu: Accelerator, name: str | None = None, **options):
    return evaluate(
        pixels(),
        packed.faces,
        cpu,
        measure=name,
        options=options,
        quiet=True,
    )


class Boxed(LFW):
    """LFW whose box file lacks one photo: there its face is not found."""

    def boxes(self) -> dict[str, tuple[float, float, float, float]]:
        whole = (2.0, 2.0, 30.0, 30.0)
        return {p.source: whole for p in self.iter_photos() if p.source != FACELESS}


FACELESS = "Person_A/Person_A_0001.jpg"
BOXES = replace(NO_ALIGN, align=AlignSpec("boxes", SIZE_PX, 0))


@pytest.fixture
def boxed_set(tmp_path: Path) -> Packed:
    """24 photos, one of them without a face, in 4 shards, and 12 pairs."""
    return pack_photos(Boxed(write_lfw(tmp_path)), tmp_path / "shards" / "boxed", BOXES)


def test_a_photo_without_a_face_is_kept_and_flagged_only_for_pairs(
    boxed_set: Packed, tmp_path: Path
) -> None:
    manifest = boxed_set.manifest
    assert (manifest.samples, len(manifest.no_face), manifest.skipped) == (24, 1, ())
    metas = boxed_set.faces.metas()
    flagged = {key for key, meta in metas.items() if meta.get("no_face")}
    assert flagged == set(manifest.no_face)
    assert metas[manifest.no_face[0]]["source"] == FACELESS
    assert metas[manifest.no_face[0]]["box"] is None

    class Unpaired(Boxed):
        def pairs(self) -> None:  # type: ignore[override]
            return None

    plain = pack_photos(Unpaired(tmp_path / "LFW"), tmp_path / "plain", BOXES).manifest
    assert (plain.samples, plain.no_face, len(plain.skipped)) == (23, (), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_never_sees_a_photo_without_a_face(boxed_set: Packed, workers: int) -> None:
    known: dict[str, Any] = {"batch_size": 4, "workers": workers}
    seen: list[int] = []
    places = 0
    for rank in range(2):
        loader = build_loader(boxed_set.faces, training=True, rank=rank, world_size=2, **known)
        places += loader.plan.dropped
        seen += [key for batch in loader for key in batch.keys.tolist()]
    assert len(seen) == len(set(seen)) == 16 and places == 2 * 7
    assert not set(seen) & set(boxed_set.manifest.no_face)
    whole = build_loader(boxed_set.faces, training=False, **known)
    assert sum(len(batch.keys) for batch in whole) == 24


def test_the_policy_for_photos_without_a_face(boxed_set: Packed, cpu: Accelerator) -> None:
    pairs = boxed_set.faces.pairs()
    lost = sum(boxed_set.manifest.no_face[0] in (pair.a, pair.b) for pair in pairs)
    found = {p: measure(boxed_set, cpu, no_face=p) for p in ("centre", "fail", "exclude")}
    assert [f.no_face for f in found.values()] == [lost] * 3 and lost == 2
    assert [f.pairs for f in found.values()] == [12, 12, 10]
    right = {name: np.dot(f.folds, [6, 6]) for name, f in found.items() if name != "exclude"}
    assert right["fail"] <= right["centre"]
    with pytest.raises(PersonaError, match="unknown policy for photos without a face 'skip'"):
        measure(boxed_set, cpu, no_face="skip")


def test_failed_pairs_are_wrong_even_for_a_perfect_network(
    boxed_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    """All pairs genuine or of one photo twice: scores cannot be confused."""
    keys = sorted(set(range(24)) - set(boxed_set.manifest.no_face))
    from persona.data.shards import KeyPair

    listed = [KeyPair(fold, True, key, key) for fold in (0, 1) for key in keys[:4]]
    listed += [KeyPair(fold, False, keys[0], keys[9 + fold]) for fold in (0, 1)]
    listed += [KeyPair(1, True, boxed_set.manifest.no_face[0], boxed_set.manifest.no_face[0])]
    encoded = encode_pairs(listed)
    (boxed_set.folder / PAIRS).write_bytes(encoded)
    digest = hashlib.sha256(encoded).hexdigest()
    manifest = replace(boxed_set.manifest, pairs=len(listed), pairs_sha256=digest)
    write_manifest(boxed_set.folder, manifest)
    packed = Packed(boxed_set.folder, manifest, fresh=True)
    assert measure(packed, cpu, no_face="centre").folds == [1.0, 1.0]
    assert measure(packed, cpu, no_face="fail").folds == [1.0, pytest.approx(5 / 6)]


def test_scores_by_key_and_the_scores_file(
    lfw_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    path = tmp_path / "scores.csv"
    found = measure(lfw_set, cpu, scores=path, resamples=50)
    embedded = embed_set(Pixels(), lfw_set.faces, cpu, quiet=True)
    row = {int(key): embedded.embeddings[place, 0] for place, key in enumerate(embedded.keys)}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = list(lfw_set.faces.pairs())
    assert list(rows[0]) == ["fold", "same", "score"] and len(rows) == len(pairs) == 12
    for line, pair in zip(rows, pairs, strict=True):
        assert pair.a is not None and pair.b is not None
        expected = cosine_scores([row[pair.a]], [row[pair.b]])[0]
        assert float(line["score"]) == pytest.approx(expected, abs=1e-12)
        assert (int(line["fold"]), line["same"] == "1") == (pair.fold, pair.same)
    assert found.intervals is not None and found.resampled == "identities"
    assert set(found.intervals) == {"accuracy", "auc", "eer"}  # 6 impostors resolve no FAR
    assert set(found.tar_at_far.values()) == {None}
    assert found.accuracy == pytest.approx(np.mean(found.folds))


def test_flip_is_the_sum_of_both_embeddings(lfw_set: Packed, cpu: Accelerator) -> None:
    network = Pixels()
    known = (lfw_set.faces, cpu)
    plain = embed_set(network, *known, quiet=True).embeddings[:, 0]
    both = embed_set(network, *known, flip=True, quiet=True).embeddings[:, 0]
    mirror = plain.reshape(-1, 3, 4, 4)[..., ::-1].reshape(-1, 48)
    total = plain + mirror
    np.testing.assert_allclose(
        both, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-5
    )
    assert measure(lfw_set, cpu, flip=True).flip is True
    assert "flip" not in measure(lfw_set, cpu).to_json()


def test_embeddings_that_are_not_finite_are_one_line(lfw_set: Packed, cpu: Accelerator) -> None:
    with pytest.raises(PersonaError, match=r"24 of 24 embeddings of set lfw are not finite"):
        evaluate(pixels(broken=True), lfw_set.faces, cpu, quiet=True)


def test_top_1_and_top_5(train_set: Packed, cpu: Accelerator) -> None:
    named = pixels(train_set, classes=6)
    found = evaluate(named, train_set.faces, cpu, options={"resamples": 50}, quiet=True)
    assert found.measure == "class" and found.photos == 30
    loader = build_loader(train_set.faces, batch_size=30, training=False)
    (batch,) = loader
    network = named.network
    features = network.features((batch.images.float() - 127.5) / 128)
    order = network.classify(features).argsort(dim=1, descending=True)
    hit = order == batch.labels[:, None]
    assert found.accuracy == pytest.approx(hit[:, 0].float().mean().item())
    assert found.top_5 == pytest.approx(hit[:, :5].any(dim=1).float().mean().item())
    assert found.intervals is not None and set(found.intervals) == {"accuracy", "top_5"}
    mirrored = network.classify(network.features((batch.images.float() - 127.5).flip(3) / 128))
    both = (network.classify(features) + mirrored).argsort(dim=1, descending=True)
    turned = evaluate(named, train_set.faces, cpu, options={"flip": True}, quiet=True)
    hit_by_both = both == batch.labels[:, None]
    assert turned.accuracy == pytest.approx(hit_by_both[:, 0].float().mean().item())
    assert turned.top_5 == pytest.approx(hit_by_both[:, :5].any(dim=1).float().mean().item())
    predicted = [
        embed_set(network, train_set.faces, cpu, top=6, flip=flip, quiet=True).predicted[:, 0]
        for flip in (False, True)
    ]
    key_order = batch.keys.argsort()
    np.testing.assert_array_equal(predicted[0], order[key_order])
    np.testing.assert_array_equal(predicted[1], both[key_order])
    assert not torch.equal(order, both)


def test_people_who_were_trained_on_are_counted_listed_and_left_out(
    lfw_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    trained = ("person a", "PERSON-B", "somebody else")
    names = tmp_path / "names.txt"
    found = measure(lfw_set, cpu, trained=trained, overlap_names=names)
    metas = lfw_set.faces.metas()
    pairs = lfw_set.faces.pairs()
    gone = {"Person_A", "Person_B"}
    people = [
        {metas[int(key)]["identity"] for key in keys} for keys in zip(pairs.a, pairs.b, strict=True)
    ]
    lost = sum(bool(gone & both) for both in people)
    assert lost > 0 and found.pairs == 12 - lost
    assert (found.overlap, found.overlap_pairs) == (2, lost)
    assert names.read_text().split() == sorted(gone)
    with pytest.raises(PersonaError, match="every person of theirs was trained on"):
        measure(lfw_set, cpu, trained=lfw_set.manifest.classes)
    named = replace(pixels(), classes=("Person_C",))
    alone = evaluate(named, lfw_set.faces, cpu, quiet=True)
    assert (alone.overlap, alone.overlap_pairs, alone.pairs) == (1, None, 12)
    # The list of classes is that of the dataset: Person_X has no photo in the set.
    manifest = replace(lfw_set.manifest, classes=(*lfw_set.manifest.classes, "Person_X"))
    options = {"trained": (*trained, "person x"), "overlap_names": names}
    with_x = evaluate(pixels(), FaceSet(lfw_set.folder, manifest), cpu, options=options, quiet=True)
    assert (with_x.overlap, with_x.overlap_pairs) == (2, lost)
    assert names.read_text().split() == sorted(gone)


def write_agedb(root: Path, people: int = 8) -> None:
    """People of both genders at 20, 30, 50 and 60."""
    root.mkdir(parents=True)
    number = 0
    for person in range(people):
        for age in (20, 30, 50, 60):
            name = f"{number}_Somebody{person}_{age}_{'mf'[person % 2]}.jpg"
            (root / name).write_bytes(jpeg(number))
            number += 1


def test_agedb_has_pairs_30_years_apart_and_its_annotations(
    tmp_path: Path, cpu: Accelerator
) -> None:
    write_agedb(tmp_path / "AgeDB", people=16)
    dataset = open_dataset("agedb", tmp_path)
    pairs = dataset.pairs()
    assert pairs is not None and pairs == dataset.pairs()
    photo = {p.source: p for p in dataset.index().photos}
    people_of: dict[int, set[str]] = {}
    for pair in pairs:
        a, b = photo[pair.a], photo[pair.b]
        assert int(dict(b.attributes)["age"]) - int(dict(a.attributes)["age"]) == 30
        assert (a.identity == b.identity) == pair.same
        assert dict(a.attributes)["gender"] == dict(b.attributes)["gender"]
        people_of.setdefault(pair.fold, set()).update((a.identity, b.identity))
    folds = list(people_of.values())
    assert len(folds) > 1 and len(set.union(*folds)) == sum(map(len, folds))
    assert sum(p.same for p in pairs) == sum(not p.same for p in pairs)

    packed = pack_photos(dataset, tmp_path / "shards" / "agedb", NO_ALIGN)
    assert packed.manifest.pairs == len(pairs)
    meta = packed.faces.metas()[0]
    assert meta["attributes"] == {"age": 20, "gender": "m"}
    assert default_measure(packed.manifest) == "verification"

    found = measure(packed, cpu, by="gender", resamples=50)
    assert set(found.groups) == {"f", "m"} and found.ungrouped == 0
    assert sum(group["pairs"] for group in found.groups.values()) == len(pairs)
    accuracies = [group["accuracy"] for group in found.groups.values()]
    assert found.gap == pytest.approx(max(accuracies) - min(accuracies))
    assert np.average(accuracies, weights=[g["pairs"] for g in found.groups.values()]) == (
        pytest.approx(np.average(found.folds, weights=np.bincount([p.fold for p in pairs])))
    )
    assert found.groups["f"]["intervals"]["accuracy"] is not None
    gaps = measure(packed, cpu, by="age-gap")
    assert set(gaps.groups) == {"30-39"}
    for by, message in (("height", "unknown annotation 'height'"), ("gender-gap", "is no number")):
        with pytest.raises(PersonaError, match=message):
            measure(packed, cpu, by=by)


def test_groups_do_not_differ_by_their_share_of_impostors() -> None:
    # Of both groups half of the genuine and a quarter of the impostor pairs are decided wrongly.
    same = np.repeat([True, False, True, False], [8, 4, 4, 40])
    group = np.repeat(["a", "b"], [12, 44])
    wrong = np.concatenate(
        [np.arange(n) < n * share for n, share in ((8, 0.5), (4, 0.25), (4, 0.5), (40, 0.25))]
    )
    none, each = np.zeros(56, bool), np.arange(56)
    scores = PairScores(
        each % 2, same, np.where(same ^ wrong, 0.9, 0.1), each, each, each, each, none, 0
    )
    decided = Folds(np.arange(2), np.full(2, 0.5), np.zeros(2), ~wrong)
    found = group_figures(scores, decided, group, (), 100)
    for name in "ab":
        assert (found[name]["frr"], found[name]["far"]) == (0.5, 0.25)
        assert found[name]["accuracy"] == 0.625
        low, high = found[name]["intervals"]["accuracy"]
        assert low < 0.625 < high
    alone = group_figures(scores, decided, np.where(same, group, ""), (), 0)["a"]
    assert (alone["frr"], alone["far"], alone["accuracy"]) == (0.5, None, 0.5)


@pytest.mark.parametrize("age", ["3²", "nan", "inf", "1e300", "9" * 5000, "old"])
def test_annotations_that_are_no_number(tmp_path: Path, cpu: Accelerator, age: str) -> None:
    dataset = open_dataset("lfw", write_lfw(tmp_path).parent)
    people = [f"Person_{letter}" for letter in "ABCDEF"]
    text = "identity,age\n" + "".join(
        f"{name},{age if name < 'Person_C' else 40}\n" for name in people
    )
    index = annotate(dataset.index(), _write(tmp_path / "a.csv", text))
    packed = pack_photos(dataset, tmp_path / "s", NO_ALIGN, index=index)
    assert set(measure(packed, cpu, by="age").groups) == {"40", age}
    with pytest.raises(PersonaError, match="annotation 'age' is no number: --by age"):
        measure(packed, cpu, by="age-gap")


def test_few_agedb_photos_have_no_pairs(tmp_path: Path) -> None:
    write_agedb(tmp_path / "AgeDB", people=3)
    assert open_dataset("agedb", tmp_path).pairs() is None


def test_annotations_of_nothing_in_the_dataset_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """People and photos that are known and not there are not: a file may be about all of a set."""
    index = replace(open_dataset("lfw", write_lfw(tmp_path).parent).index(), missing=("gone.jpg",))
    file = tmp_path / "a.csv"
    people = "identity,team\nPerson_A,red\nPerson_A,red\nPerson_B,\n"
    assert annotate(replace(index, classes=(*index.classes, "Zoe")), _write(file, people + "Zoe,x"))
    assert not caplog.messages
    annotate(index, _write(file, people + "Nobody,red\nNeither,red\n"))
    photo = index.photos[0].source
    annotate(index, _write(file, f"photo,team\n{photo},red\ngone.jpg,red\n./{photo},red\n"))
    assert caplog.messages == [
        f"{file}: 2 of its 4 rows are about no identity of this dataset, the first is 'Nobody'",
        f"{file}: 1 of its 3 rows are about no photo of this dataset, the first is './{photo}'",
    ]


@pytest.mark.parametrize("kind", ["photo", "identity"])
def test_annotations_in_another_form_of_unicode(tmp_path: Path, kind: str) -> None:
    (tmp_path / "photos" / "Jose\u0301").mkdir(parents=True)
    (tmp_path / "photos" / "Jose\u0301" / "1.jpg").write_bytes(jpeg(1))
    index = open_dataset(f"folders:{tmp_path / 'photos'}", tmp_path).index()
    for name in ("Jos\u00e9", "Jose\u0301"):
        subject = f"{name}/1.jpg" if kind == "photo" else name
        found = annotate(index, _write(tmp_path / "a.csv", f"{kind},team\n{subject},red\n"))
        assert found.photos[0].attributes == (("team", "red"),)


def test_a_users_annotations(tmp_path: Path, cpu: Accelerator) -> None:
    dataset = open_dataset("lfw", write_lfw(tmp_path).parent)
    file = tmp_path / "a.csv"
    file.write_text("identity,team\nPerson_A,red\nPerson_B,red\nPerson_C,blue\nPerson_D,\n")
    index = annotate(dataset.index(), file)
    packed = pack_photos(dataset, tmp_path / "s", NO_ALIGN, index=index)
    found = measure(packed, cpu, by="team")
    assert list(found.groups) == ["blue", "red"]
    assert found.groups["blue"]["auc"] is None  # genuine pairs alone
    assert found.gap is None  # so nothing to hold beside red
    assert found.ungrouped + sum(g["pairs"] for g in found.groups.values()) == 12
    with pytest.raises(PersonaError, match="differs in annotations"):
        pack_photos(
            dataset,
            tmp_path / "s",
            NO_ALIGN,
            index=annotate(index, _write(file, "photo,team\nPerson_A/Person_A_0001.jpg,green\n")),
        )
    for text, message in (
        ("name,team\nx,y\n", "expected a header of photo"),
        ("identity,team\nPerson_A,red\nPerson_A,blue\n", "line 3: Person_A has a row already, w"),
        ("identity,team\nPerson_A,red\nPerson_A,\n", "line 3: Person_A has a row already, wh"),
        ("photo,team\nx\n", "line 2: 1 fields, its header has 2"),
        ("photo,team\nnobody.jpg,red\n", "none of its 1 rows is about a photo"),
        ("photo,team\nx,r\u200bed\n", r"line 2 holds U\+200B ZERO WIDTH SPACE, which cannot be"),
        ("photo,te\u3164am\nx,red\n", r"line 1 holds U\+3164 HANGUL FILLER"),
    ):
        with pytest.raises(PersonaError, match=message):
            annotate(index, _write(file, text))
    unannotated = pack_photos(dataset, tmp_path / "t", NO_ALIGN)
    with pytest.raises(PersonaError, match="has no annotations to group by"):
        measure(unannotated, cpu, by="team")


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_identification_by_itself(lfw_set: Packed, cpu: Accelerator) -> None:
    found = measure(lfw_set, cpu, "identification", resamples=50)
    embedded = embed_set(Pixels(), lfw_set.faces, cpu, quiet=True)
    label, rows = embedded.labels[:, 0], embedded.embeddings[:, 0]
    first = [int(np.flatnonzero(label == who)[0]) for who in range(6)]
    ranks = []
    for place in sorted(set(range(24)) - set(first)):
        scores = rows[first] @ rows[place]
        ranks.append(int((scores >= scores[label[place]]).sum()))
    assert (found.gallery, found.probes, found.non_mated) == (6, 18, 9)
    assert found.rank_1 == pytest.approx(np.mean(np.array(ranks) == 1))
    assert found.rank_5 == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert found.cmc[-1] == 1.0 and len(found.cmc) == 6
    assert found.tpir_at_fpir == {"0.01": None, "0.001": None}
    assert set(found.intervals) == {"accuracy", "rank_1", "rank_5"}


def test_identification_against_a_gallery_set(
    lfw_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    # One photo of Person_A and one of Person_B are those of the probes; the others are not.
    root = write_lfw(tmp_path / "b")
    for number, path in enumerate(sorted(root.glob("*/*.jpg"))):
        if path.name not in {"Person_A_0001.jpg", "Person_B_0003.jpg"}:
            path.write_bytes(jpeg(7000 + number))
    in_other_shards = replace(NO_ALIGN, shard_size=5)
    gallery = pack_photos(LFW(root), tmp_path / "lfw", in_other_shards)
    found = measure(lfw_set, cpu, gallery=gallery.faces)
    assert (found.measure, found.gallery, found.probes, found.non_mated) == (
        "identification",
        6,
        22,
        0,
    )
    assert found.same_photos == 2
    assert "note: 2 probes are photos of the gallery, too: left out" in found.notes()
    assert ["same photos", "2"] in [row[:2] for row in found.tables()[0].rows]
    again = pack_photos(LFW(write_lfw(tmp_path / "c")), tmp_path / "all", in_other_shards)
    with pytest.raises(PersonaError, match="compared with themselves"):  # all of them
        measure(lfw_set, cpu, gallery=again.faces)
    # Names that differ in what `normalised` drops are of two people where both are there.
    twins = ("Person_A", "Person-A", *lfw_set.manifest.classes[2:])
    probes = FaceSet(lfw_set.folder, replace(lfw_set.manifest, classes=twins))
    apart = evaluate(pixels(), probes, cpu, options={"gallery": gallery.faces}, quiet=True)
    assert (apart.probes, apart.non_mated) == (19, 4)
    strangers = FaceSet(lfw_set.folder, replace(lfw_set.manifest, classes=tuple("uvwxyz")))
    with pytest.raises(
        PersonaError, match="no person of set lfw is in gallery lfw: choose a gallery"
    ):
        evaluate(pixels(), strangers, cpu, options={"gallery": gallery.faces}, quiet=True)
    with pytest.raises(PersonaError, match="compared with themselves"):
        measure(lfw_set, cpu, gallery=lfw_set.faces)


def numbered(packed: Packed, dataset: str) -> FaceSet:
    """The set with numbers for names, as those of a recordio."""
    count = len(packed.manifest.classes)
    names = tuple(f"{number:07d}" for number in range(count))
    return FaceSet(packed.folder, replace(packed.manifest, dataset=dataset, classes=names))


def test_numbers_of_another_dataset_name_nobody(
    lfw_set: Packed, train_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    faces = numbered(train_set, "casia")
    count = len(faces.identities)
    more = tuple(f"{number:07d}" for number in range(2 * count))

    def trained(classes_of: str, classes: tuple[str, ...] = more) -> NamedNetwork:
        network = Pixels(len(classes))
        return NamedNetwork("p", network, "x", classes, SIZE_PX, classes_of=classes_of)

    # The same people by their numbers, others by theirs, and numbers of an older card.
    for named, measure_ in (
        (trained("casia"), "class"),
        (trained("lfw,casia"), "class"),
        (trained("ms1m"), "verification"),
        (trained("ms1m", faces.identities), "verification"),
        (trained(""), "verification"),
        (trained("", faces.identities), "class"),
    ):
        assert default_measure(faces.manifest, named=named) == measure_
        overlapping = evaluate(named, faces, cpu, measure="verification", quiet=True).overlap
        assert overlapping == (count if measure_ == "class" else None)
    with pytest.raises(PersonaError, match="class accuracy means nothing there"):
        check_measure("class", trained("ms1m"), faces.manifest)

    # In a mix, each name that is more than a number is still a name.
    mixed = ("ms1m/0000001", "0000002", train_set.manifest.classes[0])
    found = names_across(mixed, "ms1m,vggface2", faces.manifest)
    assert found == ["", "", train_set.manifest.classes[0]]
    assert names_across(mixed, "casia,ms1m", faces.manifest) == list(mixed)

    other = pack_photos(
        LFW(write_lfw(tmp_path / "b")), tmp_path / "other", replace(NO_ALIGN, shard_size=5)
    )
    probes = numbered(lfw_set, "casia")
    for jpeg_of, dataset in ((other, "ms1m"), (train_set, "ms1m")):
        gallery = {"gallery": numbered(jpeg_of, dataset)}
        with pytest.raises(PersonaError, match=r"\(a number names nobody of another dataset\)"):
            evaluate(pixels(), probes, cpu, options=gallery, quiet=True)
    gallery = {"gallery": numbered(train_set, "casia")}
    assert evaluate(pixels(), probes, cpu, options=gallery, quiet=True).probes == 24


def test_the_overlap_with_numbers_of_another_dataset_is_none(
    lfw_set: Packed, train_set: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    shards = train_set.folder.parent
    faces = numbered(train_set, "ms1m")
    write_manifest(train_set.folder, faces.manifest)
    ask = (train_set.folder.name, shards, shards / "models")
    assert trained_identities(*ask, numbered(lfw_set, "ms1m").manifest) == faces.identities
    assert not caplog.records
    assert trained_identities(*ask, numbered(lfw_set, "casia").manifest) == ()
    assert "identities are numbers, which name nobody of another" in caplog.records[0].getMessage()


def test_a_bin_names_nobody(lfw_set: Packed, cpu: Accelerator, tmp_path: Path) -> None:
    """Each of its pairs has identities of its own, which may be one person."""
    (tmp_path / "agedb.bin").write_bytes(
        pickle.dumps(([jpeg(number) for number in range(40)], [n % 2 == 0 for n in range(20)]))
    )
    packed = pack_photos(
        open_dataset(f"bin:{tmp_path / 'agedb.bin'}", tmp_path), tmp_path / "agedb", NO_ALIGN
    )
    found = measure(packed, cpu, resamples=50)
    assert (found.pairs, found.resampled) == (20, "pairs")
    for probes, options in ((packed, {}), (lfw_set, {"gallery": packed.faces})):
        with pytest.raises(PersonaError, match="identification wants people, and set agedb is of"):
            measure(probes, cpu, "identification", **options)
    with pytest.raises(PersonaError, match="a threshold wants people, and set agedb is of a file"):
        faces_of(pixels(), packed.faces, cpu)


def test_nobody_is_enrolled_by_a_photo_without_a_face(
    lfw_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    class Unseen(LFW):
        def boxes(self) -> dict[str, tuple[float, float, float, float]]:
            photos = (p for p in self.iter_photos() if p.identity != "Person_A")
            return {p.source: (2.0, 2.0, 30.0, 30.0) for p in photos}

    gallery = pack_photos(Unseen(write_lfw(tmp_path / "b")), tmp_path / "gallery", BOXES)
    assert len(gallery.manifest.no_face) == 4
    found = measure(lfw_set, cpu, gallery=gallery.faces)
    assert (found.gallery, found.probes, found.non_mated, found.no_face) == (5, 20, 4, 4)
    nobody = FaceSet(
        gallery.folder, replace(gallery.manifest, shards=_all_faceless(gallery.manifest))
    )
    for probes, options in ((lfw_set.faces, {"gallery": nobody}), (nobody, {})):
        with pytest.raises(PersonaError, match="gallery: no face was found in any photo"):
            evaluate(
                *(pixels(), probes, cpu),
                measure="identification",
                options=options,
                quiet=True,
            )


def _all_faceless(manifest: Manifest) -> tuple[Any, ...]:
    keys = tuple(range(manifest.samples))
    return tuple(
        replace(s, no_face=keys if s is manifest.shards[0] else ()) for s in manifest.shards
    )


def test_absent_and_faceless_are_two_counts(cpu: Accelerator, tmp_path: Path) -> None:
    """Whatever the measure; a set without pairs holds nothing of a photo without a face."""
    root = write_lfw(tmp_path)
    (root / "Person_B" / "Person_B_0002.jpg").unlink()
    boxed = pack_photos(Boxed(root), tmp_path / "boxed", BOXES)
    pairs = boxed.faces.pairs()
    without = [-1 in (a, b) for a, b in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)]
    faceless = boxed.manifest.no_face[0]
    blind = [faceless in (pair.a, pair.b) for pair in pairs]
    # One pair has a photo of both kinds, and is counted as absent.
    assert (sum(without), sum(blind), sum(map(min, without, blind))) == (4, 2, 1)
    for policy, measured in (("centre", 8), ("fail", 12), ("exclude", 7)):
        found = measure(boxed, cpu, no_face=policy, resamples=50)
        assert (found.no_face, found.absent, found.pairs) == (1, 4, measured)
        assert found.resampled == "identities"

    class Unpaired(Boxed):
        def pairs(self) -> None:  # type: ignore[override]
            return None

        def iter_photos(self) -> Iterator[Photo]:
            yield from super().iter_photos()
            self.missing.append("Person_B/Person_B_0002.jpg")

    plain = pack_photos(Unpaired(root), tmp_path / "plain", BOXES)
    listed = measure(plain, cpu, pairs=root / "pairs.txt")
    assert (listed.no_face, listed.absent, listed.pairs) == (1, 4, 7)
    assert listed.unknown_photos == ["Person_B/Person_B_0002.jpg"]
    # The set holds no centre crop that could stand in for the face.
    told = "have a photo without a face: "
    assert listed.no_centre == 1 and f"note: 1 pairs {told}left out" in listed.notes()
    assert not any("stands in" in note for note in listed.notes())
    both = replace(listed, no_face=3).notes()
    assert f"note: 2 pairs {told}the middle of the photo stands in for the face" in both
    assert f"note: 1 pairs {told}left out" in both
    for policy, fate in (("fail", "counted as wrong"), ("exclude", "left out")):
        strict = measure(plain, cpu, pairs=root / "pairs.txt", no_face=policy)
        assert strict.no_centre is None
        assert [n for n in strict.notes() if "a face" in n] == [f"note: 1 pairs {told}{fate}"]
    known = measure(plain, cpu, "identification")
    assert (known.no_face, known.absent) == (1, 1)


def test_options_of_another_measure_are_refused(
    lfw_set: Packed, train_set: Packed, cpu: Accelerator
) -> None:
    with pytest.raises(PersonaError, match="--gallery goes with --measure identification, not"):
        measure(lfw_set, cpu, "verification", gallery=lfw_set.faces)
    with pytest.raises(PersonaError, match="--by goes with --measure verification"):
        measure(lfw_set, cpu, "identification", by="age")
    with pytest.raises(PersonaError, match="--no-face goes with --measure verification, not with"):
        measure(train_set, cpu, "class", no_face="fail")
    with pytest.raises(PersonaError, match=r"unknown option 'flp' in measure verification.*'flip'"):
        measure(lfw_set, cpu, flp=True)
    with pytest.raises(PersonaError, match=r"unknown option 'drown' in measure verification"):
        measure(train_set, cpu, "verification", drown=7)
    assert set(PROTOCOLS) == {"verification", "match", "class", "identification", "templates"}


def test_a_set_without_pairs_is_verified_on_pairs_drawn_of_its_people(
    train_set: Packed, cpu: Accelerator
) -> None:
    drawn = measure(train_set, cpu, "verification")
    assert drawn.pairs == drawn.drawn == 120  # all 60 genuine ones, and as many impostor pairs
    assert any("120 were drawn of its people" in note for note in drawn.notes())
    assert measure(train_set, cpu, "verification", drawn=9).pairs == 18
    manifest = train_set.manifest
    few = replace(manifest, identities=3)
    knows, bare = pixels(train_set, classes=6), pixels()
    assert [default_measure(manifest, named=n) for n in (knows, bare)] == ["class", "verification"]
    assert default_measure(few, named=bare) == "class"
    message = r"no verification pairs, and 3 people are too few .*--measure class or --pairs"
    with pytest.raises(PersonaError, match=message):
        check_measure("verification", bare, few)


def test_plain_values_become_those_of_the_option(tmp_path: Path) -> None:
    options = build_options("verification", {"fars": [0.1], "pairs": "a/b.csv", "resamples": 5})
    assert options == VerificationOptions(resamples=5, pairs=Path("a/b.csv"), fars=(0.1,))
    read = build_options("verification", {"fars": ["1e-3", 1]})  # 1e-3 is a text to YAML 1.1
    assert read == VerificationOptions(fars=(0.001, 1.0))
    assert build_options("class", {}) == Options()
    given: dict[str, Any] = {"trained": ("Ada",), "scores": tmp_path, "flip": True}
    assert build_options("verification", given) == VerificationOptions(**given)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"resamples": "many"}, "resamples in the options of measure verification: expected int"),
        ({"by": 3}, "by in the options of measure verification: expected str"),
        ({"fars": "1e-3"}, "fars in the options of measure verification: expected a list, found"),
        ({"fars": ["low"]}, "fars in the options of measure verification: expected float"),
        ({"fars": [7]}, "fars 7.0: choose rates above 0, up to 1"),
        ({"fars": [float("nan")]}, "fars nan: choose rates above 0, up to 1"),
        ({"fars": (0.1, -1)}, "fars -1: choose rates above 0, up to 1"),
        ({"fars": ("1e-3",)}, "fars '1e-3': choose rates above 0, up to 1"),
        ({"resamples": -1}, "resamples -1: choose 0 to 100000"),
        ({"no_face": "skip"}, "unknown policy for photos without a face 'skip'"),
    ]
    for values, told in wrong:
        with pytest.raises(PersonaError, match=told):
            build_options("verification", values)


def test_sets_that_do_not_fit_a_measure(
    lfw_set: Packed, train_set: Packed, cpu: Accelerator, tmp_path: Path
) -> None:
    triplets = replace(lfw_set, manifest=replace(lfw_set.manifest, kind="triplets"))
    for packed, name, options, message in (
        (triplets, "identification", {}, "set lfw holds triplets: identification needs photos"),
        (triplets, "templates", {"templates": tmp_path}, "holds triplets: templates need photos"),
        (
            lfw_set,
            "identification",
            {"gallery": triplets.faces},
            "gallery lfw holds triplets: it must hold photos",
        ),
    ):
        with pytest.raises(PersonaError, match=message):
            measure(packed, cpu, name, **options)
    strange = pixels(train_set, classes=6)
    unknown = (
        r"are not, or not all, among those that pixels was trained on \(these\): class accuracy"
    )
    with pytest.raises(PersonaError, match=unknown):
        evaluate(strange, lfw_set.faces, cpu, measure="class", quiet=True)
    # Whom the photos show is not known before they are read.
    five = FaceSet(train_set.folder, replace(train_set.manifest, identities=5))
    strange = replace(strange, classes=(*train_set.manifest.classes[:5], "somebody else"))
    with pytest.raises(PersonaError, match=unknown):
        evaluate(strange, five, cpu, measure="class", quiet=True)


def test_a_set_that_has_a_sample_twice_is_refused(lfw_set: Packed, cpu: Accelerator) -> None:
    first = lfw_set.manifest.shards[0]
    twice = FaceSet(lfw_set.folder, replace(lfw_set.manifest, shards=(first, first), samples=14))
    with pytest.raises(
        PersonaError, match="lfw gave 14 samples with 7 keys, its manifest says 14: pack it again"
    ):
        embed_set(Pixels(), twice, cpu, quiet=True)


@pytest.fixture
def ijb(tmp_path: Path) -> tuple[Packed, Path]:
    """36 photos `1.jpg` … of 6 subjects in IJB's layout: 12 templates of 3 photos, 2 media each."""
    write_vggface2(tmp_path, identities=6, photos=6)
    root = tmp_path / "VGGFace2"
    lines = (root / "train_list.txt").read_text().split()
    for number, line in enumerate(lines):
        target = f"{line.partition('/')[0]}/{number + 1}.jpg"
        (root / "train" / line).rename(root / "train" / target)
        lines[number] = target
    (root / "train_list.txt").write_text("\n".join(lines) + "\n")
    packed = pack_photos(open_dataset("vggface2", tmp_path), tmp_path / "ijb", NO_ALIGN)
    folder = tmp_path / "meta"
    folder.mkdir()
    media = [f"{n + 1}.jpg {n // 3 + 1} {n // 3 * 10 + min(n % 3, 1)}" for n in range(36)]
    (folder / "ijbx_face_tid_mid.txt").write_text("\n".join(media) + "\n")
    pairs = [(a, b, (a - 1) // 2 == (b - 1) // 2) for a in range(1, 13) for b in range(a + 1, 13)]
    text = "".join(f"{a} {b} {int(same)}\n" for a, b, same in pairs)
    (folder / "ijbx_template_pair_label.txt").write_text(text)
    head = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    for name, own in (("gallery_G1", (1, 3)), ("gallery_G2", (5,)), ("probe_mixed", (2, 4, 6, 8))):
        rows = "".join(f"{t},{(t - 1) // 2},img/{t}.jpg\n" for t in own)
        (folder / f"ijbx_1N_{name}.csv").write_text(head + rows)
    return packed, folder


def test_templates_are_pooled_by_medium(ijb: tuple[Packed, Path], cpu: Accelerator) -> None:
    packed, folder = ijb
    found = measure(packed, cpu, templates=folder, resamples=50)
    embedded = embed_set(Pixels(), packed.faces, cpu, quiet=True)
    metas = packed.faces.metas()
    by_name = {
        int(metas[int(key)]["source"].rpartition("/")[2][:-4]): row
        for key, row in zip(embedded.keys, embedded.embeddings[:, 0], strict=True)
    }
    templates = {}
    for t in range(12):
        one, two, three = (by_name[t * 3 + n + 1].astype(float) for n in range(3))
        total = one + (two + three) / 2  # the last two are frames of one video
        templates[t + 1] = total / np.linalg.norm(total)
    text = (folder / "ijbx_template_pair_label.txt").read_text()
    rows = [line.split() for line in text.splitlines()]
    scores = np.array([templates[int(a)] @ templates[int(b)] for a, b, _ in rows])
    same = np.array([label == "1" for *_, label in rows])
    wins = (scores[same][:, None] > scores[~same]).mean()
    assert found.auc == pytest.approx(wins, abs=1e-6)
    assert (found.pairs, found.impostors, found.photos, found.no_face) == (66, 60, 36, 0)
    assert list(found.tar_at_far) == ["0.1", "0.01", "0.001", "0.0001", "1e-05", "1e-06"]
    strict = np.sort(scores[~same])[::-1][6]  # 6 of 60 may be accepted
    assert found.tar_at_far["0.1"] == pytest.approx((scores[same] > strict).mean())
    assert found.tar_at_far["0.01"] is None
    first = [templates[p] @ np.array([templates[g] for g in (1, 3, 5)]).T for p in (2, 4, 6)]
    assert found.rank_1 == pytest.approx(np.mean([s.argmax() == n for n, s in enumerate(first)]))
    assert (found.gallery, found.probes, found.non_mated) == (3, 3, 1)
    assert {"auc", "eer", "tar@0.1", "rank_1"} <= set(found.intervals)


def test_bad_lists_of_templates(ijb: tuple[Packed, Path], cpu: Accelerator) -> None:
    packed, folder = ijb
    with pytest.raises(PersonaError, match="give --templates DIR"):
        measure(packed, cpu, "templates")
    pairs, media = folder / "ijbx_template_pair_label.txt", folder / "ijbx_face_tid_mid.txt"
    good = pairs.read_text(), media.read_text()
    for path, text, message in (
        (pairs, "1 2 2\n", "neither 0 nor 1"),
        (pairs, "1 2\n", "expected lines of template template 0|1"),
        (pairs, "1 x 0\n", "expected template template 0"),
        (pairs, "1 2 1\n", "all genuine or all impostor"),
        (media, "1.jpg 1 1\n", "no pair has a photo in both of its templates"),
        (media, "1.jpg 1\n", "line 1: expected photo template medium"),
        (media, "1.jpg one 1\n", "is no number"),
        (media, f"1.jpg {'9' * 30} 1\n", "is no number"),
        (pairs, f"1 {'9' * 30} 0\n", "expected template template 0"),
        (media, "", "is empty"),
        (media, "a.jpg 1 1\nb.jpg 2 2\n", "2 of 2 listed photos are not in set ijb"),
    ):
        path.write_text(text)
        with pytest.raises(PersonaError, match=message):
            measure(packed, cpu, templates=folder)
        pairs.write_text(good[0])
        media.write_text(good[1])
    probe = folder / "ijbx_1N_probe_mixed.csv"
    for text, message in (
        ("TEMPLATE_ID,SUBJECT_ID\n2;0\n", "line 2: expected TEMPLATE_ID,SUBJECT_ID, found '2;0'"),
        (f"TEMPLATE_ID,SUBJECT_ID\n{'9' * 30},0\n", "line 2: expected TEMPLATE_ID,SUBJECT_ID"),
        ("TEMPLATE_ID,SUBJECT_ID\n8,3\n", "no probe template shows a subject of the gallery"),
    ):
        probe.write_text(text)
        with pytest.raises(PersonaError, match=message):
            measure(packed, cpu, templates=folder)
    for path in (media, probe):
        path.write_bytes("Zoë.jpg 1 1\n".encode("latin-1"))
        with pytest.raises(PersonaError, match="is not in UTF-8: save it as UTF-8"):
            measure(packed, cpu, templates=folder)
        path.write_text(good[1])
    media.unlink()
    with pytest.raises(PersonaError, match=r"has 0 files \*_face_tid_mid\.txt, expected one"):
        measure(packed, cpu, templates=folder)


def test_a_protocol_owns_its_figures_and_their_rows(
    lfw_set: Packed, cpu: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another protocol is printed without a change to the command."""
    monkeypatch.setattr(PROTOCOLS, "_items", dict(PROTOCOLS._items))

    @dataclass(frozen=True)
    class Purity(base.Evaluation):
        model: str
        set: str
        measure: str
        purity: float | None = None
        photos: int | None = None
        flip: bool | None = None
        spread: float | None = None

        shown = (("purity", "purity"),)
        counted = ("photos",)

    class Clustering(base.Protocol):
        name = "clustering"
        result = Purity
        chosen_by = "purity"

        def check(self, *_: object) -> None:
            """Any set will do."""

        def figures(self, subject: base.Subject) -> dict[str, Any]:
            return {"purity": 0.75, "photos": 3}

    here = (pixels(), lfw_set.faces, cpu)
    found = evaluate(*here, measure="clustering", quiet=True)
    (table,) = found.tables()
    assert table.titles == ("figure", "value")
    assert table.rows == [["purity", "0.7500"], ["photos", "3"]]
    assert found.notes() == [] and found.score == 0.75
    assert list(found.to_json()) == ["model", "set", "measure", "purity", "photos"]
