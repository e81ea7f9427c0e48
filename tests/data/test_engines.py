"""Sharing a set out: any shard on any machine, killed, twice or at once, to the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_ALIGN, write_faces, write_vggface2
from helpers import environment, persona_error, persona_here

from persona.data import journal, pack
from persona.data.align import AlignSpec
from persona.data.engines import Done, Job, ShardTask, Share, pack_shard
from persona.data.engines.ray_cluster import _Running
from persona.data.journal import Chunk, ShardWriter
from persona.data.pack import (
    PackOptions,
    merge_set,
    pack_photos,
    pack_set,
    pack_share,
    pack_triplets,
    packing_order,
    plan_photos,
    plan_triplets,
)
from persona.data.raw import open_dataset
from persona.data.raw.base import Photo
from persona.data.raw.lfw import LFW
from persona.data.raw.vggface2 import VGGFace2
from persona.data.shards import Manifest, read_manifest, write_manifest
from persona.data.triplets import make_triplets
from persona.errors import PersonaError
from persona.extras import install_command


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.fixture
def local(raw: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one local run makes: 5 shards of VGGFace2's 30 photos."""
    dataset = open_dataset("vggface2", raw)
    return contents(pack_photos(dataset, tmp_path / "local" / "s", NO_ALIGN).folder)


def share(raw: Path, folder: Path, text: str, **changes: object) -> None:
    options = replace(NO_ALIGN, **changes)  # type: ignore[arg-type]
    pack_share(
        plan_photos(open_dataset("vggface2", raw), folder, options), options, Share.parse(text)
    )


@pytest.mark.parametrize(
    "text",
    ["0/4", "5/4", "1/0", "a/b", "3", "-1/2", "1/2/3", "¹/2", "1/²", "1/" + "9" * 5000, ""],
)
def test_bad_shares(text: str) -> None:
    with pytest.raises(PersonaError, match=r"^--task .*(expected I/N|choose 1/)"):
        Share.parse(text)


