"""IJB-B and IJB-C (Whitelam et al. 2017; Maze et al. 2018): templates of many photos and frames.

The lists are those that insightface publishes for both sets, in one folder:

    *_face_tid_mid.txt              photo template medium       (photo: 1.jpg)
    *_template_pair_label.txt       template template 0|1       (1:1)
    *_1N_gallery_G1.csv, …_G2.csv   TEMPLATE_ID,SUBJECT_ID,…    (1:N, where they are there)
    *_1N_probe_mixed.csv            TEMPLATE_ID,SUBJECT_ID,…

The photos are those of a packed set. A template is the sum over its media of the mean embedding of
each medium, scaled to unit length. With this media pooling the frames of one video count as one
photo. Both galleries are searched as one gallery, as insightface does.

Shapes: L lines of the photo list, P pairs, T templates, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona.data.shards import FACELESS, Manifest
from persona.errors import PersonaError
from persona.evaluation.metrics import (
    Bools,
    Ints,
    equal_error_rate,
    listed_scores,
    roc_auc,
    tar_at_far,
)
from persona.evaluation.protocols.base import Evaluation, Options, Protocol, Subject
from persona.evaluation.search import FPIRS, Embeddings, accepted, cmc, pool, search
from persona.evaluation.sentences import Sentence, one_in, rate_told
from persona.evaluation.statistics import (
    Curve,
    Interval,
    bootstrap_interval,
    units_of,
    verification_intervals,
)
from persona.files import bounded_lines, iter_csv, open_list
from persona.models.sources import Named

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MAX_MISSING = 0.5
"""Largest share of the listed photos that the set may lack."""


@dataclass(frozen=True)
class TemplateOptions(Options):
    """Options of the measure of templates."""

    templates: Path | None = None
    """Folder with IJB's lists of templates and media."""


@dataclass(frozen=True)
class Lists:
    """The published lists."""

    photo: list[str]
    """File name of the photo on each of the L lines. A photo may be on several lines."""
    template: Ints
    """(L,) template that the photo belongs to."""
    medium: Ints
    """(L,) medium (photo or video) that the photo is taken from."""
    pair_a: Ints
    """(P,) first template of each pair."""
    pair_b: Ints
    """(P,) second template of each pair."""
    same: Bools
    """(P,) whether a pair is genuine."""
    gallery: tuple[Ints, Ints] | None
    """Templates of the 1:N galleries and the subject of each. None if there is no list."""
    probe: tuple[Ints, Ints] | None
    """Probe templates and the subject of each. None if there is no list."""


@dataclass(frozen=True)
class TemplateFigures(Evaluation):
    """Verification figures of templates, and identification figures if there are 1:N lists."""

    model: str
    set: str
    measure: str
    auc: float | None = None
    eer: float | None = None
    tar_at_far: dict[str, float | None] | None = None
    """TAR by FAR. None means that the impostor pairs are too few to resolve that FAR."""
    pairs: int | None = None
    """Pairs measured."""
    photos: int | None = None
    """Lines of the photo list whose photo was used."""
    no_face: int | None = None
    absent: int | None = None
    impostors: int | None = None
    rank_1: float | None = None
    rank_5: float | None = None
    cmc: list[float] | None = None
    """Share of mated probes whose subject is among the first 1, 2, … answers."""
    tpir_at_fpir: dict[str, float | None] | None = None
    """TPIR by FPIR. None means that the non-mated probes are too few to resolve that FPIR."""
    gallery: int | None = None
    """Number of templates in the gallery."""
    probes: int | None = None
    """Number of mated probe templates, whose subject is in the gallery."""
    non_mated: int | None = None
    """Number of non-mated probe templates."""
    intervals: dict[str, Interval | None] | None = None
    resampled: str | None = None
    flip: bool | None = None
    no_face_policy: str | None = None
    spread: float | None = None

    shown = (
        ("AUC", "auc"),
        ("EER", "eer"),
        ("rank-1", "rank_1"),
        ("rank-5", "rank_5"),
        ("spread", "spread"),
    )
    rates = (("tar", "tar_at_far"), ("tpir", "tpir_at_fpir"))
    counted = ("pairs", "photos", "gallery", "probes", "non_mated", "no_face", "absent")
    unit = "pairs"

    def in_words(self) -> Sentence:
        """How many genuine pairs are accepted at a low FAR, and how many probes are found."""
        told = rate_told(self.tar_at_far)
        if told is None:
            return super().in_words()
        rate, tar = told
        text = f" of {self.set}'s genuine pairs of templates are accepted at "
        text += f"{one_in(rate, 'false accept')}{self.spread_of(f'tar@{rate}')}"
        if self.rank_1 is not None:
            text += f"; {self.told('rank_1')} of {self.probes:,} probes find their subject first"
        return Sentence(f"{tar:.4f}", f"{text}.")

    def trials(self, rate: str) -> str:
        """Number of impostor pairs for FAR, or of non-mated probes for FPIR, as text."""
        if rate == "FAR":
            return f"{self.impostors} impostor pairs"
        return f"{self.non_mated} non-mated probes"


