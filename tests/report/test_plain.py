"""Plots for the tracker: figures alone, as table and image, offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import distill_here
from little import LITTLE

from persona.data.pack import Packed
from persona.report.plain import pair_curves


def test_tables_and_images() -> None:
    scores, same = np.array([0.9, 0.7, 0.6, 0.1]), np.array([True, True, False, False])
    roc, histogram = pair_curves(scores, same)
    columns, rows = roc.rows()
    assert columns == ["false accept rate", "true accept rate"]
    assert rows[0] == [0.5, 1.0]
    assert histogram.rows()[0] == ["cosine similarity", "impostor", "genuine"]
    for curves in (roc, histogram):
        assert np.asarray(curves.image(log_x=curves is roc)).std() > 5


def test_a_tracked_run_gets_them_and_no_name_or_face(
    train_set: Packed, lfw_set: Packed, tmp_path: Path
) -> None:
    arguments = ("--teacher", "none", "-e", "1", "--test-set", "lfw", "--tracker", "wandb")
    run = distill_here(LITTLE, *arguments, "--train-set", "vggface2-train", home=tmp_path)
    media = sorted((tmp_path / "runs" / run / "wandb").glob("offline-run-*/files/media/*/test/*/*"))
    assert [path.suffix for path in media] == [".png", ".png", ".json", ".json"]
    for path in media:
        if path.suffix == ".json":
            assert "Person_" not in path.read_text()