def test_two_merges_at_once_make_one_set(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one ends just before this one writes the manifest."""
    folder = tmp_path / "shared" / "s"
    share(raw, folder, "1/1")
    write = write_manifest

    def late(folder: Path, manifest: Manifest) -> None:
        monkeypatch.setattr(pack, "write_manifest", write)
        merge_set(folder)
        write(folder, manifest)

    monkeypatch.setattr(pack, "write_manifest", late)
    assert merge_set(folder).manifest == read_manifest(folder)


def test_shares_in_any_order_make_what_one_run_makes(
    raw: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    folder = tmp_path / "shared" / "s"
    for text in ("3/3", "1/3"):
        share(raw, folder, text)
    with pytest.raises(PersonaError, match=r"lacks 2 of 5 .*000001.tar, 000004.tar.*--task 2/3 ag"):
        merge_set(folder)
    share(raw, folder, "2/3")
    assert merge_set(folder).fresh
    assert contents(folder) == local
    assert not merge_set(folder).fresh
    made = {path.name: path.stat().st_ino for path in folder.iterdir()}
    share(raw, folder, "2/3")  # a task that comes late packs nothing again
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == made
    assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == {journal.PLAN}


def test_a_local_run_completes_what_shares_began(
    raw: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    folder = tmp_path / "shared" / "s"
    share(raw, folder, "2/2")
    done = (folder / "000001.tar").stat().st_mtime_ns
    pack_photos(open_dataset("vggface2", raw), folder, NO_ALIGN)
    assert (folder / "000001.tar").stat().st_mtime_ns == done
    assert contents(folder) == local


def test_pairs_are_merged(raw: Path, tmp_path: Path) -> None:
    dataset, folder = open_dataset("lfw", raw), tmp_path / "shared" / "lfw"
    for text in ("1/2", "2/2"):
        pack_share(plan_photos(dataset, folder, NO_ALIGN), NO_ALIGN, Share.parse(text))
    merge_set(folder)
    assert contents(folder) == contents(pack_photos(dataset, tmp_path / "lfw", NO_ALIGN).folder)


@pytest.mark.parametrize("damage", ["cut", "gone", "record"])
def test_a_shard_that_its_record_does_not_match_is_made_again(
    raw: Path, tmp_path: Path, local: dict[str, bytes], damage: str
) -> None:
    folder = tmp_path / "shared" / "s"
    share(raw, folder, "1/1")
    path = folder / "000002.tar"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-512])
    elif damage == "gone":
        path.unlink()
    else:
        (folder / ".000002.json").write_text('{"shard": 1}')
    with pytest.raises(PersonaError, match=r"lacks 1 of 5 shards \(000002.tar\).*--task 1/1"):
        merge_set(folder)
    share(raw, folder, "1/1")
    merge_set(folder)
    assert contents(folder) == local


def test_shards_of_another_plan_are_not_merged(
    raw: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    folder, other = tmp_path / "one" / "s", tmp_path / "two" / "s"
    share(raw, folder, "1/1")
    share(raw, other, "1/1", align=AlignSpec("none", 40, 0))
    for name in ("000003.tar", ".000003.json"):  # as when two machines' disks are put together
        shutil.copy(other / name, folder / name)
    with pytest.raises(PersonaError, match=r"000003.tar differs from the set in alignment"):
        merge_set(folder)
    share(raw, folder, "1/1")  # holds it for missing
    record = json.loads((folder / ".000000.json").read_text())
    record["plan"]["version"] = 1
    (folder / ".000000.json").write_text(json.dumps(record))
    with pytest.raises(PersonaError, match=r"000000.tar differs from the set in version"):
        merge_set(folder)
    with pytest.raises(PersonaError, match=r"holds a set that differs in alignment"):
        share(raw, folder, "1/1", align=AlignSpec("none", 40, 0))
    share(raw, folder, "1/1")
    merge_set(folder)
    assert contents(folder) == local


def test_two_machines_at_one_shard_leave_one_whole_shard(
    raw: Path, tmp_path: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared" / "s"
    append = ShardWriter.append

    def overtaken(self: ShardWriter, chunk: Chunk, items: int) -> None:
        """Half-way through a shard, another machine packs and merges everything."""
        append(self, chunk, items)
        if self.number == 1 and self.items == 4:
            with monkeypatch.context() as other:
                other.setattr(ShardWriter, "append", append)
                other.setattr(journal, "process_name", lambda: "other-1")
                share(raw, folder, "1/1")
                merge_set(folder)

    monkeypatch.setattr(pack, "CHUNK", 4)
    monkeypatch.setattr(ShardWriter, "append", overtaken)
    share(raw, folder, "1/1")
    assert not list(folder.glob("*.partial"))
    assert contents(folder) == local


def test_two_processes_at_the_same_share(
    raw: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    command = [sys.executable, "-m", "persona", "shard", "vggface2", "--raw", str(raw), "-w", "1"]
    command += ["--align", "none", "--image-size", "32", "--margin", "0", "--shard-size", "7"]
    command += ["--task", "1/1", "--out", str(tmp_path / "shared" / "s")]
    both = [subprocess.Popen(command, env=environment(tmp_path)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    merge_set(tmp_path / "shared" / "s")
    assert contents(tmp_path / "shared" / "s") == local


def test_only_what_no_process_holds_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = Chunk(bytes(512), 1, (3,), ())
    monkeypatch.setattr(journal, "process_name", lambda: f"{os.uname().nodename}-1")
    first = ShardWriter(tmp_path, 0, {})
    first.append(chunk, 2)
    monkeypatch.setattr(journal, "process_name", lambda: f"{os.uname().nodename}-2")
    with ShardWriter(tmp_path, 0, {}) as second:
        assert second.items == 0
    first.close()  # as the kernel does for a killed one
    monkeypatch.setattr(journal, "process_name", lambda: "another-1")
    with ShardWriter(tmp_path, 0, {}) as third:
        assert (third.items, third.samples, third.identities) == (2, 1, {3})
        third.append(chunk, 1)
        shard = third.finish().shard
    assert (shard.samples, shard.bytes) == (2, (tmp_path / "000000.tar").stat().st_size)


def build_counting(path: Path):
    """A packer that notes in a file that it was built."""
    with path.open("a") as file:
        file.write("built\n")

    def work(items: Sequence[int]) -> Chunk:
        return Chunk(bytes(512 * len(items)), len(items), tuple(items), ())

    return work


def test_a_task_is_idempotent_and_its_worker_built_once(tmp_path: Path) -> None:
    log = tmp_path / "built"
    job = Job(tmp_path, {"kind": "a"}, build_counting, (log,), chunk=2)
    for number in (1, 0, 1, 0):
        assert pack_shard(job, ShardTask(number, [number] * 5)).items == 5
    assert log.read_text() == "built\n"
    before = (tmp_path / "000001.tar").stat().st_mtime_ns
    pack_shard(replace(job, build=pytest.fail), ShardTask(1, [1] * 5))
    assert (tmp_path / "000001.tar").stat().st_mtime_ns == before
    with pytest.raises(PersonaError, match=r"elsewhere is not there on .*every machine has"):
        pack_shard(replace(job, needs=(tmp_path / "elsewhere",)), ShardTask(2, [1]))


class Deadly(VGGFace2):
    """A photo that costs its reader all memory, as long as a file says so."""

    def read(self, photo: Photo) -> bytes:
        if photo.source.endswith("n000004/0002_01.jpg") and (self.root / "deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(photo)


def test_a_share_goes_on_after_its_worker_was_killed(
    raw: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    dataset, options = Deadly(raw / "VGGFace2"), replace(NO_ALIGN, workers=1)
    (dataset.root / "deadly").touch()
    folder = tmp_path / "shared" / "s"
    with pytest.raises(PersonaError, match=r"a worker process was killed.*goes on where it was$"):
        pack_share(plan_photos(dataset, folder, options), options, Share(1, 1))
    (dataset.root / "deadly").unlink()
    pack_share(plan_photos(dataset, folder, options), options, Share(1, 1))
    merge_set(folder)
    assert contents(folder) == local


def test_triplets_are_shared_out_of_the_packed_split(raw: Path, tmp_path: Path) -> None:
    dataset, shards = open_dataset("vggface2", raw, "test"), tmp_path / "shards"
    card = make_triplets(
        dataset.index(), 20, dataset="vggface2", split="test", seed=0, shards=shards
    )
    folder = tmp_path / "shared" / card.id
    packing = plan_triplets(dataset, card.id, shards, NO_ALIGN, folder)
    with pytest.raises(PersonaError, match=r"run `persona shard vggface2 --split test` with the"):
        pack_share(packing, NO_ALIGN, Share(1, 2))
    pack_photos(dataset, shards / dataset.set_name, NO_ALIGN)
    for number in (1, 2):
        pack_share(packing, NO_ALIGN, Share(number, 2))
    merge_set(folder)
    assert contents(folder) == {
        name: data
        for name, data in contents(pack_triplets(dataset, card.id, shards, NO_ALIGN).folder).items()
        if not name.startswith("triplets.")
    }


def test_ray_that_is_not_installed_or_not_there(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["shard", "vggface2", "--raw", str(raw), "--align", "none", "--engine", "ray"]
    with pytest.raises(PersonaError, match=r"no Ray cluster at 'nowhere' .*HOST:PORT"):
        persona_here(*arguments, "--address", "nowhere", home=tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PersonaError, match=re.escape(install_command("ray"))):
        persona_here(*arguments, home=tmp_path)


# --- a real cluster ----------------------------------------------------------------------------

TWO_NODES = """
import json, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

command, folder, shards = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
run = subprocess.Popen([*command, "--address", cluster.address])
while len(list(folder.glob("*.tar"))) < shards // 3:
    assert run.poll() is None
    time.sleep(0.01)
cluster.remove_node(second, allow_graceful=False)
assert len(list(folder.glob("*.tar"))) < shards, "it was over before the node was killed"
code = run.wait()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.heavy
def test_ray_on_two_nodes_one_of_them_killed(tmp_path: Path) -> None:
    write_vggface2(tmp_path, identities=40, photos=40, size_px=400)
    command = [sys.executable, "-m", "persona", "shard", "vggface2", "--raw", str(tmp_path)]
    command += ["--align", "none", "--shard-size", "64", "--out"]
    subprocess.run([*command, str(tmp_path / "local" / "s")], check=True)
    folder = tmp_path / "ray" / "s"
    on_ray = [*command, str(folder), "--engine", "ray"]
    script = [sys.executable, "-c", TWO_NODES, json.dumps(on_ray), str(folder), "25"]
    env = environment(tmp_path, RAY_USAGE_STATS_ENABLED="0")
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(folder) == contents(tmp_path / "local" / "s")
    assert not list(folder.glob("*.partial"))


ON_RAY = """
import sys
from dataclasses import replace
from pathlib import Path
from persona.data.pack import pack_photos
from persona.errors import PersonaError
import test_engines

kind, options, root, folder = sys.argv[1:]
try:
    options = replace(getattr(test_engines, options), engine="ray", workers=2)
    pack_photos(getattr(test_engines, kind)(Path(root)), Path(folder), options)
except PersonaError as error:
    sys.exit(str(error))
"""


def pack_on_ray(kind: str, options: str, root: Path, folder: Path) -> str:
    """Packs a dataset of this file on a Ray cluster of this machine; the error's line."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests, Path(__file__).parent)))
    script = [sys.executable, "-c", ON_RAY, kind, options, str(root), str(folder)]
    env = environment(root, PYTHONPATH=path)
    return subprocess.run(script, env=env, capture_output=True, text=True, check=False).stderr


class Watched(VGGFace2):
    """Its twelfth photo in packing's order is held back until a file is there."""

    def read(self, photo: Photo) -> bytes:
        if photo.source == self.held:
            while not (self.root / "go").exists():
                time.sleep(0.01)
        return super().read(photo)

    held = ""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_bar_advances_with_the_photos_and_on_resume(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Not with chunks or shards; what an earlier run had packed is told as that."""
    told: list[tuple[int, bool]] = []
    dataset = Watched(raw / "VGGFace2")
    index = dataset.index()
    dataset.held = index.photos[int(packing_order(dataset, index.photos)[11])].source
    go = dataset.root / "go"

    @contextlib.contextmanager
    def bar(*_: object, total: int, done: int = 0, **__: object) -> Iterator[Any]:
        def advance(count: int, *, earlier: bool = False) -> None:
            told.append((count, earlier))
            if sum(count for count, _ in told) == 11 or workers == 2:
                go.touch()

        assert total == 30
        told.append((done, True))
        yield advance

    monkeypatch.setattr("persona.data.pack.progress_bar", bar)
    if workers == 0:
        go.touch()
    options = replace(NO_ALIGN, workers=workers, shard_size=15)
    monkeypatch.setattr("persona.data.pack.CHUNK", 15)
    pack_photos(dataset, tmp_path / "s", options, index=index)
    assert told == [(0, True)] + [(1, False)] * 30

    # A run that is killed in its second shard, with five photos a line of the journal.
    monkeypatch.setattr("persona.data.pack.CHUNK", 5)
    told.clear()
    plan = plan_photos(dataset, tmp_path / "t", options, index=index)
    made = ShardWriter.append
    lines: list[int] = []

    def killed(self: ShardWriter, chunk: Chunk, items: int) -> None:
        made(self, chunk, items)
        lines.append(items)
        if len(lines) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            pack_set(plan, options)
    told.clear()
    pack_set(plan, options)
    assert [entry for entry in told if entry[1]] == [(15, True), (5, True)]
    assert [entry for entry in told if not entry[1]] == [(1, False)] * 10


def test_ray_tells_what_its_journals_tell(tmp_path: Path) -> None:
    """Here Ray is a stand-in: its task is ready when it was waited for three times."""
    told: list[tuple[int, bool]] = []

    def advance(count: int, *, earlier: bool = False) -> None:
        told.append((count, earlier))

    def journal(*items: int) -> None:
        lines = "".join(json.dumps({"items": count}) + "\n" for count in items)
        (tmp_path / ".000007.tar.host-1.jsonl").write_text(lines + '{"items": 9')

    class Ray:
        turns = 0

        def wait(self, tasks: list[str], **_: object) -> tuple[list[str], list[str]]:
            self.turns += 1
            journal(*[64] * (1 + self.turns))
            return (tasks, []) if self.turns == 3 else ([], tasks)

        def get(self, _: str) -> Done:
            return Done(300, ())

    running = _Running(Ray(), tmp_path, advance)
    journal(64)
    running.add("task", 7)
    assert running.next() == Done(300, ())
    assert told == [(64, True), (64, False), (64, False), (108, False)]
    assert not running.tasks


@pytest.mark.heavy
def test_ray_workers_that_are_killed(raw: Path, tmp_path: Path, local: dict[str, bytes]) -> None:
    root, folder = raw / "VGGFace2", tmp_path / "ray" / "s"
    (root / "deadly").touch()
    error = pack_on_ray("Deadly", "NO_ALIGN", root, folder)
    assert error.strip().startswith("Ray has lost a shard's worker 4 times"), error
    (root / "deadly").unlink()
    pack_on_ray("Deadly", "NO_ALIGN", root, folder)
    assert contents(folder) == local


MTCNN = PackOptions(shard_size=8, workers=1, device="cpu")


class DeadlyOnce(LFW):
    """A photo whose first reader is killed."""

    def read(self, photo: Photo) -> bytes:
        if photo.source.endswith("_0002.jpg"):
            with contextlib.suppress(FileNotFoundError):
                (self.root / "deadly").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().read(photo)


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["ray", "shares"])
def test_detected_faces_are_those_of_a_local_run(tmp_path: Path, engine: str) -> None:
    root, folder = write_faces(tmp_path / "raw"), tmp_path / engine / "s"
    local = contents(pack_photos(LFW(root), tmp_path / "local" / "s", MTCNN).folder)
    (root / "deadly").touch()
    if engine == "ray":  # which tries the shard again
        pack_on_ray("DeadlyOnce", "MTCNN", root, folder)
    else:
        packing = plan_photos(DeadlyOnce(root), folder, MTCNN)
        with pytest.raises(PersonaError, match="a worker process was killed"):
            pack_share(packing, MTCNN, Share(1, 2))
        for number in (2, 1):
            pack_share(packing, MTCNN, Share(number, 2))
        merge_set(folder)
    assert not (root / "deadly").exists()
    assert contents(folder) == local
    assert json.loads(local["manifest.json"])["samples"] >= 18


def test_commands_explain_shares(raw: Path, tmp_path: Path) -> None:
    shard = ("shard", "vggface2", "--raw", str(raw))
    line = persona_error(*shard, "--task", "5/4", home=tmp_path)
    assert line == "error: --task 5/4: choose 1/4 to 4/4"
    for more, message in (
        (("--task", "1/2", "--engine", "ray"), "leave one of --task and --engine out"),
        (("--task", "1/2", "--teacher", "a"), "run `persona targets` after the merge"),
        (("--address", "a:1"), "add --engine ray"),
        (("--engine", "spark"), "unknown engine 'spark'; known: local, ray"),
    ):
        with pytest.raises(PersonaError, match=message):
            persona_here(*shard, *more, home=tmp_path)
    with pytest.raises(PersonaError, match="unknown unmerged set 'vggface2'"):
        persona_here("shards", "merge", "vggface2", home=tmp_path)
    small = ("--align", "none", "--image-size", "32", "--margin", "0", "-w", "1")
    done = persona_here(*shard, *small, "--task", "1/1", home=tmp_path)
    assert (done["task"], done["shards"], done["of_shards"]) == ("1/1", 1, 1)
    merged = persona_here("shards", "merge", "vggface2", home=tmp_path)
    assert (merged["name"], merged["samples"], merged["fresh"]) == ("vggface2-train", 30, True)


def test_a_finished_set_is_a_finished_share(raw: Path, tmp_path: Path) -> None:
    packing = plan_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN)
    pack_set(packing, NO_ALIGN)
    before = contents(tmp_path / "s")
    assert pack_share(packing, NO_ALIGN, Share(1, 2)).shards == 3
    assert contents(tmp_path / "s") == before
