"""What a set can be measured by, one protocol a file. Importing this package registers them."""

from persona.evaluation.protocols import classes, identification, match, templates, verification
from persona.evaluation.protocols.base import (
    Evaluation,
    Options,
    Protocol,
    Subject,
    Table,
    check_measure,
    default_measure,
    evaluate,
    logit_places,
    protocols,
)

__all__ = [
    "Evaluation",
    "Options",
    "Protocol",
    "Subject",
    "Table",
    "check_measure",
    "classes",
    "default_measure",
    "evaluate",
    "identification",
    "logit_places",
    "match",
    "protocols",
    "templates",
    "verification",
]
