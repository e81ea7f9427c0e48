"""Typer with two more habits: options have hidden synonyms, and one that is given twice is named.

`--model` names the network that a command uses. `--student` and `--teacher` mean the same where a
command has no option of that name; no help shows them.

The last value of an option counts, so that a script's options can be followed by others. Silently
that would hide a mistake: of two teachers, two sets or two rates the first would never have been
looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from persona.cli.output import note
from persona.cli.process import is_first

SYNONYMS = {"--model": ("--student", "--teacher")}
Function = TypeVar("Function", bound=Callable[..., Any])


class Commands(typer.Typer):
    """A Typer application whose commands say what was given twice."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, *arguments: Any, **settings: Any) -> Callable[[Function], Function]:
        """As Typer has it."""
        return super().command(*arguments, **{"cls": _Command, **settings})


class _Command(TyperCommand):
    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        _add_synonyms(self, parser)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _tell_repeated(self, ctx, given)
        return rest


class _Group(TyperGroup):
    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        _add_synonyms(self, parser)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _tell_repeated(self, ctx, given)
        return rest


def _add_synonyms(command: TyperCommand | TyperGroup, parser: Any) -> None:
    """Has a parser take an option's other names too, unless the command has options of those."""
    own = {name for parameter in command.params for name in parameter.opts}
    for parameter in command.params:
        for name in parameter.opts:
            others = [other for other in SYNONYMS.get(name, ()) if other not in own]
            if others:
                parser.add_option(
                    obj=parameter, opts=others, dest=parameter.name, action="store", nargs=1
                )


def _tell_repeated(command: TyperCommand | TyperGroup, ctx: Any, given: list[str]) -> None:
    """A line for each option of one value that is given more than once."""
    order = command.make_parser(ctx).parse_args(args=given)[2]
    for option, times in Counter(order).items():
        takes_one = getattr(option, "param_type_name", "") == "option" and not (
            getattr(option, "multiple", False) or getattr(option, "count", False)
        )
        # A switch that can only be turned on says the same each time.
        switch = getattr(option, "is_flag", False) and not option.secondary_opts
        if takes_one and times > 1 and not switch:
            told_twice(max(option.opts, key=len), times, ctx.params.get(option.name))


def told_twice(name: str, times: int, value: object) -> None:
    """Says which value of an option counts; by the first process alone."""
    if is_first():
        note(f"note: {name} is given {times} times: the last, {value}, counts")
