"""What a set can be measured by, one protocol a file; what one is stands in `base`."""

from persona.evaluation.protocols.base import (
    PROTOCOLS,
    Evaluation,
    Options,
    Protocol,
    Subject,
    Table,
    check_measure,
    default_measure,
    evaluate,
    logit_places,
)

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Options",
    "Protocol",
    "Subject",
    "Table",
    "check_measure",
    "default_measure",
    "evaluate",
    "logit_places",
]
