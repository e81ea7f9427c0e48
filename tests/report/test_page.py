"""The page: what it says, that it escapes, and the bad input of the command."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import persona_here
from onnx_files import SETTINGS, write_model
from test_history import age, write_run
from typer.testing import CliRunner

from persona.cli.app import app
from persona.cli.report import choose_format
from persona.data.pack import Packed
from persona.data.shards import PAIRS, encode_pairs, write_manifest
from persona.errors import PersonaError
from persona.evaluation.statistics import Interval
from persona.extras import install_command
from persona.models.onnx_graph import count_onnx
from persona.models.sources import load_network
from persona.report.browser import find_chromium, open_browser
from persona.report.build import _mapped, _remarks, build_page, find_entries
from persona.report.figures import (
    Figure,
    det_figure,
    group_figures,
    histogram,
    roc_traces,
    thin,
    with_interval,
)
from persona.report.looks import look
from persona.report.measure import Group, measure, measure_groups
from persona.report.page import (
    CardRow,
    FigureCard,
    Made,
    MapFaces,
    Mistakes,
    Page,
    PageTable,
    Section,
    ShownModel,
    encode_for_script,
    render,
)
from persona.workspace import Workspace

EVIL = "</script><img src=x onerror=alert(1)>\"'&"


def test_what_users_write_is_escaped() -> None:
    figure = Figure("evil", EVIL, EVIL, [{"name": EVIL}], {}, [EVIL], [[EVIL]])
    evil = look(0, EVIL)
    page = Page(
        set=EVIL,
        summary=EVIL,
        headline=PageTable([EVIL], [[EVIL, EVIL]]),
        facts=[[EVIL, EVIL]],
        models=[ShownModel(evil, EVIL, EVIL)],
        measured=[evil],
        verdicts=[EVIL] * 7,
        cards=[
            FigureCard(EVIL, [CardRow(evil, EVIL, EVIL, 0.5, best) for best in (True, False)], 0)
        ],
        plots=[Section("maps", EVIL, [figure], EVIL)],
        faces=[Mistakes(evil, EVIL, [], EVIL, [])],
        map_faces=MapFaces({1: EVIL}, {1: EVIL}),
        map_legend=[evil],
        made=[Made(evil, [[EVIL, EVIL]], EVIL)],
        notices=[EVIL],
        remarks=[EVIL],
    )
    html = render(page)
    assert "<img" not in html.split("<script>")[0]
    assert "onerror=alert(1)>" not in html.split("<script>")[0]
    found = re.search(r'id="data">(.*?)</script>', html, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["figures"][0]["title"] == data["models"][0]["name"] == EVIL
    assert data["map"]["people"] == {"1": EVIL}


def test_nothing_is_fetched() -> None:
    html = render(Page("x", "s", PageTable([], []), [["a", "b"]]))
    assert "default-src &#39;none&#39;" in html
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(?!data:)', html)
    assert "No model to measure yet." in html


def test_json_in_a_script_never_ends_it() -> None:
    assert "<" not in encode_for_script([EVIL])
    with pytest.raises(ValueError, match="Out of range float"):
        encode_for_script(float("nan"))


def test_thinning_keeps_the_end_and_drops_zero() -> None:
    far = np.concatenate([[0.0], np.linspace(1e-5, 1, 100_000)])
    x, y = thin(far, far)
    assert len(x) < 400 and x == y
    assert x[-1] == 1.0 and min(x) == 1e-5


def test_curves_and_histogram_by_hand() -> None:
    scores, same = np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, False, True, False])
    assert roc_traces(scores, same) == ([0.5, 1.0], [1.0, 1.0])
    _, impostor, genuine = histogram(scores, same)
    assert sum(impostor) == sum(genuine) == 1.0
    assert genuine[-2:] == [0.5, 0.0] and impostor[:2] == [0.0, 0.5]
    assert with_interval(None, None) == "not resolvable"
    assert with_interval(0.5, Interval(0.4, 0.6)) == "0.5000\n[0.4000, 0.6000]"


def test_scores_that_hardly_differ_are_not_spread_over_the_histogram() -> None:
    middles, impostor, genuine = histogram(np.full(4, 0.9), np.arange(4) % 2 == 0)
    assert max(impostor) == max(genuine) == 1.0
    assert middles[-1] - middles[0] > 0.02


@pytest.fixture
def home(lfw_set: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("persona.report.measure.TIMED_TURNS", 1)
    return tmp_path


def build(home: Path, *names: str, teacher: str | None = None, people: bool = False) -> Page:
    place = Workspace.locate(home=home)
    entries = find_entries(names, teacher, place)
    from persona.data.sets import open_set

    set_ = open_set("lfw", place.shards)
    return build_page(entries, place, set_, Accelerator(cpu=True), names=people)


def test_models_side_by_side_with_faces_and_no_names(home: Path) -> None:
    page = build(home, "mobilenet_v3_small", teacher="mobilenet_v3_large")
    names = ["small · untrained", "large · untrained"]
    assert page.headline.columns == ["figure", "chance", *names]
    shown = [(model.look.name, model.full, model.role) for model in page.models]
    fulls = ["mobilenet_v3_small", "mobilenet_v3_large"]
    assert shown == list(zip(names, fulls, ["", "teacher"], strict=True))
    figures = {row[0]: row[2:] for row in page.headline.rows}
    assert re.fullmatch(r"0\.\d{4}\n\[0\.\d{4}, [01]\.\d{4}\]", figures["accuracy"][0])
    assert figures["TAR@FAR=1e-3"] == ["not resolvable"] * 2
    (verdict,) = page.verdicts
    assert verdict.startswith("small · untrained ") and "large · untrained" in verdict
    assert [card.title for card in page.cards] == ["Accuracy", "AUC", "CPU ms/face"]
    first = [row.look for row in page.cards[0].rows]
    assert first == page.measured == [model.look for model in page.models]
    assert [section.id for section in page.plots] == ["curves", "cost", "scores", "maps"]
    texts = {section.id: section.text for section in page.plots}
    assert texts["maps"].startswith("Photos of all 6 people, at most 30 of each, laid out by t-SNE")
    titles = {figure.id: figure.title for section in page.plots for figure in section.figures}
    assert titles["cost"] == "Accuracy over CPU time per face"
    wrong = [pair for mistakes in page.faces for pair in (*mistakes.accepts, *mistakes.rejects)]
    assert wrong and all(len(pair.similarities) == 2 for pair in wrong)
    assert len(page.map_faces.faces) == 24 and set(page.map_faces.pairs) <= set(range(24))
    assert all(float(cell) > 0 for cell in figures["CPU ms/face"])
    assert "Person_" not in render(page)
    named = build(home, "mobilenet_v3_small", people=True)
    assert "Person_A" in render(named)


@pytest.mark.parametrize("given", ["one fold", "none"])
def test_pairs_are_taken_and_told_as_by_evaluate(home: Path, lfw_set: Packed, given: str) -> None:
    """LFW's view 1 has no folds; a set without pairs gives drawn ones."""
    if given == "none":
        manifest = replace(lfw_set.manifest, pairs=None, pairs_sha256=None)
    else:
        encoded = encode_pairs([replace(pair, fold=0) for pair in lfw_set.faces.pairs()])
        (lfw_set.folder / PAIRS).write_bytes(encoded)
        digest = hashlib.sha256(encoded).hexdigest()
        manifest = replace(lfw_set.manifest, pairs_sha256=digest)
    write_manifest(lfw_set.folder, manifest)
    page = build(home, "mobilenet_v3_small", "mobilenet_v3_large")
    assert ("in 8 folds" if given == "one fold" else "in 3 folds") in page.summary
    told = "The set has no pairs: 72 were drawn of its people, from a fixed seed."
    assert (told in page.remarks) == (given == "none")


