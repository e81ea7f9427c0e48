"""A set that is aligned in another way than a network's training crops is noted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from persona.data.align.spec import ARCFACE, AlignSpec
from persona.evaluation.protocols.base import note_other_crops

WHOLE = AlignSpec("landmarks", 112)


def noted(own: AlignSpec | None, align: AlignSpec, caplog: Any, *, landmarks: bool = False) -> str:
    network = SimpleNamespace(uses_landmarks=landmarks)
    facts = None if own is None else own.facts
    named: Any = SimpleNamespace(name="small", alignment=facts, network=network)
    manifest: Any = SimpleNamespace(name="lfw", align=align)
    caplog.clear()
    note_other_crops(named, manifest)
    return "\n".join(record.getMessage() for record in caplog.records)


def test_other_crops_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    told = noted(WHOLE, AlignSpec("mtcnn", 112), caplog)
    assert told.startswith("note: set lfw is packed with --align mtcnn, small was trained on crops")
    assert "`--align landmarks --image-size 112`" in told
    assert noted(AlignSpec("mtcnn", 160, 14), AlignSpec("mtcnn", 160, 60), caplog)


@pytest.mark.parametrize(
    ("own", "align", "landmarks"),
    [
        (WHOLE, WHOLE, False),
        (AlignSpec("template", 112, 0), ARCFACE, False),  # the same crops
        (AlignSpec("mtcnn", 160, 14), AlignSpec("mtcnn", 112, 10), False),
        (WHOLE, AlignSpec("none", 112), False),  # nothing is known of these photos
        (WHOLE, AlignSpec("mtcnn", 112), True),  # the network aligns faces itself
        (None, AlignSpec("mtcnn", 112), False),  # an older card
    ],
)
def test_like_crops_are_not(
    own: AlignSpec | None, align: AlignSpec, landmarks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert not noted(own, align, caplog, landmarks=landmarks)
