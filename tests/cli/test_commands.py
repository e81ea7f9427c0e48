"""The commands as a user types them, and what they say when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import jpeg, write_lfw, write_vggface2
from helpers import _here, environment, persona_error, persona_error_here, persona_here, run
from typer.testing import CliRunner

from persona.cli import signals
from persona.cli.app import app, name_default_teacher
from persona.cli.errors import explain, run_app
from persona.cli.triplets import make as make_triplets
from persona.data.sets import open_set
from persona.errors import PersonaError, resumed_by
from persona.models import cards

PLACES = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
NO_ALIGN = ("--align", "none", "--image-size", "32", "--margin", "0", "--workers", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with raw datasets under its data/raw."""
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "data" / "raw")
    write_lfw(folder / "data" / "raw")
    return folder


def test_the_whole_way_from_photos_to_packed_triplets(home: Path) -> None:
    rows = {(r["dataset"], r["split"]): r for r in persona_here("datasets", home=home)}
    assert rows["vggface2", "train"]["state"] == "complete"
    assert (rows["lfw", "all"]["identities"], rows["lfw", "all"]["photos"]) == (6, 24)
    assert rows["agedb", "all"]["state"] == "missing"

    packed = persona_here("shard", "vggface2", "--split", "test", *NO_ALIGN, home=home)
    keys = ["name", "dataset", "split", "samples", "identities", "shards", "skipped", "mended"]
    assert list(packed)[:8] == keys
    assert (packed["name"], packed["samples"]) == ("vggface2-test", 30)

    card = persona_here("triplets", "make", "15", "vggface2", "--split", "test", home=home)
    assert persona_here("triplets", "list", home=home)[0]["packed"] is False
    covered = persona_here("triplets", "coverage", "--set", card["id"], home=home)
    assert list(covered) == ["id", "triplets", "class_coverage", "image_coverage"]
    assert covered["class_coverage"] == 1.0
    arguments = ("shard", "vggface2", "--split", "test", "--triplets", card["id"], *NO_ALIGN)
    assert persona_here(*arguments, home=home)["samples"] == 15
    listed = persona_here("shards", "list", home=home)
    assert [list(row) for row in listed] == [keys, keys]
    assert persona_here("shards", "verify", card["id"], home=home)["verified"] is True
    figures = persona_here(
        "evaluate", "--set", card["id"], "--model", "mobilenet_v3_small", home=home
    )
    names = ["model", "set", "measure", "accuracy", "auc", "triplets", "no_face"]
    assert list(figures)[:7] == names
    assert (figures["measure"], figures["triplets"]) == ("match", 15)


def test_what_is_empty_says_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "ZOO", tmp_path / "none")
    for command, step in (
        (("shards", "list"), "`persona shard DATASET` packs one"),
        (("triplets", "list"), "`persona triplets make NUMBER DATASET` draws one"),
        (("models", "list"), "`accelerate launch -m persona.distill` trains one"),
    ):
        done = _here(app, command, tmp_path)
        assert done.stdout == "" and step in done.stderr
        assert persona_here(*command, home=tmp_path) == []


def test_a_dataset_that_cannot_be_listed_says_why(tmp_path: Path) -> None:
    (tmp_path / "data" / "raw" / "AgeDB").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "AgeDB" / "1_X_3²_f.jpg").write_bytes(jpeg(1))
    done = _here(app, ("datasets",), tmp_path)
    assert "agedb (all): " in done.stderr and "3²_f.jpg: expected <id>_<Name>" in done.stderr
    rows = {row["dataset"]: row for row in persona_here("datasets", home=tmp_path)}
    assert rows["agedb"]["state"] == "missing"


