"""A Typer application with three more features.

Options have hidden synonyms. `--model` names the network that a command uses. `--student` and
`--teacher` mean the same where a command has no option of that name. The help does not show them.

If an option is given twice, the last value counts, so that options can be added after those of a
script. A note names the option and the value, because two teachers, sets or rates may be a mistake.

A help text may name a registry, for example `{methods}`. It is replaced by the registered names,
including those of other packages, when the help is shown.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from persona.cli.output import note
from persona.cli.process import is_first
from persona.errors import PersonaError
from persona.registry import BACKBONES, EXPORTS, METHODS, PROTOCOLS

SYNONYMS = {"--model": ("--student", "--teacher")}
Function = TypeVar("Function", bound=Callable[..., Any])


class Commands(typer.Typer):
    """A Typer application whose commands have the features of this module."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, *arguments: Any, **settings: Any) -> Callable[[Function], Function]:
        """Registers a command, like `typer.Typer.command`."""
        return super().command(*arguments, **{"cls": _Command, **settings})

    def narrowed(self, arguments: Sequence[str]) -> Commands:
        """Returns this application with only the command that `arguments` name.

        Typer reads the types of all options of all commands, which takes 0.08 s. If no known
        command is named, all commands are there, for the help and for errors.
        """
        name = next((word for word in arguments if not word.startswith("-")), None)
        commands = [each for each in self.registered_commands if each.name == name]
        groups = [each for each in self.registered_groups if each.name == name]
        if not commands and not groups:
            return self
        one = copy.copy(self)
        one.registered_commands, one.registered_groups = commands, groups
        return one


REGISTRIES = {
    "{backbones}": BACKBONES,
    "{exports}": EXPORTS,
    "{methods}": METHODS,
    "{protocols}": PROTOCOLS,
}
"""Registries by their placeholders in help texts."""


class _Featured:
    """The features of this module, for a command or a group of Typer: the base after this one."""

    def make_parser(self: Any, ctx: Any) -> Any:
        plain: Any = super()
        parser = plain.make_parser(ctx)
        _add_synonyms(self, parser)
        return parser

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        plain: Any = super()
        _list_names(self)
        plain.format_help(ctx, formatter)

    def parse_args(self: Any, ctx: Any, args: list[str]) -> list[str]:
        plain: Any = super()
        given = list(args)
        rest: list[str] = plain.parse_args(ctx, args)
        _tell_repeated(self, ctx, given)
        return rest


class _Command(_Featured, TyperCommand):
    pass


class _Group(_Featured, TyperGroup):
    pass


def _add_synonyms(command: TyperCommand | TyperGroup, parser: Any) -> None:
    """Makes a parser accept an option's synonyms, unless the command has options of these names."""
    own = {name for parameter in command.params for name in parameter.opts}
    for parameter in command.params:
        for name in parameter.opts:
            others = [other for other in SYNONYMS.get(name, ()) if other not in own]
            if others:
                parser.add_option(
                    obj=parameter, opts=others, dest=parameter.name, action="store", nargs=1
                )


def _list_names(command: TyperCommand | TyperGroup) -> None:
    """Replaces the placeholders of registries in the help of a command's options."""
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        for placeholder, registry in REGISTRIES.items():
            if text and placeholder in text:
                text = text.replace(placeholder, ", ".join(registry))
                setattr(parameter, "help", text)  # noqa: B010 - arguments have it too


def _tell_repeated(command: TyperCommand | TyperGroup, ctx: Any, given: list[str]) -> None:
    """Prints a note for each option of one value that is given more than once."""
    order = command.make_parser(ctx).parse_args(args=given)[2]
    for option, times in Counter(order).items():
        takes_one = getattr(option, "param_type_name", "") == "option" and not (
            getattr(option, "multiple", False) or getattr(option, "count", False)
        )
        # A switch that can only be turned on means the same however often it is given.
        switch = getattr(option, "is_flag", False) and not option.secondary_opts
        if takes_one and times > 1 and not switch:
            told_twice(max(option.opts, key=len), ctx.params.get(option.name), times)


def check_nothing_before(context: typer.Context) -> None:
    """Raises PersonaError if a group's own options stand before one of its subcommands.

    They would be read and then dropped, because the subcommand has its own.
    """
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        # Compared by name, because newer releases of Typer have a Click of their own.
        if getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE"
    ]
    if given:
        command = context.invoked_subcommand
        raise PersonaError(
            f"{', '.join(given)} before `{command}` would have no effect: put it behind, as in "
            f"`{context.command_path} {command} {given[0]} …`, if `{command}` has such an option"
        )


def told_twice(name: str, value: object, times: int = 2) -> None:
    """Prints which value of an option counts. Only the first process of a run prints it."""
    if is_first():
        note(f"note: {name} is given {times} times: the last, {value}, counts")