def test_notes_that_are_not_of_all_models_name_them(lfw_set: Packed) -> None:
    named = load_network("mobilenet_v3_small", Path("models"))
    known = replace(named, classes=("Person_A", "Person_B", "Person_X"))
    one, two = (
        measure(
            *(network, lfw_set.faces, Accelerator(cpu=True)),
            look=look(place, f"m{place}"),
            teacher=False,
            size=1,
            cpu_ms=1.0,
            resamples=10,
        )
        for place, network in enumerate((named, known))
    )
    told = "2 people of the set were trained on; their pairs are measured."
    assert [note for note in _remarks([one, two]) if "trained" in note] == [f"m1: {told}"]
    assert [note for note in _remarks([two]) if "trained" in note] == [told]
    listed = replace(one, facts={**one.facts, "no_face": 3, "no_centre": 1, "absent": 4})
    assert _remarks([listed])[-3:] == [
        "2 pairs have a photo without a face: the middle of the photo stands in for the face.",
        "1 pairs have a photo without a face: left out.",
        "4 pairs have a photo that the set does not hold: left out.",
    ]


def test_of_more_people_the_map_says_how_many_it_shows() -> None:
    measured = SimpleNamespace(embedded=SimpleNamespace(labels=np.arange(40)[:, None] % 25))
    assert _mapped(measured).startswith("Photos of the 20 people with the most, at")  # type: ignore[arg-type]