class Templates(Protocol):
    """Verification and identification of templates on a packed set of IJB's photos."""

    name = "templates"
    result = TemplateFigures
    chosen_by = "auc"
    config_class = TemplateOptions

    def check(self, named: Named, manifest: Manifest, options: TemplateOptions) -> None:
        """Raises PersonaError if the lists are not given or the set holds triplets."""
        if options.templates is None:
            raise PersonaError("templates are read from IJB's lists: give --templates DIR")
        if manifest.kind != "photos":
            raise PersonaError(f"set {manifest.name} holds triplets: templates need photos")

    def figures(self, subject: Subject) -> dict[str, Any]:
        """TAR at FAR 1e-1 to 1e-6, AUC and EER; with 1:N lists also rank-1, rank-5 and TPIR.

        Intervals of the 1:1 figures resample pairs, since that list names no subjects. Intervals of
        the 1:N figures resample subjects.
        """
        assert subject.options.templates is not None
        lists = read_lists(subject.options.templates)
        row_L = _rows(subject, lists)
        faceless_L = row_L == FACELESS
        embedded = subject.embed(subject.faces)
        row_L = np.where(row_L >= 0, embedded.rows_of(row_L), -1)
        here = row_L >= 0
        identity_T, template_TE = pool_media(
            embedded.embeddings[row_L[here], 0], lists.template[here], lists.medium[here]
        )
        a, b = (_place(identity_T, side) for side in (lists.pair_a, lists.pair_b))
        whole = (a >= 0) & (b >= 0)
        if not whole.any():
            raise PersonaError("no pair has a photo in both of its templates")
        seen_T = np.unique(lists.template[(row_L >= 0) | faceless_L])
        absent = (_place(seen_T, lists.pair_a) < 0) | (_place(seen_T, lists.pair_b) < 0)
        scores = listed_scores(template_TE, a[whole], b[whole])
        same, resamples = lists.same[whole], subject.options.resamples
        figures: dict[str, Any] = {
            "auc": roc_auc(scores, same),
            "eer": equal_error_rate(scores, same),
            "tar_at_far": {f"{far:g}": tar_at_far(scores, same, far) for far in FARS},
            "pairs": len(scores),
            "impostors": int((~same).sum()),
            "photos": int(here.sum()),
            "no_face": int((~whole & ~absent).sum()),
            "absent": int(absent.sum()),
        }
        intervals: dict[str, Any] = {}
        if resamples:
            curve = Curve.of(scores, same, same, np.zeros(len(same), np.int64))
            units = units_of(same, a[whole], b[whole])
            intervals = verification_intervals(curve, units, fars=FARS, resamples=resamples)
            del intervals["accuracy"]  # templates have no folds
            figures["resampled"] = units.kind
        if lists.gallery is not None and lists.probe is not None:
            found, more = _identify(identity_T, template_TE, lists.gallery, lists.probe, resamples)
            figures |= found
            intervals |= more
        if resamples:
            figures["intervals"] = intervals
        return figures


