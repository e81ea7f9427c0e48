"""What of a model may leave the house: no class list, no class centres, no paths.

A class list can hold people's names, and each row of the last layer is a template of one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona.data.targets import short_name
from persona.models.cards import Card


def public_name(teacher: str) -> str:
    """A teacher's name without the folders of its file."""
    return short_name(teacher)


def publish_copy(card: Card, models: Path, target: Path, *, with_classes: bool) -> Card:
    """Writes a model as it may be published to `target/<ID>/`.

    Args:
        card: of the model.
        models: its store.
        target: another store, for the copy.
        with_classes: keep the last layer and the class list.
    """
    from dataclasses import replace

    from persona.models.cards import read_classes
    from persona.models.store import load_model, save_model
    from persona.models.student import Student

    student = load_model(card, models)
    classes = read_classes(card, models) if with_classes else ()
    if not with_classes:
        config = replace(student.config, embedding_size=student.embedding_size)
        bare = Student(config, 0, head="none", image_size=student.image_size)
        kept = bare.state_dict().keys()
        bare.load_state_dict({n: v for n, v in student.state_dict().items() if n in kept})
        student = bare
    as_it_is = (
        *("temperature", "epochs", "score", "scores", "chosen_by", "train_set", "test_set"),
        *("learned", "alignment"),
    )
    facts: dict[str, Any] = {name: getattr(card, name) for name in as_it_is}
    teacher = public_name(card.teacher)
    config_of_run = {**card.config, **({"teacher": teacher} if "teacher" in card.config else {})}
    return save_model(
        target,
        student,
        model_id=card.id,
        classes=classes,
        teacher=teacher,
        config=config_of_run,
        **facts,
    )
