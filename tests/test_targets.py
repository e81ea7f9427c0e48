"""A teacher's embeddings kept beside the shards: made, replayed, interrupted, damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import NO_ALIGN, SIZE_PX
from helpers import persona_here
from pair import Pair
from servers import Faults, web_server

import persona.targets
from persona.config import AugmentConfig, LossesConfig, StudentConfig, from_dict
from persona.data.kept_targets import (
    CARD,
    HEAD,
    Targets,
    check_targets,
    file_names,
    find_targets,
    read_targets,
    short_name,
    targets_folder,
)
from persona.data.pack import Packed, pack_photos, pack_triplets
from persona.data.raw import open_dataset
from persona.data.sets import FaceSet, open_set, verify_set
from persona.data.storage import RemoteFolder
from persona.data.stream import Batch, build_loader
from persona.data.transforms import apply_views, normalise
from persona.data.triplets import make_triplets
from persona.data.views import IDENTITY, MIRROR, identity_view, mirror_view, view_columns
from persona.errors import PersonaError
from persona.models.output import ClassifierHead, FaceNetwork
from persona.models.sources import NamedNetwork
from persona.models.store import load_head
from persona.models.student import Student
from persona.targets import TargetOptions, make_targets
from persona.training.task import DistillationTask
from persona.training.teacher import Teacher

STRONG = AugmentConfig(crop=0.3, low_resolution=0.5, grey=0.3, jitter=0.4, erase=0.5)
WIDER = AugmentConfig(crop=0.2, rotation=20, shift=0.1, blur=0.5, gamma=0.5)
"""Its views have more columns than the standard ones."""


class Pooled(FaceNetwork):
    """A linear map of the pooled photo: an untrained MobileNet gives all photos one embedding."""

    num_classes = 6
    embedding_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(48, 16)
        self.logits = ClassifierHead(16, 6, "linear")

    def features(
        self, images_BCHW: torch.Tensor, landmarks_B62: torch.Tensor | None = None
    ) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images_BCHW, 4).flatten(1)
        return torch.nn.functional.linear(pooled, self.body.weight, self.body.bias)

    def classify(self, features_BE: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.logits(features_BE)
        return result

    def head(self) -> ClassifierHead:
        return self.logits


class Averages(Pooled):
    """No layer that autocast would touch."""

    embedding_size = 48

    def features(
        self, images_BCHW: torch.Tensor, landmarks_B62: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images_BCHW, 4).flatten(1)


CLASSES = tuple(f"n{number:06d}" for number in range(2, 8))


def teacher(seed: int = 0) -> NamedNetwork:
    torch.manual_seed(seed)
    network = Pooled().eval()
    return NamedNetwork("t", network, "vggface2-train", CLASSES, SIZE_PX, f"digest-{seed}")


def make(packed: Packed, named: NamedNetwork | None = None, **options: Any) -> Targets:
    targets, _ = make_targets(
        packed.faces,
        named or teacher(),
        TargetOptions(workers=0, batch_size=7, **options),
        Accelerator(cpu=True),
    )
    return targets


def batches(
    packed: Packed, targets: Targets | None, augment: AugmentConfig, **options: Any
) -> list[Batch]:
    loader = build_loader(
        packed.faces,
        batch_size=5,
        training=True,
        augment=augment,
        targets=targets,
        **options,
    )
    return list(loader)


def vectors(named: NamedNetwork, batch: Batch, augment: AugmentConfig = STRONG) -> torch.Tensor:
    with torch.no_grad():
        images = apply_views(batch.images, batch.views.numpy(), augment)
        return named.network.features(normalise(images))


def test_a_recipe_that_does_not_mirror_is_shown_no_mirror_image(train_set: Packed) -> None:
    unmirrored = AugmentConfig(STRONG.options, flip=False)
    targets = make(train_set, views=4, augment=unmirrored)
    flips = [
        b.views[:, 0] for e in range(6) for b in batches(train_set, targets, unmirrored, epoch=e)
    ]
    assert float(torch.cat(flips).max()) == 0


def test_a_recipe_that_only_mirrors_reads_views_of_more_columns(train_set: Packed) -> None:
    targets = make(train_set, views=4, augment=WIDER)
    for batch in batches(train_set, targets, AugmentConfig()):
        assert batch.views.shape[1] == len(view_columns(WIDER)) > len(IDENTITY)
        assert {row.tobytes() for row in batch.views.numpy()} <= {
            identity_view(WIDER).tobytes(),
            mirror_view(WIDER).tobytes(),
        }


def test_a_changed_last_layer_is_noticed(train_set: Packed) -> None:
    targets = make(train_set)
    path = targets_folder(train_set.folder, "t") / HEAD
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(PersonaError, match=r"head\.safetensors is missing or does not match"):
        check_targets(train_set.faces, targets, deep=False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_teachers_precision_does_not_change_the_picture(
    train_set: Packed, precision: str
) -> None:
    network = Averages().eval()
    network.num_classes = 0
    named = NamedNetwork("t", network, "nothing", (), SIZE_PX, "digest")
    targets = make(train_set, named, views=6, augment=STRONG, precision=precision)
    for batch in batches(train_set, targets, STRONG):
        assert batch.targets is not None
        torch.testing.assert_close(batch.targets, vectors(named, batch).half())


@pytest.mark.parametrize(
    ("views", "augment"), [(2, AugmentConfig()), (2, WIDER), (6, STRONG), (6, WIDER)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_kept_vector_is_the_teachers_of_the_view_that_is_shown(
    train_set: Packed, views: int, augment: AugmentConfig, workers: int
) -> None:
    named = teacher()
    targets = make(train_set, named, views=views, augment=augment)
    shown = augment if views > 2 else AugmentConfig()
    assert targets.augment == shown
    seen = set()
    for epoch in range(3):
        for batch in batches(train_set, targets, shown, epoch=epoch, workers=workers):
            assert batch.targets is not None and batch.targets.dtype == torch.float16
            torch.testing.assert_close(
                batch.targets.float(),
                vectors(named, batch, targets.augment),
                rtol=2e-3,
                atol=2e-3,
            )
            seen |= {view.tobytes() for view in batch.views.numpy()}
    if views == 2:
        assert seen == {IDENTITY.tobytes(), MIRROR.tobytes()}
    else:
        assert len(seen) > 30  # drawn for each photo, not once for all


def test_kept_and_online_targets_give_the_same_loss(train_set: Packed) -> None:
    """The same photos, the same flips, within float16 rounding."""
    named = teacher()
    targets = make(train_set, named)
    place = targets_folder(train_set.folder, "t")
    head = load_head(place / HEAD, embedding_size=16, num_classes=6, kind=targets.head)
    terms: dict[str, Any] = {
        "soft_targets": {},
        "hard_labels": {},
        "embedding_l2": {},
        "rkd_distance": {},
    }
    config = from_dict(LossesConfig, terms, where="a test")
    student: Any = teacher(seed=1).network
    online = DistillationTask(
        student, student, Teacher(named.network, named.network.head()), config, 6
    )
    kept = DistillationTask(student, student, Teacher(None, head), config, 6)
    augment = AugmentConfig()
    pairs = zip(
        batches(train_set, None, augment), batches(train_set, targets, augment), strict=True
    )
    for one, two in pairs:
        assert torch.equal(one.keys, two.keys) and torch.equal(one.views, two.views)
        assert one.targets is None
        images = normalise(apply_views(one.images, one.views.numpy()))
        total, found = online.eval()(images, one.labels)
        again, found_again = kept.eval()(images, two.labels, two.targets)
        torch.testing.assert_close(total, again, rtol=2e-3, atol=1e-3)
        torch.testing.assert_close(found, found_again, rtol=2e-3, atol=1e-3)
    # The teacher itself is not needed, and its last layer is held once.
    assert kept.teacher is not None and kept.teacher.network is None


def test_triplets_keep_three_vectors_a_sample(raw: Path, tmp_path: Path) -> None:
    dataset = open_dataset("vggface2", raw, "train")
    card = make_triplets(
        dataset.index(), 10, dataset=dataset.name, split="train", seed=0, shards=tmp_path / "shards"
    )
    packed = pack_triplets(dataset, card.id, tmp_path / "shards", NO_ALIGN)
    named = teacher()
    targets = make(packed, named)
    assert sum(file.photos for file in targets.files) == 30
    for batch in batches(packed, targets, AugmentConfig()):
        assert batch.targets is not None
        torch.testing.assert_close(
            batch.targets.float(), vectors(named, batch), rtol=2e-3, atol=2e-3
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_interrupted_it_goes_on_to_the_same_bytes(
    train_set: Packed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = targets_folder(train_set.folder, "t")
    make(train_set, views=3, augment=STRONG)
    whole = contents(place)
    for path in place.iterdir():
        path.unlink()
    real, calls = persona.targets._features, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(persona.targets, "_features", failing)
    runs = 0
    while not (place / CARD).exists():
        runs += 1
        try:
            make(train_set, views=3, augment=STRONG)
        except KeyboardInterrupt:
            assert not (place / CARD).exists()
            assert find_targets(train_set.folder, "t") is None
    assert runs > 3
    # 30 photos, two a forward (7 // 3), 7 or 2 a shard: nothing was computed twice.
    assert calls - (runs - 1) == 4 * 4 + 1
    assert contents(place) == whole
    assert make_targets(
        train_set.faces,
        teacher(),
        TargetOptions(workers=0, views=3, augment=STRONG),
        Accelerator(cpu=True),
    ) == (read_targets(place), False)


def test_killed_between_two_renamings_it_keeps_no_zeros(
    train_set: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal then tells of full arrays, and the next run begins with empty ones."""
    place = targets_folder(train_set.folder, "t")
    make(train_set)
    whole = contents(place)
    (place / CARD).unlink()
    second = place / file_names(0)[1]
    second.rename(place / f".{second.name}.partial")
    (place / ".000000.done").write_text(str(train_set.manifest.shards[0].samples))

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(persona.targets, "_features", killed)
        make(train_set)
    make(train_set)
    assert contents(place) == whole