def test_json_is_alone_on_stdout_and_no_bar_on_a_pipe(home: Path) -> None:
    done = run("persona", "shard", "lfw", *NO_ALIGN, "--json", home=home)
    assert json.loads(done.stdout)["samples"] == 24
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("shard",),
        ("distill",),
        ("triplets", "make"),
        ("evaluate",),
        ("compare",),
        ("export",),
        ("demo",),
    ],
)
def test_help_answers_without_torch(arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.argv = ['persona', *{arguments!r}, '--help']\n"
        "from persona.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False 0"


def test_distill_help_answers_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['distill', '--help']\n"
        "try:\n    runpy.run_module('persona.distill', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--temperature" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_a_teacher_without_a_name_is_facenet() -> None:
    named = ["evaluate", "--teacher", "facenet-vggface2"]
    assert name_default_teacher(["evaluate", "--teacher"]) == named
    assert name_default_teacher(["evaluate", "--teacher", "--json"]) == [*named, "--json"]
    assert name_default_teacher(["evaluate", "--teacher", "m1"]) == ["evaluate", "--teacher", "m1"]
    assert name_default_teacher(["models", "list"]) == ["models", "list"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shard", "imagenet"), "unknown dataset 'imagenet'"),
        (("shard", "agedb"), "agedb is not at"),
        (("shard", "vggface2", "--split", "val"), "unknown split 'val'"),
        (("shard", "vggface2", "--align", "boxes"), "no face boxes at"),
        (("shard", "lfw", "--align", "boxes"), "has no face boxes of its own"),
        (("shard", "lfw", "--align", "magic"), "unknown alignment 'magic'"),
        (("shard", "lfw", "--workers", "0"), "0 workers: choose at least 1"),
        (("shard", "lfw", "--image-size", "-5"), "image size -5 px"),
        (("shard", "lfw", "--image-size", "0"), "image size 0 px"),
        (("shard", "lfw", "--shard-size", "0"), "shard size 0"),
        (("shard", "lfw", "--triplets", "nope"), "unknown triplet set 'nope'"),
        (("triplets", "make", "0", "vggface2"), "0 triplets: choose 1"),
        (("triplets", "make", "9" * 18, "vggface2"), "triplets: choose 1"),
        (("triplets", "coverage", "--set", "nope"), "unknown triplet set 'nope'"),
        (("shards", "verify", "nope"), "unknown set 'nope'"),
        (("evaluate", "--set", "nope"), "unknown set 'nope'"),
        (
            ("evaluate", "--set", "casia-webface"),
            "run `persona shard casia-webface --align landmarks --image-size 112` for Persona-S "
            "and most networks, or `persona shard casia-webface` for FaceNet",
        ),
        (("evaluate", "--set", "synthetic-test"), "shard synthetic --split test --align"),
        (("evaluate", "--set", "folders:my photos"), "`persona shard 'folders:my photos' --align"),
        (("verify", "x", "y", "--model", "b"), "unknown model 'b'"),
        (("verify", "x", "y", "--student", "b"), "unknown model 'b'"),
        (("verify", "x", "y", "--teacher", "b.onnx"), "no ONNX file at b.onnx"),
        (("bench", "b.tflite"), "no LiteRT file at b.tflite"),
        (
            ("verify", "x", "y", "--threshold", "0.4", "--far", "1e-3"),
            "one of --threshold and --far",
        ),
        (("group", "x", "--threshold", "0.4", "--far", "1e-5"), "one of --threshold and --far"),
        (
            ("gallery", "calibrate", "--threshold", "0.4", "--far", "1e-3"),
            "give one of --set SET (with --far), --far R alone, and --threshold X",
        ),
        (
            ("verify", "x", "y", "--far", "1e-5", "--model", "persona-s"),
            "persona-s has no threshold for a FAR of 1e-5: its card has 1e-2, 1e-3, 1e-4",
        ),
        (
            ("verify", "x", "y", "--far", "1e-3", "--model", "mobilenet_v3_small"),
            "mobilenet_v3_small has no thresholds of its own: name a set of people",
        ),
        (
            ("learn", "--seed", "0", "--lr", "1e-3", "gallery", "--test-set", "others"),
            "--lr, --seed before `gallery` would have no effect: put it behind, as in `",
        ),
        (
            ("learn", "--student", "b", "--no-verify", "benchmark"),
            "--model, --verify before `benchmark` would have no effect",
        ),
        (("learn", "gallery", "--seed", "3", "--test-set", "nope"), "unknown set 'nope'"),
        (
            ("learn", "gallery", "--test-set", "nope", "-o", "hold_out=0.3"),
            "-o hold_out: this command sets hold_out itself: leave it out",
        ),
        (
            ("learn", "benchmark", "--on", "nope", "-o", "tracker=wandb"),
            "-o tracker: this command sets tracker itself",
        ),
    ],
)
def test_bad_input_is_explained(home: Path, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"PERSONA_HOME": str(home)})
    assert isinstance(result.exception, PersonaError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_an_error_is_one_line_and_debug_shows_the_trace(home: Path) -> None:
    line = persona_error("shards", "verify", "nope", home=home)
    assert line.startswith("error: unknown set 'nope'")
    done = run("persona", "--debug", "shards", "verify", "nope", home=home, fails=True)
    assert "Traceback" in done.stderr


def test_a_set_is_named_without_the_kind_of_its_photos(home: Path) -> None:
    for name, packs in (("lwf", "lfw"), ("holidays", "DATASET")):
        assert f"there is none yet: `persona shard {packs}` packs one" in persona_error_here(
            "evaluate", "--set", name, home=home / "empty"
        )
    photos = home / "data" / "raw" / "LFW"
    line = persona_error_here("shard", str(photos), home=home)
    assert f"{photos} is a folder: `persona shard folders:{photos}` packs its photos" in line
    assert line.endswith(f"`persona shard lfw --raw {photos}` packs it as lfw")
    persona_here("shard", f"folders:{photos}", *NO_ALIGN, home=home)
    line = persona_error_here("evaluate", "--set", "folders:LFW", home=home)
    assert "unknown set 'folders:LFW'" in line and "LFW" in line.partition("known")[2]


def test_evaluating_what_a_set_cannot_give(home: Path) -> None:
    persona_here("shard", "lfw", *NO_ALIGN, home=home)
    for measure, message in (
        ("match", "holds photos, no triplets"),
        ("class", "mobilenet_v3_small gives embeddings alone, no classes: class accuracy"),
        ("beauty", "unknown measure 'beauty'"),
    ):
        arguments = ["evaluate", "--set", "lfw", "--model", "mobilenet_v3_small"]
        result = CliRunner().invoke(
            app, [*arguments, "--measure", measure], env={"PERSONA_HOME": str(home)}
        )
        assert message in str(result.exception)


def test_comparing_two_models_and_bad_options_of_evaluation(home: Path) -> None:
    persona_here("shard", "lfw", *NO_ALIGN, home=home)
    models = ("mobilenet_v3_small", "mobilenet_v3_large")
    known = ("--set", "lfw", "-w", "0", "--resamples", "100")
    found = persona_here("compare", *models, *known, home=home)
    assert list(found)[:4] == ["a", "b", "set", "pairs"]
    assert set(found["differences"]) == {"accuracy", "auc", "eer"}
    done = _here(app, ("compare", *models, *known), home)
    assert "No difference can be shown: mobilenet_v3_small " in done.stdout.replace("\xa0", " ")
    assert " AUC " in done.stdout and " auc " not in done.stdout
    auc = found["differences"]["auc"]
    assert list(auc) == ["a", "b", "difference", "interval", "p"]
    assert auc["difference"] == pytest.approx(auc["a"] - auc["b"])
    student = ("evaluate", "--model", models[0], *known[:4])
    once = _here(app, (*student, "-o", "resamples=100"), home)
    assert once.exit_code == 0 and "times" not in once.stderr
    for arguments, message in (
        ((*student, "--exclude-overlap", "nobody"), "--exclude-overlap: no model 'nobody'"),
        ((*student, "--exclude-overlap", "facenet-vggface2"), "does not name the people"),
        ((*student, "--gallery", "nobody"), "unknown set 'nobody'"),
        ((*student, "--no-face", "perhaps"), "unknown policy for photos without a face"),
        ((*student, "--by", "age"), "this set has no annotations to group by"),
        (
            (*student, "--pairs", str(home / "no.csv")),
            "no.csv: there is no such file: expected a list",
        ),
        (("compare", "nobody", models[0], *known), "unknown model 'nobody'"),
        (("shard", "lfw", "--annotations", str(home / "no.csv")), "there is no such file"),
    ):
        with pytest.raises(PersonaError, match=re.escape(message)):
            persona_here(*arguments, home=home)


def test_a_person_reads_intervals_and_what_cannot_be_resolved(home: Path) -> None:
    persona_here("shard", "lfw", *NO_ALIGN, home=home)
    pairs = home / "pairs.csv"
    rows = [f"Person_A/Person_A_000{i}.jpg,Person_A/Person_A_000{j}.jpg,1" for i, j in PLACES]
    rows += [f"Person_A/Person_A_000{i}.jpg,Person_B/Person_B_000{j}.jpg,0" for i, j in PLACES]
    rows += [rows[0], "Nobody/1.jpg,Nobody/2.jpg,0"]
    pairs.write_text("\n".join(["a,b,label", *rows]) + "\n")
    arguments = ("evaluate", "--set", "lfw", "--model", "mobilenet_v3_small", "-w", "0")
    done = _here(app, (*arguments, "--pairs", str(pairs)), home)
    assert "95 % interval" in done.stdout and "not resolvable" in done.stdout
    assert "TAR@FAR=1e-3" in done.stdout
    last = done.stdout.rstrip().splitlines()[-1]
    assert re.match(r"0\.\d{4} of lfw's \d+ pairs are decided rightly", last)
    for line in (
        "6 impostor pairs cannot resolve FAR 1e-1, 1e-2, 1e-3, 1e-4",
        "1 pair is listed more than once and counted each time",
        "2 paths are no photos of the set",
    ):
        assert line in done.stderr
    two: tuple[str, ...] = ("compare", "mobilenet_v3_small", "mobilenet_v3_large")
    two += (*arguments[1:3], "-w", "0", "--resamples", "100", "--pairs", str(pairs))
    done = _here(app, two, home)
    across = ("--gallery-model", "mobilenet_v3_small", "--probe-model", "mobilenet_v3_small")
    both = _here(app, (*arguments[:3], *across, "--pairs", str(pairs), "-w", "0"), home)
    for found in (done.stderr, both.stderr):
        assert found.count("1 pair is listed more than once and counted each time") == 1
        assert found.count("2 paths are no photos of the set") == 1
        assert "  Nobody/1.jpg" in found
    facts = persona_here(*two, home=home)
    assert facts["unknown_photos"] == ["Nobody/1.jpg", "Nobody/2.jpg"]
    assert (facts["duplicates"], facts["pairs"]) == (1, 13)
    persona_here("shard", "vggface2", "--split", "test", *NO_ALIGN, home=home)
    drawn = ("compare", *two[1:3], "--set", "vggface2-test", *two[5:9])
    assert "were drawn of its people, from a fixed seed" in _here(app, drawn, home).stderr
    facts = persona_here(*drawn, home=home)
    assert facts["drawn"] == facts["pairs"] > 0


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.EIO, "input/output error"),
        (errno.ESTALE, "mount it again"),
        (errno.EBUSY, "in use"),
        (errno.ELOOP, os.strerror(errno.ELOOP)),
    ],
)
def test_system_errors_are_explained(number: int, part: str) -> None:
    explained = explain(OSError(number, os.strerror(number), "/somewhere"))
    assert explained is not None
    assert explained[0].startswith("/somewhere: ") and part in explained[0]
    assert explained[1] == 1


