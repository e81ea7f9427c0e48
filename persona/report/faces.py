"""The faces of the page: the worst mistakes of each model, and the photos of the maps.

Faces are in a report because it shows a set to its owner: the file is written private, and no
tracker gets one. The names of people are shown only on request.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from persona.data.sets import FaceSet, iter_jpegs
from persona.report.measure import Measured
from persona.report.page import (
    FacePair,
    MapFaces,
    MapPair,
    Mistakes,
    ModelSimilarity,
    ShownFace,
)

THUMB_PX = 72
"""Side of the faces of a map."""
PAIRS_A_PHOTO = 8
"""Most pairs of a map's photo that are shown, those closest to a mistake first."""


def mistakes(
    models: Sequence[Measured], faces: FaceSet, people: dict[int, str] | None
) -> list[Mistakes]:
    """The worst pairs of each model, with the names of the people if `people` is given."""
    places = {
        (model.name, genuine): model.worst(genuine=genuine)
        for model in models
        for genuine in (False, True)
    }
    keys = {
        int(key)
        for model in models
        for genuine in (False, True)
        for column in (model.scores.key_a, model.scores.key_b)
        for key in column[places[model.name, genuine]]
    }
    jpegs = dict(iter_jpegs(faces, keys))

    def pair(model: Measured, place: int) -> FacePair:
        scores = model.scores
        own = [int(scores.key_a[place]), int(scores.key_b[place])]
        labels = [int(scores.identity_a[place]), int(scores.identity_b[place])]
        names = " / ".join(dict.fromkeys(people[label] for label in labels)) if people else ""
        shown = [
            ShownFace(jpegs[key], f"Face of photo {key}" + (f", {people[label]}" if people else ""))
            for key, label in zip(own, labels, strict=True)
        ]
        beyond = abs(float(model.margins[place]))
        side = "under" if scores.same[place] else "over"
        margin = f"{beyond:.3f} {side} the threshold"
        return FacePair(shown, margin, similarities(models, place), names)

    def title(model: Measured, genuine: bool) -> str:
        wrong = int((~model.decided.right & (model.scores.same == genuine)).sum())
        shown = len(places[model.name, genuine])
        kind = (
            "False rejects: one person, taken for two"
            if genuine
            else "False accepts: two people, taken for one"
        )
        return f"{kind} ({shown} of {wrong})" if wrong else kind

    return [
        Mistakes(
            model.look,
            title(model, genuine=False),
            [pair(model, place) for place in places[model.name, False]],
            title(model, genuine=True),
            [pair(model, place) for place in places[model.name, True]],
        )
        for model in models
    ]


def similarities(models: Sequence[Measured], place: int) -> list[ModelSimilarity]:
    """What each model says of a pair. All models have the same pairs in the same order."""
    return [
        ModelSimilarity(
            model.look,
            float(model.scores.score[place]),
            float(model.margins[place]),
            bool(model.decided.right[place]),
        )
        for model in models
    ]


def map_faces(
    models: Sequence[Measured], keys: Iterable[int], faces: FaceSet, people: dict[int, str]
) -> MapFaces:
    """Small faces of a map's photos, and the pairs of the list that each of them is in.

    Args:
        models: all models, with the same pairs.
        keys: keys of the photos.
        faces: the packed set.
        people: name of each label on the page.
    """
    wanted = set(keys)
    scores = models[0].scores
    closest = np.min([_rightness(model) for model in models], axis=0)
    own: dict[int, list[int]] = defaultdict(list)
    columns = (scores.key_a, scores.key_b)
    shown = np.isin(columns, np.array(sorted(wanted), np.int64)).any(axis=0)
    for place in sorted(np.flatnonzero(shown).tolist(), key=closest.__getitem__):
        for key in {int(column[place]) for column in columns} & wanted:
            own[key].append(place)
    pairs = {
        key: [_pair(models, key, place) for place in places[:PAIRS_A_PHOTO]]
        for key, places in own.items()
    }
    others = {pair.other for found in pairs.values() for pair in found}
    label_of = dict(
        zip(models[0].embedded.keys.tolist(), models[0].embedded.labels[:, 0].tolist(), strict=True)
    )
    jpegs = dict(iter_jpegs(faces, (wanted | others) & label_of.keys()))
    return MapFaces(
        faces={key: thumbnail(jpeg) for key, jpeg in jpegs.items()},
        people={key: people[label_of[key]] for key in jpegs},
        pairs=pairs,
        counts={key: len(places) for key, places in own.items()},
    )


def _rightness(model: Measured) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(P,) how far each pair lies on the right side of its threshold. Mistakes are negative."""
    return np.where(model.scores.same, model.margins, -model.margins)


def _pair(models: Sequence[Measured], key: int, place: int) -> MapPair:
    scores = models[0].scores
    a, b = int(scores.key_a[place]), int(scores.key_b[place])
    return MapPair(b if a == key else a, bool(scores.same[place]), similarities(models, place))


def thumbnail(jpeg: bytes) -> str:
    """A face of at most 72 px, as a data URI."""
    with Image.open(io.BytesIO(jpeg)) as image:
        image.draft("RGB", (THUMB_PX, THUMB_PX))
        small = image.convert("RGB")
        small.thumbnail((THUMB_PX, THUMB_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
