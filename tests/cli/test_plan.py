"""`persona plan`: figures that can be checked by hand, and what it refuses."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_ALIGN
from typer.testing import CliRunner

from persona.cli.app import app
from persona.cli.output import human_bytes
from persona.data.pack import pack_photos
from persona.data.planning import GPUS, PER_WORKER, Plan
from persona.data.raw import open_dataset
from persona.errors import PersonaError

DOCS = Path(__file__).parents[2] / "docs"


def planned(*arguments: str) -> Any:
    return json.loads(CliRunner().invoke(app, ["plan", *arguments, "--json"]).stdout)


def test_the_lowest_limit_is_the_rate() -> None:
    given = {"photos": 1_000_000, "image_size": 160, "workers": 2, "gpus_per_machine": 4}
    free = Plan(**given).on(8)
    assert free["images_per_s"] == 8 * 2 * PER_WORKER and free["limited_by"] == "loader"
    step = Plan(**given, step_rate=1000).on(8)
    assert (step["images_per_s"], step["limited_by"], step["epoch_s"]) == (8000, "train step", 125)
    # Two machines of 0.1 Gbit/s, 100 shards of 10,000 samples with 7 cuts: 1.07 times the bytes.
    plan = Plan(**given, step_rate=1000, network_gbit=0.1, shard_size=10_000, views=0)
    wired = plan.on(8)
    assert (wired["machines"], wired["limited_by"]) == (2, "network")
    assert wired["read_factor"] == pytest.approx(1.07)
    assert wired["images_per_s"] == pytest.approx(2.5e7 / (1.07 * plan.sample_bytes))
    assert wired["network_gbit"] == pytest.approx(0.1)
    stored = Plan(**given, storage_gb=0.01).on(8)
    assert stored["limited_by"] == "storage"
    assert stored["storage_gb_per_s"] == pytest.approx(0.01)


def test_the_bytes_of_a_photo_are_those_of_a_packed_one(raw: Path, tmp_path: Path) -> None:
    packed = pack_photos(open_dataset("vggface2", raw), tmp_path / "s", NO_ALIGN)
    with tarfile.open(packed.folder / packed.manifest.shards[0].name) as tar:
        crop, _, following = (tar.next() for _ in range(3))
    assert crop is not None and following is not None
    assert Plan(100, image_size=32, crop_bytes=crop.size).sample_bytes == following.offset


def test_one_row_for_each_number_of_gpus() -> None:
    told = planned("--photos", "260e6", "--gpus", "64", "--gpus", "8", "--teacher-rate", "1000")
    assert [run["gpus"] for run in told["runs"]] == [64, 8]
    assert told["set"]["photos"] == 260_000_000
    assert told["set"]["teacher_gpu_hours"] == pytest.approx(2 * 260e6 / 1000 / 3600)
    rates = told["rates"]
    assert rates["teacher on a GPU, faces/s"] == {"value": 1000.0, "source": "given"}
    assert rates["train step on a GPU, images/s"]["value"] is None
    assert [run["gpus"] for run in planned("--photos", "3.3e6")["runs"]][::6] == [8, 512]


def test_measured_rates_stand_in_the_page_that_they_name() -> None:
    page = (DOCS / "measurements.md").read_text()
    assert f"| stream, one worker | {PER_WORKER:,.0f} " in page
    assert "359 MB at its peak" in page and "| `--align mtcnn` | 178 " in page
    assert re.search(r"Of a photo's 85 µs in the stream, decoding into the batch is 74", page)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--photos", "many"), "--photos many: give the number of photos"),
        (("--photos", "0"), "--photos 0: give the number of photos"),
        (("--photos", "1e999"), "--photos 1e999: give the number"),
        (("--photos", "100", "--gpus", "8"), "100 photos are fewer than a batch of 128 on each"),
        (("--photos", "1e6", "--network", "0"), "network gbit 0.0: choose a number above 0"),
        (("--photos", "1e6", "--step-rate", "nan"), "step rate nan: choose a number above 0"),
    ],
)
def test_what_is_refused(options: tuple[str, ...], said: str) -> None:
    error = CliRunner().invoke(app, ["plan", *options]).exception
    assert isinstance(error, PersonaError) and str(error).startswith(said)


def test_the_tables_of_the_page_are_what_it_plans() -> None:
    page = (DOCS / "scaling.md").read_text()
    sets = {"VGGFace2": 3_300_000, "Glint360K": 17_000_000, "WebFace260M": 260_000_000}
    for name, photos in sets.items():
        figures = Plan(photos).set_figures()
        sizes = [human_bytes(int(figures[f"{one}_bytes"] or 0)) for one in ("shard", "targets")]
        row = f"| {name} | {photos / 1e6:g} M | {figures['shards']:,} | {' | '.join(sizes)} |"
        assert row in page
    for gpus in GPUS:
        whole = [Plan(photos).on(gpus) for photos in sets.values()]
        read = " | ".join(human_bytes(int(run["read_bytes"])) for run in whole)
        rate, network = whole[0]["images_per_s"], whole[-1]["network_gbit"]
        assert f"| {gpus} | {rate:,.0f} | {network:.1f} | {read} |" in page
        slow = Plan(sets["WebFace260M"], step_rate=5000).on(gpus)
        rates = (slow["network_gbit"], slow["storage_gb_per_s"])
        assert f"| {gpus} | {slow['images_per_s']:,.0f} | {rates[0]:.1f} | {rates[1]:.2f} |" in page