def test_parameters_are_counted_as_bench_counts_them(tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx")
    (tmp_path / "net.yaml").write_text(SETTINGS)
    network = load_network(f"onnx:{path}", tmp_path).network
    assert network.count_parameters() == count_onnx(path)[0] == 27


def test_worst_pairs_are_wrong_and_sorted(lfw_set: Packed, tmp_path: Path) -> None:
    network = load_network("mobilenet_v3_small", tmp_path)
    place = Workspace.locate(home=tmp_path)
    from persona.data.sets import open_set

    measured = measure(
        *(network, open_set("lfw", place.shards), Accelerator(cpu=True)),
        look=look(0, "m"),
        teacher=False,
        size=1,
        cpu_ms=1.0,
        resamples=10,
    )
    for genuine in (True, False):
        places = measured.worst(genuine=genuine)
        assert not measured.decided.right[places].any()
        assert (measured.scores.same[places] == genuine).all()
    wrong = len(measured.worst(genuine=True)) + len(measured.worst(genuine=False))
    assert wrong == int((~measured.decided.right).sum()) > 0

    metas = {
        int(key): {"attributes": {"gender": "fm"[int(key) % 2], "age": str(20 + 3 * int(key))}}
        for key in measured.embedded.keys
    }
    groups = measure_groups(measured.scores, measured.decided, metas, 10)
    assert {group.by for group in groups} == {"age-gap", "gender"}
    assert sum(group.pairs for group in groups if group.by == "age-gap") == len(measured.scores)


def test_group_figures_have_a_row_a_bar(lfw_set: Packed, tmp_path: Path) -> None:
    class Fake:
        name = "m"
        look = look(0, "m")
        groups = (Group("g", "a", 5, 0.8, Interval(0.7, 0.9)), Group("g", "b", 5, 0.5, None))

    (figure,) = group_figures([Fake()])  # type: ignore[list-item]
    assert figure.traces[0]["x"] == ["a<br>5 pairs", "b<br>5 pairs"]
    assert figure.rows == [["m", "a", "5", "0.8000\n[0.7000, 0.9000]"], ["m", "b", "5", "0.5000"]]
    assert figure.traces[0]["error_y"]["array"] == [pytest.approx(0.1), 0]


def test_the_det_curve_tells_of_a_model_without_errors() -> None:
    same = np.array([True, False, True, False])

    def fake(name: str, scores: list[float]) -> SimpleNamespace:
        pairs = SimpleNamespace(score=np.array(scores), same=same)
        own = look(0, name)
        return SimpleNamespace(name=name, look=own, scores=pairs, figures=SimpleNamespace(eer=0.0))

    models = [fake("a", [0.9, 0.8, 0.2, 0.1]), fake("b", [0.9, 0.1, 0.9, 0.1])]
    figure = det_figure(models)  # type: ignore[arg-type]
    assert [trace["name"] for trace in figure.traces] == ["a", "b: no errors", "chance"]
    assert figure.traces[1]["x"] == [None]  # it has its line in the legend


def test_a_run_without_a_model_gets_a_report_that_says_so(home: Path) -> None:
    folder = write_run(home / "runs" / "r1", {"step": 1, "epoch": 0, "loss": 1.0}, tail="{")
    age(folder, 3)
    page = build(home, "r1")
    assert "stopped in epoch 1 of 3" in page.notices[0]
    assert len(page.notices) == 1 and "1 damaged line" in page.notices[0]
    assert [section.id for section in page.plots] == ["training"]
    assert [figure.title for figure in page.plots[0].figures] == ["Loss"]
    assert 'data-figure="training-0"' in render(page)
    assert "No model to measure yet." in render(page)


def test_the_command_writes_one_file(home: Path) -> None:
    out = home / "page.html"
    done = persona_here("report", "mobilenet_v3_small", "--out", str(out), "-w", "0", home=home)
    assert done["format"] == "html" and done["bytes"] == out.stat().st_size
    assert out.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600  # it holds faces


def test_formats() -> None:
    assert choose_format(None, None) == ("html", Path("report.html"))
    assert choose_format(None, Path("a.pdf")) == ("pdf", Path("a.pdf"))
    assert choose_format("png", None) == ("png", Path("report.png"))


def test_libraries_and_browsers_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(module: str) -> Any:
        monkeypatch.setitem(sys.modules, module, None)
        text = f"need(s?) {module}: {re.escape(install_command('report'))}"
        return pytest.raises(PersonaError, match=text)

    with lacks("jinja2"):
        render(Page("x", "s", PageTable([], []), []))
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PERSONA_CHROMIUM", str(program))
    with pytest.raises(PersonaError, match=r"chromium does not start \(.*\); a report as HTML"):
        open_browser().__enter__()
    with lacks("playwright.sync_api"):
        open_browser().__enter__()
    monkeypatch.delenv("PERSONA_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PersonaError, match=r"no Chromium on the path: PDF, PNG and SVG need one"):
        find_chromium()


def test_one_process_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(PersonaError, match="made by one process: start it without accelerate"):
        persona_here("report", "mobilenet_v3_small", home=home)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "unknown run or model 'nope'"),
        (("../runs",), "unknown run or model '../runs'"),
        (("mobilenet_v3_small", "--format", "gif"), "unknown format 'gif'"),
        (("mobilenet_v3_small", "--format", "pdf", "--out", "a.html"), "does not end in .pdf"),
        (("mobilenet_v3_small", "--set", "nope"), "unknown set 'nope'"),
        (("mobilenet_v3_small", "--format", "png"), "no program: PDF, PNG and SVG need one"),
    ],
)
def test_bad_input(home: Path, train_set: Packed, arguments: tuple[str, ...], message: str) -> None:
    environment = {"PERSONA_HOME": str(home), "PERSONA_CHROMIUM": "/nowhere/chromium"}
    result = CliRunner().invoke(app, ["report", *arguments], env=environment)
    assert isinstance(result.exception, PersonaError), result.exception
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
