"""The `persona` command: parse, call one function, print. Heavy imports happen in the commands."""

from __future__ import annotations

from persona.cli.signals import end_at_once


def main() -> None:
    """Console entry point, and that of `python -m persona`."""
    end_at_once()
    from persona.cli.app import main

    main()


def distill_main() -> None:
    """Entry point of `python -m persona.distill`."""
    end_at_once()
    from persona.cli.distill import main

    main()
