"""The evaluation protocols, one a file. `base` says what a protocol is."""

from persona.evaluation.protocols.base import (
    PROTOCOLS,
    Evaluation,
    Options,
    Protocol,
    Subject,
    Table,
    build_options,
    check_measure,
    default_measure,
    evaluate,
    logit_places,
)
from persona.evaluation.sentences import Sentence

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Options",
    "Protocol",
    "Sentence",
    "Subject",
    "Table",
    "build_options",
    "check_measure",
    "default_measure",
    "evaluate",
    "logit_places",
]