def test_interrupts_say_that_it_goes_on_and_bugs_are_not_hidden() -> None:
    assert explain(KeyboardInterrupt()) == (
        "interrupted: run the same command again to go on",
        130,
    )
    with pytest.raises(KeyboardInterrupt) as caught, resumed_by("--resume a-run"):
        raise KeyboardInterrupt
    assert explain(caught.value) == (
        "interrupted: run the command with --resume a-run to go on from its last checkpoint",
        130,
    )
    assert explain(ZeroDivisionError()) is None
    assert explain(OSError(errno.EBADF, os.strerror(errno.EBADF))) is None  # it says not where
    assert explain(OSError("no number")) is None


def test_what_an_interrupt_says_is_not_lost_on_its_way_through_typer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = typer.Typer()

    @trainer.command()
    def train() -> None:
        raise KeyboardInterrupt("interrupted: go on so")

    monkeypatch.setattr(sys, "argv", ["persona"])
    monkeypatch.setattr(signals, "raise_interrupts", lambda: None)
    monkeypatch.setattr(signals, "end_silently", lambda: None)
    with pytest.raises(SystemExit) as ended:
        run_app(trainer, "persona", sys.argv[1:])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "error: interrupted: go on so"


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", "a smaller --batch-size"),
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2", "another"),
        ("Gloo connectFullMesh failed with [pair.cc:152] timed out", "set GLOO_SOCKET_IFNAME to"),
    ],
)
def test_errors_of_devices_and_peers_are_explained(said: str, part: str) -> None:
    explained = explain(RuntimeError(said))
    assert explained is not None and part in explained[0]
    assert explain(RuntimeError("a bug")) is None