def test_shards_and_their_checksums_stay_as_they_were(train_set: Packed) -> None:
    make(train_set)
    verify_set(train_set.faces)


@pytest.mark.parametrize(
    "other",
    [{"named": teacher(1)}, {"views": 3, "augment": STRONG}, {"precision": "bf16"}],
)
def test_other_targets_are_not_mixed_in(train_set: Packed, other: dict[str, Any]) -> None:
    make(train_set)
    with pytest.raises(
        PersonaError, match=r"holds targets that differ in (views|weights|augment|precision)"
    ):
        make(train_set, **other)


def damage(place: Path, kind: str) -> None:
    features, views = (place / name for name in file_names(1))
    array = np.load(features)
    if kind == "missing file":
        features.unlink()
    elif kind == "missing photos":
        np.save(features, array[:-2])
    elif kind == "another width":
        np.save(features, array[..., :-1])
    elif kind == "cut":
        features.write_bytes(features.read_bytes()[:200])
    elif kind == "a pickle":
        np.save(features, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "integers":
        np.save(features, array.astype(np.int8))
    elif kind == "changed":
        array[0, 0, 0] += 1
        np.save(features, array)
    elif kind == "views":
        views.unlink()
    elif kind == "card":
        (place / CARD).write_text("{}")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing file", r"000001\.features\.npy is missing"),
        ("missing photos", r"lacks 2 of 7 photos"),
        ("another width", r"holds \(2, 15\) numbers a photo, its card says \(2, 16\)"),
        ("cut", "is damaged"),
        ("a pickle", "is damaged"),
        ("integers", "holds int8, not embeddings"),
        ("changed", "does not match its checksum"),
        ("views", r"000001\.views\.npy is missing"),
        ("card", "is no card of targets"),
    ],
)
def test_damaged_targets_are_refused(train_set: Packed, kind: str, message: str) -> None:
    make(train_set)
    damage(targets_folder(train_set.folder, "t"), kind)
    with pytest.raises(PersonaError, match=message):
        targets = find_targets(train_set.folder, "t")
        assert targets is not None
        check_targets(train_set.faces, targets, deep=kind == "changed")