def pool_media(
    embedding_LE: Embeddings, template_L: Ints, medium_L: Ints
) -> tuple[Ints, Embeddings]:
    """Pools embeddings to templates: the mean over each medium, then the sum over the media.

    Args:
        embedding_LE: (L, E) embeddings of the listed photos.
        template_L: (L,) template of each.
        medium_L: (L,) medium of each.

    Returns:
        (T,) template numbers, rising, and their (T, E) float32 embeddings of unit length.
    """
    owner, medium_of = np.unique(np.stack([template_L, medium_L]), axis=1, return_inverse=True)
    sizes = np.bincount(medium_of.ravel())
    means = np.zeros((owner.shape[1], embedding_LE.shape[1]))
    np.add.at(means, medium_of.ravel(), embedding_LE)
    means /= sizes[:, None]
    templates, place = np.unique(owner[0], return_inverse=True)
    return templates, pool(means.astype(np.float32), place, len(templates))


def _identify(
    identity_T: Ints,
    template_TE: Embeddings,
    gallery: tuple[Ints, Ints],
    probe: tuple[Ints, Ints],
    resamples: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and intervals of the 1:N lists. Templates without a photo are left out."""
    place_G, place_N = _place(identity_T, gallery[0]), _place(identity_T, probe[0])
    subject_G, subject_N = gallery[1][place_G >= 0], probe[1][place_N >= 0]
    place_G, place_N = place_G[place_G >= 0], place_N[place_N >= 0]
    order = np.argsort(subject_G, kind="stable")
    near = np.minimum(np.searchsorted(subject_G[order], subject_N), max(len(order) - 1, 0))
    mate = np.where(subject_G[order][near] == subject_N, order[near], -1) if len(order) else near
    answer = search(template_TE[place_N], template_TE[place_G], mate)
    mated = answer.rank > 0
    if not mated.any():
        raise PersonaError("no probe template shows a subject of the gallery lists")
    rank_M, people = answer.rank[mated], subject_N[mated]
    dir_at = {f"{fpir:g}": accepted(answer.best, answer.rank, fpir) for fpir in FPIRS}
    figures: dict[str, Any] = {
        "rank_1": float(np.mean(rank_M <= 1)),
        "rank_5": float(np.mean(rank_M <= 5)),
        "cmc": cmc(rank_M, min(20, len(place_G))).tolist(),
        "tpir_at_fpir": {n: None if v is None else float(v.mean()) for n, v in dir_at.items()},
        "gallery": len(place_G),
        "probes": len(rank_M),
        "non_mated": int((~mated).sum()),
    }
    if not resamples:
        return figures, {}
    trials = {"rank_1": rank_M <= 1, "rank_5": rank_M <= 5}
    trials |= {f"tpir@{name}": hit for name, hit in dir_at.items() if hit is not None}
    return figures, {
        name: bootstrap_interval(hit, people, resamples=resamples) for name, hit in trials.items()
    }


def _place(known_T: Ints, wanted: Ints) -> Ints:
    """Place of each wanted number in a sorted list, or -1 if it is not there."""
    place = np.minimum(np.searchsorted(known_T, wanted), max(len(known_T) - 1, 0))
    return (
        np.where(known_T[place] == wanted, place, -1) if len(known_T) else np.full_like(place, -1)
    )


def _rows(subject: Subject, lists: Lists) -> Ints:
    """(L,) key of each listed photo; FACELESS if it shows no face, -1 if the set lacks it."""
    # A centre crop of a photo without a face would spoil its template, so the photo is left out.
    centred = set(subject.manifest.no_face)
    metas = subject.faces.metas()
    by_source = dict.fromkeys(subject.manifest.faceless, FACELESS)
    by_source |= {
        str(meta["source"]): FACELESS if key in centred else key for key, meta in metas.items()
    }
    key_of = {source.rpartition("/")[2]: key for source, key in by_source.items()}
    key_of |= by_source
    found = np.array([key_of.get(photo, -1) for photo in lists.photo], np.int64)
    missing = int((found == -1).sum())
    if missing > MAX_MISSING * len(found):
        raise PersonaError(
            f"{missing} of {len(found)} listed photos are not in set {subject.manifest.name}: pack "
            "the folder that the lists are of (IJB's loose_crop)"
        )
    return found


def read_lists(folder: Path) -> Lists:
    """Reads the lists of one folder.

    Raises:
        PersonaError: a list is missing, there are two of a kind, or a line is malformed.
    """
    media = _table(_one(folder, "*_face_tid_mid.txt"), 3, "photo template medium")
    pairs = _numbers(_one(folder, "*_template_pair_label.txt"), 3, "template template 0|1")
    if not np.isin(pairs[:, 2], (0, 1)).all():
        raise PersonaError(f"{folder}: a pair's label is neither 0 nor 1")
    try:
        template, medium = (np.array([row[n] for row in media], np.int64) for n in (1, 2))
    except (ValueError, OverflowError):
        raise PersonaError(
            f"{folder}: a template or medium of *_face_tid_mid.txt is no number"
        ) from None
    galleries = sorted(folder.glob("*_1N_gallery_G[12].csv"))
    probes = sorted(folder.glob("*_1N_probe_mixed.csv"))
    return Lists(
        photo=[row[0] for row in media],
        template=template,
        medium=medium,
        pair_a=pairs[:, 0],
        pair_b=pairs[:, 1],
        same=pairs[:, 2] == 1,
        gallery=_subjects(galleries) if galleries and probes else None,
        probe=_subjects(probes) if galleries and probes else None,
    )


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise PersonaError(
            f"{folder} has {len(found)} files {pattern}, expected one: give the folder of IJB-B's "
            "or of IJB-C's lists"
        )
    return found[0]


def _table(path: Path, width: int, layout: str) -> list[list[str]]:
    rows = []
    with open_list(path, f"lines of {layout}") as file:
        for number, line in enumerate(bounded_lines(file, path), start=1):
            fields = line.split()
            if len(fields) != width:
                raise PersonaError(f"{path} line {number}: expected {layout}, found {line[:80]!r}")
            rows.append(fields)
    if not rows:
        raise PersonaError(f"{path} is empty: expected {layout} lines")
    return rows


def _numbers(path: Path, width: int, layout: str) -> Ints:
    """Reads a table of whole numbers with NumPy, which is fast: IJB-C has 15 million lines."""
    try:
        found = np.loadtxt(path, np.int64, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise PersonaError(f"{path}: expected {layout} ({str(error)[:80]})") from None
    if found.shape[1:] != (width,) or not len(found):
        raise PersonaError(f"{path}: expected lines of {layout}")
    return found


def _subjects(paths: list[Path]) -> tuple[Ints, Ints]:
    """TEMPLATE_ID and SUBJECT_ID of all files, each template once."""
    rows: dict[int, int] = {}
    for path in paths:
        for number, row in iter_csv(path, "lines of TEMPLATE_ID,SUBJECT_ID"):
            if number == 1:  # the header
                continue
            try:
                template, person = np.array(row[:2], np.int64).tolist()
            except (ValueError, OverflowError):
                raise PersonaError(
                    f"{path} line {number}: expected TEMPLATE_ID,SUBJECT_ID, found "
                    f"{','.join(row)[:80]!r}"
                ) from None
            rows[template] = person
    return np.array(list(rows), np.int64), np.array(list(rows.values()), np.int64)