def test_a_path_with_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    done = _here(app, ("datasets", "--raw", str(tmp_path / "[/x]")), tmp_path)
    assert "[/x]/LFW" in done.stdout


def test_a_photo_whose_name_has_line_ends_is_told_in_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "photos"
    (raw / "ann").mkdir(parents=True)
    (raw / "ann" / "a.jpg").write_bytes(jpeg(1))
    (raw / "ann" / "b\nerror: it is all lost\x1b[31m.jpg").write_bytes(b"")
    done = run("persona", "shard", f"folders:{raw}", *NO_ALIGN, home=tmp_path)
    assert [line for line in done.stderr.splitlines() if "all lost" in line] == [
        "  ann/b\\nerror: it is all lost\\x1b[31m.jpg: unreadable: empty file"
    ]


def test_a_damaged_set_does_not_hide_the_others(home: Path, tmp_path: Path) -> None:
    persona_here("shard", "lfw", *NO_ALIGN, "--out", str(tmp_path / "shards" / "good"), home=home)
    (tmp_path / "shards" / "bad").mkdir()
    (tmp_path / "shards" / "bad" / "manifest.json").write_text('{"version": 3, "shards": [5]}')
    done = run("persona", "shards", "list", "--json", home=tmp_path, fails=True)
    assert [row["name"] for row in json.loads(done.stdout)] == ["good"]
    assert "manifest.json is no manifest" in done.stderr