def test_files_that_were_changed_before_the_card_are_not_taken(train_set: Packed) -> None:
    make(train_set)
    place = targets_folder(train_set.folder, "t")
    (place / CARD).unlink()
    damage(place, "cut")
    with pytest.raises(
        PersonaError, match=r"000001\.features\.npy is damaged: remove .*/t and make"
    ):
        make(train_set)
    assert not (place / CARD).exists()


def test_views_that_are_no_numbers_are_refused(train_set: Packed) -> None:
    targets = make(train_set)
    path = targets_folder(train_set.folder, "t") / file_names(0)[1]
    for value in (np.nan, 1e9):
        array = np.load(path)
        array[:, :, 4] = value
        np.save(path, array)
        with pytest.raises(PersonaError, match="or the views beside it, holds numbers"):
            batches(train_set, targets, AugmentConfig())


@pytest.mark.parametrize("text", ["", "[]", "{", "\x80"])
def test_a_damaged_plan_is_refused(train_set: Packed, text: str) -> None:
    make(train_set)
    plan = targets_folder(train_set.folder, "t") / ".plan.json"
    plan.write_bytes(text.encode("latin-1"))
    with pytest.raises(PersonaError, match=r"\.plan\.json is (not valid JSON|damaged)"):
        make(train_set)


def test_targets_of_other_crops_are_refused(train_set: Packed) -> None:
    targets = make(train_set)
    first, *rest = train_set.manifest.shards
    other = replace(train_set.manifest, shards=(replace(first, sha256="0" * 64), *rest))
    with pytest.raises(PersonaError, match="of other crops than the set's"):
        check_targets(FaceSet(train_set.folder, other), targets, deep=False)


