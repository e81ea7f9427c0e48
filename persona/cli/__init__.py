"""The `persona` command: parse, call one function, print. Heavy imports happen in the commands."""

from __future__ import annotations

from persona.cli.app import main

__all__ = ["main"]
