"""The exceptions for errors that a user can mend.

A message says what is wrong, where it is, and what to do. It never holds an embedding or a face.
"""

from __future__ import annotations

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Iterator

LONGEST_NAME = 80
"""Largest number of characters of a name or value that a message shows."""


class PersonaError(Exception):
    """An error that the user can mend. The command line prints its message as one line."""


class NotPacked(PersonaError):  # noqa: N818 - it is the state of a set
    """There is no such packed set on this machine. The message says what packs it."""


class CropsError(PersonaError):
    """A network cannot take the crops of a set. The message says how to pack the set."""


class Preempted(PersonaError):  # noqa: N818 - it is asked for
    """A run ended early because it was told to. Its checkpoint is written; it can be resumed."""


class SkipPhoto(Exception):  # noqa: N818 - it steers packing, it is not an error of the command
    """This photo cannot be packed; the message is the reason that the manifest keeps."""


class NoFace(SkipPhoto):
    """The photo can be read, but no face was found in it."""


@contextlib.contextmanager
def resumed_by(option: str) -> Iterator[None]:
    """Context in which Ctrl-C tells the user to continue with this option of the command."""
    try:
        yield
    except KeyboardInterrupt:
        line = f"interrupted: run the command with {option} to go on from its last checkpoint"
        raise KeyboardInterrupt(line) from None


_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 2
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 3
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = LONGEST_NAME


def shown(value: object) -> str:
    """Returns a value as an error shows it. An untrusted value is cut before it is formatted.

    >>> shown([[1] * 9] * 9)
    '[[1, 1, 1, ...], [1, 1, 1, ...], [1, 1, 1, ...], ...]'
    """
    try:
        return _SHOWN.repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a very long {type(value).__name__}"


def unknown(kind: str, name: str, known: Iterable[str], *, where: str = "") -> PersonaError:
    """Returns the error for an unknown name. It suggests the nearest known name first.

    >>> str(unknown("student", "mobilenet_v3_smal", ["mobilenet_v3_small"]))
    "unknown student 'mobilenet_v3_smal'; did you mean 'mobilenet_v3_small'?"
    """
    names, name = sorted(known), name[:LONGEST_NAME]
    place = f" in {where}" if where else ""
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    rest = [other for other in names if other not in nearest]
    if rest:
        shown = ", ".join(rest[:12]) + (f", … ({len(rest)} in all)" if len(rest) > 12 else "")
        hint += f"; known: {shown}" if not nearest else f" (also known: {shown})"
    if not names:
        hint = "; there is none yet"
    return PersonaError(f"unknown {kind} {name!r}{place}{hint}")
