"""The evaluation protocols, one a file. `base` says what a protocol is."""

from persona.evaluation.protocols.base import (
    PROTOCOLS,
    Evaluation,
    Options,
    Protocol,
    Subject,
    build_options,
    check_measure,
    default_measure,
    evaluate,
)

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Options",
    "Protocol",
    "Subject",
    "build_options",
    "check_measure",
    "default_measure",
    "evaluate",
]
