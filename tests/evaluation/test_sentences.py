"""The sentences that close an evaluation and a comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from persona.evaluation.compare import Difference
from persona.evaluation.protocols import PROTOCOLS, Evaluation, Protocol
from persona.evaluation.protocols.classes import ClassFigures
from persona.evaluation.protocols.identification import IdentificationFigures
from persona.evaluation.protocols.match import MatchFigures
from persona.evaluation.protocols.templates import TemplateFigures
from persona.evaluation.protocols.verification import VerificationFigures
from persona.evaluation.sentences import compare_sentence, one_in
from persona.evaluation.statistics import Interval

PAIRS = VerificationFigures(
    *("m", "lfw", "verification"),
    accuracy=0.9575,
    auc=0.99,
    pairs=6000,
    impostors=3000,
    tar_at_far={"0.1": 0.98, "0.01": 0.93, "0.001": 0.846, "0.0001": None},
    intervals={"accuracy": Interval(0.95, 0.965)},
    spread=0.9,
)


def told(evaluation: Evaluation) -> str:
    return str(evaluation.sentence())


def test_pairs_in_words() -> None:
    assert told(PAIRS) == (
        "0.9575 of lfw's 6,000 pairs are decided rightly (95 % 0.9500 to 0.9650); at one false "
        "accept in a thousand, 0.8460 of the genuine pairs are accepted."
    )
    assert PAIRS.sentence().headline == "0.9575"
    few = replace(PAIRS, intervals=None, tar_at_far={"0.1": 0.98, "0.01": 0.93, "0.001": None})
    assert told(few).endswith(
        "decided rightly; at one false accept in a hundred, 0.9300 of the genuine pairs are "
        "accepted."
    )
    assert told(replace(few, tar_at_far={"0.1": None})).endswith("pairs are decided rightly.")
    other = told(replace(PAIRS, tar_at_far={"0.05": 0.97}))
    assert "; at a share 5e-2 of false accepts, 0.9700 of" in other


def test_the_other_protocols_in_words() -> None:
    known: dict[str, Any] = {"spread": 0.9}
    triplets = MatchFigures("m", "t", "match", 0.9, 0.95, 1200, **known)
    assert told(triplets) == (
        "0.9000 of t's 1,200 triplets have the two photos of one person closer together."
    )
    photos = ClassFigures("m", "vgg", "class", 0.8, 5000, top_5=0.93, **known)
    assert told(photos) == (
        "0.8000 of vgg's 5,000 photos are named rightly; for 0.9300 of them, the right name is "
        "among the first 5."
    )
    probes = IdentificationFigures(
        *("m", "lfw", "identification", 0.9),
        rank_1=0.9,
        tpir_at_fpir={"0.1": 0.85, "0.01": 0.7, "0.001": None},
        gallery=100,
        probes=2000,
        intervals={"rank_1": Interval(0.88, 0.92)},
        **known,
    )
    assert told(probes) == (
        "0.9000 of 2,000 probes on lfw find their person first among 100 templates (95 % 0.8800 to "
        "0.9200); where one stranger in a hundred gets a name, 0.7000 of them are named rightly."
    )
    pooled = TemplateFigures(
        *("m", "ijb", "templates"),
        auc=0.99,
        tar_at_far={"0.001": 0.9, "1e-06": 0.4},
        rank_1=0.95,
        probes=300,
        **known,
    )
    assert told(pooled) == (
        "0.9000 of ijb's genuine pairs of templates are accepted at one false accept in a "
        "thousand; 0.9500 of 300 probes find their subject first."
    )
    assert told(replace(pooled, tar_at_far={"0.1": None})) == "0.9900 is the AUC of m on ijb."


def test_a_protocol_without_a_sentence_of_its_own_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PROTOCOLS, "_items", dict(PROTOCOLS._items))

    @dataclass(frozen=True)
    class Purity(Evaluation):
        model: str
        set: str
        measure: str
        purity: float | None = None
        intervals: dict[str, Interval | None] | None = None
        flip: bool | None = None
        spread: float | None = None

    class Clusters(Protocol):
        name = "clusters"
        result = Purity
        chosen_by = "purity"

        def check(self, *_: object) -> None:
            """Any set will do."""

        def figures(self, *_: object) -> dict[str, Any]:
            raise NotImplementedError

    found = Purity("m", "lfw", "clusters", 0.75, {"purity": Interval(0.7, 0.8)})
    assert told(found) == "0.7500 is the purity of m on lfw (95 % 0.7000 to 0.8000)."


def test_nothing_good_is_said_of_a_collapsed_network() -> None:
    found = replace(PAIRS, spread=1e-5)
    assert told(found) == (
        "Nothing can be said about m on lfw: it gives different people nearly one embedding, "
        "whatever its figures are."
    )


def test_rates_in_words() -> None:
    assert one_in("1e-06", "false accept") == "one false accept in a million"
    assert one_in("0.1", "stranger") == "one stranger in ten"


def difference(points: float, low: float, high: float, p: float | None) -> Difference:
    interval = Interval(low / 100, high / 100)
    return Difference("accuracy", 0.9, 0.9 - points / 100, points / 100, interval, p)


def compared(found: Difference, **more: bool) -> str:
    return str(compare_sentence("A", "B", "lfw", found, **more)).replace("\xa0", " ")


def test_two_networks_in_words() -> None:
    found = difference(1.4, 0.9, 1.9, 0.002)
    assert compared(found) == "A is 1.4 points above B on lfw (95 % 0.9 to 1.9, p = 0.002)."
    assert compare_sentence("A", "B", "lfw", found).headline == "1.4 points above"
    assert compared(difference(0.3, -0.4, 1.0, 0.31)) == (
        "No difference can be shown: A is 0.3 points above B on lfw, which may be chance (95 % "
        "−0.4 to 1.0, p = 0.31)."
    )
    assert compared(difference(0.3, 0.1, 0.5, None)).startswith("No difference can be shown: ")
    same = Difference("accuracy", 1.0, 1.0, 0.0, None, 1.0)
    assert compared(same) == (
        "No difference can be shown: A decides as many pairs of lfw right as B."
    )
    assert compared(found, collapsed=True) == (
        "Nothing can be said: a network that has collapsed tells nobody apart."
    )