def test_a_damaged_triplet_card_does_not_hide_the_others(home: Path, tmp_path: Path) -> None:
    made = ("triplets", "make", "5", "lfw", "--shards", str(tmp_path / "shards"))
    card = persona_here(*made, home=home)
    (tmp_path / "shards" / "bad").mkdir()
    (tmp_path / "shards" / "bad" / "triplets.json").write_text("{")
    done = run("persona", "triplets", "list", "--json", home=tmp_path, fails=True)
    assert [row["id"] for row in json.loads(done.stdout)] == [card["id"]]
    assert "bad/triplets.json is not valid JSON" in done.stderr


def test_the_command_that_packs_triplets_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_vggface2(tmp_path / "raw", identities=3)
    folder = (root / "train").rename(tmp_path / "My Photos")
    shards = tmp_path / "shards"
    make_triplets(5, f"folders:{folder}", shards=shards)
    printed = capsys.readouterr()
    (_, _, command) = printed.err.partition("pack it with: ")
    made = printed.out.strip()
    words = ["persona", "shard", f"folders:{folder}", "--split", "all", "--triplets", made]
    assert shlex.split(command) == words
    with pytest.raises(PersonaError) as raised:
        open_set(made, shards)
    assert shlex.split(str(raised.value).partition("`")[2].partition("`")[0]) == words


def test_a_set_is_called_as_its_folder(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    out = f"{tmp_path}/mine/../mine/."
    assert persona_here("shard", "lfw", *NO_ALIGN, "--out", out, home=home)["name"] == "mine"


def test_no_write_permission_is_one_line(home: Path, tmp_path: Path) -> None:
    # A file where a folder should be stops root too, whom permissions do not.
    (tmp_path / "file").write_text("")
    line = persona_error("shard", "lfw", "--out", str(tmp_path / "file" / "set"), home=home)
    assert "a part of this path is a file" in line


def test_sigint_ends_with_one_line(tmp_path: Path) -> None:
    import signal
    import time

    write_vggface2(tmp_path / "data" / "raw", identities=80, photos=40, size_px=200, different=50)
    process = subprocess.Popen(
        [sys.executable, "-m", "persona", "shard", "vggface2", "--align", "none", "-w", "2"],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "shards" / "vggface2-train"
    deadline = time.monotonic() + 60
    try:
        while not any(journal.stat().st_size for journal in folder.glob(".*.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1] == (
        "error: interrupted: run the same command again to go on"
    )
    assert "Traceback" not in stderr