def test_a_vector_that_is_not_finite_is_named(train_set: Packed) -> None:
    targets = make(train_set)
    path = targets_folder(train_set.folder, "t") / file_names(2)[0]
    array = np.load(path)
    array[3] = np.nan
    np.save(path, array)
    with pytest.raises(
        PersonaError, match=r"000002\.features\.npy, or .* out of range, for photo 3"
    ):
        batches(train_set, targets, AugmentConfig())


def test_a_teacher_beyond_float16_is_refused(train_set: Packed) -> None:
    named = teacher()
    with torch.no_grad():
        named.network.body.weight.mul_(1e6)  # type: ignore[union-attr, operator]
    with pytest.raises(PersonaError, match=r"not finite in float16 for sample 000000\d\d"):
        make(train_set, named)
    assert find_targets(train_set.folder, "t") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 1}, "1 views: choose 2"),
        ({"views": 10**6}, "choose 2"),
        ({"views": 8}, "a recipe that only mirrors"),
    ],
)
def test_absurd_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        TargetOptions(**options)


def test_names_do_not_tell_where_a_file_lies() -> None:
    assert short_name("onnx:/home/somebody/net.onnx") == "onnx:net.onnx"
    assert short_name(short_name("onnx:a/net.onnx")) == "onnx:net.onnx"
    assert short_name("facenet-vggface2") == "facenet-vggface2"
    assert targets_folder(Path("s"), "onnx:/a/../b.onnx") == Path("s/targets/onnx-b.onnx")
    assert targets_folder(Path("s"), "../../etc").parent == Path("s/targets")


def test_two_processes_keep_what_one_does(raw: Path, tmp_path: Path, pair: Pair) -> None:
    from persona.models.store import save_model

    student = Student(StudentConfig(embedding_size=16), 6, image_size=SIZE_PX)
    facts: dict[str, Any] = {
        "teacher": "none", "temperature": None, "epochs": 1, "score": None, "scores": {},
        "train_set": "x", "test_set": "none", "config": {},
    }  # fmt: skip
    save_model(tmp_path / "models", student, model_id="t", classes=CLASSES, **facts)
    dataset = open_dataset("vggface2", raw, "train")
    kept = []
    for name, start in (("one", persona_here), ("two", pair.persona)):
        home = tmp_path / name
        pack_photos(dataset, home / "shards" / dataset.set_name, NO_ALIGN)
        options = ("--teacher", "t", "--models", str(tmp_path / "models"), "-b", "4")
        row = start("targets", "vggface2", *options, home=home)
        assert (row["photos"], row["views"], row["logits"], row["fresh"]) == (30, 2, 6, True)
        kept.append(contents(Path(row["path"])))
    one, two = kept
    assert one == two
    assert {"targets.json", "head.safetensors", "000004.features.npy"} <= one.keys()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_kept_targets_are_read_from_elsewhere(
    train_set: Packed, tmp_path: Path, workers: int
) -> None:
    make(train_set)
    faults = Faults()
    with web_server(train_set.folder.parent, faults) as url:
        faces = open_set(f"{url}/{train_set.folder.name}", tmp_path)
        targets = find_targets(faces.folder, "t")
        assert targets == find_targets(train_set.folder, "t")
        assert find_targets(faces.folder, "another") is None
        assert targets is not None
        check_targets(faces, targets, deep=False)
        elsewhere = list(
            build_loader(
                faces,
                batch_size=5,
                training=True,
                augment=AugmentConfig(),
                targets=targets,
                workers=workers,
            )
        )
        here = batches(train_set, targets, AugmentConfig())
    for one, two in zip(here, elsewhere, strict=True):
        assert one.keys.equal(two.keys)
        assert one.targets is not None and two.targets is not None
        assert one.targets.equal(two.targets)
    assert isinstance(faces.folder, RemoteFolder)
    local = faces.folder.local
    assert not [*local.rglob("*.npy"), *local.rglob("*.tar")]


def test_remote_targets_that_are_not_what_their_card_says(
    train_set: Packed, tmp_path: Path
) -> None:
    make(train_set)
    path = train_set.folder / "targets" / "t" / "000001.views.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with web_server(train_set.folder.parent, Faults()) as url:
        faces = open_set(f"{url}/{train_set.folder.name}", tmp_path)
        targets = find_targets(faces.folder, "t")
        options: Any = {"augment": AugmentConfig(), "targets": targets}
        with pytest.raises(PersonaError, match=r"000001\.views\.npy does not match its checksum"):
            list(build_loader(faces, batch_size=5, training=True, **options))
