"""The `persona` command. Each command parses its arguments, calls one function and prints.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

from persona.cli.signals import end_at_once


def main() -> None:
    """Entry point of `persona` and of `python -m persona`."""
    end_at_once()
    from persona.cli.app import main

    main()


def distill_main() -> None:
    """Entry point of `python -m persona.distill`."""
    end_at_once()
    from persona.cli.distill import main

    main()
